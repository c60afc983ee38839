//! The accept loop, with one task per connection and a graceful shutdown.

use std::{
    fmt,
    future::{Future, IntoFuture, pending, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tracing::{Instrument, debug, field::Empty, info_span};

use super::{
    failure::Failure,
    guard::{call_caught, poll_caught},
    into_result::IntoResult,
    shutdown::Shutdown,
    tasks::Tasks,
};
use crate::{
    backoff::Backoff,
    connection::Connection,
    defaults,
    listener::PipeListener,
    name::PipeName,
    telemetry::{Details, Reason, Stats, StatsSnapshot, Telemetry},
};

/// Runs `handler` for every connection of `listener`, each in its own task.
///
/// [`serve`](crate::serve()) is built on this function. Use it for code that needs the whole
/// connection: to push messages, to receive without replying, or to speak another protocol. The
/// connection is closed when `handler` drops it. An error or a panic is logged with the
/// connection's id. A panic closes only its own connection.
///
/// The server runs once the returned value is awaited, as with [`serve`](crate::serve()).
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), pipe_server::BoxError> {
/// use pipe_server::{Client, Connection, PipeListener, SendError, Shutdown, serve_connections};
///
/// let name = format!("serve-connections-example-{}", std::process::id());
/// let listener = PipeListener::bind(&name)?;
/// let greet = |mut connection: Connection, _: Shutdown| async move {
///     connection.send(format!("you are number {}", connection.id())).await
/// };
/// tokio::spawn(serve_connections(listener, greet).into_future());
///
/// let mut client = Client::connect(&name).await?;
/// assert_eq!(client.recv().await?.unwrap(), "you are number 1");
/// # Ok(()) }
/// # use std::future::IntoFuture;
/// ```
pub fn serve_connections<F, Running>(listener: PipeListener, handler: F) -> ServeConnections<F>
where
    F: Fn(Connection, Shutdown) -> Running + Send + Sync + 'static,
    Running: Future<Output: IntoResult> + Send + 'static,
{
    ServeConnections {
        listener,
        handler,
        drain_timeout: Some(defaults::DRAIN_TIMEOUT),
        inline_completions: false,
        signal: Box::pin(pending()),
    }
}

/// The future whose completion begins a graceful shutdown.
pub(super) type ShutdownSignal = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A server that is ready to run, from [`serve_connections`]. Await it.
#[must_use = "a server does nothing unless it is awaited"]
pub struct ServeConnections<F> {
    listener: PipeListener,
    handler: F,
    drain_timeout: Option<Duration>,
    /// Set only by `os::windows`.
    pub(crate) inline_completions: bool,
    signal: ShutdownSignal,
}

/// The result of a server that has shut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Connections that ended without being aborted or refused.
    pub served: u64,
    /// Connections aborted because they were still open when the drain timeout expired.
    pub cut_off: u64,
    /// Connections refused by [`authorize`](crate::Serve::authorize),
    /// [`max_connections_per_user`](crate::Serve::max_connections_per_user) or
    /// [`on_connect`](crate::Serve::on_connect).
    pub refused: u64,
    /// Requests received by [`serve`](crate::serve()); 0 for [`serve_connections`].
    pub requests: u64,
    /// Replies sent by [`serve`](crate::serve()); 0 for [`serve_connections`].
    pub replies: u64,
    /// The final statistics. See [`Stats`].
    pub stats: StatsSnapshot,
}

impl<F> ServeConnections<F> {
    /// Returns a handle to the server's live statistics. The counts of requests and replies, and
    /// the times of handlers, remain 0 because only [`serve`](crate::serve()) records them.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.listener.stats()
    }

    /// Shuts down gracefully when `signal` completes: stops accepting, releases the name, and
    /// notifies the code of each connection through [`Shutdown`]. Connections that are still open
    /// after the drain timeout are aborted.
    ///
    /// The other side can still read messages that were sent before the server shut down.
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.signal = Box::pin(signal);
        self
    }

    /// Sets how long the code of connections may run once a shutdown has begun; `None` for no
    /// limit. Default: [`defaults::DRAIN_TIMEOUT`], 10 s.
    pub fn drain_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.drain_timeout = time.into();
        self
    }
}

impl<F> fmt::Debug for ServeConnections<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ServeConnections")
            .field("listener", &self.listener)
            .field("drain_timeout", &self.drain_timeout)
            .finish_non_exhaustive()
    }
}

impl<F, Running> IntoFuture for ServeConnections<F>
where
    F: Fn(Connection, Shutdown) -> Running + Send + Sync + 'static,
    Running: Future<Output: IntoResult> + Send + 'static,
{
    type Output = Summary;
    type IntoFuture = ServeFuture;

    fn into_future(self) -> ServeFuture {
        ServeFuture::new(self.run())
    }
}

/// A running server, from [`Serve`](crate::Serve) or [`ServeConnections`]. Dropping it aborts every
/// connection.
#[must_use = "futures do nothing unless they are awaited"]
pub struct ServeFuture(Pin<Box<dyn Future<Output = Summary> + Send>>);

impl ServeFuture {
    pub(super) fn new(running: impl Future<Output = Summary> + Send + 'static) -> Self {
        Self(Box::pin(running))
    }
}

