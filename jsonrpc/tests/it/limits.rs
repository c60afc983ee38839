//! What a pipe adds: clients that leave are noticed, time limits, and figures.

use std::{
    future::IntoFuture as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jsonrpsee::{
    RpcModule,
    core::client::{ClientT, SubscriptionClientT},
    rpc_params,
};
use pipe_server::{Reason, ServeConnections, Stats};
use pipe_server_jsonrpc::RpcServer;
use support::{Kind, Pipe, on_every_engine, server::Server};
use tokio::{sync::Notify, time::sleep};

use super::{bind, connect, raw, start, until};

on_every_engine! {
    a_client_that_leaves_cancels_its_requests,
    a_client_that_leaves_is_noticed_while_its_other_requests_wait,
    a_client_that_leaves_after_it_ended_the_conversation_cancels_its_requests,
    a_request_that_was_sent_before_the_client_left_is_begun,
    a_client_that_waits_for_a_reply_is_not_idle,
    a_client_with_a_subscription_is_not_idle,
    a_method_that_takes_too_long_is_answered_with_an_error,
    zero_is_taken_as_one,
    a_value_that_is_too_large_is_no_limit,
    requests_and_replies_are_counted,
}

/// An idle timeout that a test waits for several times. Clients send their first request within it.
const IDLE: Duration = Duration::from_millis(500);

/// The requests of `wait`, which wait to be released, and of `count`.
#[derive(Default)]
struct Waiting {
    begun: AtomicUsize,
    ended: AtomicUsize,
    released: Notify,
}

impl Waiting {
    async fn until_begun(&self, requests: usize) {
        until(|| self.begun.load(Ordering::SeqCst) == requests).await;
    }
}

/// A request until it is answered or cancelled.
struct InProgress(Arc<Waiting>);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

fn module() -> (RpcModule<Waiting>, Arc<Waiting>) {
    let waiting = Arc::new(Waiting::default());
    let mut module = RpcModule::from_arc(Arc::clone(&waiting));
    module
        .register_async_method("wait", |_, waiting, _| async move {
            waiting.begun.fetch_add(1, Ordering::SeqCst);
            let _request = InProgress(Arc::clone(&waiting));
            waiting.released.notified().await;
        })
        .unwrap();
    module
        .register_method("count", |_, waiting, _| {
            waiting.begun.fetch_add(1, Ordering::SeqCst)
        })
        .unwrap();
    module
        .register_subscription(
            "watch",
            "event",
            "stop",
            |_, pending, waiting, _| async move {
                let Ok(sink) = pending.accept().await else {
                    return;
                };
                tokio::select! {
                    () = waiting.released.notified() => {}
                    () = sink.closed() => {}
                }
            },
        )
        .unwrap();
    (module, waiting)
}

fn request(id: u64, method: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}"}}"#)
}

/// Serves with an idle timeout.
fn start_idle(kind: Kind, module: RpcModule<Waiting>) -> (Server, Pipe, Stats) {
    start_with(kind, RpcServer::new(module), IDLE)
}

fn start_with(
    kind: Kind,
    rpc: RpcServer,
    idle: impl Into<Option<Duration>>,
) -> (Server, Pipe, Stats) {
    let (listener, pipe) = bind(kind);
    let serving = rpc.serve(listener).idle_timeout(idle);
    let stats = ServeConnections::stats(&serving);
    let server = Server::run(|signal| serving.with_graceful_shutdown(signal).into_future());
    (server, pipe, stats)
}

async fn a_client_that_leaves_cancels_its_requests(kind: Kind) {
    let (module, waiting) = module();
    let (server, pipe) = start(kind, RpcServer::new(module));
    let mut client = pipe.connect().await;
    client.send(request(1, "wait")).await.unwrap();
    client.send(request(2, "wait")).await.unwrap();
    waiting.until_begun(2).await;
    drop(client);
    until(|| waiting.ended.load(Ordering::SeqCst) == 2).await;
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (1, 0));
}

async fn a_client_that_leaves_is_noticed_while_its_other_requests_wait(kind: Kind) {
    let (module, waiting) = module();
    let (_server, pipe) = start(kind, RpcServer::new(module).concurrency(1));
    let mut client = pipe.connect().await;
    for id in 0..3 {
        client.send(request(id, "wait")).await.unwrap();
    }
    waiting.until_begun(1).await;
    drop(client);
    until(|| waiting.ended.load(Ordering::SeqCst) == 1).await;
    assert_eq!(waiting.begun.load(Ordering::SeqCst), 1);
}

async fn a_client_that_leaves_after_it_ended_the_conversation_cancels_its_requests(kind: Kind) {
    let (module, waiting) = module();
    let (_server, pipe) = start(kind, RpcServer::new(module));
    let mut client = pipe.connect().await;
    client.send(request(1, "wait")).await.unwrap();
    client.finish().await.unwrap();
    waiting.until_begun(1).await;
    drop(client);
    until(|| waiting.ended.load(Ordering::SeqCst) == 1).await;
}

