//! A shared client as a tower service.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tower_service::Service;

use super::SharedClient;
use crate::error::SharedCallError;

type Slot = Result<OwnedSemaphorePermit, SharedCallError>;

/// The slot for the next call of a service.
#[derive(Default)]
pub(super) enum Reservation {
    #[default]
    None,
    Waiting(Pin<Box<dyn Future<Output = Slot> + Send + Sync>>),
    Reserved(OwnedSemaphorePermit),
}

/// The future of a call through `tower::Service`. See [`SharedClient::call`].
#[must_use = "futures do nothing unless polled"]
pub struct SharedCall {
    call: Pin<Box<dyn Future<Output = Result<Bytes, SharedCallError>> + Send>>,
}

impl Future for SharedCall {
    type Output = Result<Bytes, SharedCallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.call.as_mut().poll(cx)
    }
}

/// `poll_ready` reserves one of the `max_in_flight` slots for `Service::call`. It is freed if the client is
/// dropped; a clone has to reserve its own. A call without a reservation waits for a slot itself, as does
/// [`SharedClient::call`], which is what `client.call(…)` means without a layer around the client.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use std::time::Duration;
/// use pipe_server::{Bytes, SharedClient};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// let client = SharedClient::connect("mynamedpipe").await?;
/// let service = ServiceBuilder::new()
///     .timeout(Duration::from_secs(1))
///     .map_request(|text: &'static str| Bytes::from(text))
///     .service(client);
/// let reply = service.oneshot("hello").await?;
/// # Ok(()) }
/// ```
impl Service<Bytes> for SharedClient {
    type Response = Bytes;
    type Error = SharedCallError;
    type Future = SharedCall;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SharedCallError>> {
        loop {
            match &mut self.reservation {
                Reservation::None => {
                    let slot = self.handle.pool.reserve();
                    self.reservation = Reservation::Waiting(Box::pin(slot));
                }
                Reservation::Waiting(slot) => match ready!(slot.as_mut().poll(cx)) {
                    Ok(slot) => self.reservation = Reservation::Reserved(slot),
                    Err(error) => {
                        self.reservation = Reservation::None;
                        return Poll::Ready(Err(error));
                    }
                },
                Reservation::Reserved(_) => return Poll::Ready(Ok(())),
            }
        }
    }

    fn call(&mut self, request: Bytes) -> SharedCall {
        let slot = match mem::take(&mut self.reservation) {
            Reservation::Reserved(slot) => Some(slot),
            Reservation::None | Reservation::Waiting(_) => None,
        };
        let repeat = self.repeat_unanswered;
        // Keeps the connections open.
        let handle = Arc::clone(&self.handle);
        let call = async move { handle.pool.call(request, repeat, slot).await };
        SharedCall {
            call: Box::pin(call),
        }
    }
}

impl fmt::Debug for SharedCall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SharedCall").finish_non_exhaustive()
    }
}