impl Future for ServeFuture {
    type Output = Summary;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Summary> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for ServeFuture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ServeFuture")
            .finish_non_exhaustive()
    }
}

impl<F, Running> ServeConnections<F>
where
    F: Fn(Connection, Shutdown) -> Running + Send + Sync + 'static,
    Running: Future<Output: IntoResult> + Send + 'static,
{
    pub(super) async fn run(self) -> Summary {
        let telemetry = self.listener.telemetry().clone();
        let (begin_shutdown, begun) = watch::channel(());
        let mut acceptor = Acceptor {
            handler: Arc::new(self.handler),
            shutdown: Shutdown::new(begun),
            tasks: Tasks::new(self.inline_completions),
            served: 0,
            telemetry: telemetry.clone(),
        };
        let (listener, drain_timeout) = (self.listener, self.drain_timeout);
        let serving = async {
            acceptor.accept_until(listener, self.signal).await;
            begin_shutdown.send_replace(());
            acceptor.drain(drain_timeout).await;
            acceptor.end().await
        };
        tokio::select! {
            biased;
            summary = serving => summary,
            never = telemetry.log_suppressed() => match never {},
        }
    }
}

/// Accepts connections and spawns a task for each.
struct Acceptor<F> {
    handler: Arc<F>,
    shutdown: Shutdown,
    tasks: Tasks,
    /// The number of tasks that have completed.
    served: u64,
    telemetry: Telemetry,
}

impl<F, Running> Acceptor<F>
where
    F: Fn(Connection, Shutdown) -> Running + Send + Sync + 'static,
    Running: Future<Output: IntoResult> + Send + 'static,
{
    /// Accepts connections until `signal` completes, then releases the name. Clients that have
    /// connected by then are still accepted.
    async fn accept_until(&mut self, mut listener: PipeListener, signal: impl Future<Output = ()>) {
        self.accept(&mut listener, signal).await;
        listener.close();
        while let Some(connection) = listener.accept_rest().await {
            self.spawn(connection, listener.local_name());
        }
    }

    async fn accept(&mut self, listener: &mut PipeListener, signal: impl Future<Output = ()>) {
        let mut signal = pin!(signal);
        let mut backoff = Backoff::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut signal => return,
                Some(_) = self.tasks.join_next() => {
                    self.served += 1;
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(connection) => {
                    backoff.reset();
                    self.spawn(connection, listener.local_name());
                }
                Err(error) => {
                    let delay = backoff.next_delay();
                    let details = Details {
                        delay: Some(delay),
                        ..Details::default()
                    };
                    self.telemetry.report(Reason::Accept, &error, details);
                    tokio::select! {
                        () = &mut signal => return,
                        () = sleep(delay) => {}
                    }
                }
            }
        }
    }

    fn spawn(&mut self, mut connection: Connection, name: &PipeName) {
        let span = info_span!(
            "connection",
            pipe.name = %name,
            connection.id = connection.id(),
            peer.pid = Empty,
            peer.user = Empty,
        );
        connection.record_peer_in(&span);
        let running = run_one(
            Arc::clone(&self.handler),
            connection,
            self.shutdown.clone(),
            self.telemetry.clone(),
        );
        self.tasks.spawn(running.instrument(span));
    }

    /// Waits until every task has completed or the drain timeout has expired.
    async fn drain(&mut self, drain_timeout: Option<Duration>) {
        debug!(
            connections = self.tasks.len(),
            ?drain_timeout,
            "shutting down"
        );
        let deadline = drain_timeout.and_then(|time| Instant::now().checked_add(time));
        let drained = async {
            while self.tasks.join_next().await.is_some() {
                self.served += 1;
            }
        };
        match deadline {
            Some(deadline) => _ = timeout_at(deadline, drained).await,
            None => drained.await,
        }
    }

    /// Aborts the remaining tasks and returns the summary.
    async fn end(mut self) -> Summary {
        let mut summary = Summary::default();
        self.tasks.abort_all();
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(()) => self.served += 1,
                Err(_) => summary.cut_off += 1,
            }
        }
        self.tasks.ended().await;
        self.telemetry.flush_log();
        summary.served = self.served;
        summary.stats = self.telemetry.stats().snapshot();
        summary
    }
}

async fn run_one<F, Running>(
    handler: Arc<F>,
    connection: Connection,
    shutdown: Shutdown,
    telemetry: Telemetry,
) where
    F: Fn(Connection, Shutdown) -> Running,
    Running: Future<Output: IntoResult>,
{
    let id = connection.id();
    let report = |failure: Failure| {
        let details = Details {
            connection: Some(id),
            ..Details::default()
        };
        telemetry.report(failure.reason(), &failure, details);
    };
    // Pinned in place: a future moved from a variable would take its space twice.
    let mut running = pin!(match call_caught(|| handler(connection, shutdown)) {
        Ok(running) => running,
        Err(panic) => return report(Failure::CodePanic(panic)),
    });
    match poll_fn(|cx| poll_caught(running.as_mut(), cx)).await {
        Ok(result) => {
            if let Err(error) = result.into_result() {
                report(Failure::Code(error));
            }
        }
        Err(panic) => report(Failure::CodePanic(panic)),
    }
}
