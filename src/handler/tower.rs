//! Tower services as handlers.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Poll, ready},
};

use tower_service::Service;

use crate::{
    debug::debug_fields,
    error::BoxError,
    handler::{Handler, IntoReply, Reply, Request},
    sync::Mutex,
};

/// Turns a [`tower_service::Service`] over [`Request`] into a [`Handler`].
///
/// Each connection has its own clone of the service, which is called once it is ready. With
/// [`concurrency`](crate::Serve::concurrency), requests wait in FIFO order for the service to be
/// ready, and the futures that it returns run concurrently.
///
/// The service runs in the spans of [`serve`](crate::serve()), so it needs no tracing layer. An
/// error, such as that of a timeout layer, ends the client's conversation. To reply with the error
/// instead, map it outside the layers, as `examples/tower.rs` does.
///
/// # Examples
///
/// ```
/// use std::{io, time::Duration};
/// use pipe_server::{Bytes, Handler, Request, TowerHandler};
/// use tower::{ServiceBuilder, service_fn};
///
/// fn check<T>(_: impl Handler<T>) {}
///
/// let service = ServiceBuilder::new()
///     .timeout(Duration::from_secs(1))
///     .service(service_fn(|request: Request| async move { Ok::<_, io::Error>(request.into_bytes()) }));
/// check(TowerHandler::new(service));
/// ```
///
/// `.buffer()` makes a service that can't be cloned, such as `RateLimit`, one that can. All
/// connections then share it, so this answers 100 requests a second, not 100 for each client:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::{io, time::Duration};
/// use pipe_server::{Handler, Request, TowerHandler};
/// use tower::{ServiceBuilder, service_fn};
///
/// fn check<T>(_: impl Handler<T>) {}
///
/// // In a Tokio runtime: a buffer has a task.
/// let service = ServiceBuilder::new()
///     .buffer(64)
///     .rate_limit(100, Duration::from_secs(1))
///     .service(service_fn(|request: Request| async move { Ok::<_, io::Error>(request.into_bytes()) }));
/// check(TowerHandler::new(service));
/// # }
/// ```
///
/// Without it, the compiler says what is missing:
///
/// ```compile_fail,E0277
/// use std::{io, time::Duration};
/// use pipe_server::{Request, TowerHandler};
/// use tower::{ServiceBuilder, service_fn};
///
/// let service = ServiceBuilder::new()
///     .rate_limit(100, Duration::from_secs(1))
///     .service(service_fn(|request: Request| async move { Ok::<_, io::Error>(request.into_bytes()) }));
/// TowerHandler::new(service); // `RateLimit<..>: Clone` is not satisfied
/// ```
pub struct TowerHandler<S> {
    /// Locked only while it is polled: a service is called through `&mut`, and need not be `Sync`.
    service: Mutex<S>,
    /// Held while a request waits until the service is ready, because a service that is not ready
    /// remembers only one task. `None` if the service belongs to no connection: each request
    /// then gets a clone, so that none waits for another one.
    turn: Option<tokio::sync::Mutex<()>>,
}

impl<S> TowerHandler<S>
where
    S: Service<Request, Response: IntoReply, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    /// Creates a handler that calls `service`.
    // With the bounds of `Handler`, so that the compiler names the one that is missing. Otherwise it
    // would only say that this is not a handler.
    #[must_use]
    pub fn new(service: S) -> Self {
        Self {
            service: Mutex::new(service),
            turn: None,
        }
    }

    fn clone_service(&self) -> Mutex<S> {
        Mutex::new(self.service.lock().clone())
    }
}

impl<S> Handler for TowerHandler<S>
where
    S: Service<Request, Response: IntoReply, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    async fn call(&self, request: Request) -> Result<Reply, BoxError> {
        let clone;
        let (service, turn) = match &self.turn {
            Some(turn) => (&self.service, Some(turn.lock().await)),
            None => {
                clone = self.clone_service();
                (&clone, None)
            }
        };
        let mut request = Some(request);
        // Under one lock, so that nobody else takes the capacity that `poll_ready` reserved.
        let answer = poll_fn(|cx| {
            let mut service = service.lock();
            if let Err(error) = ready!(service.poll_ready(cx)) {
                return Poll::Ready(Err(error));
            }
            match request.take() {
                Some(request) => Poll::Ready(Ok(service.call(request))),
                None => Poll::Pending,
            }
        });
        let answer = answer.await.map_err(Into::into)?;
        drop(turn);
        answer.await.map_err(Into::into)?.into_reply()
    }

    fn for_connection(self: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self {
            service: self.clone_service(),
            turn: Some(tokio::sync::Mutex::default()),
        })
    }
}

debug_fields! { TowerHandler<S>, |_| }