async fn a_request_that_was_sent_before_the_client_left_is_begun(kind: Kind) {
    const CLIENTS: usize = 20;
    let (module, waiting) = module();
    let (_server, pipe) = start(kind, RpcServer::new(module));
    for id in 0..CLIENTS {
        let mut client = pipe.connect().await;
        client.send(request(id as u64, "count")).await.unwrap();
    }
    waiting.until_begun(CLIENTS).await;
}

async fn a_client_that_waits_for_a_reply_is_not_idle(kind: Kind) {
    let (module, waiting) = module();
    let (_server, pipe, stats) = start_idle(kind, module);
    let mut client = pipe.connect().await;
    client.send(request(1, "wait")).await.unwrap();
    waiting.until_begun(1).await;
    sleep(2 * IDLE).await;
    client.send(request(2, "count")).await.unwrap();
    let reply = client.recv().await.unwrap().unwrap();
    assert_eq!(reply, r#"{"jsonrpc":"2.0","id":2,"result":1}"#);
    waiting.released.notify_one();
    let reply = client.recv().await.unwrap().unwrap();
    assert_eq!(reply, r#"{"jsonrpc":"2.0","id":1,"result":null}"#);
    // From here on it is.
    while let Ok(Some(_)) = client.recv().await {}
    until(|| stats.snapshot().errors.get(Reason::IdleTimeout) == 1).await;
}

async fn a_client_with_a_subscription_is_not_idle(kind: Kind) {
    let (module, waiting) = module();
    let (_server, pipe, stats) = start_idle(kind, module);
    let client = connect(&pipe).await;
    let events = client
        .subscribe::<(), _>("watch", rpc_params![], "stop")
        .await;
    let _events = events.unwrap();
    sleep(2 * IDLE).await;
    let count: usize = client.request("count", rpc_params![]).await.unwrap();
    assert_eq!(count, 0);
    sleep(2 * IDLE).await;
    assert!(client.is_connected());
    // The subscription ends, and with it what the client waits for.
    waiting.released.notify_one();
    client.on_disconnect().await;
    assert_eq!(stats.snapshot().errors.get(Reason::IdleTimeout), 1);
}

async fn a_method_that_takes_too_long_is_answered_with_an_error(kind: Kind) {
    let (module, waiting) = module();
    let rpc = RpcServer::new(module).method_timeout(Duration::from_millis(5));
    let (_server, pipe) = start(kind, rpc);
    let mut client = pipe.connect().await;
    let reply = raw(&mut client, &request(1, "wait")).await;
    let begin = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"#;
    assert!(reply.starts_with(begin) && reply.contains("5ms"), "{reply}");
    assert_eq!(waiting.ended.load(Ordering::SeqCst), 1);
    // The others are answered, also in a batch.
    let batch = format!("[{},{}]", request(2, "wait"), request(3, "count"));
    let reply = raw(&mut client, &batch).await;
    assert!(
        reply.contains(r#"{"jsonrpc":"2.0","id":3,"result":2}"#),
        "{reply}"
    );
    assert!(reply.contains("-32000"), "{reply}");
}

async fn zero_is_taken_as_one(kind: Kind) {
    let (module, _) = module();
    let rpc = RpcServer::new(module).concurrency(0).max_queued_messages(0);
    let (_server, pipe) = start(kind, rpc);
    let client = connect(&pipe).await;
    let count: usize = client.request("count", rpc_params![]).await.unwrap();
    assert_eq!(count, 0);
}

async fn a_value_that_is_too_large_is_no_limit(kind: Kind) {
    let (module, _) = module();
    let rpc = RpcServer::new(module)
        .concurrency(usize::MAX)
        .max_queued_messages(usize::MAX)
        .max_subscriptions(u32::MAX);
    let (_server, pipe) = start(kind, rpc);
    let client = connect(&pipe).await;
    let count: usize = client.request("count", rpc_params![]).await.unwrap();
    assert_eq!(count, 0);
}

async fn requests_and_replies_are_counted(kind: Kind) {
    let (module, waiting) = module();
    let (_server, pipe, stats) = start_with(kind, RpcServer::new(module), None);
    let mut client = pipe.connect().await;
    let (mut received, mut sent) = (0, 0);
    let batch = format!("[{},{}]", request(2, "count"), request(3, "count"));
    for message in [request(1, "count"), batch, request(4, "watch")] {
        received += message.len() as u64;
        sent += client.call(message).await.unwrap().len() as u64;
    }
    until(|| stats.snapshot().replies == 3).await;
    let now = stats.snapshot();
    assert_eq!((now.requests, now.replies), (3, 3));
    assert_eq!((now.bytes_received, now.bytes_sent), (received, sent));
    assert!(!now.handler_time_longest.is_zero());
    waiting.released.notify_one();
}
