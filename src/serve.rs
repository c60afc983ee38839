//! A server that answers requests with a handler.

use std::{
    fmt,
    future::{Future, IntoFuture, pending},
    marker::PhantomData,
    sync::Arc,
    time::Duration,
};

use self::{
    accept::Signal,
    admission::{Admission, Authorize, OnConnect, UserLimit, Users},
    budget::Budget,
    conversation::{Conversation, Options, Server},
};
use crate::{
    connection::AnySession,
    defaults,
    error::BoxError,
    handler::{ConnectionInfo, Handler},
    listener::PipeListener,
    peer::Peer,
    telemetry::Stats,
};

pub use self::{
    accept::{ServeConnections, ServeFuture, Summary, serve_connections},
    into_result::IntoResult,
    shutdown::Shutdown,
};

mod accept;
mod admission;
mod budget;
mod concurrent;
mod conversation;
mod failure;
mod guard;
mod inbound;
mod into_result;
mod outbound;
mod shutdown;
mod tasks;

/// Serves every client of `listener` with `handler`, each in a task of its own.
///
/// The handler runs in two spans of `tracing`. `connection`, at INFO, has `pipe.name`, `connection.id` and, once
/// they are known, `peer.pid` and `peer.user`; `request`, at DEBUG, has `request.bytes` and, once the handler has
/// returned, `request.latency_us` and `reply.bytes`. [`Reason`](crate::Reason) lists what is logged as a warning or
/// an error.
///
/// Await the result. It ends only after [`Serve::with_graceful_shutdown`]; dropping it ends every
/// connection at once. With thousands of short connections, spawn it: a spawned task accepts faster than the
/// future that `block_on` or `#[tokio::main]` runs, which does not run on a worker.
///
/// On Windows, build the runtime with `global_queue_interval(1)` if some clients are busy and others need short
/// latencies. The overlapped engine wakes tasks through the queue that all workers share, and a busy worker looks
/// there only once in tens of polls by default. Under Wine, beside 16 clients with 16 requests in flight each, 99 % of
/// an idle client's requests then waited for at most 47 other requests instead of 191, at no lower rate. `pipe-server`
/// sets it. On Linux the workers themselves wake the tasks.
///
/// On Windows, `os::windows::ServeExt::inline_completions` saves a switch of threads for each request.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use pipe_server::{Bytes, Client, PipeListener, serve};
///
/// let name = format!("serve-example-{}", std::process::id());
/// let listener = PipeListener::bind(&name)?;
/// tokio::spawn(serve(listener, |request: Bytes| async move { request }).into_future());
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
            write_timeout: Some(defaults::WRITE_TIMEOUT),
            concurrency: defaults::CONCURRENCY,
            cancel_on_disconnect: false,
            max_buffered_bytes: Some(defaults::MAX_BUFFERED_BYTES),
            max_connections_per_user: UserLimit::default(),
            inline_completions: false,
        },
        authorize: None,
        on_connect: None,
        drain_timeout: Some(defaults::DRAIN_TIMEOUT),
        signal: Box::pin(pending()),
        _requests: PhantomData,
    }
}

/// A server that is ready to run, from [`serve`]. Await it.
#[must_use = "a server does nothing unless it is awaited"]
pub struct Serve<H, T> {
    listener: PipeListener,
    handler: H,
    /// `os` has options for one system.
    pub(crate) options: Options,
    authorize: Option<Authorize>,
    on_connect: Option<OnConnect>,
    drain_timeout: Option<Duration>,
    signal: Signal,
    _requests: PhantomData<fn(T)>,
}

