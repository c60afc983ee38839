//! A server's figures.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use self::histogram::{Histogram, Times};
use crate::{
    log_limit::{LogLimit, Pass},
    name::PipeName,
    reason::Reason,
};

mod histogram;

/// A handle to the live figures of a listener and the server that runs on it, from
/// [`PipeListener::stats`](crate::PipeListener::stats), [`Serve::stats`](crate::Serve::stats) or
/// [`ServeConnections::stats`](crate::ServeConnections::stats).
///
/// A clone is cheap and refers to the same figures. The handle stays valid after the server has ended, and
/// keeps neither the pipe nor a connection.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use pipe_server::{Bytes, Client, PipeListener, Reason, serve};
///
/// let name = format!("stats-example-{}", std::process::id());
/// let listener = PipeListener::bind(&name)?;
/// let serving = serve(listener, |request: Bytes| async move { request });
/// let stats = serving.stats();
/// tokio::spawn(serving.into_future());
///
/// Client::connect(&name).await?.call("hello").await?;
/// let now = stats.snapshot();
/// assert_eq!((now.accepted, now.requests, now.bytes_received), (1, 1, 5));
/// assert_eq!(now.errors.get(Reason::Handler), 0);
/// # Ok(()) }
/// # use std::future::IntoFuture;
/// ```
#[derive(Clone)]
pub struct Stats {
    shared: Arc<Shared>,
}

struct Shared {
    log: LogLimit,
    connected: AtomicUsize,
    waiting: AtomicUsize,
    accepted: AtomicU64,
    /// By [`Reason::index`].
    errors: [AtomicU64; Reason::ALL.len()],
    shards: [Shard; SHARDS],
}

/// Few servers have more workers than this. Further threads share shards.
const SHARDS: usize = 8;

/// The counters that each request changes, for the threads that use this shard. If all threads wrote to the
/// same cache lines, a request would cost several percent more.
#[repr(align(128))]
struct Shard {
    requests: AtomicU64,
    bytes_received: AtomicU64,
    replies: AtomicU64,
    bytes_sent: AtomicU64,
    handler_times: Histogram,
}

impl Shard {
    fn new() -> Self {
        Self {
            requests: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            replies: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            handler_times: Histogram::new(),
        }
    }
}

/// The figures of a server at one moment, from [`Stats::snapshot`] or a [`Summary`](crate::Summary).
///
/// They are read one after the other while the server runs, so they need not belong to the same moment
/// exactly: a request may be counted before its bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatsSnapshot {
    /// Connections accepted so far.
    pub accepted: u64,
    /// Connections that were refused: those of the reasons [`Refused`](Reason::Refused),
    /// [`NotAuthorized`](Reason::NotAuthorized), [`TooManyConnections`](Reason::TooManyConnections) and
    /// [`ConnectTimeout`](Reason::ConnectTimeout).
    pub refused: u64,
    /// Connections that are open now.
    pub connected: usize,
    /// Instances that wait for a client now. 0 at `max_instances`, where further clients find the pipe busy.
    /// On Linux 1 at most, since the kernel queues clients.
    pub waiting: usize,
    /// Requests received by [`serve`](crate::serve).
    pub requests: u64,
    /// Replies sent by [`serve`](crate::serve).
    pub replies: u64,
    /// The bytes of the requests.
    pub bytes_received: u64,
    /// The bytes of the replies.
    pub bytes_sent: u64,
    /// Errors by reason.
    pub errors: Errors,
    /// Connections closed by a timeout: those of the four reasons whose words end in `_timeout`.
    pub timeouts: u64,
    /// Panics in handlers and in connections' code.
    pub panics: u64,
    /// The longest time that the handler took for a request. A cancelled handler counts with the time until then;
    /// one that is still running, or was aborted when the server ended, does not count.
    pub handler_time_longest: Duration,
    /// 99 % of the requests were handled within this time. Rounded up by less than one eighth.
    pub handler_time_p99: Duration,
}

/// Error counts by [`Reason`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Errors([u64; Reason::ALL.len()]);

