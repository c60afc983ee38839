//! `--forward`: requests are answered by the subscribers of a NATS subject, on this machine or on
//! others.

use std::sync::Arc;

use async_nats::{Message, StatusCode, Subject};
use pipe_server::{Bytes, Request};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::debug;

use self::{
    link::{NatsLink, Waiting},
    target::Target,
};

pub(crate) use self::target::ForwardUrl;

mod link;
mod target;

/// How much of an error reply is logged, in characters.
const ERROR_KEPT: usize = 1024;

/// The headers of an error reply, by the convention of NATS's services.
const ERROR_HEADER: &str = "Nats-Service-Error";
const ERROR_CODE_HEADER: &str = "Nats-Service-Error-Code";

/// The way to the subscribers.
#[derive(Debug)]
pub(crate) struct Forward {
    link: Arc<NatsLink>,
    subject: Subject,
    /// The longest reply, in bytes.
    limit: usize,
    /// One permit per request in flight, in FIFO order.
    permits: Semaphore,
}

/// Why a request got no reply. It is logged, and the connection is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("nobody answers on the subject {0} of --forward: start a worker that subscribes to it")]
    NoResponders(Subject),
    #[error(
        "the request has {length} bytes and the NATS server takes {limit}: raise its max_payload, or lower \
         --max-message-size"
    )]
    RequestTooLong { length: usize, limit: usize },
    #[error("the reply has {length} bytes, more than {limit}: see --max-message-size")]
    ReplyTooLong { length: usize, limit: usize },
    #[error("the reply is empty, and an empty message can't be sent")]
    Empty,
    #[error("the worker replied with an error ({code}): {text}")]
    Worker { code: String, text: String },
    #[error("the connection to the NATS server was closed")]
    Closed,
}

impl Forward {
    /// Starts to connect, and returns at once: the server may start later than this one.
    ///
    /// Up to `most` requests are in flight at the same time.
    pub(crate) fn start(target: Target, most: usize, limit: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        let link = NatsLink::new(target.server.to_string(), most);
        Self::over(link, target, limit)
    }

    fn over(link: NatsLink, target: Target, limit: usize) -> Self {
        let subject = Subject::from(target.subject.as_str());
        let most = link.most;
        let link = Arc::new(link);
        tokio::spawn(Arc::clone(&link).keep(target));
        Self {
            link,
            subject,
            limit,
            permits: Semaphore::new(most),
        }
    }

    /// Publishes the request, once there is a connection and fewer than `most` requests are in
    /// flight, and returns the first reply.
    ///
    /// If the future is dropped before the request is handed to the connection, it is not
    /// published. It is published only once.
    pub(crate) async fn run(&self, request: Request) -> Result<Bytes, ForwardError> {
        let _permit = self.permit().await;
        let connection = self.link.connection().await;
        let length = request.bytes().len();
        let limit = connection.client.server_info().max_payload;
        if length > limit {
            return Err(ForwardError::RequestTooLong { length, limit });
        }
        let mut waiting = Waiting::new(&self.link);
        let reply_to = format!("{}.{}", connection.inbox, waiting.token);
        let client = &connection.client;
        client
            .publish_with_reply(self.subject.clone(), reply_to, request.into_bytes())
            .await
            .map_err(|_| ForwardError::Closed)?;
        let reply = (&mut waiting.reply).await;
        self.checked(reply.map_err(|_| ForwardError::Closed)?)
    }

    async fn permit(&self) -> SemaphorePermit<'_> {
        if let Ok(permit) = self.permits.try_acquire() {
            return permit;
        }
        debug!("as many requests are in flight as --forward-limit allows; waiting for one to end");
        let permit = self.permits.acquire().await;
        permit.expect("the semaphore is never closed")
    }

    fn checked(&self, reply: Message) -> Result<Bytes, ForwardError> {
        if reply.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(ForwardError::NoResponders(self.subject.clone()));
        }
        let header = |name: &str| {
            let value = reply.headers.as_ref()?.get(name)?;
            Some(value.as_str().chars().take(ERROR_KEPT).collect::<String>())
        };
        let (code, text) = (header(ERROR_CODE_HEADER), header(ERROR_HEADER));
        if code.is_some() || text.is_some() {
            return Err(ForwardError::Worker {
                code: code.unwrap_or_default(),
                text: text.unwrap_or_default(),
            });
        }
        match reply.payload.len() {
            0 => Err(ForwardError::Empty),
            length if length > self.limit => Err(ForwardError::ReplyTooLong {
                length,
                limit: self.limit,
            }),
            _ => Ok(reply.payload),
        }
    }
}
