//! One client's requests and replies, in its own task.

use std::{
    any::Any,
    future::{Future, poll_fn},
    marker::PhantomData,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::watch, task::yield_now, time::timeout};
use tracing::{debug, error, trace, warn};

use super::Options;
use crate::{
    connection::{Connection, End},
    error::{RecvError, SendError},
    handler::{Handler, Reply, Request},
};

/// How many requests that are there already are answered before other clients have their turn.
const TURN: u32 = 16;

/// How long a reply may wait for the next one, to be sent with it: about as long as a task may run without
/// a pause that lets others have their turn. Only a handler that breaks this rule makes it wait longer.
const LONGEST_REPLY_WAIT: Duration = Duration::from_micros(100);

/// One client being served.
pub(super) struct Conversation<H, T> {
    connection: Connection,
    handler: Arc<H>,
    options: Options,
    /// Changes when a shutdown begins.
    shutdown: watch::Receiver<bool>,
    /// Replies that may still wait in the connection: the engine may send several together. They wait only
    /// while further requests are there and can be answered at once.
    unsent: u64,
    /// When the first of them was seen to wait.
    waiting_since: Option<Instant>,
    /// How many requests were answered since this client had to be waited for.
    turn: u32,
    tally: Tally,
    _requests: PhantomData<fn(T)>,
}

