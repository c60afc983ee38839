//! What exists on one system only, as extension traits.

#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(windows)]
pub mod windows;

/// Keeps the traits below to the types of this crate, so that they can grow.
mod sealed {
    pub trait Sealed {}

    impl Sealed for crate::peer::Peer {}
    impl Sealed for crate::client::ClientOptions {}
    impl Sealed for crate::listener::ListenerOptions {}
}
