//! The waiting instances of a pipe: how a client always finds one.

use std::{
    fmt,
    future::poll_fn,
    io, mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tracing::warn;

#[cfg(windows)]
use crate::engine::Engine;
use crate::{
    access::Access,
    connection::Connection,
    defaults,
    engine::{Channel, Endpoint, Instance, Link, Sizes},
    error::{BindError, Chain, OutOfRange},
    log_limit::LogLimit,
    name::{NameError, PipeName},
    reason::Reason,
};
#[cfg(feature = "test-util")]
use crate::{client::MemoryPipe, engine::memory};

/// Options of a pipe before it is served. [`os`](crate::os) adds those of one system.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), pipe_server::BindError> {
/// use pipe_server::ListenerOptions;
///
/// let name = format!("options-example-{}", std::process::id());
/// let listener = ListenerOptions::new().max_instances(4).max_message_size(4000).bind(name)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "options do nothing until bind is called"]
pub struct ListenerOptions {
    max_instances: Option<usize>,
    max_message_size: Option<usize>,
    buffer_size: usize,
    backlog: usize,
    access: Access,
    #[cfg(windows)]
    pub(crate) allow_remote: bool,
    #[cfg(windows)]
    pub(crate) engine: Engine,
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ListenerOptions {
    /// The [`defaults`]: any number of instances, messages of 64 KiB (4,095 bytes on the `tokio` engine),
    /// the current user alone, no remote clients.
    pub fn new() -> Self {
        Self {
            max_instances: None,
            max_message_size: None,
            buffer_size: defaults::BUFFER_SIZE,
            backlog: defaults::BACKLOG,
            access: Access::default(),
            #[cfg(windows)]
            allow_remote: false,
            #[cfg(windows)]
            engine: Engine::default(),
        }
    }

    /// How many clients are served at once, 1 or more; `None`, the default, for any number.
    ///
    /// At the limit further clients see that the pipe is busy and wait for up to their connect timeout:
    /// `ERROR_PIPE_BUSY` on Windows, `EAGAIN` on Linux. The shortest queue of Linux holds one client, so
    /// one more than the limit is connected there, and waits for its first reply instead; so do clients
    /// that were queued when the limit was reached. None of them is lost.
    ///
    /// The listener keeps count, not the system: 255 means 255, although `CreateNamedPipe` takes it for
    /// `PIPE_UNLIMITED_INSTANCES`.
    pub fn max_instances(mut self, instances: impl Into<Option<usize>>) -> Self {
        self.max_instances = instances.into();
        self
    }

    /// The longest message in bytes, both ways; 1 or more. `None`, the default, is
    /// [`defaults::MAX_MESSAGE_SIZE`], 65,536, or what the engine can carry if that is less (4,095 on the
    /// `tokio` engine).
    ///
    /// A client that sends a longer one loses its connection. On Linux the system's limit is
    /// about twice `net.core.wmem_max`.
    pub fn max_message_size(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.max_message_size = bytes.into();
        self
    }

    /// How many bytes may lie in the pipe each way before a writer has to wait for the reader, 1 to
    /// 4,294,967,295. Default: [`defaults::BUFFER_SIZE`], 65,536.
    ///
    /// `nInBufferSize` and `nOutBufferSize` on Windows; `SO_SNDBUF` on Linux, where it only ever grows.
    pub fn buffer_size(mut self, bytes: usize) -> Self {
        self.buffer_size = bytes;
        self
    }

    /// How many instances wait for clients, 1 or more. Default: [`defaults::BACKLOG`], 2.
    ///
    /// More of them let a larger burst of clients in at once, where others have to try again. Linux
    /// queues 1,024 clients on its own whatever is asked for, while fewer than `max_instances` are served.
    pub fn backlog(mut self, instances: usize) -> Self {
        self.backlog = instances;
        self
    }

    /// Who may connect. Default: [`Access::CurrentUser`].
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Serves the pipe `name`: clients can connect from here on.
    ///
    /// # Errors
    ///
    /// [`BindError`] says which name, option or right was at fault. A name that is served already is
    /// [`BindError::InUse`] or, when another user serves it, [`BindError::Denied`]. So is, on Linux, a
    /// directory in which another user can replace the socket: one that belongs to another user than root,
    /// or that everyone can write to and that has no sticky bit.
    pub fn bind(
        &self,
        name: impl TryInto<PipeName, Error: Into<NameError>>,
    ) -> Result<PipeListener, BindError> {
        let name = name.try_into().map_err(Into::into)?;
        self.check()?;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BindError::NoRuntime);
        }
        let path = name.resolve()?;
        if name.is_remote() {
            let address = path.display().to_string();
            return Err(BindError::Remote { address });
        }
        let (endpoint, max_message_size) = self.bind_engine(&name, &path)?;
        self.listen(name, path, endpoint, max_message_size)
    }

    /// Serves a pipe inside this process, for tests of a handler: no pipe of the system is made.
    ///
    /// Ignores `access`, and `engine` on Windows.
    ///
    /// # Errors
    ///
    /// [`BindError::Option`] for an option that is out of range.
    #[cfg(feature = "test-util")]
    pub fn bind_memory(&self) -> Result<(PipeListener, MemoryPipe), BindError> {
        self.check()?;
        let sizes = self.sizes(defaults::MAX_MESSAGE_SIZE);
        let (endpoint, board) = memory::bind(sizes);
        let name: PipeName = "memory".parse()?;
        let path = PathBuf::from("memory");
        let listener = self.listen(name, path, endpoint, sizes.max_message_size)?;
        Ok((listener, MemoryPipe { board }))
    }

    #[cfg(target_os = "linux")]
    fn bind_engine(
        &self,
        name: &PipeName,
        path: &Path,
    ) -> Result<(Box<dyn Endpoint>, usize), BindError> {
        let sizes = self.sizes(defaults::MAX_MESSAGE_SIZE);
        let own_directory = name.short().is_some();
        let endpoint = crate::engine::seqpacket::bind(path, own_directory, &self.access, sizes)
            .map_err(|error| BindError::create(path.display().to_string(), error))?;
        Ok((endpoint, sizes.max_message_size))
    }

    #[cfg(windows)]
    fn bind_engine(
        &self,
        name: &PipeName,
        path: &Path,
    ) -> Result<(Box<dyn Endpoint>, usize), BindError> {
        use crate::engine::{overlapped, tokio_pipe};

        let (engine, most) = match self.engine {
            Engine::Tokio => (Engine::Tokio, tokio_pipe::MAX_MESSAGE_SIZE),
            Engine::Auto | Engine::Overlapped => (Engine::Overlapped, overlapped::MAX_MESSAGE_SIZE),
        };
        let sizes = self.sizes(defaults::MAX_MESSAGE_SIZE.min(most));
        if sizes.max_message_size > most {
            let problem = format!(
                "is {} bytes, but the {engine} engine carries messages of {most} at most",
                sizes.max_message_size,
            );
            return Err(OutOfRange::new("max_message_size", problem).into());
        }
        let bind = match engine {
            Engine::Tokio => tokio_pipe::bind,
            Engine::Auto | Engine::Overlapped => overlapped::bind,
        };
        let endpoint = bind(name, &self.access, self.allow_remote, sizes)
            .map_err(|error| BindError::create(path.display().to_string(), error))?;
        Ok((endpoint, sizes.max_message_size))
    }

    fn sizes(&self, default_max_message_size: usize) -> Sizes {
        Sizes {
            max_message_size: self.max_message_size.unwrap_or(default_max_message_size),
            buffer_size: self.buffer_size,
        }
    }

    fn check(&self) -> Result<(), OutOfRange> {
        let refuse = |option, problem| Err(OutOfRange::new(option, problem));
        if self.max_instances == Some(0) {
            return refuse("max_instances", "is 0: take 1 or more, or no limit");
        }
        if self.max_message_size == Some(0) {
            return refuse("max_message_size", "is 0: take 1 byte or more");
        }
        if u32::try_from(self.buffer_size).is_err() || self.buffer_size == 0 {
            return refuse(
                "buffer_size",
                "is out of range: take 1 to 4,294,967,295 bytes",
            );
        }
        if self.backlog == 0 {
            return refuse("backlog", "is 0: take 1 instance or more");
        }
        Ok(())
    }

    pub(crate) fn listen(
        &self,
        name: PipeName,
        path: PathBuf,
        endpoint: Box<dyn Endpoint>,
        max_message_size: usize,
    ) -> Result<PipeListener, BindError> {
        let mut instances = Instances {
            backlog: self.backlog.min(endpoint.useful_backlog()),
            max: self.max_instances.unwrap_or(usize::MAX),
            endpoint: Some(endpoint),
            waiting: Vec::new(),
            connected: 0,
            finished: Vec::new(),
            acceptor: None,
        };
        instances
            .top_up()
            .map_err(|error| BindError::create(path.display().to_string(), error))?;
        let instances = Arc::new(Mutex::new(instances));
        let log = Arc::new(LogLimit::new(name.clone()));
        Ok(PipeListener {
            name,
            path,
            instances,
            log,
            max_message_size,
            last_id: 0,
        })
    }
}

