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
/// finish. Only tasks that wait for something other than a message need this, because
/// [`recv`](crate::Connection::recv) ends at the shutdown by itself. After completion the future
/// may be polled again and is ready at once.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use pipe_server::{Connection, SendError, Shutdown};
///
/// async fn tick(mut connection: Connection, mut shutdown: Shutdown) -> Result<(), SendError> {
///     let mut ticks = tokio::time::interval(Duration::from_secs(1));
///     loop {
///         tokio::select! {
///             _ = ticks.tick() => connection.send("tick").await?,
///             () = &mut shutdown => return connection.send("the server is shutting down").await,
///         }
///     }
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
