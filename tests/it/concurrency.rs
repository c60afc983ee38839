//! Several requests of one client in the handler at once, on every engine.

use std::{
    collections::HashMap,
    future::{IntoFuture, pending, poll_fn},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pipe_server::{
    Bytes, Client, ListenerOptions, PipeListener, Reason, Serve, Stats, Summary, serve,
};
use tokio::{
    sync::{Barrier, Semaphore, mpsc, oneshot},
    task::{JoinHandle, yield_now},
    time::{Instant, sleep},
};
use tracing::Level;

use support::{Kind, Pipe, log::Log, message, on_every_engine};

on_every_engine! {
    the_replies_come_in_the_order_of_the_requests,
    requests_begin_in_order_and_no_more_than_allowed_are_in_flight,
    a_reply_that_is_first_in_line_is_sent_while_others_are_in_flight,
    what_is_before_a_failure_is_answered_and_what_is_behind_it_is_cancelled,
    what_is_before_a_reply_that_cannot_be_sent_is_answered,
    what_is_before_a_message_over_the_limit_is_answered,
    what_is_in_flight_when_the_conversation_ends_is_answered,
    what_is_in_flight_at_a_shutdown_is_answered_and_no_more_can_be_sent,
    what_is_in_flight_after_the_drain_timeout_is_cut_off,
    a_client_that_leaves_is_served_to_the_end,
    all_are_cancelled_when_their_client_leaves_if_asked,
    a_client_that_does_not_read_is_cut_off_with_requests_in_flight,
    few_replies_wait_for_a_client_that_does_not_read,
    waiting_replies_are_buffered_bytes,
    a_client_with_a_stuck_request_is_read_again_once_bytes_are_free,
    many_clients_with_many_requests_each_get_their_replies,
}

type Events = mpsc::UnboundedReceiver<String>;

/// Handles each request once its gate is open, and says when one begins and how it ends.
struct Desk {
    events: mpsc::UnboundedSender<String>,
    gates: Mutex<HashMap<Bytes, Arc<Semaphore>>>,
}

impl Desk {
    fn new() -> (Arc<Self>, Events) {
        let (events, received) = mpsc::unbounded_channel();
        let gates = Mutex::default();
        (Arc::new(Self { events, gates }), received)
    }

    fn gate(&self, request: Bytes) -> Arc<Semaphore> {
        let mut gates = self.gates.lock().unwrap();
        let gate = gates.entry(request);
        Arc::clone(gate.or_insert_with(|| Arc::new(Semaphore::new(0))))
    }

    fn open(&self, request: &'static str) {
        self.say(request.as_bytes(), "opened");
        self.gate(request.into()).add_permits(1);
    }

    fn say(&self, request: &[u8], event: &str) {
        let request = String::from_utf8_lossy(request);
        _ = self.events.send(format!("{request} {event}"));
    }

    async fn handle(self: Arc<Self>, request: Bytes) -> io::Result<Bytes> {
        struct Ended<'a>(&'a Desk, Bytes, &'static str);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.say(&self.1, self.2);
            }
        }
        self.say(&request, "begins");
        let mut ended = Ended(&self, request.clone(), "cancelled");
        let gate = self.gate(request.clone());
        gate.acquire().await.unwrap().forget();
        ended.2 = "done";
        match &request[..] {
            b"fail" => Err(io::Error::other("as asked")),
            b"panic" => panic!("as asked"),
            b"empty" => Ok(Bytes::new()),
            _ => Ok(request),
        }
    }
}

struct Server {
    stop: oneshot::Sender<()>,
    stats: Stats,
    task: JoinHandle<Summary>,
}

impl Server {
    async fn stop(self) -> Summary {
        _ = self.stop.send(());
        self.task.await.unwrap()
    }
}

/// Serves with the given changes to the server's options.
macro_rules! start {
    ($listener:expr, $handler:expr $(, $option:ident($value:expr))*) => {
        spawn(serve($listener, $handler)$(.$option($value))*)
    };
}

fn spawn<H: pipe_server::Handler<T>, T: 'static>(serving: Serve<H, T>) -> Server {
    let (stop, stopped) = oneshot::channel::<()>();
    let stats = serving.stats();
    let serving = serving.with_graceful_shutdown(async { _ = stopped.await });
    let task = tokio::spawn(serving.into_future());
    Server { stop, stats, task }
}

