//! Anything can be dropped at any time: with operations in flight, on a thread outside any runtime,
//! and after the runtime is gone. Nothing keeps the name.

use std::{
    any::Any,
    future::{Future, IntoFuture, pending, poll_fn},
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use pipe_server::{Bytes, ClientOptions, ConnectError, Connection, ListenerOptions, Serve, serve};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
    task::yield_now,
    time::{sleep, timeout},
};

use support::{Kind, Pipe, message, on_every_engine, same_system};

on_every_engine! {
    threads:
    everything_can_be_dropped_outside_the_runtime,
    everything_can_be_dropped_after_the_runtime,
    a_server_ends_with_its_runtime,
    a_waker_may_drop_a_connection,
}

mod listeners {
    use super::*;

    on_every_engine! {
        nobody_gets_in_after_the_listener_is_dropped,
        a_client_that_sent_and_left_before_a_shutdown_is_served,
    }
}

/// Longer than releasing the name takes. After this, something keeps it.
const DEADLINE: Duration = Duration::from_secs(if cfg!(miri) { 3600 } else { 20 });

type Things = Vec<Box<dyn Any + Send>>;

async fn everything_can_be_dropped_outside_the_runtime(kind: Kind) {
    for order in [Order::AsCreated, Order::Reversed] {
        let (things, pipes) = things(kind).await;
        on_a_thread(move || order.drop(things));
        for pipe in pipes {
            can_be_served_again(kind, pipe).await;
        }
    }
}

async fn everything_can_be_dropped_after_the_runtime(kind: Kind) {
    for (order, workers) in [
        (Order::AsCreated, 0),
        (Order::Reversed, 0),
        (Order::AsCreated, 2),
    ] {
        let pipes = on_a_thread(move || {
            let runtime = runtime(workers);
            let (things, pipes) = runtime.block_on(things(kind));
            drop(runtime);
            order.drop(things);
            pipes
        });
        for pipe in pipes {
            can_be_served_again(kind, pipe).await;
        }
    }
}

async fn a_server_ends_with_its_runtime(kind: Kind) {
    for workers in [0, 2] {
        let (client, pipe) = on_a_thread(move || {
            let runtime = runtime(workers);
            let conversation = runtime.block_on(async {
                let (asked, mut was_asked) = mpsc::unbounded_channel();
                let (listener, pipe) = kind.bind(ListenerOptions::new());
                let serving = serve(listener, move |_: Bytes| {
                    _ = asked.send(());
                    pending::<io::Result<Bytes>>()
                });
                tokio::spawn(serving.into_future());
                let mut client = pipe.connect().await;
                client.send("in progress").await.unwrap();
                was_asked.recv().await.unwrap();
                (client, pipe)
            });
            drop(runtime);
            conversation
        });
        drop(client);
        can_be_served_again(kind, pipe).await;
    }
}

/// Waking runs the caller's code, so it must not happen under a lock.
async fn a_waker_may_drop_a_connection(kind: Kind) {
    let (mut listener, pipe) = kind.bind(ListenerOptions::new().max_instances(2));
    let _clients = (pipe.connect().await, pipe.connect().await);
    let first = listener.accept().await.unwrap();
    let second = listener.accept().await.unwrap();
    {
        let waker = Waker::from(Arc::new(DropsWhenWoken(Mutex::new(Some(second)))));
        let mut accepting = pin!(listener.accept());
        let polled = accepting.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending(), "both instances are connected");
        let (done, dropped) = std::sync::mpsc::channel();
        let enter = same_system();
        thread::spawn(move || {
            enter();
            drop(first);
            _ = done.send(());
        });
        assert!(dropped.recv_timeout(DEADLINE).is_ok(), "deadlock");
    }
    let mut client = pipe.connect().await;
    client.send("still there").await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    assert_eq!(connection.recv().await.unwrap().unwrap(), "still there");
}

/// Nothing else runs between the drop and the open, such as what the engine has begun at the drop.
async fn nobody_gets_in_after_the_listener_is_dropped(kind: Kind) {
    #[cfg(target_os = "linux")]
    if kind == Kind::Inherited {
        // Such clients wait for whoever serves the socket next, which it outlives.
        return;
    }
    for is_waiting in [true, false] {
        let (mut listener, pipe) = kind.bind(ListenerOptions::new());
        if is_waiting {
            poll_once(listener.accept());
        }
        drop(listener);
        let error = pipe.try_connect(ClientOptions::new()).await.unwrap_err();
        assert!(matches!(error, ConnectError::NotFound { .. }), "{error:?}");
    }
}

/// On the tokio engine, mio has begun to read the message when the listener is closed.
async fn a_client_that_sent_and_left_before_a_shutdown_is_served(kind: Kind) {
    #[cfg(target_os = "linux")]
    if kind == Kind::Inherited {
        // Whoever serves the socket next serves it.
        return;
    }
    for clients in [1, 2] {
        let (mut listener, pipe) = kind.bind(ListenerOptions::new().backlog(2));
        let woken = poll_once(listener.accept());
        for number in 0..clients {
            let mut client = pipe.connect().await;
            client.send(message(number, 100)).await.unwrap();
        }
        // The engine has noticed the first client; the others it may notice later.
        while !woken.0.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(1)).await;
        }
        let serving = serve(listener, |request: Bytes| async move { request });
        let summary = serving.with_graceful_shutdown(async {}).await;
        assert_eq!((summary.served, summary.aborted), (clients as u64, 0));
        assert_eq!(summary.stats.requests, clients as u64);
    }
}

