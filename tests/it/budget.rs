//! The limit on the bytes that a server holds for its clients, on every engine.

use std::{
    future::{IntoFuture as _, pending},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pipe_server::{Bytes, Handler, ListenerOptions, Reason, Serve, Stats, serve};
use support::{Kind, Pipe, message, on_every_engine, server::Server, tuned};
#[cfg(target_os = "linux")]
use tokio::task::yield_now;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};

on_every_engine! {
    serving:
    at_the_limit_each_client_has_one_request_at_a_time_and_none_is_lost,
    a_client_with_a_stuck_request_stops_nobody,
    one_that_does_not_read_is_closed_and_the_others_are_served,
    one_that_reads_is_never_closed,
}

fn start<H: Handler<T>, T: 'static>(serving: Serve<H, T>) -> (Server, Stats) {
    let stats = serving.stats();
    let serving = tuned(serving);
    let server = Server::run(|signal| serving.with_graceful_shutdown(signal).into_future());
    (server, stats)
}

async fn at_the_limit_each_client_has_one_request_at_a_time_and_none_is_lost(kind: Kind) {
    for concurrency in [1, 4] {
        let (listener, pipe) = kind.bind(ListenerOptions::new());
        let at_work = AtWork::default();
        let working = at_work.clone();
        let serving = serve(listener, move |request: Bytes| {
            working.clone().answer(request)
        });
        let serving = serving.max_buffered_bytes(1).concurrency(concurrency);
        let (server, _) = start(serving);
        // These have sent nothing, and keep nobody from being read.
        let silent = [pipe.connect().await, pipe.connect().await];
        eight_clients_pipeline(pipe).await;
        assert!(at_work.most() <= 8, "{}", at_work.most());
        for mut client in silent {
            assert_eq!(client.call("at last").await.unwrap(), "at last");
        }
        server.stop().await;
    }
}

