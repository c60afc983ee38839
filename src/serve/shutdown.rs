//! The notification of a shutdown for the tasks of connections.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::watch;

use crate::debug::debug_fields;

/// A future that completes once the server shuts down or is dropped.
///
/// The connection's task then has the [`drain_timeout`](crate::ServeConnections::drain_timeout) to
/// finish. After completion the future
/// may be polled again and is ready at once.
///
/// # Examples
///
/// ```
/// use pipe_server::{Connection, RecvError, Shutdown};
///
/// async fn receive(mut connection: Connection, mut shutdown: Shutdown) -> Result<(), RecvError> {
///     loop {
///         let message = tokio::select! {
///             message = connection.recv() => message?,
///             () = &mut shutdown => break,
///         };
///         let Some(message) = message else { return Ok(()) };
///         println!("{} bytes", message.len());
///     }
///     // What was sent before the shutdown.
///     connection.close_recv();
///     while let Some(message) = connection.recv().await? {
///         println!("{} bytes", message.len());
///     }
///     Ok(())
/// }
/// ```
#[must_use = "futures do nothing unless they are awaited"]
pub struct Shutdown {
    /// Changes once. The change is never marked as seen here, so `has_changed` keeps returning
    /// true.
    begun: watch::Receiver<()>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Shutdown {
    pub(super) fn new(begun: watch::Receiver<()>) -> Self {
        let waiting = None;
        Self { begun, waiting }
    }

    /// Returns whether the shutdown has begun or the server was dropped.
    #[must_use]
    pub fn is_shutdown(&self) -> bool {
        // An error means that the server was dropped.
        self.begun.has_changed().unwrap_or(true)
    }

    /// Waits like the future itself, without its allocation.
    pub(super) fn wait(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        wait(self.begun.clone())
    }
}

async fn wait(mut begun: watch::Receiver<()>) {
    _ = begun.changed().await;
}

impl Clone for Shutdown {
    fn clone(&self) -> Self {
        Self::new(self.begun.clone())
    }
}

impl Future for Shutdown {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_shutdown() {
            return Poll::Ready(());
        }
        let Self { begun, waiting } = &mut *self;
        let waiting = waiting.get_or_insert_with(|| Box::pin(wait(begun.clone())));
        waiting.as_mut().poll(cx)
    }
}

debug_fields! { Shutdown, |shutdown| is_shutdown = shutdown.is_shutdown() }