/// A server whose requests wait at a desk.
macro_rules! start_desk {
    ($kind:expr $(, $option:ident($value:expr))*) => {{
        let (listener, pipe) = $kind.bind(ListenerOptions::new().max_message_size(4000));
        let (desk, events) = Desk::new();
        let answering = Arc::clone(&desk);
        let handler = move |request: Bytes| Arc::clone(&answering).handle(request);
        (start!(listener, handler $(, $option($value))*), pipe, desk, events)
    }};
}

async fn send_all(client: &mut Client, requests: &[&'static str]) {
    for request in requests {
        client.send(*request).await.unwrap();
    }
}

async fn expect_replies(client: &mut Client, replies: &[&str]) {
    for reply in replies {
        assert_eq!(client.recv().await.unwrap().unwrap(), reply);
    }
}

async fn expect_events(events: &mut Events, expected: &[&str]) {
    for expected in expected {
        assert_eq!(events.recv().await.unwrap(), *expected);
    }
}

/// Gives the server time for what it must not do.
async fn let_others_run() {
    for _ in 0..100 {
        yield_now().await;
    }
}

async fn the_replies_come_in_the_order_of_the_requests(kind: Kind) {
    let (server, pipe, desk, mut events) = start_desk!(kind, concurrency(3));
    let mut client = pipe.connect().await;
    send_all(&mut client, &["one", "two", "three"]).await;
    expect_events(&mut events, &["one begins", "two begins", "three begins"]).await;
    for request in ["three", "two", "one"] {
        desk.open(request);
        let [opened, done] = ["opened", "done"].map(|event| format!("{request} {event}"));
        expect_events(&mut events, &[&opened, &done]).await;
    }
    expect_replies(&mut client, &["one", "two", "three"]).await;
    drop(client);
    let summary = server.stop().await;
    assert_eq!((summary.stats.requests, summary.stats.replies), (3, 3));
}

async fn requests_begin_in_order_and_no_more_than_allowed_are_in_flight(kind: Kind) {
    let (_server, pipe, desk, mut events) = start_desk!(kind, concurrency(3));
    let mut client = pipe.connect().await;
    send_all(&mut client, &["1", "2", "3", "4", "5"]).await;
    expect_events(&mut events, &["1 begins", "2 begins", "3 begins"]).await;
    // Replies that wait for an earlier one count.
    for request in ["2", "3"] {
        desk.open(request);
    }
    expect_events(&mut events, &["2 opened", "3 opened", "2 done", "3 done"]).await;
    let_others_run().await;
    desk.open("1");
    expect_events(&mut events, &["1 opened", "1 done", "4 begins", "5 begins"]).await;
    expect_replies(&mut client, &["1", "2", "3"]).await;
    desk.open("4");
    desk.open("5");
    expect_replies(&mut client, &["4", "5"]).await;
}

async fn a_reply_that_is_first_in_line_is_sent_while_others_are_in_flight(kind: Kind) {
    let (_server, pipe, desk, mut events) = start_desk!(kind, concurrency(8));
    let mut client = pipe.connect().await;
    send_all(&mut client, &["1", "2"]).await;
    expect_events(&mut events, &["1 begins", "2 begins"]).await;
    desk.open("1");
    expect_replies(&mut client, &["1"]).await;
    // The place of the first one is used while the second one is still in the handler.
    send_all(&mut client, &["3"]).await;
    expect_events(&mut events, &["1 opened", "1 done", "3 begins"]).await;
    desk.open("2");
    expect_replies(&mut client, &["2"]).await;
    desk.open("3");
    expect_replies(&mut client, &["3"]).await;
}

async fn what_is_before_a_failure_is_answered_and_what_is_behind_it_is_cancelled(kind: Kind) {
    for (failure, reason) in [("fail", Reason::Handler), ("panic", Reason::Panic)] {
        let (server, pipe, desk, mut events) = start_desk!(kind, concurrency(4));
        let mut client = pipe.connect().await;
        for request in ["one", "two", failure, "behind", "never"] {
            client.send(request).await.unwrap();
        }
        for request in ["one", "two", failure, "behind"] {
            let begins = format!("{request} begins");
            expect_events(&mut events, &[&begins]).await;
        }
        desk.open(failure);
        let [opened, done] = ["opened", "done"].map(|event| format!("{failure} {event}"));
        expect_events(&mut events, &[&opened, &done, "behind cancelled"]).await;
        // Their places are free, and nobody takes them.
        let_others_run().await;
        desk.open("two");
        desk.open("one");
        expect_replies(&mut client, &["one", "two"]).await;
        assert!(client.recv().await.unwrap().is_none());
        let summary = server.stop().await;
        assert_eq!((summary.stats.requests, summary.stats.replies), (4, 2));
        assert_eq!(summary.stats.errors.get(reason), 1);
        assert_eq!(summary.stats.errors.iter().count(), 1);
    }
}

async fn what_is_before_a_reply_that_cannot_be_sent_is_answered(kind: Kind) {
    let (server, pipe, desk, mut events) = start_desk!(kind, concurrency(3));
    let mut client = pipe.connect().await;
    send_all(&mut client, &["one", "empty", "behind"]).await;
    let begin = ["one begins", "empty begins", "behind begins"];
    expect_events(&mut events, &begin).await;
    desk.open("empty");
    desk.open("one");
    expect_replies(&mut client, &["one"]).await;
    assert!(client.recv().await.unwrap().is_none());
    let summary = server.stop().await;
    assert_eq!(summary.stats.errors.get(Reason::EmptyReply), 1);
    assert_eq!(summary.stats.replies, 1);
}

async fn what_is_before_a_message_over_the_limit_is_answered(kind: Kind) {
    let (server, pipe, desk, mut events) = start_desk!(kind, concurrency(3));
    let mut client = pipe.connect().await;
    send_all(&mut client, &["one", "two"]).await;
    expect_events(&mut events, &["one begins", "two begins"]).await;
    client.send(message(0, 4001)).await.unwrap();
    let_others_run().await;
    desk.open("two");
    desk.open("one");
    expect_replies(&mut client, &["one", "two"]).await;
    assert!(client.recv().await.unwrap().is_none());
    let summary = server.stop().await;
    assert_eq!(summary.stats.errors.get(Reason::RequestTooLong), 1);
    assert_eq!((summary.stats.requests, summary.stats.replies), (2, 2));
}

async fn what_is_in_flight_when_the_conversation_ends_is_answered(kind: Kind) {
    for cancels in [false, true] {
        let (server, pipe, desk, mut events) =
            start_desk!(kind, concurrency(2), cancel_on_disconnect(cancels));
        let mut client = pipe.connect().await;
        send_all(&mut client, &["1", "2", "3"]).await;
        client.finish().await.unwrap();
        expect_events(&mut events, &["1 begins", "2 begins"]).await;
        let_others_run().await;
        for request in ["3", "2", "1"] {
            desk.open(request);
        }
        expect_replies(&mut client, &["1", "2", "3"]).await;
        assert!(client.recv().await.unwrap().is_none());
        let summary = server.stop().await;
        assert_eq!((summary.served, summary.stats.replies), (1, 3));
    }
}

async fn what_is_in_flight_at_a_shutdown_is_answered_and_no_more_can_be_sent(kind: Kind) {
    let (server, pipe, desk, mut events) = start_desk!(kind, concurrency(3));
    let mut client = pipe.connect().await;
    send_all(&mut client, &["1", "2"]).await;
    expect_events(&mut events, &["1 begins", "2 begins"]).await;
    _ = server.stop.send(());
    let mut sent = 2;
    while cfg!(not(windows)) && client.send("late").await.is_ok() {
        // The server was told, but its tasks have not run yet.
        sent += 1;
        yield_now().await;
    }
    desk.open("2");
    desk.open("1");
    (2..sent).for_each(|_| desk.open("late"));
    expect_replies(&mut client, &["1", "2"]).await;
    for _ in 2..sent {
        expect_replies(&mut client, &["late"]).await;
    }
    assert!(client.recv().await.unwrap().is_none());
    let summary = server.task.await.unwrap();
    assert_eq!((summary.served, summary.aborted), (1, 0));
    assert_eq!(
        (summary.stats.requests, summary.stats.replies),
        (sent, sent)
    );
}

async fn what_is_in_flight_after_the_drain_timeout_is_cut_off(kind: Kind) {
    let drain_timeout = Duration::from_millis(10);
    let (server, pipe, desk, mut events) =
        start_desk!(kind, concurrency(3), drain_timeout(drain_timeout));
    let mut client = pipe.connect().await;
    send_all(&mut client, &["1", "2", "3"]).await;
    expect_events(&mut events, &["1 begins", "2 begins", "3 begins"]).await;
    desk.open("1");
    expect_replies(&mut client, &["1"]).await;
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.aborted), (0, 1));
    assert_eq!((summary.stats.requests, summary.stats.replies), (3, 1));
    expect_events(&mut events, &["1 opened", "1 done"]).await;
    expect_events(&mut events, &["2 cancelled", "3 cancelled"]).await;
    assert!(client.recv().await.unwrap().is_none());
}

