//! The other side of a pipe.

use std::{io, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep};

#[cfg(feature = "test-util")]
use crate::engine::memory;
use crate::{
    connection::{Connection, RecvHalf, SendHalf},
    engine::{Channel, Sizes},
    error::{CallError, ConnectError, RecvError, SendError},
    listener::{DEFAULT_BUFFER_SIZE, DEFAULT_MAX_MESSAGE_SIZE},
    name::PipeName,
};

/// As long as the sample's client waits (*Named Pipe Client*).
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// The pauses between two attempts double from the shortest to the longest, each cut by a random part
/// so that clients that wait together do not come together. Attempts, not `WaitNamedPipe`: that parks a
/// thread, and returns at once when there is no instance.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Options of a client before it connects.
#[derive(Clone, Debug)]
#[must_use = "options do nothing until connect is called"]
pub struct ClientOptions {
    connect_timeout: Duration,
    wait_for_server: bool,
    max_message_size: Option<usize>,
    only_current_user: bool,
    #[cfg(windows)]
    allow_remote: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ClientOptions {
    /// The defaults: 20 s for a busy pipe, an error at once if nobody serves it, messages of 64 KiB.
    pub fn new() -> Self {
        Self {
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            wait_for_server: false,
            max_message_size: None,
            only_current_user: false,
            #[cfg(windows)]
            allow_remote: false,
        }
    }

    /// How long to wait for a busy pipe and, if asked, for one that is not there yet. Default: 20 s.
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = time;
        self
    }

    /// Whether to wait for a pipe that nobody serves yet. Default: no.
    pub fn wait_for_server(mut self, wait: bool) -> Self {
        self.wait_for_server = wait;
        self
    }

