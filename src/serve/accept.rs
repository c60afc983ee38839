//! The accept loop, with one task per connection and a graceful shutdown.

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tracing::{Instrument, debug};

use super::{
    admission::{Admission, AdmissionProgress},
    failure::Failure,
    options::{ServerOptions, ShutdownSignal},
    shutdown::Shutdown,
    tasks::Tasks,
    unidentified::{UnidentifiedClient, UnidentifiedClients},
};
use crate::{
    backoff::Backoff,
    connection::Connection,
    debug::debug_fields,
    listener::PipeListener,
    name::PipeName,
    telemetry::{Details, Reason, StatsSnapshot, Telemetry, connection_span},
};

/// The result of a server that has shut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Connections that ended without being aborted or refused.
    pub served: u64,
    /// Connections aborted because they were still open when the drain timeout expired.
    pub aborted: u64,
    /// The final statistics. See [`Stats`](crate::Stats).
    pub stats: StatsSnapshot,
}

/// A running server, from [`Serve`](crate::Serve) or
/// [`ServeConnections`](crate::ServeConnections). Dropping it aborts every connection.
///
/// # Examples
///
/// A function that builds a server, to run it in `main` and in tests:
///
/// ```
/// use pipe_server::{Bytes, Client, PipeListener, ServeFuture, serve};
///
/// fn echo(listener: PipeListener) -> ServeFuture {
///     serve(listener, |request: Bytes| async move { request }).into_future()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let name = format!("serve-future-example-{}", std::process::id());
/// let listener = PipeListener::bind(&name)?;
/// let stats = listener.stats();
/// tokio::spawn(echo(listener));
///
/// Client::connect(&name).await?.call("hello").await?;
/// assert_eq!(stats.snapshot().requests, 1);
/// # Ok(()) }
/// ```
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

debug_fields! { ServeFuture, |_| }

/// A client that is counted among the connections of its user, if it is known and limited.
pub(super) struct AcceptedClient {
    pub(super) connection: Connection,
    pub(super) admission: AdmissionProgress,
    pub(super) shutdown: Shutdown,
}

/// Serves the clients of `listener` with `service`, which has to admit them, until the signal
/// completes or, if an idle limit is set, until no client has been connected for that time.
pub(super) async fn run<Serving: Future<Output = ()> + Send + 'static>(
    listener: PipeListener,
    options: ServerOptions,
    service: impl Fn(AcceptedClient) -> Serving,
) -> Summary {
    let telemetry = listener.telemetry().clone();
    let (begin_shutdown, begun) = watch::channel(());
    let (drain_timeout, mut signal) = (options.drain_timeout, options.signal);
    let mut acceptor = Acceptor {
        service,
        admission: Arc::new(Admission::new(options.admission, &listener)),
        shutdown: Shutdown::new(begun),
        tasks: Tasks::new(options.inline_completions),
        unidentified: UnidentifiedClients::default(),
        idle: IdleTimer::new(options.shutdown_when_idle),
        ended: 0,
        telemetry: telemetry.clone(),
    };
    let serving = async {
        let mut listener = listener;
        let ended = acceptor.accept_until(&mut listener, &mut signal).await;
        listener.instances.close();
        if let AcceptEnd::Idle = ended {
            let last = until(
                deadline_in(drain_timeout),
                acceptor.serve_last(&mut listener),
            );
            tokio::select! {
                () = last => {}
                () = &mut signal => {}
            }
        }
        let deadline = deadline_in(drain_timeout);
        until(deadline, acceptor.accept_rest(&mut listener)).await;
        drop(listener);
        begin_shutdown.send_replace(());
        debug!(
            connections = acceptor.tasks.len(),
            ?drain_timeout,
            "shutting down"
        );
        until(deadline, acceptor.drain()).await;
        acceptor.end().await
    };
    tokio::select! {
        biased;
        summary = serving => summary,
        never = telemetry.log_suppressed() => match never {},
    }
}

fn deadline_in(time: Option<Duration>) -> Option<Instant> {
    time.and_then(|time| Instant::now().checked_add(time))
}

/// Awaits `future` until the deadline, if there is one.
async fn until(deadline: Option<Instant>, future: impl Future<Output = ()>) {
    match deadline {
        Some(deadline) => _ = timeout_at(deadline, future).await,
        None => future.await,
    }
}

/// Accepts connections and spawns a task for each.
struct Acceptor<S> {
    service: S,
    admission: Arc<Admission>,
    shutdown: Shutdown,
    tasks: Tasks,
    unidentified: UnidentifiedClients,
    idle: IdleTimer,
    /// The number of clients that were served or refused.
    ended: u64,
    telemetry: Telemetry,
}

/// The reason for which a server has stopped accepting.
enum AcceptEnd {
    Signal,
    Idle,
}

