//! The request that a handler answers.

use std::{fmt, io, sync::Arc};

use bytes::Bytes;

use crate::{connection::Identity, peer::Peer};

/// A message from a client, and who sent it.
#[derive(Clone)]
pub struct Request {
    bytes: Bytes,
    identity: Arc<Identity>,
}

impl Request {
    /// Creates a request that was not received on a connection, to call a handler in a test. Its
    /// [`connection_id`](Self::connection_id) is 0.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), pipe_server::BoxError> {
    /// use pipe_server::{Handler, Peer, Request};
    ///
    /// let handler = |name: String| async move { format!("hello {name}") };
    /// let reply = Handler::call(&handler, Request::new("Ann", Peer::current()?)).await?;
    /// assert_eq!(reply.message().unwrap(), "hello Ann");
    /// # Ok(()) }
    /// ```
    pub fn new(bytes: impl Into<Bytes>, peer: Peer) -> Self {
        Self::received(bytes.into(), Arc::new(Identity::for_peer(peer)))
    }

    /// Returns the same request with this session, to call a handler that takes a
    /// [`Session`](crate::Session) in a test.
    #[must_use]
    pub fn with_session<S: Send + Sync + 'static>(self, session: S) -> Self {
        let identity = self.identity.with_session(Arc::new(session));
        Self::received(self.bytes, Arc::new(identity))
    }

    pub(crate) fn received(bytes: Bytes, identity: Arc<Identity>) -> Self {
        Self { bytes, identity }
    }

    /// The message. Never empty if a client sent it.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Converts the request into its message.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The number of the connection it was received on. See
    /// [`Connection::id`](crate::Connection::id).
    #[must_use]
    pub fn connection_id(&self) -> u64 {
        self.identity.id
    }

    /// The client that sent it. The system is asked once per connection.
    ///
    /// # Errors
    ///
    /// Returns the system's error, or an error if the connection closed before the peer was first
    /// asked for.
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
