//! Runs the user's code: within its time limit, in its span, timed, and with its panics caught.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{Span, debug_span, field::Empty};

use super::failure::Failure;
pub(super) use crate::timer::{Timer, with_timeout};
use crate::{
    handler::{Handler, Reply, Request},
    telemetry::Stats,
};

/// Answers `request` with `handler`.
pub(super) async fn answer<H: Handler<T>, T>(
    handler: &H,
    request: Request,
    limit: Option<Duration>,
    stats: &Stats,
) -> Result<Reply, Failure> {
    let timer = RequestTimer::start(request.bytes().len(), stats);
    // `call` runs inside the future so that its panics are caught as well.
    let mut handled = pin!(async move { handler.call(request).await });
    let mut caught = poll_fn(|cx| timer.span.in_scope(|| poll_caught(handled.as_mut(), cx)));
    let reply = with_timeout(limit, &mut caught)
        .await
        .map_err(Failure::HandlerTimeout)?
        .map_err(Failure::Panic)?
        .map_err(Failure::handler)?;
    if !timer.span.is_disabled() {
        let bytes = reply.message().map(|message| message.len());
        timer.span.record("reply.bytes", bytes);
    }
    Ok(reply)
}

/// The span of one request, and the time that the handler takes for it. The time is recorded on
/// drop, so that it includes requests that failed or were cancelled.
struct RequestTimer<'a> {
    span: Span,
    start: Instant,
    stats: &'a Stats,
}

impl<'a> RequestTimer<'a> {
    fn start(bytes: usize, stats: &'a Stats) -> Self {
        let span = debug_span!(
            "request",
            request.bytes = bytes,
            request.latency_us = Empty,
            reply.bytes = Empty,
        );
        let start = Instant::now();
        Self { span, start, stats }
    }
}

impl Drop for RequestTimer<'_> {
    fn drop(&mut self) {
        let time = self.start.elapsed();
        self.stats.count_handled(time);
        if !self.span.is_disabled() {
            let latency = time.as_micros() as u64;
            self.span.record("request.latency_us", latency);
        }
    }
}

/// Calls `function`. Returns the message of a panic as an error.
pub(super) fn call_caught<T>(function: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(function)).map_err(|panic| text(&*panic))
}

/// Polls `future`. Returns the message of a panic as an error. State that a panic leaves
/// inconsistent is dropped with the connection and never observed.
pub(super) fn poll_caught<F: Future>(
    future: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Poll<Result<F::Output, String>> {
    match call_caught(|| future.poll(cx)) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    }
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no text)").to_owned()
}
