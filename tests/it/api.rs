//! What handlers, sessions and the tasks of connections may do, on every engine.

use std::{
    future::{Future, IntoFuture, pending},
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use pipe_server::{
    BindError, BoxError, Bytes, CallError, ClientOptions, ConnectError, Connection, ConnectionInfo,
    Handler, IntoReply, IntoResult as _, ListenerOptions, Peer, Reason, RecvError, Rejection,
    Reply, Request, SendError, Serve, Session, SessionRejection, Shutdown, Summary, Trust,
    defaults, serve, serve_connections,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::{JoinHandle, yield_now},
    time::Instant,
};

use support::{Kind, Pipe, log::Log, message, on_every_engine, unique_name};

on_every_engine! {
    replies_of_every_kind_reach_the_client,
    arguments_of_every_kind_are_extracted,
    a_request_that_is_rejected_ends_its_conversation_and_is_logged,
    a_handler_that_takes_the_result_answers_what_is_rejected,
    an_empty_reply_is_named_in_the_log_and_those_before_it_are_sent,
    a_reply_over_the_limit_is_named_in_the_log_and_those_before_it_are_sent,
    a_struct_with_state_is_a_handler,
    middleware_sees_requests_replies_and_rejections,
    a_handler_may_end_its_connection_while_its_client_idles,
    a_handler_that_has_ended_is_not_asked_while_it_answers,
    a_session_belongs_to_one_client_and_is_dropped_with_it,
    a_session_of_another_type_is_rejected,
    a_refused_client_is_closed_counted_and_logged,
    an_on_connect_that_takes_too_long_refuses_its_client,
    a_client_that_is_not_authorized_reaches_no_handler,
    an_authorized_client_is_known_to_on_connect,
    an_authorize_that_takes_too_long_refuses_its_client,
    the_connections_of_one_user_are_bounded,
    code_that_has_the_connection_can_send_unasked,
    code_learns_of_a_shutdown_and_may_finish,
    code_that_does_not_end_is_cut_off,
    code_that_fails_or_panics_costs_its_own_connection_and_is_logged,
    a_client_knows_its_server_and_gives_its_connection,
    a_client_sends_nothing_to_a_server_that_it_does_not_trust,
}

/// A server that ends when it is told to.
struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Summary>,
}

impl Server {
    async fn stop(self) -> Summary {
        _ = self.stop.send(());
        self.task.await.unwrap()
    }
}

fn start<H: Handler<T>, T: 'static>(kind: Kind, handler: H) -> (Server, Pipe) {
    start_with(kind, handler, |serving| serving)
}

/// Serves with other options.
fn start_with<H: Handler<T>, T: 'static>(
    kind: Kind,
    handler: H,
    configure: impl FnOnce(Serve<H, T>) -> Serve<H, T>,
) -> (Server, Pipe) {
    let (listener, pipe) = kind.bind(ListenerOptions::new().max_message_size(1000));
    let (stop, stopped) = oneshot::channel();
    let serving = configure(serve(listener, handler)).with_graceful_shutdown(signal(stopped));
    let task = tokio::spawn(serving.into_future());
    (Server { stop, task }, pipe)
}

/// Serves with code that has the connection.
macro_rules! start_code {
    ($kind:expr, $code:expr $(, $option:ident($value:expr))*) => {{
        let (listener, pipe) = $kind.bind(ListenerOptions::new());
        let (stop, stopped) = oneshot::channel();
        let serving = serve_connections(listener, $code)
            $(.$option($value))*
            .with_graceful_shutdown(signal(stopped));
        let task = tokio::spawn(serving.into_future());
        (Server { stop, task }, pipe)
    }};
}

async fn signal(stopped: oneshot::Receiver<()>) {
    _ = stopped.await;
}

