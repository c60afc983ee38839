//! Servers that end when nobody needs them.

use std::{future::IntoFuture, time::Duration};

use pipe_server::{
    Bytes, ClientOptions, ConnectError, ListenerOptions, Summary, serve, serve_connections,
};
use tokio::task::yield_now;

#[cfg(not(pipe_model))]
mod start_server;

use support::{Kind, on_every_engine, tuned};

on_every_engine! {
    a_server_without_clients_ends_after_the_idle_time,
    a_server_of_connections_ends_after_the_idle_time,
    the_idle_time_begins_when_the_last_client_leaves,
    a_connection_that_its_code_passes_on_keeps_the_server,
    a_signal_still_ends_a_server_that_waits_for_its_idle_time,
}

mod expiry {
    use super::*;

    on_every_engine! {
        threads:
        a_client_at_the_moment_of_expiry_is_served_or_finds_nobody,
    }
}

/// A short time for servers whose clients come when it ends.
const MOMENT: Duration = Duration::from_micros(500);

const ROUNDS: usize = if cfg!(pipe_model) { 3 } else { 100 };

async fn a_server_without_clients_ends_after_the_idle_time(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let serving = serve(listener, |request: Bytes| async move { request });
    let summary = tuned(serving).shutdown_when_idle(MOMENT).await;
    assert_eq!(summary.served, 0);
    #[cfg(target_os = "linux")]
    if kind == Kind::Inherited {
        // Whoever holds the socket may serve it next.
        return;
    }
    let error = pipe.try_connect(ClientOptions::new()).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotFound { .. }), "{error}");
}

async fn a_server_of_connections_ends_after_the_idle_time(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let serving = serve_connections(listener, |mut connection, _| async move {
        while let Some(message) = connection.recv().await? {
            connection.send(message).await?;
        }
        Ok::<_, pipe_server::BoxError>(())
    });
    let mut client = pipe.connect().await;
    let serving = tokio::spawn(serving.shutdown_when_idle(MOMENT).into_future());
    assert_eq!(client.call("hello").await.unwrap(), "hello");
    drop(client);
    assert_eq!(serving.await.unwrap().served, 1);
}

async fn the_idle_time_begins_when_the_last_client_leaves(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let serving = serve(listener, |request: Bytes| async move { request });
    let (mut first, mut second) = (pipe.connect().await, pipe.connect().await);
    let serving = tokio::spawn(tuned(serving).shutdown_when_idle(MOMENT).into_future());
    assert_eq!(first.call("first").await.unwrap(), "first");
    drop(first);
    // With a client that does nothing.
    tokio::time::sleep(MOMENT * 100).await;
    assert!(!serving.is_finished());
    assert_eq!(second.call("second").await.unwrap(), "second");
    drop(second);
    let summary = serving.await.unwrap();
    assert_eq!((summary.served, summary.aborted), (2, 0));
}

/// The connection closes after its task has ended. The idle time begins then.
async fn a_connection_that_its_code_passes_on_keeps_the_server(kind: Kind) {
    const IDLE: Duration = Duration::from_millis(500);
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let (pass_on, mut passed_on) = tokio::sync::mpsc::channel(1);
    let serving = serve_connections(listener, move |connection, _| {
        let pass_on = pass_on.clone();
        async move { pass_on.send(connection).await }
    });
    let mut client = pipe.connect().await;
    let serving = tokio::spawn(serving.shutdown_when_idle(IDLE).into_future());
    let mut connection = passed_on.recv().await.unwrap();
    // Within the second of the server's checks.
    tokio::time::sleep(IDLE.mul_f64(1.5)).await;
    connection.send("hello").await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), "hello");
    let closed = tokio::time::Instant::now();
    drop((connection, client));
    assert_eq!(serving.await.unwrap().served, 1);
    let idle = closed.elapsed();
    assert!(idle >= IDLE, "{idle:?}");
}

async fn a_signal_still_ends_a_server_that_waits_for_its_idle_time(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = serve(listener, |request: Bytes| async move { request });
    let serving = tuned(serving)
        .shutdown_when_idle(Duration::from_secs(3600))
        .with_graceful_shutdown(async { _ = stopped.await });
    let serving = tokio::spawn(serving.into_future());
    let mut client = pipe.connect().await;
    assert_eq!(client.call("hello").await.unwrap(), "hello");
    drop(stop);
    assert_eq!(serving.await.unwrap().served, 1);
}

/// Clients connect again and again while a server expires. Each is served, or finds that nobody
/// serves the name: then the server has ended and served all that got in.
async fn a_client_at_the_moment_of_expiry_is_served_or_finds_nobody(kind: Kind) {
    #[cfg(target_os = "linux")]
    if kind == Kind::Inherited {
        // Such clients wait for whoever serves the socket next, which it outlives.
        return;
    }
    let (listener, mut pipe) = kind.bind(ListenerOptions::new());
    let mut listener = Some(listener);
    let mut calls = 0;
    for round in 0..ROUNDS {
        let bound = match listener.take() {
            Some(listener) => listener,
            None => {
                let (again, same) = kind.bind_again(ListenerOptions::new(), pipe);
                pipe = same;
                again
            }
        };
        let serving = serve(bound, |request: Bytes| async move { request });
        let serving = tokio::spawn(tuned(serving).shutdown_when_idle(MOMENT).into_future());
        let answered = call_until_nobody_serves(&pipe, round).await;
        let summary: Summary = serving.await.unwrap();
        assert_eq!((summary.aborted, summary.stats.replies), (0, answered));
        calls += answered;
    }
    println!("{calls} calls");
}

/// Calls from several clients at once, each on a connection of its own, about once in the idle
/// time. Returns the number of replies.
async fn call_until_nobody_serves(pipe: &support::Pipe, round: usize) -> u64 {
    let mut replies = 0;
    for number in 0.. {
        let options = ClientOptions::new().connect_timeout(support::DEADLINE);
        let mut client = match pipe.try_connect(options).await {
            Ok(client) => client,
            Err(ConnectError::NotFound { .. }) => break,
            Err(error) => panic!("{error}"),
        };
        // The server may expire between the two.
        for _ in 0..round % 4 {
            yield_now().await;
        }
        let reply = client.call(format!("{number}")).await;
        assert_eq!(reply.expect("a call is lost"), format!("{number}"));
        replies += 1;
        drop(client);
        // Timers are coarse: from half of the time to 32 times as much.
        let near = MOMENT.mul_f64((6.0 * fastrand::f64() - 1.0).exp2());
        spin_for(near).await;
    }
    replies
}

/// Waits more precisely than a timer.
async fn spin_for(time: Duration) {
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < time {
        if cfg!(pipe_model) {
            tokio::time::sleep(time).await;
        }
        yield_now().await;
    }
}
