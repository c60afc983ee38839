//! `--forward nats://…`: requests are answered by the subscribers of a NATS subject, on this machine
//! or on others.

use std::sync::Arc;

use pipe_server::{Bytes, Request};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::debug;

use self::link::NatsLink;

pub(crate) use self::target::Target;

mod connect;
mod link;
mod protocol;
mod reply;
mod session;
mod target;

/// The way to the subscribers.
#[derive(Debug)]
pub(crate) struct Forward {
    link: Arc<NatsLink>,
    /// One permit per request in flight, in FIFO order.
    permits: Semaphore,
}

/// Why a request got no reply. It is logged, and the connection is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("nobody answers on the subject {0} of --forward: start a worker that subscribes to it")]
    NoResponders(String),
    #[error(
        "the request has {length} bytes and the NATS server takes {limit}: raise its max_payload, or lower \
         --max-message-size"
    )]
    RequestTooLong { length: usize, limit: u64 },
    #[error("the reply has {length} bytes, more than {limit}: see --max-message-size")]
    ReplyTooLong { length: u64, limit: u64 },
    #[error("the reply's headers have {length} bytes, more than {limit}")]
    HeadersTooLong { length: u64, limit: u64 },
    #[error("the reply is empty, and an empty message can't be sent")]
    Empty,
    #[error("the worker replied with an error ({code}): {text}")]
    Worker { code: String, text: String },
    #[error("the NATS server broke its protocol: {0}")]
    Violation(String),
    #[error("the connection to the NATS server was closed")]
    Closed,
}

impl Forward {
    /// Starts to connect, and returns at once: the server may start later than this one.
    ///
    /// Up to `most` requests are in flight at the same time. `limit` is the length of the longest
    /// reply, in bytes.
    pub(crate) fn start(target: Target, most: usize, limit: usize) -> Self {
        let (link, requests) = NatsLink::new(&target, limit);
        let link = Arc::new(link);
        tokio::spawn(Arc::clone(&link).keep(target, requests));
        Self {
            link,
            permits: Semaphore::new(most.min(Semaphore::MAX_PERMITS)),
        }
    }

    /// Publishes the request, once there is a connection and fewer than `most` requests are in
    /// flight, and returns the first reply.
    ///
    /// If the future is dropped before the request is on the connection, it is not published. It is
    /// published only once.
    pub(crate) async fn run(&self, request: Request) -> Result<Bytes, ForwardError> {
        let _permit = self.permit().await;
        self.link.request(request.into_bytes()).await
    }

    async fn permit(&self) -> SemaphorePermit<'_> {
        if let Ok(permit) = self.permits.try_acquire() {
            return permit;
        }
        debug!("as many requests are in flight as --forward-limit allows; waiting for one to end");
        let permit = self.permits.acquire().await;
        permit.expect("the semaphore is never closed")
    }
}