async fn replies_of_every_kind_reach_the_client(kind: Kind) {
    async fn reply<R: IntoReply + Clone + Send + Sync + 'static>(kind: Kind, value: R) -> Bytes {
        let (_server, pipe) = start(kind, move |_: Bytes| {
            let value = value.clone();
            async move { value }
        });
        let mut client = pipe.connect().await;
        client.call("x").await.unwrap()
    }
    assert_eq!(reply(kind, Bytes::from("bytes")).await, "bytes");
    assert_eq!(reply(kind, b"vector".to_vec()).await, "vector");
    assert_eq!(reply(kind, String::from("text")).await, "text");
    assert_eq!(reply(kind, "literal").await, "literal");
    assert_eq!(reply(kind, &b"slice"[..]).await, "slice");
    assert_eq!(reply(kind, b"array").await, "array");
    assert_eq!(reply(kind, Some("some")).await, "some");
    assert_eq!(reply(kind, Ok::<_, &str>("fine")).await, "fine");
    assert_eq!(reply(kind, Reply::new("reply")).await, "reply");

    let (server, pipe) = start(kind, |request: String| async move {
        (request != "quiet").then_some(request)
    });
    let mut client = pipe.connect().await;
    client.send("quiet").await.unwrap();
    assert_eq!(client.call("loud").await.unwrap(), "loud");
    let summary = server.stop().await;
    assert_eq!((summary.stats.requests, summary.stats.replies), (2, 1));

    let (server, pipe) = start(kind, |_: Bytes| async {});
    let mut client = pipe.connect().await;
    client.send("x").await.unwrap();
    client.finish().await.unwrap();
    assert!(client.recv().await.unwrap().is_none());
    assert_eq!(server.stop().await.stats.replies, 0);
}

async fn arguments_of_every_kind_are_extracted(kind: Kind) {
    let handler = |text: String, peer: Peer, connection: ConnectionInfo, bytes: Bytes| async move {
        assert_eq!(peer.process_id(), std::process::id());
        assert_eq!(text.as_bytes(), bytes);
        format!("{text} on {}", connection.id())
    };
    let (_server, pipe) = start(kind, handler);
    let reply = pipe.connect().await.call("four").await.unwrap();
    assert_eq!(reply, "four on 1");

    let handler = |absent: Option<Session<u8>>, bytes: Bytes, request: Request| async move {
        assert!(absent.is_none());
        assert_eq!(bytes, request.bytes());
        request.into_bytes()
    };
    let (_server, pipe) = start(kind, handler);
    let reply = pipe.connect().await.call("three").await.unwrap();
    assert_eq!(reply, "three");
}

async fn a_request_that_is_rejected_ends_its_conversation_and_is_logged(kind: Kind) {
    let log = Log::start();
    let (server, pipe) = start(kind, |text: String| async move { text });
    let mut other = pipe.connect().await;
    assert_eq!(other.call("text").await.unwrap(), "text");
    let mut client = pipe.connect().await;
    client.send("before").await.unwrap();
    client.send(b"\xff".to_vec()).await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), "before");
    assert!(client.recv().await.unwrap().is_none());
    assert_eq!(other.call("text").await.unwrap(), "text");
    drop(other);
    assert_eq!(server.stop().await.served, 2);
    let line = log.line_with("the request was rejected: invalid utf-8");
    assert!(line.starts_with("WARN"), "{line}");
    assert!(line.contains("connection.id=2"), "{line}");
}

async fn a_handler_that_takes_the_result_answers_what_is_rejected(kind: Kind) {
    let handler = |text: Result<String, std::str::Utf8Error>| async move {
        text.unwrap_or_else(|_| "not text".to_owned())
    };
    let (_server, pipe) = start(kind, handler);
    let mut client = pipe.connect().await;
    assert_eq!(client.call(b"\xff".to_vec()).await.unwrap(), "not text");
    assert_eq!(client.call("text").await.unwrap(), "text");
}

async fn an_empty_reply_is_named_in_the_log_and_those_before_it_are_sent(kind: Kind) {
    let log = Log::start();
    let handler = |request: Bytes| async move { request.slice(1..) };
    let (server, pipe) = start(kind, handler);
    let mut client = pipe.connect().await;
    client.send("12").await.unwrap();
    client.send("1").await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), "2");
    assert!(client.recv().await.unwrap().is_none());
    let summary = server.stop().await;
    assert_eq!((summary.stats.requests, summary.stats.replies), (2, 1));
    let line = log.line_with("empty reply");
    assert!(line.starts_with("ERROR"), "{line}");
    assert!(line.contains("connection.id=1"), "{line}");
    assert!(line.contains("Reply::none()"), "{line}");
}