    /// The longest message in bytes, both ways. Default: 65,536.
    ///
    /// The server has a limit of its own. The most is 4 GiB less one byte on Windows; on Linux it is
    /// about twice `net.core.wmem_max`.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = Some(bytes);
        self
    }

    /// Whether to refuse a pipe that another user serves, who could read what is sent there. Default:
    /// no.
    ///
    /// On Windows the pipe's owner has to be this user, or the one that this process's token names as the
    /// owner of new objects: for an elevated administrator that is the Administrators group. Who reaches
    /// whom, when both are the same user and the server is one of ours:
    ///
    /// | server | owner of its pipe | plain client | elevated client |
    /// |---|---|---|---|
    /// | plain | the user | connects | connects |
    /// | elevated | Administrators | is refused | connects |
    ///
    /// .NET's `PipeOptions.CurrentUserOnly` compares the owner with its token's alone
    /// (`NamedPipeClientStream.Windows.cs`), so there an elevated client refuses a plain server as well.
    pub fn only_current_user(mut self, only: bool) -> Self {
        self.only_current_user = only;
        self
    }

    /// Whether to connect to a pipe on another machine, `\\HOST\pipe\NAME`. Default: no.
    ///
    /// Connecting sends this user's credentials to HOST over SMB, whoever HOST may be. So a name that
    /// comes from outside has to be checked before this is turned on.
    #[cfg(windows)]
    pub fn allow_remote(mut self, allow: bool) -> Self {
        self.allow_remote = allow;
        self
    }

    /// Connects to the pipe `name`.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] says what failed; [`ConnectError::Busy`] after the connect timeout.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped, there is no connection.
    pub async fn connect(self, name: impl AsRef<str>) -> Result<Client, ConnectError> {
        let name: PipeName = name.as_ref().parse()?;
        #[cfg(windows)]
        if name.is_remote() && !self.allow_remote {
            return Err(ConnectError::Remote {
                address: name.address().to_owned(),
            });
        }
        let sizes = self.sizes(ENGINE_MAX_MESSAGE_SIZE)?;
        let identify = self.only_current_user;
        let open = || open(&name, sizes, identify);
        let channel = self.retry(name.address(), open).await?;
        if self.only_current_user {
            check_owner(&name, &channel)?;
        }
        Ok(Client::new(channel, sizes.max_message_size))
    }

    /// Connects to a pipe inside this process.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`connect`](Self::connect).
    #[cfg(feature = "test-util")]
    pub async fn connect_memory(self, pipe: &MemoryPipe) -> Result<Client, ConnectError> {
        let sizes = self.sizes(usize::MAX)?;
        let open = || memory::connect(&pipe.board, sizes.max_message_size);
        let channel = self.retry("the memory pipe", open).await?;
        Ok(Client::new(channel, sizes.max_message_size))
    }

    fn sizes(&self, most: usize) -> Result<Sizes, ConnectError> {
        let max_message_size = self
            .max_message_size
            .unwrap_or(DEFAULT_MAX_MESSAGE_SIZE.min(most));
        if max_message_size == 0 || max_message_size > most {
            let problem = format!("is {max_message_size} bytes: take 1 to {most}");
            return Err(ConnectError::Option {
                option: "max_message_size",
                problem,
            });
        }
        Ok(Sizes {
            max_message_size,
            buffer_size: DEFAULT_BUFFER_SIZE,
        })
    }

    /// Opens the pipe as often as it takes: there is nothing to be woken by.
    async fn retry(
        &self,
        address: &str,
        mut open: impl FnMut() -> io::Result<Channel>,
    ) -> Result<Channel, ConnectError> {
        let begun = Instant::now();
        let mut pause = SHORTEST_PAUSE;
        loop {
            let error = match open() {
                Ok(channel) => return Ok(channel),
                Err(error) => error,
            };
            let address = address.to_owned();
            let left = self.connect_timeout.saturating_sub(begun.elapsed());
            match error.kind() {
                io::ErrorKind::NotFound if !self.wait_for_server || left.is_zero() => {
                    return Err(ConnectError::NotFound { address });
                }
                io::ErrorKind::ResourceBusy if left.is_zero() => {
                    return Err(ConnectError::Busy {
                        address,
                        waited: begun.elapsed(),
                    });
                }
                io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy => {}
                io::ErrorKind::PermissionDenied => {
                    return Err(ConnectError::Denied {
                        address,
                        source: error,
                    });
                }
                _ => {
                    return Err(ConnectError::Io {
                        address,
                        source: error,
                    });
                }
            }
            sleep(pause.mul_f64(1.0 - fastrand::f64() / 2.0).min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(target_os = "linux")]
const ENGINE_MAX_MESSAGE_SIZE: usize = usize::MAX;
#[cfg(windows)]
const ENGINE_MAX_MESSAGE_SIZE: usize = crate::engine::overlapped::MAX_MESSAGE_SIZE;

#[cfg(target_os = "linux")]
fn open(name: &PipeName, sizes: Sizes, _identify: bool) -> io::Result<Channel> {
    crate::engine::seqpacket::connect(name.address(), sizes)
}

#[cfg(windows)]
fn open(name: &PipeName, sizes: Sizes, identify: bool) -> io::Result<Channel> {
    crate::engine::overlapped::connect(name, sizes, identify)
}

#[cfg(target_os = "linux")]
fn check_owner(name: &PipeName, channel: &Channel) -> Result<(), ConnectError> {
    let address = name.address().to_owned();
    let peer = match channel.link.peer() {
        Ok(peer) => peer,
        Err(source) => return Err(ConnectError::Io { address, source }),
    };
    let current = crate::access::UserId::Uid(rustix::process::geteuid().as_raw());
    if *peer.user() != current {
        return Err(ConnectError::OtherUser {
            address,
            owner: peer.user().to_string(),
        });
    }
    Ok(())
}

#[cfg(windows)]
fn check_owner(name: &PipeName, channel: &Channel) -> Result<(), ConnectError> {
    let address = name.address().to_owned();
    let owner = match channel.link.peer() {
        Ok(peer) => peer.user().clone(),
        Err(source) => return Err(ConnectError::Io { address, source }),
    };
    match crate::windows::is_own(&owner) {
        Ok(true) => Ok(()),
        Ok(false) => Err(ConnectError::OtherUser {
            address,
            owner: owner.to_string(),
        }),
        Err(source) => Err(ConnectError::Io { address, source }),
    }
}

/// One connection to a server.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use pipe_server::Client;
///
/// let mut client = Client::connect("mynamedpipe").await?;
/// let reply = client.call("Default message from client.").await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    /// A call is under way, or was dropped on its way.
    calling: bool,
}

impl Client {
    fn new(channel: Channel, max_message_size: usize) -> Self {
        Self {
            connection: Connection::new(channel, None, 0, max_message_size),
            calling: false,
        }
    }

    /// Connects to the pipe `name` with the default [`ClientOptions`].
    ///
    /// # Errors
    ///
    /// As [`ClientOptions::connect`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`ClientOptions::connect`].
    pub async fn connect(name: impl AsRef<str>) -> Result<Self, ConnectError> {
        ClientOptions::new().connect(name).await
    }

    /// Sends a request and receives its reply.
    ///
    /// # Errors
    ///
    /// [`CallError`] says which half failed; [`CallError::Closed`] when the server closed instead of
    /// replying.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: if the future is dropped, the request may have been sent and its reply may
    /// still come, so that every later call fails with [`CallError::OutOfStep`].
    pub async fn call(&mut self, request: impl Into<Bytes>) -> Result<Bytes, CallError> {
        if self.calling {
            return Err(CallError::OutOfStep);
        }
        self.calling = true;
        let result = match self.connection.send(request).await {
            Ok(()) => match self.connection.recv().await {
                Ok(Some(reply)) => Ok(reply),
                Ok(None) => Err(CallError::Closed),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        };
        self.calling = false;
        result
    }

    /// Sends one message, as [`Connection::send`].
    ///
    /// # Errors
    ///
    /// As [`Connection::send`].
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe, as [`Connection::send`].
    pub async fn send(&mut self, message: impl Into<Bytes>) -> Result<(), SendError> {
        self.connection.send(message).await
    }

    /// Receives one message, or `None` when the server has closed, as [`Connection::recv`].
    ///
    /// # Errors
    ///
    /// As [`Connection::recv`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`Connection::recv`].
    pub async fn recv(&mut self) -> Result<Option<Bytes>, RecvError> {
        self.connection.recv().await
    }

    /// Ends the conversation, as [`Connection::finish`]: replies to what was sent can still be received.
    ///
    /// # Errors
    ///
    /// As [`Connection::finish`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`Connection::finish`].
    pub async fn finish(&mut self) -> Result<(), SendError> {
        self.connection.finish().await
    }

    /// Splits the client so that one task can receive while another one sends.
    #[must_use]
    pub fn into_split(self) -> (RecvHalf, SendHalf) {
        self.connection.into_split()
    }
}

/// A pipe inside this process, from
/// [`ListenerOptions::bind_memory`](crate::ListenerOptions::bind_memory).
#[cfg(feature = "test-util")]
#[derive(Clone, Debug)]
pub struct MemoryPipe {
    pub(crate) board: memory::Switchboard,
}

#[cfg(feature = "test-util")]
impl MemoryPipe {
    /// Connects with the default [`ClientOptions`].
    ///
    /// # Errors
    ///
    /// As [`ClientOptions::connect`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`ClientOptions::connect`].
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        ClientOptions::new().connect_memory(self).await
    }
}
