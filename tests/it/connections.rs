//! The limits and the log of `serve_connections`, on every engine.

use std::{
    future::{Future, IntoFuture as _, pending},
    io,
    time::Duration,
};

use pipe_server::{
    BoxError, Bytes, ClientOptions, Connection, ListenerOptions, Peer, Reason, RecvError,
    SendError, Serve, ServeConnections, Shutdown, Stats, serve, serve_connections,
};
use tokio::time::sleep;

use support::{Kind, Pipe, log::Log, on_every_engine, server::Server};

on_every_engine! {
    a_client_that_does_not_read_is_given_up,
    a_client_that_sends_nothing_is_given_up,
    the_time_limits_apply_to_reunited_halves,
    code_decides_when_its_client_is_idle,
    code_counts_its_requests,
    a_server_tells_its_name,
    a_client_that_reads_and_sends_in_time_is_not_given_up,
    a_shutdown_waits_for_a_client_that_does_not_read_only_for_the_write_timeout,
    a_shutdown_ends_receiving_after_what_was_sent_before,
    a_shutdown_ends_receiving_from_halves_and_from_a_client_that_never_pauses,
    a_client_that_is_not_authorized_starts_no_task,
    the_connections_of_one_user_are_bounded,
    what_the_client_caused_is_logged_as_in_serve,
    what_the_task_caused_is_an_error,
}

const SHORT: Duration = Duration::from_millis(20);
const HOUR: Duration = Duration::from_secs(3600);

fn start<F, Running>(
    kind: Kind,
    task: F,
    configure: impl FnOnce(ServeConnections<F>) -> ServeConnections<F>,
) -> (Server, Stats, Pipe)
where
    F: Fn(Connection, Shutdown) -> Running + Send + Sync + 'static,
    Running: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let (listener, pipe) = kind.bind(ListenerOptions::new().max_message_size(1000));
    let serving = configure(serve_connections(listener, task));
    let stats = serving.stats();
    let server = Server::run(|signal| serving.with_graceful_shutdown(signal).into_future());
    (server, stats, pipe)
}

async fn send_forever(mut connection: Connection, _: Shutdown) -> Result<(), BoxError> {
    loop {
        connection.send(vec![0; 1000]).await?;
    }
}

async fn echo(mut connection: Connection, _: Shutdown) -> Result<(), BoxError> {
    while let Some(message) = connection.recv().await? {
        connection.send(message).await?;
    }
    Ok(())
}

/// Waits until so many errors were counted.
async fn errors(stats: &Stats, reason: Reason, count: u64) {
    while stats.snapshot().errors.get(reason) < count {
        sleep(Duration::from_millis(1)).await;
    }
}

async fn a_client_that_does_not_read_is_given_up(kind: Kind) {
    let log = Log::start();
    let (server, stats, pipe) = start(kind, send_forever, |serving| serving.write_timeout(SHORT));
    let _client = pipe.connect().await;
    errors(&stats, Reason::WriteTimeout, 1).await;
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (1, 0));
    let line = log.line_with(r#"reason="write_timeout""#);
    assert!(line.starts_with("WARN"), "{line}");
    let text = "the connection's task failed: the other side read nothing for 20ms (write_timeout)";
    assert!(line.contains(text), "{line}");
}

