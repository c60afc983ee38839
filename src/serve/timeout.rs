//! Time limits.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use tokio::time::timeout;

/// The output of `future`, or the limit once it has expired. By reference: a future stores an argument passed
/// by value twice.
pub(super) async fn within<F: Future + Unpin>(
    limit: Option<Duration>,
    future: &mut F,
) -> Result<F::Output, Duration> {
    let Some(time) = limit else {
        return Ok(future.await);
    };
    // Most futures are ready at once and need no timer.
    let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await;
    match polled {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => timeout(time, future).await.map_err(|_| time),
    }
}
