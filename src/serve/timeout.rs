//! Time limits.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::timeout;

/// The output of `future`, or the limit once it has expired.
pub(super) async fn within<F: Future>(
    limit: Option<Duration>,
    future: F,
) -> Result<F::Output, Duration> {
    let mut future = pin!(future);
    // Most futures are ready at once and need no timer.
    let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
    match (polled, limit) {
        (Poll::Ready(output), _) => Ok(output),
        (Poll::Pending, None) => Ok(future.await),
        (Poll::Pending, Some(time)) => timeout(time, future).await.map_err(|_| time),
    }
}
