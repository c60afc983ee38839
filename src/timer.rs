//! A time limit for operations that are polled.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task::coop::unconstrained,
    time::{Sleep, sleep},
};

/// A time limit for an operation that is polled.
#[derive(Debug)]
pub(crate) struct Timer {
    limit: Option<Duration>,
    /// `Some` while the timer runs. Boxed because most operations complete at once and need no
    /// timer.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Creates a stopped timer. `None` sets no limit.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        Self { limit, sleep: None }
    }

    /// Ready with the limit once it has expired. Starts the timer if it is stopped.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let Some(limit) = self.limit else {
            return Poll::Pending;
        };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(limit)));
        // Unconstrained because the limited operation may have used up the task's coop budget.
        let mut sleep = unconstrained(sleep.as_mut());
        Pin::new(&mut sleep).poll(cx).map(|()| limit)
    }

    /// Stops the timer. The next poll starts it from the beginning.
    pub(crate) fn stop(&mut self) {
        self.sleep = None;
    }
}
