//! One client's connection.

use std::{panic::resume_unwind, sync::Arc};

use jsonrpsee_core::server::{BoundedSubscriptions, ConnectionId, Extensions, MethodSink};
use jsonrpsee_types::{Id, error::reject_too_big_request};
use pipe_server::{
    BoxError, Bytes, Connection, RecvError, RecvHalf, SendError, SendHalf, Shutdown,
};
use serde_json::value::RawValue;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
};
use tower_layer::Layer;
use tracing::{Instrument as _, debug, debug_span, field::Empty};

use super::{
    RpcServer,
    respond::{limit, respond},
    service::{Client, RpcService, Service},
};

/// Serves a client until it or the server ends the conversation.
///
/// Calls run in tasks of their own, as jsonrpsee's do: one that computes does not hold up the
/// others. They are aborted if the connection fails.
pub(super) async fn run<L, S>(
    server: Arc<RpcServer<L>>,
    mut connection: Connection,
    mut shutdown: Shutdown,
) -> Result<(), BoxError>
where
    L: Layer<RpcService, Service = S>,
    S: Service,
{
    // Windows knows the client once a message was received.
    let first = tokio::select! {
        biased;
        () = &mut shutdown => {
            connection.close_recv();
            connection.recv().await
        }
        first = connection.recv() => first,
    };
    let options = &server.options;
    let (queue, queued) = mpsc::channel(options.max_queued_messages);
    let max_message_size = connection.max_message_size();
    let sink = MethodSink::new(queue);
    let extensions = extensions(&connection);
    let service = RpcService::new(Client {
        methods: options.methods.clone(),
        connection_id: connection_id(&connection),
        max_response_size: max_message_size,
        sink: sink.clone(),
        subscriptions: BoundedSubscriptions::new(options.max_subscriptions),
        id_provider: Arc::clone(&options.id_provider),
    });
    let caller = Arc::new(Caller {
        service: server.middleware.service(service),
        extensions,
        sink,
        max_message_size,
        max_batch: options.max_batch,
    });

    let (receiver, sender) = connection.into_split();
    let (close, closing) = oneshot::channel();
    let receiving = async {
        let requests = Requests {
            receiver,
            shutdown,
            is_closed: false,
        };
        let received = receive(requests, first, &caller, options.concurrency).await;
        _ = close.send(());
        Ok(received)
    };
    let (received, ()) = tokio::try_join!(receiving, send(sender, queued, closing))?;
    Ok(received?)
}

fn connection_id(connection: &Connection) -> ConnectionId {
    ConnectionId(connection.id() as usize)
}

/// The extensions of the requests of a connection.
fn extensions(connection: &Connection) -> Extensions {
    let mut extensions = Extensions::new();
    extensions.insert(connection_id(connection));
    match connection.peer() {
        Ok(peer) => _ = extensions.insert(peer),
        Err(error) => debug!(%error, "the client can't be identified"),
    }
    extensions
}

/// Receives requests, and runs at most `concurrency` of them at once. Returns once all of them are
/// answered.
async fn receive<S>(
    mut requests: Requests,
    first: Result<Option<Bytes>, RecvError>,
    caller: &Arc<Caller<S>>,
    concurrency: usize,
) -> Result<(), RecvError>
where
    S: Service,
{
    let mut calls = JoinSet::new();
    let mut received = first;
    let ended = loop {
        match received {
            Ok(Some(message)) => {
                let span =
                    debug_span!("request", request.bytes = message.len(), rpc.method = Empty);
                let answering = Arc::clone(caller).answer(message).instrument(span);
                calls.spawn(answering.in_current_span());
            }
            Ok(None) => break Ok(()),
            Err(error) => {
                if let RecvError::TooLong { limit, .. } = error {
                    let error = reject_too_big_request(u32::try_from(limit).unwrap_or(u32::MAX));
                    _ = caller.sink.send_error(Id::Null, error).await;
                }
                break Err(error);
            }
        }
        received = loop {
            tokio::select! {
                biased;
                Some(ended) = calls.join_next() => pass_on_panic(ended),
                received = requests.next(), if calls.len() < concurrency => break received,
            }
        };
    };
    while let Some(ended) = calls.join_next().await {
        pass_on_panic(ended);
    }
    ended
}

/// The server closes the connection of code that panics, and logs it.
fn pass_on_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        resume_unwind(panic);
    }
}

/// The messages of a client, until it ends the conversation or the server shuts down.
struct Requests {
    receiver: RecvHalf,
    shutdown: Shutdown,
    is_closed: bool,
}

impl Requests {
    /// Receives the next message. Cancel safe.
    async fn next(&mut self) -> Result<Option<Bytes>, RecvError> {
        if !self.is_closed {
            tokio::select! {
                biased;
                () = &mut self.shutdown => {}
                received = self.receiver.recv() => return received,
            }
            // The client can't send more. What was sent before is still received.
            self.receiver.close();
            self.is_closed = true;
        }
        self.receiver.recv().await
    }
}

/// Answers the messages of a client.
struct Caller<S> {
    service: S,
    extensions: Extensions,
    sink: MethodSink,
    max_message_size: usize,
    max_batch: usize,
}

impl<S: Service> Caller<S> {
    async fn answer(self: Arc<Self>, message: Bytes) {
        let response = respond(&message, &self.service, &self.extensions, self.max_batch).await;
        // A notification has no response, and a subscription has sent its own.
        if !(response.is_method_call() || response.is_batch()) {
            return;
        }
        let response = limit(response, &message, self.max_message_size);
        let is_success = response.is_success();
        let (json, notify_sent, _) = response.into_parts();
        if self.sink.send(json).await.is_ok()
            && let Some(notify_sent) = notify_sent
        {
            notify_sent.notify(is_success);
        }
    }
}

/// Sends what is queued until `closing` completes, then the rest, and ends the conversation.
async fn send(
    mut sender: SendHalf,
    mut queued: mpsc::Receiver<Box<RawValue>>,
    mut closing: oneshot::Receiver<()>,
) -> Result<(), SendError> {
    loop {
        let message = tokio::select! {
            biased;
            // First: a subscription may always have another message queued.
            _ = &mut closing, if !queued.is_closed() => {
                // Ends the subscriptions.
                queued.close();
                continue;
            }
            message = queued.recv() => message,
        };
        let Some(message) = message else { break };
        sender.send(String::from(Box::<str>::from(message))).await?;
    }
    // Tells the client that requests without a reply were not executed.
    sender.finish().await
}
