//! Extension traits for what only one system has.

#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(windows)]
pub mod windows;

/// Keeps others from implementing the traits below, so that methods can be added.
#[cfg(any(windows, target_os = "linux"))]
mod sealed {
    pub trait Sealed {}

    impl Sealed for crate::access::Access {}
    impl Sealed for crate::peer::Peer {}
    impl Sealed for crate::client::ClientOptions {}
    impl Sealed for crate::listener::ListenerOptions {}
    impl<H, T, S> Sealed for crate::serve::Serve<H, T, S> {}
    impl<F> Sealed for crate::serve::ServeConnections<F> {}
}
