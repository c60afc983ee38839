//! One client's connection.

use std::{sync::Arc, time::Instant};

use jsonrpsee_core::server::{ConnectionId, Extensions, MethodSink};
use pipe_server::{BoxError, Bytes, Connection, SendError, SendHalf, Stats};
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};
use tower_layer::Layer;
use tracing::{Span, debug};

use super::{
    RpcServer,
    receiving::{End, Receiving},
    respond::{limit, respond},
    service::{Client, RpcService, Service, Subscriptions},
};

/// Serves a client until it or the server ends the conversation.
///
/// Calls run in tasks of their own, as jsonrpsee's do: one that computes does not hold up the
/// others. They are aborted if the connection fails.
pub(super) async fn run<L, S>(
    server: Arc<RpcServer<L>>,
    stats: Stats,
    mut connection: Connection,
) -> Result<(), BoxError>
where
    L: Layer<RpcService, Service = S>,
    S: Service,
{
    // Windows knows the client only once a message has been received.
    let first = connection.recv().await;
    let options = &server.options;
    let (queue, queued) = mpsc::channel(options.max_queued_messages);
    let max_message_size = connection.max_message_size();
    let sink = MethodSink::new(queue);
    let extensions = extensions(&connection);
    let subscriptions = Subscriptions::new(options.max_subscriptions);
    let service = RpcService::new(Client {
        methods: options.methods.clone(),
        connection_id: connection_id(&connection),
        max_response_size: max_message_size,
        method_timeout: options.method_timeout,
        sink: sink.clone(),
        subscriptions: subscriptions.clone(),
        id_provider: Arc::clone(&options.id_provider),
    });
    let caller = Arc::new(Caller {
        service: server.middleware.service(service),
        extensions,
        sink,
        stats: stats.clone(),
        max_message_size,
        max_batch: options.max_batch,
    });

    let (receiver, sender) = connection.into_split();
    let (close, closing) = oneshot::channel();
    let receiving = Receiving::new(receiver, caller, subscriptions, options.concurrency);
    let receiving = async { Ok(receiving.run(first, close).await) };
    let (ended, mut sender) = tokio::try_join!(receiving, send(sender, queued, closing, stats))?;
    if let End::Conversation = ended? {
        // Tells the client that requests without a reply were not executed.
        sender.finish().await?;
    }
    Ok(())
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

/// Answers the messages of a client.
pub(super) struct Caller<S> {
    service: S,
    extensions: Extensions,
    pub(super) sink: MethodSink,
    pub(super) stats: Stats,
    max_message_size: usize,
    max_batch: usize,
}

impl<S: Service> Caller<S> {
    /// Answers one message, unless the client leaves before.
    pub(super) async fn answer(self: Arc<Self>, message: Bytes) {
        let begun = Instant::now();
        let response = tokio::select! {
            // Polled first, so that a request is started even if its client has left by now.
            biased;
            response = respond(&message, &self.service, &self.extensions, self.max_batch) => {
                Some(response)
            }
            () = self.sink.closed() => None,
        };
        let time = begun.elapsed();
        self.stats.count_handled(time);
        let span = Span::current();
        span.record("request.latency_us", time.as_micros() as u64);
        // A notification has no response, and a subscription has sent its own.
        let Some(response) =
            response.filter(|response| response.is_method_call() || response.is_batch())
        else {
            return;
        };
        let response = limit(response, &message, self.max_message_size);
        let is_success = response.is_success();
        let (json, notify_sent, _) = response.into_parts();
        span.record("reply.bytes", json.get().len());
        if self.sink.send(json).await.is_err() {
            return;
        }
        if let Some(notify_sent) = notify_sent {
            notify_sent.notify(is_success);
        }
    }
}

/// Sends what is queued until `closing` completes, and then the rest, unless the client has left.
/// Returns `sender` to end the conversation.
async fn send(
    mut sender: SendHalf,
    mut queued: mpsc::Receiver<Box<RawValue>>,
    mut closing: oneshot::Receiver<End>,
    stats: Stats,
) -> Result<SendHalf, SendError> {
    loop {
        let message = tokio::select! {
            biased;
            // First: a subscription may always have another message queued.
            end = &mut closing, if !queued.is_closed() => {
                // Ends the subscriptions.
                queued.close();
                match end {
                    Ok(End::ClientLeft) => break,
                    _ => continue,
                }
            }
            message = queued.recv() => message,
        };
        let Some(message) = message else { break };
        let message = String::from(Box::<str>::from(message));
        let bytes = message.len() as u64;
        sender.send(message).await?;
        stats.count_replies(1, bytes);
    }
    Ok(sender)
}
