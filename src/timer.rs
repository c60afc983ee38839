//! A time limit for operations that are polled.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    task::coop::unconstrained,
    time::{self, Instant, Sleep, sleep},
};

/// A timer that is later than this was suspended (SIGSTOP, a paused virtual machine): then a
/// runtime may run its timers before it has learned what arrived meanwhile. To wait as long again
/// makes it run the I/O driver first.
const LAST_LOOK: Duration = Duration::from_millis(10);

/// The most times in a row that a limit waits again. A process that is always late, because it gets
/// little processor time or its tasks block, must still keep its limits.
const LAST_LOOKS: u32 = 10;

/// A time limit for an operation that is polled.
#[derive(Debug)]
pub(crate) struct Timer {
    limit: Option<Duration>,
    /// `Some` while the timer runs. Boxed because most operations complete at once and need no
    /// timer.
    sleep: Option<Pin<Box<Sleep>>>,
    last_looks: LastLooks,
}

impl Timer {
    /// Creates a stopped timer. `None` sets no limit.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        Self {
            limit,
            sleep: None,
            last_looks: LastLooks::default(),
        }
    }

    pub(crate) fn limit(&self) -> Option<Duration> {
        self.limit
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
        let sleep = self.sleep.get_or_insert_with(|| {
            self.last_looks = LastLooks::default();
            Box::pin(sleep(limit))
        });
        loop {
            // Unconstrained because the limited operation may have used up the task's coop budget.
            ready!(pin!(unconstrained(sleep.as_mut())).poll(cx));
            match self.last_looks.next(sleep.deadline()) {
                Some(last_look) => sleep.as_mut().reset(last_look),
                None => return Poll::Ready(limit),
            }
        }
    }

    /// Stops the timer. The next poll starts it from the beginning.
    pub(crate) fn stop(&mut self) {
        self.sleep = None;
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
    let deadline = limit.and_then(|limit| Some((limit, Instant::now().checked_add(limit)?)));
    let Some((limit, mut deadline)) = deadline else {
        return Ok(future.await);
    };
    let mut last_looks = LastLooks::default();
    loop {
        match time::timeout_at(deadline, &mut *future).await {
            Ok(output) => return Ok(output),
            Err(_) => deadline = last_looks.next(deadline).ok_or(limit)?,
        }
    }
}

/// Counts how often a limit has waited again.
#[derive(Debug, Default)]
struct LastLooks(u32);

impl LastLooks {
    /// Returns the deadline of one more wait if a timer with this one was late.
    fn next(&mut self, deadline: Instant) -> Option<Instant> {
        let now = Instant::now();
        if now <= deadline + LAST_LOOK || self.0 == LAST_LOOKS {
            return None;
        }
        self.0 += 1;
        Some(now + LAST_LOOK)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Is never ready, and takes longer than `LAST_LOOK` each time.
    async fn busy(polls: &mut u32) {
        poll_fn(|_| {
            *polls += 1;
            assert!(*polls < 100, "the limit is not kept");
            thread::sleep(2 * LAST_LOOK);
            Poll::<()>::Pending
        })
        .await;
    }

    #[tokio::test]
    async fn a_process_that_is_always_late_keeps_its_limits() {
        let limit = Some(Duration::from_millis(1));
        let mut polls = 0;
        let limited = with_timeout(limit, &mut pin!(busy(&mut polls))).await;
        assert_eq!(limited, Err(Duration::from_millis(1)));
        let mut polls = 0;
        let limited = timeout(limit, &mut pin!(busy(&mut polls))).await;
        assert_eq!(limited, Err(Duration::from_millis(1)));
    }
}
