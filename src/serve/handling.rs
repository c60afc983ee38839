//! One request in the handler.

use tokio::time::Instant;
use tracing::{Span, debug_span, field::Empty};

use crate::{into_reply::Reply, stats::Stats};

/// The span and the time of one request in the handler.
pub(super) struct Handling {
    span: Span,
    began: Instant,
}

impl Handling {
    /// Begins with a request of so many bytes.
    pub(super) fn begin(bytes: usize) -> Self {
        let span = debug_span!(
            "request",
            request.bytes = bytes,
            request.latency_us = Empty,
            reply.bytes = Empty,
        );
        let began = Instant::now();
        Self { span, began }
    }

    /// Calls `function` in the span.
    pub(super) fn in_scope<T>(&self, function: impl FnOnce() -> T) -> T {
        self.span.in_scope(function)
    }

    /// Counts and records the time, also of a request that has failed or was cancelled.
    pub(super) fn end(self, stats: &Stats, reply: Option<&Reply>) {
        let time = self.began.elapsed();
        stats.count_handled(time);
        if !self.span.is_disabled() {
            self.span
                .record("request.latency_us", time.as_micros() as u64);
            let message = reply.and_then(Reply::message);
            self.span
                .record("reply.bytes", message.map(|message| message.len()));
        }
    }
}