async fn a_reply_over_the_limit_is_named_in_the_log_and_those_before_it_are_sent(kind: Kind) {
    let log = Log::start();
    let handler = |request: Bytes| async move {
        match &request[..] {
            b"long" => vec![0; 1001],
            _ => request.to_vec(),
        }
    };
    let (server, pipe) = start(kind, handler);
    let mut client = pipe.connect().await;
    client.send("short").await.unwrap();
    client.send("long").await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), "short");
    assert!(client.recv().await.unwrap().is_none());
    assert_eq!(server.stop().await.stats.replies, 1);
    let line = log.line_with("the limit of 1000");
    assert!(line.starts_with("ERROR"), "{line}");
    assert!(line.contains("connection.id=1"), "{line}");
}

/// Counts the requests of all clients.
struct Counting {
    requests: AtomicUsize,
}

impl Handler for Counting {
    async fn call(&self, request: Request) -> Result<Reply, BoxError> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let text = std::str::from_utf8(request.bytes())?;
        Ok(Reply::new(format!("{number}: {text}")))
    }
}

async fn a_struct_with_state_is_a_handler(kind: Kind) {
    let requests = AtomicUsize::new(0);
    let (_server, pipe) = start(kind, Counting { requests });
    let (mut one, mut other) = (pipe.connect().await, pipe.connect().await);
    assert_eq!(one.call("a").await.unwrap(), "1: a");
    assert_eq!(other.call("b").await.unwrap(), "2: b");
    assert_eq!(one.call("c").await.unwrap(), "3: c");
    let error = one.call(b"\xff".to_vec()).await.unwrap_err();
    assert!(matches!(error, CallError::Closed), "{error:?}");
}

/// Marks each request and reply, and answers what its handler rejects.
struct Marking<H>(Arc<H>);

impl<H: Handler<T>, T> Handler<T> for Marking<H> {
    async fn call(&self, request: Request) -> Result<Reply, BoxError> {
        let reply = match self.0.call(request).await {
            Ok(reply) => reply,
            Err(error) => match error.downcast::<Rejection>() {
                Ok(rejection) => Reply::new(format!("rejected: {}", rejection.into_reason())),
                Err(error) => return Err(error),
            },
        };
        let text = reply.message().map(|message| {
            let text = std::str::from_utf8(message).unwrap();
            format!("<{text}>")
        });
        text.into_reply()
    }

    fn for_connection(self: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self(self.0.for_connection()))
    }

    fn ended(&self) -> impl Future<Output = BoxError> + Send {
        self.0.ended()
    }
}

async fn middleware_sees_requests_replies_and_rejections(kind: Kind) {
    let handler = |text: String| async move { text };
    let (_server, pipe) = start(kind, Marking(Arc::new(handler)));
    let mut client = pipe.connect().await;
    assert_eq!(client.call("text").await.unwrap(), "<text>");
    let reply = client.call(b"\xff".to_vec()).await.unwrap();
    assert!(reply.starts_with(b"<rejected: invalid utf-8"), "{reply:?}");
    assert_eq!(client.call("again").await.unwrap(), "<again>");
}

/// Ends a connection for each permit, and echoes until then.
struct Ending(Arc<Semaphore>);

impl Handler for Ending {
    async fn call(&self, request: Request) -> Result<Reply, BoxError> {
        if request.bytes() == "end" {
            self.0.add_permits(1);
            // Wakes the task, which does not ask while this runs.
            yield_now().await;
        }
        Ok(Reply::new(request.into_bytes()))
    }

    fn for_connection(self: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self(Arc::clone(&self.0)))
    }

    async fn ended(&self) -> BoxError {
        self.0.acquire().await.unwrap().forget();
        "what it needs is gone".into()
    }
}

