//! The statistics of a server.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

#[cfg(feature = "metrics")]
use super::metrics::Metrics;
use super::{
    histogram::{Histogram, Times},
    reason::Reason,
};
use crate::name::PipeName;

/// A handle to the live statistics of a listener and of the server that runs on it, from
/// [`PipeListener::stats`](crate::PipeListener::stats), [`Serve::stats`](crate::Serve::stats) or
/// [`ServeConnections::stats`](crate::ServeConnections::stats).
///
/// A clone is cheap and refers to the same statistics. The handle remains valid after the server
/// has ended, and keeps neither the pipe nor a connection open.
///
/// # Metrics
///
/// With the feature `metrics`, the same statistics go to the recorder of the
/// [`metrics`](https://docs.rs/metrics) facade, for example to an exporter for Prometheus:
///
/// | metric | kind | value |
/// |---|---|---|
/// | `pipe_server_connections_accepted_total` | counter | connections accepted |
/// | `pipe_server_instances_connected` | gauge | instances that serve a client |
/// | `pipe_server_instances_waiting` | gauge | instances that wait for a client |
/// | `pipe_server_requests_total` | counter | requests received |
/// | `pipe_server_replies_total` | counter | replies sent |
/// | `pipe_server_received_bytes_total` | counter | the bytes of the requests |
/// | `pipe_server_sent_bytes_total` | counter | the bytes of the replies |
/// | `pipe_server_errors_total` | counter | errors by `reason`, a word of [`Reason`] |
/// | `pipe_server_handler_duration_seconds` | histogram | the time that the handler took for a request |
///
/// Each metric has the label `pipe`, the name that was bound; two listeners with the same name add
/// up. `pipe_server_errors_total` also has the label `reason`. It selects the errors that a
/// [`StatsSnapshot`] adds up: `reason=~".*_timeout"` for `timeouts`, `reason="panic"` for `panics`,
/// and the reasons listed at [`refused`](StatsSnapshot::refused). No label is controlled by a
/// client, so a pipe has a fixed number of series.
///
/// Install the recorder before the pipe is bound: the listener then registers its metrics, and
/// always uses that recorder. Without a recorder, counting costs one comparison. The recorder is
/// called on the server's threads, so it must not block. Turn off the idle timeout of an exporter:
/// a metric that it removes is not registered again.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
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
    connected: AtomicUsize,
    waiting: AtomicUsize,
    accepted: AtomicU64,
    /// Indexed by [`Reason::index`].
    errors: [AtomicU64; Reason::COUNT],
    shards: [Shard; SHARDS],
    #[cfg(feature = "metrics")]
    metrics: Metrics,
}

/// The number of shards. Few servers have more workers; further threads share shards.
const SHARDS: usize = 8;

/// The counters that each request changes, for the threads that use this shard. If all threads
/// wrote to the same cache lines, a request would cost several percent more.
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

/// The statistics of a server at one moment, from [`Stats::snapshot`] or a
/// [`Summary`](crate::Summary).
///
/// The values are read one after another while the server runs, so they may differ slightly in
/// time: a request may be counted before its bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatsSnapshot {
    /// Connections accepted so far.
    pub accepted: u64,
    /// Connections refused for one of the reasons [`Refused`](Reason::Refused),
    /// [`NotAuthorized`](Reason::NotAuthorized),
    /// [`TooManyConnections`](Reason::TooManyConnections)
    /// and [`ConnectTimeout`](Reason::ConnectTimeout).
    pub refused: u64,
    /// Connections that are open now.
    pub connected: usize,
    /// Instances that wait for a client now. This is 0 at `max_instances`, where further clients
    /// find the pipe busy, and at most 1 on Linux, where the kernel queues clients.
    pub waiting: usize,
    /// Requests received by [`serve`](crate::serve()), or counted by
    /// [`count_request`](Stats::count_request).
    pub requests: u64,
    /// Replies sent by [`serve`](crate::serve()), or counted by
    /// [`count_replies`](Stats::count_replies).
    pub replies: u64,
    /// The bytes of the requests.
    pub bytes_received: u64,
    /// The bytes of the replies.
    pub bytes_sent: u64,
    /// Errors by reason.
    pub errors: ErrorCounts,
    /// Connections closed by a timeout: the sum of the four reasons whose words end in `_timeout`.
    pub timeouts: u64,
    /// Panics of handlers and of the tasks of connections.
    pub panics: u64,
    /// The longest time that the handler took for a request. A cancelled handler counts with the
    /// time until its cancellation. A handler that is still running does not count.
    pub handler_time_longest: Duration,
    /// The 99th percentile of the time that the handler took for a request, rounded up by less
    /// than one eighth.
    pub handler_time_p99: Duration,
}

/// Error counts by [`Reason`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ErrorCounts([u64; Reason::COUNT]);

