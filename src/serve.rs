//! The loop: one task a client, timeouts, and a shutdown that lets work finish.

use std::{
    any::Any,
    fmt,
    future::{Future, IntoFuture, Pending, pending, poll_fn},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::watch,
    task::{JoinSet, yield_now},
    time::{Instant, sleep, timeout},
};
use tracing::{Instrument, debug, debug_span, error, trace, warn};

use crate::{
    connection::{Connection, End},
    error::{RecvError, SendError},
    handler::{Handler, Reply, Request},
    listener::PipeListener,
};

const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// On by default: two sides that both write first would wait for each other for ever.
const DEFAULT_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause after the first failed accept, doubled after each further one.
const FIRST_ACCEPT_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How many requests that are there already are answered before other clients have their turn.
const TURN: u32 = 16;

/// How long a reply may wait for the next one, to be sent with it: about as long as a task may run without
/// a pause that lets others have their turn. Only a handler that breaks this rule makes it wait longer.
const LONGEST_REPLY_WAIT: Duration = Duration::from_micros(100);

/// Serves every client of `listener` with `handler`, each in a task of its own.
///
/// Await the result. It ends only after [`Serve::with_graceful_shutdown`]; dropping it ends every
/// connection at once. Where clients come and go by the thousand, spawn it: a task of its own accepts
/// faster than the future that `block_on` or `#[tokio::main]` runs, which is on none of the workers.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::io;
/// use pipe_server::{Bytes, Client, PipeListener, serve};
///
/// let name = format!("serve-example-{}", std::process::id());
/// let listener = PipeListener::bind(&name)?;
/// tokio::spawn(serve(listener, |request: Bytes| async move { Ok::<_, io::Error>(request) }).into_future());
///
/// let mut client = Client::connect(&name).await?;
/// assert_eq!(client.call("hello").await?, "hello");
/// # Ok(()) }
/// # use std::future::IntoFuture;
/// ```
pub fn serve<H: Handler<T>, T>(listener: PipeListener, handler: H) -> Serve<H, T> {
    Serve {
        listener,
        handler,
        options: Options {
            idle_timeout: None,
            handler_timeout: None,
            write_timeout: Some(DEFAULT_WRITE_TIMEOUT),
            cancel_on_disconnect: false,
        },
        drain_timeout: DEFAULT_DRAIN_TIMEOUT,
        signal: pending(),
        _requests: std::marker::PhantomData,
    }
}

/// A server that is ready to run, from [`serve`]. Await it.
#[must_use = "a server does nothing unless it is awaited"]
pub struct Serve<H, T, S = Pending<()>> {
    listener: PipeListener,
    handler: H,
    options: Options,
    drain_timeout: Duration,
    signal: S,
    _requests: std::marker::PhantomData<fn(T)>,
}

#[derive(Clone, Copy, Debug)]
struct Options {
    idle_timeout: Option<Duration>,
    handler_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    cancel_on_disconnect: bool,
}

/// What a server has done, once it has shut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Connections that were served to their end.
    pub served: u64,
    /// Connections that were still at work when the drain timeout was over, and were ended.
    pub cut_off: u64,
    /// Requests received.
    pub requests: u64,
    /// Replies sent.
    pub replies: u64,
}

impl<H, T, S> Serve<H, T, S> {
    /// Shuts down when `signal` is ready: stops accepting, gives up the name, lets requests in progress
    /// finish and their replies be sent, and ends what is left after the drain timeout.
    ///
    /// Replies that were sent can still be read after the server is gone.
    pub fn with_graceful_shutdown<S2>(self, signal: S2) -> Serve<H, T, S2>
    where
        S2: Future<Output = ()> + Send + 'static,
    {
        let Self {
            listener,
            handler,
            options,
            drain_timeout,
            _requests,
            ..
        } = self;
        Serve {
            listener,
            handler,
            options,
            drain_timeout,
            signal,
            _requests,
        }
    }

    /// How long requests in progress may take once a shutdown has begun. Default: 10 s.
    pub fn drain_timeout(mut self, time: Duration) -> Self {
        self.drain_timeout = time;
        self
    }

