//! A shared client whose calls are given up before their replies arrive.

use std::{future::IntoFuture as _, time::Duration};

use pipe_server::{
    Bytes, ClientOptions, Connection, ListenerOptions, MemoryPipe, PipeListener, SharedCallError,
    SharedCallErrorKind, SharedClient, defaults, serve,
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

/// The timeout of the calls.
const AFTER: Duration = Duration::from_secs(1);

fn memory() -> (PipeListener, MemoryPipe) {
    ListenerOptions::new().bind_memory().unwrap()
}

fn shared(pipe: &MemoryPipe, connections: usize) -> SharedClient {
    let options = ClientOptions::new().call_timeout(AFTER).shared();
    let options = options.connections(connections);
    options.connect_memory_lazy(pipe).unwrap()
}

fn call(
    client: &SharedClient,
    request: &'static str,
) -> JoinHandle<Result<Bytes, SharedCallError>> {
    let client = client.clone();
    tokio::spawn(async move { client.call(request).await })
}

/// Accepts the next connection and receives its first request.
async fn accept(listener: &mut PipeListener, request: &str) -> Connection {
    let mut connection = listener.accept().await.unwrap();
    assert_eq!(connection.recv().await.unwrap().unwrap(), request);
    connection
}

#[tokio::test(start_paused = true)]
async fn a_call_does_not_wait_for_a_late_reply_while_another_connection_can_be_opened() {
    let (mut listener, pipe) = memory();
    let client = shared(&pipe, 2);
    let given_up = call(&client, "given up");
    let _late = accept(&mut listener, "given up").await;
    given_up.await.unwrap().unwrap_err();

    for _ in 0..3 {
        let next = call(&client, "next");
        let mut free = accept(&mut listener, "next").await;
        free.send("reply").await.unwrap();
        assert_eq!(next.await.unwrap().unwrap(), "reply");
        // It stays, and is taken again.
        let again = call(&client, "again");
        assert_eq!(free.recv().await.unwrap().unwrap(), "again");
        free.send("reply").await.unwrap();
        assert_eq!(again.await.unwrap().unwrap(), "reply");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_waits_for_a_late_reply_comes_last() {
    let (mut listener, pipe) = memory();
    let client = shared(&pipe, 2);
    let given_up = call(&client, "given up");
    let mut late = accept(&mut listener, "given up").await;
    sleep(AFTER / 2).await;
    let first = call(&client, "first");
    let mut other = accept(&mut listener, "first").await;
    given_up.await.unwrap().unwrap_err();

    // Each connection has one request in flight.
    let second = call(&client, "second");
    assert_eq!(other.recv().await.unwrap().unwrap(), "second");
    for call in [first, second] {
        other.send("reply").await.unwrap();
        assert_eq!(call.await.unwrap().unwrap(), "reply");
    }
    late.send("dropped").await.unwrap();
}

/// Against a server that answers one request after the other, each after `time`.
async fn answered(tasks: usize, time: Duration, rounds: u32) -> (usize, usize) {
    let (listener, pipe) = memory();
    let server = serve(listener, move |request: Bytes| async move {
        sleep(time).await;
        request
    });
    tokio::spawn(server.into_future());
    let client = shared(&pipe, 1);
    let begun = Instant::now();
    let mut calls = JoinSet::new();
    for task in 0..tasks {
        let client = client.clone();
        calls.spawn(async move {
            let (mut answered, mut failed) = (0, 0);
            for number in 0.. {
                if begun.elapsed() >= AFTER * rounds {
                    break;
                }
                let request = format!("{task}:{number}");
                match client.call(request.clone()).await {
                    Ok(reply) => {
                        assert_eq!(reply, request);
                        answered += 1;
                    }
                    Err(error) => {
                        let failure = error.kind();
                        let expected = matches!(failure, SharedCallErrorKind::TimedOut { .. });
                        assert!(expected, "{failure}");
                        failed += 1;
                    }
                }
            }
            (answered, failed)
        });
    }
    let counts = calls.join_all().await.into_iter();
    counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_too_slow_for_all_calls_answers_some_all_the_time() {
    const ROUNDS: u32 = 40;
    for (tasks, milliseconds) in [(4, 600), (8, 200), (20, 200), (32, 100), (100, 20)] {
        let time = Duration::from_millis(milliseconds);
        let (answered, failed) = answered(tasks, time, ROUNDS).await;
        let most = (AFTER * ROUNDS).as_millis() / time.as_millis();
        // It does not answer only those of the first second.
        assert!(
            answered as u128 * 4 > most,
            "{tasks} tasks, {time:?}: {answered} answered of {most}, {failed} failed"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_fast_enough_answers_every_call() {
    for (tasks, milliseconds) in [(1, 900), (4, 200), (40, 20)] {
        let time = Duration::from_millis(milliseconds);
        let (answered, failed) = answered(tasks, time, 20).await;
        assert!(
            answered > 0 && failed == 0,
            "{tasks} tasks: {failed} failed"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn by_default_a_call_to_a_mute_server_ends() {
    let (mut listener, pipe) = memory();
    let client = ClientOptions::new().shared();
    let client = client.connect_memory_lazy(&pipe).unwrap();
    let begun = Instant::now();
    let call = call(&client, "hello");
    let _mute = accept(&mut listener, "hello").await;
    let error = call.await.unwrap().unwrap_err();
    assert!(
        matches!(error, SharedCallError::Unanswered(SharedCallErrorKind::TimedOut { after, .. })
            if after == defaults::CALL_TIMEOUT),
        "{error:?}"
    );
    assert!(begun.elapsed() >= defaults::CALL_TIMEOUT);

    // No limit, if asked for.
    let options = ClientOptions::new().call_timeout(None).shared();
    let client = options.connect_memory_lazy(&pipe).unwrap();
    let mut call = self::call(&client, "hello");
    let _mute = accept(&mut listener, "hello").await;
    sleep(defaults::CALL_TIMEOUT * 10).await;
    assert!(!call.is_finished());
    call.abort();
    _ = (&mut call).await;
}