async fn a_client_that_leaves_is_served_to_the_end(kind: Kind) {
    // Without replies, of which the first one could not be sent.
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let (begun, mut events) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let server = start!(
        listener,
        move |request: Bytes| {
            let (begun, gate) = (begun.clone(), Arc::clone(&gate));
            async move {
                _ = begun.send(request.clone());
                gate.acquire().await.unwrap().forget();
                _ = begun.send(request);
            }
        },
        concurrency(2)
    );
    let mut client = pipe.connect().await;
    send_all(&mut client, &["1", "2", "3"]).await;
    drop(client);
    for expected in ["1", "2"] {
        assert_eq!(events.recv().await.unwrap(), expected);
    }
    let_others_run().await;
    opened.add_permits(3);
    for _ in 0..4 {
        events.recv().await.unwrap();
    }
    let summary = server.stop().await;
    assert_eq!((summary.served, summary.stats.requests), (1, 3));
}

async fn all_are_cancelled_when_their_client_leaves_if_asked(kind: Kind) {
    // With fewer in flight than allowed, with as many and further ones behind them, and after the
    // end.
    for (further, finishes) in [(0, false), (1, false), (2, false), (100, false), (0, true)] {
        let (server, pipe, desk, mut events) =
            start_desk!(kind, concurrency(3), cancel_on_disconnect(true));
        let mut client = pipe.connect().await;
        send_all(&mut client, &["1", "2"]).await;
        expect_events(&mut events, &["1 begins", "2 begins"]).await;
        // Its reply waits.
        desk.open("2");
        expect_events(&mut events, &["2 opened", "2 done"]).await;
        for number in 0..further {
            client.send("further").await.unwrap();
            if number == 0 {
                expect_events(&mut events, &["further begins"]).await;
            }
        }
        if finishes {
            client.finish().await.unwrap();
        }
        drop(client);
        expect_events(&mut events, &["1 cancelled"]).await;
        if further > 0 {
            expect_events(&mut events, &["further cancelled"]).await;
        }
        let summary = server.stop().await;
        assert_eq!((summary.served, summary.stats.replies), (1, 0));
        assert_eq!(summary.stats.requests, 2 + further.min(1));
        assert_eq!(summary.stats.errors.get(Reason::Disconnected), 1);
    }
}