    /// How long a client may send no request before its connection is closed. Default: any time.
    pub fn idle_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.options.idle_timeout = time.into();
        self
    }

    /// How long the handler may take for one request before its client's connection is closed.
    /// Default: any time.
    pub fn handler_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.options.handler_timeout = time.into();
        self
    }

    /// How long a reply may wait for a client that does not read before its connection is closed.
    /// Default: 30 s.
    pub fn write_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.options.write_timeout = time.into();
        self
    }

    /// Whether the handler's future is dropped when its client is seen to be gone. Default: no, since a
    /// client may send a request and leave without waiting for the reply.
    ///
    /// A client that has pipelined further requests is not seen to be gone before they have been read.
    pub fn cancel_on_disconnect(mut self, cancel: bool) -> Self {
        self.options.cancel_on_disconnect = cancel;
        self
    }
}

impl<H, T, S> fmt::Debug for Serve<H, T, S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Serve")
            .field("listener", &self.listener)
            .field("options", &self.options)
            .field("drain_timeout", &self.drain_timeout)
            .finish_non_exhaustive()
    }
}

impl<H, T, S> IntoFuture for Serve<H, T, S>
where
    H: Handler<T>,
    T: 'static,
    S: Future<Output = ()> + Send + 'static,
{
    type Output = Summary;
    type IntoFuture = Pin<Box<dyn Future<Output = Summary> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<H, T, S> Serve<H, T, S>
where
    H: Handler<T>,
    T: 'static,
    S: Future<Output = ()> + Send + 'static,
{
    async fn run(self) -> Summary {
        let Self {
            mut listener,
            handler,
            options,
            drain_timeout,
            signal,
            ..
        } = self;
        let handler = Arc::new(handler);
        let counters = Arc::new(Counters::default());
        let (begin_shutdown, shutdown) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut summary = Summary::default();
        let mut pause = FIRST_ACCEPT_PAUSE;
        let mut signal = pin!(signal);

        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut signal => break,
                Some(_) = tasks.join_next() => {
                    summary.served += 1;
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            let connection = match accepted {
                Ok(connection) => connection,
                Err(error) => {
                    warn!(%error, pipe.name = %listener.local_name(), ?pause, "accepting a client failed; trying again");
                    tokio::select! {
                        () = &mut signal => break,
                        () = sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_ACCEPT_PAUSE);
                    continue;
                }
            };
            pause = FIRST_ACCEPT_PAUSE;
            let span = debug_span!("connection", pipe.name = %listener.local_name(), connection.id = connection.id());
            let task = Conversation {
                connection,
                handler: Arc::clone(&handler),
                options,
                shutdown: shutdown.clone(),
                unsent: 0,
                waiting_since: None,
                turn: 0,
                tally: Tally {
                    counters: Arc::clone(&counters),
                    requests: 0,
                    replies: 0,
                },
                _requests: std::marker::PhantomData,
            };
            tasks.spawn(task.run().instrument(span));
        }

        debug!(connections = tasks.len(), ?drain_timeout, "shutting down");
        // No client can connect any more. One that nobody accepted yet sees its pipe closed.
        drop(listener);
        begin_shutdown.send_replace(true);
        let deadline = Instant::now() + drain_timeout;
        while let Ok(Some(_)) = tokio::time::timeout_at(deadline, tasks.join_next()).await {
            summary.served += 1;
        }
        tasks.abort_all();
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(()) => summary.served += 1,
                Err(_) => summary.cut_off += 1,
            }
        }
        summary.requests = counters.requests.load(Ordering::Relaxed);
        summary.replies = counters.replies.load(Ordering::Relaxed);
        summary
    }
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    replies: AtomicU64,
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

/// One client being served.
struct Conversation<H, T> {
    connection: Connection,
    handler: Arc<H>,
    options: Options,
    /// Changes when a shutdown begins.
    shutdown: watch::Receiver<bool>,
    /// Replies that may still wait in the connection: the engine may send several together. They wait only
    /// while further requests are there and can be answered at once.
    unsent: u64,
    /// When the first of them was seen to wait.
    waiting_since: Option<std::time::Instant>,
    /// How many requests were answered since this client had to be waited for.
    turn: u32,
    tally: Tally,
    _requests: std::marker::PhantomData<fn(T)>,
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
    async fn run(mut self) {
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
        // Whatever has ended it, the client gets what was answered before.
        match ended {
            Err(Failure::WriteTimeout(_) | Failure::Send(_)) => ended,
            _ => self.flush().await.and(ended),
        }
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
            self.let_replies_wait().await?;
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

    /// Sends the unsent replies if they have waited long enough, with another request about to be answered.
    async fn let_replies_wait(&mut self) -> Result<(), Failure> {
        if self.unsent == 0 {
            return Ok(());
        }
        let now = std::time::Instant::now();
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