impl<H, T> Serve<H, T> {
    /// A handle to the server's live figures. Its [`Summary`] has the final ones.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.listener.stats()
    }

    /// Shuts down when `signal` completes: stops accepting, releases the name, lets requests in flight finish and
    /// sends their replies, and aborts the rest after the drain timeout.
    ///
    /// Sent replies can still be read after the server has shut down.
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.signal = Box::pin(signal);
        self
    }

    /// How long requests in flight may take once a shutdown has begun; `None` for no limit. Default:
    /// [`defaults::DRAIN_TIMEOUT`], 10 s.
    pub fn drain_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.drain_timeout = time.into();
        self
    }

    /// How many requests of one client may be in the handler at once. Default: [`defaults::CONCURRENCY`], 1.
    ///
    /// This is for clients that pipeline: with 10, ten requests that each wait 50 ms take 50 ms together instead
    /// of 500 ms. The handler's futures run in the connection's task, so they overlap only while they wait. For work
    /// that keeps a processor busy, the handler uses [`tokio::spawn`] or [`tokio::task::spawn_blocking`].
    ///
    /// The handler is called in the order of the requests, and replies are sent in that order: a reply may have to wait
    /// for an earlier one. Waiting replies count, so that a client never has more than `requests` of both
    /// together. Handlers must not depend on an earlier request of the client being finished, and share its
    /// [`Session`](crate::Session).
    ///
    /// [`handler_timeout`](Self::handler_timeout) applies to each request. If a request exceeds it, fails or panics,
    /// later ones are cancelled at once, earlier ones are still answered, and then the connection is closed. A reply
    /// that is empty or too long closes the connection when it is about to be sent. If the client does not read its
    /// replies in time or, with [`cancel_on_disconnect`](Self::cancel_on_disconnect), has disconnected, all requests
    /// are cancelled. If the client ends the conversation, or the server shuts down gracefully, all
    /// requests in flight are answered.
    ///
    /// # Panics
    ///
    /// If `requests` is 0.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::{future::IntoFuture, time::Duration};
    /// use pipe_server::{Bytes, Client, PipeListener, serve};
    /// use tokio::time::sleep;
    ///
    /// let name = format!("concurrency-example-{}", std::process::id());
    /// let listener = PipeListener::bind(&name)?;
    /// let serving = serve(listener, |request: Bytes| async move {
    ///     sleep(Duration::from_millis(50)).await;
    ///     request
    /// })
    /// .concurrency(10);
    /// tokio::spawn(serving.into_future());
    ///
    /// let mut client = Client::connect(&name).await?;
    /// for number in 0..10_u8 {
    ///     client.send(vec![number]).await?;
    /// }
    /// // All of them after 50 ms.
    /// for number in 0..10_u8 {
    ///     assert_eq!(client.recv().await?.unwrap(), vec![number]);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn concurrency(mut self, requests: usize) -> Self {
        assert!(requests > 0, "concurrency(0): use 1 or more");
        self.options.concurrency = requests;
        self
    }

    /// How long a client may send no request before its connection is closed; `None`, the default, for no
    /// limit. Time during which a request of that client is in the handler does not count.
    pub fn idle_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.options.idle_timeout = time.into();
        self
    }

    /// How long the handler may take for one request, and `authorize` and `on_connect` for one client, before that
    /// client's connection is closed; `None`, the default, for no limit.
    pub fn handler_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.options.handler_timeout = time.into();
        self
    }

    /// How long a reply may wait for a client that does not read before its connection is closed; `None` for no
    /// limit. Default: [`defaults::WRITE_TIMEOUT`], 30 s.
    pub fn write_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.options.write_timeout = time.into();
        self
    }

    /// Whether the handler's future is dropped when its client is found to have disconnected. Default: no, since
    /// a client may send a request and disconnect without waiting for the reply.
    ///
    /// To detect it, up to 16 further requests, or 64 KiB of them, are read ahead while the handler runs. For a
    /// client that has sent more, or has ended the conversation, and while the server holds
    /// [`max_buffered_bytes`](Self::max_buffered_bytes), the system is asked once a second. A client that
    /// has disconnected is not served further: its requests that were not begun are dropped.
    pub fn cancel_on_disconnect(mut self, cancel: bool) -> Self {
        self.options.cancel_on_disconnect = cancel;
        self
    }

    /// How many bytes the server may buffer for all of its clients together, in received requests and unsent
    /// replies; `None` for no limit. Default: [`defaults::MAX_BUFFERED_BYTES`],
    /// 256 MiB.
    ///
    /// At the limit, clients are read one at a time, in the order in which they sent: a request is answered, and
    /// its reply sent, before the next client is read. No client is refused or lost, and the limit is exceeded
    /// by at most one message per thread that runs handlers. Clients that wait for their turn are not subject to
    /// [`idle_timeout`](Self::idle_timeout); set
    /// [`handler_timeout`](Self::handler_timeout) as well, to limit how long they wait for a stuck handler.
    ///
    /// The bytes buffered for one client are limited too: the request being answered (with
    /// [`concurrency`](Self::concurrency), that many requests or their replies), 256 KiB of replies and one more reply,
    /// and with [`cancel_on_disconnect`](Self::cancel_on_disconnect) 64 KiB of requests and one more request. Not counted are the engine's buffers (on Linux, 16 messages of up to 64 KiB), differences of less
    /// than 1 KiB per request, and what a handler keeps.
    pub fn max_buffered_bytes(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.options.max_buffered_bytes = bytes.into();
        self
    }

    /// How many connections one user may have; further ones are refused. `None` for no limit.
    ///
    /// By default every user may have [`defaults::MAX_CONNECTIONS_PER_USER`], 256, except the server's own user
    /// and the system (root; SYSTEM and Administrators), who have no limit because they could stop the server
    /// anyway. This default applies only if [`access`](crate::ListenerOptions::access) lets other users connect. A
    /// number set here applies to everyone.
    ///
    /// Clients are refused as by [`authorize`](Self::authorize), and before it. On Windows a client is counted
    /// once the system can identify it. One that never sends a message may stay unidentified, and is limited only by
    /// [`max_instances`](crate::ListenerOptions::max_instances) and
    /// [`idle_timeout`](Self::idle_timeout). Clients that the system can't identify are counted together.
    pub fn max_connections_per_user(mut self, connections: impl Into<Option<usize>>) -> Self {
        self.options.max_connections_per_user = match connections.into() {
            Some(limit) => UserLimit::Everybody(limit),
            None => UserLimit::Nobody,
        };
        self
    }

    /// Calls `authorize` for each client to decide whether to serve it: before its first request reaches the
    /// handler, and before [`on_connect`](Self::on_connect). It returns a `bool`, or a `Result`
    /// whose error says why not, and may take up to the [`handler_timeout`](Self::handler_timeout).
    ///
    /// A refused client is disconnected and counted ([`Summary::refused`]), and a warning with its peer and the
    /// error is logged.
    ///
    /// On Linux this happens when the client connects. On Windows, too, if the system can identify the client by
    /// then. Other clients, such as those that ask for dynamic tracking, are identified once their first
    /// message has been received (*ImpersonateNamedPipeClient*). That message reaches the handler only if the
    /// client is authorized, and `on_connect` runs after it. A client that can't be identified even then is
    /// refused.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::{collections::HashSet, future::IntoFuture, sync::Arc};
    /// use pipe_server::{Bytes, Client, Peer, PipeListener, UserId, serve};
    ///
    /// let name = format!("authorize-example-{}", std::process::id());
    /// let listener = PipeListener::bind(&name)?;
    /// let denied: Arc<HashSet<UserId>> = Arc::default();
    /// let serving = serve(listener, |request: Bytes| async move { request }).authorize(move |peer: Peer| {
    ///     let denied = Arc::clone(&denied);
    ///     async move { !denied.contains(peer.user()) }
    /// });
    /// tokio::spawn(serving.into_future());
    ///
    /// let mut client = Client::connect(&name).await?;
    /// assert_eq!(client.call("hello").await?, "hello");
    /// # Ok(()) }
    /// ```
    // By value, as `on_connect`.
    pub fn authorize<A, Deciding>(mut self, authorize: A) -> Self
    where
        A: Fn(Peer) -> Deciding + Send + Sync + 'static,
        Deciding: Future<Output: IntoResult> + Send + 'static,
    {
        const {
            assert!(
                Deciding::Output::DECIDES,
                "authorize has to return a bool or a Result: with () it would admit everyone"
            );
        }
        self.authorize = Some(Box::new(move |peer| {
            let deciding = authorize(peer);
            Box::pin(async move { deciding.await.into_result() })
        }));
        self
    }

    /// Runs `connect` for each client before its first request is read. The returned value belongs to that
    /// client: handlers take it as [`Session<V>`](crate::Session), and it is dropped when the client
    /// disconnects.
    ///
    /// An error refuses the client: its connection is closed, and a warning with its peer and the error is
    /// logged. A server that only refuses clients, without a session, returns `Ok(())`.
    ///
    /// On Windows some clients can be identified only once a message has been received from them, so
    /// [`ConnectionInfo::peer`] may fail here. It does not if [`authorize`](Self::authorize) is set, since that
    /// waits until they can.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::{future::IntoFuture, sync::Mutex};
    /// use pipe_server::{BoxError, Client, ConnectionInfo, PipeListener, Session, serve};
    ///
    /// let name = format!("on-connect-example-{}", std::process::id());
    /// let listener = PipeListener::bind(&name)?;
    /// let serving = serve(listener, |seen: Session<Mutex<Vec<String>>>, word: String| async move {
    ///     let mut seen = seen.lock().unwrap();
    ///     seen.push(word);
    ///     seen.join(" ")
    /// })
    /// .on_connect(|connection: ConnectionInfo| async move {
    ///     println!("client {}", connection.id());
    ///     Ok::<_, BoxError>(Mutex::new(Vec::<String>::new()))
    /// });
    /// tokio::spawn(serving.into_future());
    ///
    /// let mut client = Client::connect(&name).await?;
    /// assert_eq!(client.call("hello").await?, "hello");
    /// assert_eq!(client.call("world").await?, "hello world");
    /// # Ok(()) }
    /// ```
    // By value: a future can't borrow from the argument of the closure that creates it.
    pub fn on_connect<C, Made, V, E>(mut self, connect: C) -> Self
    where
        C: Fn(ConnectionInfo) -> Made + Send + Sync + 'static,
        Made: Future<Output = Result<V, E>> + Send + 'static,
        V: Send + Sync + 'static,
        E: Into<BoxError>,
    {
        self.on_connect = Some(Box::new(move |connection| {
            let made = connect(connection);
            Box::pin(async move {
                let session = made.await.map_err(Into::into)?;
                Ok(Arc::new(session) as AnySession)
            })
        }));
        self
    }
}

