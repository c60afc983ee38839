//! The options of a client, and connecting with them.

use std::{io, process::Command, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Client,
    start::{ServerCommand, ServerStart},
};
use crate::{
    backoff::Backoff,
    defaults,
    engine::{Channel, Sizes, native},
    error::{ConnectError, served_by},
    name::{NameError, PipeName},
    peer::UserId,
    trust::Trust,
};
#[cfg(doc)]
use crate::{client::SharedClient, error::CallError};

/// The delay between two attempts to open a pipe. `WaitNamedPipe` is not used, because it blocks a
/// thread, and returns at once if there is no instance.
const OPEN_BACKOFF: Backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(50));

/// Options for connecting a client. [`os`](crate::os) adds options specific to one system.
#[derive(Clone, Debug)]
#[must_use = "options do nothing until connect is called"]
pub struct ClientOptions {
    connect_timeout: Option<Duration>,
    /// `None` if it was not set.
    wait_for_server: Option<bool>,
    pub(crate) call_timeout: Option<Duration>,
    pub(crate) max_message_size: Option<usize>,
    trust: Trust,
    start: Option<ServerCommand>,
    #[cfg(windows)]
    pub(crate) allow_remote: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ClientOptions {
    /// Creates options with the [`defaults`]: wait up to 20 s for a busy pipe, fail at once if the
    /// pipe does not exist, up to 30 s for a call, messages up to 64 KiB.
    pub fn new() -> Self {
        Self {
            connect_timeout: Some(defaults::CONNECT_TIMEOUT),
            wait_for_server: None,
            call_timeout: Some(defaults::CALL_TIMEOUT),
            max_message_size: None,
            trust: Trust::default(),
            start: None,
            #[cfg(windows)]
            allow_remote: false,
        }
    }

    /// Sets how long to wait for a busy pipe and, with [`wait_for_server`](Self::wait_for_server),
    /// for one that does not exist yet; `None` for no limit. Default:
    /// [`defaults::CONNECT_TIMEOUT`], 20 s.
    pub fn connect_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.connect_timeout = time.into();
        self
    }

    /// Sets whether to wait for a pipe that does not exist yet. Default: no, but a
    /// [`SharedClient`] that was connected waits for its server to come back.
    pub fn wait_for_server(mut self, wait: bool) -> Self {
        self.wait_for_server = Some(wait);
        self
    }

    /// Waits for a pipe that does not exist, unless the user has decided otherwise.
    pub(super) fn wait_by_default(mut self) -> Self {
        self.wait_for_server.get_or_insert(true);
        self
    }

