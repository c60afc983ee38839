//! A server that runs the methods of a jsonrpsee module.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use jsonrpsee_core::{
    id_providers::RandomIntegerIdProvider,
    middleware::{RpcServiceBuilder, RpcServiceT},
    server::{MethodResponse, Methods},
    traits::IdProvider,
};
use pipe_server::{
    BoxError, Connection, PipeListener, ServeConnections, Shutdown, serve_connections,
};
use tokio::sync::Semaphore;
use tower_layer::{Identity, Layer};

pub use self::service::RpcService;

mod connection;
mod receiving;
mod respond;
mod service;

/// The default values of the options.
pub mod defaults {
    /// The number of requests of one client that are in progress at once: at most 4 MiB with the
    /// default limit of a message.
    pub const CONCURRENCY: usize = 64;

    /// The number of replies and notifications that wait for one client: at most 8 MiB with the
    /// default limit of a message. jsonrpsee's 1,024 would be 64 MiB for each client that does not
    /// read.
    pub const MAX_QUEUED_MESSAGES: usize = 128;

    /// The number of subscriptions that one client may have. The default of jsonrpsee's server.
    pub const MAX_SUBSCRIPTIONS: u32 = 1024;

    /// The number of requests in one batch. The shortest take 2 bytes of a message, and over 100
    /// once they are parsed.
    pub const MAX_BATCH: usize = 1024;
}

/// The code of one connection.
pub type Serving = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// Serves the methods of `methods`, which is an `RpcModule` or what `into_rpc` of a generated trait
/// returns, to the clients of `listener`.
///
/// The returned server has the options of the library, and runs once it is awaited. For the options
/// of JSON-RPC, see [`RpcServer`].
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use jsonrpsee::RpcModule;
/// use pipe_server::{Peer, PipeListener};
///
/// let module = RpcModule::new(());
/// let summary = pipe_server_jsonrpc::serve(PipeListener::bind("mynamedpipe")?, module)
///     .authorize(|peer: Peer| async move { peer.process_id() != 0 })
///     .with_graceful_shutdown(async { _ = tokio::signal::ctrl_c().await })
///     .await;
/// # Ok(()) }
/// ```
pub fn serve(
    listener: PipeListener,
    methods: impl Into<Methods>,
) -> ServeConnections<impl Fn(Connection, Shutdown) -> Serving + Send + Sync + 'static> {
    RpcServer::new(methods).serve(listener)
}

/// The options of a JSON-RPC server.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use jsonrpsee::RpcModule;
/// use pipe_server::PipeListener;
/// use pipe_server_jsonrpc::RpcServer;
///
/// let server = RpcServer::new(RpcModule::new(())).concurrency(8).max_subscriptions(1);
/// server.serve(PipeListener::bind("mynamedpipe")?).await;
/// # Ok(()) }
/// ```
#[must_use = "a server does nothing unless `serve` is called"]
pub struct RpcServer<L = Identity> {
    options: Options,
    middleware: RpcServiceBuilder<L>,
}

#[derive(Debug)]
struct Options {
    methods: Methods,
    concurrency: usize,
    max_queued_messages: usize,
    max_subscriptions: u32,
    max_batch: usize,
    method_timeout: Option<Duration>,
    id_provider: Arc<dyn IdProvider>,
}

impl RpcServer {
    /// Creates a server with the default options.
    pub fn new(methods: impl Into<Methods>) -> Self {
        Self {
            options: Options {
                methods: methods.into(),
                concurrency: defaults::CONCURRENCY,
                max_queued_messages: defaults::MAX_QUEUED_MESSAGES,
                max_subscriptions: defaults::MAX_SUBSCRIPTIONS,
                max_batch: defaults::MAX_BATCH,
                method_timeout: None,
                id_provider: Arc::new(RandomIntegerIdProvider),
            },
            middleware: RpcServiceBuilder::new(),
        }
    }
}

impl<L> RpcServer<L> {
    /// Sets the number of requests of one client that are in progress at once; 0 counts as one.
    /// Further ones are not received until one of them is answered. Default:
    /// [`defaults::CONCURRENCY`], 64.
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.options.concurrency = requests.max(1);
        self
    }

    /// Sets the number of replies and notifications that may be queued for one client; 0 counts as
    /// one. When the queue is full, each subscription and each request in progress may hold one more
    /// message that waits for room. This corresponds to `set_message_buffer_capacity` of jsonrpsee's
    /// server. Default: [`defaults::MAX_QUEUED_MESSAGES`], 128.
    pub fn max_queued_messages(mut self, messages: usize) -> Self {
        self.options.max_queued_messages = messages.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// Sets how long a method may take for one request; `None`, the default, for no limit, 0 if it
    /// may not wait. When the time expires, the method's future is dropped, and the request is
    /// answered with the error -32000. A synchronous method is not interrupted. A blocking one keeps
    /// running, and its reply is discarded. Subscriptions have no limit.
    pub fn method_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.options.method_timeout = time.into();
        self
    }

    /// Sets the number of subscriptions that one client may have; 0 refuses all of them. Further
    /// ones are answered with jsonrpsee's error *Too many subscriptions on the connection*.
    /// Default: [`defaults::MAX_SUBSCRIPTIONS`], 1,024.
    pub fn max_subscriptions(mut self, subscriptions: u32) -> Self {
        self.options.max_subscriptions = subscriptions;
        self
    }

    /// Sets the number of requests in one batch. A longer batch is answered with jsonrpsee's error
    /// *The batch request was too large*. Default: [`defaults::MAX_BATCH`], 1,024.
    pub fn max_batch(mut self, requests: usize) -> Self {
        self.options.max_batch = requests;
        self
    }

    /// Sets what generates the ids of subscriptions. Default: random integers.
    pub fn id_provider(mut self, provider: impl IdProvider + 'static) -> Self {
        self.options.id_provider = Arc::new(provider);
        self
    }

    /// Sets the middleware of jsonrpsee through which every request passes.
    pub fn middleware<M>(self, middleware: RpcServiceBuilder<M>) -> RpcServer<M> {
        RpcServer {
            options: self.options,
            middleware,
        }
    }

    /// Serves the clients of `listener`. The returned server has the options of the library, and
    /// runs once it is awaited.
    pub fn serve<S>(
        self,
        listener: PipeListener,
    ) -> ServeConnections<impl Fn(Connection, Shutdown) -> Serving + Send + Sync + 'static>
    where
        L: Layer<RpcService, Service = S> + Send + Sync + 'static,
        S: RpcServiceT<
                MethodResponse = MethodResponse,
                BatchResponse = MethodResponse,
                NotificationResponse = MethodResponse,
            > + Send
            + Sync
            + 'static,
    {
        let (server, stats) = (Arc::new(self), listener.stats());
        serve_connections(listener, move |connection, _| -> Serving {
            let (server, stats) = (Arc::clone(&server), stats.clone());
            Box::pin(connection::run(server, stats, connection))
        })
    }
}

impl<L> fmt::Debug for RpcServer<L> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RpcServer")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
