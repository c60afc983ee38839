//! A server whose tasks have the whole connection of their clients.

use std::{
    future::{Future, IntoFuture, poll_fn},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use super::{
    accept::{self, AcceptedClient, ServeFuture, Summary},
    failure::Failure,
    guard::{call_caught, poll_caught, with_timeout},
    into_result::IntoResult,
    options::{ServerOptions, Timeouts},
    shutdown::Shutdown,
};
use crate::{
    connection::Connection, debug::debug_fields, listener::PipeListener, name::PipeName,
    peer::Peer, telemetry::Stats,
};

/// How long a client has to send its first message if it can't be identified before.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs `handler` for every connection of `listener`, each in its own task.
///
/// This is the same server as [`serve`](crate::serve()), with the same accept loop, limits and
/// shutdown. Use it for tasks that need the whole connection: to push messages, to receive without
/// replying, or to speak another protocol. The connection is closed when `handler` drops it.
///
/// A shutdown ends receiving, as [`close_recv`](Connection::close_recv) does: `recv` returns the
/// messages that were sent before, and then `None`. Code that waits for anything else must also wait
/// for the [`Shutdown`]. Otherwise it delays a shutdown by the whole
/// [`drain_timeout`](ServeConnections::drain_timeout), and its connection counts as aborted.
///
/// An error or a panic is logged with the connection's id. A panic closes only its own connection.
/// If the connection itself has failed and its task returns that [`RecvError`](crate::RecvError) or
/// [`SendError`](crate::SendError), or the error of a typed message that can't be decoded
/// (`recv_json`), also as the source of another error, it is logged with the
/// [`Reason`](crate::Reason) and at the level that it has in [`serve`](crate::serve()), since the
/// client caused it.
///
/// On Windows the system can't identify some clients before their first message, for example
/// those that ask for dynamic tracking. If the server needs to know the client, for
/// [`authorize`](ServeConnections::authorize) or for
/// [`max_connections_per_user`](ServeConnections::max_connections_per_user), the task of such a
/// connection starts once that message has arrived, and its first `recv` returns it. A task that
/// sends first, before the client has sent anything, needs clients that are identified when they
/// connect, or a server that need not know them: with neither, both sides wait, and the server
/// closes the connection after 30 s or the shorter
/// [`idle_timeout`](ServeConnections::idle_timeout).
///
/// The server runs once the returned value is awaited, as with [`serve`](crate::serve()).
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), pipe_server::BoxError> {
/// use pipe_server::{Client, Connection, PipeListener, SendError, Shutdown, serve_connections};
///
/// let name = format!("serve-connections-example-{}", std::process::id());
/// let listener = PipeListener::bind(&name)?;
/// let greet = |mut connection: Connection, _: Shutdown| async move {
///     connection.send(format!("you are number {}", connection.id())).await
/// };
/// tokio::spawn(serve_connections(listener, greet).into_future());
///
/// let mut client = Client::connect(&name).await?;
/// assert_eq!(client.recv().await?.unwrap(), "you are number 1");
/// # Ok(()) }
/// # use std::future::IntoFuture;
/// ```
pub fn serve_connections<F, Running>(listener: PipeListener, handler: F) -> ServeConnections<F>
where
    F: Fn(Connection, Shutdown) -> Running + Send + Sync + 'static,
    Running: Future<Output: IntoResult> + Send + 'static,
{
    ServeConnections {
        listener,
        handler,
        server: ServerOptions::default(),
    }
}

/// A server that is ready to run, from [`serve_connections`]. Await it.
#[must_use = "a server does nothing unless it is awaited"]
pub struct ServeConnections<F> {
    listener: PipeListener,
    handler: F,
    /// `pub(crate)` for the options that `os` adds for one system.
    pub(crate) server: ServerOptions,
}

impl<F> ServeConnections<F> {
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

    /// Returns a handle to the server's live statistics. Only the code of a connection knows what a
    /// request or a reply is, so their counts and the handler times remain 0 unless that code calls
    /// [`Stats::count_request`], [`Stats::count_replies`] and [`Stats::count_handled`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.listener.stats()
    }

    /// Shuts down gracefully when `signal` completes: stops accepting, releases the name, ends
    /// receiving on each connection after the messages that were sent before, and notifies its task
    /// through [`Shutdown`]. Connections that are still open after the drain timeout are aborted.
    ///
    /// The other side can still read messages that were sent before the server shut down.
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.server.signal = Box::pin(signal);
        self
    }

    /// Shuts down gracefully once no client has been connected for `time`; `None`, the default, for
    /// never. See [`Serve::shutdown_when_idle`](crate::Serve::shutdown_when_idle): nobody is lost
    /// when the time expires. A client counts until its code has ended and its connection is closed.
    pub fn shutdown_when_idle(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.server.shutdown_when_idle = time.into();
        self
    }

    /// Sets how long [`recv`](Connection::recv) waits for the next message before it fails with
    /// [`RecvError::TimedOut`](crate::RecvError::TimedOut); `None`, the default, for no limit,
    /// 0 if it may not wait. A client that only receives is idle, too, unless the code changes the
    /// limit with [`RecvHalf::set_idle_timeout`](crate::RecvHalf::set_idle_timeout). After a
    /// [split](Connection::into_split), this and [`write_timeout`](Self::write_timeout) apply to the
    /// halves.
    pub fn idle_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.server.timeouts.idle = time.into();
        self
    }

    /// Sets how long [`send`](Connection::send) waits for a client that does not read before it
    /// fails with [`SendError::TimedOut`](crate::SendError::TimedOut); `None` for no limit, 0 if it
    /// may not wait. Default: [`defaults::WRITE_TIMEOUT`](crate::defaults::WRITE_TIMEOUT), 30 s.
    pub fn write_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.server.timeouts.write = time.into();
        self
    }

    /// Sets the number of connections that one user may have, with the default and the places kept
    /// for the server's own user of
    /// [`Serve::max_connections_per_user`](crate::Serve::max_connections_per_user). A connection
    /// counts until its task has ended.
    pub fn max_connections_per_user(mut self, connections: impl Into<Option<usize>>) -> Self {
        self.server.set_max_connections_per_user(connections.into());
        self
    }

    /// Same as [`Serve::authorize`](crate::Serve::authorize), before the connection's
    /// task starts. It has no time limit here: use [`tokio::time::timeout`] in it if it waits.
    pub fn authorize<A, Deciding>(mut self, authorize: A) -> Self
    where
        A: Fn(Peer) -> Deciding + Send + Sync + 'static,
        Deciding: Future<Output: IntoResult> + Send + 'static,
    {
        self.server.set_authorize(authorize);
        self
    }

    /// Sets how long the tasks of connections may run once a shutdown has begun; `None` for no
    /// limit, 0 to abort them at once. Default:
    /// [`defaults::DRAIN_TIMEOUT`](crate::defaults::DRAIN_TIMEOUT), 10 s.
    pub fn drain_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.server.drain_timeout = time.into();
        self
    }
}

