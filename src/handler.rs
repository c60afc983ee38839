//! The user's code: request in, reply out.

use std::{fmt, future::Future, io, sync::Arc};

use bytes::Bytes;

use crate::{
    access::Peer,
    error::BoxError,
    from_request::{FromRequest, Rejection},
    identity::Identity,
    into_reply::{IntoReply, Reply},
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

/// A message from a client, and who sent it.
#[derive(Clone)]
pub struct Request {
    bytes: Bytes,
    identity: Arc<Identity>,
}

impl Request {
    /// Creates a request that no connection has received, to call a handler in a test. Its
    /// [`connection_id`](Self::connection_id) is 0.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "test-util")]
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), pipe_server::BoxError> {
    /// use pipe_server::{Handler, Peer, Request};
    ///
    /// let handler = |name: String| async move { format!("hello {name}") };
    /// let reply = Handler::call(&handler, Request::new("Ann", Peer::current()?)).await?;
    /// assert_eq!(reply.message().unwrap(), "hello Ann");
    /// # Ok(()) }
    /// # #[cfg(not(feature = "test-util"))] fn main() {}
    /// ```
    pub fn new(bytes: impl Into<Bytes>, peer: Peer) -> Self {
        Self::received(bytes.into(), Arc::new(Identity::of(peer)))
    }

    /// The same request on a connection with this session, to call a handler that takes a
    /// [`Session`](crate::Session) in a test.
    #[must_use]
    pub fn with_session<S: Send + Sync + 'static>(self, session: S) -> Self {
        let identity = self.identity.with_session(Arc::new(session));
        Self::received(self.bytes, Arc::new(identity))
    }

    pub(crate) fn received(bytes: Bytes, identity: Arc<Identity>) -> Self {
        Self { bytes, identity }
    }

    /// The message. Never empty if a client has sent it.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The message, without the rest.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The connection that it came on, as [`Connection::id`](crate::Connection::id).
    #[must_use]
    pub fn connection_id(&self) -> u64 {
        self.identity.id
    }

    /// Who sent it. The system is asked once for each connection.
    ///
    /// # Errors
    ///
    /// The system's; also when the connection was over before anybody asked.
    pub fn peer(&self) -> io::Result<Peer> {
        self.identity.peer()
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Request")
            .field("bytes", &self.bytes)
            .field("connection_id", &self.connection_id())
            .finish_non_exhaustive()
    }
}

impl From<Request> for Bytes {
    fn from(request: Request) -> Self {
        request.bytes
    }
}
