//! The loop: one task a client, timeouts, and a shutdown that lets work finish.

use std::{
    fmt,
    future::{Future, IntoFuture, Pending, pending},
    marker::PhantomData,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use tracing::{Instrument, debug, debug_span, warn};

use self::conversation::{Conversation, Counters};
use crate::{handler::Handler, listener::PipeListener};

mod conversation;

const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// On by default: two sides that both write first would wait for each other for ever.
const DEFAULT_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause after the first failed accept, doubled after each further one.
const FIRST_ACCEPT_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_ACCEPT_PAUSE: Duration = Duration::from_secs(1);

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
        _requests: PhantomData,
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
    _requests: PhantomData<fn(T)>,
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
            let conversation = Conversation::new(
                connection,
                Arc::clone(&handler),
                options,
                shutdown.clone(),
                Arc::clone(&counters),
            );
            tasks.spawn(conversation.run().instrument(span));
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
