//! A client that many tasks use at once: every reply reaches its own call, whatever is dropped or
//! fails.

use std::{
    collections::BTreeMap,
    future::{Future, IntoFuture, pending, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use fastrand::Rng;
use pipe_server::{
    BoxError, Bytes, ClientOptions, ConnectError, Connection, Faults, ListenerOptions, MemoryPipe,
    PipeListener, RecvError, SendError, SharedCallError, SharedCallErrorKind, SharedClient,
    Shutdown, Trust, serve, serve_connections,
};
use tokio::{
    runtime::Builder,
    sync::{Semaphore, mpsc, oneshot},
    task::{JoinHandle, JoinSet, yield_now},
    time::{Instant, sleep, timeout},
};

use support::{
    Kind, message, on_every_engine,
    server::{Server, play},
    with_seeds,
};

on_every_engine! {
    many_tasks_get_their_own_replies,
    dropped_calls_leave_the_replies_in_order,
    a_connection_that_the_server_closed_is_opened_again,
    a_client_that_is_shut_down_completes_its_calls,
    nothing_is_sent_to_a_server_that_is_not_trusted,
}

/// Serves each connection with `code`.
fn serve_with<F>(listener: PipeListener, code: impl Fn(Connection) -> F + Send + Sync + 'static)
where
    F: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let serving = serve_connections(listener, move |connection, _: Shutdown| code(connection));
    tokio::spawn(serving.into_future());
}

fn memory() -> (PipeListener, MemoryPipe) {
    ListenerOptions::new().bind_memory().unwrap()
}

fn shared(pipe: &MemoryPipe) -> SharedClient {
    let options = ClientOptions::new().shared();
    options.connect_memory_lazy(pipe).unwrap()
}

/// Calls in a task of its own.
fn call(
    client: &SharedClient,
    request: impl Into<Bytes>,
) -> JoinHandle<Result<Bytes, SharedCallError>> {
    let (client, request) = (client.clone(), request.into());
    tokio::spawn(async move { client.call(request).await })
}

/// Lets everything run that can run without time passing.
async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

async fn many_tasks_get_their_own_replies(kind: Kind) {
    for (connections, most) in [(1, 256), (4, 256), (3, 2), (1, 1)] {
        let (listener, pipe) = kind.bind(ListenerOptions::new());
        let server = Server::echo(listener);
        let options = ClientOptions::new().shared();
        let client = pipe.shared(&options.connections(connections).max_in_flight(most));
        let mut tasks = JoinSet::new();
        for task in 0..32 {
            let client = client.clone();
            tasks.spawn(async move {
                for number in 0..8 {
                    let length = [1, 9, 500, 4000][(task + number) % 4];
                    let request = Bytes::from(message(task * 8 + number, length));
                    assert_eq!(client.call(request.clone()).await.unwrap(), request);
                }
            });
        }
        tasks.join_all().await;
        drop(client);
        let summary = server.stop().await;
        assert_eq!(summary.stats.requests, 32 * 8);
        assert!((1..=connections as u64).contains(&summary.served));
    }
}

async fn dropped_calls_leave_the_replies_in_order(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let server = Server::echo(listener);
    let client = pipe.shared(&ClientOptions::new().shared().max_in_flight(4));
    let mut tasks = JoinSet::new();
    for task in 0..8_usize {
        let client = client.clone();
        tasks.spawn(async move {
            for number in 0..20 {
                let request = Bytes::from(message(task * 20 + number, 100 + task));
                if let Some(reply) = polls(client.call(request.clone()), number % 5).await {
                    assert_eq!(reply.unwrap(), request);
                }
                assert_eq!(client.call(request.clone()).await.unwrap(), request);
            }
        });
    }
    tasks.join_all().await;
    drop(client);
    let summary = server.stop().await;
    assert!((160..=320).contains(&summary.stats.requests), "{summary:?}");
}

/// Drops a future that is still pending when it was polled `count` times.
async fn polls<F: Future>(future: F, count: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = count;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn a_connection_that_the_server_closed_is_opened_again(kind: Kind) {
    // With one instance, the next connection needs the last one to be closed.
    let (listener, pipe) = kind.bind(ListenerOptions::new().max_instances(1));
    serve_with(listener, |mut connection| async move {
        for _ in 0..3 {
            let Some(request) = connection.recv().await? else {
                return Ok(());
            };
            connection.send(request).await?;
        }
        Ok(())
    });
    let client = pipe
        .shared(&ClientOptions::new().shared())
        .retry_unanswered(true);
    for number in 0..20 {
        let request = Bytes::from(message(number, 50));
        assert_eq!(client.call(request.clone()).await.unwrap(), request);
    }
}

async fn a_client_that_is_shut_down_completes_its_calls(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let (received, mut receiving) = mpsc::unbounded_channel();
    let answering = Arc::new(Semaphore::new(0));
    let answers = Arc::clone(&answering);
    let serving = serve(listener, move |request: Bytes| {
        let (received, answers) = (received.clone(), Arc::clone(&answers));
        async move {
            _ = received.send(());
            answers.acquire().await?.forget();
            Ok::<_, BoxError>(request)
        }
    });
    tokio::spawn(serving.into_future());
    let client = pipe.shared(&ClientOptions::new().shared().max_in_flight(2));
    let calls = [call(&client, "first"), call(&client, "second")];
    receiving.recv().await.unwrap();
    let waits = call(&client, "waits for a slot");
    let mut shutting_down = Box::pin(client.shutdown());
    assert!(polls(shutting_down.as_mut(), 1).await.is_none());
    assert_not_sent(waits.await.unwrap(), |failure| {
        matches!(failure, SharedCallErrorKind::ShutDown)
    });
    assert_not_sent(client.call("late").await, |failure| {
        matches!(failure, SharedCallErrorKind::ShutDown)
    });
    answering.add_permits(2);
    shutting_down.await;
    for (call, expected) in calls.into_iter().zip(["first", "second"]) {
        assert_eq!(call.await.unwrap().unwrap(), expected);
    }
    client.shutdown().await;
}

fn assert_not_sent(
    result: Result<Bytes, SharedCallError>,
    expected: impl FnOnce(&SharedCallErrorKind) -> bool,
) {
    match result {
        Err(SharedCallError::NotExecuted(failure)) if expected(&failure) => {}
        other => panic!("{other:?}"),
    }
}

fn assert_unanswered(
    result: Result<Bytes, SharedCallError>,
    expected: impl FnOnce(&SharedCallErrorKind) -> bool,
) {
    match result {
        Err(SharedCallError::Unanswered(failure)) if expected(&failure) => {}
        other => panic!("{other:?}"),
    }
}

async fn nothing_is_sent_to_a_server_that_is_not_trusted(kind: Kind) {
    // A memory pipe's server is in this process.
    if kind == Kind::Memory {
        return;
    }
    let (mut listener, pipe) = kind.bind(ListenerOptions::new());
    #[cfg(not(windows))]
    let stranger = "12345".parse().unwrap();
    #[cfg(windows)]
    let stranger = "S-1-5-21-1-2-3-9999".parse().unwrap();
    let options = ClientOptions::new().trust(Trust::User(stranger));
    let client = pipe.shared(&options.shared());
    for _ in 0..3 {
        let (called, accepted) = tokio::join!(client.call("secret"), async {
            let mut connection = listener.accept().await.unwrap();
            connection.recv().await
        });
        assert_not_sent(called, |failure| match failure {
            SharedCallErrorKind::Connect(error) => {
                matches!(**error, ConnectError::Untrusted { .. })
            }
            _ => false,
        });
        assert!(accepted.unwrap().is_none(), "something was sent");
    }
}

/// Other threads take part.
mod threads {
    use super::*;

    on_every_engine! {
        threads:
        the_last_clone_closes_the_connections,
        a_client_outlives_the_runtime_of_its_connection,
    }

    async fn the_last_clone_closes_the_connections(kind: Kind) {
        let (listener, pipe) = kind.bind(ListenerOptions::new());
        let (ended, mut end) = mpsc::unbounded_channel();
        serve_with(listener, move |mut connection| {
            let ended = ended.clone();
            async move {
                while let Some(request) = connection.recv().await? {
                    connection.send(request).await?;
                }
                _ = ended.send(());
                Ok(())
            }
        });
        let client = pipe.shared(&ClientOptions::new().shared());
        let clone = client.clone();
        assert_eq!(client.call("one").await.unwrap(), "one");
        drop(client);
        assert_eq!(clone.call("two").await.unwrap(), "two");
        assert!(end.try_recv().is_err(), "closed too early");
        // Outside the runtime.
        let enter = support::same_system();
        let dropping = std::thread::spawn(move || {
            enter();
            drop(clone);
        });
        dropping.join().unwrap();
        end.recv().await.unwrap();
    }

    async fn a_client_outlives_the_runtime_of_its_connection(kind: Kind) {
        let (listener, pipe) = kind.bind(ListenerOptions::new());
        let _server = Server::echo(listener);
        let client = pipe.shared(&ClientOptions::new().shared());
        for workers in [0, 2] {
            let elsewhere = client.clone();
            let enter = support::same_system();
            let thread = std::thread::spawn(move || {
                enter();
                let mut builder = match workers {
                    0 => Builder::new_current_thread(),
                    _ => Builder::new_multi_thread(),
                };
                let runtime = builder.enable_all().build().unwrap();
                let reply = runtime.block_on(elsewhere.call("elsewhere"));
                assert_eq!(reply.unwrap(), "elsewhere");
            });
            // The server runs meanwhile.
            let joined = tokio::task::spawn_blocking(move || thread.join());
            joined.await.unwrap().unwrap();
            assert_eq!(client.call("here").await.unwrap(), "here");
        }
    }
}

// Named pipes of the system that runs the tests.
#[cfg(not(any(miri, pipe_model)))]
mod restarts {
    use support::{DEADLINE, unique_name};

    use super::*;

    /// Calls until the server is back.
    #[tokio::test]
    async fn calls_wait_while_the_server_restarts_if_asked_to() {
        let name = unique_name();
        let options = ClientOptions::new().wait_for_server(true);
        let client = options.shared().connections(2).connect_lazy(&name.text);
        let client = client.unwrap();
        for round in 0..5 {
            let early = call(&client, format!("early {round}"));
            let server = Server::echo(PipeListener::bind(&name.text).unwrap());
            let reply = timeout(DEADLINE, early).await.unwrap().unwrap();
            assert_eq!(reply.unwrap(), format!("early {round}"));
            assert_eq!(client.call("again").await.unwrap(), "again");
            server.stop().await;
        }
    }

    #[tokio::test]
    async fn calls_fail_as_not_sent_while_nobody_serves_the_pipe() {
        let name = unique_name();
        // Calls wait as long for a server that was there.
        let options = ClientOptions::new().connect_timeout(Duration::from_millis(100));
        let client = options.shared().connect_lazy(&name.text).unwrap();
        let is_missing = |failure: &SharedCallErrorKind| match failure {
            SharedCallErrorKind::Connect(error) => matches!(**error, ConnectError::NotFound { .. }),
            _ => false,
        };
        for _ in 0..3 {
            assert_not_sent(client.call("nobody").await, is_missing);
        }
        assert!(SharedClient::connect(&name.text).await.is_err());
        for _ in 0..3 {
            let server = Server::echo(PipeListener::bind(&name.text).unwrap());
            assert_eq!(client.call("somebody").await.unwrap(), "somebody");
            server.stop().await;
            assert_not_sent(client.call("nobody").await, is_missing);
        }
    }

    #[tokio::test]
    async fn an_eager_client_is_connected_before_its_first_call() {
        let name = unique_name();
        let mut listener = PipeListener::bind(&name.text).unwrap();
        let client = SharedClient::connect(&name.text).await.unwrap();
        let mut connection = listener.accept().await.unwrap();
        drop(client);
        assert!(connection.recv().await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn requests_are_sent_without_waiting_for_replies() {
    let (listener, pipe) = memory();
    serve_with(listener, |mut connection| async move {
        let mut requests = Vec::new();
        while requests.len() < 10 {
            requests.extend(connection.recv().await?);
        }
        for request in requests {
            connection.send(request).await?;
        }
        pending().await
    });
    let client = shared(&pipe);
    let calls: Vec<_> = (0..10_u8).map(|call| Bytes::from(vec![call; 9])).collect();
    let replies = calls.iter().map(|request| call(&client, request.clone()));
    for (reply, request) in replies.collect::<Vec<_>>().into_iter().zip(calls) {
        assert_eq!(reply.await.unwrap().unwrap(), request);
    }
}

/// Serves connections whose requests and replies the test sees and decides.
fn by_hand(listener: PipeListener) -> mpsc::UnboundedReceiver<Connection> {
    let (connected, connections) = mpsc::unbounded_channel();
    serve_with(listener, move |connection| {
        _ = connected.send(connection);
        async { Ok(()) }
    });
    connections
}

/// The requests that have arrived.
async fn arrived(connection: &mut Connection) -> Vec<Bytes> {
    let mut requests = Vec::new();
    while let Ok(Ok(Some(request))) = timeout(Duration::from_millis(1), connection.recv()).await {
        requests.push(request);
    }
    requests
}

#[tokio::test(start_paused = true)]
async fn calls_over_the_limit_wait_and_those_given_up_count_until_their_reply() {
    let (listener, pipe) = memory();
    let mut connections = by_hand(listener);
    let options = ClientOptions::new().shared().max_in_flight(3);
    let client = options.connect_memory(&pipe).await.unwrap();
    let mut connection = connections.recv().await.unwrap();
    let mut calls = Vec::new();
    for number in 0..10 {
        calls.push(call(&client, number.to_string()));
        settle().await;
    }
    assert_eq!(arrived(&mut connection).await, ["0", "1", "2"]);
    calls[1].abort();
    calls[4].abort();
    assert!(arrived(&mut connection).await.is_empty());
    // The reply to 0 lets 3 in; the one to 1, which nobody waits for, lets 5 in.
    connection.send("0").await.unwrap();
    assert_eq!(arrived(&mut connection).await, ["3"]);
    connection.send("1").await.unwrap();
    assert_eq!(arrived(&mut connection).await, ["5"]);
    for reply in ["2", "3", "5", "6", "7", "8", "9"] {
        connection.send(reply).await.unwrap();
        settle().await;
    }
    for (number, call) in calls.into_iter().enumerate() {
        match call.await {
            Ok(reply) => assert_eq!(reply.unwrap(), number.to_string()),
            Err(error) => assert!(error.is_cancelled() && [1, 4].contains(&number)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_in_a_full_pipe_is_not_sent() {
    let (listener, pipe) = ListenerOptions::new().buffer_size(1).bind_memory().unwrap();
    let mut connections = by_hand(listener);
    let client = shared(&pipe);
    let mut calls = Vec::new();
    for number in 0..6 {
        calls.push(call(&client, number.to_string()));
        settle().await;
    }
    // One is in the pipe, one in the engine.
    calls[1].abort();
    calls[2].abort();
    calls[4].abort();
    settle().await;
    let mut connection = connections.recv().await.unwrap();
    assert_eq!(arrived(&mut connection).await, ["0", "1", "3", "5"]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_be_executed_is_not_repeated_unless_asked_for() {
    let (listener, pipe) = memory();
    let mut connections = by_hand(listener);
    let client = shared(&pipe);
    let once = call(&client, "once");
    settle().await;
    let again = call(&client.clone().retry_unanswered(true), "again");
    let mut connection = connections.recv().await.unwrap();
    assert_eq!(arrived(&mut connection).await, ["once", "again"]);
    drop(connection);
    let is_closed =
        |failure: &SharedCallErrorKind| matches!(failure, SharedCallErrorKind::Connection(_));
    assert_unanswered(once.await.unwrap(), is_closed);
    let mut connection = connections.recv().await.unwrap();
    assert_eq!(arrived(&mut connection).await, ["again"]);
    connection.send("reply").await.unwrap();
    assert_eq!(again.await.unwrap().unwrap(), "reply");
}

#[tokio::test(start_paused = true)]
async fn a_request_is_sent_at_most_three_times() {
    let (listener, pipe) = memory();
    let mut connections = by_hand(listener);
    let client = shared(&pipe).retry_unanswered(true);
    let calling = call(&client, "crash");
    for _ in 0..3 {
        let mut connection = connections.recv().await.unwrap();
        assert_eq!(arrived(&mut connection).await, ["crash"]);
    }
    assert_unanswered(calling.await.unwrap(), |failure| {
        matches!(failure, SharedCallErrorKind::Connection(_))
    });
    assert!(connections.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_not_sent_is_sent_on_the_next_connection() {
    let (listener, pipe) = ListenerOptions::new().buffer_size(1).bind_memory().unwrap();
    let mut connections = by_hand(listener);
    let client = shared(&pipe);
    let mut calls = Vec::new();
    for number in 0..5 {
        calls.push(call(&client, number.to_string()));
        settle().await;
    }
    let mut connection = connections.recv().await.unwrap();
    assert_eq!(connection.recv().await.unwrap().unwrap(), "0");
    settle().await;
    // 0 was read and 1 is in the pipe. 2 waits in the engine: the pipe has no room for it.
    drop(connection);
    let mut calls = calls.into_iter();
    for _ in 0..2 {
        let lost = calls.next().unwrap().await.unwrap();
        assert_unanswered(lost, |failure| {
            matches!(failure, SharedCallErrorKind::Connection(_))
        });
    }
    let mut connection = connections.recv().await.unwrap();
    for (number, call) in (2..).zip(calls) {
        assert_eq!(
            connection.recv().await.unwrap().unwrap(),
            number.to_string()
        );
        connection.send(number.to_string()).await.unwrap();
        assert_eq!(call.await.unwrap().unwrap(), number.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_at_most_three_connections_that_bring_nothing() {
    let (listener, pipe) = memory();
    let connected = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connected);
    // Refuses everybody before a request is read.
    serve_with(listener, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Err("refused".into()) }
    });
    let client = shared(&pipe);
    let begun = Instant::now();
    for _ in 0..20 {
        let error = client.call("hello").await.unwrap_err();
        assert!(
            matches!(error.kind(), SharedCallErrorKind::Connection(_)),
            "{error:?}"
        );
    }
    let attempts = connected.load(Ordering::Relaxed);
    assert!((20..=60).contains(&attempts), "{attempts}");
    // 5, 10, 20, … milliseconds and from then on a second, each shortened by up to half.
    let (pauses, elapsed) = (attempts as u32 - 1, begun.elapsed());
    let longest = Duration::from_millis(1275) + Duration::from_secs(1) * pauses.saturating_sub(8);
    assert!((longest / 2..=longest + Duration::from_millis(100)).contains(&elapsed));
}

#[tokio::test(start_paused = true)]
async fn a_call_times_out_wherever_it_is() {
    let after = Duration::from_secs(1);
    let is_timeout =
        |failure: &SharedCallErrorKind| matches!(failure, SharedCallErrorKind::TimedOut { .. });
    let (listener, pipe) = ListenerOptions::new()
        .max_instances(1)
        .bind_memory()
        .unwrap();
    let occupant = pipe.connect().await.unwrap();
    let mut connections = by_hand(listener);
    let mut occupied = connections.recv().await.unwrap();
    let options = ClientOptions::new().call_timeout(after).shared();
    let client = options.max_in_flight(2).connect_memory_lazy(&pipe).unwrap();

    // Two wait for a connection, and one for a slot.
    let begun = Instant::now();
    let calls = [(); 3].map(|()| call(&client, "hello"));
    for call in calls {
        assert_not_sent(call.await.unwrap(), is_timeout);
    }
    assert!(begun.elapsed() < after * 2);
    drop(occupant);
    assert!(occupied.recv().await.unwrap().is_none());
    drop(occupied);

    let calls = ["sent", "sent too", "not sent"].map(|request| call(&client, request));
    let mut connection = connections.recv().await.unwrap();
    assert_eq!(arrived(&mut connection).await, ["sent", "sent too"]);
    let [first, second, third] = calls;
    assert_unanswered(first.await.unwrap(), is_timeout);
    assert_unanswered(second.await.unwrap(), is_timeout);
    assert_not_sent(third.await.unwrap(), is_timeout);

    // The late replies are dropped.
    connection.send("one").await.unwrap();
    connection.send("two").await.unwrap();
    let next = call(&client, "next");
    assert_eq!(connection.recv().await.unwrap().unwrap(), "next");
    connection.send("reply").await.unwrap();
    assert_eq!(next.await.unwrap().unwrap(), "reply");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_answering_gets_a_new_connection() {
    let after = Duration::from_secs(1);
    let (listener, pipe) = memory();
    let mut connections = by_hand(listener);
    let options = ClientOptions::new().call_timeout(after).shared();
    let client = options.max_in_flight(2).connect_memory_lazy(&pipe).unwrap();
    let first = call(&client, "first");
    let mut connection = connections.recv().await.unwrap();
    assert!(first.await.unwrap().is_err());
    assert_eq!(arrived(&mut connection).await, ["first"]);
    sleep(after / 2).await;
    let second = call(&client, "second");
    assert_unanswered(second.await.unwrap(), |failure| {
        matches!(failure, SharedCallErrorKind::Stalled { .. })
    });
    assert_eq!(arrived(&mut connection).await, ["second"]);
    let third = call(&client, "third");
    let mut connection = connections.recv().await.unwrap();
    assert_eq!(arrived(&mut connection).await, ["third"]);
    connection.send("reply").await.unwrap();
    assert_eq!(third.await.unwrap().unwrap(), "reply");
}

#[tokio::test(start_paused = true)]
async fn a_late_reply_shows_that_the_server_still_answers() {
    let after = Duration::from_secs(1);
    let (listener, pipe) = memory();
    let mut connections = by_hand(listener);
    let options = ClientOptions::new().call_timeout(after).shared();
    let client = options.connect_memory_lazy(&pipe).unwrap();
    let first = call(&client, "first");
    let mut connection = connections.recv().await.unwrap();
    assert!(first.await.unwrap().is_err());
    sleep(after * 9 / 10).await;
    let second = call(&client, "second");
    assert_eq!(arrived(&mut connection).await, ["first", "second"]);
    connection.send("late").await.unwrap();
    sleep(after / 2).await;
    connection.send("reply").await.unwrap();
    assert_eq!(second.await.unwrap().unwrap(), "reply");
}

#[tokio::test(start_paused = true)]
async fn connecting_ends_when_the_last_call_that_waits_is_dropped() {
    let options = ListenerOptions::new().max_instances(1);
    let (_listener, pipe) = options.bind_memory().unwrap();
    let _occupant = pipe.connect().await.unwrap();
    let options = ClientOptions::new().connect_timeout(None).shared();
    let client = options.connect_memory_lazy(&pipe).unwrap();
    let calls = ["one", "two"].map(|request| call(&client, request));
    settle().await;
    for call in calls {
        assert!(!call.is_finished());
        call.abort();
    }
    // It waits for connections that are being opened.
    let shut_down = timeout(Duration::from_secs(1), client.shutdown()).await;
    assert!(shut_down.is_ok(), "it is still connecting");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_nobody_asked_for_closes_the_connection() {
    let (listener, pipe) = memory();
    let mut connections = by_hand(listener);
    let client = shared(&pipe);
    let is_out_of_step =
        |failure: &SharedCallErrorKind| matches!(failure, SharedCallErrorKind::OutOfStep);

    let first = call(&client, "first");
    let mut connection = connections.recv().await.unwrap();
    connection.send("reply").await.unwrap();
    connection.send("one too many").await.unwrap();
    assert_eq!(first.await.unwrap().unwrap(), "reply");
    settle().await;
    assert_eq!(arrived(&mut connection).await, ["first"]);
    assert!(connection.recv().await.unwrap().is_none(), "still open");
    // It is said once, and nothing is sent meanwhile.
    assert_not_sent(client.call("second").await, is_out_of_step);
    let third = call(&client, "third");
    let mut connection = connections.recv().await.unwrap();
    assert_eq!(arrived(&mut connection).await, ["third"]);
    connection.send("reply").await.unwrap();
    assert_eq!(third.await.unwrap().unwrap(), "reply");

    // With a request on its way at the same moment.
    connection.send("unasked").await.unwrap();
    let fourth = client.call("fourth").await;
    assert_not_sent(fourth, is_out_of_step);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_sent_fails_at_once_and_alone() {
    let (listener, pipe) = memory();
    let _server = Server::echo(listener);
    let options = ClientOptions::new().max_message_size(10).shared();
    let client = options.connect_memory(&pipe).await.unwrap();
    let other = call(&client, "other");
    assert_not_sent(client.call("").await, |failure| match failure {
        SharedCallErrorKind::Request(error) => matches!(**error, SendError::Empty),
        _ => false,
    });
    assert_not_sent(client.call("12345678901").await, |failure| match failure {
        SharedCallErrorKind::Request(error) => matches!(
            **error,
            SendError::TooLong {
                length: 11,
                limit: 10,
                ..
            }
        ),
        _ => false,
    });
    assert_eq!(other.await.unwrap().unwrap(), "other");
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_too_long_is_not_asked_for_again() {
    let (listener, pipe) = memory();
    let mut connections = by_hand(listener);
    let options = ClientOptions::new().max_message_size(10).shared();
    let client = options.connect_memory_lazy(&pipe).unwrap();
    let client = client.retry_unanswered(true);
    let long = call(&client, "long");
    settle().await;
    let next = call(&client, "next");
    let mut connection = connections.recv().await.unwrap();
    assert_eq!(arrived(&mut connection).await, ["long", "next"]);
    connection.send("12345678901").await.unwrap();
    assert_unanswered(long.await.unwrap(), |failure| match failure {
        SharedCallErrorKind::Connection(error) => matches!(
            **error,
            pipe_server::CallError::Recv(RecvError::TooLong { limit: 10, .. })
        ),
        _ => false,
    });
    let mut connection = connections.recv().await.unwrap();
    assert_eq!(arrived(&mut connection).await, ["next"]);
    connection.send("reply").await.unwrap();
    assert_eq!(next.await.unwrap().unwrap(), "reply");
}

#[tokio::test(start_paused = true)]
async fn connections_are_opened_when_the_others_are_in_use() {
    // As many instances wait as connections are opened at the same time.
    let (listener, pipe) = ListenerOptions::new().backlog(4).bind_memory().unwrap();
    let running = Arc::new(AtomicUsize::new(0));
    let connected = Arc::new(AtomicUsize::new(0));
    let (most, count) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&connected));
    let (at_once, now) = (Arc::clone(&most), Arc::clone(&running));
    let serving = serve(listener, move |request: Bytes| {
        let (most, running) = (Arc::clone(&at_once), Arc::clone(&now));
        async move {
            most.fetch_max(
                1 + running.fetch_add(1, Ordering::Relaxed),
                Ordering::Relaxed,
            );
            sleep(Duration::from_millis(10)).await;
            running.fetch_sub(1, Ordering::Relaxed);
            request
        }
    })
    .on_connect(move |_: pipe_server::ConnectionInfo| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, io::Error>(()) }
    });
    tokio::spawn(serving.into_future());
    let options = ClientOptions::new().shared().connections(4);
    let client = options.connect_memory_lazy(&pipe).unwrap();
    settle().await;
    assert_eq!(connected.load(Ordering::Relaxed), 0);
    for _ in 0..10 {
        client.call("one after the other").await.unwrap();
    }
    assert_eq!(connected.load(Ordering::Relaxed), 1);
    let begun = Instant::now();
    let calls: Vec<_> = (0..40)
        .map(|number| call(&client, number.to_string()))
        .collect();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap(), number.to_string());
    }
    assert_eq!(connected.load(Ordering::Relaxed), 4);
    assert_eq!(most.load(Ordering::Relaxed), 4);
    // Each connection has ten of them.
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_millis(150), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_share_the_connections_that_the_server_has_instances_for() {
    let options = ListenerOptions::new().max_instances(2);
    let (listener, pipe) = options.bind_memory().unwrap();
    let server = Server::echo(listener);
    let options = ClientOptions::new().shared().connections(8);
    for lazy in [true, false] {
        let client = match lazy {
            true => options.connect_memory_lazy(&pipe).unwrap(),
            false => options.connect_memory(&pipe).await.unwrap(),
        };
        let begun = Instant::now();
        for _ in 0..10 {
            let calls = (0..40).map(|number| call(&client, number.to_string()));
            for (number, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
                assert_eq!(call.await.unwrap().unwrap(), number.to_string());
            }
        }
        // Nobody has waited for an instance.
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert_eq!(pipe.instances(), 2);
        client.shutdown().await;
    }
    server.stop().await;
    assert_eq!(pipe.instances(), 0);
}

#[tokio::test]
async fn an_option_that_is_out_of_range_is_named() {
    let (_listener, pipe) = memory();
    let options = ClientOptions::new().shared();
    for (options, named) in [
        (options.clone().max_in_flight(0), "max_in_flight"),
        (options.clone().max_in_flight(usize::MAX), "max_in_flight"),
        (options.clone().connections(0), "connections"),
        (options.connections(1025), "connections"),
        (
            ClientOptions::new().max_message_size(0).shared(),
            "max_message_size",
        ),
    ] {
        let errors = [
            options.connect_memory(&pipe).await.unwrap_err(),
            options.connect_memory_lazy(&pipe).unwrap_err(),
            options.connect_lazy("pipe").unwrap_err(),
        ];
        for error in errors {
            match error {
                ConnectError::Option { option, .. } => assert_eq!(option, named),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_call_outside_a_runtime_fails() {
    let client = SharedClient::connect_lazy("nobody").unwrap();
    let mut calling = pin!(client.call("hello"));
    let polled = calling
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(result) = polled else {
        panic!("it waits")
    };
    assert_not_sent(result, |failure| match failure {
        SharedCallErrorKind::Connect(error) => matches!(**error, ConnectError::NoRuntime),
        _ => false,
    });
}

struct Panics(AtomicBool);

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        if !self.0.swap(true, Ordering::Relaxed) {
            panic!("a waker panics on purpose");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_costs_a_connection_and_nothing_else() {
    let (listener, pipe) = memory();
    let _server = Server::echo(listener);
    let client = shared(&pipe);
    assert_eq!(client.call("before").await.unwrap(), "before");
    let waker = Waker::from(Arc::new(Panics(AtomicBool::new(false))));
    let mut calling: Pin<Box<dyn Future<Output = _>>> = Box::pin(client.call("panics"));
    assert!(
        calling
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    settle().await;
    assert_eq!(calling.await.unwrap(), "panics");
    for _ in 0..3 {
        assert_eq!(client.call("after").await.unwrap(), "after");
    }
}

#[test]
fn whatever_fails_or_is_dropped_every_reply_belongs_to_its_request() {
    // The engine is the same on every system, and Wine slow.
    let count = if cfg!(windows) { 300 } else { 600 };
    with_seeds("every_reply_belongs", count, |seed| {
        play(seed, scene(seed));
    });
}

/// How often the server has executed each request.
type Executed = Arc<Mutex<BTreeMap<Bytes, usize>>>;

/// A server and its clients' tasks, some of whose calls are dropped or time out, on a pipe that
/// fails.
async fn scene(seed: u64) {
    let mut random = Rng::with_seed(!seed);
    // Without faults too: nothing but what the callers do then.
    let faults = match random.u32(..4) {
        0 => Faults::new(),
        _ => Faults::seeded(seed),
    };
    let (listener, pipe) = ListenerOptions::new()
        .max_instances([None, Some(1), Some(3)][random.usize(..3)])
        .buffer_size([1, 60, 65_536][random.usize(..3)])
        .bind_memory_with_faults(&faults)
        .unwrap();
    let executed = Executed::default();
    let (stop, stopped) = oneshot::channel::<()>();
    let executing = Arc::clone(&executed);
    let slow = random.bool();
    let serving = serve(listener, move |request: Bytes| {
        let executed = Arc::clone(&executing);
        async move {
            *executed.lock().unwrap().entry(request.clone()).or_default() += 1;
            match request[0] % 8 {
                0 if slow => sleep(Duration::from_millis(u64::from(request[0]))).await,
                1 | 2 => yield_now().await,
                _ => {}
            }
            reply_to(&request)
        }
    })
    .with_graceful_shutdown(async { _ = stopped.await });
    let server = tokio::spawn(serving.into_future());

    let call_timeout = [None, Some(Duration::from_millis(random.u64(1..200)))][random.usize(..2)];
    let client = ClientOptions::new()
        .connect_timeout(None)
        .call_timeout(call_timeout)
        .shared()
        .max_in_flight(random.usize(1..12))
        .connections(random.usize(1..4))
        .connect_memory_lazy(&pipe)
        .unwrap();
    let mut tasks = JoinSet::new();
    for number in 0..random.u8(1..8) {
        let caller = Caller {
            client: client.clone(),
            executed: Arc::clone(&executed),
            number,
            random: random.fork(),
        };
        tasks.spawn(caller.run());
    }
    drop(client);
    tasks.join_all().await;
    faults.stop();
    stop.send(()).unwrap();
    let summary = server.await.unwrap();
    assert_eq!(summary.aborted, 0, "a connection was left");
    assert_eq!(pipe.instances(), 0, "an instance is left");
}

fn reply_to(request: &[u8]) -> Bytes {
    request.iter().rev().map(|byte| !byte).collect()
}

struct Caller {
    client: SharedClient,
    executed: Executed,
    number: u8,
    random: Rng,
}

impl Caller {
    async fn run(mut self) {
        for count in 0..self.random.u8(1..16) {
            let length = [0, 1, 70, 3000][self.random.usize(..4)];
            let mut request = vec![self.random.u8(..), self.number, count];
            request.resize(3 + length, count);
            let request = Bytes::from(request);
            let repeat = self.random.u32(..4) == 0;
            let client = self.client.clone().retry_unanswered(repeat);
            let mut calling = Box::pin(client.call(request.clone()));
            let result = match self.random.u32(..4) {
                0 => polls(calling.as_mut(), self.random.usize(..6)).await,
                1 => {
                    let time = Duration::from_millis(self.random.u64(..30));
                    timeout(time, calling.as_mut()).await.ok()
                }
                _ => Some(calling.as_mut().await),
            };
            drop(calling);
            self.check(&request, repeat, result);
            match self.random.u32(..4) {
                0 => sleep(Duration::from_millis(self.random.u64(..40))).await,
                1 => yield_now().await,
                _ => {}
            }
        }
    }

    fn check(&self, request: &Bytes, repeat: bool, result: Option<Result<Bytes, SharedCallError>>) {
        let executed = self.executed.lock().unwrap();
        let times = executed.get(request).copied().unwrap_or(0);
        let most = if repeat { 3 } else { 1 };
        assert!(times <= most, "{request:?} was executed {times} times");
        match result {
            Some(Ok(reply)) => {
                assert_eq!(reply, reply_to(request), "another call's reply");
                assert!(times > 0, "a reply without an execution");
            }
            Some(Err(SharedCallError::NotExecuted(failure))) => {
                assert_eq!(times, 0, "{failure:?}: it was executed");
            }
            Some(Err(SharedCallError::Unanswered(_))) | None => {}
        }
    }
}

#[cfg(feature = "tower")]
mod tower_service {
    use pipe_server::SharedCall;
    use tower::{Service, ServiceBuilder, ServiceExt};

    use super::*;

    fn poll_ready(client: &mut SharedClient) -> Poll<Result<(), SharedCallError>> {
        client.poll_ready(&mut Context::from_waker(Waker::noop()))
    }

    /// Not `SharedClient::call`.
    fn send(client: &mut SharedClient, request: &'static str) -> SharedCall {
        Service::call(client, request.into())
    }

    #[tokio::test(start_paused = true)]
    async fn ready_means_that_a_slot_is_reserved() {
        let (listener, pipe) = memory();
        let _server = Server::echo(listener);
        let options = ClientOptions::new().shared().max_in_flight(2);
        let mut first = options.connect_memory_lazy(&pipe).unwrap();
        let (mut second, mut third) = (first.clone(), first.clone());
        assert!(poll_ready(&mut first).is_ready());
        assert!(poll_ready(&mut first).is_ready(), "one slot is enough");
        assert!(poll_ready(&mut second).is_ready());
        assert!(poll_ready(&mut third).is_pending());
        // A clone has no slot of its own.
        let mut clone = first.clone();
        assert!(poll_ready(&mut clone).is_pending());
        drop(clone);
        // One that is dropped unused is free.
        drop(second);
        assert!(poll_ready(&mut third).is_ready());
        let calls = [send(&mut first, "first"), send(&mut third, "third")];
        assert!(poll_ready(&mut first).is_pending());
        for (call, expected) in calls.into_iter().zip(["first", "third"]) {
            assert_eq!(call.await.unwrap(), expected);
        }
        assert!(poll_ready(&mut first).is_ready());
        first.clone().shutdown().await;
        assert!(matches!(poll_ready(&mut third), Poll::Ready(Err(_))));
        assert_not_sent(send(&mut first, "late").await, |failure| {
            matches!(failure, SharedCallErrorKind::ShutDown)
        });
    }

    #[tokio::test(start_paused = true)]
    async fn layers_and_tasks_use_it() {
        let (listener, pipe) = memory();
        let _server = Server::echo(listener);
        let client = ClientOptions::new().shared().max_in_flight(2);
        let client = client.connect_memory_lazy(&pipe).unwrap();
        let service = ServiceBuilder::new()
            .map_request(|text: String| Bytes::from(text))
            .service(client);
        let mut tasks = JoinSet::new();
        for number in 0..20 {
            let service = service.clone();
            tasks.spawn(async move {
                let reply = service.oneshot(number.to_string()).await.unwrap();
                assert_eq!(reply, number.to_string());
            });
        }
        drop(service);
        tasks.join_all().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_keeps_its_connection_open() {
        let (listener, pipe) = memory();
        let _server = Server::echo(listener);
        let mut client = shared(&pipe);
        let calling = send(&mut client, "hello");
        drop(client);
        assert_eq!(calling.await.unwrap(), "hello");
    }
}

#[test]
fn a_shared_client_goes_to_any_thread() {
    fn check<T: Clone + Send + Sync + 'static>() {}
    check::<SharedClient>();
    check::<SharedCallError>();
}