async fn a_handler_may_end_its_connection_while_its_client_idles(kind: Kind) {
    let log = Log::start();
    let end = Arc::new(Semaphore::new(0));
    let (server, pipe) = start(kind, Ending(Arc::clone(&end)));
    let (mut silent, mut idle) = (pipe.connect().await, pipe.connect().await);
    assert_eq!(idle.call("a").await.unwrap(), "a");
    end.add_permits(2);
    let ended = tokio::join!(silent.recv(), idle.recv());
    assert_eq!((ended.0.unwrap(), ended.1.unwrap()), (None, None));
    let mut other = pipe.connect().await;
    assert_eq!(other.call("b").await.unwrap(), "b");
    let summary = server.stop().await;
    assert_eq!(summary.stats.errors.get(Reason::Ended), 2);
    assert_eq!(
        log.lines_with("the handler ended the connection: what it needs is gone")
            .len(),
        2
    );
}

async fn a_handler_that_has_ended_is_not_asked_while_it_answers(kind: Kind) {
    let end = Arc::new(Semaphore::new(0));
    let (server, pipe) = start(kind, Ending(end));
    let mut client = pipe.connect().await;
    assert_eq!(client.call("end").await.unwrap(), "end");
    assert_eq!(client.recv().await.unwrap(), None);
    let summary = server.stop().await;
    assert_eq!(summary.stats.errors.get(Reason::Ended), 1);
}

/// Says when it is dropped.
struct Dropped {
    requests: AtomicU64,
    sender: mpsc::UnboundedSender<u64>,
}

impl Drop for Dropped {
    fn drop(&mut self) {
        _ = self.sender.send(self.requests.load(Ordering::Relaxed));
    }
}

async fn a_session_belongs_to_one_client_and_is_dropped_with_it(kind: Kind) {
    let (sender, mut dropped) = mpsc::unbounded_channel();
    let handler = |session: Session<Dropped>| async move {
        let number = session.requests.fetch_add(1, Ordering::Relaxed) + 1;
        number.to_string()
    };
    let (server, pipe) = start_with(kind, handler, |serving| {
        serving.on_connect(move |connection: ConnectionInfo| {
            assert!(connection.id() > 0);
            let sender = sender.clone();
            async move {
                tokio::task::yield_now().await;
                Ok::<_, BoxError>(Dropped {
                    requests: AtomicU64::new(0),
                    sender,
                })
            }
        })
    });
    let (mut one, mut other) = (pipe.connect().await, pipe.connect().await);
    for number in ["1", "2", "3"] {
        assert_eq!(one.call("x").await.unwrap(), number);
    }
    assert_eq!(other.call("x").await.unwrap(), "1");
    drop(one);
    assert_eq!(dropped.recv().await, Some(3));
    assert_eq!(other.call("x").await.unwrap(), "2");
    server.stop().await;
    assert_eq!(dropped.recv().await, Some(2));
}

async fn a_session_of_another_type_is_rejected(kind: Kind) {
    let log = Log::start();
    let handler = |session: Session<u32>| async move { session.to_string() };
    let (_server, pipe) = start_with(kind, handler, |serving| {
        serving.on_connect(async |_: ConnectionInfo| Ok::<_, BoxError>("a session"))
    });
    let error = pipe.connect().await.call("x").await.unwrap_err();
    assert!(matches!(error, CallError::Closed), "{error:?}");
    log.line_with("no Session<u32>");
}

async fn a_refused_client_is_closed_counted_and_logged(kind: Kind) {
    let log = Log::start();
    let handler = |request: Bytes| async move { request };
    let (server, pipe) = start_with(kind, handler, |serving| {
        serving.on_connect(async |connection: ConnectionInfo| match connection.id() {
            2 => Err("not on the list"),
            _ => Ok(()),
        })
    });
    let mut welcome = pipe.connect().await;
    assert_eq!(welcome.call("hello").await.unwrap(), "hello");
    let mut refused = pipe.connect().await;
    assert!(matches!(refused.recv().await, Ok(None)));
    let mut next = pipe.connect().await;
    assert_eq!(next.call("hello").await.unwrap(), "hello");
    assert_eq!(welcome.call("hello").await.unwrap(), "hello");
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.stats.refused), (2, 1));
    let line = log.line_with("not on the list");
    assert!(line.starts_with("WARN"), "{line}");
    assert!(line.contains("connection.id=2"), "{line}");
    // Some clients are known only once they have sent something.
    let who = format!("peer.pid={}", std::process::id());
    assert!(
        line.contains(&who) || line.contains("peer.unknown"),
        "{line}"
    );
    assert!(line.contains(&who) || cfg!(windows), "{line}");
}

