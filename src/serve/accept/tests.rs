//! Clients that the system can't identify before their first message, as on Windows.

use std::{
    future::IntoFuture as _,
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use support::in_time;

use super::*;
use crate::{
    connection::Connection,
    engine::{
        Channel, Endpoint, Instance, Link, Receive, Received, Sizes,
        memory::{self, MemoryName},
    },
    error::{BoxError, RecvError},
    listener::ListenerOptions,
    peer::{Peer, UserId},
    serve::{serve, serve_connections},
};

/// A memory pipe whose clients are another user's, and identified by their first message.
struct Anonymous<T: ?Sized>(Box<T>);

impl Endpoint for Anonymous<dyn Endpoint> {
    fn create(&self) -> io::Result<Box<dyn Instance>> {
        Ok(Box::new(Anonymous(self.0.create()?)))
    }

    fn max_message_size(&self) -> usize {
        self.0.max_message_size()
    }
}

impl Instance for Anonymous<dyn Instance> {
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>> {
        self.0.poll_connect(cx).map_ok(|channel| {
            let link = Arc::new(AnonymousLink {
                link: channel.link,
                has_sent: AtomicBool::new(false),
            });
            let receiver = channel.receiver;
            Channel {
                receiver: Box::new(AnonymousReceiver(receiver, Arc::clone(&link))),
                sender: channel.sender,
                link,
            }
        })
    }

    fn close(&mut self) {
        self.0.close();
    }
}

struct AnonymousLink {
    link: Arc<dyn Link>,
    has_sent: AtomicBool,
}

impl Link for AnonymousLink {
    fn peer(&self) -> io::Result<Peer> {
        if !self.has_sent.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        #[cfg(windows)]
        let user = UserId::Sid("S-1-5-19".to_owned());
        #[cfg(unix)]
        let user = UserId::Uid(u32::MAX - 7);
        Ok(Peer::new(1, user))
    }

    fn is_hung_up(&self) -> bool {
        self.link.is_hung_up()
    }
}

struct AnonymousReceiver(Box<dyn Receive>, Arc<AnonymousLink>);

impl Receive for AnonymousReceiver {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        let received = self.0.poll_recv(cx);
        if let Poll::Ready(Ok(Received::Message(_))) = received {
            self.1.has_sent.store(true, Ordering::Relaxed);
        }
        received
    }

    fn turn(&self) -> u32 {
        self.0.turn()
    }

    fn close(&mut self) {
        self.0.close();
    }
}

/// A pipe that others can connect to.
fn bind(max_instances: usize) -> (PipeListener, AnonymousPipe) {
    let sizes = Sizes::new(Some(100), 1000, "memory", usize::MAX).unwrap();
    let (endpoint, name) = memory::bind(sizes);
    let options = ListenerOptions::new().max_instances(max_instances);
    let bind = |_: &Telemetry| Ok(Box::new(Anonymous(endpoint)) as Box<dyn Endpoint>);
    let listener = options.listen(&"memory".parse().unwrap(), Path::new("memory"), true, bind);
    (listener.unwrap(), AnonymousPipe(name))
}

struct AnonymousPipe(Arc<MemoryName>);

impl AnonymousPipe {
    async fn connect(&self) -> Connection {
        let mut connected = None;
        in_time(async { connected = Some(self.retry().await) }).await;
        connected.unwrap()
    }

    async fn retry(&self) -> Connection {
        loop {
            match memory::connect(&self.0, 100, |ends, _| ends) {
                Ok(channel) => return Connection::new(channel, None, 0, 100),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::ResourceBusy),
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn call(client: &mut Connection) -> Option<Bytes> {
    client.send("hello").await.ok()?;
    client.recv().await.ok()?
}

async fn echo(mut connection: Connection, _: Shutdown) -> Result<(), BoxError> {
    while let Some(message) = connection.recv().await? {
        connection.send(message).await?;
    }
    Ok(())
}

/// Starts a server of each kind, which stops with the test.
fn servers(max_instances: usize) -> [AnonymousPipe; 2] {
    let (listener, requests) = bind(max_instances);
    tokio::spawn(serve(listener, |request: Bytes| async move { request }).into_future());
    let (listener, connections) = bind(max_instances);
    tokio::spawn(serve_connections(listener, echo).into_future());
    [requests, connections]
}

#[tokio::test(start_paused = true)]
async fn the_message_that_identifies_a_client_reaches_the_code() {
    for pipe in servers(4) {
        let mut client = pipe.connect().await;
        for _ in 0..2 {
            assert_eq!(call(&mut client).await.unwrap(), "hello");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_user_gets_no_more_places_than_its_share() {
    for pipe in servers(4) {
        let mut clients = [
            pipe.connect().await,
            pipe.connect().await,
            pipe.connect().await,
        ];
        let mut served = 0;
        for client in &mut clients {
            served += usize::from(call(client).await.is_some());
        }
        assert_eq!(served, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_send_nothing_lose_their_places_when_those_are_short() {
    for pipe in servers(4) {
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(pipe.connect().await);
        }
        let mut client = pipe.connect().await;
        assert_eq!(call(&mut client).await.unwrap(), "hello");
        for client in &mut silent[..17] {
            assert!(client.recv().await.unwrap().is_none());
        }
        // Those that came last still have theirs.
        assert_eq!(call(silent.last_mut().unwrap()).await.unwrap(), "hello");
    }
}

#[tokio::test(start_paused = true)]
async fn no_task_starts_for_a_client_that_sends_nothing() {
    let (listener, pipe) = bind(4);
    let task = async |_: Connection, _: Shutdown| -> Result<(), BoxError> {
        panic!("the client is not identified")
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving =
        serve_connections(listener, task).with_graceful_shutdown(async { _ = stopped.await });
    let stats = serving.stats();
    let running = tokio::spawn(serving.into_future());
    // One that waits for too long, one that leaves, and one that is still there at the end.
    let mut waiting = pipe.connect().await;
    assert!(waiting.recv().await.unwrap().is_none());
    assert_eq!(stats.snapshot().errors.get(Reason::IdleTimeout), 1);
    drop(pipe.connect().await);
    let _last = pipe.connect().await;
    while stats.snapshot().accepted < 3 {
        sleep(Duration::from_millis(1)).await;
    }
    stop.send(()).unwrap();
    let summary = running.await.unwrap();
    assert_eq!((summary.served, summary.aborted), (3, 0));
}
