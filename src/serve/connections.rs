//! The accept loop: one task per connection, and a graceful shutdown.

use std::{
    fmt,
    future::{Future, IntoFuture, Pending, pending, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use tracing::{Instrument, debug, error, field::Empty, info_span, warn};

use super::{
    panics::{call_caught, poll_caught},
    shutdown::Shutdown,
};
#[cfg(windows)]
use crate::inline::InlineTasks;
use crate::{
    connection::Connection,
    defaults,
    error::{BoxError, Chain},
    listener::PipeListener,
    reason::Reason,
    stats::{Stats, StatsSnapshot},
};

/// The backoff after the first failed accept, doubled after each further one.
const FIRST_ACCEPT_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Runs `code` for every connection of `listener`, each in a task of its own.
///
/// [`serve`](crate::serve()) is built on this. It is for code that needs the whole connection: to push messages,
/// to receive without replying, or to speak another protocol. The connection is closed when the code drops
/// it. Errors and panics are logged with the connection's id. A panic closes its own connection only.
///
/// Await the result, as with [`serve`](crate::serve()).
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), pipe_server::BoxError> {
/// use pipe_server::{Client, Connection, PipeListener, SendError, Shutdown, serve_connections};
///
/// let name = format!("serve-connections-example-{}", std::process::id());
/// let listener = PipeListener::bind(&name)?;
/// let serving = serve_connections(listener, |mut connection: Connection, _: Shutdown| async move {
///     connection.send(format!("you are number {}", connection.id())).await
/// });
/// tokio::spawn(serving.into_future());
///
/// let mut client = Client::connect(&name).await?;
/// assert_eq!(client.recv().await?.unwrap(), "you are number 1");
/// # Ok(()) }
/// # use std::future::IntoFuture;
/// ```
pub fn serve_connections<F, Running>(listener: PipeListener, code: F) -> ServeConnections<F>
where
    F: Fn(Connection, Shutdown) -> Running + Send + Sync + 'static,
    Running: Future<Output: ConnectionResult> + Send + 'static,
{
    ServeConnections {
        listener,
        code,
        drain_timeout: Some(defaults::DRAIN_TIMEOUT),
        #[cfg(windows)]
        inline_completions: false,
        signal: pending(),
    }
}

/// What the code of a connection returns: nothing, or a `Result` whose error is logged.
pub trait ConnectionResult {
    /// Converts it into a result.
    ///
    /// # Errors
    ///
    /// The error to be logged.
    fn into_result(self) -> Result<(), BoxError>;
}

impl ConnectionResult for () {
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl<E: Into<BoxError>> ConnectionResult for Result<(), E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

/// A server that is ready to run, from [`serve_connections`]. Await it.
#[must_use = "a server does nothing unless it is awaited"]
pub struct ServeConnections<F, S = Pending<()>> {
    listener: PipeListener,
    code: F,
    drain_timeout: Option<Duration>,
    #[cfg(windows)]
    pub(crate) inline_completions: bool,
    signal: S,
}

/// What a server has done, once it has shut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Connections that were served to their end.
    pub served: u64,
    /// Connections aborted because they were still being served when the drain timeout expired.
    pub cut_off: u64,
    /// Connections that were refused by [`authorize`](crate::Serve::authorize),
    /// [`max_connections_per_user`](crate::Serve::max_connections_per_user) or
    /// [`on_connect`](crate::Serve::on_connect).
    pub refused: u64,
    /// Requests received by [`serve`](crate::serve()); 0 for [`serve_connections`].
    pub requests: u64,
    /// Replies sent by [`serve`](crate::serve()); 0 for [`serve_connections`].
    pub replies: u64,
    /// All figures at the end: see [`Stats`].
    pub stats: StatsSnapshot,
}

impl<F, S> ServeConnections<F, S> {
    /// A handle to the server's live figures. Those of requests, replies and handlers stay 0, because they
    /// are counted only by [`serve`](crate::serve()).
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.listener.stats()
    }

    /// Shuts down when `signal` completes: stops accepting, releases the name, notifies the connections' code
    /// through [`Shutdown`], and aborts the rest after the drain timeout.
    ///
    /// Sent messages can still be read after the server has shut down.
    pub fn with_graceful_shutdown<S2>(self, signal: S2) -> ServeConnections<F, S2>
    where
        S2: Future<Output = ()> + Send + 'static,
    {
        let Self {
            listener,
            code,
            drain_timeout,
            #[cfg(windows)]
            inline_completions,
            ..
        } = self;
        ServeConnections {
            listener,
            code,
            drain_timeout,
            #[cfg(windows)]
            inline_completions,
            signal,
        }
    }

    /// How long the connections' code may run once a shutdown has begun; `None` for no limit.
    /// Default: [`defaults::DRAIN_TIMEOUT`], 10 s.
    pub fn drain_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.drain_timeout = time.into();
        self
    }
}

impl<F, S> fmt::Debug for ServeConnections<F, S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ServeConnections")
            .field("listener", &self.listener)
            .field("drain_timeout", &self.drain_timeout)
            .finish_non_exhaustive()
    }
}

