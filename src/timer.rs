//! A time limit for operations that are polled.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    task::coop::unconstrained,
    time::{self, Sleep, sleep},
};

/// The last part of a limit, which is waited for separately. After a suspension (SIGSTOP, a paused
/// virtual machine) a runtime may run its timers before it has learned what arrived meanwhile. To
/// wait once more makes it run the I/O driver first.
const LAST_LOOK: Duration = Duration::from_millis(10);

/// A time limit for an operation that is polled.
#[derive(Debug)]
pub(crate) struct Timer {
    limit: Option<Duration>,
    is_last_look: bool,
    /// `Some` while the timer runs. Boxed because most operations complete at once and need no
    /// timer.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Creates a stopped timer. `None` sets no limit.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        Self {
            limit,
            is_last_look: false,
            sleep: None,
        }
    }

    /// Polls an operation, and stops the timer if that is ready. Ready with the limit as an error
    /// once it has expired.
    pub(crate) fn poll_within<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, Duration>> {
        let mut output = poll(cx);
        if output.is_pending() {
            let limit = ready!(self.poll_expired(cx));
            // Once more, because the task's coop budget may have been used up.
            output = pin!(unconstrained(poll_fn(poll))).poll(cx);
            if output.is_pending() {
                return Poll::Ready(Err(limit));
            }
        }
        self.stop();
        output.map(Ok)
    }

    /// Ready with the limit once it has expired. Starts the timer if it is stopped.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let Some(limit) = self.limit else {
            return Poll::Pending;
        };
        let last_look = last_look(limit);
        if !self.is_last_look {
            ready!(self.poll_sleep(cx, limit - last_look));
            self.is_last_look = true;
            self.sleep = None;
        }
        self.poll_sleep(cx, last_look).map(|()| limit)
    }

    fn poll_sleep(&mut self, cx: &mut Context<'_>, time: Duration) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(time)));
        // Unconstrained because the limited operation may have used up the task's coop budget.
        let mut sleep = unconstrained(sleep.as_mut());
        Pin::new(&mut sleep).poll(cx)
    }

    /// Stops the timer. The next poll starts it from the beginning.
    pub(crate) fn stop(&mut self) {
        self.sleep = None;
        self.is_last_look = false;
    }
}

/// Returns the output of `future`, or `limit` as an error once it has expired. Takes `future` by
/// reference because a future stores an argument passed by value twice.
pub(crate) async fn with_timeout<F: Future + Unpin>(
    limit: Option<Duration>,
    future: &mut F,
) -> Result<F::Output, Duration> {
    let mut timer = Timer::new(limit);
    poll_fn(|cx| timer.poll_within(cx, |cx| Pin::new(&mut *future).poll(cx))).await
}

/// Same as [`with_timeout`], for a future that usually has to wait: it holds its timer, and
/// allocates nothing.
pub(crate) async fn timeout<F: Future + Unpin>(
    limit: Option<Duration>,
    future: &mut F,
) -> Result<F::Output, Duration> {
    let Some(limit) = limit else {
        return Ok(future.await);
    };
    let last_look = last_look(limit);
    match time::timeout(limit - last_look, &mut *future).await {
        Ok(output) => Ok(output),
        Err(_) => time::timeout(last_look, future).await.map_err(|_| limit),
    }
}

fn last_look(limit: Duration) -> Duration {
    LAST_LOOK.min(limit / 2)
}