    /// Sets how long a [`call`](Client::call) may take, from the start of sending to the reply,
    /// before it fails with [`CallError::TimedOut`]; `None` for no limit. Default:
    /// [`defaults::CALL_TIMEOUT`], 30 s.
    ///
    /// Only the author of a handler knows how long it takes: set more, or `None`, for handlers that
    /// may take longer.
    ///
    /// The client remains usable. If the reply still arrives, the next call drops it.
    pub fn call_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.call_timeout = time.into();
        self
    }

    /// Sets the length of the longest message in bytes, in both directions; at least 1. `None`, the
    /// default, is [`defaults::MAX_MESSAGE_SIZE`], 65,536.
    ///
    /// The server has its own limit. The largest value is 4 GiB less one byte on Windows, and about
    /// twice `net.core.wmem_max` on Linux.
    pub fn max_message_size(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.max_message_size = bytes.into();
        self
    }

    /// Sets the servers to trust. Default: [`Trust::System`], the servers of this user and of the
    /// system.
    ///
    /// Other servers are refused with [`ConnectError::Untrusted`] before anything is sent to them.
    /// [`connect_memory`](Self::connect_memory) does not check: the server is in this process.
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// Starts a server with `command` if nobody serves the pipe, and waits until it answers, within
    /// the [`connect_timeout`](Self::connect_timeout). Default: no command.
    ///
    /// For a `tokio::process::Command`, pass `into_std()`. Of many clients that need the same
    /// server, in this process and others, one starts it and the others wait for it. While a server
    /// that is shutting down still holds the name, the command is not started, and it is started
    /// again if it fails for that reason. A command that ends successfully may have left a server
    /// running, which has a second to answer before the command is started again. The server of a
    /// name on another machine is never started.
    ///
    /// The server keeps running when the client ends. It has its own process group
    /// (`process_group`; on Windows `CREATE_NEW_PROCESS_GROUP`, and its own console without a
    /// window, `CREATE_NO_WINDOW`), so Ctrl-C at the client's terminal does not reach it, nor does
    /// the end of that terminal. Unlike with setsid(2) it stays in the client's session. Its stdin
    /// and stdout are null. Its stderr is a temporary file without a name, which grows without a
    /// limit: a server that writes much should log elsewhere. It inherits the environment and the
    /// working directory, which can be set on `command`.
    ///
    /// A thread waits for the command as long as it runs, so that no zombie is left. While a client
    /// starts the command, a lock file keeps the others from doing so: `PATH.start.lock` beside the
    /// socket on Linux, and on Windows a file in the directory of temporary files.
    ///
    /// To end the server when nobody needs it, see
    /// [`Serve::shutdown_when_idle`](crate::Serve::shutdown_when_idle).
    ///
    /// # Errors
    ///
    /// [`connect`](Self::connect) fails with [`ConnectError::Start`] if the command can't be
    /// started, fails, or its server does not answer in time. With a connect timeout of 0 the
    /// command is never started ([`StartError::NoTime`](crate::StartError::NoTime)).
    ///
    /// # Cancel safety
    ///
    /// If the future of `connect` is dropped, a command that was started keeps running.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::process::Command;
    /// use pipe_server::ClientOptions;
    ///
    /// let mut command = Command::new("pipe-server");
    /// command.args(["--pipe-name", "cache", "--echo", "--exit-when-idle", "10min"]);
    /// let mut client = ClientOptions::new().start_server(command).connect("cache").await?;
    /// # Ok(()) }
    /// ```
    pub fn start_server(mut self, command: Command) -> Self {
        self.start = Some(ServerCommand::new(command));
        self
    }

    /// Connects to a server that is running, or not at all.
    pub(super) fn without_start(mut self) -> Self {
        self.start = None;
        self
    }

    /// Connects to the pipe `name`.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] says what failed. If the connect timeout expires, it is
    /// [`ConnectError::Busy`], or [`ConnectError::NotFound`] if the pipe still does not exist.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped, no connection is left.
    pub async fn connect(
        &self,
        name: impl TryInto<PipeName, Error: Into<NameError>>,
    ) -> Result<Client, ConnectError> {
        let name = name.try_into().map_err(Into::into)?;
        let sizes = native::client_sizes(self.max_message_size)?;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(ConnectError::NoRuntime);
        }
        let path = name.resolve()?;
        #[cfg(windows)]
        if name.is_remote() && !self.allow_remote {
            let address = path.display().to_string();
            return Err(ConnectError::Remote { address });
        }
        let address = path.display().to_string();
        #[cfg(target_os = "linux")]
        if (name.short().is_some() || name.is_system()) && self.trust != Trust::Anyone {
            let owner = native::owner_of_directory(&path);
            check_owner(&address, owner, &self.trust)?;
        }
        let open = || native::connect(&name, &path, sizes, self.trust != Trust::Anyone);
        let command = self.start.as_ref().filter(|_| !name.is_remote());
        let start = command.map(|command| ServerStart::new(command, &name, &path));
        let channel = self.retry(&address, start, open).await?;
        self.client(&address, channel, sizes)
    }

    /// Creates a client on `channel`, if its server is trusted.
    pub(crate) fn client(
        &self,
        address: &str,
        channel: Channel,
        sizes: Sizes,
    ) -> Result<Client, ConnectError> {
        if self.trust != Trust::Anyone {
            let owner = channel.link.peer().map(|server| Some(server.user));
            check_owner(address, owner, &self.trust)?;
        }
        Ok(Client::new(
            channel,
            sizes.max_message_size,
            self.call_timeout,
        ))
    }

    /// Retries until the pipe opens or the connect timeout expires. The system provides no event to
    /// wait for.
    pub(crate) async fn retry(
        &self,
        address: &str,
        mut start: Option<ServerStart<'_>>,
        mut open: impl FnMut() -> io::Result<Channel>,
    ) -> Result<Channel, ConnectError> {
        let begun = Instant::now();
        let mut waited = Duration::ZERO;
        let mut backoff = OPEN_BACKOFF;
        let waits = self.wait_for_server.unwrap_or(false) || start.is_some();
        loop {
            let error = match open() {
                Ok(channel) => return Ok(channel),
                Err(error) => error,
            };
            let left = match self.connect_timeout {
                Some(time) => time.saturating_sub(begun.elapsed()),
                None => Duration::MAX,
            };
            let is_missing = match error.kind() {
                io::ErrorKind::NotFound => true,
                io::ErrorKind::ResourceBusy => false,
                _ => return Err(ConnectError::open(address, error)),
            };
            if left.is_zero() || is_missing && !waits {
                let address = address.to_owned();
                if !is_missing {
                    return Err(ConnectError::Busy { address, waited });
                }
                if let Some(error) = start.and_then(|start| start.timed_out(waited)) {
                    return Err(error.into());
                }
                let process_id = served_by(&error);
                return Err(ConnectError::NotFound {
                    address,
                    process_id,
                });
            }
            if let Some(start) = &mut start {
                // The process, if any, that holds the name without serving it.
                match is_missing && served_by(&error).is_none() {
                    true if start.advance()? => continue,
                    true => {}
                    false => start.wait_for_name()?,
                }
            }
            sleep(backoff.next_jittered_delay().min(left)).await;
            waited = begun.elapsed();
        }
    }
}

/// Returns an error if the pipe has an owner that is not trusted.
fn check_owner(
    address: &str,
    owner: io::Result<Option<UserId>>,
    trust: &Trust,
) -> Result<(), ConnectError> {
    let untrusted = owner.and_then(|owner| match owner {
        Some(owner) if !trust.includes(&owner)? => Ok(Some(owner)),
        _ => Ok(None),
    });
    let address = address.to_owned();
    match untrusted {
        Ok(None) => Ok(()),
        Ok(Some(owner)) => Err(ConnectError::Untrusted { address, owner }),
        Err(source) => Err(ConnectError::Io { address, source }),
    }
}
