//! Linux-specific extensions.

use super::sealed::Sealed;
use crate::{listener::ListenerOptions, peer::Peer};

/// What Linux adds to [`ListenerOptions`].
pub trait ListenerOptionsExt: Sealed {
    /// The group of the socket file, by its id; `None`, the default, for the group that the system gives it.
    ///
    /// Its members may connect: with [`Access::CurrentUser`](crate::Access::CurrentUser) the socket's mode is
    /// then 0660. With another `Access` the mode is what that says. Clients of other users have to trust this
    /// user: see [`ClientOptions::trust`](crate::ClientOptions::trust).
    ///
    /// Only root may choose any group; others, one that this process is in (chown(2)). A short name is refused
    /// with [`BindError::Option`](crate::BindError::Option), since only this user can enter its directory.
    #[must_use]
    fn socket_group(self, group_id: impl Into<Option<u32>>) -> Self;
}

impl ListenerOptionsExt for ListenerOptions {
    fn socket_group(mut self, group_id: impl Into<Option<u32>>) -> Self {
        self.socket_group = group_id.into();
        self
    }
}

/// Linux-specific extensions to [`Peer`].
pub trait PeerExt: Sealed {
    /// The effective group id of the process when it connected (`SO_PEERCRED`).
    fn group_id(&self) -> u32;
}

impl PeerExt for Peer {
    fn group_id(&self) -> u32 {
        self.group_id
    }
}

#[cfg(all(test, feature = "test-util"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_its_group() {
        let group = rustix::process::getegid().as_raw();
        assert_eq!(Peer::current().unwrap().group_id(), group);
    }
}
