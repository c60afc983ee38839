//! Linux-specific extensions.

use super::sealed::Sealed;
use crate::peer::Peer;

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
