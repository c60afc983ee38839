//! The user's code: request in, reply out.

use std::{error::Error, fmt, future::Future, io, sync::Arc};

use bytes::Bytes;

use crate::{access::Peer, connection::Identity};

/// Answers requests.
///
/// Implemented for closures over [`Bytes`] and over [`Request`]; `T` tells the two apart and is never
/// written. The requests of one client are answered one after the other, those of different clients at
/// the same time.
///
/// An error costs its client the connection and nobody else anything; so does a panic.
///
/// # Examples
///
/// ```
/// # use std::io;
/// use pipe_server::{Bytes, Handler, Request};
///
/// fn check<T>(_: impl Handler<T>) {}
///
/// check(|request: Bytes| async move { Ok::<_, io::Error>(request) });
/// check(|request: Request| async move {
///     Ok::<_, io::Error>(format!("hello, {}", request.peer()?.user()))
/// });
/// ```
pub trait Handler<T>: Send + Sync + 'static {
    /// Answers one request.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped when its time or the server's drain time is over, and when its client is
    /// gone if [`cancel_on_disconnect`](crate::Serve::cancel_on_disconnect) was asked for.
    fn call(
        &self,
        request: Request,
    ) -> impl Future<Output = Result<Reply, Box<dyn Error + Send + Sync>>> + Send;
}

impl<F, T, Answer, R, E> Handler<T> for F
where
    F: Fn(T) -> Answer + Send + Sync + 'static,
    T: From<Request> + Send + 'static,
    Answer: Future<Output = Result<R, E>> + Send,
    R: Into<Reply>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    async fn call(&self, request: Request) -> Result<Reply, Box<dyn Error + Send + Sync>> {
        // The answer is made here and not outside: a future that captures it would hold it twice.
        self(T::from(request))
            .await
            .map(Into::into)
            .map_err(Into::into)
    }
}

/// A message from a client, and who sent it.
#[derive(Clone)]
pub struct Request {
    pub(crate) bytes: Bytes,
    pub(crate) identity: Arc<Identity>,
}

impl Request {
    /// The message. Never empty.
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

    /// Who sent it: asked of the system once a connection.
    ///
    /// # Errors
    ///
    /// The system's; also when the connection was over before anybody asked.
    pub fn peer(&self) -> io::Result<Peer> {
        self.identity.peer()
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

/// The answer to a request: a message, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub(crate) message: Option<Bytes>,
}

impl Reply {
    /// Answers with nothing: the client did not ask for a reply. `()` becomes this too.
    #[must_use]
    pub fn none() -> Self {
        Self { message: None }
    }
}

impl From<()> for Reply {
    fn from((): ()) -> Self {
        Self::none()
    }
}

macro_rules! reply_from {
    ($($source:ty),*) => {$(
        impl From<$source> for Reply {
            fn from(message: $source) -> Self {
                Self { message: Some(message.into()) }
            }
        }
    )*};
}

reply_from!(Bytes, Vec<u8>, String, &'static [u8], &'static str);

/// Makes any [`tower_service::Service`] over [`Request`] a handler. A clone of it answers each request,
/// once it is ready.
#[cfg(feature = "tower")]
#[derive(Clone, Debug)]
pub struct TowerHandler<S>(pub S);

#[cfg(feature = "tower")]
impl<S> Handler<(Request, S)> for TowerHandler<S>
where
    S: tower_service::Service<Request> + Clone + Send + Sync + 'static,
    S::Response: Into<Reply>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: Send,
{
    async fn call(&self, request: Request) -> Result<Reply, Box<dyn Error + Send + Sync>> {
        let mut service = self.0.clone();
        std::future::poll_fn(|cx| service.poll_ready(cx))
            .await
            .map_err(Into::into)?;
        service
            .call(request)
            .await
            .map(Into::into)
            .map_err(Into::into)
    }
}
