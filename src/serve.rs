//! A server that answers requests with a handler.

use std::{
    future::{Future, IntoFuture},
    marker::PhantomData,
    path::Path,
    sync::Arc,
    time::Duration,
};

use self::{
    accept::AcceptedClient,
    budget::Budget,
    conversation::{Conversation, Options, Server},
    options::ServerOptions,
};
use crate::{
    connection::{AnySession, AnyState},
    debug::debug_fields,
    defaults,
    error::BoxError,
    handler::{ConnectionInfo, Handler, WithState},
    listener::PipeListener,
    name::PipeName,
    peer::Peer,
    telemetry::Stats,
};

pub use self::{
    accept::{ServeFuture, Summary},
    connections::{ServeConnections, serve_connections},
    into_result::IntoResult,
    shutdown::Shutdown,
};

mod accept;
mod admission;
mod budget;
mod concurrent;
mod connections;
mod conversation;
mod failure;
mod guard;
mod inbound;
mod into_result;
mod options;
mod outbound;
mod shutdown;
mod tasks;
mod unidentified;

/// Serves every client of `listener` with `handler`, each in its own task.
///
/// The handler runs in two `tracing` spans. The span `connection`, at INFO, has the fields
/// `pipe.name`, `connection.id` and, once they are known, `peer.pid` and `peer.user` (a number on
/// Linux). The span `request`, at DEBUG, has `request.bytes` and, once the handler has returned,
/// `request.latency_us` and `reply.bytes`. [`Reason`](crate::Reason) lists the warnings and errors
/// that are logged. Those about a connection are logged in its span, and have its fields only if
/// the subscriber does not record that span.
///
/// The server runs once the returned value is awaited, until the signal given to
/// [`Serve::with_graceful_shutdown`] completes. Dropping its future aborts every connection. For
/// thousands of short connections, spawn it: a spawned task runs on a worker and accepts faster
/// than the future that `block_on` or `#[tokio::main]` runs.
///
/// On Windows, build the runtime with `global_queue_interval(1)` if some clients are busy and
/// others need low latency. The overlapped engine wakes tasks through the runtime's global queue,
/// which a busy worker checks only once in tens of polls by default. In a measurement under Wine,
/// with 16 busy clients of 16 requests in flight each, 99 % of the requests of an otherwise idle
/// client waited for at most 47 other requests instead of 191, at no lower throughput. The
/// `pipe-server` program sets this interval. On Linux the workers wake the tasks themselves.
///
/// On Windows, `os::windows::ServeExt::inline_completions` saves a thread switch per request.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
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
pub fn serve<H: Handler<T, S>, T, S>(listener: PipeListener, handler: H) -> Serve<H, T, S> {
    Serve {
        listener,
        handler,
        server: ServerOptions::default(),
        options: Options {
            handler_timeout: None,
            concurrency: defaults::CONCURRENCY,
            cancel_on_disconnect: false,
            max_buffered_bytes: Some(defaults::MAX_BUFFERED_BYTES),
        },
        state: None,
        _requests: PhantomData,
    }
}

/// A server that is ready to run, from [`serve`]. Await it.
///
/// If its handler takes a [`State`](crate::State), give it one first, with
/// [`with_state`](Self::with_state). `S` is the type of a state that is still to be given.
///
/// A function that builds a server can return a [`ServeFuture`], which has no type parameters.
#[must_use = "a server does nothing unless it is awaited"]
pub struct Serve<H, T, S = ()> {
    listener: PipeListener,
    handler: H,
    /// `pub(crate)` for the options that `os` adds for one system.
    pub(crate) server: ServerOptions,
    options: Options,
    state: Option<AnyState>,
    _requests: PhantomData<fn(T, S)>,
}

impl<H, T, S> Serve<H, T, S> {
    /// Sets the state of the server: handlers take it, or a part of it, as
    /// [`State`](crate::State).
    ///
    /// # Examples
    ///
    /// ```
    /// # async fn example(listener: pipe_server::PipeListener) {
    /// use std::sync::Arc;
    /// use pipe_server::{State, serve};
    ///
    /// async fn greet(State(greeting): State<Arc<str>>, name: String) -> String {
    ///     format!("{greeting} {name}")
    /// }
    ///
    /// serve(listener, greet).with_state("hello".into()).await;
    /// # }
    /// ```
    pub fn with_state(self, state: S) -> Serve<WithState<H, S>, T>
    where
        H: Handler<T, S>,
        S: Send + Sync + 'static,
    {
        Serve {
            listener: self.listener,
            handler: WithState::new(self.handler),
            server: self.server,
            options: self.options,
            state: Some(Arc::new(state)),
            _requests: PhantomData,
        }
    }

