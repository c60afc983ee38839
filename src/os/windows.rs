//! Windows-specific extensions.

use super::sealed::Sealed;
use crate::{client::ClientOptions, listener::ListenerOptions, peer::Peer};

pub use crate::engine::Engine;

/// Windows-specific extensions to [`ListenerOptions`].
pub trait ListenerOptionsExt: Sealed {
    /// Which I/O the connections use. Default: [`Engine::Auto`].
    #[must_use]
    fn engine(self, engine: Engine) -> Self;

    /// Whether clients on other machines may connect. Default: no (`PIPE_REJECT_REMOTE_CLIENTS`).
    #[must_use]
    fn allow_remote(self, allow: bool) -> Self;
}

impl ListenerOptionsExt for ListenerOptions {
    fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    fn allow_remote(mut self, allow: bool) -> Self {
        self.allow_remote = allow;
        self
    }
}

/// Windows-specific extensions to [`ClientOptions`].
pub trait ClientOptionsExt: Sealed {
    /// Whether to connect to a pipe on another machine, `\\HOST\pipe\NAME`. Default: no.
    ///
    /// Connecting sends this user's credentials to HOST over SMB, whatever HOST is. Check names from outside
    /// before turning this on.
    #[must_use]
    fn allow_remote(self, allow: bool) -> Self;
}

impl ClientOptionsExt for ClientOptions {
    fn allow_remote(mut self, allow: bool) -> Self {
        self.allow_remote = allow;
        self
    }
}

/// Windows-specific extensions to [`Peer`].
pub trait PeerExt: Sealed {
    /// The process's Terminal Services session id.
    fn session_id(&self) -> u32;
}

impl PeerExt for Peer {
    fn session_id(&self) -> u32 {
        self.session_id
    }
}