async fn a_client_that_does_not_read_is_cut_off_with_requests_in_flight(kind: Kind) {
    let size = kind.longest().min(4000);
    let (listener, pipe) = kind.bind(ListenerOptions::new().max_instances(1).buffer_size(4096));
    let server = start!(
        listener,
        |request: Bytes| async move {
            yield_now().await;
            request
        },
        concurrency(4),
        write_timeout(Duration::from_millis(100))
    );
    let (mut receiver, mut sender) = pipe.connect().await.into_split();
    while sender.send(message(0, size)).await.is_ok() {}
    drop((sender, pipe.connect().await));
    while let Ok(Some(_)) = receiver.recv().await {}
    let summary = server.stop().await;
    assert_eq!(summary.aborted, 0);
    assert_eq!(summary.stats.errors.get(Reason::WriteTimeout), 1);
}

async fn few_replies_wait_for_a_client_that_does_not_read(kind: Kind) {
    let size = kind.longest().min(60_000);
    let concurrency = 5;
    let (listener, pipe) = kind.bind(ListenerOptions::new().max_instances(1).buffer_size(4096));
    let reply = Bytes::from(message(0, size));
    let server = start!(
        listener,
        move |_: Bytes| {
            let reply = reply.clone();
            async move {
                yield_now().await;
                reply
            }
        },
        concurrency(concurrency),
        write_timeout(Duration::from_millis(100))
    );
    let (mut receiver, mut sender) = pipe.connect().await.into_split();
    while sender.send("x").await.is_ok() {}
    drop((sender, pipe.connect().await));
    let mut received = 0;
    while let Ok(Some(_)) = receiver.recv().await {
        received += 1;
    }
    let unsent = server.stop().await.stats.requests - received;
    let most = concurrency + 256 * 1024 / size + 2;
    assert!(unsent <= most as u64, "{unsent} replies of {size} bytes");
}

/// Answers with as many bytes as the request asks for, 0 for never, and says when a handler is
/// done.
async fn answer_at_length(done: mpsc::UnboundedSender<usize>, request: String) -> Vec<u8> {
    let length = request.parse().unwrap();
    if length == 0 {
        pending::<()>().await;
    }
    _ = done.send(length);
    message(0, length)
}