async fn a_client_that_sends_nothing_is_given_up(kind: Kind) {
    let log = Log::start();
    let (server, stats, pipe) = start(kind, echo, |serving| serving.idle_timeout(SHORT));
    let mut client = pipe.connect().await;
    errors(&stats, Reason::IdleTimeout, 1).await;
    assert!(client.recv().await.unwrap().is_none());
    assert_eq!(server.stop().await.served, 1);
    let line = log.line_with(r#"reason="idle_timeout""#);
    assert!(line.starts_with("WARN"), "{line}");
    assert!(
        line.contains("sent nothing for 20ms (idle_timeout)"),
        "{line}"
    );
}

async fn the_time_limits_apply_to_reunited_halves(kind: Kind) {
    let reunite = |connection: Connection, shutdown: Shutdown| {
        let (receiver, sender) = connection.into_split();
        echo(receiver.reunite(sender).unwrap(), shutdown)
    };
    let (server, stats, pipe) = start(kind, reunite, |serving| serving.idle_timeout(SHORT));
    let mut client = pipe.connect().await;
    errors(&stats, Reason::IdleTimeout, 1).await;
    assert!(client.recv().await.unwrap().is_none());
    server.stop().await;
}

/// No limit applies until the first message, and from then on the server's.
async fn code_decides_when_its_client_is_idle(kind: Kind) {
    let patient = |connection: Connection, _: Shutdown| async move {
        let (mut receiver, mut sender) = connection.into_split();
        let time = receiver.idle_timeout();
        receiver.set_idle_timeout(None);
        assert_eq!((time, receiver.idle_timeout()), (Some(SHORT), None));
        while let Some(message) = receiver.recv().await? {
            sender.send(message).await?;
            receiver.set_idle_timeout(time);
        }
        Ok(())
    };
    let (server, stats, pipe) = start(kind, patient, |serving| serving.idle_timeout(SHORT));
    let mut client = pipe.connect().await;
    sleep(5 * SHORT).await;
    assert_eq!(client.call("hello").await.unwrap(), "hello");
    errors(&stats, Reason::IdleTimeout, 1).await;
    server.stop().await;
    assert_eq!(stats.snapshot().panics, 0);
}

async fn code_counts_its_requests(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let stats = listener.stats();
    let counted = stats.clone();
    let counting = move |mut connection: Connection, _: Shutdown| {
        let stats = counted.clone();
        async move {
            while let Some(message) = connection.recv().await? {
                stats.count_request(message.len());
                stats.count_handled(SHORT);
                connection.send(message.slice(1..)).await?;
                stats.count_replies(1, message.len() as u64 - 1);
            }
            Ok::<_, BoxError>(())
        }
    };
    let serving = serve_connections(listener, counting);
    let server = Server::run(|signal| serving.with_graceful_shutdown(signal).into_future());
    let mut client = pipe.connect().await;
    for _ in 0..2 {
        client.call("hello").await.unwrap();
    }
    drop(client);
    let now = server.stop().await.stats;
    assert_eq!((now.requests, now.bytes_received), (2, 10));
    assert_eq!((now.replies, now.bytes_sent), (2, 8));
    assert_eq!(now.handler_time_longest, SHORT);
}

async fn a_server_tells_its_name(kind: Kind) {
    let (listener, _pipe) = kind.bind(ListenerOptions::new());
    let name = listener.name().clone();
    let serving = serve_connections(listener, echo);
    assert_eq!(*serving.name(), name);
    drop(serving);
    let (listener, _pipe) = kind.bind(ListenerOptions::new());
    let name = listener.name().clone();
    let serving: Serve<_, _> = serve(listener, |request: Bytes| async move { request });
    assert_eq!(*serving.name(), name);
}

async fn a_client_that_reads_and_sends_in_time_is_not_given_up(kind: Kind) {
    let (server, _, pipe) = start(kind, echo, |serving| {
        serving.idle_timeout(HOUR).write_timeout(HOUR)
    });
    let mut client = pipe.connect().await;
    for _ in 0..3 {
        assert_eq!(client.call("hello").await.unwrap(), "hello");
        sleep(SHORT).await;
    }
    drop(client);
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (1, 0));
    assert_eq!(
        summary
            .stats
            .errors
            .iter()
            .map(|(_, count)| count)
            .sum::<u64>(),
        0
    );
}

async fn a_shutdown_waits_for_a_client_that_does_not_read_only_for_the_write_timeout(kind: Kind) {
    let (server, _, pipe) = start(kind, send_forever, |serving| {
        serving.write_timeout(SHORT).drain_timeout(None)
    });
    let mut client = pipe.connect().await;
    client.recv().await.unwrap();
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (1, 0));
}

async fn a_shutdown_ends_receiving_after_what_was_sent_before(kind: Kind) {
    let (server, stats, pipe) = start(kind, echo, |serving| serving.drain_timeout(None));
    let (mut sender, mut idle) = (pipe.connect().await, pipe.connect().await);
    assert_eq!(idle.call("hello").await.unwrap(), "hello");
    for number in 0..3 {
        sender.send(format!("request {number}")).await.unwrap();
    }
    while stats.snapshot().accepted < 2 {
        sleep(Duration::from_millis(1)).await;
    }
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (2, 0));
    for number in 0..3 {
        let reply = sender.recv().await.unwrap().unwrap();
        assert_eq!(reply, format!("request {number}"));
    }
    assert!(sender.recv().await.unwrap().is_none());
    assert!(idle.recv().await.unwrap().is_none());
}

async fn a_shutdown_ends_receiving_from_halves_and_from_a_client_that_never_pauses(kind: Kind) {
    let discard = async |connection: Connection, _: Shutdown| -> Result<(), BoxError> {
        let (mut receiver, mut sender) = connection.into_split();
        sender.send("ready").await?;
        while receiver.recv().await?.is_some() {}
        Ok(())
    };
    let (server, _, pipe) = start(kind, discard, |serving| serving.drain_timeout(None));
    let mut client = pipe.connect().await;
    client.send("hello").await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), "ready");
    let sending = tokio::spawn(async move {
        // Not forever: a paused clock stands still while the client sends.
        for _ in 0..100_000 {
            if client.send(vec![0; 1000]).await.is_err() {
                break;
            }
        }
        _ = client.recv().await;
    });
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (1, 0));
    sending.await.unwrap();
}