/// Polls a future once, which is pending, and drops it. Returns whether it has been woken since.
fn poll_once<T>(future: impl Future<Output = T>) -> Arc<Woken> {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let polled = pin!(future).poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    woken
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct DropsWhenWoken(Mutex<Option<Connection>>);

impl Wake for DropsWhenWoken {
    fn wake(self: Arc<Self>) {
        let connection = self.0.lock().unwrap().take();
        drop(connection);
    }
}

#[derive(Clone, Copy)]
enum Order {
    AsCreated,
    Reversed,
}

impl Order {
    fn drop(self, mut things: Things) {
        if let Self::Reversed = self {
            things.reverse();
        }
        for thing in things {
            drop(thing);
        }
    }
}

/// One of everything that can be dropped, with operations in flight, and the pipes that they belong
/// to.
async fn things(kind: Kind) -> (Things, Vec<Pipe>) {
    let mut things = Things::new();

    let (mut listener, pipe) = kind.bind(ListenerOptions::new().buffer_size(4096));
    let mut connections = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(pipe.connect().await);
        connections.push(listener.accept().await.unwrap());
    }
    let mut next = || connections.pop().unwrap();
    things.push(Box::new(next()));
    things.push(receiving(next()).await);
    things.push(sending(next(), kind).await);
    let mut both = sending_and_receiving(next(), kind).await;
    things.append(&mut both);
    let (receiver, sender) = next().into_split();
    things.extend([Box::new(receiver) as Box<dyn Any + Send>, Box::new(sender)]);
    let (receiver, sender) = clients.pop().unwrap().into_split();
    things.extend([Box::new(sender) as Box<dyn Any + Send>, Box::new(receiver)]);
    let mut calling = clients.pop().unwrap();
    things.push(started(async move { drop(calling.call("never answered").await) }).await);
    things.push(started(async move { drop(listener.accept().await) }).await);
    things.push(Box::new(clients));
    things.push(Box::new(connections));

    let (listener, idle) = kind.bind(ListenerOptions::new());
    things.push(Box::new(listener));

    let (listener, unused) = kind.bind(ListenerOptions::new());
    let unused_server: Serve<_, _> = serve(listener, |request: Bytes| async move {
        Ok::<_, io::Error>(request)
    });
    things.push(Box::new(unused_server));

    let (asked, mut was_asked) = mpsc::unbounded_channel();
    let (listener, busy) = kind.bind(ListenerOptions::new());
    let serving = serve(listener, move |_: Bytes| {
        _ = asked.send(());
        pending::<io::Result<Bytes>>()
    });
    let mut serving = serving.into_future();
    let mut client = busy.connect().await;
    client.send("in progress").await.unwrap();
    tokio::select! {
        _ = &mut serving => unreachable!("the server has no shutdown signal"),
        request = was_asked.recv() => request.unwrap(),
    }
    things.push(Box::new(serving));
    things.push(Box::new(client));

    (things, vec![pipe, idle, unused, busy])
}

async fn receiving(mut connection: Connection) -> Box<dyn Any + Send> {
    started(async move { drop(connection.recv().await) }).await
}

async fn sending(mut connection: Connection, kind: Kind) -> Box<dyn Any + Send> {
    let message = Bytes::from(message(1, kind.longest().min(65_536)));
    started(async move { while connection.send(message.clone()).await.is_ok() {} }).await
}

async fn sending_and_receiving(connection: Connection, kind: Kind) -> Things {
    let (mut receiver, mut sender) = connection.into_split();
    let message = Bytes::from(message(2, kind.longest().min(65_536)));
    vec![
        started(async move { while sender.send(message.clone()).await.is_ok() {} }).await,
        started(async move { drop(receiver.recv().await) }).await,
    ]
}

/// Polls a future once, and returns it pending.
async fn started(future: impl Future<Output = ()> + Send + 'static) -> Box<dyn Any + Send> {
    let mut future = Box::pin(future);
    let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
    assert!(polled.is_pending());
    Box::new(future)
}

/// A runtime with `workers` worker threads, or a current-thread runtime for 0.
fn runtime(workers: usize) -> Runtime {
    let mut builder = match workers {
        0 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if workers > 0 {
        builder.worker_threads(workers);
    }
    builder.on_thread_start(same_system());
    #[cfg(not(miri))]
    builder.enable_io();
    builder.enable_time().build().unwrap()
}

/// Runs a function on a thread outside any runtime.
fn on_a_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let enter = same_system();
    let thread = thread::spawn(move || {
        enter();
        run()
    });
    thread.join().unwrap()
}

/// Asserts that the name disappears, and that clients reach the next server on it.
async fn can_be_served_again(kind: Kind, pipe: Pipe) {
    let gone = async {
        loop {
            let options = ClientOptions::new().connect_timeout(Duration::ZERO);
            match pipe.try_connect(options).await {
                Err(ConnectError::NotFound { .. }) => break,
                // The system has not closed everything yet.
                Ok(_) | Err(_) => yield_now().await,
            }
        }
    };
    let gone = timeout(DEADLINE, gone).await;
    assert!(gone.is_ok(), "something keeps {pipe:?}");

    let (mut listener, pipe) = kind.bind_again(ListenerOptions::new(), pipe);
    let mut client = pipe.connect().await;
    client.send("again").await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    assert_eq!(connection.recv().await.unwrap().unwrap(), "again");
}
