//! A transport that fails: the listener outlives it, and what arrives is a prefix of what was sent.
//!
//! `PIPE_FAULT_SEEDS=FIRST..LAST` says which seeds are tried, `PIPE_FAULT_SEEDS=SEED` repeats one.

use std::{
    collections::BTreeMap,
    future::{IntoFuture as _, pending},
    mem,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use pipe_server::{
    BoxError, Bytes, CallError, Client, ClientOptions, ConnectError, Connection, ConnectionInfo,
    Faults, ListenerOptions, MemoryPipe, PipeListener, SendError, Shutdown, Summary, serve,
    serve_connections,
};
use tokio::{
    sync::Notify,
    task::yield_now,
    time::{Instant, sleep},
};

use support::{
    server::{Server, play},
    with_seeds,
};

/// The pauses between the last failure, which was just now, and those that are injected from now
/// on.
async fn pauses_until(faults: &Faults, end: Duration) -> Vec<Duration> {
    let begun = Instant::now();
    let (mut injected, mut last, mut pauses) = (faults.injected(), begun, Vec::new());
    while begun.elapsed() < end {
        sleep(Duration::from_millis(1)).await;
        if faults.injected() > injected {
            injected = faults.injected();
            pauses.push(last.elapsed());
            last = Instant::now();
        }
    }
    pauses
}

fn expect_backoff(pauses: &[Duration]) {
    for (index, pause) in pauses.iter().enumerate() {
        let expected = Duration::from_millis((5 << index.min(8)).min(1000));
        // The clock's tick is a millisecond.
        assert!(
            pause.abs_diff(expected) <= Duration::from_millis(2),
            "{pauses:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_accept_is_retried_with_a_growing_delay() {
    let faults = Faults::new();
    let options = ListenerOptions::new().backlog(1);
    let (listener, pipe) = options.bind_memory_with_faults(&faults).unwrap();
    let server = Server::echo(listener);
    let mut served = pipe.connect().await.unwrap();
    assert_eq!(served.call("before").await.unwrap(), "before");
    for _ in 0..2 {
        faults.fail_accept(u32::MAX);
        let failures = faults.injected();
        // Makes it wait for the next one.
        drop(pipe.connect().await);
        yield_until(|| faults.injected() > failures).await;
        let pauses = pauses_until(&faults, Duration::from_secs(10)).await;
        assert!(pauses.len() > 12, "{pauses:?}");
        expect_backoff(&pauses);
        assert_eq!(served.call("meanwhile").await.unwrap(), "meanwhile");
        faults.stop();
        let mut next = pipe.connect().await.unwrap();
        assert_eq!(next.call("after").await.unwrap(), "after");
    }
    drop(served);
    assert_eq!(server.stop().await.aborted, 0);
}

async fn yield_until(ready: impl Fn() -> bool) {
    while !ready() {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_is_handed_out_although_the_next_instance_cannot_be_created() {
    let faults = Faults::new();
    let options = ListenerOptions::new().backlog(1);
    let (listener, pipe) = options.bind_memory_with_faults(&faults).unwrap();
    let server = Server::echo(listener);
    faults.fail_create(u32::MAX);
    let mut first = pipe.connect().await.unwrap();
    assert_eq!(first.call("first").await.unwrap(), "first");
    expect_busy(&pipe).await;
    let pauses = pauses_until(&faults, Duration::from_secs(10)).await;
    assert!((10..30).contains(&pauses.len()), "{pauses:?}");
    expect_busy(&pipe).await;
    faults.stop();
    let mut second = pipe.connect().await.unwrap();
    assert_eq!(second.call("second").await.unwrap(), "second");
    assert_eq!(first.call("first again").await.unwrap(), "first again");
    drop((first, second));
    assert_eq!(server.stop().await.served, 2);
    assert_eq!(pipe.instances(), 0);
}

/// The name is there, and nobody waits on it.
async fn expect_busy(pipe: &MemoryPipe) {
    let options = ClientOptions::new().connect_timeout(Duration::ZERO);
    let error = options.connect_memory(pipe).await.unwrap_err();
    assert!(matches!(error, ConnectError::Busy { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn the_name_outlives_the_last_client_when_no_instance_can_be_created() {
    for most in [None, Some(1), Some(2)] {
        let faults = Faults::new();
        let options = ListenerOptions::new().backlog(1).max_instances(most);
        let (listener, pipe) = options.bind_memory_with_faults(&faults).unwrap();
        let server = Server::echo(listener);
        let mut client = pipe.connect().await.unwrap();
        // Where there is no limit the next instance is there already.
        faults.fail_create(u32::MAX);
        assert_eq!(client.call("hello").await.unwrap(), "hello");
        let mut second = match most {
            Some(1) => None,
            _ => pipe.connect().await.ok(),
        };
        if let Some(second) = &mut second {
            assert_eq!(second.call("hello").await.unwrap(), "hello");
        }
        drop((client, second));
        for _ in 0..2000 {
            expect_busy(&pipe).await;
            sleep(Duration::from_millis(1)).await;
        }
        faults.stop();
        let mut next = pipe.connect().await.unwrap();
        assert_eq!(next.call("next").await.unwrap(), "next");
        // The one that kept the name is gone.
        assert!(pipe.instances() <= 2, "{}", pipe.instances());
        drop(next);
        server.stop().await;
        assert_eq!(pipe.instances(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_name_outlives_an_instance_that_fails() {
    for creations in [0, 20] {
        let faults = Faults::new();
        let options = ListenerOptions::new().max_instances(1);
        let (listener, pipe) = options.bind_memory_with_faults(&faults).unwrap();
        faults.fail_accept(1);
        faults.fail_create(creations);
        let server = Server::echo(listener);
        yield_until(|| faults.injected() > 0).await;
        let mut client = loop {
            let options = ClientOptions::new().connect_timeout(Duration::ZERO);
            match options.connect_memory(&pipe).await {
                Ok(client) => break client,
                Err(ConnectError::Busy { .. }) => sleep(Duration::from_millis(1)).await,
                Err(error) => panic!("{creations} creations fail: {error:?}"),
            }
        };
        assert_eq!(client.call("hello").await.unwrap(), "hello");
        assert_eq!(pipe.instances(), 1);
        drop(client);
        assert_eq!(server.stop().await.served, 1);
        assert_eq!(pipe.instances(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_costs_its_own_client_the_connection() {
    let faults = Faults::new();
    let options = ListenerOptions::new();
    let (listener, pipe) = options.bind_memory_with_faults(&faults).unwrap();
    let server = Server::echo(listener);
    let mut other = pipe.without_faults().connect().await.unwrap();
    for (set, requests) in [
        (Faults::fail_recv as fn(&Faults, u64), 2),
        (Faults::fail_send, 3),
    ] {
        set(&faults, 3);
        let mut client = pipe.connect().await.unwrap();
        let mut spared = pipe.without_faults().connect().await.unwrap();
        for text in ["one", "two"] {
            assert_eq!(client.call(text).await.unwrap(), text);
        }
        let error = client.call("three").await.unwrap_err();
        assert!(
            matches!(error, CallError::Closed),
            "{requests} requests: {error:?}"
        );
        faults.stop();
        for text in ["one", "two", "three"] {
            assert_eq!(spared.call(text).await.unwrap(), text);
        }
        assert_eq!(other.call("well").await.unwrap(), "well");
    }
    assert_eq!(faults.injected(), 2);
    drop(other);
    let summary = server.stop().await;
    assert_eq!(
        (
            summary.served,
            summary.stats.requests,
            summary.stats.replies
        ),
        (5, 2 + 3 + 6 + 2, 2 + 2 + 6 + 2)
    );
}

#[tokio::test]
async fn an_instance_that_cannot_be_created_is_an_error_of_bind() {
    let faults = Faults::new();
    faults.fail_create(1);
    let options = ListenerOptions::new();
    let error = options.bind_memory_with_faults(&faults).unwrap_err();
    let error = BoxError::from(error);
    let reason = error.source().unwrap().to_string();
    assert!(reason.contains("Faults"), "{reason}");
    assert!(options.bind_memory_with_faults(&faults).is_ok());
}

#[test]
fn whatever_fails_what_arrives_is_a_prefix_and_nobody_else_loses_anything() {
    // The engine is the same on every system, and Wine slow.
    let count = if cfg!(windows) { 1000 } else { 2000 };
    with_seeds("whatever_fails", count, |seed| {
        drop(play(seed, scene(seed)));
    });
}

#[test]
fn a_seed_decides_everything() {
    with_seeds("a_seed_decides", 100, |seed| {
        assert_eq!(play(seed, scene(seed)), play(seed, scene(seed)));
    });
    assert_ne!(play(1, scene(1)), play(2, scene(2)));
}

/// What can be seen of one seed's run.
#[derive(Debug, PartialEq)]
struct Outcome {
    summary: Summary,
    injected: u64,
    /// By conversation.
    requests: BTreeMap<u32, Vec<Bytes>>,
    replies: BTreeMap<u32, usize>,
    took: Duration,
}

/// One server, clients that faults hit, and well-behaved ones beside them that none hits.
async fn scene(seed: u64) -> Outcome {
    let begun = Instant::now();
    let mut random = Rng::with_seed(!seed);
    let most = [None, Some(1), Some(2), Some(3)][random.usize(..4)];
    let backlog = random.usize(1..=3);
    let at_rest = most.unwrap_or(usize::MAX).min(backlog);
    let faults = Faults::seeded(seed);
    let (listener, pipe) = ListenerOptions::new()
        .max_instances(most)
        .backlog(backlog)
        .buffer_size([1, 100, 65_536][random.usize(..3)])
        .bind_memory_with_faults(&faults)
        .unwrap();
    let seen = Arc::new(Seen::default());
    let server = match random.u32(..4) {
        0 => serve_whole_connections(listener, &seen),
        options => {
            let concurrency = [1, 1, 2, 5][random.usize(..4)];
            serve_requests(listener, &seen, options == 1, random.bool(), concurrency)
        }
    };
    // Some servers are shut down in the middle of it.
    let stops_after = (random.u32(..4) == 0).then(|| Duration::from_millis(random.u64(..60)));

    let mut clients = Vec::new();
    for number in 0..random.u32(3..6) {
        let spared = number < 2;
        let pipe = match spared {
            true => pipe.without_faults(),
            false => pipe.clone(),
        };
        let visitor = Visitor {
            pipe,
            spared,
            conversations: number * 100..number * 100 + random.u32(1..4),
            random: random.fork(),
        };
        clients.push(tokio::spawn(visitor.visit(stops_after.is_none())));
    }
    let mut server = Some(server);
    let mut summary = Summary::default();
    if let Some(time) = stops_after {
        sleep(time).await;
        summary = server.take().unwrap().stop().await;
    }
    let mut conversations = Vec::new();
    for client in clients {
        conversations.extend(client.await.unwrap());
    }
    if let Some(server) = server {
        faults.stop();
        // Each client is served once, and every instance comes back, none too many.
        let expected = (conversations.len() as u64, at_rest);
        while (seen.connections.load(Ordering::Relaxed), pipe.instances()) != expected {
            sleep(Duration::from_millis(10)).await;
        }
        summary = server.stop().await;
    }
    let outcome = Outcome {
        summary,
        injected: faults.injected(),
        requests: seen.take(),
        replies: conversations.iter().map(Conversation::replied).collect(),
        took: begun.elapsed(),
    };
    for conversation in &conversations {
        conversation.check(&outcome, stops_after.is_none());
    }
    outcome.check(&seen, &pipe);
    outcome
}

impl Outcome {
    fn check(&self, seen: &Seen, pipe: &MemoryPipe) {
        let Self {
            summary, requests, ..
        } = self;
        assert_eq!(pipe.instances(), 0, "an instance is left");
        assert_eq!(summary.aborted, 0, "a connection hangs");
        let connections = seen.connections.load(Ordering::Relaxed);
        assert_eq!(summary.served + summary.stats.refused, connections);
        assert_eq!(summary.stats.refused, seen.refused.load(Ordering::Relaxed));
        if seen.serves_requests.load(Ordering::Relaxed) {
            // A request is not handled if sending the reply before it fails.
            let handled: usize = requests.values().map(Vec::len).sum();
            let handled = handled as u64;
            assert!((handled..=handled + summary.served).contains(&summary.stats.requests));
            assert!(summary.stats.replies <= handled);
        }
    }
}

/// What a server has seen.
#[derive(Default)]
struct Seen {
    serves_requests: AtomicBool,
    connections: AtomicU64,
    refused: AtomicU64,
    requests: Mutex<BTreeMap<u32, Vec<Bytes>>>,
}

impl Seen {
    /// Remembers a request, and takes its time over some.
    async fn take_in(&self, request: &Bytes) {
        let conversation = u32::from_le_bytes(request[..4].try_into().unwrap());
        let number = {
            let mut requests = self.requests.lock().unwrap();
            let requests = requests.entry(conversation).or_default();
            requests.push(request.clone());
            requests.len()
        };
        match (conversation as usize + number) % 8 {
            0 => sleep(Duration::from_millis(3)).await,
            1 | 2 => yield_now().await,
            _ => {}
        }
    }

    fn take(&self) -> BTreeMap<u32, Vec<Bytes>> {
        mem::take(&mut *self.requests.lock().unwrap())
    }
}

fn serve_requests(
    listener: PipeListener,
    seen: &Arc<Seen>,
    asks_for_peers: bool,
    cancels: bool,
    concurrency: usize,
) -> Server {
    seen.serves_requests.store(true, Ordering::Relaxed);
    let (handling, connecting) = (Arc::clone(seen), Arc::clone(seen));
    let serving = serve(listener, move |request: Bytes| {
        let seen = Arc::clone(&handling);
        async move {
            seen.take_in(&request).await;
            request
        }
    })
    .concurrency(concurrency)
    .cancel_on_disconnect(cancels)
    .on_connect(move |connection: ConnectionInfo| {
        connecting.connections.fetch_add(1, Ordering::Relaxed);
        let peer = match asks_for_peers {
            true => connection.peer().map(drop),
            false => Ok(()),
        };
        if peer.is_err() {
            connecting.refused.fetch_add(1, Ordering::Relaxed);
        }
        async move { peer }
    });
    Server::run(|signal| serving.with_graceful_shutdown(signal).into_future())
}

fn serve_whole_connections(listener: PipeListener, seen: &Arc<Seen>) -> Server {
    let seen = Arc::clone(seen);
    let serving = serve_connections(listener, move |connection, _: Shutdown| {
        let seen = Arc::clone(&seen);
        seen.connections.fetch_add(1, Ordering::Relaxed);
        echo(connection, seen)
    });
    Server::run(|signal| serving.with_graceful_shutdown(signal).into_future())
}

async fn echo(mut connection: Connection, seen: Arc<Seen>) -> Result<(), BoxError> {
    while let Some(request) = connection.recv().await? {
        seen.take_in(&request).await;
        connection.send(request).await?;
    }
    Ok(())
}

/// A program that connects some times, one after the other.
struct Visitor {
    pipe: MemoryPipe,
    spared: bool,
    conversations: Range<u32>,
    random: Rng,
}

/// What one client has sent and received on one connection.
struct Conversation {
    number: u32,
    spared: bool,
    /// All of it, or what the server was asked to take before something failed.
    sent: Vec<Bytes>,
    /// The number of messages whose sending has succeeded.
    accepted: usize,
    replies: Vec<Bytes>,
    /// Whether it left of its own accord, before the last reply.
    left: bool,
}

impl Visitor {
    async fn visit(mut self, is_served: bool) -> Vec<Conversation> {
        let mut held = Vec::new();
        for number in self.conversations.clone() {
            let options = ClientOptions::new().connect_timeout(None);
            match options.connect_memory(&self.pipe).await {
                Ok(client) => held.push(self.converse(client, number).await),
                Err(ConnectError::NotFound { .. }) if !is_served => break,
                Err(error) => panic!("conversation {number}: {error:?}"),
            }
            sleep(Duration::from_millis(self.random.u64(..10))).await;
        }
        held
    }

    /// Sends messages while it receives the replies, and leaves after the last one or before it.
    async fn converse(&mut self, client: Client, number: u32) -> Conversation {
        let random = &mut self.random;
        let messages: Vec<_> = (0..random.usize(..8))
            .map(|index| numbered(number, index, [0, 1, 90, 3000][random.usize(..4)]))
            .collect();
        let stays = self.spared || random.bool();
        let wanted = match stays {
            true => messages.len(),
            false => random.usize(..=messages.len()),
        };
        let pipelines = random.bool();
        let finishes = random.bool();

        let (begun, accepted) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let replies = Mutex::new(Vec::new());
        let count = || replies.lock().unwrap().len();
        let read = Notify::new();
        let (mut receiver, mut sender) = client.into_split();
        let sending = async {
            for message in &messages {
                begun.fetch_add(1, Ordering::Relaxed);
                match sender.send(message.clone()).await {
                    Ok(()) => {}
                    // Replies that the server sent before still arrive.
                    Err(SendError::Closed) => pending().await,
                    Err(_) => return,
                }
                accepted.fetch_add(1, Ordering::Relaxed);
                while !pipelines && count() < begun.load(Ordering::Relaxed) {
                    read.notified().await;
                }
            }
            if finishes && sender.finish().await.is_err() {
                return;
            }
            pending::<()>().await;
        };
        let receiving = async {
            while count() < wanted {
                let Ok(Some(reply)) = receiver.recv().await else {
                    return;
                };
                replies.lock().unwrap().push(reply);
                read.notify_one();
            }
            if finishes && stays {
                // The end comes after the last reply.
                while let Ok(Some(reply)) = receiver.recv().await {
                    replies.lock().unwrap().push(reply);
                }
            }
        };
        tokio::select! {
            biased;
            () = receiving => {}
            () = sending => {}
        }
        Conversation {
            number,
            spared: self.spared,
            sent: messages[..begun.into_inner()].to_vec(),
            accepted: accepted.into_inner(),
            replies: replies.into_inner().unwrap(),
            left: !stays,
        }
    }
}

impl Conversation {
    fn replied(&self) -> (u32, usize) {
        (self.number, self.replies.len())
    }

    fn check(&self, outcome: &Outcome, is_served: bool) {
        let number = self.number;
        let none = Vec::new();
        let received = outcome.requests.get(&number).unwrap_or(&none);
        assert!(
            self.sent.starts_with(received),
            "conversation {number}: what arrived is no prefix of what was sent"
        );
        assert!(
            received.starts_with(&self.replies),
            "conversation {number}: the replies are no prefix of the requests"
        );
        if self.spared {
            // In a shutdown too: what was sent is received and answered.
            assert!(
                received.len() >= self.accepted,
                "conversation {number}: a request is lost in a shutdown"
            );
            assert_eq!(
                self.replies, *received,
                "conversation {number}: a reply is lost"
            );
            assert!(!self.left);
        }
        if self.spared && is_served {
            assert_eq!(
                *received, self.sent,
                "conversation {number}: a request is lost"
            );
        }
    }
}

/// A message that begins with its conversation and its number in it.
fn numbered(conversation: u32, number: usize, length: usize) -> Bytes {
    let mut bytes = conversation.to_le_bytes().to_vec();
    bytes.extend((number as u32).to_le_bytes());
    bytes.resize(bytes.len() + length, number as u8);
    bytes.into()
}