async fn an_on_connect_that_takes_too_long_refuses_its_client(kind: Kind) {
    let (server, pipe) = start_with(
        kind,
        |request: Bytes| async move { request },
        |serving| {
            serving
                .on_connect(async |_: ConnectionInfo| pending::<Result<(), BoxError>>().await)
                .handler_timeout(Duration::from_millis(10))
        },
    );
    assert!(pipe.connect().await.recv().await.unwrap().is_none());
    let summary = server.stop().await;
    assert_eq!(
        (summary.served, summary.stats.refused, summary.aborted),
        (0, 1, 0)
    );
}

async fn a_client_that_is_not_authorized_reaches_no_handler(kind: Kind) {
    for says_why in [true, false] {
        let log = Log::start();
        let asked = AtomicUsize::new(0);
        let handler = |request: Bytes| async move { request };
        let (server, pipe) = start_with(kind, handler, |serving| {
            serving
                .authorize(move |peer: Peer| {
                    let is_first = asked.fetch_add(1, Ordering::Relaxed) == 0;
                    async move {
                        assert_eq!(peer.process_id(), std::process::id());
                        tokio::task::yield_now().await;
                        match (is_first, says_why) {
                            (true, _) => Ok(()),
                            (false, true) => Err("not on the list"),
                            (false, false) => false.into_result().map_err(|_| "false"),
                        }
                    }
                })
                .on_connect(async |_: ConnectionInfo| Ok::<_, BoxError>(()))
        });
        let mut welcome = pipe.connect().await;
        assert_eq!(welcome.call("hello").await.unwrap(), "hello");
        let mut refused = pipe.connect().await;
        refused.call("hello").await.unwrap_err();
        assert_eq!(welcome.call("hello").await.unwrap(), "hello");
        drop(welcome);
        let summary = server.stop().await;
        assert_eq!((summary.served, summary.stats.refused), (1, 1));
        assert_eq!(summary.stats.requests, 2);
        let reason = match says_why {
            true => "not authorized (authorize): not on the list",
            false => "not authorized (authorize): false",
        };
        let line = log.line_with(reason);
        assert!(line.starts_with("WARN"), "{line}");
        assert!(line.contains("connection.id=2"), "{line}");
        let who = format!("peer.pid={}", std::process::id());
        assert!(line.contains(&who), "{line}");
    }
}

async fn an_authorized_client_is_known_to_on_connect(kind: Kind) {
    let (events, mut seen) = mpsc::unbounded_channel();
    let (authorized, connected) = (events.clone(), events.clone());
    let handler = move |session: Session<u32>, request: Bytes| {
        _ = events.send("asked");
        async move { format!("{} {}", *session, request.len()) }
    };
    let (_server, pipe) = start_with(kind, handler, |serving| {
        serving
            .authorize(move |_: Peer| {
                _ = authorized.send("authorized");
                async { true }
            })
            .on_connect(move |connection: ConnectionInfo| {
                _ = connected.send("connected");
                async move { Ok::<_, BoxError>(connection.peer()?.process_id()) }
            })
    });
    let mut client = pipe.connect().await;
    let expected = format!("{} 5", std::process::id());
    for _ in 0..2 {
        assert_eq!(client.call("hello").await.unwrap(), expected);
    }
    for event in ["authorized", "connected", "asked", "asked"] {
        assert_eq!(seen.recv().await, Some(event));
    }
}

async fn an_authorize_that_takes_too_long_refuses_its_client(kind: Kind) {
    let log = Log::start();
    let handler = |request: Bytes| async move { request };
    let (server, pipe) = start_with(kind, handler, |serving| {
        serving
            .authorize(async |_: Peer| pending::<bool>().await)
            .handler_timeout(Duration::from_millis(10))
    });
    pipe.connect().await.call("hello").await.unwrap_err();
    let summary = server.stop().await;
    assert_eq!((summary.stats.refused, summary.stats.requests), (1, 0));
    log.line_with("authorize took longer than 10ms");
}