fn serve_lengths(listener: PipeListener, limit: usize) -> (Server, mpsc::UnboundedReceiver<usize>) {
    let (done, was_done) = mpsc::unbounded_channel();
    let server = start!(
        listener,
        move |request: String| answer_at_length(done.clone(), request),
        concurrency(8),
        cancel_on_disconnect(true),
        max_buffered_bytes(limit)
    );
    (server, was_done)
}

async fn waiting_replies_are_buffered_bytes(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let (server, mut done) = serve_lengths(listener, 9000);
    let mut client = pipe.connect().await;
    send_all(&mut client, &["0", "3000", "3500", "4000", "1000"]).await;
    for length in [3000, 3500, 4000] {
        assert_eq!(done.recv().await, Some(length));
    }
    let_others_run().await;
    // No more of that client is read, and the others have their turn.
    assert_eq!(server.stats.snapshot().requests, 4);
    let mut other = pipe.connect().await;
    for _ in 0..3 {
        assert_eq!(other.call("2000").await.unwrap().len(), 2000);
        assert_eq!(done.recv().await, Some(2000));
    }
    assert_eq!(server.stats.snapshot().requests, 7);
    drop(client);
    drop(other);
    server.stop().await;
}

async fn a_client_with_a_stuck_request_is_read_again_once_bytes_are_free(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let (server, mut done) = serve_lengths(listener, 7000);
    let mut holder = pipe.connect().await;
    send_all(&mut holder, &["0", "4000", "3900"]).await;
    for length in [4000, 3900] {
        assert_eq!(done.recv().await, Some(length));
    }
    // It is read only while it holds little.
    let mut stuck = pipe.connect().await;
    stuck.send("0".repeat(1000)).await.unwrap();
    stuck.send("3000").await.unwrap();
    while server.stats.snapshot().requests < 4 {
        yield_now().await;
    }
    let_others_run().await;
    assert!(done.try_recv().is_err());
    // Nor does it keep anyone from being read.
    assert_eq!(server.stats.snapshot().requests, 4);
    drop(holder);
    assert_eq!(done.recv().await, Some(3000));
    drop(stuck);
    server.stop().await;
}

