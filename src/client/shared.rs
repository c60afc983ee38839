//! A client that many tasks use at once.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
};

use self::{
    driver::Driver,
    pool::{Address, ClientStatus, Pool},
};
#[cfg(feature = "test-util")]
use crate::memory_pipe::MemoryPipe;
use crate::{
    client::ClientOptions,
    debug::debug_fields,
    defaults,
    engine::native,
    error::{ConnectError, OutOfRange, SharedCallError},
    name::{NameError, PipeName},
    sync::Mutex,
};

#[cfg(feature = "tower")]
pub use self::service::SharedCall;

mod call;
mod connection;
mod driver;
mod pool;
#[cfg(feature = "tower")]
mod service;

/// More than any server is worth connecting to: one task looks at all connections each time it
/// runs.
const MOST_CONNECTIONS: usize = 1024;

/// Options for a [`SharedClient`], from [`ClientOptions::shared`].
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use pipe_server::ClientOptions;
///
/// let client = ClientOptions::new()
///     .wait_for_server(true) // while it restarts
///     .call_timeout(Duration::from_secs(5))
///     .shared()
///     .connections(4)
///     .connect("mynamedpipe")
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "options do nothing until connect is called"]
pub struct SharedClientOptions {
    options: ClientOptions,
    max_in_flight: usize,
    connections: usize,
}

impl ClientOptions {
    /// Continues with the options of a [`SharedClient`]. The options set so far apply to it as
    /// follows:
    ///
    /// - [`trust`](Self::trust) is checked each time a connection is opened.
    /// - [`call_timeout`](Self::call_timeout), 30 s by default, is for a whole call: it includes
    ///   waiting for a slot and for a connection. After it has elapsed, the connection waits for the
    ///   late reply for another `call_timeout`. If that does not arrive either, the connection is
    ///   closed, and the next call opens another one.
    /// - [`connect_timeout`](Self::connect_timeout) and [`wait_for_server`](Self::wait_for_server)
    ///   apply each time a connection is opened while there is no other one. By default, calls wait
    ///   while a server that was connected restarts, and fail at once if there was none or it did
    ///   not come back.
    /// - [`start_server`](Self::start_server) starts a server each time there is none and a call
    ///   needs a connection.
    pub fn shared(self) -> SharedClientOptions {
        SharedClientOptions {
            options: self,
            max_in_flight: defaults::MAX_IN_FLIGHT,
            connections: 1,
        }
    }
}

