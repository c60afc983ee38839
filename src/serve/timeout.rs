//! Time limits.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use tokio::{task::unconstrained, time::sleep};

/// The output of `future`, or the limit once it has expired. By reference: a future stores an argument passed
/// by value twice.
pub(super) async fn within<F: Future + Unpin>(
    limit: Option<Duration>,
    future: &mut F,
) -> Result<F::Output, Duration> {
    let Some(time) = limit else {
        return Ok(future.await);
    };
    let mut expired = pin!(None);
    let output = poll_fn(|cx| {
        if let Poll::Ready(output) = Pin::new(&mut *future).poll(cx) {
            return Poll::Ready(Ok(output));
        }
        // Most futures are ready at once and need no timer.
        if expired.is_none() {
            // Unconstrained, because `future` may have used up the task's budget.
            expired.set(Some(unconstrained(sleep(time))));
        }
        match expired.as_mut().as_pin_mut() {
            Some(expired) => expired.poll(cx).map(|()| Err(time)),
            None => Poll::Pending,
        }
    });
    output.await
}
