//! The engines of this system: the only place that chooses one.

#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::{io, path::Path};

use super::{Channel, Endpoint, Sizes};
use crate::{access::Access, defaults, error::OutOfRange, name::PipeName, peer::UserId};

#[cfg(target_os = "linux")]
use super::linux;
#[cfg(target_os = "linux")]
pub(crate) use super::linux::{connect_on, connected, listening};
#[cfg(not(any(windows, target_os = "linux")))]
use super::unsupported;
#[cfg(windows)]
use super::{
    Engine,
    windows::{self, overlapped, tokio_pipe},
};
#[cfg(target_os = "linux")]
use crate::telemetry::Telemetry;

/// A pipe to serve.
pub(crate) struct ToBind<'a> {
    pub(crate) name: &'a PipeName,
    /// The path of the name.
    #[cfg(target_os = "linux")]
    pub(crate) path: &'a Path,
    #[cfg(target_os = "linux")]
    pub(crate) telemetry: &'a Telemetry,
    pub(crate) access: &'a Access,
    #[cfg(target_os = "linux")]
    pub(crate) socket_group: Option<u32>,
    pub(crate) max_message_size: Option<usize>,
    pub(crate) buffer_size: usize,
    #[cfg(windows)]
    pub(crate) allow_remote: bool,
    #[cfg(windows)]
    pub(crate) engine: Engine,
}

/// Serves a pipe.
#[cfg(target_os = "linux")]
pub(crate) fn bind(pipe: &ToBind<'_>) -> io::Result<Box<dyn Endpoint>> {
    let (asked, buffer_size) = (pipe.max_message_size, pipe.buffer_size);
    // The limit of a socket is known once it exists.
    let sizes = Sizes::new(asked, buffer_size, "this system", usize::MAX)?;
    linux::bind(pipe, sizes)
}

/// Serves a listening socket that was created elsewhere, and that [`listening`] has checked.
#[cfg(target_os = "linux")]
pub(crate) fn listen_on(
    socket: OwnedFd,
    telemetry: &Telemetry,
    max_message_size: Option<usize>,
    buffer_size: usize,
) -> io::Result<Box<dyn Endpoint>> {
    let sizes = Sizes::new(max_message_size, buffer_size, "this system", usize::MAX)?;
    linux::listen_on(socket, telemetry, sizes)
}

/// Serves a pipe.
#[cfg(windows)]
pub(crate) fn bind(pipe: &ToBind<'_>) -> io::Result<Box<dyn Endpoint>> {
    let (engine, longest) = match pipe.engine {
        Engine::Tokio => (Engine::Tokio, tokio_pipe::MAX_MESSAGE_SIZE),
        Engine::Auto | Engine::Overlapped => (Engine::Overlapped, overlapped::MAX_MESSAGE_SIZE),
    };
    let (asked, buffer_size) = (pipe.max_message_size, pipe.buffer_size);
    let carrier = format!("the {engine} engine");
    let sizes = Sizes::new(asked, buffer_size, &carrier, longest)?;
    let bind = match engine {
        Engine::Tokio => tokio_pipe::bind,
        Engine::Auto | Engine::Overlapped => overlapped::bind,
    };
    bind(pipe.name, pipe.access, pipe.allow_remote, sizes)
}

/// Fails: this system has no engine of its own.
#[cfg(not(any(windows, target_os = "linux")))]
pub(crate) fn bind(pipe: &ToBind<'_>) -> io::Result<Box<dyn Endpoint>> {
    let (asked, buffer_size) = (pipe.max_message_size, pipe.buffer_size);
    Sizes::new(asked, buffer_size, "this system", usize::MAX)?;
    Err(unsupported::error("bind_memory"))
}

/// The sizes of a client's end.
pub(crate) fn client_sizes(max_message_size: Option<usize>) -> Result<Sizes, OutOfRange> {
    // The limit of a socket is known once it exists.
    #[cfg(unix)]
    let longest = usize::MAX;
    #[cfg(windows)]
    let longest = overlapped::MAX_MESSAGE_SIZE;
    let buffer_size = defaults::BUFFER_SIZE;
    Sizes::new(max_message_size, buffer_size, "this system", longest)
}

/// Connects to the pipe `name`, whose path is `path`. `ResourceBusy` if no instance is free. With `identify`
/// the channel can be asked for its peer, which takes one more right on Windows.
#[cfg(target_os = "linux")]
pub(crate) fn connect(
    _name: &PipeName,
    path: &Path,
    sizes: Sizes,
    _identify: bool,
) -> io::Result<Channel> {
    linux::connect(path, sizes)
}

/// Connects to the pipe `name`. `ResourceBusy` if no instance is free. With `identify` the channel can be
/// asked for its peer, which takes one more right.
///
/// Always uses the `overlapped` engine: Tokio's client requests `GENERIC_WRITE`, which contains the right to
/// create instances, and a careful server grants that to nobody else.
#[cfg(windows)]
pub(crate) fn connect(
    name: &PipeName,
    _path: &Path,
    sizes: Sizes,
    identify: bool,
) -> io::Result<Channel> {
    overlapped::connect(name, sizes, identify)
}

/// Fails: this system has no engine of its own.
#[cfg(not(any(windows, target_os = "linux")))]
pub(crate) fn connect(
    _name: &PipeName,
    _path: &Path,
    _sizes: Sizes,
    _identify: bool,
) -> io::Result<Channel> {
    Err(unsupported::error("connect_memory"))
}

/// The owner of the directory of a short or system name, if it exists.
///
/// # Errors
///
/// Returns the system's error, and `PermissionDenied` if anyone but its owner can write to it.
#[cfg(target_os = "linux")]
pub(crate) fn owner_of_directory(path: &Path) -> io::Result<Option<UserId>> {
    let owner = linux::owner_of_directory(path)?;
    Ok(owner.map(UserId::Uid))
}

/// Whether a pipe owned by `owner` belongs to this process's user.
pub(crate) fn is_own(owner: &UserId) -> io::Result<bool> {
    #[cfg(unix)]
    return Ok(*owner == UserId::Uid(rustix::process::geteuid().as_raw()));
    #[cfg(windows)]
    return windows::is_own(owner);
}
