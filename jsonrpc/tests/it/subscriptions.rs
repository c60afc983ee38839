//! Subscriptions, and their ends.

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
    core::{
        client::{ClientT, Error, Subscription, SubscriptionClientT},
        to_json_raw_value,
    },
    rpc_params,
};
use pipe_server::Reason;
use pipe_server_jsonrpc::RpcServer;
use support::{Kind, on_every_engine, server::Server};

use super::{bind, connect, raw, start, until};

on_every_engine! {
    notifications_arrive_in_order,
    a_dropped_subscription_ends_on_the_server,
    a_dropped_client_ends_its_subscriptions,
    a_client_that_ends_the_conversation_ends_its_subscriptions,
    a_shutdown_ends_subscriptions,
    further_subscriptions_are_refused,
    a_client_that_does_not_read_is_bounded_and_then_cut_off,
    many_subscriptions_that_are_not_read_are_bounded_and_then_cut_off,
}

/// The subscriptions that run, and the messages that were sent on them.
#[derive(Default)]
struct Figures {
    running: AtomicUsize,
    /// The most that have run at once.
    most: AtomicUsize,
    sent: AtomicUsize,
}

/// A module whose subscription `count` sends numbers until it is closed.
fn counting() -> (RpcModule<Figures>, Arc<Figures>) {
    let figures = Arc::new(Figures::default());
    let mut module = RpcModule::from_arc(Arc::clone(&figures));
    module
        .register_subscription(
            "count",
            "number",
            "stop",
            |_, pending, figures, _| async move {
                let Ok(sink) = pending.accept().await else {
                    return;
                };
                let running = figures.running.fetch_add(1, Ordering::SeqCst) + 1;
                figures.most.fetch_max(running, Ordering::SeqCst);
                for number in 0_u64.. {
                    let number = to_json_raw_value(&number).unwrap();
                    if sink.send(number).await.is_err() {
                        break;
                    }
                    figures.sent.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                }
                figures.running.fetch_sub(1, Ordering::SeqCst);
            },
        )
        .unwrap();
    module.register_method("ping", |_, _, _| "pong").unwrap();
    (module, figures)
}

async fn subscribe(client: &impl SubscriptionClientT) -> Subscription<u64> {
    let subscribed = client.subscribe("count", rpc_params![], "stop").await;
    subscribed.unwrap()
}

async fn ended(figures: &Figures) {
    until(|| figures.running.load(Ordering::SeqCst) == 0).await;
}

async fn notifications_arrive_in_order(kind: Kind) {
    let (module, _) = counting();
    let (_server, pipe) = start(kind, RpcServer::new(module));
    let client = connect(&pipe).await;
    let mut numbers = subscribe(&client).await;
    for expected in 0..100 {
        assert_eq!(numbers.next().await.unwrap().unwrap(), expected);
    }
}

async fn a_dropped_subscription_ends_on_the_server(kind: Kind) {
    let (module, figures) = counting();
    let (_server, pipe) = start(kind, RpcServer::new(module));
    let client = connect(&pipe).await;
    let mut numbers = subscribe(&client).await;
    numbers.next().await.unwrap().unwrap();
    drop(numbers);
    ended(&figures).await;
    let reply: String = client.request("ping", rpc_params![]).await.unwrap();
    assert_eq!(reply, "pong");
}

async fn a_dropped_client_ends_its_subscriptions(kind: Kind) {
    let (module, figures) = counting();
    let (server, pipe) = start(kind, RpcServer::new(module));
    let client = connect(&pipe).await;
    let mut numbers = subscribe(&client).await;
    numbers.next().await.unwrap().unwrap();
    drop((client, numbers));
    ended(&figures).await;
    assert_eq!(server.stop().await.aborted, 0);
}

async fn a_client_that_ends_the_conversation_ends_its_subscriptions(kind: Kind) {
    let (module, figures) = counting();
    let (_server, pipe) = start(kind, RpcServer::new(module));
    let mut client = pipe.connect().await;
    raw(&mut client, r#"{"jsonrpc":"2.0","id":1,"method":"count"}"#).await;
    client.finish().await.unwrap();
    while client.recv().await.unwrap().is_some() {}
    ended(&figures).await;
}

async fn a_shutdown_ends_subscriptions(kind: Kind) {
    let (module, figures) = counting();
    let (server, pipe) = start(kind, RpcServer::new(module));
    let client = connect(&pipe).await;
    let mut numbers = subscribe(&client).await;
    numbers.next().await.unwrap().unwrap();
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (1, 0));
    ended(&figures).await;
    assert!(matches!(
        client.on_disconnect().await,
        Error::RestartNeeded(_)
    ));
}

async fn further_subscriptions_are_refused(kind: Kind) {
    let (module, _) = counting();
    let (_server, pipe) = start(kind, RpcServer::new(module).max_subscriptions(1));
    let client = connect(&pipe).await;
    let _first = subscribe(&client).await;
    let second = client
        .subscribe::<u64, _>("count", rpc_params![], "stop")
        .await;
    let Err(Error::Call(error)) = second else {
        panic!("the second subscription was not refused");
    };
    assert_eq!(error.code(), -32006);
}

async fn a_client_that_does_not_read_is_bounded_and_then_cut_off(kind: Kind) {
    does_not_read(kind, 1, 1).await;
}

/// Beside the queue each subscription holds one notification: as many as `max_subscriptions`.
async fn many_subscriptions_that_are_not_read_are_bounded_and_then_cut_off(kind: Kind) {
    does_not_read(kind, 40, 8).await;
}

/// A client asks for so many subscriptions, of which `max` are allowed, and reads nothing.
async fn does_not_read(kind: Kind, asked: usize, max: u32) {
    const QUEUED: usize = 4;
    let (module, figures) = counting();
    let (listener, pipe) = bind(kind);
    let serving = RpcServer::new(module)
        .max_queued_messages(QUEUED)
        .max_subscriptions(max)
        .serve(listener)
        .write_timeout(Duration::from_millis(20));
    let stats = serving.stats();
    let _server = Server::run(|signal| serving.with_graceful_shutdown(signal).into_future());
    let mut client = pipe.connect().await;
    for id in 0..asked {
        let request = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"count"}}"#);
        // It is cut off, perhaps before it has asked for all.
        if client.send(request).await.is_err() {
            break;
        }
    }
    until(|| stats.snapshot().errors.get(Reason::WriteTimeout) == 1).await;
    ended(&figures).await;
    let most = figures.most.load(Ordering::SeqCst);
    assert!((1..=max as usize).contains(&most), "{most} subscriptions");
    // No more than was sent to the system, and what was queued.
    let sent = figures.sent.load(Ordering::SeqCst);
    let mut received = 0;
    while let Ok(Some(_)) = client.recv().await {
        received += 1;
    }
    assert!(
        sent <= received + QUEUED + 1,
        "{sent} sent, {received} received"
    );
}