impl Stats {
    #[cfg_attr(
        not(feature = "metrics"),
        allow(unused_variables, reason = "only metrics have the name of the pipe")
    )]
    pub(super) fn new(pipe: &PipeName) -> Self {
        Self {
            shared: Arc::new(Shared {
                #[cfg(feature = "metrics")]
                metrics: Metrics::new(pipe),
                connected: AtomicUsize::new(0),
                waiting: AtomicUsize::new(0),
                accepted: AtomicU64::new(0),
                errors: [const { AtomicU64::new(0) }; Reason::COUNT],
                shards: std::array::from_fn(|_| Shard::new()),
            }),
        }
    }

    /// Returns the current values.
    #[must_use]
    pub fn snapshot(&self) -> StatsSnapshot {
        let shared = &*self.shared;
        let errors = ErrorCounts(std::array::from_fn(|index| {
            shared.errors[index].load(Relaxed)
        }));
        let total = |count: fn(&Shard) -> &AtomicU64| {
            let counts = shared.shards.iter().map(|shard| count(shard).load(Relaxed));
            counts.sum()
        };
        let times = Times::of(shared.shards.iter().map(|shard| &shard.handler_times));
        let sum = |is_counted: fn(Reason) -> bool| {
            let counted = errors.iter().filter(|&(reason, _)| is_counted(reason));
            counted.map(|(_, count)| count).sum()
        };
        StatsSnapshot {
            accepted: shared.accepted.load(Relaxed),
            refused: sum(Reason::is_refusal),
            connected: shared.connected.load(Relaxed),
            waiting: shared.waiting.load(Relaxed),
            requests: total(|shard| &shard.requests),
            replies: total(|shard| &shard.replies),
            bytes_received: total(|shard| &shard.bytes_received),
            bytes_sent: total(|shard| &shard.bytes_sent),
            errors,
            timeouts: sum(Reason::is_timeout),
            panics: errors.get(Reason::Panic),
            handler_time_longest: times.longest(),
            handler_time_p99: times.percentile(99),
        }
    }

    /// Sets the numbers of instances, and returns their changes for the metrics. Must not be called
    /// concurrently.
    #[must_use]
    pub(crate) fn set_instances(&self, connected: usize, waiting: usize) -> [isize; 2] {
        let set = |count: &AtomicUsize, new: usize| {
            let old = count.load(Relaxed);
            count.store(new, Relaxed);
            new as isize - old as isize
        };
        [
            set(&self.shared.connected, connected),
            set(&self.shared.waiting, waiting),
        ]
    }

    /// Adds changes to the metrics. They may be added later and in any order, so that this can be
    /// called outside the lock that orders them: a recorder is user code.
    pub(crate) fn publish_instances(&self, changes: [isize; 2]) {
        #[cfg(feature = "metrics")]
        {
            let [connected, waiting] = changes;
            self.shared.metrics.connected.increment(connected as f64);
            self.shared.metrics.waiting.increment(waiting as f64);
        }
        #[cfg(not(feature = "metrics"))]
        let _ = changes;
    }

    pub(crate) fn count_accepted(&self) {
        self.shared.accepted.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.shared.metrics.accepted.increment(1);
    }

    /// Counts a request of `bytes` bytes. Use this in the code of
    /// [`serve_connections`](crate::serve_connections()); [`serve`](crate::serve()) counts its own.
    pub fn count_request(&self, bytes: usize) {
        let shard = self.shard();
        shard.requests.fetch_add(1, Relaxed);
        shard.bytes_received.fetch_add(bytes as u64, Relaxed);
        #[cfg(feature = "metrics")]
        {
            self.shared.metrics.requests.increment(1);
            self.shared.metrics.bytes_received.increment(bytes as u64);
        }
    }

    /// Counts `replies` replies that were sent, of `bytes` bytes in total. See
    /// [`count_request`](Self::count_request).
    pub fn count_replies(&self, replies: u64, bytes: u64) {
        let shard = self.shard();
        shard.replies.fetch_add(replies, Relaxed);
        shard.bytes_sent.fetch_add(bytes, Relaxed);
        #[cfg(feature = "metrics")]
        {
            self.shared.metrics.replies.increment(replies);
            self.shared.metrics.bytes_sent.increment(bytes);
        }
    }

    /// Counts the time that handling a request took. See [`count_request`](Self::count_request).
    pub fn count_handled(&self, time: Duration) {
        self.shard().handler_times.record(time);
        #[cfg(feature = "metrics")]
        self.shared.metrics.handler_times.record(time);
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

    pub(super) fn count_error(&self, reason: Reason) {
        self.shared.errors[reason.index()].fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.shared.metrics.errors[reason.index()].increment(1);
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

impl ErrorCounts {
    /// Returns the count for `reason`.
    #[must_use]
    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason.index()]
    }

    /// Iterates over the reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        let all = Reason::ALL.iter().copied().zip(self.0);
        all.filter(|&(_, count)| count > 0)
    }
}

impl fmt::Debug for ErrorCounts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}

/// Writes the counts in the form `handler=2 idle_timeout=1`, or nothing if no errors occurred.
impl fmt::Display for ErrorCounts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (reason, count)) in self.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(formatter, "{space}{reason}={count}")?;
        }
        Ok(())
    }
}