impl SharedClientOptions {
    /// The number of calls in flight at the same time, on all connections together; at least 1.
    /// Default: [`defaults::MAX_IN_FLIGHT`], 256.
    ///
    /// Further calls wait for their turn. A call that was given up counts until its reply has
    /// arrived. The client holds at most this many requests, each up to `max_message_size`.
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = calls;
        self
    }

    /// The maximum number of connections, from 1 to 1,024. Default: 1.
    ///
    /// More than one is for servers that execute the requests of one connection one after the
    /// other, as [`serve`](crate::serve()) does by default. The second one is opened when a
    /// call finds the first one in use, and so on; each call goes to the connection with the
    /// fewest in flight, and to one that waits for a late reply only if there is no other. If the
    /// server has no instance waiting at that moment, calls share the connections that there are,
    /// and a later one tries again.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// Connects to the pipe `name`.
    ///
    /// # Errors
    ///
    /// Same as [`ClientOptions::connect`], and [`ConnectError::Option`] for an option that is out
    /// of range.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`ClientOptions::connect`].
    pub async fn connect(
        &self,
        name: impl TryInto<PipeName, Error: Into<NameError>>,
    ) -> Result<SharedClient, ConnectError> {
        let name = name.try_into().map_err(Into::into)?;
        self.connect_to(Address::Name(name)).await
    }

    /// Creates a client that connects to the pipe `name` when it is first called.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Name`] and [`ConnectError::Option`]. All other errors are those of the
    /// calls.
    pub fn connect_lazy(
        &self,
        name: impl TryInto<PipeName, Error: Into<NameError>>,
    ) -> Result<SharedClient, ConnectError> {
        let name = name.try_into().map_err(Into::into)?;
        self.build(Address::Name(name))
    }

    /// Connects to a pipe inside this process.
    ///
    /// # Errors
    ///
    /// Same as [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`connect`](Self::connect).
    #[cfg(feature = "test-util")]
    pub async fn connect_memory(&self, pipe: &MemoryPipe) -> Result<SharedClient, ConnectError> {
        self.connect_to(Address::Memory(pipe.clone())).await
    }

    /// Creates a client that connects to a pipe inside this process when it is first called.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Option`] for an option that is out of range.
    #[cfg(feature = "test-util")]
    pub fn connect_memory_lazy(&self, pipe: &MemoryPipe) -> Result<SharedClient, ConnectError> {
        self.build(Address::Memory(pipe.clone()))
    }

    async fn connect_to(&self, address: Address) -> Result<SharedClient, ConnectError> {
        let client = self.build(address)?;
        let pool = &client.handle.pool;
        let first = pool.connect(true).await?;
        Driver::start(pool, &Handle::current(), Some(first));
        Ok(client)
    }

    fn build(&self, address: Address) -> Result<SharedClient, ConnectError> {
        self.check()?;
        let sizes = native::client_sizes(self.options.max_message_size)?;
        let pool = Arc::new(Pool {
            address,
            options: self.options.clone(),
            max_message_size: sizes.max_message_size,
            most_connections: self.connections,
            max_in_flight: self.max_in_flight,
            slots: Arc::new(Semaphore::new(self.max_in_flight)),
            queue: Mutex::default(),
            changed: Notify::new(),
            ended: Notify::new(),
        });
        Ok(SharedClient {
            handle: Arc::new(PoolHandle { pool }),
            retry_unanswered: false,
            #[cfg(feature = "tower")]
            reservation: service::Reservation::default(),
        })
    }

    fn check(&self) -> Result<(), OutOfRange> {
        let check = |option, value, most| match (1..=most).contains(&value) {
            true => Ok(()),
            false => {
                let problem = format!("is out of range: use 1 to {most}");
                Err(OutOfRange::new(option, problem))
            }
        };
        check("max_in_flight", self.max_in_flight, Semaphore::MAX_PERMITS)?;
        check("connections", self.connections, MOST_CONNECTIONS)
    }
}

/// A client that many tasks use at once. Clones share its connections, and are cheap.
///
/// Requests are pipelined: each is sent without waiting for the replies to earlier ones. It is for
/// servers that send one reply to each request of a connection, in order, and nothing else, as
/// [`serve`](crate::serve()) does. A message that arrives while no request is in flight closes the
/// connection ([`SharedCallErrorKind::OutOfStep`](crate::SharedCallErrorKind::OutOfStep)); one that
/// arrives earlier can't be told from a reply. For other protocols, use a [`Client`](crate::Client).
///
/// # Connections
///
/// A connection that breaks is closed, and opened again when the next call needs it. Until a
/// connection has brought a reply, the next attempt is delayed by 5 ms, doubling to 1 s, less
/// random jitter. Calls wait for the attempt, and fail if it does.
///
/// [`SharedCallError`] says what became of the request. One that was certainly not executed is sent
/// on the next connection, up to ten times: it was not sent, or the server shut down before it took
/// it. (A server says so by ending the conversation with an empty message, as
/// [`serve`](crate::serve()) does; on Linux, it stops its clients from sending before.) One that
/// the server may have executed fails with [`Unanswered`](SharedCallError::Unanswered), unless
/// [`retry_unanswered`](Self::retry_unanswered) allows to send it again, up to three times.
///
/// So no call fails while a server is restarted gracefully, and none is executed twice
/// (`docs/reliability.md`), unless its drain timeout expires.
///
/// The connections belong to the runtime of the call that opened the first one. If that runtime is
/// shut down, the calls in flight fail, and the next one opens a connection on its own runtime. The
/// connections are closed when the last clone is dropped.
///
/// # Calls that are given up
///
/// A server does not learn that a call was dropped or has timed out: it executes the request, and
/// later calls on that connection wait for its reply, which is dropped. With
/// [`connections`](SharedClientOptions::connections), they take another one.
///
/// If a reply comes after its call has timed out, the server is too slow for its callers. Its
/// connection then has one request in flight, and one more after each reply that is in time; the
/// newest calls go first, since the oldest ones have the least time left. The others wait unsent,
/// and fail with [`NotExecuted`](SharedCallError::NotExecuted) when they time out.
///
/// # Order
///
/// A call that is made after another one has returned its reply is executed later. The order of
/// concurrent calls is not defined; nor is that of a call that was dropped or has timed out, which
/// may still be executed.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use pipe_server::SharedClient;
///
/// let client = SharedClient::connect("mynamedpipe").await?;
/// let mut tasks = tokio::task::JoinSet::new();
/// for number in 0..64 {
///     let client = client.clone();
///     tasks.spawn(async move { client.call(format!("request {number}")).await });
/// }
/// for reply in tasks.join_all().await {
///     println!("{:?}", reply?);
/// }
/// # Ok(()) }
/// ```
pub struct SharedClient {
    handle: Arc<PoolHandle>,
    retry_unanswered: bool,
    #[cfg(feature = "tower")]
    reservation: service::Reservation,
}

