//! The engines of this system: the only place that chooses one.

use std::io;
#[cfg(windows)]
use std::path::Path;

use super::Sizes;
use crate::{
    defaults,
    error::OutOfRange,
    peer::{Peer, UserId},
};

#[cfg(not(any(windows, unix)))]
compile_error!("pipe-server runs on Windows and Linux, and its memory pipes on other Unix systems");

#[cfg(target_os = "linux")]
pub(crate) use super::linux::{
    StartLock, bind, connect, connect_on, connected, listen_on, listening, owner_of_directory,
    peer_pidfd, start_lock,
};
#[cfg(not(any(windows, target_os = "linux")))]
pub(crate) use super::unsupported::{StartLock, bind, connect, start_lock};
#[cfg(all(windows, not(pipe_model)))]
pub(crate) use super::windows::without_inherited_stdio;
#[cfg(windows)]
pub(crate) use super::windows::{StartLock, is_own, start_lock};
#[cfg(windows)]
use super::{
    Channel, Endpoint, Engine, EngineOptions,
    windows::{
        overlapped::{self, MAX_MESSAGE_SIZE},
        tokio_pipe,
    },
};
#[cfg(windows)]
use crate::{name::PipeName, telemetry::Telemetry};

/// The limit of a socket is known once it exists.
#[cfg(unix)]
const MAX_MESSAGE_SIZE: usize = usize::MAX;

/// Serves the pipe `name`.
#[cfg(windows)]
pub(crate) fn bind(
    name: &PipeName,
    _path: &Path,
    options: &EngineOptions,
    _telemetry: &Telemetry,
) -> io::Result<Box<dyn Endpoint>> {
    let (access, allow_remote) = (&options.access, options.allow_remote);
    match options.engine {
        Engine::Tokio => {
            let sizes = options.sizes("the tokio engine", tokio_pipe::MAX_MESSAGE_SIZE)?;
            tokio_pipe::bind(name, access, allow_remote, sizes)
        }
        Engine::Auto | Engine::Overlapped => {
            let sizes = options.sizes("the overlapped engine", MAX_MESSAGE_SIZE)?;
            overlapped::bind(name, access, allow_remote, sizes)
        }
    }
}

/// Connects to the pipe `name`. `ResourceBusy` if no instance is free. With `identify` the channel
/// can be asked for its peer, which takes one more right.
///
/// Always uses the `overlapped` engine: Tokio's client requests `GENERIC_WRITE`, which contains the
/// right to create instances, and a careful server grants that to nobody else.
#[cfg(windows)]
pub(crate) fn connect(
    name: &PipeName,
    _path: &Path,
    sizes: Sizes,
    identify: bool,
) -> io::Result<Channel> {
    overlapped::connect(name, sizes, identify)
}

/// The sizes of a client's end.
pub(crate) fn client_sizes(max_message_size: Option<usize>) -> Result<Sizes, OutOfRange> {
    let buffer_size = defaults::BUFFER_SIZE;
    Sizes::new(
        max_message_size,
        buffer_size,
        "this system",
        MAX_MESSAGE_SIZE,
    )
}

impl Peer {
    /// Returns this process and its user, to compare clients with, or for a
    /// [`Request`](crate::Request) in a test.
    ///
    /// # Errors
    ///
    /// Returns the system's error.
    pub fn current() -> io::Result<Self> {
        #[cfg(unix)]
        let user = UserId::Uid(rustix::process::geteuid().as_raw());
        #[cfg(windows)]
        let user = UserId::Sid(super::windows::current_user()?);
        Ok(Self {
            #[cfg(target_os = "linux")]
            group_id: rustix::process::getegid().as_raw(),
            ..Self::new(std::process::id(), user)
        })
    }
}

/// Whether a pipe owned by `owner` belongs to this process's user.
#[cfg(unix)]
pub(crate) fn is_own(owner: &UserId) -> io::Result<bool> {
    Ok(*owner == UserId::Uid(rustix::process::geteuid().as_raw()))
}
