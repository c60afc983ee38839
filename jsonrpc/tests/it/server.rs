//! What the library adds: shutdown, `authorize`, middleware and spans.

use std::{
    collections::HashSet,
    future::IntoFuture as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use jsonrpsee::{
    RpcModule,
    core::{client::ClientT, middleware::RpcServiceBuilder},
    rpc_params,
};
use pipe_server::Peer;
use pipe_server_jsonrpc::RpcServer;
use support::{Kind, log::Log, on_every_engine, server::Server};
use tokio::sync::Semaphore;
use tracing::Level;

use super::{bind, connect, start, until};

on_every_engine! {
    a_shutdown_answers_what_was_sent_before,
    a_shutdown_without_requests_ends_idle_connections,
    a_client_that_is_not_authorized_reaches_no_method,
    requests_pass_through_middleware,
    a_request_has_a_span_in_that_of_its_connection,
}

/// `echo`, which waits until the semaphore is released.
fn echo() -> (RpcModule<Gate>, Arc<Gate>) {
    let gate = Arc::new(Gate {
        entered: AtomicUsize::new(0),
        open: Semaphore::new(0),
    });
    let mut module = RpcModule::from_arc(Arc::clone(&gate));
    module
        .register_async_method("echo", |params, gate, _| async move {
            gate.entered.fetch_add(1, Ordering::SeqCst);
            _ = gate.open.acquire().await.unwrap();
            params.one::<u64>()
        })
        .unwrap();
    (module, gate)
}

struct Gate {
    entered: AtomicUsize,
    open: Semaphore,
}

async fn a_shutdown_answers_what_was_sent_before(kind: Kind) {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 30;
    let (module, gate) = echo();
    // Most requests are still in the pipe when the shutdown begins.
    let (server, pipe) = start(kind, RpcServer::new(module).concurrency(2));
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = pipe.connect().await;
        for id in 0..REQUESTS {
            let request =
                format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"echo","params":[{id}]}}"#);
            client.send(request).await.unwrap();
        }
        clients.push(client);
    }
    until(|| gate.entered.load(Ordering::SeqCst) == 2 * CLIENTS).await;
    let stopping = tokio::spawn(server.stop());
    gate.open.add_permits(1);
    for mut client in clients {
        let mut replies = HashSet::new();
        while let Some(reply) = client.recv().await.unwrap() {
            assert!(replies.insert(reply), "a second reply");
        }
        assert_eq!(replies.len(), REQUESTS);
    }
    let summary = stopping.await.unwrap();
    assert_eq!((summary.served, summary.aborted), (CLIENTS as u64, 0));
}

async fn a_shutdown_without_requests_ends_idle_connections(kind: Kind) {
    let (server, pipe) = start(kind, RpcServer::new(RpcModule::new(())));
    let mut silent = pipe.connect().await;
    let client = connect(&pipe).await;
    let called = client.request::<(), _>("none", rpc_params![]).await;
    assert!(called.is_err());
    assert_eq!(server.stop().await.aborted, 0);
    assert_eq!(silent.recv().await.unwrap(), None);
    client.on_disconnect().await;
}

async fn a_client_that_is_not_authorized_reaches_no_method(kind: Kind) {
    let (module, gate) = echo();
    let (listener, pipe) = bind(kind);
    let serving = RpcServer::new(module)
        .serve(listener)
        .authorize(|_: Peer| async { false });
    let server = Server::run(|signal| serving.with_graceful_shutdown(signal).into_future());
    let client = connect(&pipe).await;
    let called = client.request::<u64, _>("echo", rpc_params![1]).await;
    assert!(called.is_err());
    assert_eq!(gate.entered.load(Ordering::SeqCst), 0);
    assert_eq!(server.stop().await.stats.refused, 1);
}

async fn requests_pass_through_middleware(kind: Kind) {
    let (module, gate) = echo();
    gate.open.add_permits(1);
    let (listener, pipe) = bind(kind);
    let wrapped = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&wrapped);
    // Called for each connection.
    let middleware = RpcServiceBuilder::new().layer_fn(move |service| {
        count.fetch_add(1, Ordering::SeqCst);
        service
    });
    let serving = RpcServer::new(module)
        .middleware(middleware)
        .serve(listener);
    let _server = Server::run(|signal| serving.with_graceful_shutdown(signal).into_future());
    let client = connect(&pipe).await;
    assert_eq!(
        client
            .request::<u64, _>("echo", rpc_params![5])
            .await
            .unwrap(),
        5
    );
    assert_eq!(wrapped.load(Ordering::SeqCst), 1);
}

async fn a_request_has_a_span_in_that_of_its_connection(kind: Kind) {
    let log = Log::start_at(Level::DEBUG);
    let mut module = RpcModule::new(());
    module
        .register_async_method("logs", |_, _, _| async {
            tracing::info!("from the method");
        })
        .unwrap();
    let (_server, pipe) = start(kind, RpcServer::new(module));
    let client = connect(&pipe).await;
    client
        .request::<(), _>("logs", rpc_params![])
        .await
        .unwrap();
    let line = log.line_with("from the method");
    assert!(line.ends_with(" in connection:request"), "{line}");
    let spans = log.spans("request");
    assert!(spans[0].contains(" rpc.method=\"logs\""), "{spans:?}");
}
