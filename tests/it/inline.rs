//! Servers with inline completions: what the contract, which runs on them too, does not cover.

use std::{
    future::IntoFuture as _,
    sync::{Arc, Mutex, mpsc},
    thread::{self, ThreadId},
    time::Duration,
};

use pipe_server::{
    Bytes, Client, ClientOptions, Connection, PipeListener, Shutdown, os::windows::ServeExt as _,
    serve, serve_connections,
};
use tokio::{sync::oneshot, task::yield_now, time::timeout};

use support::{DEADLINE, unique_name};

/// How many requests of one client are answered in a row: one that is waited for, and 4 that are
/// available.
const TURN: usize = 5;

fn bind() -> (PipeListener, String) {
    let name = unique_name().text;
    (PipeListener::bind(&name).unwrap(), name)
}

async fn connect(name: &str) -> Client {
    let options = ClientOptions::new().connect_timeout(DEADLINE);
    options.connect(name).await.unwrap()
}

/// Who has run a handler, in order.
#[derive(Clone, Default)]
struct Threads(Arc<Mutex<Vec<ThreadId>>>);

impl Threads {
    fn note(&self) {
        self.0.lock().unwrap().push(thread::current().id());
    }

    fn take(&self) -> Vec<ThreadId> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tokio::test]
async fn a_handler_runs_where_its_request_completes_only_if_asked() {
    for inline in [false, true] {
        let (listener, name) = bind();
        let threads = Threads::default();
        let noted = threads.clone();
        let serving = serve(listener, move |request: Bytes| {
            noted.note();
            async move { request }
        });
        tokio::spawn(serving.inline_completions(inline).into_future());
        let mut client = connect(&name).await;
        // The first request may be there before the connection is first polled, on a worker.
        for _ in 0..10 {
            client.call("hello").await.unwrap();
        }
        let here = thread::current().id();
        let elsewhere = threads.take().iter().filter(|&&id| id != here).count();
        match inline {
            true => assert!(elsewhere >= 5, "{elsewhere} of 10"),
            false => assert_eq!(elsewhere, 0),
        }
    }
}

#[tokio::test]
async fn the_code_of_a_connection_can_run_where_its_messages_complete() {
    let (listener, name) = bind();
    let threads = Threads::default();
    let noted = threads.clone();
    let serving = serve_connections(listener, move |mut connection: Connection, _: Shutdown| {
        let noted = noted.clone();
        async move {
            while let Ok(Some(message)) = connection.recv().await {
                noted.note();
                connection.send(message).await?;
            }
            Ok::<_, pipe_server::SendError>(())
        }
    });
    tokio::spawn(serving.inline_completions(true).into_future());
    let mut client = connect(&name).await;
    for _ in 0..10 {
        client.call("hello").await.unwrap();
    }
    let here = thread::current().id();
    assert!(threads.take().iter().any(|&id| id != here));
}

#[tokio::test]
async fn a_client_that_always_has_the_next_request_ready_does_not_hold_the_thread() {
    const REQUESTS: usize = 200;
    let (listener, name) = bind();
    let threads = Threads::default();
    let noted = threads.clone();
    let (begun, begins) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel::<()>();
    let goes_on = Mutex::new(goes_on);
    let serving = serve(listener, move |request: Bytes| {
        noted.note();
        if request == "first" {
            begun.send(()).unwrap();
            goes_on.lock().unwrap().recv().unwrap();
        }
        async move { request }
    });
    tokio::spawn(serving.inline_completions(true).into_future());
    let mut client = connect(&name).await;
    client.call("hello").await.unwrap();
    client.send("first").await.unwrap();
    // The handler holds its thread until all requests are there.
    begins.recv_timeout(DEADLINE).unwrap();
    for _ in 1..REQUESTS {
        client.send("more").await.unwrap();
    }
    go_on.send(()).unwrap();
    for _ in 0..REQUESTS {
        client.recv().await.unwrap().unwrap();
    }
    let here = thread::current().id();
    let threads = threads.take().split_off(1);
    assert_ne!(threads[0], here);
    let longest = threads.split(|&id| id == here).map(<[ThreadId]>::len).max();
    assert!(longest <= Some(TURN), "{longest:?} in a row");
}

#[tokio::test]
async fn a_panic_in_a_handler_that_is_polled_inline_costs_its_own_connection() {
    let (listener, name) = bind();
    let here = thread::current().id();
    let serving = serve(listener, move |request: Bytes| async move {
        if request == "panic" {
            assert_eq!(thread::current().id(), here, "as asked for");
        }
        request
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serving
        .inline_completions(true)
        .with_graceful_shutdown(async { _ = stopped.await });
    let serving = tokio::spawn(serving.into_future());
    let mut other = connect(&name).await;
    other.call("hello").await.unwrap();
    let mut client = connect(&name).await;
    client.call("hello").await.unwrap();
    client.send("panic").await.unwrap();
    assert!(matches!(client.recv().await, Ok(None)));
    assert_eq!(other.call("still there").await.unwrap(), "still there");
    stop.send(()).unwrap();
    let summary = serving.await.unwrap();
    assert_eq!((summary.served, summary.aborted), (2, 0));
    assert_eq!((summary.stats.requests, summary.stats.replies), (4, 3));
}

#[tokio::test]
async fn a_shutdown_waits_for_a_handler_that_is_polled_inline_even_beyond_its_deadline() {
    let (listener, name) = bind();
    let (begun, begins) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel::<()>();
    let goes_on = Mutex::new(goes_on);
    let here = thread::current().id();
    let serving = serve(listener, move |request: Bytes| {
        if request == "block" {
            assert_ne!(thread::current().id(), here);
            begun.send(()).unwrap();
            goes_on.lock().unwrap().recv().unwrap();
        }
        async move { request }
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serving
        .inline_completions(true)
        .drain_timeout(Duration::ZERO)
        .with_graceful_shutdown(async { _ = stopped.await });
    let mut serving = tokio::spawn(serving.into_future());
    let mut client = connect(&name).await;
    client.call("hello").await.unwrap();
    client.send("block").await.unwrap();
    begins.recv_timeout(DEADLINE).unwrap();
    stop.send(()).unwrap();
    for _ in 0..100 {
        yield_now().await;
    }
    let early = timeout(Duration::from_millis(50), &mut serving).await;
    assert!(early.is_err(), "its handler still runs");
    go_on.send(()).unwrap();
    let summary = timeout(DEADLINE, serving).await.unwrap().unwrap();
    assert_eq!((summary.served, summary.aborted), (0, 1));
    assert!(matches!(client.recv().await, Ok(None | Some(_))));
}
