//! What an operator sees of a server.

use std::{error::Error, fmt, future::IntoFuture, io, time::Duration};

use pipe_server::{Bytes, ClientOptions, Faults, ListenerOptions, MemoryPipe, serve};
use tokio::{sync::oneshot, time::advance};
use tracing::Level;

use support::{Kind, log::Log, on_every_engine};

/// The number in the field `suppressed` of a line, 0 without one.
fn suppressed(line: &str) -> u64 {
    let field = line.split("suppressed=").nth(1);
    field.map_or(0, |rest| {
        let number = rest.split(' ').next().unwrap();
        number.parse().unwrap()
    })
}

async fn send_too_long(pipe: &MemoryPipe, times: u64) {
    for _ in 0..times {
        let mut client = ClientOptions::new().connect_memory(pipe).await.unwrap();
        client.send("longer than 10 bytes").await.unwrap();
        assert!(client.recv().await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn clients_can_not_fill_the_log() {
    let log = Log::start();
    let (listener, pipe) = ListenerOptions::new()
        .max_message_size(10)
        .bind_memory()
        .unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(listener, |request: Bytes| async move { request })
        .with_graceful_shutdown(async { _ = stopped.await });
    let server = tokio::spawn(serving.into_future());
    let lines = || log.lines_with("the limit of 10 bytes");

    send_too_long(&pipe, 1000).await;
    assert_eq!(lines().len(), 5);
    assert!(lines().iter().all(|line| suppressed(line) == 0));

    // A second later some are logged again. The first one says how many were not.
    advance(Duration::from_secs(1)).await;
    send_too_long(&pipe, 100).await;
    assert_eq!(lines().len(), 10);
    assert_eq!(suppressed(&lines()[5]), 995);

    // Once it is quiet, the rest is accounted for.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let last = log.lines_with("suppressed=95");
    assert_eq!(last.len(), 1, "{last:?}");
    assert!(last[0].starts_with("WARN"), "{last:?}");
    assert!(last[0].contains("request_too_long"), "{last:?}");

    // Also at the end.
    send_too_long(&pipe, 7).await;
    stop.send(()).unwrap();
    server.await.unwrap();
    let last = log.lines_with("suppressed=2");
    assert_eq!(last.len(), 1, "{last:?}");
}

on_every_engine! {
    a_connection_has_a_span_that_says_who_is_served,
    a_warning_says_which_connection_why_and_the_whole_error,
}

async fn a_connection_has_a_span_that_says_who_is_served(kind: Kind) {
    let log = Log::start();
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    tokio::spawn(serve(listener, |request: Bytes| async move { request }).into_future());
    let mut client = pipe.connect().await;
    client.call("hello").await.unwrap();
    client.call("hello").await.unwrap();

    let spans = log.spans("connection");
    let [span] = &spans[..] else {
        panic!("{spans:#?}")
    };
    assert!(span.starts_with("INFO"), "{span}");
    assert!(span.contains(" connection.id=1"), "{span}");
    let process = format!(" peer.pid={}", std::process::id());
    assert_eq!(span.matches(&process).count(), 1, "{span}");
    assert_eq!(span.matches(" peer.user=").count(), 1, "{span}");
    // Each request would cost something.
    assert!(log.spans("request").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_request_has_a_span_with_its_size_and_latency() {
    let log = Log::start_at(Level::DEBUG);
    let (listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
    let handler = |request: Bytes| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        tracing::info!("in the handler");
        request.slice(..2)
    };
    tokio::spawn(serve(listener, handler).into_future());
    let mut client = pipe.connect().await.unwrap();
    client.call("hello").await.unwrap();

    let spans = log.spans("request");
    let [span] = &spans[..] else {
        panic!("{spans:#?}")
    };
    assert!(span.starts_with("DEBUG"), "{span}");
    assert!(span.contains(" request.bytes=5"), "{span}");
    assert!(span.contains(" reply.bytes=2"), "{span}");
    assert!(span.contains(" request.latency_us=20000"), "{span}");
    let line = log.line_with("in the handler");
    assert!(line.ends_with(" in connection:request"), "{line}");
}

/// An error with a source.
#[derive(Debug)]
struct Outer(io::Error);

impl fmt::Display for Outer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the outer error")
    }
}

impl Error for Outer {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

async fn a_warning_says_which_connection_why_and_the_whole_error(kind: Kind) {
    let log = Log::start();
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let fail = |_: Bytes| async move { Err::<Bytes, _>(Outer(io::Error::other("the inner one"))) };
    let server = tokio::spawn(serve(listener, fail).into_future());
    let mut client = pipe.connect().await;
    assert!(client.call("hello").await.is_err());
    drop(client);
    server.abort();
    _ = server.await;

    let line = log.line_with("closing the connection");
    assert!(line.starts_with("ERROR"), "{line}");
    assert!(
        line.contains(" connection.id=1 reason=\"handler\""),
        "{line}"
    );
    let error = " error=the handler failed: the outer error: the inner one ";
    assert!(line.contains(error), "{line}");
}

/// As when descriptors run out: each client is accepted at the second attempt.
#[tokio::test(start_paused = true)]
async fn accepting_that_fails_does_not_fill_the_log() {
    let log = Log::start();
    let faults = Faults::new();
    let (listener, pipe) = ListenerOptions::new()
        .bind_memory_with_faults(&faults)
        .unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(listener, |request: Bytes| async move { request })
        .with_graceful_shutdown(async { _ = stopped.await });
    let server = tokio::spawn(serving.into_future());
    for _ in 0..100 {
        faults.fail_accept(1);
        let mut client = pipe.connect().await.unwrap();
        assert_eq!(client.call("hello").await.unwrap(), "hello");
    }
    let failed = faults.injected();
    assert!(failed >= 99, "{failed}");
    let lines = log.lines_with("accepting a client failed");
    assert_eq!(lines.len(), 5, "{lines:#?}");
    assert!(lines[0].contains("reason=\"accept\""), "{lines:#?}");
    stop.send(()).unwrap();
    assert_eq!(server.await.unwrap().served, 100);
    let line = log.line_with("suppressed=");
    assert_eq!(suppressed(&line), faults.injected() - 5);
}
