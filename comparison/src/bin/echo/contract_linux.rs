//! The plain Tokio loop with what the contract of pipe-server demands of each request, added step
//! by step, each in a simple way. The difference between two steps is what the later one costs.
//!
//! Passed descriptors are not among the steps: since Linux 6.16 the kernel refuses them, at no cost
//! per request.

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::ValueEnum;
use futures_util::FutureExt as _;
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    select,
    task::yield_now,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::plain_tokio_linux;

/// What is added to the plain loop. Each step includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, ValueEnum)]
enum Step {
    /// A message that is too long closes the connection. Any other belongs to the handler; it is
    /// copied out of a buffer that the clients of a thread share, so that an idle connection holds
    /// none.
    Messages,
    /// A panic of the handler closes its own client's connection.
    Panics,
    /// A client that does not read is disconnected.
    WriteTimeout,
    /// A shutdown ends the loop between two requests. Here it never comes.
    Shutdown,
    /// The bytes of requests that are being answered, of all clients together, are limited.
    BytesInHand,
    /// A client that always has a request ready yields to the others.
    Turns,
    /// Requests, bytes and the time in the handler are counted.
    Figures,
}

const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_BYTES_IN_HAND: usize = 256 * 1024 * 1024;
const TURN: u32 = 16;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What all connections share.
#[derive(Default)]
struct Server {
    shutdown: CancellationToken,
    bytes_in_hand: AtomicUsize,
}

/// Serves with all steps up to the one of this name.
pub(crate) fn serve(
    address: &str,
    longest: usize,
    last: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let last =
        Step::from_str(last, false).map_err(|_| format!("there is no step called {last}"))?;
    let server = Arc::new(Server::default());
    let echo = |socket, longest| echo(socket, longest, last, Arc::clone(&server));
    Ok(plain_tokio_linux::serve(address, longest, echo)?)
}

async fn echo(
    socket: AsyncFd<OwnedFd>,
    longest: usize,
    last: Step,
    server: Arc<Server>,
) -> io::Result<()> {
    let figures = Figures::default();
    let mut shutdown = pin!(server.shutdown.cancelled());
    let mut turn = 0;
    loop {
        let receiving = socket.async_io(Interest::READABLE, |socket| {
            let received = receive(socket, longest);
            if matches!(received, Err(Errno::AGAIN)) {
                turn = 0;
            }
            Ok(received?)
        });
        let request = if last >= Step::Shutdown {
            select! {
                biased;
                received = receiving => received?,
                () = &mut shutdown => return Ok(()),
            }
        } else {
            receiving.await?
        };
        let length = request.len();
        if length == 0 {
            return Ok(());
        }
        let _in_hand = if last >= Step::BytesInHand {
            Some(InHand::new(&server.bytes_in_hand, length)?)
        } else {
            None
        };
        let began = (last >= Step::Figures).then(Instant::now);
        let reply = if last >= Step::Panics {
            let caught = AssertUnwindSafe(handle(request)).catch_unwind().await;
            caught.map_err(|_| io::Error::other("the handler panicked"))?
        } else {
            handle(request).await
        };
        if let Some(began) = began {
            figures.count(length, reply.len(), began.elapsed());
        }
        let sending = socket.async_io(Interest::WRITABLE, |socket| {
            Ok(send(socket, &reply, SendFlags::NOSIGNAL)?)
        });
        if last >= Step::WriteTimeout {
            timeout(WRITE_TIMEOUT, sending).await??;
        } else {
            sending.await?;
        }
        turn += 1;
        if last >= Step::Turns && turn == TURN {
            turn = 0;
            yield_now().await;
        }
    }
}

fn receive(socket: &OwnedFd, longest: usize) -> Result<Bytes, Errno> {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(longest, 0);
        let (_, length) = recv(socket, &mut buffer[..], RecvFlags::TRUNC)?;
        let message = buffer.get(..length).ok_or(Errno::MSGSIZE)?;
        Ok(Bytes::copy_from_slice(message))
    })
}

async fn handle(request: Bytes) -> Bytes {
    request
}

/// Counts the bytes of a request until it is answered.
struct InHand<'a> {
    total: &'a AtomicUsize,
    length: usize,
}

impl<'a> InHand<'a> {
    fn new(total: &'a AtomicUsize, length: usize) -> io::Result<Self> {
        let before = total.fetch_add(length, Relaxed);
        let in_hand = Self { total, length };
        match before + length {
            ..=MAX_BYTES_IN_HAND => Ok(in_hand),
            _ => Err(io::Error::other("too many bytes in hand")),
        }
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.length, Relaxed);
    }
}

/// Each connection has its own, so that threads do not write to the same cache lines.
#[derive(Default)]
struct Figures {
    requests: AtomicU64,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    handler_nanoseconds: AtomicU64,
}

impl Figures {
    fn count(&self, received: usize, sent: usize, time: Duration) {
        self.requests.fetch_add(1, Relaxed);
        self.bytes_received.fetch_add(received as u64, Relaxed);
        self.bytes_sent.fetch_add(sent as u64, Relaxed);
        self.handler_nanoseconds
            .fetch_add(time.as_nanos() as u64, Relaxed);
    }
}
