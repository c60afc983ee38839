//! Options at the ends of their ranges: an error of the function that uses them, or, at a server
//! that can't fail, what the option's documentation says. Never a panic.

use std::{future::IntoFuture as _, io, time::Duration};

use pipe_server::{
    BindError, BoxError, Bytes, ClientOptions, ConnectError, Connection, ListenerOptions,
    MemoryPipe, Reason, Shutdown, Stats, serve, serve_connections,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use support::{server::Server, unique_name};

const HOUR: Duration = Duration::from_secs(3600);

/// Starts a server in memory.
macro_rules! start {
    ($handler:expr, |$serving:ident| $configured:expr) => {{
        let (listener, pipe) = ListenerOptions::new().buffer_size(1).bind_memory().unwrap();
        let $serving = serve(listener, $handler);
        let serving = $configured;
        let stats = serving.stats();
        let server = Server::run(|signal| serving.with_graceful_shutdown(signal).into_future());
        (server, pipe, stats)
    }};
}

async fn echo(request: Bytes) -> Bytes {
    request
}

async fn errors(stats: &Stats, reason: Reason) {
    let counted = async {
        while stats.snapshot().errors.get(reason) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(HOUR, counted).await.expect("it is not counted");
}

/// Sends requests before it reads their replies.
async fn pipeline(pipe: &MemoryPipe, length: usize) {
    let (mut receiver, mut sender) = pipe.connect().await.unwrap().into_connection().into_split();
    let sending = tokio::spawn(async move {
        for number in 0..20 {
            sender.send(vec![number; length]).await.unwrap();
        }
        sender
    });
    for number in 0..20 {
        let reply = receiver.recv().await.unwrap().unwrap();
        assert_eq!(reply, vec![number; length]);
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn a_listener_option_out_of_range_is_an_error_of_bind() {
    for (options, name) in [
        (ListenerOptions::new().max_instances(0), "max_instances"),
        (
            ListenerOptions::new().max_message_size(0),
            "max_message_size",
        ),
        (ListenerOptions::new().buffer_size(0), "buffer_size"),
        (ListenerOptions::new().backlog(0), "backlog"),
    ] {
        let error = options.bind(&unique_name().text).unwrap_err();
        match &error {
            BindError::Option { option, .. } => assert_eq!(*option, name),
            _ => panic!("{error:?}"),
        }
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    }
}

#[tokio::test]
async fn a_client_option_out_of_range_is_an_error_of_connect() {
    let expect = |error: ConnectError, name| match error {
        ConnectError::Option { option, .. } => assert_eq!(option, name),
        error => panic!("{error:?}"),
    };
    let options = ClientOptions::new;
    let pipe = unique_name();
    let error = options().max_message_size(0).connect(&pipe.text).await;
    expect(error.map(drop).unwrap_err(), "max_message_size");
    for (shared, name) in [
        (options().shared().max_in_flight(0), "max_in_flight"),
        (options().shared().connections(0), "connections"),
        (options().max_message_size(0).shared(), "max_message_size"),
    ] {
        expect(
            shared.connect(&pipe.text).await.map(drop).unwrap_err(),
            name,
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_concurrency_of_0_is_1() {
    let (server, pipe, _) = start!(echo, |serving| serving.concurrency(0));
    pipeline(&pipe, 5).await;
    assert_eq!(server.stop().await.stats.replies, 20);
}

#[tokio::test(start_paused = true)]
async fn with_max_buffered_bytes_of_0_clients_that_read_are_served() {
    let (server, pipe, stats) = start!(echo, |serving| serving.max_buffered_bytes(0));
    let mut unread = pipe.connect().await.unwrap();
    unread.send(vec![1; 2000]).await.unwrap();
    unread.send(vec![2; 2000]).await.unwrap();
    pipeline(&pipe, 2000).await;
    // This one does not read.
    let sending = tokio::spawn(async move {
        while unread.send(vec![3; 2000]).await.is_ok() {}
        unread
    });
    errors(&stats, Reason::BufferedBytes).await;
    drop(sending.await.unwrap());
    pipeline(&pipe, 2000).await;
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn max_connections_per_user_of_0_refuses_everyone() {
    let (server, pipe, _) = start!(echo, |serving| serving.max_connections_per_user(0));
    for _ in 0..2 {
        let mut client = pipe.connect().await.unwrap();
        client.call("hello").await.unwrap_err();
    }
    assert_eq!(server.stop().await.stats.refused, 2);
}

#[tokio::test(start_paused = true)]
async fn an_idle_timeout_of_0_closes_a_client_that_has_to_be_waited_for() {
    let (server, pipe, stats) = start!(echo, |serving| serving.idle_timeout(Duration::ZERO));
    let mut client = pipe.connect().await.unwrap();
    assert!(client.recv().await.unwrap().is_none());
    errors(&stats, Reason::IdleTimeout).await;
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn with_a_handler_timeout_of_0_the_handler_may_not_wait() {
    let handler = async |request: Bytes| {
        if request == "wait" {
            sleep(HOUR).await;
        }
        request
    };
    let (server, pipe, stats) = start!(handler, |serving| serving.handler_timeout(Duration::ZERO));
    let mut client = pipe.connect().await.unwrap();
    assert_eq!(client.call("go on").await.unwrap(), "go on");
    let start = Instant::now();
    client.call("wait").await.unwrap_err();
    errors(&stats, Reason::HandlerTimeout).await;
    assert!(start.elapsed() < HOUR);
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn with_a_write_timeout_of_0_a_reply_may_not_wait() {
    let (server, pipe, stats) = start!(echo, |serving| serving.write_timeout(Duration::ZERO));
    let mut client = pipe.connect().await.unwrap();
    assert_eq!(client.call("hello").await.unwrap(), "hello");
    for _ in 0..3 {
        _ = client.send("unread").await;
    }
    errors(&stats, Reason::WriteTimeout).await;
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_timeout_of_0_aborts_at_once() {
    let (begin, begun) = oneshot::channel();
    let begin = std::sync::Mutex::new(Some(begin));
    let handler = move |_: Bytes| {
        _ = begin.lock().unwrap().take().unwrap().send(());
        std::future::pending::<Bytes>()
    };
    let (server, pipe, _) = start!(handler, |serving| serving.drain_timeout(Duration::ZERO));
    let mut client = pipe.connect().await.unwrap();
    client.send("hello").await.unwrap();
    begun.await.unwrap();
    let start = Instant::now();
    assert_eq!(server.stop().await.aborted, 1);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn the_largest_values_are_no_limits() {
    let most = Duration::MAX;
    let (server, pipe, _) = start!(echo, |serving| serving
        .concurrency(usize::MAX)
        .max_buffered_bytes(usize::MAX)
        .max_connections_per_user(usize::MAX)
        .idle_timeout(most)
        .handler_timeout(most)
        .write_timeout(most)
        .drain_timeout(most));
    pipeline(&pipe, 5).await;
    assert_eq!(server.stop().await.served, 1);
}

#[tokio::test(start_paused = true)]
async fn serve_connections_takes_the_same_values() {
    async fn task(mut connection: Connection, _: Shutdown) -> Result<(), BoxError> {
        while let Some(message) = connection.recv().await? {
            connection.send(message).await?;
        }
        Ok(())
    }
    for (time, reason) in [
        (Duration::ZERO, Some(Reason::IdleTimeout)),
        (Duration::MAX, None),
    ] {
        let (listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
        let serving = serve_connections(listener, task)
            .max_connections_per_user(usize::MAX)
            .idle_timeout(time)
            .write_timeout(time)
            .drain_timeout(time);
        assert_eq!(serving.name().to_string(), "memory");
        let stats = serving.stats();
        let server = Server::run(|signal| serving.with_graceful_shutdown(signal).into_future());
        let mut client = pipe.connect().await.unwrap();
        match reason {
            Some(reason) => {
                assert!(client.recv().await.unwrap().is_none());
                errors(&stats, reason).await;
            }
            None => assert_eq!(client.call("hello").await.unwrap(), "hello"),
        }
        drop(client);
        server.stop().await;
    }
}
