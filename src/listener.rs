//! The listener of a pipe, and its options.

use std::{
    future::poll_fn,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    access::Access,
    connection::Connection,
    debug::debug_fields,
    defaults,
    engine::{Channel, Endpoint, EngineOptions, native},
    error::{BindError, OutOfRange},
    name::{NameError, PipeName},
    telemetry::{Stats, Telemetry},
};

use self::instances::Instances;

mod instances;

/// Options for serving a pipe. [`os`](crate::os) adds options specific to one system.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), pipe_server::BindError> {
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
    backlog: usize,
    pub(crate) for_engine: EngineOptions,
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ListenerOptions {
    /// Creates options with the [`defaults`]: an unlimited number of instances, messages up to 64
    /// KiB (4,095 bytes on the `tokio` engine), access only for the current user, no remote
    /// clients.
    pub fn new() -> Self {
        Self {
            max_instances: None,
            backlog: defaults::BACKLOG,
            for_engine: EngineOptions {
                buffer_size: defaults::BUFFER_SIZE,
                ..EngineOptions::default()
            },
        }
    }

    /// Sets the number of clients served at once; at least 1. `None`, the default, for no limit.
    ///
    /// At the limit, further clients see a busy pipe and wait up to their connect timeout:
    /// `ERROR_PIPE_BUSY` on Windows, `EAGAIN` on Linux. On Linux a queue can't be shorter than one
    /// client, so one client over the limit connects and then waits for its first reply, as do
    /// clients that were in the queue when the limit was reached. None of them is lost.
    ///
    /// If other users may connect, [`serve`](crate::serve()) gives each of them at most half of the
    /// places, and keeps some for the server's own user
    /// ([`max_connections_per_user`](crate::Serve::max_connections_per_user)).
    ///
    /// The listener enforces the limit, not the system: 255 means 255, although `CreateNamedPipe`
    /// interprets it as `PIPE_UNLIMITED_INSTANCES`.
    pub fn max_instances(mut self, instances: impl Into<Option<usize>>) -> Self {
        self.max_instances = instances.into();
        self
    }

    /// Sets the length of the longest message in bytes, in both directions; at least 1. `None`, the
    /// default, is [`defaults::MAX_MESSAGE_SIZE`], 65,536, or the engine's limit if that is lower
    /// (4,095 on the `tokio` engine).
    ///
    /// A client that sends a longer message is disconnected. The system's own limit on Linux is
    /// about twice `net.core.wmem_max`.
    pub fn max_message_size(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.for_engine.max_message_size = bytes.into();
        self
    }

    /// Sets the number of bytes that the pipe buffers in each direction before a writer waits for
    /// the reader; at least 1. Default: [`defaults::BUFFER_SIZE`], 65,536.
    ///
    /// This is `nInBufferSize` and `nOutBufferSize` on Windows, and `SO_SNDBUF` on Linux, where it
    /// is never reduced.
    pub fn buffer_size(mut self, bytes: u32) -> Self {
        self.for_engine.buffer_size = bytes;
        self
    }

    /// Sets the number of instances that wait for clients; at least 1. Default:
    /// [`defaults::BACKLOG`], 2.
    ///
    /// With a larger number, fewer clients of a burst have to retry. On Linux this has no effect:
    /// the kernel queues 1,024 clients while fewer than `max_instances` are served.
    pub fn backlog(mut self, instances: usize) -> Self {
        self.backlog = instances;
        self
    }

    /// Sets who may connect. Default: [`Access::CurrentUser`].
    pub fn access(mut self, access: Access) -> Self {
        self.for_engine.access = access;
        self
    }

    /// Serves the pipe `name`. Clients can connect as soon as this returns.
    ///
    /// # Errors
    ///
    /// [`BindError`] says which name, option or right is at fault. It is [`BindError::InUse`] for a
    /// name that is already served, or [`BindError::Denied`] if another user serves it. On Linux it
    /// is also [`BindError::Denied`] if another user can replace the socket, because the directory
    /// belongs to another user (except root), or everyone can write to it and it has no sticky bit.
    pub fn bind(
        &self,
        name: impl TryInto<PipeName, Error: Into<NameError>>,
    ) -> Result<PipeListener, BindError> {
        let name = name.try_into().map_err(Into::into)?;
        self.check()?;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BindError::NoRuntime);
        }
        let path = name.resolve_absolute()?;
        if name.is_remote() {
            let address = path.display().to_string();
            return Err(BindError::Remote { address });
        }
        let bind = |telemetry: &Telemetry| native::bind(&name, &path, &self.for_engine, telemetry);
        self.listen(&name, &path, self.admits_others(), bind)
    }

    pub(crate) fn check(&self) -> Result<(), OutOfRange> {
        let refuse = |option, problem| Err(OutOfRange::new(option, problem));
        if self.max_instances == Some(0) {
            return refuse("max_instances", "is 0: use 1 or more, or no limit");
        }
        if self.backlog == 0 {
            return refuse("backlog", "is 0: use 1 instance or more");
        }
        Ok(())
    }

    /// Returns whether users other than this one and the system can connect.
    pub(crate) fn admits_others(&self) -> bool {
        #[cfg(target_os = "linux")]
        if self.for_engine.socket_group.is_some() {
            return true;
        }
        self.for_engine.access != Access::CurrentUser
    }

    /// Creates the endpoint with `bind`, and its first instances.
    pub(crate) fn listen(
        &self,
        name: &PipeName,
        path: &Path,
        admits_others: bool,
        bind: impl FnOnce(&Telemetry) -> io::Result<Box<dyn Endpoint>>,
    ) -> Result<PipeListener, BindError> {
        let refuse = |error| BindError::create(path.display().to_string(), error);
        let telemetry = Telemetry::new(name.clone());
        let endpoint = bind(&telemetry).map_err(refuse)?;
        let max_message_size = endpoint.max_message_size();
        let max_instances = self.max_instances.unwrap_or(usize::MAX);
        let instances = Instances::new(telemetry, endpoint, self.backlog, max_instances);
        Ok(PipeListener {
            name: name.clone(),
            path: path.to_owned(),
            instances: instances.map_err(refuse)?,
            max_message_size,
            admits_others,
            last_id: 0,
        })
    }
}

