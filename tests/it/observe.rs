//! What an operator sees of a server.

use std::{error::Error, fmt, future::IntoFuture, io, time::Duration};

use pipe_server::{
    BoxError, Bytes, Client, ClientOptions, ConnectionInfo, Faults, Handler, ListenerOptions,
    MemoryPipe, Reason, Serve, Stats, StatsSnapshot, Summary, serve,
};
use tokio::{
    sync::oneshot,
    task::{JoinHandle, yield_now},
    time::{advance, sleep},
};
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
    assert!(line.contains(" reason=\"handler\""), "{line}");
    assert!(line.contains(" connection.id=1 "), "{line}");
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

/// A server in memory that ends when it is told to.
struct Server {
    pipe: MemoryPipe,
    stats: Stats,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Summary>,
}

impl Server {
    fn start<H: Handler<T>, T: 'static>(
        options: ListenerOptions,
        handler: H,
        configure: impl FnOnce(Serve<H, T>) -> Serve<H, T>,
    ) -> Self {
        let (listener, pipe) = options.bind_memory().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = configure(serve(listener, handler));
        let stats = serving.stats();
        let serving = serving.with_graceful_shutdown(async { _ = stopped.await });
        Self {
            pipe,
            stats,
            stop,
            task: tokio::spawn(serving.into_future()),
        }
    }

    async fn connect(&self) -> Client {
        self.pipe.connect().await.unwrap()
    }

    /// Figures once they are as expected. The server may still have something to do.
    async fn snapshot_when(&self, expected: impl Fn(&StatsSnapshot) -> bool) -> StatsSnapshot {
        loop {
            let snapshot = self.stats.snapshot();
            if expected(&snapshot) {
                return snapshot;
            }
            yield_now().await;
        }
    }

    async fn stop(self) -> Summary {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn figures_are_those_of_the_moment() {
    let handler = |request: Bytes| async move {
        sleep(Duration::from_millis(request.len() as u64)).await;
        (request != "quiet").then(|| request.slice(1..))
    };
    let options = ListenerOptions::new().max_instances(2);
    let server = Server::start(options, handler, |serving| serving);
    let before = server.snapshot_when(|now| now.waiting == 2).await;
    assert_eq!(
        (before.accepted, before.connected, before.requests),
        (0, 0, 0)
    );
    assert_eq!(before.handler_time_p99, Duration::ZERO);

    let mut one = server.connect().await;
    one.call("123456789").await.unwrap();
    let other = server.connect().await;
    server.snapshot_when(|now| now.accepted == 2).await;
    one.send("quiet").await.unwrap();
    one.call("12").await.unwrap();
    let now = server.stats.snapshot();
    assert_eq!((now.connected, now.waiting), (2, 0));
    assert_eq!((now.requests, now.bytes_received), (3, 16));
    assert_eq!((now.replies, now.bytes_sent), (2, 9));
    assert_eq!(now.handler_time_longest, Duration::from_millis(9));
    assert_eq!(now.handler_time_p99, Duration::from_millis(9));

    // A request is counted while it is answered, and its reply is not.
    one.send("1234567").await.unwrap();
    let now = server.snapshot_when(|now| now.requests == 4).await;
    assert_eq!((now.replies, now.bytes_received), (2, 23));
    one.recv().await.unwrap().unwrap();

    drop(other);
    let now = server.snapshot_when(|now| now.connected == 1).await;
    assert_eq!((now.accepted, now.waiting), (2, 1));
    drop(one);
    let stats = server.stats.clone();
    let summary = server.stop().await;
    assert_eq!(summary.stats, stats.snapshot());
    assert_eq!((summary.stats.connected, summary.stats.waiting), (0, 0));
    assert_eq!((summary.stats.requests, summary.stats.replies), (4, 3));
    assert_eq!(summary.stats.errors.iter().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn most_handler_times_are_within_the_percentile() {
    let handler = |request: Bytes| async move {
        let time = if request == "long" { 5000 } else { 8 };
        sleep(Duration::from_millis(time)).await;
        request
    };
    let server = Server::start(ListenerOptions::new(), handler, |serving| serving);
    let mut client = server.connect().await;
    for _ in 0..99 {
        client.call("short").await.unwrap();
    }
    client.call("long").await.unwrap();
    let now = server.stats.snapshot();
    assert_eq!(now.handler_time_longest, Duration::from_secs(5));
    let p99 = now.handler_time_p99;
    let resolution = Duration::from_millis(8)..Duration::from_millis(9);
    assert!(resolution.contains(&p99), "{p99:?}");
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_is_counted_by_reason() {
    let handler = |request: Bytes| async move {
        match &request[..] {
            b"fail" => Err(BoxError::from("as asked for")),
            b"panic" => panic!("as asked for"),
            b"empty" => Ok(Bytes::new()),
            b"late" => {
                sleep(Duration::from_secs(2)).await;
                Ok(request)
            }
            _ => Ok(request),
        }
    };
    let options = ListenerOptions::new().max_message_size(10);
    let server = Server::start(options, handler, |serving| {
        serving
            .handler_timeout(Duration::from_secs(1))
            .idle_timeout(Duration::from_secs(60))
            .on_connect(|connection: ConnectionInfo| async move {
                match connection.id() {
                    1 => Err(BoxError::from("as the test wants")),
                    2 => {
                        sleep(Duration::from_secs(2)).await;
                        Ok(())
                    }
                    _ => Ok(()),
                }
            })
    });
    for _ in 1..=2 {
        let mut client = server.connect().await;
        assert!(client.recv().await.unwrap().is_none());
    }
    for request in ["fail", "fail", "panic", "empty", "late", "longer than 10"] {
        let mut client = server.connect().await;
        client.send(request).await.unwrap();
        assert!(client.recv().await.unwrap().is_none());
    }
    // Sends nothing.
    assert!(server.connect().await.recv().await.unwrap().is_none());

    let stats = server.stop().await.stats;
    let expected = [
        (Reason::Refused, 1),
        (Reason::ConnectTimeout, 1),
        (Reason::RequestTooLong, 1),
        (Reason::HandlerTimeout, 1),
        (Reason::IdleTimeout, 1),
        (Reason::Handler, 2),
        (Reason::Panic, 1),
        (Reason::EmptyReply, 1),
    ];
    assert_eq!(stats.errors.iter().collect::<Vec<_>>(), expected);
    assert_eq!((stats.refused, stats.timeouts, stats.panics), (2, 3, 1));
    assert_eq!((stats.accepted, stats.requests, stats.replies), (9, 5, 0));
    assert_eq!(stats.handler_time_longest, Duration::from_secs(1));
}

/// That clients leave is no reason to warn, however many do.
#[tokio::test(start_paused = true)]
async fn clients_that_leave_are_counted_and_not_warned_of() {
    let log = Log::start();
    let (listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(listener, |_: Bytes| std::future::pending::<String>())
        .cancel_on_disconnect(true)
        .with_graceful_shutdown(async { _ = stopped.await });
    let stats = serving.stats();
    let server = tokio::spawn(serving.into_future());
    for _ in 0..20 {
        let mut client = pipe.connect().await.unwrap();
        client.send("hello").await.unwrap();
        while stats.snapshot().connected == 0 {
            tokio::task::yield_now().await;
        }
        drop(client);
        while stats.snapshot().connected > 0 {
            tokio::task::yield_now().await;
        }
    }
    stop.send(()).unwrap();
    let summary = server.await.unwrap();
    assert_eq!(summary.stats.errors.get(Reason::Disconnected), 20);
    assert_eq!(log.lines_with("WARN"), [""; 0]);
}
