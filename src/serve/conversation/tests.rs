//! A reply is never held back while its client waits for it.

use std::{io, sync::atomic::AtomicUsize, sync::atomic::Ordering::Relaxed};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    connection::Connection,
    engine::{Channel, Link, Receive, Received, Transmit},
    error::{RecvError, SendError},
    peer::Peer,
    serve::admission::Admission,
};

/// A client that sends a burst of requests, waits until it has all of the replies, and repeats. It
/// wakes nobody: a server that waits before it has sent all replies of a burst will wait forever.
#[derive(Clone)]
struct Bursts {
    size: usize,
    left: Arc<AtomicUsize>,
    received: Arc<AtomicUsize>,
    started: Arc<AtomicUsize>,
    sent: Arc<AtomicUsize>,
}

impl Bursts {
    fn new(size: usize, bursts: usize) -> Self {
        Self {
            size,
            left: Arc::new(AtomicUsize::new(bursts)),
            received: Arc::default(),
            started: Arc::default(),
            sent: Arc::default(),
        }
    }

    /// Returns whether the server has received only a part of a burst.
    fn is_amid(&self) -> bool {
        self.received.load(Relaxed) % self.size > 0
    }
}

impl Receive for Bursts {
    fn poll_recv(&mut self, _: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        if !self.is_amid() {
            if self.sent.load(Relaxed) < self.received.load(Relaxed) {
                return Poll::Pending;
            }
            if self.left.load(Relaxed) == 0 {
                return Poll::Ready(Ok(Received::Closed));
            }
            self.left.fetch_sub(1, Relaxed);
        }
        self.received.fetch_add(1, Relaxed);
        Poll::Ready(Ok(Received::Message("request".into())))
    }

    fn expects_more(&self) -> bool {
        self.is_amid()
    }

    fn turn(&self) -> u32 {
        4
    }

    fn close(&mut self) {
        self.left.store(0, Relaxed);
    }
}

impl Transmit for Bursts {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }

    fn start_send(&mut self, _: Bytes) -> Result<(), SendError> {
        self.started.fetch_add(1, Relaxed);
        Ok(())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.sent.store(self.started.load(Relaxed), Relaxed);
        Poll::Ready(Ok(()))
    }

    fn pending(&self) -> usize {
        0
    }
}

impl Link for Bursts {
    fn peer(&self) -> io::Result<Peer> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn is_hung_up(&self) -> bool {
        false
    }
}

async fn echo(request: Bytes) -> Bytes {
    request
}

/// Serves `client` until it closes.
async fn serve<H: Handler<T>, T>(client: &Bursts, concurrency: usize, handler: H) {
    let (_running, shutdown) = watch::channel(());
    serve_until(shutdown, client, concurrency, handler).await;
}

/// Serves `client` until it closes or the server shuts down.
async fn serve_until<H: Handler<T>, T>(
    shutdown: watch::Receiver<()>,
    client: &Bursts,
    concurrency: usize,
    handler: H,
) {
    let channel = Channel {
        receiver: Box::new(client.clone()),
        sender: Box::new(client.clone()),
        link: Arc::new(client.clone()),
    };
    let server = Arc::new(Server {
        handler: Arc::new(handler),
        options: Options {
            handler_timeout: None,
            concurrency,
            cancel_on_disconnect: false,
            max_buffered_bytes: None,
        },
        state: None,
        timeouts: Timeouts {
            idle: None,
            write: None,
        },
        budget: Arc::new(Budget::new(None)),
        telemetry: Telemetry::new("bursts".parse().unwrap()),
    });
    let client = AcceptedClient {
        connection: Connection::new(channel, None, 1, 64),
        admission: AdmissionProgress::new(&Arc::new(Admission::unlimited())),
        shutdown: Shutdown::new(shutdown),
    };
    Conversation::new(client, server).run().await;
}

#[tokio::test(start_paused = true)]
async fn every_reply_is_sent_before_the_server_waits() {
    for concurrency in [1, 3] {
        for size in 1..=20 {
            let client = Bursts::new(size, 5);
            let served = timeout(Duration::from_secs(1), serve(&client, concurrency, echo)).await;
            assert!(served.is_ok(), "a reply of a burst of {size} was held back");
            assert_eq!(client.sent.load(Relaxed), 5 * size);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn earlier_replies_are_sent_while_the_handler_is_busy() {
    let client = Bursts::new(3, 1);
    let sent = Arc::clone(&client.sent);
    let handled = Arc::new(AtomicUsize::new(0));
    let handler = move |request: Bytes| {
        let (sent, number) = (Arc::clone(&sent), handled.fetch_add(1, Relaxed));
        async move {
            // The first two are answered at once, and the third when their replies are sent.
            if number == 2 {
                while sent.load(Relaxed) < 2 {
                    sleep(Duration::from_millis(1)).await;
                }
            }
            request
        }
    };
    let served = timeout(Duration::from_secs(1), serve(&client, 1, handler)).await;
    assert!(served.is_ok(), "the replies were held back");
    assert_eq!(client.sent.load(Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_always_has_another_request_does_not_delay_a_shutdown() {
    for concurrency in [1, 3] {
        let client = Bursts::new(1, 1000);
        let (begin, shutdown) = watch::channel(());
        let handler = move |request: Bytes| {
            begin.send_replace(());
            async move { request }
        };
        serve_until(shutdown, &client, concurrency, handler).await;
        let received = client.received.load(Relaxed);
        assert!(received <= 8, "took {received} requests in the shutdown");
        // Their replies, and the empty message.
        assert_eq!(client.sent.load(Relaxed), received + 1);
    }
}