async fn a_client_that_is_not_authorized_starts_no_task(kind: Kind) {
    let log = Log::start();
    let task = async |_: Connection, _: Shutdown| -> Result<(), BoxError> {
        panic!("the client is not authorized")
    };
    let (server, stats, pipe) = start(kind, task, |serving| {
        serving.authorize(async |peer: Peer| Err(format!("{} is not on the list", peer.user())))
    });
    let mut client = pipe.connect().await;
    // The server may have closed before this is sent.
    _ = client.send("hello").await;
    assert!(!matches!(client.recv().await, Ok(Some(_))));
    errors(&stats, Reason::NotAuthorized, 1).await;
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.stats.refused), (0, 1));
    let line = log.line_with("is not on the list");
    assert!(line.starts_with("WARN"), "{line}");
    assert!(line.contains("peer.user="), "{line}");
}

async fn the_connections_of_one_user_are_bounded(kind: Kind) {
    let log = Log::start();
    let (server, _, pipe) = start(kind, echo, |serving| serving.max_connections_per_user(2));
    let (mut one, mut other) = (pipe.connect().await, pipe.connect().await);
    for client in [&mut one, &mut other] {
        assert_eq!(client.call("hello").await.unwrap(), "hello");
    }
    pipe.connect().await.call("hello").await.unwrap_err();
    let line = log.line_with("has 2 connections already (max_connections_per_user)");
    assert!(line.starts_with("WARN"), "{line}");
    assert!(line.contains("peer.user="), "{line}");
    drop(one);
    // The server has yet to see that it is gone.
    while pipe.connect().await.call("hello").await.is_err() {}
    assert_eq!(other.call("hello").await.unwrap(), "hello");
    drop(other);
    let summary = server.stop().await;
    assert_eq!(summary.served, 3);
    assert!(summary.stats.refused > 0);
}

/// An error of the task's own.
#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error("receiving from the client")]
    Recv(#[from] RecvError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

async fn what_the_client_caused_is_logged_as_in_serve(kind: Kind) {
    let plain = |error: RecvError| BoxError::from(error);
    let wrapped = |error: RecvError| BoxError::from(TaskError::from(error));
    let as_io = |error: RecvError| BoxError::from(io::Error::from(error));
    let conversions: [fn(RecvError) -> BoxError; 3] = [plain, wrapped, as_io];
    let log = Log::start();
    let task = move |mut connection: Connection, _: Shutdown| async move {
        let convert = conversions[connection.id() as usize - 1];
        connection.recv().await.map(drop).map_err(convert)
    };
    let (server, stats, pipe) = start(kind, task, |serving| serving);
    for count in 1..=3 {
        let options = ClientOptions::new().max_message_size(1001);
        let mut client = pipe.connect_with(options).await;
        client.send(vec![0; 1001]).await.unwrap();
        errors(&stats, Reason::RequestTooLong, count).await;
    }
    server.stop().await;
    let lines = log.lines_with("the connection's task failed: ");
    assert_eq!(lines.len(), 3);
    for line in lines {
        assert!(line.starts_with("WARN"), "{line}");
        assert!(
            line.contains("longer than the limit of 1000 bytes"),
            "{line}"
        );
    }

    // A client that has left is not worth a line.
    let (server, stats, pipe) = start(kind, send_forever, |serving| serving);
    drop(pipe.connect().await);
    errors(&stats, Reason::Disconnected, 1).await;
    server.stop().await;
    assert!(log.lines_with("has closed the pipe").is_empty());
}

async fn what_the_task_caused_is_an_error(kind: Kind) {
    let log = Log::start();
    // The second one looks as if the client had caused it, but comes from another connection.
    let task = |mut connection: Connection, _: Shutdown| async move {
        match connection.recv().await? {
            Some(message) if message == "empty" => connection.send(Bytes::new()).await?,
            _ => return Err(SendError::Closed.into()),
        }
        pending().await
    };
    let (server, stats, pipe) = start(kind, task, |serving| serving);
    for (count, request) in [(1, "empty"), (2, "other")] {
        pipe.connect().await.call(request).await.unwrap_err();
        errors(&stats, Reason::ConnectionTask, count).await;
    }
    server.stop().await;
    for text in ["an empty message can't be sent", "has closed the pipe"] {
        let line = log.line_with(text);
        assert!(line.starts_with("ERROR"), "{line}");
        assert!(line.contains("the connection's task failed"), "{line}");
    }
}