/// A handler, and how many requests it had at once.
#[derive(Clone, Default)]
struct AtWork {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl AtWork {
    async fn answer(self, request: Bytes) -> Bytes {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        // Long enough for all the others to be read.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        self.now.fetch_sub(1, Ordering::SeqCst);
        request
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

/// Each client sends all of its requests before it reads a reply.
async fn eight_clients_pipeline(pipe: Pipe) {
    let pipe = Arc::new(pipe);
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let pipe = Arc::clone(&pipe);
            tokio::spawn(async move {
                let (mut receiver, mut sender) = pipe.connect().await.into_split();
                for number in 0..4 {
                    sender.send(message(client + number, 4000)).await.unwrap();
                }
                for number in 0..4 {
                    let reply = receiver.recv().await.unwrap().unwrap();
                    assert!(reply == message(client + number, 4000), "{number}");
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
}

/// Echoes, but never answers a request of `stuck` bytes. The length of each request goes to
/// `asked`.
fn echo_but_for(stuck: usize, asked: mpsc::UnboundedSender<usize>) -> impl Handler<(Bytes,)> {
    move |request: Bytes| {
        _ = asked.send(request.len());
        async move {
            match request.len() == stuck {
                true => pending().await,
                false => request,
            }
        }
    }
}

async fn a_client_with_a_stuck_request_stops_nobody(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new());
    let (asked, mut was_asked) = mpsc::unbounded_channel();
    let serving = serve(listener, echo_but_for(4000, asked));
    let serving = serving.max_buffered_bytes(1).cancel_on_disconnect(true);
    let (server, _) = start(serving);
    let mut stuck = pipe.connect().await;
    stuck.send(message(0, 4000)).await.unwrap();
    assert_eq!(was_asked.recv().await, Some(4000));
    let (mut one, mut other) = (pipe.connect().await, pipe.connect().await);
    for number in 0..4 {
        for client in [&mut one, &mut other] {
            let sent = message(number, 3000);
            assert!(client.call(sent.clone()).await.unwrap() == sent);
            assert_eq!(was_asked.recv().await, Some(3000));
        }
    }
    drop((stuck, one, other));
    server.stop().await;
}

async fn one_that_does_not_read_is_closed_and_the_others_are_served(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new().buffer_size(4096));
    let serving = serve(listener, |request: Bytes| async move { request });
    let (server, stats) = start(serving.max_buffered_bytes(20_000).write_timeout(None));
    let mut attackers = JoinSet::new();
    for number in 0..8 {
        let mut client = pipe.connect().await;
        attackers.spawn(async move {
            while client.send(message(number, 4000)).await.is_ok() {}
            // The replies that the pipe holds are not lost.
            let mut replies = 0;
            while let Ok(Some(reply)) = client.recv().await {
                assert!(reply == message(number, 4000));
                replies += 1;
            }
            replies
        });
    }
    let mut client = pipe.connect().await;
    let mut number = 0;
    // Each of them holds 4,000 bytes at least.
    while stats.snapshot().errors.get(Reason::BufferedBytes) < 4 {
        let sent = message(number, 3000);
        assert!(client.call(sent.clone()).await.unwrap() == sent);
        number += 1;
        sleep(Duration::from_millis(10)).await;
    }
    assert!(attackers.join_next().await.unwrap().unwrap() > 0);
    attackers.shutdown().await;
    assert_eq!(client.call("at last").await.unwrap(), "at last");
    drop(client);
    assert_eq!(server.stop().await.aborted, 0);
}

async fn one_that_reads_is_never_closed(kind: Kind) {
    let (listener, pipe) = kind.bind(ListenerOptions::new().buffer_size(4096));
    let serving = serve(listener, |request: Bytes| async move { request });
    let (server, stats) = start(serving.max_buffered_bytes(1).concurrency(3));
    let (mut receiver, mut sender) = pipe.connect().await.into_split();
    let messages = if cfg!(any(miri, pipe_model)) { 20 } else { 300 };
    let sending = tokio::spawn(async move {
        for number in 0..messages {
            sender.send(message(number, 4000)).await.unwrap();
        }
        sender
    });
    for number in 0..messages {
        let reply = receiver.recv().await.unwrap().unwrap();
        assert!(reply == message(number, 4000), "{number}");
    }
    drop((receiver, sending.await.unwrap()));
    server.stop().await;
    assert_eq!(stats.snapshot().errors.get(Reason::BufferedBytes), 0);
}

/// On Linux, one call receives up to 16 messages.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn messages_that_were_received_ahead_are_counted() {
    support::in_time(messages_received_ahead()).await;
}

#[cfg(target_os = "linux")]
async fn messages_received_ahead() {
    let (listener, pipe) = Kind::Seqpacket.bind(ListenerOptions::new());
    let (asked, mut was_asked) = mpsc::unbounded_channel();
    let serving = serve(listener, echo_but_for(5000, asked));
    let serving = serving.max_buffered_bytes(32 * 1024).concurrency(2);
    let (server, _) = start(serving.cancel_on_disconnect(true));
    let mut holder = pipe.connect().await;
    // Two calls find a message each, and the third receives 15 behind the one that is answered.
    for _ in 0..3 {
        holder.send(message(0, 100)).await.unwrap();
    }
    for _ in 0..15 {
        holder.send(message(0, 5000)).await.unwrap();
    }
    for length in [100, 100, 100, 5000] {
        assert_eq!(was_asked.recv().await, Some(length));
    }
    let mut other = pipe.connect().await;
    other.send(message(0, 5000)).await.unwrap();
    other.send(message(0, 3000)).await.unwrap();
    assert_eq!(was_asked.recv().await, Some(5000));
    for _ in 0..1000 {
        yield_now().await;
    }
    // The other client holds a request, and both together hold more than the limit.
    assert!(was_asked.try_recv().is_err());
    drop(holder);
    assert_eq!(was_asked.recv().await, Some(3000));
    drop(other);
    server.stop().await;
}