/// Held by the clones, but not by the driver.
struct PoolHandle {
    pool: Arc<Pool>,
}

impl Drop for PoolHandle {
    fn drop(&mut self) {
        self.pool.leave(ClientStatus::Dropped);
    }
}

impl SharedClient {
    /// Connects to the pipe `name` with the default options.
    ///
    /// # Errors
    ///
    /// Same as [`SharedClientOptions::connect`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`SharedClientOptions::connect`].
    pub async fn connect(
        name: impl TryInto<PipeName, Error: Into<NameError>>,
    ) -> Result<Self, ConnectError> {
        ClientOptions::new().shared().connect(name).await
    }

    /// Creates a client with the default options, which connects to the pipe `name` when it is
    /// first called.
    ///
    /// # Errors
    ///
    /// Same as [`SharedClientOptions::connect_lazy`].
    pub fn connect_lazy(
        name: impl TryInto<PipeName, Error: Into<NameError>>,
    ) -> Result<Self, ConnectError> {
        ClientOptions::new().shared().connect_lazy(name)
    }

    /// Whether calls through this value, and through clones made of it from now on, are sent again
    /// if the connection breaks when the server may have executed them. Default: no.
    ///
    /// For requests that have the same effect when they are executed several times, such as reads.
    /// They are sent on at most three connections.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: pipe_server::SharedClient) -> Result<(), pipe_server::SharedCallError> {
    /// let reader = client.clone().retry_unanswered(true);
    /// let balance = reader.call("read the balance").await?;
    /// client.call("withdraw 100").await?; // not twice
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn retry_unanswered(mut self, retry: bool) -> Self {
        self.retry_unanswered = retry;
        self
    }

    /// Sends a request and receives its reply, within the
    /// [`call_timeout`](ClientOptions::call_timeout).
    ///
    /// Waits while `max_in_flight` calls are in flight, and for a connection if there is none.
    ///
    /// # Errors
    ///
    /// [`SharedCallError::NotExecuted`] if the server has not executed the request, and
    /// [`SharedCallError::Unanswered`] if it may have. Both say why.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the request is sent, it is not sent. Otherwise its reply is
    /// dropped when it arrives. Other calls get their own replies in either case.
    pub async fn call(&self, request: impl Into<Bytes>) -> Result<Bytes, SharedCallError> {
        let repeat = self.retry_unanswered;
        call::call(&self.handle.pool, request.into(), repeat, None).await
    }

    /// Shuts all clones down: new calls and those that wait for a slot fail with
    /// [`SharedCallErrorKind::ShutDown`](crate::SharedCallErrorKind::ShutDown). Those in flight are
    /// completed, and then the connections are closed.
    ///
    /// To limit the time, use [`tokio::time::timeout`] and then drop the clones.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the client is shut down also if the future is dropped after its first poll, and
    /// it can be called again.
    pub async fn shutdown(&self) {
        self.handle.pool.shut_down().await;
    }
}

/// A slot that is reserved by `tower::Service::poll_ready` stays with the original.
impl Clone for SharedClient {
    fn clone(&self) -> Self {
        Self {
            handle: Arc::clone(&self.handle),
            retry_unanswered: self.retry_unanswered,
            #[cfg(feature = "tower")]
            reservation: service::Reservation::default(),
        }
    }
}

debug_fields! { SharedClient, |client| retry_unanswered = client.retry_unanswered }
