//! The user's code: request in, reply out.

use std::{future::Future, sync::Arc};

use crate::{
    error::BoxError,
    from_request::{FromRequest, Rejection},
    into_reply::{IntoReply, Reply},
    request::Request,
};

/// Answers requests.
///
/// Async functions and closures are handlers: they take one to four arguments, each of a type that
/// implements [`FromRequest`], and return something that implements [`IntoReply`]. A type with state
/// implements this trait by hand. `T` tells these apart and is rarely written.
///
/// The requests of one client are answered one after the other, those of different clients at the same
/// time.
///
/// A handler that fails or panics costs its own client the connection, nothing else.
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
/// Middleware is a handler that has another one, or a function that makes one out of another:
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
pub trait Handler<T = Request>: Send + Sync + 'static {
    /// Answers one request.
    ///
    /// # Errors
    ///
    /// An error ends the conversation and is logged with the connection's id.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped when its time or the server's drain time is over, and when its client is
    /// gone if [`cancel_on_disconnect`](crate::Serve::cancel_on_disconnect) was asked for.
    fn call(&self, request: Request) -> impl Future<Output = Result<Reply, BoxError>> + Send;

    /// Returns the handler of a connection that has just been accepted. By default all connections share
    /// this one.
    ///
    /// For handlers that need a value for each connection which is not a [`Session`](crate::Session), as
    /// [`TowerHandler`](crate::TowerHandler) needs a clone of its service. Middleware passes the call on
    /// to the handler that it wraps.
    fn connected(self: &Arc<Self>) -> Arc<Self> {
        Arc::clone(self)
    }
}

macro_rules! handler {
    ($($argument:ident)*; $last:ident) => {
        impl<F, Answer, R, $($argument,)* $last> Handler<($($argument,)* $last,)> for F
        where
            F: Fn($($argument,)* $last) -> Answer + Send + Sync + 'static,
            Answer: Future<Output = R> + Send,
            R: IntoReply,
            $($argument: FromRequest + Send,)*
            $last: FromRequest + Send,
        {
            async fn call(&self, request: Request) -> Result<Reply, BoxError> {
                // In one expression: a future kept in a variable would be held twice.
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

handler!(; A);
handler!(A; B);
handler!(A B; C);
handler!(A B C; D);