/// Why a client is no longer served, other than by its own wish.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the handler failed: {0}")]
    Handler(Box<dyn std::error::Error + Send + Sync>),
    #[error("the handler panicked: {0}")]
    Panic(String),
    #[error("the handler took longer than {0:?} (handler_timeout)")]
    HandlerTimeout(Duration),
    #[error("the client sent nothing for {0:?} (idle_timeout)")]
    IdleTimeout(Duration),
    #[error("the client did not read its reply for {0:?} (write_timeout)")]
    WriteTimeout(Duration),
    #[error("the client left before its reply was ready")]
    Disconnected,
    #[error("receiving a request failed: {0}")]
    Recv(#[from] RecvError),
    #[error("sending the reply failed: {0}")]
    Send(#[from] SendError),
}

impl<H: Handler<T>, T> Conversation<H, T> {
    pub(super) fn new(
        connection: Connection,
        handler: Arc<H>,
        options: Options,
        shutdown: watch::Receiver<bool>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            connection,
            handler,
            options,
            shutdown,
            unsent: 0,
            waiting_since: None,
            turn: 0,
            tally: Tally {
                counters,
                requests: 0,
                replies: 0,
            },
            _requests: PhantomData,
        }
    }

    pub(super) async fn run(mut self) {
        debug!("client connected");
        let ended = self.converse().await;
        let (requests, replies) = (self.tally.requests, self.tally.replies);
        match ended {
            Ok(()) => debug!(requests, replies, "client served"),
            Err(failure @ (Failure::Handler(_) | Failure::Panic(_))) => {
                error!(requests, replies, "closing the connection: {failure}");
            }
            Err(failure @ (Failure::Disconnected | Failure::Send(SendError::Closed))) => {
                debug!(requests, replies, "closing the connection: {failure}");
            }
            Err(failure) => warn!(requests, replies, "closing the connection: {failure}"),
        }
    }

    async fn converse(&mut self) -> Result<(), Failure> {
        let ended = self.answer_requests().await;
        if let Err(Failure::WriteTimeout(_) | Failure::Send(_)) = ended {
            return ended;
        }
        // Whatever has ended it, the client gets what was answered before.
        let flushed = self.flush().await;
        ended.and(flushed)
    }

    async fn answer_requests(&mut self) -> Result<(), Failure> {
        // A message that came in while the handler was at work.
        let mut next = None;
        let mut shutdown = self.shutdown.clone();
        let mut shutdown = pin!(async move { _ = shutdown.changed().await });
        // An error is a server that is gone.
        while !self.shutdown.has_changed().unwrap_or(true) {
            let message = match next.take() {
                Some(message) => message,
                None => match self.recv(shutdown.as_mut()).await? {
                    Some(message) => message,
                    None => break,
                },
            };
            trace!(bytes = message.len(), "request");
            self.tally.requests += 1;
            self.flush_late_replies().await?;
            let reply = self.answer(message, &mut next).await?;
            if let Some(reply) = reply.message {
                self.feed(reply).await?;
            }
        }
        Ok(())
    }

    /// The next request, or `None` when there will be none.
    async fn recv(
        &mut self,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<Bytes>, Failure> {
        if self.turn < TURN {
            let connection = &mut self.connection;
            let there = poll_fn(|cx| Poll::Ready(connection.poll_recv(cx))).await;
            if let Poll::Ready(received) = there {
                self.turn += 1;
                return Ok(received?);
            }
            self.flush().await?;
        } else {
            self.flush().await?;
            yield_now().await;
        }
        self.turn = 0;
        let connection = &mut self.connection;
        let received = poll_fn(|cx| {
            // The request first: on a busy connection the rest is never looked at.
            if let Poll::Ready(received) = connection.poll_recv(cx) {
                return Poll::Ready(received);
            }
            shutdown.as_mut().poll(cx).map(|()| Ok(None))
        });
        match within(self.options.idle_timeout, received).await {
            Ok(received) => Ok(received?),
            Err(time) => Err(Failure::IdleTimeout(time)),
        }
    }

    async fn answer(&mut self, message: Bytes, next: &mut Option<Bytes>) -> Result<Reply, Failure> {
        let identity = Arc::clone(self.connection.identity());
        let handler = &*self.handler;
        let request = Request {
            bytes: message,
            identity,
        };
        // `call` is inside the future, so that a panic of it is caught as well. What a panic leaves half
        // done is dropped with the connection and seen by nobody.
        let mut handled = pin!(async move { handler.call(request).await });
        let connection = &mut self.connection;
        let mut watching = self.options.cancel_on_disconnect;
        let mut flushing = self.unsent > 0;
        let answered = poll_fn(|cx| {
            match catch_unwind(AssertUnwindSafe(|| handled.as_mut().poll(cx))) {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(Ok(reply))) => return Poll::Ready(Ok(reply)),
                Ok(Poll::Ready(Err(error))) => return Poll::Ready(Err(Failure::Handler(error))),
                Err(panic) => return Poll::Ready(Err(Failure::Panic(panic_text(&*panic)))),
            }
            // This one takes its time: the replies before it go out.
            if flushing && connection.poll_flush(cx)?.is_ready() {
                flushing = false;
            }
            if watching && next.is_none() {
                if let Poll::Ready(received) = connection.poll_recv(cx) {
                    match received {
                        Ok(Some(message)) => *next = Some(message),
                        Ok(None) if connection.end() == Some(End::Said) => watching = false,
                        Ok(None) => return Poll::Ready(Err(Failure::Disconnected)),
                        Err(error) => return Poll::Ready(Err(error.into())),
                    }
                }
            }
            Poll::Pending
        });
        match within(self.options.handler_timeout, answered).await {
            Ok(answered) => answered,
            Err(time) => Err(Failure::HandlerTimeout(time)),
        }
    }

    /// Begins to send a reply.
    async fn feed(&mut self, reply: Bytes) -> Result<(), Failure> {
        trace!(bytes = reply.len(), "reply");
        match within(self.options.write_timeout, self.connection.feed(reply)).await {
            Ok(begun) => begun?,
            Err(time) => return Err(Failure::WriteTimeout(time)),
        }
        self.unsent += 1;
        Ok(())
    }

    /// Another request is about to be answered: sends the replies that have waited too long to wait for it.
    async fn flush_late_replies(&mut self) -> Result<(), Failure> {
        if self.unsent == 0 {
            return Ok(());
        }
        let now = Instant::now();
        let since = *self.waiting_since.get_or_insert(now);
        if now - since > LONGEST_REPLY_WAIT {
            self.flush().await?;
        }
        Ok(())
    }

    /// Sends the replies that were begun.
    async fn flush(&mut self) -> Result<(), Failure> {
        let connection = &mut self.connection;
        let flushed = poll_fn(|cx| connection.poll_flush(cx));
        match within(self.options.write_timeout, flushed).await {
            Ok(sent) => sent?,
            Err(time) => return Err(Failure::WriteTimeout(time)),
        }
        self.tally.replies += mem::take(&mut self.unsent);
        self.waiting_since = None;
        Ok(())
    }
}

/// The output of `future`, or the time limit once it is over.
async fn within<F: Future>(limit: Option<Duration>, future: F) -> Result<F::Output, Duration> {
    let mut future = pin!(future);
    // What is ready at once, as most is, costs no timer.
    let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
    match (polled, limit) {
        (Poll::Ready(output), _) => Ok(output),
        (Poll::Pending, None) => Ok(future.await),
        (Poll::Pending, Some(time)) => timeout(time, future).await.map_err(|_| time),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no text)").to_owned()
}

/// What all conversations of a server have done.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) replies: AtomicU64,
}

/// One connection's counts, added to the server's when it ends, also by being cut off.
struct Tally {
    counters: Arc<Counters>,
    requests: u64,
    replies: u64,
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.counters
            .requests
            .fetch_add(self.requests, Ordering::Relaxed);
        self.counters
            .replies
            .fetch_add(self.replies, Ordering::Relaxed);
    }
}
