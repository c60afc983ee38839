//! The identity of a connection.

use std::{
    any::Any,
    io,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{engine::Link, peer::Peer};

/// The number, the peer, the session and the server's state of a connection, which its requests
/// share.
#[derive(Default)]
pub(crate) struct Identity {
    pub(crate) id: u64,
    peer: OnceLock<Peer>,
    session: OnceLock<AnySession>,
    /// Set if the server has a state.
    state: OnceLock<AnyState>,
    has_failed: AtomicBool,
    /// Weak, so that a handler that keeps a request does not keep the instance open. `None` for a
    /// request that was not received on a connection.
    link: Option<Weak<dyn Link>>,
}

/// A session of any type.
pub(crate) type AnySession = Arc<dyn Any + Send + Sync>;

/// A server's state of any type.
pub(crate) type AnyState = Arc<dyn Any + Send + Sync>;

impl Identity {
    pub(crate) fn new(id: u64, link: &Arc<dyn Link>) -> Self {
        Self {
            id,
            link: Some(Arc::downgrade(link)),
            ..Self::default()
        }
    }

    /// Creates the identity of a request that was not received on a connection.
    pub(crate) fn for_peer(peer: Peer) -> Self {
        Self {
            peer: OnceLock::from(peer),
            ..Self::default()
        }
    }

    /// Returns the same identity with another session.
    pub(crate) fn with_session(&self, session: AnySession) -> Self {
        Self {
            session: OnceLock::from(session),
            ..self.copy()
        }
    }

    /// Returns the same identity with another state.
    pub(crate) fn with_state(&self, state: AnyState) -> Self {
        Self {
            state: OnceLock::from(state),
            ..self.copy()
        }
    }

    /// A copy for another request, on which nothing has failed.
    fn copy(&self) -> Self {
        Self {
            id: self.id,
            peer: self.peer.clone(),
            session: self.session.clone(),
            state: self.state.clone(),
            has_failed: AtomicBool::new(false),
            link: self.link.clone(),
        }
    }

    /// Called once, before the first request.
    pub(crate) fn set_state(&self, state: AnyState) {
        _ = self.state.set(state);
    }

    pub(crate) fn state(&self) -> Option<&AnyState> {
        self.state.get()
    }

    /// Called once, before the first request.
    pub(crate) fn set_session(&self, session: AnySession) {
        _ = self.session.set(session);
    }

    pub(crate) fn session(&self) -> Option<&AnySession> {
        self.session.get()
    }

    /// Whether receiving from the other side or sending to it has failed, or a message of the other
    /// side could not be decoded.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_failed(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn peer(&self) -> io::Result<Peer> {
        if let Some(peer) = self.peer.get() {
            return Ok(peer.clone());
        }
        let link = self.link.as_ref().and_then(Weak::upgrade);
        let link = link.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotConnected,
                "the connection has closed, and its peer was never asked for",
            )
        })?;
        let peer = link.peer()?;
        Ok(self.peer.get_or_init(|| peer).clone())
    }
}