impl<F, Running, S> IntoFuture for ServeConnections<F, S>
where
    F: Fn(Connection, Shutdown) -> Running + Send + Sync + 'static,
    Running: Future<Output: ConnectionResult> + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
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

impl<F, Running, S> ServeConnections<F, S>
where
    F: Fn(Connection, Shutdown) -> Running + Send + Sync + 'static,
    Running: Future<Output: ConnectionResult> + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    pub(super) async fn run(self) -> Summary {
        let Self {
            mut listener,
            code,
            drain_timeout,
            #[cfg(windows)]
            inline_completions,
            signal,
        } = self;
        let code = Arc::new(code);
        let (begin_shutdown, begun) = watch::channel(());
        let shutdown = Shutdown::new(begun);
        let mut tasks = JoinSet::new();
        #[cfg(windows)]
        let inline_tasks = inline_completions.then(InlineTasks::new);
        let mut summary = Summary::default();
        let mut pause = FIRST_ACCEPT_PAUSE;
        let mut signal = pin!(signal);
        let stats = listener.stats();
        let mut logging = pin!(stats.log_limit().run());

        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut signal => break,
                Some(_) = tasks.join_next() => {
                    summary.served += 1;
                    continue;
                }
                accepted = listener.accept() => accepted,
                never = &mut logging => match never {},
            };
            let mut connection = match accepted {
                Ok(connection) => connection,
                Err(error) => {
                    log_accept(&stats, &error, pause);
                    tokio::select! {
                        () = &mut signal => break,
                        () = sleep(pause) => {}
                        never = &mut logging => match never {},
                    }
                    pause = (pause * 2).min(LONGEST_ACCEPT_PAUSE);
                    continue;
                }
            };
            pause = FIRST_ACCEPT_PAUSE;
            let span = info_span!(
                "connection",
                pipe.name = %listener.local_name(),
                connection.id = connection.id(),
                peer.pid = Empty,
                peer.user = Empty,
            );
            connection.record_peer(&span);
            let running = run_one(
                Arc::clone(&code),
                connection,
                shutdown.clone(),
                stats.clone(),
            );
            let running = running.instrument(span);
            #[cfg(windows)]
            if let Some(inline_tasks) = &inline_tasks {
                tasks.spawn(inline_tasks.task(running));
                continue;
            }
            tasks.spawn(running);
        }

        debug!(connections = tasks.len(), ?drain_timeout, "shutting down");
        // No client can connect from here on. A client that was not accepted yet sees its pipe closed.
        drop(listener);
        begin_shutdown.send_replace(());
        let drained = async {
            while tasks.join_next().await.is_some() {
                summary.served += 1;
            }
        };
        let drained = async {
            match drain_timeout.and_then(|time| Instant::now().checked_add(time)) {
                Some(deadline) => _ = timeout_at(deadline, drained).await,
                None => drained.await,
            }
        };
        tokio::select! {
            () = drained => {}
            never = &mut logging => match never {},
        }
        tasks.abort_all();
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(()) => summary.served += 1,
                Err(_) => summary.cut_off += 1,
            }
        }
        #[cfg(windows)]
        if let Some(inline_tasks) = inline_tasks {
            inline_tasks.ended().await;
        }
        stats.log_limit().flush();
        summary.stats = stats.snapshot();
        summary
    }
}

async fn run_one<F, Running>(code: Arc<F>, connection: Connection, shutdown: Shutdown, stats: Stats)
where
    F: Fn(Connection, Shutdown) -> Running,
    Running: Future<Output: ConnectionResult>,
{
    let id = connection.id();
    let panicked = |panic: String| {
        let error = format!("the connection's code panicked: {panic}");
        log_code(&stats, id, Reason::Panic, &error);
    };
    // Created in place: a future in a variable would take its space twice.
    let mut running = pin!(match call_caught(|| code(connection, shutdown)) {
        Ok(running) => running,
        Err(panic) => return panicked(panic),
    });
    match poll_fn(|cx| poll_caught(running.as_mut(), cx)).await {
        Ok(result) => {
            if let Err(error) = result.into_result() {
                let error = Chain(&*error);
                let error = format!("the connection's code failed: {error}");
                log_code(&stats, id, Reason::Code, &error);
            }
        }
        Err(panic) => panicked(panic),
    }
}

fn log_accept(stats: &Stats, error: &io::Error, pause: Duration) {
    let reason = Reason::Accept;
    if let Some(pass) = stats.count_error(reason) {
        warn!(
            pipe.name = %stats.log_limit().pipe(),
            reason = reason.as_str(),
            suppressed = pass.suppressed,
            error = %Chain(error),
            ?pause,
            "accepting a client failed; trying again"
        );
    }
}

fn log_code(stats: &Stats, connection: u64, reason: Reason, error: &str) {
    let Some(pass) = stats.count_error(reason) else {
        return;
    };
    let (reason, suppressed) = (reason.as_str(), pass.suppressed);
    error!(connection.id = connection, reason, suppressed, %error, "closing the connection");
}