async fn the_connections_of_one_user_are_bounded(kind: Kind) {
    let log = Log::start();
    let handler = |request: Bytes| async move { request };
    let (server, pipe) = start_with(kind, handler, |serving| serving.max_connections_per_user(2));
    let (mut one, mut other) = (pipe.connect().await, pipe.connect().await);
    for client in [&mut one, &mut other] {
        assert_eq!(client.call("hello").await.unwrap(), "hello");
    }
    pipe.connect().await.call("hello").await.unwrap_err();
    let line = log.line_with("has 2 connections already (max_connections_per_user)");
    assert!(line.starts_with("WARN"), "{line}");
    assert!(line.contains("peer.user="), "{line}");
    assert_eq!(other.call("hello").await.unwrap(), "hello");
    drop(one);
    // The server has yet to see that it is gone.
    let mut next = loop {
        let mut next = pipe.connect().await;
        if next.call("hello").await.is_ok() {
            break next;
        }
    };
    assert_eq!(next.call("hello").await.unwrap(), "hello");
    drop((other, next));
    let summary = server.stop().await;
    assert_eq!(summary.served, 3);
    assert!(summary.stats.refused > 0);
}

async fn code_that_has_the_connection_can_send_unasked(kind: Kind) {
    let code = |mut connection: Connection, _: Shutdown| async move {
        for number in 0..3 {
            connection.send(format!("news {number}")).await?;
        }
        let request = connection.recv().await?.unwrap();
        connection.send(request).await?;
        Ok::<_, BoxError>(())
    };
    let (server, pipe) = start_code!(kind, code);
    let mut client = pipe.connect().await;
    for number in 0..3 {
        let news = client.recv().await.unwrap().unwrap();
        assert_eq!(news, format!("news {number}"));
    }
    assert_eq!(client.call("thanks").await.unwrap(), "thanks");
    assert!(client.recv().await.unwrap().is_none());
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (1, 0));
    assert_eq!((summary.stats.requests, summary.stats.replies), (0, 0));
}

async fn code_learns_of_a_shutdown_and_may_finish(kind: Kind) {
    let code = |mut connection: Connection, mut shutdown: Shutdown| async move {
        let also_told = shutdown.clone();
        assert!(!shutdown.is_shutdown());
        connection.send("ready").await?;
        (&mut shutdown).await;
        assert!(shutdown.is_shutdown());
        // Once more, and in a clone from before.
        shutdown.await;
        also_told.await;
        connection.send("goodbye").await
    };
    let (server, pipe) = start_code!(kind, code);
    let (mut one, mut other) = (pipe.connect().await, pipe.connect().await);
    for client in [&mut one, &mut other] {
        assert_eq!(client.recv().await.unwrap().unwrap(), "ready");
    }
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (2, 0));
    for client in [&mut one, &mut other] {
        assert_eq!(client.recv().await.unwrap().unwrap(), "goodbye");
        assert!(client.recv().await.unwrap().is_none());
    }
}

async fn code_that_does_not_end_is_cut_off(kind: Kind) {
    let code = |mut connection: Connection, _: Shutdown| async move {
        connection.send("ready").await.unwrap();
        pending::<()>().await;
    };
    let (server, pipe) = start_code!(kind, code, drain_timeout(Duration::from_millis(10)));
    let mut client = pipe.connect().await;
    assert_eq!(client.recv().await.unwrap().unwrap(), "ready");
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (0, 1));
    assert!(client.recv().await.unwrap().is_none());
}

async fn code_that_fails_or_panics_costs_its_own_connection_and_is_logged(kind: Kind) {
    let log = Log::start();
    let code = |mut connection: Connection, _: Shutdown| {
        assert!(connection.id() != 3, "at once, as asked for");
        async move {
            while let Some(request) = connection.recv().await? {
                assert!(request != "panic", "as asked for");
                if request == "fail" {
                    return Err(BoxError::from("failed, as asked for"));
                }
                connection.send(request).await?;
            }
            Ok(())
        }
    };
    let (server, pipe) = start_code!(kind, code);
    let mut other = pipe.connect().await;
    assert_eq!(other.call("well").await.unwrap(), "well");
    for request in ["panic", "panic at once", "fail"] {
        let mut client = pipe.connect().await;
        // The server may have closed before this is sent.
        _ = client.send(request).await;
        assert!(!matches!(client.recv().await, Ok(Some(_))), "{request}");
        assert_eq!(other.call("well").await.unwrap(), "well");
    }
    drop(other);
    assert_eq!(server.stop().await.served, 4);
    for (id, reason) in [
        (2, "panicked: as asked for"),
        (3, "panicked: at once, as asked for"),
        (4, "failed, as asked for"),
    ] {
        let line = log.line_with(reason);
        assert!(line.starts_with("ERROR"), "{line}");
        assert!(line.contains(&format!("connection.id={id}")), "{line}");
    }
}