/// Keeps instances of a pipe waiting for clients and hands out connections.
///
/// While fewer than `max_instances` clients are connected there is always an instance waiting: the
/// next one is created before a connected one is handed out. Dropping the listener gives up the name;
/// connections that were handed out live on.
pub struct PipeListener {
    name: PipeName,
    path: PathBuf,
    instances: Arc<Mutex<Instances>>,
    log: Arc<LogLimit>,
    max_message_size: usize,
    last_id: u64,
}

impl PipeListener {
    /// Serves the pipe `name` with the default [`ListenerOptions`].
    ///
    /// # Errors
    ///
    /// As [`ListenerOptions::bind`].
    pub fn bind(name: impl TryInto<PipeName, Error: Into<NameError>>) -> Result<Self, BindError> {
        ListenerOptions::new().bind(name)
    }

    /// Waits for a client. At `max_instances` it waits for a slot first.
    ///
    /// A client that has already left is handed out too: what it sent can still be received.
    ///
    /// # Errors
    ///
    /// The system's, when an instance can't be created or waited for. The listener remains usable: retry
    /// after a delay, as [`serve`](crate::serve) does.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped, no client is lost.
    pub async fn accept(&mut self) -> io::Result<Connection> {
        let (channel, topped_up) = poll_fn(|cx| lock(&self.instances).poll_accept(cx)).await?;
        log_missing_instance(&self.log, topped_up);
        let slot = Slot {
            instances: Arc::clone(&self.instances),
            log: Arc::clone(&self.log),
            link: Arc::clone(&channel.link),
        };
        self.last_id += 1;
        Ok(Connection::new(
            channel,
            Some(slot),
            self.last_id,
            self.max_message_size,
        ))
    }

