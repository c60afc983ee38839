//! The types that a handler can take.

use std::{convert::Infallible, io, str::Utf8Error};

use bytes::Bytes;

use crate::{
    error::BoxError,
    handler::{ConnectionInfo, Request, Session, SessionRejection},
    peer::Peer,
};

/// A type that a handler can take as an argument.
///
/// | type | value | rejected |
/// |---|---|---|
/// | [`Bytes`] | the message | never |
/// | `String` | the message as text | if it is not UTF-8 |
/// | [`Request`] | the message, and who sent it | never |
/// | [`Peer`] | who sent it | if the system does not say |
/// | [`ConnectionInfo`] | the connection it was received on | never |
/// | [`State<S>`](crate::State) | what [`with_state`](crate::Serve::with_state) was given, or a part of it | never |
/// | [`Session<S>`] | what [`on_connect`](crate::Serve::on_connect) returned for the client | if it returned no `S` |
/// | [`Json<T>`](crate::Json), [`Postcard<T>`](crate::Postcard) (features `json`, `postcard`) | the message, decoded | if it is not a `T` in that format |
/// | `Result<T, T::Rejection>` | the value or its rejection | never |
/// | `Option<T>` | the value, or `None` if it is rejected | never |
///
/// A rejection ends the conversation and is logged with the connection's id. A handler that takes
/// the `Result` handles the rejection itself.
///
/// Arguments may be in any order, and more than one may take the message. The last one takes it by
/// value, without a copy.
///
/// `S` is the type of the server's state. A custom type that does not use it is generic over it, to
/// be an argument beside a [`State`](crate::State).
///
/// # Examples
///
/// A custom type:
///
/// ```
/// use pipe_server::{BoxError, FromRequest, Handler, Request};
///
/// struct Number(u64);
///
/// impl<S> FromRequest<S> for Number {
///     type Rejection = BoxError;
///
///     fn from_request(request: &Request<S>) -> Result<Self, BoxError> {
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
// One trait, where axum has two for the parts and the body of a request. A message is whole and its
// clones share the bytes, so every argument can have it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be an argument of a handler",
    note = "implement `FromRequest` for it, or take one of `Bytes`, `String`, `Request`, `Peer`, \
            `ConnectionInfo`, `State` and `Session`, or with their features `Json` and `Postcard`"
)]
pub trait FromRequest<S = ()>: Sized {
    /// The error of a request that is rejected.
    type Rejection: Into<BoxError>;

    /// Extracts the value from a request that other arguments need as well.
    ///
    /// # Errors
    ///
    /// Returns the rejection.
    fn from_request(request: &Request<S>) -> Result<Self, Self::Rejection>;

    /// Extracts the value from a request that nothing else needs. Calls
    /// [`from_request`](Self::from_request) by default.
    ///
    /// # Errors
    ///
    /// Returns the rejection.
    fn from_owned(request: Request<S>) -> Result<Self, Self::Rejection> {
        Self::from_request(&request)
    }
}

/// A request was rejected before it reached its handler. The source is the reason.
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

    /// Returns the reason.
    #[must_use]
    pub fn into_reason(self) -> BoxError {
        self.source
    }
}

impl<S> FromRequest<S> for Request {
    type Rejection = Infallible;

    fn from_request(request: &Request<S>) -> Result<Self, Infallible> {
        Ok(request.clone().without_state())
    }

    fn from_owned(request: Request<S>) -> Result<Self, Infallible> {
        Ok(request.without_state())
    }
}

impl<S> FromRequest<S> for Bytes {
    type Rejection = Infallible;

    fn from_request(request: &Request<S>) -> Result<Self, Infallible> {
        Ok(request.bytes().clone())
    }

    fn from_owned(request: Request<S>) -> Result<Self, Infallible> {
        Ok(request.into_bytes())
    }
}

impl<S> FromRequest<S> for String {
    type Rejection = Utf8Error;

    fn from_request(request: &Request<S>) -> Result<Self, Utf8Error> {
        std::str::from_utf8(request.bytes()).map(str::to_owned)
    }
}

impl<S> FromRequest<S> for Peer {
    type Rejection = io::Error;

    fn from_request(request: &Request<S>) -> Result<Self, io::Error> {
        request.peer()
    }
}

impl<S> FromRequest<S> for ConnectionInfo {
    type Rejection = Infallible;

    fn from_request(request: &Request<S>) -> Result<Self, Infallible> {
        Ok(Self::new(request.identity()))
    }
}

impl<S, V: Send + Sync + 'static> FromRequest<S> for Session<V> {
    type Rejection = SessionRejection;

    fn from_request(request: &Request<S>) -> Result<Self, SessionRejection> {
        Self::of(request.identity())
    }
}

impl<S, T: FromRequest<S>> FromRequest<S> for Option<T> {
    type Rejection = Infallible;

    fn from_request(request: &Request<S>) -> Result<Self, Infallible> {
        Ok(T::from_request(request).ok())
    }

    fn from_owned(request: Request<S>) -> Result<Self, Infallible> {
        Ok(T::from_owned(request).ok())
    }
}

impl<S, T: FromRequest<S>> FromRequest<S> for Result<T, T::Rejection> {
    type Rejection = Infallible;

    fn from_request(request: &Request<S>) -> Result<Self, Infallible> {
        Ok(T::from_request(request))
    }

    fn from_owned(request: Request<S>) -> Result<Self, Infallible> {
        Ok(T::from_owned(request))
    }
}