async fn a_client_knows_its_server_and_gives_its_connection(kind: Kind) {
    let (_server, pipe) = start(kind, |request: Bytes| async move { request });
    let options = ClientOptions::new().max_message_size(77);
    let mut client = pipe.connect_with(options).await;
    assert_eq!(client.call("hello").await.unwrap(), "hello");
    assert_eq!(client.peer().unwrap().process_id(), std::process::id());
    let mut connection = client.into_connection();
    assert_eq!(connection.max_message_size(), 77);
    connection.send("again").await.unwrap();
    assert_eq!(connection.recv().await.unwrap().unwrap(), "again");
}

async fn a_client_sends_nothing_to_a_server_that_it_does_not_trust(kind: Kind) {
    let (server, pipe) = start(kind, |request: Bytes| async move { request });
    let owner = pipe.connect().await.peer().unwrap().user().clone();
    for trust in [
        Trust::System,
        Trust::CurrentUser,
        Trust::User(owner.clone()),
        Trust::Anyone,
    ] {
        let mut client = pipe.connect_with(ClientOptions::new().trust(trust)).await;
        assert_eq!(client.call("hello").await.unwrap(), "hello");
    }
    // The server of a memory pipe is in this process and not asked for.
    if matches!(pipe, Pipe::Named(_)) {
        let nobody = if cfg!(windows) {
            "S-1-5-7"
        } else {
            "4294967294"
        };
        let options = ClientOptions::new().trust(nobody.parse().unwrap());
        match pipe.try_connect(options).await {
            Err(ConnectError::Untrusted { owner: named, .. }) => assert_eq!(named, owner),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.stop().await.stats.requests, 4);
}

#[tokio::test]
async fn a_handler_is_called_without_a_server() {
    let handler = |seen: Session<Mutex<Vec<String>>>, peer: Peer, text: String| async move {
        assert_eq!(peer.process_id(), std::process::id());
        seen.lock().unwrap().push(text.clone());
        text.to_uppercase()
    };
    let request = Request::new("hello", Peer::current().unwrap());
    let without = Handler::call(&handler, request.clone()).await.unwrap_err();
    let rejection = without.downcast::<Rejection>().unwrap();
    assert!(rejection.into_reason().is::<SessionRejection>());
    let request = request.with_session(Mutex::new(Vec::<String>::new()));
    let reply = Handler::call(&handler, request).await.unwrap();
    assert_eq!(reply.message().unwrap(), "HELLO");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_cut_off_after_the_default_write_timeout() {
    let (listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
    tokio::spawn(serve(listener, |request: Bytes| async move { request }).into_future());
    let mut client = pipe.connect().await.unwrap();
    let begun = Instant::now();
    while client.send(message(0, 65_536)).await.is_ok() {}
    assert!(begun.elapsed() >= defaults::WRITE_TIMEOUT);
    assert!(begun.elapsed() < defaults::WRITE_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_busy_pipe_is_waited_for_as_long_as_the_default_connect_timeout() {
    let options = ListenerOptions::new().max_instances(1);
    let (mut listener, pipe) = options.bind_memory().unwrap();
    let _client = pipe.connect().await.unwrap();
    let _connection = listener.accept().await.unwrap();
    let begun = Instant::now();
    let refused = pipe.connect().await;
    assert!(matches!(refused, Err(ConnectError::Busy { .. })));
    assert!(begun.elapsed() >= defaults::CONNECT_TIMEOUT);
    assert!(begun.elapsed() < defaults::CONNECT_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test]
async fn max_instances_is_any_number_and_255_is_no_exception() {
    let options = ListenerOptions::new().max_instances(255);
    let (mut listener, pipe) = options.bind_memory().unwrap();
    let mut connections = Vec::new();
    for _ in 0..255 {
        let client = pipe.connect().await.unwrap();
        connections.push((client, listener.accept().await.unwrap()));
    }
    let hurried = ClientOptions::new().connect_timeout(Duration::ZERO);
    let refused = hurried.connect_memory(&pipe).await;
    assert!(matches!(refused, Err(ConnectError::Busy { .. })));
    connections.pop();
    hurried.connect_memory(&pipe).await.unwrap();

    let name = unique_name();
    let options = ListenerOptions::new().max_instances(1000);
    let _listener = options.bind(&name.text).unwrap();
}

#[tokio::test]
async fn a_size_that_no_engine_carries_is_an_option_error_on_every_system() {
    let name = unique_name();
    let most = usize::MAX / 2;
    let options = ListenerOptions::new().max_message_size(most);
    let error = options.bind(&name.text).unwrap_err();
    assert!(matches!(error, BindError::Option { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("max_message_size is "), "{text}");

    let options = ClientOptions::new().max_message_size(most);
    let error = options.connect(&name.text).await.unwrap_err();
    assert!(matches!(error, ConnectError::Option { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("max_message_size is "), "{text}");
}

#[test]
fn connecting_outside_a_runtime_is_an_error_and_no_panic() {
    let options = ClientOptions::new();
    let mut connecting = pin!(options.connect("nowhere"));
    let polled = connecting
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    assert!(
        matches!(polled, Poll::Ready(Err(ConnectError::NoRuntime))),
        "{polled:?}"
    );
}

#[test]
fn an_error_leaves_the_reason_to_its_source() {
    let reason = || io::Error::other("the reason");
    for error in [
        Box::new(RecvError::Io(reason())) as BoxError,
        Box::new(SendError::Io(reason())),
        Box::new(CallError::Recv(RecvError::Io(reason()))),
    ] {
        assert!(!error.to_string().contains("the reason"), "{error}");
        assert_eq!(error.source().unwrap().to_string(), "the reason");
    }
}

#[cfg(windows)]
#[tokio::test]
async fn a_pipe_of_another_machine_is_not_served_here() {
    let error = pipe_server::PipeListener::bind(r"\\elsewhere\pipe\x").unwrap_err();
    assert!(matches!(error, BindError::Remote { .. }), "{error:?}");
}

#[cfg(windows)]
#[tokio::test]
async fn a_client_sends_its_credentials_to_another_machine_only_if_told_to() {
    // No machine is asked: the name is refused before.
    let connecting = pipe_server::Client::connect(r"\\host.invalid\pipe\x");
    let error = connecting.await.unwrap_err();
    assert!(matches!(error, ConnectError::Remote { .. }), "{error:?}");
    assert!(error.to_string().contains("allow_remote"), "{error}");
}

#[cfg(target_os = "linux")]
mod paths {
    use std::{
        error::Error as _,
        ffi::OsStr,
        fs::{self, Permissions},
        os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    };

    use pipe_server::{Client, PipeListener};

    #[tokio::test]
    async fn a_path_need_not_be_unicode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(OsStr::from_bytes(b"a\xffb"));
        let mut listener = PipeListener::bind(&path).unwrap();
        assert_eq!(listener.path(), path);
        let mut client = Client::connect(path.as_path()).await.unwrap();
        client.send("hello").await.unwrap();
        let mut connection = listener.accept().await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), "hello");
    }

    /// The directory of a path is the user's affair, whatever it is called.
    #[tokio::test]
    async fn a_path_in_a_directory_that_is_called_like_ours_is_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("pipe-server");
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o775)).unwrap();
        let path = directory.join("x");
        let _listener = PipeListener::bind(&path).unwrap();
        Client::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_stream_socket_is_explained() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stream");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = Client::connect(&path).await.unwrap_err();
        let reason = error.source().unwrap().to_string();
        assert!(
            reason.contains("does not preserve message boundaries"),
            "{reason}"
        );
    }
}
