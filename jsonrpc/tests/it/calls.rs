//! Methods, errors, notifications and batches.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use jsonrpsee::{
    RpcModule,
    core::{
        RpcResult, async_trait,
        client::{BatchResponse, ClientT, Error},
        params::BatchRequestBuilder,
    },
    proc_macros::rpc,
    rpc_params,
};
use pipe_server::Peer;
use pipe_server_jsonrpc::RpcServer;
use support::{Kind, on_every_engine};
use tokio::sync::Notify;

use super::{connect, failure, raw, start};

on_every_engine! {
    a_generated_client_calls_a_generated_server,
    an_error_reaches_the_client_with_its_code,
    a_batch_is_answered_as_one,
    a_batch_of_notifications_is_not_answered,
    requests_are_answered_as_they_finish,
    only_so_many_requests_are_in_progress,
    the_peer_is_an_extension,
}

#[rpc(server, client, namespace = "test")]
trait Test {
    #[method(name = "add")]
    fn add(&self, one: u64, other: u64) -> RpcResult<u64>;

    #[method(name = "later")]
    async fn later(&self, text: String) -> RpcResult<String>;

    #[method(name = "block", blocking)]
    fn block(&self) -> RpcResult<bool>;
}

struct Tested;

#[async_trait]
impl TestServer for Tested {
    fn add(&self, one: u64, other: u64) -> RpcResult<u64> {
        one.checked_add(other).ok_or_else(|| failure("overflow"))
    }

    async fn later(&self, text: String) -> RpcResult<String> {
        tokio::task::yield_now().await;
        Ok(text)
    }

    fn block(&self) -> RpcResult<bool> {
        Ok(true)
    }
}

async fn a_generated_client_calls_a_generated_server(kind: Kind) {
    let (server, pipe) = start(kind, RpcServer::new(Tested.into_rpc()));
    let client = connect(&pipe).await;
    assert_eq!(client.add(1, 2).await.unwrap(), 3);
    assert_eq!(client.later("ünïcode".to_owned()).await.unwrap(), "ünïcode");
    assert!(client.block().await.unwrap());
    drop(client);
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (1, 0));
}

async fn an_error_reaches_the_client_with_its_code(kind: Kind) {
    let (_server, pipe) = start(kind, RpcServer::new(Tested.into_rpc()));
    let client = connect(&pipe).await;
    let Err(Error::Call(error)) = client.add(u64::MAX, 1).await else {
        panic!("no error of the method");
    };
    assert_eq!((error.code(), error.message()), (1, "overflow"));
    for (method, code) in [("test_none", -32601), ("test_add", -32602)] {
        let called = client.request::<u64, _>(method, rpc_params!["x"]).await;
        let Err(Error::Call(error)) = called else {
            panic!("no error of {method}");
        };
        assert_eq!(error.code(), code);
    }
}

async fn a_batch_is_answered_as_one(kind: Kind) {
    let (_server, pipe) = start(kind, RpcServer::new(Tested.into_rpc()).max_batch(2));
    let client = connect(&pipe).await;
    let mut batch = BatchRequestBuilder::new();
    batch.insert("test_add", rpc_params![1, 2]).unwrap();
    batch.insert("test_add", rpc_params![u64::MAX, 2]).unwrap();
    let responses: BatchResponse<'_, u64> = client.batch_request(batch.clone()).await.unwrap();
    let (successful, failed) = (
        responses.num_successful_calls(),
        responses.num_failed_calls(),
    );
    assert_eq!((successful, failed), (1, 1));

    // With what is no request among them.
    let mut client = pipe.connect().await;
    let one = r#"{"jsonrpc":"2.0","id":1,"method":"test_add","params":[1,2]}"#;
    let reply = raw(&mut client, &format!("[{one},7]")).await;
    assert!(
        reply.starts_with(r#"[{"jsonrpc":"2.0","id":1,"result":3},"#),
        "{reply}"
    );
    assert!(reply.contains("-32600"), "{reply}");
    let reply = raw(&mut client, &format!("[{one},{one},{one}]")).await;
    assert!(reply.contains("-32010"), "{reply}");
    let reply = raw(&mut client, "[]").await;
    assert!(reply.contains("-32600"), "{reply}");
}

async fn a_batch_of_notifications_is_not_answered(kind: Kind) {
    let (_server, pipe) = start(kind, RpcServer::new(Tested.into_rpc()));
    let mut client = pipe.connect().await;
    let notification = r#"{"jsonrpc":"2.0","method":"test_add","params":[1,2]}"#;
    client.send(notification).await.unwrap();
    client.send(format!("[{notification}]")).await.unwrap();
    // So the first reply is that of the request.
    let reply = raw(
        &mut client,
        r#"{"jsonrpc":"2.0","id":"a","method":"test_block"}"#,
    )
    .await;
    assert_eq!(reply, r#"{"jsonrpc":"2.0","id":"a","result":true}"#);
}

async fn requests_are_answered_as_they_finish(kind: Kind) {
    let mut module = RpcModule::new(Notify::new());
    module
        .register_async_method("first", |_, release, _| async move {
            release.notified().await;
            1
        })
        .unwrap();
    module
        .register_method("second", |_, release, _| {
            release.notify_one();
            2
        })
        .unwrap();
    let (_server, pipe) = start(kind, RpcServer::new(module).concurrency(2));
    let mut client = pipe.connect().await;
    for (id, method) in [(1, "first"), (2, "second")] {
        let request = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}"}}"#);
        client.send(request).await.unwrap();
    }
    // The first one ends only because the second one runs.
    for _ in 0..2 {
        client.recv().await.unwrap().unwrap();
    }
}

async fn only_so_many_requests_are_in_progress(kind: Kind) {
    const REQUESTS: usize = 20;
    #[derive(Default)]
    struct Load {
        now: AtomicUsize,
        most: AtomicUsize,
    }
    let load = Arc::new(Load::default());
    let mut module = RpcModule::from_arc(Arc::clone(&load));
    module
        .register_async_method("load", |_, load, _| async move {
            let now = load.now.fetch_add(1, Ordering::SeqCst) + 1;
            load.most.fetch_max(now, Ordering::SeqCst);
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            load.now.fetch_sub(1, Ordering::SeqCst);
        })
        .unwrap();
    let (_server, pipe) = start(kind, RpcServer::new(module).concurrency(3));
    let mut client = pipe.connect().await;
    for id in 0..REQUESTS {
        let request = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"load"}}"#);
        client.send(request).await.unwrap();
    }
    for _ in 0..REQUESTS {
        client.recv().await.unwrap().unwrap();
    }
    let most = load.most.load(Ordering::SeqCst);
    assert!((1..=3).contains(&most), "{most}");
}

async fn the_peer_is_an_extension(kind: Kind) {
    let mut module = RpcModule::new(());
    module
        .register_method("process", |_, (), extensions| {
            extensions.get::<Peer>().map(Peer::process_id)
        })
        .unwrap();
    let (_server, pipe) = start(kind, RpcServer::new(module));
    let client = connect(&pipe).await;
    let process: u32 = client.request("process", rpc_params![]).await.unwrap();
    assert_eq!(process, std::process::id());
}
