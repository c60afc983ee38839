//! State that belongs to one client.

use std::{any::type_name, io, ops::Deref, sync::Arc};

use crate::{connection::Identity, debug::debug_fields, peer::Peer};

/// The value that [`Serve::on_connect`](crate::Serve::on_connect) returned for the client of this
/// request.
///
/// Handlers take it as an argument. Clones are cheap and refer to the same value. It is dropped
/// once the client is gone and the last clone and the last [`Request`](crate::Request) of that
/// client are dropped.
///
/// # Examples
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use pipe_server::{Handler, Session};
///
/// fn check<T>(_: impl Handler<T>) {}
///
/// check(|requests: Session<AtomicU64>, name: String| async move {
///     let number = requests.fetch_add(1, Ordering::Relaxed);
///     format!("hello {name}, that was request {number}")
/// });
/// ```
#[derive(Debug)]
pub struct Session<S>(Arc<S>);

impl<S: Send + Sync + 'static> Session<S> {
    pub(crate) fn of(identity: &Identity) -> Result<Self, SessionRejection> {
        let session = identity.session().cloned();
        let wanted = type_name::<S>();
        let session = session.and_then(|session| session.downcast().ok());
        session.map(Self).ok_or(SessionRejection { wanted })
    }
}

impl<S> Clone for Session<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Deref for Session<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0
    }
}

/// The connection has no session of the type that the handler takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection has no Session<{wanted}>: return a {wanted} from on_connect")]
pub struct SessionRejection {
    wanted: &'static str,
}

/// A connection, as seen by [`Serve::on_connect`](crate::Serve::on_connect) and by handlers.
#[derive(Clone)]
pub struct ConnectionInfo {
    identity: Arc<Identity>,
}

impl ConnectionInfo {
    pub(crate) fn new(identity: &Arc<Identity>) -> Self {
        let identity = Arc::clone(identity);
        Self { identity }
    }

    /// The number of the connection. See [`Connection::id`](crate::Connection::id).
    #[must_use]
    pub fn id(&self) -> u64 {
        self.identity.id
    }

    /// The client. See [`Connection::peer`](crate::Connection::peer).
    ///
    /// # Errors
    ///
    /// Returns the system's error. On Windows most clients are not known until a message from them
    /// has been received, which is after `on_connect`. Check those in the handler.
    pub fn peer(&self) -> io::Result<Peer> {
        self.identity.peer()
    }
}

debug_fields! { ConnectionInfo, |connection| id = connection.id() }