async fn many_clients_with_many_requests_each_get_their_replies(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let _server = start!(
        listener,
        |request: Bytes| async move {
            for _ in 0..request[0] % 5 {
                yield_now().await;
            }
            request
        },
        concurrency(7)
    );
    let pipe = Arc::new(pipe);
    let requests = if cfg!(miri) { 20 } else { 200 };
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let pipe = Arc::clone(&pipe);
            tokio::spawn(async move {
                let (mut receiver, mut sender) = pipe.connect().await.into_split();
                let message = move |number: usize| message(client * 1000 + number, 1 + number * 7);
                let sending = tokio::spawn(async move {
                    for number in 0..requests {
                        sender.send(message(number)).await.unwrap();
                    }
                    sender
                });
                for number in 0..requests {
                    let reply = receiver.recv().await.unwrap().unwrap();
                    assert!(reply == message(number), "client {client}, reply {number}");
                }
                sending.await.unwrap();
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
}

/// A client of a server in memory, whose handler sleeps for as many milliseconds as the request
/// says.
async fn start_sleeper(
    change: impl FnOnce(Serve<Sleeper, (String,)>) -> Serve<Sleeper, (String,)>,
) -> (Server, Client) {
    let (listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
    let server = spawn(change(serve(listener, |request| Box::pin(nap(request)))));
    (server, pipe.connect().await.unwrap())
}

type Sleeper = fn(String) -> Pin<Box<dyn Future<Output = String> + Send>>;

async fn nap(request: String) -> String {
    sleep(Duration::from_millis(request.parse().unwrap())).await;
    request
}

#[tokio::test(start_paused = true)]
async fn ten_requests_that_wait_50_ms_each_take_50_ms() {
    for (concurrency, expected) in [(10, 50), (5, 100), (1, 500)] {
        let (_server, mut client) = start_sleeper(|serving| serving.concurrency(concurrency)).await;
        let begun = Instant::now();
        send_all(&mut client, &["50"; 10]).await;
        expect_replies(&mut client, &["50"; 10]).await;
        assert_eq!(begun.elapsed().as_millis() / 10 * 10, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_handler_timeout_holds_for_each_request() {
    let time = Duration::from_millis(100);
    let (server, mut client) =
        start_sleeper(|serving| serving.concurrency(4).handler_timeout(time)).await;
    let begun = Instant::now();
    // Each waits for the one before it in line, which does not count.
    for request in ["90", "10", "80"] {
        client.send(request).await.unwrap();
        sleep(Duration::from_millis(40)).await;
    }
    expect_replies(&mut client, &["90", "10", "80"]).await;
    send_all(&mut client, &["70", "5000", "90", "80"]).await;
    expect_replies(&mut client, &["70"]).await;
    assert!(client.recv().await.unwrap().is_none());
    assert!(begun.elapsed() < Duration::from_millis(300));
    let summary = server.stop().await;
    assert_eq!(summary.stats.errors.get(Reason::HandlerTimeout), 1);
    assert_eq!((summary.stats.requests, summary.stats.replies), (7, 4));
    // Those behind it have ended before it did.
    let longest = summary.stats.handler_time_longest;
    assert!(longest >= time && longest < time * 2, "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_is_not_idle_while_a_request_is_in_flight() {
    let time = Duration::from_millis(100);
    let (server, mut client) =
        start_sleeper(|serving| serving.concurrency(4).idle_timeout(time)).await;
    client.send("500").await.unwrap();
    sleep(Duration::from_millis(300)).await;
    client.send("10").await.unwrap();
    expect_replies(&mut client, &["500", "10"]).await;
    let begun = Instant::now();
    assert!(client.recv().await.unwrap().is_none());
    assert_eq!(begun.elapsed().as_millis() / 10 * 10, 100);
    let summary = server.stop().await;
    assert_eq!(summary.stats.errors.get(Reason::IdleTimeout), 1);
}

#[tokio::test(start_paused = true)]
async fn each_request_has_its_own_span_and_handler_time() {
    let log = Log::start_at(Level::DEBUG);
    let (server, mut client) = start_sleeper(|serving| serving.concurrency(4)).await;
    send_all(&mut client, &["30", "5", "10"]).await;
    expect_replies(&mut client, &["30", "5", "10"]).await;
    let spans = log.spans("request");
    assert_eq!(spans.len(), 3, "{spans:#?}");
    for (span, (request, reply, latency)) in spans.iter().zip([(2, 2, 30), (1, 1, 5), (2, 2, 10)]) {
        for field in [
            format!(" request.bytes={request}"),
            format!(" reply.bytes={reply}"),
            format!(" request.latency_us={latency}000"),
        ] {
            assert!(span.contains(&field), "{field} in {span}");
        }
    }
    let summary = server.stop().await;
    assert_eq!(
        summary.stats.handler_time_longest,
        Duration::from_millis(30)
    );
}

#[tokio::test(start_paused = true)]
async fn only_the_handlers_that_were_woken_are_polled() {
    for concurrency in [1, 50] {
        let (listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
        let polls = Arc::new(AtomicUsize::new(0));
        let polled = Arc::clone(&polls);
        let handler = move |request: String| {
            let polls = Arc::clone(&polled);
            let mut napping = Box::pin(nap(request));
            poll_fn(move |cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                napping.as_mut().poll(cx)
            })
        };
        let _server = start!(listener, handler, concurrency(concurrency));
        let mut client = pipe.connect().await.unwrap();
        for number in (1..=50).rev() {
            client.send((number * 10).to_string()).await.unwrap();
            yield_now().await;
        }
        for number in (1..=50).rev() {
            let reply = client.recv().await.unwrap().unwrap();
            assert_eq!(reply, (number * 10).to_string());
        }
        // Once when it begins, and once when its time is over.
        assert_eq!(polls.load(Ordering::Relaxed), 100);
    }
}

#[tokio::test]
async fn a_barrier_of_as_many_handlers_as_allowed_opens() {
    let (listener, pipe) = ListenerOptions::new().bind_memory().unwrap();
    let barrier = Arc::new(Barrier::new(100));
    let handler = move |request: Bytes| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            request
        }
    };
    let _server = start!(listener, handler, concurrency(100));
    let mut client = pipe.connect().await.unwrap();
    send_all(&mut client, &["x"; 100]).await;
    expect_replies(&mut client, &["x"; 100]).await;
}

#[tokio::test]
#[should_panic = "concurrency(0)"]
async fn a_concurrency_of_0_panics() {
    let (listener, _pipe): (_, Pipe) = Kind::Memory.bind(ListenerOptions::new());
    let serving: Serve<_, _> = serve(listener, |request: Bytes| async move { request });
    _ = serving.concurrency(0);
}