    /// Returns the name of the pipe.
    #[must_use]
    pub fn name(&self) -> &PipeName {
        self.listener.name()
    }

    /// Same as [`PipeListener::path`].
    #[must_use]
    pub fn path(&self) -> &Path {
        self.listener.path()
    }

    /// Returns a handle to the server's live statistics. The [`Summary`] has the final ones.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.listener.stats()
    }

    /// Shuts down gracefully when `signal` completes: releases the name, accepts the clients that
    /// have connected before, stops each client from sending more, and answers the requests that
    /// were sent before. Connections that are still open after the drain timeout are aborted.
    ///
    /// Clients can still read replies that were sent before the server shut down, and learn that a
    /// request without a reply was not executed
    /// ([`CallError::NotExecuted`](crate::CallError::NotExecuted)). Windows can't stop a client from
    /// sending: the server takes what is in the pipe when it closes it, and leaves later requests
    /// unread.
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.server.signal = Box::pin(signal);
        self
    }

    /// Shuts down gracefully once no client has been connected for `time`; `None`, the default, for
    /// never. A new server counts as idle until its first client connects.
    ///
    /// Nobody is lost when the time expires. The name is released first. A client that connected
    /// before is served until it leaves, or until the [`drain_timeout`](Self::drain_timeout)
    /// expires and a graceful shutdown follows. One that comes later finds that nobody serves the
    /// name, and may start a server
    /// ([`ClientOptions::start_server`](crate::ClientOptions::start_server)); on Windows the pipe is
    /// busy for it until the last client has left. On a socket that was passed to this process
    /// (`os::linux`), clients that come later stay queued for whoever serves the socket next.
    pub fn shutdown_when_idle(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.server.shutdown_when_idle = time.into();
        self
    }

    /// Sets the time limit for requests in flight once a shutdown has begun; `None` for no limit, 0 to
    /// abort them at once. Default: [`defaults::DRAIN_TIMEOUT`], 10 s.
    pub fn drain_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.server.drain_timeout = time.into();
        self
    }

    /// Sets the number of requests of one client that the handler may process at once; 0 counts as
    /// one. Default: [`defaults::CONCURRENCY`], 1.
    ///
    /// Use this for clients that pipeline: with 10, ten requests that each wait 50 ms take 50 ms
    /// together instead of 500 ms. The handler's futures run in the connection's task, so they
    /// overlap only while they wait. For CPU-bound work, use [`tokio::spawn`] or
    /// [`tokio::task::spawn_blocking`] in the handler.
    ///
    /// The handler is called in the order of the requests, and replies are sent in that order, so a
    /// reply may have to wait for an earlier one. A waiting reply counts towards `requests`.
    /// Concurrent calls for one client share its [`Session`](crate::Session), and must not assume
    /// that an earlier request has finished.
    ///
    /// [`handler_timeout`](Self::handler_timeout) applies to each request. If a request exceeds it,
    /// fails or panics, later ones are cancelled at once, earlier ones are still answered, and then
    /// the connection is closed. An empty or too long reply closes the connection when it is about
    /// to be sent. If the client does not read its replies in time or, with
    /// [`cancel_on_disconnect`](Self::cancel_on_disconnect), has disconnected, all requests are
    /// cancelled. If the client ends the conversation, or the server shuts down gracefully, all
    /// requests in flight are answered.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
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
        self.options.concurrency = requests.max(1);
        self
    }

    /// Sets how long a client may be idle before its connection is closed; `None`, the default, for
    /// no limit. A client is idle while it sends no request and none of its requests is being
    /// answered. With 0, it is closed as soon as the server would have to wait for a request.
    pub fn idle_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.server.timeouts.idle = time.into();
        self
    }

    /// Sets the time limit of the handler for one request, and of `authorize` and `on_connect` for
    /// one client. When it expires, the connection of that client is closed. `None`, the default,
    /// for no limit; with 0 they may not wait for anything.
    pub fn handler_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.options.handler_timeout = time.into();
        self.server.admission.time_limit = self.options.handler_timeout;
        self
    }

    /// Sets how long a reply may wait for a client that does not read before its connection is
    /// closed; `None` for no limit, 0 if it may not wait. Default: [`defaults::WRITE_TIMEOUT`], 30 s.
    pub fn write_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.server.timeouts.write = time.into();
        self
    }

    /// Sets whether to drop the handler's future when its client disconnects. Default: no, since a
    /// client may send a request and disconnect without waiting for the reply.
    ///
    /// To detect a disconnect, the server reads up to 16 further requests, or 64 KiB of them, while
    /// the handler runs. It cannot read ahead if the client has sent more than that or has ended
    /// the conversation, or while the server holds
    /// [`max_buffered_bytes`](Self::max_buffered_bytes); it then asks the system once a second.
    /// After a disconnect, requests that were not yet passed to the handler are dropped.
    pub fn cancel_on_disconnect(mut self, cancel: bool) -> Self {
        self.options.cancel_on_disconnect = cancel;
        self
    }

    /// Sets the number of bytes that the server may buffer for all of its clients together, in
    /// received requests and unsent replies; `None` for no limit. Default:
    /// [`defaults::MAX_BUFFERED_BYTES`], 256 MiB.
    ///
    /// Three quarters of them are for whoever comes first, and the last quarter is shared equally
    /// by all clients. When the three quarters are spent, a client is read only while it holds less
    /// than its share, or once its earlier requests are answered and the replies sent. So a client
    /// that waits for each reply is served as ever, also with a limit of 0, and the limit is exceeded
    /// by at most one message per client.
    ///
    /// Meanwhile connections are closed until less is held: those of clients that have not read
    /// their replies for 250 ms, first one of the user who holds most, and of that user the one
    /// that holds most. This is logged and counted as
    /// [`Reason::BufferedBytes`](crate::Reason::BufferedBytes).
    ///
    /// The bytes buffered for one client are limited too, to the sum of: the request being answered
    /// (with [`concurrency`](Self::concurrency), that many requests or their replies), 256 KiB of
    /// replies and one more reply, one request read ahead (with
    /// [`cancel_on_disconnect`](Self::cancel_on_disconnect), 64 KiB of requests and one more) and,
    /// on Linux, 15 more that were received in one call. The count leaves out differences of less
    /// than 1 KiB per client, data that a handler keeps, and on Windows the buffer of the next
    /// message.
    pub fn max_buffered_bytes(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.options.max_buffered_bytes = bytes.into();
        self
    }

    /// Sets the number of connections that one user may have; further ones are refused. `None` for
    /// no limit; 0 refuses everyone.
    ///
    /// By default every user may have [`defaults::MAX_CONNECTIONS_PER_USER`], 256, or half of
    /// [`max_instances`](crate::ListenerOptions::max_instances) if that is less: no single user can
    /// keep out the others, and one who is alone still has most of what there is. The server's own
    /// user and the system (root; SYSTEM and Administrators) have no limit, because they could stop
    /// the server anyway. This default applies only if [`access`](crate::ListenerOptions::access)
    /// lets other users connect. A number set here applies to everyone.
    ///
    /// Beside any such limit, an eighth of `max_instances`, and at least one place, is kept for the
    /// server's own user and the system: they find a place even if other users hold all that they
    /// can get. With `max_instances(1)` there is nothing to keep, and whoever has the place holds
    /// it until it disconnects or its [`idle_timeout`](Self::idle_timeout) expires. `None` gives up
    /// the places that are kept.
    ///
    /// Clients are refused in the same way as by [`authorize`](Self::authorize), and before it is
    /// called: at once, so that they do not keep others waiting. On Windows a client is counted once
    /// the system can identify it, which may take its first message. A client that sends none is
    /// limited by its `idle_timeout`, and is closed when only the places that are kept are left,
    /// the one that connected first before the others. Clients that the system can't identify at all
    /// are counted as one user.
    pub fn max_connections_per_user(mut self, connections: impl Into<Option<usize>>) -> Self {
        self.server.set_max_connections_per_user(connections.into());
        self
    }

    /// Calls `authorize` for each client to decide whether to serve it, before
    /// [`on_connect`](Self::on_connect) and before the first request reaches the handler.
    /// `authorize` returns a `bool`, or a `Result` whose error says why the client is refused,
    /// within the [`handler_timeout`](Self::handler_timeout).
    ///
    /// A refused client is disconnected without a reply and counted in
    /// [`StatsSnapshot::refused`](crate::StatsSnapshot::refused). Its `connect` succeeds, and its
    /// call fails as closed. A warning with its peer and the error is logged.
    ///
    /// On Linux, `authorize` is called when the client connects. The same holds on Windows if the
    /// system can identify the client by then. Other Windows clients, those of this library among
    /// them, are identified once their first message has been received
    /// (*ImpersonateNamedPipeClient*). That message reaches the handler only if the client is
    /// authorized, and `on_connect` runs after it was received. A client that can't be identified
    /// even then is refused.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::{collections::HashSet, future::IntoFuture, sync::Arc};
    /// use pipe_server::{Bytes, Client, Peer, PipeListener, UserId, serve};
    ///
    /// let name = format!("authorize-example-{}", std::process::id());
    /// let listener = PipeListener::bind(&name)?;
    /// let denied: Arc<HashSet<UserId>> = Arc::default();
    /// let serving = serve(listener, |request: Bytes| async move { request })
    ///     .authorize(move |peer: Peer| {
    ///         let denied = Arc::clone(&denied);
    ///         async move { !denied.contains(peer.user()) }
    ///     });
    /// tokio::spawn(serving.into_future());
    ///
    /// let mut client = Client::connect(&name).await?;
    /// assert_eq!(client.call("hello").await?, "hello");
    /// # Ok(()) }
    /// ```
    pub fn authorize<A, Deciding>(mut self, authorize: A) -> Self
    where
        A: Fn(Peer) -> Deciding + Send + Sync + 'static,
        Deciding: Future<Output: IntoResult> + Send + 'static,
    {
        self.server.set_authorize(authorize);
        self
    }

    /// Runs `connect` for each client before its first request reaches the handler. The value that
    /// it returns is the client's session: handlers take it as [`Session<V>`](crate::Session), and
    /// it is dropped when the client disconnects.
    ///
    /// If `connect` returns an error, the connection is closed, and a warning with its peer and the
    /// error is logged. A server that only refuses clients, without a session, returns `Ok(())`.
    ///
    /// On Windows most clients can be identified only once a message has been received from them,
    /// so [`ConnectionInfo::peer`] may fail here. With [`authorize`](Self::authorize) it does not
    /// fail, since `connect` then runs after the client was identified.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
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
    // The argument is passed by value: a future can't borrow from the argument of the closure that
    // creates it.
    pub fn on_connect<C, Made, V, E>(mut self, connect: C) -> Self
    where
        C: Fn(ConnectionInfo) -> Made + Send + Sync + 'static,
        Made: Future<Output = Result<V, E>> + Send + 'static,
        V: Send + Sync + 'static,
        E: Into<BoxError>,
    {
        self.server.admission.on_connect = Some(Box::new(move |connection| {
            let made = connect(connection);
            Box::pin(async move {
                let session = made.await.map_err(Into::into)?;
                Ok(Arc::new(session) as AnySession)
            })
        }));
        self
    }
}

debug_fields! {
    Serve<H, T, S>,
    |serve| listener = serve.listener, server = serve.server, options = serve.options
}

impl<H, T> IntoFuture for Serve<H, T>
where
    H: Handler<T>,
    T: 'static,
{
    type Output = Summary;
    type IntoFuture = ServeFuture;

    fn into_future(self) -> ServeFuture {
        let budget = Arc::new(Budget::new(self.options.max_buffered_bytes));
        let server = Arc::new(Server {
            handler: Arc::new(self.handler),
            options: self.options,
            state: self.state,
            timeouts: self.server.timeouts,
            budget: Arc::clone(&budget),
            telemetry: self.listener.telemetry().clone(),
        });
        let answer = move |client: AcceptedClient| {
            let mut conversation = Conversation::<H, T>::new(client, Arc::clone(&server));
            async move { conversation.run().await }
        };
        ServeFuture::new(async move {
            tokio::select! {
                biased;
                summary = accept::run(self.listener, self.server, answer) => summary,
                never = budget.keep() => match never {},
            }
        })
    }
}