/// Keeps instances of a pipe waiting for clients, and returns connections.
///
/// While fewer than `max_instances` clients are connected, an instance is always waiting: the next
/// one is created before a connection is returned. Dropping the listener releases the name.
/// Connections that it has returned remain open.
pub struct PipeListener {
    name: PipeName,
    path: PathBuf,
    pub(crate) instances: Arc<Instances>,
    max_message_size: usize,
    admits_others: bool,
    last_id: u64,
}

impl PipeListener {
    /// Serves the pipe `name` with the default [`ListenerOptions`].
    ///
    /// # Errors
    ///
    /// Same as [`ListenerOptions::bind`].
    pub fn bind(name: impl TryInto<PipeName, Error: Into<NameError>>) -> Result<Self, BindError> {
        ListenerOptions::new().bind(name)
    }

    /// Waits for a client. At `max_instances`, first waits for a connection to end.
    ///
    /// A client that has already disconnected is returned too: the messages that it sent can still
    /// be received.
    ///
    /// # Errors
    ///
    /// Returns the system's error if an instance can't be created or waited for. The listener
    /// remains usable: retry after a delay, as [`serve`](crate::serve()) does.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped, no client is lost.
    pub async fn accept(&mut self) -> io::Result<Connection> {
        let (channel, errors) = poll_fn(|cx| self.instances.poll_accept(cx)).await?;
        let connection = self.connection(channel);
        self.instances.log(&errors);
        Ok(connection)
    }

    /// Accepts a client that had connected before [`Instances::close`], or returns `None` if there
    /// is none.
    pub(crate) async fn accept_rest(&mut self) -> Option<Connection> {
        let channel = poll_fn(|cx| self.instances.poll_accept_rest(cx)).await?;
        Some(self.connection(channel))
    }

    fn connection(&mut self, channel: Channel) -> Connection {
        self.last_id += 1;
        let instances = Arc::clone(&self.instances);
        let (id, max_message_size) = (self.last_id, self.max_message_size);
        Connection::new(channel, Some(instances), id, max_message_size)
    }

    /// Returns the name of the pipe.
    #[must_use]
    pub fn name(&self) -> &PipeName {
        &self.name
    }

    /// Returns the path that clients connect to: the full path of the pipe on Windows, the path of
    /// the socket on Linux.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the length of the longest message that its connections carry, in bytes.
    #[must_use]
    pub fn max_message_size(&self) -> usize {
        self.max_message_size
    }

    /// Returns whether users other than this one and the system can connect.
    pub(crate) fn admits_others(&self) -> bool {
        self.admits_others
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        self.instances.telemetry()
    }

    /// Returns a handle to the live statistics of the listener.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.telemetry().stats().clone()
    }
}

debug_fields! { PipeListener, |listener| name = listener.name }

impl Drop for PipeListener {
    fn drop(&mut self) {
        self.instances.release_all();
        self.telemetry().flush_log();
    }
}
