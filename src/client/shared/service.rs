//! A shared client as a tower service.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tower_service::Service;

use super::{SharedClient, call};
use crate::{debug::debug_fields, error::SharedCallError};

type Reserving = dyn Future<Output = Result<OwnedSemaphorePermit, SharedCallError>> + Send + Sync;

/// The slot for the next call of a service.
#[derive(Default)]
pub(super) struct Reservation {
    reserving: Option<Pin<Box<Reserving>>>,
    slot: Option<OwnedSemaphorePermit>,
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

/// `poll_ready` reserves one of the `max_in_flight` slots for `Service::call`. It is freed if the
/// client is dropped; a clone has to reserve its own. A call without a reservation waits for a slot
/// itself, as does [`SharedClient::call`], which is what `client.call(…)` means without a layer
/// around the client.
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
        let pool = &self.handle.pool;
        let Reservation { reserving, slot } = &mut self.reservation;
        if slot.is_none() {
            let waiting = reserving.get_or_insert_with(|| Box::pin(pool.reserve()));
            let reserved = ready!(waiting.as_mut().poll(cx));
            *reserving = None;
            *slot = Some(reserved?);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Bytes) -> SharedCall {
        let slot = mem::take(&mut self.reservation).slot;
        let repeat = self.retry_unanswered;
        // Keeps the connections open.
        let handle = Arc::clone(&self.handle);
        let call = async move { call::call(&handle.pool, request, repeat, slot).await };
        SharedCall {
            call: Box::pin(call),
        }
    }
}

debug_fields! { SharedCall, |_| }
