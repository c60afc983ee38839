//! The soak test: clients of every kind connect and close for minutes, and nothing may be mixed up
//! or leak.
//!
//! ```sh
//! cargo test --release --test soak -- --ignored --nocapture
//! ```
//!
//! One echo server has few instances. Its clients, in this process and in others, pipeline messages
//! of all sizes and compare every reply. They drop futures, halves and connections at any point,
//! send messages that are too long, and are killed. Hostile clients connect, send and close in a
//! loop, never read, never send, and pass file descriptors. One well-behaved client stays
//! throughout and loses nothing. After each minute, when all of them are gone, a census checks that
//! the process holds the same handles, threads, instances and memory as after the first minute.
//!
//! `SOAK_SECONDS` sets the duration, 600 by default.
#![cfg(any(windows, target_os = "linux"))]

use std::{
    env,
    future::{Future, IntoFuture},
    io::{self, BufRead as _, BufReader},
    process::{self, Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use pipe_server::{Bytes, Client, ClientOptions, ListenerOptions, RecvHalf, serve};
use support::process::{Census, CountingAllocator};
use tokio::{
    sync::oneshot,
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The server's `max_message_size`: a multiple of the pipe's buffer where the system allows it.
const LONGEST: usize = if cfg!(windows) { 1 << 20 } else { 200_000 };

/// Fewer than the clients, so that some always wait.
const INSTANCES: usize = 8;
const CLIENTS: usize = 10;
const PROCESSES: usize = 2;
const CLIENTS_OF_A_PROCESS: usize = 4;

/// The instances when all clients are gone: on Linux the listening socket, on Windows the two
/// waiting instances and the one that the census connects to.
const INSTANCES_AT_REST: usize = if cfg!(windows) { 3 } else { 1 };

/// How long clients run before each census.
const ROUND: Duration = Duration::from_secs(60);

/// How long a client may not send, or not read. Many times what a well-behaved one takes on a busy
/// machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// One visit in so many waits until the server's patience is over, with an instance that others
/// wait for.
const VISITS_PER_HALF_OPEN: u32 = 500;

/// Longer than any visit or cleanup takes, even on a busy machine. After this, something hangs.
const DEADLINE: Duration = Duration::from_secs(120);

/// How long the counts have to stay unchanged, without traffic, before a census is taken. Wine's
/// thread pool ends threads that were idle for 5 s.
const QUIET: Duration = Duration::from_secs(6);

/// How much the heap may grow after the first round, in bytes: less than one byte per connection,
/// not counting the block that each of the two workers keeps on Linux, as long as the last message
/// of up to 64 KiB that it received.
const HEAP_ALLOWANCE: usize = (64 << 10) + if cfg!(windows) { 0 } else { 2 * (64 << 10) };

/// How much freed memory the allocator may keep, in bytes: as much as this process's clients and
/// the server's instances use at a time.
const MEMORY_ALLOWANCE: usize = (CLIENTS + INSTANCES) * LONGEST;

/// The environment variable that names the pipe in a client process.
const PIPE: &str = "PIPE_SERVER_SOAK_PIPE";

/// What a client process prints once it is connected.
const CONNECTED: &str = "connected";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes: run it by name"]
async fn whatever_clients_do_replies_are_correct_and_nothing_leaks() {
    if let Ok(pipe) = env::var(PIPE) {
        return be_a_client_process(&pipe).await;
    }
    let seconds = env::var("SOAK_SECONDS").map_or(600, |seconds| seconds.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);

    let pipe = format!("pipe-server-soak-{}", process::id());
    let listener = ListenerOptions::new()
        .max_instances(INSTANCES)
        .max_message_size(LONGEST)
        .bind(&pipe)
        .unwrap();
    let address = listener.path().display().to_string();
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&bytes);
    let echo = move |request: Bytes| {
        counted.fetch_add(request.len() as u64, Ordering::Relaxed);
        async move { Ok::<_, io::Error>(request) }
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(
        serve(listener, echo)
            .idle_timeout(PATIENCE)
            .write_timeout(PATIENCE)
            .with_graceful_shutdown(async { _ = stopped.await })
            .into_future(),
    );

    // The first round is the warm-up: it creates everything that is created once.
    let mut kills = traffic(&pipe, ROUND).await;
    let before = at_rest(&address).await;
    println!("before: {before}");
    let mut after = before;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        kills += traffic(&pipe, left.min(ROUND)).await;
        after = at_rest(&address).await;
        println!("then:   {after}");
    }
    every_instance_serves(&pipe).await;

    _ = stop.send(());
    let summary = server.await.unwrap();
    println!(
        "{seconds} s: {} connections, {} requests of {} bytes, {} replies, {kills} processes killed\n\
         before: {before}\nafter:  {after}",
        summary.served,
        summary.stats.requests,
        bytes.load(Ordering::Relaxed),
        summary.stats.replies,
    );
    assert_eq!(summary.aborted, 0);
    assert_eq!(after.handles, before.handles);
    assert_eq!(after.instances, before.instances);
    // There may have been one more before.
    assert!(after.threads <= before.threads);
    assert!(after.heap <= before.heap + HEAP_ALLOWANCE);
    assert!(after.memory <= before.memory + MEMORY_ALLOWANCE);
}

/// Runs clients for `time`. Returns how many processes were killed.
async fn traffic(pipe: &str, time: Duration) -> u64 {
    let until = Instant::now() + time;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let pipe = pipe.to_owned();
        clients.spawn(async move {
            while Instant::now() < until {
                visit(&pipe).await;
            }
        });
    }
    let well_behaved = connect(pipe).await;
    clients.spawn(stay(well_behaved, until));
    let keepers: Vec<_> = (0..PROCESSES)
        .map(|_| {
            let pipe = pipe.to_owned();
            thread::spawn(move || keep_client_processes(&pipe, until))
        })
        .collect();
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    // The test itself does not run on a worker thread, so it may block.
    keepers
        .into_iter()
        .map(|keeper| keeper.join().unwrap())
        .sum()
}

/// Takes the census once it no longer changes.
async fn at_rest(address: &str) -> Census {
    let begun = Instant::now();
    let mut last: Option<Census> = None;
    loop {
        let census = Census::take(address);
        if let (Ok(census), Some(last)) = (&census, last) {
            let same = (census.handles, census.threads) == (last.handles, last.threads);
            if same && census.instances == INSTANCES_AT_REST {
                return *census;
            }
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "the census does not settle: {census:?}"
        );
        last = census.ok();
        sleep(QUIET).await;
    }
}

/// Checks that as many clients as there are instances are served at once, so that no slot was lost.
async fn every_instance_serves(pipe: &str) {
    let mut clients = Vec::new();
    for _ in 0..INSTANCES {
        let mut client = connect(pipe).await;
        let reply = timeout(DEADLINE, client.call("hello")).await;
        assert_eq!(reply.expect("an instance is lost").unwrap(), "hello");
        clients.push(client);
    }
}

/// Starts one client process after another, and kills most of them while they run. Returns how many
/// it killed.
fn keep_client_processes(pipe: &str, until: Instant) -> u64 {
    let mut kills = 0;
    while Instant::now() < until {
        let mut process = start_client_process(pipe);
        if fastrand::u32(0..4) > 0 {
            thread::sleep(Duration::from_millis(fastrand::u64(0..300)));
            _ = process.kill();
            kills += 1;
            // It may have exited before, but not failed.
            let status = process.wait().unwrap();
            assert_ne!(status.code(), Some(101), "a client process failed");
        } else {
            assert!(process.wait().unwrap().success(), "a client process failed");
        }
    }
    kills
}

/// Starts a client process and waits until one of its clients is connected.
fn start_client_process(pipe: &str) -> Child {
    // This program again, running only this test.
    let mut process = Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--nocapture", "whatever_clients_do"])
        .env(PIPE, pipe)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Borrowed, so that the pipe stays open for further output.
    let output = BufReader::new(process.stdout.as_mut().unwrap());
    let connected = output
        .lines()
        .any(|line| line.unwrap().ends_with(CONNECTED));
    assert!(connected, "a client process failed");
    process
}

async fn be_a_client_process(pipe: &str) {
    let client = connect(pipe).await;
    println!("{CONNECTED}");
    drop(client);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS_OF_A_PROCESS {
        let pipe = pipe.to_owned();
        clients.spawn(async move {
            for _ in 0..10 {
                visit(&pipe).await;
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

/// What one client does from connecting to closing.
#[derive(Clone, Copy, Debug)]
enum Visit {
    Glance,
    Calls,
    DroppedCall,
    Conversation {
        drops_sends: bool,
    },
    LeaveUnread,
    TooLong,
    HitAndRun,
    NeverRead,
    #[cfg(target_os = "linux")]
    PassDescriptors,
}

const VISITS: &[Visit] = &[
    Visit::Glance,
    Visit::Calls,
    Visit::DroppedCall,
    Visit::Conversation { drops_sends: false },
    Visit::Conversation { drops_sends: true },
    Visit::LeaveUnread,
    Visit::TooLong,
    Visit::HitAndRun,
    Visit::NeverRead,
    #[cfg(target_os = "linux")]
    Visit::PassDescriptors,
];

async fn visit(pipe: &str) {
    if fastrand::u32(..VISITS_PER_HALF_OPEN) == 0 {
        let aborted = timeout(DEADLINE, be_half_open(connect(pipe).await));
        return aborted.await.expect("a half-open client is never cut off");
    }
    let visit = VISITS[fastrand::usize(..VISITS.len())];
    let visiting = async {
        match visit {
            Visit::Glance => drop(connect(pipe).await),
            Visit::Calls => call(connect(pipe).await).await,
            Visit::DroppedCall => drop_a_call(connect(pipe).await).await,
            Visit::Conversation { drops_sends } => {
                converse(connect(pipe).await, drops_sends).await;
            }
            Visit::LeaveUnread => leave_unread(connect(pipe).await).await,
            Visit::TooLong => send_too_long(pipe).await,
            Visit::HitAndRun => hit_and_run(pipe).await,
            Visit::NeverRead => never_read(connect(pipe).await).await,
            #[cfg(target_os = "linux")]
            Visit::PassDescriptors => pass_descriptors(pipe).await,
        }
    };
    // Some visits are dropped at an arbitrary point.
    let time = match fastrand::u32(0..8) {
        0 => Duration::from_millis(fastrand::u64(0..30)),
        _ => DEADLINE,
    };
    if timeout(time, visiting).await.is_err() {
        assert!(time < DEADLINE, "{visit:?} hangs");
    }
}

async fn connect(pipe: &str) -> Client {
    ClientOptions::new()
        .connect_timeout(DEADLINE)
        .max_message_size(LONGEST)
        .connect(pipe)
        .await
        .unwrap()
}

async fn call(mut client: Client) {
    for _ in 0..fastrand::u32(1..20) {
        let request = message(1);
        assert!(client.call(request.clone()).await.unwrap() == request);
    }
}

async fn drop_a_call(mut client: Client) {
    let request = message(1);
    match for_a_moment(client.call(request.clone())).await {
        Some(reply) => assert!(reply.unwrap() == request),
        None => {
            let request = message(1);
            assert!(client.call(request.clone()).await.unwrap() == request);
        }
    }
}

/// Sends messages while it receives the replies, and drops some of the futures.
async fn converse(client: Client, drops_sends: bool) {
    let (mut receiver, mut sender) = client.into_split();
    // Long enough to be distinct, since replies show which of them were sent.
    let messages: Vec<Bytes> = (0..fastrand::u32(1..30)).map(|_| message(16)).collect();
    let finishes = drops_sends || fastrand::bool();

    let sending = async {
        let mut sent = Vec::new();
        for message in &messages {
            let sending = sender.send(message.clone());
            if drops_sends && fastrand::u32(0..3) == 0 {
                let done = for_a_moment(sending).await;
                sent.push(done.is_some());
                done.unwrap_or(Ok(())).unwrap();
            } else {
                sending.await.unwrap();
                sent.push(true);
            }
        }
        if finishes {
            sender.finish().await.unwrap();
        }
        sent
    };
    let receiving = async {
        let mut replies = Vec::new();
        while replies.len() < messages.len() {
            match recv(&mut receiver).await {
                Some(reply) => replies.push(reply),
                None => break,
            }
        }
        if finishes {
            assert!(recv(&mut receiver).await.is_none());
        }
        replies
    };
    let (sent, replies) = tokio::join!(sending, receiving);

    // Every message that was sent has a reply; one whose send was dropped may have one.
    let mut replies = replies.into_iter().peekable();
    for (message, sent) in messages.iter().zip(sent) {
        let replied = replies.next_if_eq(message).is_some();
        assert!(replied || !sent, "a reply is wrong or missing");
    }
    assert!(replies.next().is_none(), "a reply without a request");
}

/// Receives after dropping up to three `recv` futures. Nothing may be lost.
async fn recv(receiver: &mut RecvHalf) -> Option<Bytes> {
    for _ in 0..fastrand::u32(0..4) {
        if let Some(received) = for_a_moment(receiver.recv()).await {
            return received.unwrap();
        }
    }
    receiver.recv().await.unwrap()
}

/// Sends, reads at most one reply, and closes with replies unread and usually with a write in
/// flight.
async fn leave_unread(mut client: Client) {
    let reads = fastrand::bool();
    for _ in 0..fastrand::u32(1..20) {
        match for_a_moment(client.send(message(1))).await {
            Some(sent) => sent.unwrap(),
            None => break,
        }
    }
    if reads {
        if let Some(received) = for_a_moment(client.recv()).await {
            received.unwrap().unwrap();
        }
    }
}

/// The well-behaved client: it calls, pipelines and is answered until the end.
async fn stay(mut client: Client, until: Instant) {
    while Instant::now() < until {
        let messages: Vec<Bytes> = (0..fastrand::u32(1..8)).map(|_| message(16)).collect();
        let calls = async {
            if fastrand::bool() {
                for message in &messages {
                    assert!(client.call(message.clone()).await.unwrap() == *message);
                }
                return;
            }
            // Little enough to lie in the pipe while nobody reads it.
            for number in 0..messages.len() {
                client.send(format!("{number}")).await.unwrap();
            }
            for number in 0..messages.len() {
                let reply = client.recv().await.unwrap();
                assert_eq!(reply.unwrap(), format!("{number}"));
            }
        };
        timeout(DEADLINE, calls).await.expect("nobody answers it");
    }
}

/// Connects, sends and closes in a loop.
async fn hit_and_run(pipe: &str) {
    for _ in 0..fastrand::u32(1..50) {
        _ = connect(pipe).await.send(message(1)).await;
    }
}

/// Sends until the pipe is full of replies that it never reads, and leaves.
async fn never_read(client: Client) {
    let (_receiver, mut sender) = client.into_split();
    let sending = async { while sender.send(message(1)).await.is_ok() {} };
    _ = timeout(Duration::from_millis(50), sending).await;
}

/// Holds an instance, with or without replies that it does not read, until the server closes it.
async fn be_half_open(client: Client) {
    let (mut receiver, mut sender) = client.into_split();
    if fastrand::bool() {
        while sender.send(message(1)).await.is_ok() {}
    }
    // What was sent before may come first.
    while let Ok(Some(_)) = receiver.recv().await {}
}

/// Passes the server file descriptors, which cost it nothing but this connection.
#[cfg(target_os = "linux")]
async fn pass_descriptors(pipe: &str) {
    use std::{
        io::IoSlice,
        mem::MaybeUninit,
        os::{fd::AsFd as _, unix::net::UnixStream},
    };

    use pipe_server::PipeName;
    use rustix::{
        io::Errno,
        net::{
            AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
            SocketFlags, SocketType, connect, sendmsg, socket_with,
        },
    };

    let path = pipe.parse::<PipeName>().unwrap().to_path();
    let address = SocketAddrUnix::new(path).unwrap();
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    // Its queue is as short as can be when the server is full.
    while connect(&socket, &address) == Err(Errno::AGAIN) {
        sleep(Duration::from_millis(1)).await;
    }
    let (passed, _other) = UnixStream::pair().unwrap();
    for _ in 0..fastrand::u32(1..10) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [passed.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let message = [IoSlice::new(b"take it")];
        // Refused by the system from Linux 6.16 on, or the server has closed.
        _ = sendmsg(&socket, &message, &mut control, SendFlags::NOSIGNAL);
        yield_now().await;
    }
}

/// Sends a message over the server's limit. The server closes the connection.
async fn send_too_long(pipe: &str) {
    let longer = LONGEST + fastrand::usize(1..4096);
    let client = ClientOptions::new()
        .connect_timeout(DEADLINE)
        .max_message_size(longer);
    let mut client = client.connect(pipe).await.unwrap();
    // The server may close before it has read the whole message.
    _ = client.send(random(longer)).await;
    assert!(client.recv().await.unwrap().is_none());
}

/// A message of `shortest` to `LONGEST` bytes.
fn message(shortest: usize) -> Bytes {
    // Most are short or near a length at which engines change behavior: pages, and the pipe's
    // buffer.
    let about = |length: usize| length + fastrand::usize(0..5) - 2;
    let length = match fastrand::u32(0..10) {
        0..4 => fastrand::usize(1..300),
        4..7 => about(4096 * fastrand::usize(1..=8)),
        7..9 => about(65_536 * fastrand::usize(1..=3)),
        _ => fastrand::usize(1..=LONGEST),
    };
    random(length.clamp(shortest, LONGEST))
}

/// A random message, so that no reply can be mistaken for another.
fn random(length: usize) -> Bytes {
    let mut message = vec![0; length];
    fastrand::fill(&mut message);
    message.into()
}

/// Drops `future` after a moment, unless it completes before.
async fn for_a_moment<F: Future>(future: F) -> Option<F::Output> {
    let moment = async {
        match fastrand::u32(0..3) {
            0 => {}
            1 => yield_now().await,
            _ => sleep(Duration::from_micros(fastrand::u64(0..3000))).await,
        }
    };
    tokio::select! {
        biased;
        output = future => Some(output),
        () = moment => None,
    }
}
