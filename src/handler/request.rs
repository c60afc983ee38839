//! The request that a handler answers.

use std::{io, marker::PhantomData, sync::Arc};

use bytes::Bytes;

use crate::{connection::Identity, debug::debug_fields, handler::FromRequest, peer::Peer};

/// A message from a client, and who sent it.
///
/// `S` is the type of the server's state: see [`Serve::with_state`](crate::Serve::with_state).
pub struct Request<S = ()> {
    bytes: Bytes,
    identity: Arc<Identity>,
    /// If `S` is not `()`, `identity` has a state of this type.
    _state: PhantomData<fn() -> S>,
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

    /// Returns the same request with this state, to call a handler that takes a
    /// [`State`](crate::State) in a test.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), pipe_server::BoxError> {
    /// use pipe_server::{Handler, Peer, Request, State};
    ///
    /// let handler = |State(greeting): State<&'static str>, name: String| async move {
    ///     format!("{greeting} {name}")
    /// };
    /// let request = Request::new("Ann", Peer::current()?).with_state("hello");
    /// let reply = Handler::call(&handler, request).await?;
    /// assert_eq!(reply.message().unwrap(), "hello Ann");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_state<S: Send + Sync + 'static>(self, state: S) -> Request<S> {
        let identity = self.identity.with_state(Arc::new(state));
        Self::received(self.bytes, Arc::new(identity)).assume_state()
    }

    pub(crate) fn received(bytes: Bytes, identity: Arc<Identity>) -> Self {
        Self {
            bytes,
            identity,
            _state: PhantomData,
        }
    }

    /// Says that the server has a state of type `S`.
    pub(super) fn assume_state<S>(self) -> Request<S> {
        Request {
            bytes: self.bytes,
            identity: self.identity,
            _state: PhantomData,
        }
    }
}

impl<S> Request<S> {
    /// Returns the same request with this session, to call a handler that takes a
    /// [`Session`](crate::Session) in a test.
    #[must_use]
    pub fn with_session<V: Send + Sync + 'static>(mut self, session: V) -> Self {
        self.identity = Arc::new(self.identity.with_session(Arc::new(session)));
        self
    }

    /// Extracts a value, for a [`Handler`](crate::Handler) that is not a function.
    ///
    /// # Errors
    ///
    /// Returns the rejection.
    ///
    /// # Examples
    ///
    /// ```
    /// use pipe_server::{BoxError, Handler, Peer, Reply, Request};
    ///
    /// struct Greeter {
    ///     greeting: &'static str,
    /// }
    ///
    /// impl Handler for Greeter {
    ///     async fn call(&self, request: Request) -> Result<Reply, BoxError> {
    ///         let peer: Peer = request.extract()?;
    ///         let name = request.extract::<String>()?;
    ///         Ok(Reply::new(format!("{} {name}, you are {}", self.greeting, peer.user())))
    ///     }
    /// }
    /// ```
    pub fn extract<E: FromRequest<S>>(&self) -> Result<E, E::Rejection> {
        E::from_request(self)
    }

    /// Returns the same request without the type of the state.
    pub(super) fn without_state(self) -> Request {
        Request::received(self.bytes, self.identity)
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

impl<S> Clone for Request<S> {
    fn clone(&self) -> Self {
        Self {
            bytes: self.bytes.clone(),
            identity: Arc::clone(&self.identity),
            _state: PhantomData,
        }
    }
}

debug_fields! { Request<S>, |request| bytes = request.bytes, connection_id = request.connection_id() }

impl<S> From<Request<S>> for Bytes {
    fn from(request: Request<S>) -> Self {
        request.bytes
    }
}