    /// The name that is served.
    #[must_use]
    pub fn local_name(&self) -> &PipeName {
        &self.name
    }

    /// The path that clients connect to: the pipe's full path on Windows, the socket's path on Linux.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The longest message that its connections carry, in bytes.
    #[must_use]
    pub fn max_message_size(&self) -> usize {
        self.max_message_size
    }

    /// The limit of what is logged about it and its connections.
    pub(crate) fn log_limit(&self) -> &Arc<LogLimit> {
        &self.log
    }
}

impl fmt::Debug for PipeListener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PipeListener")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for PipeListener {
    fn drop(&mut self) {
        let mut instances = lock(&self.instances);
        let endpoint = instances.endpoint.take();
        let waiting = mem::take(&mut instances.waiting);
        let finished = mem::take(&mut instances.finished);
        drop(instances);
        drop((waiting, finished, endpoint));
    }
}

/// The instances of one pipe.
///
/// The limit is kept here and not by the system: the replacement of a connection that ends at the
/// limit has to exist before the old instance closes, or the name would be gone for a moment.
struct Instances {
    /// `None` once the listener is dropped.
    endpoint: Option<Box<dyn Endpoint>>,
    waiting: Vec<Box<dyn Instance>>,
    connected: usize,
    /// Instances of connections that are over, kept open because their replacement could not be
    /// created: they keep the name alive until it can.
    finished: Vec<Arc<dyn Link>>,
    acceptor: Option<Waker>,
    backlog: usize,
    max: usize,
}

impl Instances {
    /// Counts a client in or out, and tells the engine when that reaches or leaves the limit.
    fn set_connected(&mut self, connected: usize) {
        let was_full = self.connected == self.max;
        self.connected = connected;
        let is_full = self.connected == self.max;
        if let Some(endpoint) = &self.endpoint {
            if is_full != was_full {
                endpoint.set_full(is_full);
            }
        }
    }

    /// Creates instances until `backlog` of them wait or the limit is reached.
    fn top_up(&mut self) -> io::Result<()> {
        let Some(endpoint) = &self.endpoint else {
            return Ok(());
        };
        while self.waiting.len() < self.backlog && self.connected + self.waiting.len() < self.max {
            self.waiting.push(endpoint.create()?);
            self.finished.clear();
        }
        Ok(())
    }

    /// A connected channel, and whether the next instance could be created.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Channel, io::Result<()>)>> {
        let topped_up = self.top_up();
        // Every waiting instance is polled: which one a client gets is the system's choice.
        for index in 0..self.waiting.len() {
            match self.waiting[index].poll_connect(cx) {
                Poll::Ready(Ok(channel)) => {
                    // The replacement first, while the connected one holds the name.
                    self.set_connected(self.connected + 1);
                    drop(self.waiting.remove(index));
                    return Poll::Ready(Ok((channel, self.top_up())));
                }
                Poll::Ready(Err(error)) => {
                    drop(self.waiting.remove(index));
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {}
            }
        }
        topped_up?;
        self.acceptor = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A connection's place among the instances, given back when it is dropped.
pub(crate) struct Slot {
    instances: Arc<Mutex<Instances>>,
    log: Arc<LogLimit>,
    link: Arc<dyn Link>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut instances = lock(&self.instances);
        let connected = instances.connected - 1;
        instances.set_connected(connected);
        let topped_up = instances.top_up();
        if topped_up.is_err() && instances.waiting.is_empty() {
            instances.finished.push(Arc::clone(&self.link));
        }
        let acceptor = instances.acceptor.take();
        // A waker and a log are the caller's code: they may drop a connection or the listener, or block.
        drop(instances);
        log_missing_instance(&self.log, topped_up);
        if let Some(acceptor) = acceptor {
            acceptor.wake();
        }
    }
}

fn log_missing_instance(log: &LogLimit, topped_up: io::Result<()>) {
    let Err(error) = topped_up else { return };
    let reason = Reason::Instance;
    if let Some(pass) = log.pass(reason) {
        warn!(
            pipe.name = %log.pipe(),
            reason = reason.as_str(),
            suppressed = pass.suppressed,
            error = %Chain(&error),
            "the next instance can't be created; trying again"
        );
    }
}

fn lock(instances: &Mutex<Instances>) -> MutexGuard<'_, Instances> {
    instances.lock().unwrap_or_else(PoisonError::into_inner)
}