impl<H, T> fmt::Debug for Serve<H, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Serve")
            .field("listener", &self.listener)
            .field("options", &self.options)
            .field("drain_timeout", &self.drain_timeout)
            .finish_non_exhaustive()
    }
}

impl<H, T> IntoFuture for Serve<H, T>
where
    H: Handler<T>,
    T: 'static,
{
    type Output = Summary;
    type IntoFuture = ServeFuture;

    fn into_future(self) -> ServeFuture {
        ServeFuture::new(self.run())
    }
}

impl<H, T> Serve<H, T>
where
    H: Handler<T>,
    T: 'static,
{
    async fn run(self) -> Summary {
        let server = Arc::new(Server {
            handler: Arc::new(self.handler),
            options: self.options,
            admission: Admission {
                authorize: self.authorize,
                on_connect: self.on_connect,
                users: Arc::new(Users::new(
                    self.options.max_connections_per_user,
                    self.listener.admits_others(),
                )),
                time_limit: self.options.handler_timeout,
            },
            budget: Arc::new(Budget::new(self.options.max_buffered_bytes)),
            telemetry: self.listener.telemetry().clone(),
        });
        let mut serving = serve_connections(self.listener, move |connection, shutdown| {
            let server = Arc::clone(&server);
            async move {
                let mut conversation = Conversation::<H, T>::new(connection, shutdown, server);
                conversation.run().await;
            }
        });
        serving.inline_completions = self.options.inline_completions;
        let mut summary = serving
            .drain_timeout(self.drain_timeout)
            .with_graceful_shutdown(self.signal)
            .run()
            .await;
        summary.refused = summary.stats.refused;
        summary.served -= summary.refused;
        summary.requests = summary.stats.requests;
        summary.replies = summary.stats.replies;
        summary
    }
}
