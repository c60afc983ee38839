//! The types that a handler can return.

use std::convert::Infallible;

use bytes::Bytes;

use crate::error::BoxError;

/// The answer to a request: a message, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    message: Option<Bytes>,
}

impl Reply {
    /// Creates a reply that sends `message`.
    ///
    /// An empty message would end the conversation, so it can't be sent: a handler that returns one
    /// has failed. Return [`Reply::none`] to send no reply.
    #[must_use]
    pub fn new(message: impl Into<Bytes>) -> Self {
        Self {
            message: Some(message.into()),
        }
    }

    /// Creates a reply that sends nothing, for a client that expects no reply. `()` does the same.
    #[must_use]
    pub fn none() -> Self {
        Self { message: None }
    }

    /// The message, if any.
    #[must_use]
    pub fn message(&self) -> Option<&Bytes> {
        self.message.as_ref()
    }

    /// The message, if any.
    #[must_use]
    pub fn into_message(self) -> Option<Bytes> {
        self.message
    }
}

/// A type that a handler can return.
///
/// | type | reply |
/// |---|---|
/// | [`Bytes`], `Vec<u8>`, `String`, `&'static str`, `&'static [u8]`, `&'static [u8; N]` | a message |
/// | [`Json<T>`](crate::Json), [`Postcard<T>`](crate::Postcard) (features `json`, `postcard`) | a message, encoded |
/// | `()` | none |
/// | `Option<R>` | none for `None` |
/// | `Result<R, E>` | an error ends the conversation and is logged with the connection's id |
/// | [`Reply`] | a message or none |
///
/// # Examples
///
/// A custom type:
///
/// ```
/// use pipe_server::{BoxError, IntoReply, Reply};
///
/// struct Temperature(f32);
///
/// impl IntoReply for Temperature {
///     fn into_reply(self) -> Result<Reply, BoxError> {
///         if self.0.is_nan() {
///             return Err("the sensor is not connected".into());
///         }
///         Ok(Reply::new(format!("{} °C", self.0)))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be returned by a handler",
    note = "a handler returns bytes, text, `Reply`, `()`, with their features `Json` or `Postcard`, or an \
            `Option` or `Result` of these"
)]
pub trait IntoReply {
    /// Converts the value into a reply.
    ///
    /// # Errors
    ///
    /// An error ends the conversation and is logged with the connection's id.
    fn into_reply(self) -> Result<Reply, BoxError>;
}

impl IntoReply for Reply {
    fn into_reply(self) -> Result<Reply, BoxError> {
        Ok(self)
    }
}

macro_rules! message {
    ($($source:ty),* $(,)?) => {$(
        impl From<$source> for Reply {
            fn from(message: $source) -> Self {
                Self::new(message)
            }
        }

        impl IntoReply for $source {
            fn into_reply(self) -> Result<Reply, BoxError> {
                Ok(Reply::new(self))
            }
        }
    )*};
}

message! { Bytes, Vec<u8>, String, &'static str, &'static [u8] }

impl<const N: usize> IntoReply for &'static [u8; N] {
    fn into_reply(self) -> Result<Reply, BoxError> {
        Ok(Reply::new(&self[..]))
    }
}

impl From<()> for Reply {
    fn from((): ()) -> Self {
        Self::none()
    }
}

impl IntoReply for () {
    fn into_reply(self) -> Result<Reply, BoxError> {
        Ok(Reply::none())
    }
}

impl<R: IntoReply> IntoReply for Option<R> {
    fn into_reply(self) -> Result<Reply, BoxError> {
        self.map_or_else(|| Ok(Reply::none()), R::into_reply)
    }
}

impl<R: IntoReply, E: Into<BoxError>> IntoReply for Result<R, E> {
    fn into_reply(self) -> Result<Reply, BoxError> {
        self.map_err(Into::into)?.into_reply()
    }
}

impl IntoReply for Infallible {
    fn into_reply(self) -> Result<Reply, BoxError> {
        match self {}
    }
}