impl Stats {
    pub(crate) fn new(pipe: PipeName) -> Self {
        Self {
            shared: Arc::new(Shared {
                log: LogLimit::new(pipe),
                connected: AtomicUsize::new(0),
                waiting: AtomicUsize::new(0),
                accepted: AtomicU64::new(0),
                errors: [const { AtomicU64::new(0) }; Reason::ALL.len()],
                shards: std::array::from_fn(|_| Shard::new()),
            }),
        }
    }

    /// The figures as they are now.
    #[must_use]
    pub fn snapshot(&self) -> StatsSnapshot {
        let shared = &*self.shared;
        let errors = Errors(std::array::from_fn(|index| {
            shared.errors[index].load(Relaxed)
        }));
        let total = |count: fn(&Shard) -> &AtomicU64| {
            let counts = shared.shards.iter().map(|shard| count(shard).load(Relaxed));
            counts.sum()
        };
        let times = Times::of(shared.shards.iter().map(|shard| &shard.handler_times));
        let sum = |reasons: &[Reason]| reasons.iter().map(|&reason| errors.get(reason)).sum();
        StatsSnapshot {
            accepted: shared.accepted.load(Relaxed),
            refused: sum(&[
                Reason::Refused,
                Reason::NotAuthorized,
                Reason::TooManyConnections,
                Reason::ConnectTimeout,
            ]),
            connected: shared.connected.load(Relaxed),
            waiting: shared.waiting.load(Relaxed),
            requests: total(|shard| &shard.requests),
            replies: total(|shard| &shard.replies),
            bytes_received: total(|shard| &shard.bytes_received),
            bytes_sent: total(|shard| &shard.bytes_sent),
            errors,
            timeouts: sum(&[
                Reason::ConnectTimeout,
                Reason::HandlerTimeout,
                Reason::IdleTimeout,
                Reason::WriteTimeout,
            ]),
            panics: errors.get(Reason::Panic),
            handler_time_longest: times.longest(),
            handler_time_p99: times.percentile(99),
        }
    }

    /// The log limit.
    pub(crate) fn log_limit(&self) -> &LogLimit {
        &self.shared.log
    }

    pub(crate) fn set_instances(&self, connected: usize, waiting: usize) {
        self.shared.connected.store(connected, Relaxed);
        self.shared.waiting.store(waiting, Relaxed);
    }

    pub(crate) fn count_accepted(&self) {
        self.shared.accepted.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_request(&self, bytes: usize) {
        let shard = self.shard();
        shard.requests.fetch_add(1, Relaxed);
        shard.bytes_received.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn count_replies(&self, replies: u64, bytes: u64) {
        let shard = self.shard();
        shard.replies.fetch_add(replies, Relaxed);
        shard.bytes_sent.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn count_handled(&self, time: Duration) {
        self.shard().handler_times.record(time);
    }

    /// The current thread's shard.
    fn shard(&self) -> &Shard {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static INDEX: usize = THREADS.fetch_add(1, Relaxed) % SHARDS;
        }
        // The thread-local may already be destroyed.
        let index = INDEX.try_with(|&index| index).unwrap_or(0);
        &self.shared.shards[index]
    }

    /// Counts an error, and returns whether it may be logged.
    pub(crate) fn count_error(&self, reason: Reason) -> Option<Pass> {
        self.count_silent_error(reason);
        self.shared.log.pass(reason)
    }

    /// Counts an error that is not logged as a warning.
    pub(crate) fn count_silent_error(&self, reason: Reason) {
        self.shared.errors[reason.index()].fetch_add(1, Relaxed);
    }
}

impl fmt::Debug for Stats {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("Stats")
            .field(&self.snapshot())
            .finish()
    }
}

impl Errors {
    /// The count for `reason`.
    #[must_use]
    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason.index()]
    }

    /// The reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        let all = Reason::ALL.into_iter().zip(self.0);
        all.filter(|&(_, count)| count > 0)
    }
}

impl fmt::Debug for Errors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}

/// For example `handler=2 idle_timeout=1`; empty without errors.
impl fmt::Display for Errors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (reason, count)) in self.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(formatter, "{space}{reason}={count}")?;
        }
        Ok(())
    }
}
