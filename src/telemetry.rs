//! Statistics and logging of a pipe's server.

use std::{convert::Infallible, error::Error, io, sync::Arc, time::Duration};

use tracing::{
    Level, Span, Value, debug, error,
    field::{self, Empty},
    info_span, warn,
};

use self::log_limit::LogLimit;
use crate::{
    error::Chain,
    name::PipeName,
    peer::{Peer, UserId},
};

pub use self::{
    reason::Reason,
    stats::{ErrorCounts, Stats, StatsSnapshot},
};

mod histogram;
mod log_limit;
#[cfg(feature = "metrics")]
mod metrics;
mod reason;
mod stats;

/// The statistics and the log of one listener and its connections. A clone refers to the same ones.
#[derive(Clone)]
pub(crate) struct Telemetry {
    stats: Stats,
    log_limit: Arc<LogLimit>,
}

/// The name of the span of a connection.
const CONNECTION: &str = "connection";

/// Creates the span of a connection. Its peer is recorded by [`record_peer`] once it is known.
pub(crate) fn connection_span(pipe: &PipeName, id: u64) -> Span {
    info_span!(
        CONNECTION,
        pipe.name = %pipe,
        connection.id = id,
        peer.pid = Empty,
        peer.user = Empty,
    )
}

/// Records the peer in the span of its connection. Called once: a subscriber may print both values.
pub(crate) fn record_peer(span: &Span, peer: &Peer) {
    span.record("peer.pid", peer.process_id());
    span.record("peer.user", user_value(peer.user()));
}

/// The value of a user in the log: a number where users are numbers.
fn user_value(user: &UserId) -> impl Value + '_ {
    match user {
        #[cfg(unix)]
        UserId::Uid(uid) => *uid,
        #[cfg(windows)]
        UserId::Sid(sid) => field::display(sid),
    }
}

/// Returns whether the current span is that of a connection, so that a line need not repeat its
/// fields. It is not if the subscriber does not record it.
fn is_in_connection_span() -> bool {
    let span = Span::current();
    span.metadata()
        .is_some_and(|span| span.name() == CONNECTION && span.target() == module_path!())
}

/// The optional fields of a log line, besides its reason and its error.
#[derive(Default)]
pub(crate) struct Details {
    /// The number of the connection. `None` if the line concerns the whole pipe.
    pub(crate) connection: Option<u64>,
    pub(crate) peer: Option<io::Result<Peer>>,
    pub(crate) requests: Option<u64>,
    pub(crate) replies: Option<u64>,
    /// The delay before the server retries.
    pub(crate) delay: Option<Duration>,
}

impl Telemetry {
    pub(crate) fn new(pipe: PipeName) -> Self {
        Self {
            stats: Stats::new(&pipe),
            log_limit: Arc::new(LogLimit::new(pipe)),
        }
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Counts an error, and logs it unless the log limit of its reason is reached.
    ///
    /// Called outside all locks: a log subscriber and a metrics recorder are user code.
    pub(crate) fn report(&self, reason: Reason, error: &(dyn Error + 'static), details: Details) {
        self.stats.count_error(reason);
        let permit = match reason.level() {
            Level::DEBUG => Some(0),
            _ => self.log_limit.permit(reason),
        };
        if let Some(suppressed) = permit {
            let pipe = details.connection.is_none().then(|| self.log_limit.pipe());
            log(pipe, reason, error, suppressed, details);
        }
    }

    /// Logs the number of suppressed lines of each reason once it has been quiet. Never returns.
    pub(crate) async fn log_suppressed(&self) -> Infallible {
        self.log_limit.run().await
    }

    /// Logs the number of suppressed lines of each reason now.
    pub(crate) fn flush_log(&self) {
        self.log_limit.flush();
    }
}

/// Logs an error of a connection that belongs to no listener. It is not counted or limited.
#[cfg(target_os = "linux")]
pub(crate) fn report_alone(reason: Reason, error: &(dyn Error + 'static)) {
    log(None, reason, error, 0, Details::default());
}

fn log(
    pipe: Option<&PipeName>,
    reason: Reason,
    error: &(dyn Error + 'static),
    suppressed: u64,
    details: Details,
) {
    let Details {
        connection,
        peer,
        requests,
        replies,
        delay,
    } = details;
    let repeats_span = connection.is_some() && is_in_connection_span();
    let connection = connection.filter(|_| !repeats_span);
    let known = peer.as_ref().and_then(|peer| peer.as_ref().ok());
    let known = known.filter(|_| !repeats_span);
    let unknown = peer.as_ref().and_then(|peer| peer.as_ref().err());
    macro_rules! log_at {
        ($level:ident) => {
            $level!(
                pipe.name = pipe.map(field::display),
                connection.id = connection,
                peer.pid = known.map(Peer::process_id),
                peer.user = known.map(|peer| user_value(peer.user())),
                peer.unknown = unknown.map(|error| field::display(Chain(error))),
                reason = reason.as_str(),
                suppressed = (suppressed > 0).then_some(suppressed),
                error = %Chain(error),
                requests,
                replies,
                delay = delay.map(field::debug),
                "{}",
                reason.consequence()
            )
        };
    }
    match reason.level() {
        Level::ERROR => log_at!(error),
        Level::WARN => log_at!(warn),
        _ => log_at!(debug),
    }
}
