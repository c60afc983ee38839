//! The user's code: request in, reply out.

use std::{
    future::{Future, pending},
    sync::Arc,
};

use crate::error::BoxError;

#[cfg(feature = "json")]
pub use self::json::{Json, JsonCallError, JsonRecvError, JsonRejection, JsonSendError};
#[cfg(feature = "postcard")]
pub use self::postcard::{
    Postcard, PostcardCallError, PostcardRecvError, PostcardRejection, PostcardSendError,
};
#[cfg(feature = "tower")]
pub use self::tower::TowerHandler;
pub use self::{
    from_request::{FromRequest, Rejection},
    into_reply::{IntoReply, Reply},
    request::Request,
    session::{ConnectionInfo, Session, SessionRejection},
    state::{FromRef, State, WithState},
};

mod from_request;
mod into_reply;
#[cfg(feature = "json")]
mod json;
#[cfg(feature = "postcard")]
mod postcard;
mod request;
mod session;
mod state;
#[cfg(feature = "tower")]
mod tower;
#[cfg(any(feature = "json", feature = "postcard"))]
mod typed;

/// Answers requests.
///
/// Async functions and closures are handlers. They take one to four arguments, each of a type that
/// implements [`FromRequest`], and return a type that implements [`IntoReply`]. What all of them share
/// is a [`State`] argument. Other types implement this trait, and use [`Request::extract`]; an `Arc`
/// of a handler is one too. `T` distinguishes these cases and rarely has to be written. `S` is the
/// type of the server's state: see [`Serve::with_state`](crate::Serve::with_state).
///
/// The requests of one client are handled in order, one at a time unless
/// [`concurrency`](crate::Serve::concurrency) is set; different clients are served concurrently.
///
/// If a handler fails or panics, only its own client loses the connection.
///
/// # Examples
///
/// ```
/// use pipe_server::{BoxError, Bytes, Handler, Peer, Reply, Request};
///
/// fn check<T>(_: impl Handler<T>) {}
///
/// check(|request: Bytes| async move { request });
/// check(|peer: Peer, name: String| async move { format!("hello {name}, you are {}", peer.user()) });
///
/// struct Greeter {
///     greeting: &'static str,
/// }
///
/// impl Handler for Greeter {
///     async fn call(&self, request: Request) -> Result<Reply, BoxError> {
///         let name = std::str::from_utf8(request.bytes())?;
///         Ok(Reply::new(format!("{} {name}", self.greeting)))
///     }
/// }
///
/// check(Greeter { greeting: "hello" });
/// ```
///
/// Middleware is a handler that wraps another one, or a function that returns such a handler:
///
/// ```
/// use std::sync::Arc;
/// use pipe_server::{Handler, Request};
///
/// fn logged<T: 'static>(inner: impl Handler<T>) -> impl Handler<(Request,)> {
///     let inner = Arc::new(inner);
///     move |request: Request| {
///         let inner = Arc::clone(&inner);
///         async move {
///             println!("{} bytes from connection {}", request.bytes().len(), request.connection_id());
///             inner.call(request).await
///         }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    note = "a handler is an async function with one to four arguments, each of a type that implements \
            `FromRequest`, and a return type that implements `IntoReply`"
)]
pub trait Handler<T = Request, S = ()>: Send + Sync + 'static {
    /// Answers one request.
    ///
    /// To call a function as a handler, write `Handler::call(&function, request)`. The compiler
    /// warns about `function.call(request)`, because functions have an unstable method of that name.
    ///
    /// # Errors
    ///
    /// An error ends the conversation and is logged with the connection's id.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped when the handler timeout or the drain deadline passes and, with
    /// [`cancel_on_disconnect`](crate::Serve::cancel_on_disconnect), when the client disconnects.
    /// With [`concurrency`](crate::Serve::concurrency), also when an earlier request fails or
    /// its reply can't be sent.
    fn call(&self, request: Request<S>) -> impl Future<Output = Result<Reply, BoxError>> + Send;

    /// Returns the handler for a newly accepted connection. By default all connections share this
    /// one.
    ///
    /// For handlers that need a value per connection other than a [`Session`], such as
    /// [`TowerHandler`], which clones its service. Middleware forwards the call to the
    /// handler that it wraps.
    fn for_connection(self: &Arc<Self>) -> Arc<Self> {
        Arc::clone(self)
    }

    /// Completes when this handler ends its connection, although its client has not: what it needs
    /// for further requests is gone. By default never.
    ///
    /// The connection is closed at once, after the replies that are ready, and the error is logged
    /// with [`Reason::Ended`](crate::Reason::Ended). A client that sends its next request at that
    /// moment can't tell whether it was executed.
    ///
    /// Called once per connection, on the handler that [`for_connection`](Self::for_connection) returned. The
    /// future is polled only while that handler answers no request, so it must hold no lock that
    /// [`call`](Self::call) takes. Middleware forwards the call to the handler that it wraps.
    fn ended(&self) -> impl Future<Output = BoxError> + Send {
        pending()
    }
}

macro_rules! handler {
    ($($argument:ident)*; $last:ident) => {
        impl<F, Answer, R, S, $($argument,)* $last> Handler<($($argument,)* $last,), S> for F
        where
            F: Fn($($argument,)* $last) -> Answer + Send + Sync + 'static,
            Answer: Future<Output = R> + Send,
            R: IntoReply,
            $($argument: FromRequest<S> + Send,)*
            $last: FromRequest<S> + Send,
        {
            async fn call(&self, request: Request<S>) -> Result<Reply, BoxError> {
                // In one expression: a future in a variable would be stored twice.
                self(
                    $($argument::from_request(&request).map_err(Rejection::new)?,)*
                    $last::from_owned(request).map_err(Rejection::new)?,
                )
                .await
                .into_reply()
            }
        }
    };
}

impl<H: Handler<T, S>, T, S> Handler<T, S> for Arc<H> {
    fn call(&self, request: Request<S>) -> impl Future<Output = Result<Reply, BoxError>> + Send {
        H::call(self, request)
    }

    fn for_connection(self: &Arc<Self>) -> Arc<Self> {
        let handler = H::for_connection(self);
        if Arc::ptr_eq(&handler, self) {
            return Arc::clone(self);
        }
        Arc::new(handler)
    }

    fn ended(&self) -> impl Future<Output = BoxError> + Send {
        H::ended(self)
    }
}

handler!(; A);
handler!(A; B);
handler!(A B; C);
handler!(A B C; D);
