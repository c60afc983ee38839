//! A time limit for operations that are polled.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    task::coop::unconstrained,
    time::{Sleep, sleep},
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

    /// Ready with the limit once it has expired. Starts the timer if it is stopped.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let Some(limit) = self.limit else {
            return Poll::Pending;
        };
        let last_look = LAST_LOOK.min(limit / 2);
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
    poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => timer.poll_expired(cx).map(Err),
    })
    .await
}
