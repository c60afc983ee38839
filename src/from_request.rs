//! What a handler may take.

use std::{convert::Infallible, io, str::Utf8Error};

use bytes::Bytes;

use crate::{
    error::BoxError,
    peer::Peer,
    request::Request,
    session::{ConnectionInfo, NoSession, Session},
};

/// What a handler may take as an argument.
///
/// | type | value | rejected |
/// |---|---|---|
/// | [`Bytes`] | the message | never |
/// | `String` | the message as text | if it is not UTF-8 |
/// | [`Request`] | the message, and who sent it | never |
/// | [`Peer`] | who sent it | if the system does not say |
/// | [`ConnectionInfo`] | the connection that it came on | never |
/// | [`Session<S>`] | what [`on_connect`](crate::Serve::on_connect) made for the client | if it made no `S` |
/// | `Result<T, T::Rejection>` | the value or its rejection | never |
/// | `Option<T>` | the value, or `None` if it is rejected | never |
///
/// A rejection ends the conversation and is logged with the connection's id. A handler that takes the
/// `Result` decides for itself.
///
/// Arguments may stand in any order, and more than one may take the message. The last one takes it by
/// value, without a copy.
///
/// # Examples
///
/// A type of one's own:
///
/// ```
/// use pipe_server::{BoxError, FromRequest, Handler, Request};
///
/// struct Number(u64);
///
/// impl FromRequest for Number {
///     type Rejection = BoxError;
///
///     fn from_request(request: &Request) -> Result<Self, BoxError> {
///         Ok(Self(std::str::from_utf8(request.bytes())?.trim().parse()?))
///     }
/// }
///
/// fn check<T>(_: impl Handler<T>) {}
///
/// check(|Number(number): Number| async move { (number + 1).to_string() });
/// check(|number: Result<Number, BoxError>| async move {
///     match number {
///         Ok(Number(number)) => (number + 1).to_string(),
///         Err(rejection) => format!("not a number: {rejection}"),
///     }
/// });
/// ```
// One trait, where axum has two for the parts and the body of a request: a message is whole, and its clone
// shares the bytes, so every argument can have it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be an argument of a handler",
    note = "implement `FromRequest` for it, or take one of `Bytes`, `String`, `Request`, `Peer`, \
            `ConnectionInfo` and `Session`"
)]
pub trait FromRequest: Sized {
    /// Why a request is rejected.
    type Rejection: Into<BoxError>;

    /// Extracts it from a request that other arguments need as well.
    ///
    /// # Errors
    ///
    /// The rejection.
    fn from_request(request: &Request) -> Result<Self, Self::Rejection>;

    /// Extracts it from a request that nothing else needs. By default as
    /// [`from_request`](Self::from_request).
    ///
    /// # Errors
    ///
    /// The rejection.
    fn from_owned(request: Request) -> Result<Self, Self::Rejection> {
        Self::from_request(&request)
    }
}

/// A request was rejected before it reached its handler. The source says why.
#[derive(Debug, thiserror::Error)]
#[error("the request was rejected")]
pub struct Rejection {
    source: BoxError,
}

impl Rejection {
    pub(crate) fn new(reason: impl Into<BoxError>) -> Self {
        let source = reason.into();
        Self { source }
    }

    /// Why it was rejected.
    #[must_use]
    pub fn into_reason(self) -> BoxError {
        self.source
    }
}

impl FromRequest for Request {
    type Rejection = Infallible;

    fn from_request(request: &Request) -> Result<Self, Infallible> {
        Ok(request.clone())
    }

    fn from_owned(request: Request) -> Result<Self, Infallible> {
        Ok(request)
    }
}

impl FromRequest for Bytes {
    type Rejection = Infallible;

    fn from_request(request: &Request) -> Result<Self, Infallible> {
        Ok(request.bytes().clone())
    }

    fn from_owned(request: Request) -> Result<Self, Infallible> {
        Ok(request.into_bytes())
    }
}

impl FromRequest for String {
    type Rejection = Utf8Error;

    fn from_request(request: &Request) -> Result<Self, Utf8Error> {
        std::str::from_utf8(request.bytes()).map(str::to_owned)
    }
}

impl FromRequest for Peer {
    type Rejection = io::Error;

    fn from_request(request: &Request) -> Result<Self, io::Error> {
        request.peer()
    }
}

impl FromRequest for ConnectionInfo {
    type Rejection = Infallible;

    fn from_request(request: &Request) -> Result<Self, Infallible> {
        Ok(Self::new(request.identity()))
    }
}

impl<S: Send + Sync + 'static> FromRequest for Session<S> {
    type Rejection = NoSession;

    fn from_request(request: &Request) -> Result<Self, NoSession> {
        Self::of(request.identity())
    }
}

impl<T: FromRequest> FromRequest for Option<T> {
    type Rejection = Infallible;

    fn from_request(request: &Request) -> Result<Self, Infallible> {
        Ok(T::from_request(request).ok())
    }

    fn from_owned(request: Request) -> Result<Self, Infallible> {
        Ok(T::from_owned(request).ok())
    }
}

impl<T: FromRequest> FromRequest for Result<T, T::Rejection> {
    type Rejection = Infallible;

    fn from_request(request: &Request) -> Result<Self, Infallible> {
        Ok(T::from_request(request))
    }

    fn from_owned(request: Request) -> Result<Self, Infallible> {
        Ok(T::from_owned(request))
    }
}