debug_fields! { ServeConnections<F>, |serve| listener = serve.listener, server = serve.server }

impl<F, Running> IntoFuture for ServeConnections<F>
where
    F: Fn(Connection, Shutdown) -> Running + Send + Sync + 'static,
    Running: Future<Output: IntoResult> + Send + 'static,
{
    type Output = Summary;
    type IntoFuture = ServeFuture;

    fn into_future(self) -> ServeFuture {
        let handler = Arc::new(self.handler);
        let telemetry = self.listener.telemetry().clone();
        let timeouts = self.server.timeouts;
        let task = move |client: AcceptedClient| {
            let (handler, telemetry) = (Arc::clone(&handler), telemetry.clone());
            async move {
                let identity = Arc::clone(client.connection.identity());
                if let Err(failure) = run_one(handler, client, timeouts).await {
                    failure.report(&identity, &telemetry, None);
                }
            }
        };
        ServeFuture::new(accept::run(self.listener, self.server, task))
    }
}

/// Admits a client, and runs the task of its connection.
async fn run_one<F, Running>(
    handler: Arc<F>,
    mut client: AcceptedClient,
    timeouts: Timeouts,
) -> Result<(), Failure>
where
    F: Fn(Connection, Shutdown) -> Running,
    Running: Future<Output: IntoResult>,
{
    if !admit(&mut client, timeouts.idle).await? {
        return Ok(());
    }
    let AcceptedClient {
        mut connection,
        // Counts the connection until its task has ended.
        admission: _admission,
        shutdown,
    } = client;
    connection.receiver.set_idle_timeout(timeouts.idle);
    connection.receiver.close_at(shutdown.wait());
    connection.sender.set_write_timeout(timeouts.write);
    let identity = Arc::clone(connection.identity());
    // Pinned in place: a future moved from a variable would take its space twice.
    let mut running =
        pin!(call_caught(|| handler(connection, shutdown)).map_err(Failure::TaskPanic)?);
    let ended = poll_fn(|cx| poll_caught(running.as_mut(), cx)).await;
    let result = ended.map_err(Failure::TaskPanic)?.into_result();
    result.map_err(|error| Failure::task(error, identity.has_failed()))
}

/// Admits a client. Returns `false` if the client or the server ends before it was identified.
async fn admit(
    client: &mut AcceptedClient,
    idle_timeout: Option<Duration>,
) -> Result<bool, Failure> {
    let AcceptedClient {
        connection,
        admission,
        shutdown,
    } = client;
    let identity = Arc::clone(connection.identity());
    admission.admit(&identity, false).await?;
    if admission.is_complete() {
        return Ok(true);
    }
    let limit = idle_timeout.map_or(IDENTIFY_TIMEOUT, |time| time.min(IDENTIFY_TIMEOUT));
    let mut first = pin!(connection.receiver.receive_first());
    let received = tokio::select! {
        biased;
        received = with_timeout(Some(limit), &mut first) => received,
        () = shutdown.wait() => return Ok(false),
    };
    if !received.map_err(Failure::Unidentified)?? {
        return Ok(false);
    }
    admission.admit(&identity, true).await?;
    Ok(true)
}