impl<S, Serving> Acceptor<S>
where
    S: Fn(AcceptedClient) -> Serving,
    Serving: Future<Output = ()> + Send + 'static,
{
    /// Accepts connections until `signal` completes or the server has been idle for long enough.
    async fn accept_until(
        &mut self,
        listener: &mut PipeListener,
        signal: &mut ShutdownSignal,
    ) -> AcceptEnd {
        let mut backoff = Backoff::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut *signal => return AcceptEnd::Signal,
                Some(_) = self.tasks.join_next() => {
                    self.ended += 1;
                    self.idle.restart();
                    continue;
                }
                accepted = listener.accept() => accepted,
                () = self.idle.expired(), if self.tasks.len() == 0 => {
                    match self.idle.is_over(listener.instances.idle_since()) {
                        true => return AcceptEnd::Idle,
                        false => continue,
                    }
                }
            };
            match accepted {
                Ok(connection) => {
                    backoff.reset();
                    if self
                        .admission
                        .is_short_of_places(listener.instances.connected())
                    {
                        self.give_up_one();
                    }
                    self.begin(connection, listener.name());
                }
                Err(error) => {
                    let delay = backoff.next_delay();
                    let details = Details {
                        delay: Some(delay),
                        ..Details::default()
                    };
                    self.telemetry.report(Reason::Accept, &error, details);
                    tokio::select! {
                        () = &mut *signal => return AcceptEnd::Signal,
                        () = sleep(delay) => {}
                        () = self.idle.expired(), if self.tasks.len() == 0 => {
                            if self.idle.is_over(listener.instances.idle_since()) {
                                return AcceptEnd::Idle;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Serves the clients that had connected when an idle server released the name, as any others:
    /// nobody tells them of the shutdown before they have sent their requests. Returns once they
    /// have left.
    async fn serve_last(&mut self, listener: &mut PipeListener) {
        self.accept_rest(listener).await;
        debug!(connections = self.tasks.len(), "idle, shutting down");
        self.drain().await;
    }

    /// Accepts the clients that had connected when the name was released.
    async fn accept_rest(&mut self, listener: &mut PipeListener) {
        while let Some(connection) = listener.accept_rest().await {
            self.begin(connection, listener.name());
        }
    }

    /// Spawns a task for the client, unless its user has too many connections. Such a client is
    /// refused here and not in a task: its instance is free again before the next client is
    /// accepted, so one user's clients do not keep those of others waiting.
    fn begin(&mut self, mut connection: Connection, name: &PipeName) {
        let span = connection_span(name, connection.id());
        connection.receiver.record_peer_in(&span);
        let mut admission = AdmissionProgress::new(&self.admission);
        if let Err(refused) = admission.enter(connection.identity(), false) {
            span.in_scope(|| refused.report(connection.identity(), &self.telemetry, None));
            self.ended += 1;
            return;
        }
        let decision = admission.decide_later();
        let identity = Arc::clone(connection.identity());
        let serving = (self.service)(AcceptedClient {
            connection,
            admission,
            shutdown: self.shutdown.clone(),
        });
        let task = self.tasks.spawn(serving.instrument(span.clone()));
        if let Some(decision) = decision {
            self.unidentified.add(UnidentifiedClient {
                identity,
                decision,
                task,
                span,
            });
        }
    }

    /// Frees the place of a client that has sent nothing by which it could be identified.
    fn give_up_one(&mut self) {
        if let Some(UnidentifiedClient { identity, span, .. }) = self.unidentified.give_up_one() {
            span.in_scope(|| Failure::PlaceNeeded.report(&identity, &self.telemetry, None));
        }
    }

    /// Waits until every task has completed.
    async fn drain(&mut self) {
        while self.tasks.join_next().await.is_some() {
            self.ended += 1;
        }
    }

    /// Aborts the remaining tasks and returns the summary.
    async fn end(mut self) -> Summary {
        let mut summary = Summary::default();
        self.tasks.abort_all();
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(()) => self.ended += 1,
                Err(_) => summary.aborted += 1,
            }
        }
        self.tasks.ended().await;
        self.telemetry.flush_log();
        summary.stats = self.telemetry.stats().snapshot();
        summary.served = self.ended.saturating_sub(summary.stats.refused);
        summary
    }
}

/// Tells when no client has been connected for a time.
struct IdleTimer {
    /// `None` for never.
    limit: Option<Duration>,
    next_check: Option<Instant>,
}

impl IdleTimer {
    /// The least time between two checks while the code of a connection has ended, and has passed
    /// the connection on. Nothing tells the accept loop when that closes.
    const CHECK_INTERVAL: Duration = Duration::from_millis(10);

    fn new(limit: Option<Duration>) -> Self {
        let next_check = deadline_in(limit);
        Self { limit, next_check }
    }

    /// Starts the time again: a client has left.
    fn restart(&mut self) {
        self.next_check = deadline_in(self.limit);
    }

    /// Ready when it may be over. Meaningful while no connection has a task.
    async fn expired(&self) {
        match self.next_check {
            Some(check) => sleep_until(check).await,
            None => pending().await,
        }
    }

    /// Whether it is over, if no client has been connected since `idle_since`; `None` if one is.
    fn is_over(&mut self, idle_since: Option<Instant>) -> bool {
        let Some(limit) = self.limit else {
            return false;
        };
        self.next_check = match idle_since {
            Some(since) => since.checked_add(limit),
            None => deadline_in(Some(limit.max(Self::CHECK_INTERVAL))),
        };
        idle_since.is_some() && self.next_check.is_some_and(|check| check <= Instant::now())
    }
}

// On the model, only the tests in `tests/` run inside a system.
#[cfg(all(test, feature = "test-util", not(all(windows, pipe_model))))]
mod tests;
