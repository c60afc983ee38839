//! A handler whose requests and replies are recorded.

use std::{collections::BTreeMap, sync::Arc};

use pipe_server::{BoxError, Bytes, Handler, Reply, Request};
use pipe_server_cli::{mutex::Mutex, recording::Sender};

use super::{ConnectionDump, Dump};

/// Wraps a handler. There is one for each connection.
#[derive(Debug)]
pub(crate) struct Dumped<H> {
    handler: Arc<H>,
    dump: Dump,
    conversation: Mutex<Conversation>,
}

/// Replies are sent in the order of their requests, whichever is ready first, and recorded in the
/// same order.
#[derive(Debug)]
struct Conversation {
    dump: ConnectionDump,
    /// The number of requests taken.
    requests: u64,
    /// The number of replies given.
    replies: u64,
    /// The replies that wait for an earlier one, by the number of their request; `None` for a
    /// request that has no reply.
    waiting: BTreeMap<u64, Option<Bytes>>,
}

impl<H> Dumped<H> {
    pub(crate) fn new(handler: H, dump: Dump) -> Self {
        Self::around(Arc::new(handler), dump)
    }

    fn around(handler: Arc<H>, dump: Dump) -> Self {
        let conversation = Conversation {
            dump: dump.connection(),
            requests: 0,
            replies: 0,
            waiting: BTreeMap::new(),
        };
        Self {
            handler,
            dump,
            conversation: Mutex::new(conversation),
        }
    }
}

impl Conversation {
    /// Records a request, and returns its number.
    fn take(&mut self, connection: u64, request: &[u8]) -> u64 {
        self.dump.record(connection, Sender::Client, request);
        self.requests += 1;
        self.requests
    }

    /// Records the reply to a request, once the earlier ones are.
    fn give(&mut self, connection: u64, request: u64, reply: Option<Bytes>) {
        self.waiting.insert(request, reply);
        while let Some(reply) = self.waiting.remove(&(self.replies + 1)) {
            self.replies += 1;
            if let Some(reply) = reply {
                self.dump.record(connection, Sender::Server, &reply);
            }
        }
    }
}

impl<H: Handler> Handler for Dumped<H> {
    async fn call(&self, request: Request) -> Result<Reply, BoxError> {
        let connection = request.connection_id();
        let number = self.conversation.lock().take(connection, request.bytes());
        let reply = self.handler.call(request).await?;
        self.conversation
            .lock()
            .give(connection, number, reply.message().cloned());
        Ok(reply)
    }

    fn for_connection(self: &Arc<Self>) -> Arc<Self> {
        let dump = self.dump.clone();
        Arc::new(Self::around(self.handler.for_connection(), dump))
    }

    async fn ended(&self) -> BoxError {
        self.handler.ended().await
    }
}
