//! The Linux engine: `AF_UNIX` sockets of type `SOCK_SEQPACKET`, which preserve message boundaries.
//!
//! The system calls are rustix's, on Tokio's `AsyncFd`. nix provides the three things that
//! rustix lacks: recvmmsg(2), socket options that are newer than the crate (`SO_PASSRIGHTS`,
//! `SO_PEERPIDFD`), and peers whose process id is 0. tokio-seqpacket has none of them, and mistakes
//! a full queue for a connection.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustix::{
    fs::{Mode, fchmod},
    io::Errno,
    net::SocketAddrUnix,
    process::Gid,
};

use self::{
    channel::channel,
    claim::{Claim, LockFile, holder},
    directory::directory_of,
    listening::{Listening, QUEUE_LENGTH},
    socket::Socket,
    watch::{Served, Watch},
};
pub(crate) use self::{
    channel::peer_pidfd,
    claim::LockFile as StartLock,
    inherited::{connected, listening},
};
use super::{Channel, Endpoint, EngineOptions, Instance, Sizes};
use crate::{
    access::Access,
    error::{OutOfRange, ServedBy},
    name::PipeName,
    peer::UserId,
    telemetry::Telemetry,
};

mod channel;
mod claim;
mod descriptors;
mod directory;
mod inherited;
mod lingering;
mod listening;
mod scratch;
mod socket;
mod watch;

/// Serves the pipe `name`, whose path is `path`. From the moment the socket exists, only those whom
/// `options` allow can connect. The directory of a short name belongs to the user and is created,
/// and so is that of a system name if this user may; that of any other path is used as it is.
pub(crate) fn bind(
    name: &PipeName,
    path: &Path,
    options: &EngineOptions,
    telemetry: &Telemetry,
) -> io::Result<Box<dyn Endpoint>> {
    // The limit of a socket is known once it exists.
    let sizes = options.sizes("this system", usize::MAX)?;
    let group = group(options.socket_group, name.short().is_some())?;
    let binding = Binding {
        name: name.clone(),
        mode: mode(&options.access, group)?,
        group,
        sizes,
        telemetry: telemetry.clone(),
    };
    directory::prepare(name, path)?;
    let mut claim = Claim::new(path.to_owned(), name.short().is_some() || name.is_system())?;
    let socket = binding.bind(&mut claim)?;
    let listening = Arc::new(Listening::new(socket, true)?);
    let watch = Watch::start(Served {
        listening: Arc::clone(&listening),
        claim,
        binding,
        is_reported: false,
    })?;
    Ok(Box::new(SeqpacketEndpoint {
        listening,
        sizes,
        _watch: Some(watch),
    }))
}

/// What it takes to bind the socket of a pipe, once or again.
struct Binding {
    name: PipeName,
    mode: u32,
    group: Option<Gid>,
    sizes: Sizes,
    telemetry: Telemetry,
}

impl Binding {
    /// Creates a socket that listens at the claimed path.
    fn bind(&self, claim: &mut Claim) -> io::Result<Socket> {
        // The socket file starts out in this process's own group, which must not get in instead.
        let first_mode = match self.group {
            Some(_) => self.mode & !0o070,
            None => self.mode,
        };
        let mut socket = Socket::new()?;
        socket.telemetry = Some(self.telemetry.clone());
        socket.grow_send_buffer(self.sizes)?;
        // Linux gives the socket file the mode of the socket itself, less the umask (unix_bind in
        // net/unix/af_unix.c). Set before bind, so that nobody gets in between.
        fchmod(&socket, Mode::from_raw_mode(first_mode))?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&claim.path)?)?;
        claim.take_socket_file(self.mode, self.group)?;
        rustix::net::listen(&socket, QUEUE_LENGTH)?;
        Ok(socket)
    }
}

/// Serves a listening socket that was created elsewhere, and that [`listening()`] has checked.
pub(crate) fn listen_on(
    socket: OwnedFd,
    options: &EngineOptions,
    telemetry: &Telemetry,
) -> io::Result<Box<dyn Endpoint>> {
    let sizes = options.sizes("this system", usize::MAX)?;
    // Finds out whether the system carries such messages. Clients' sockets have the kernel's
    // defaults, as this one has; the listening socket need not.
    Socket::new()?.grow_send_buffer(sizes)?;
    let sets_queue = inherited::is_ours(&socket)?;
    let mut socket = Socket::shared(socket)?;
    socket.telemetry = Some(telemetry.clone());
    if sets_queue {
        // A server that was killed at `max_instances` left a short queue.
        rustix::net::listen(&socket, QUEUE_LENGTH)?;
    }
    Ok(Box::new(SeqpacketEndpoint {
        listening: Arc::new(Listening::new(socket, sets_queue)?),
        sizes,
        _watch: None,
    }))
}

/// Talks on a connected socket that was created elsewhere, and that [`connected`] has checked.
pub(crate) fn connect_on(socket: OwnedFd, sizes: Sizes) -> io::Result<Channel> {
    let socket = Socket::connected(socket)?;
    socket.grow_send_buffer(sizes)?;
    channel(socket, sizes.max_message_size)
}

/// The mode of the socket file.
fn mode(access: &Access, group: Option<Gid>) -> Result<u32, OutOfRange> {
    match (access, group) {
        (Access::CurrentUser, None) => Ok(0o600),
        (Access::CurrentUser, Some(_)) => Ok(0o660),
        (Access::Everyone, _) => Ok(0o666),
        (Access::Custom(access), _) if access.mode <= 0o777 => Ok(access.mode),
        (Access::Custom(_), _) => {
            let problem = format!("is {access}, which is out of range: use 0 to 0777");
            Err(OutOfRange::new("access", problem))
        }
    }
}

/// Checks the group of the socket file.
fn group(id: Option<u32>, own_directory: bool) -> Result<Option<Gid>, OutOfRange> {
    let problem = match id {
        None => return Ok(None),
        Some(_) if own_directory => {
            "has no effect on a short name: only this user can enter its directory (mode 0700); give the pipe a \
             path in a directory that the group can enter, such as /run/mynamedpipe"
        }
        // To chown(2) it means no change.
        Some(u32::MAX) => "is 4294967295: take a group id from 0 to 4294967294",
        Some(id) => return Ok(Some(Gid::from_raw(id))),
    };
    Err(OutOfRange::new("socket_group", problem))
}

/// The owner of the directory of a short or system name's socket, if it exists.
///
/// # Errors
///
/// Returns the system's error, and `PermissionDenied` if other users can write to it.
pub(crate) fn owner_of_directory(path: &Path) -> io::Result<Option<UserId>> {
    let owner = directory::owner_of_directory(directory_of(path))?;
    Ok(owner.map(UserId::Uid))
}

/// Takes the right to start the server of `path`. `None` if another client has it.
pub(crate) fn start_lock(name: &PipeName, path: &Path) -> io::Result<Option<LockFile>> {
    directory::prepare(name, path)?;
    LockFile::take_start_lock(path)
}

/// Connects to the socket at `path`. `ResourceBusy` if its queue is full, which can't be waited
/// for. The channel can always be asked for its peer.
pub(crate) fn connect(
    _name: &PipeName,
    path: &Path,
    sizes: Sizes,
    _identify: bool,
) -> io::Result<Channel> {
    let socket = Socket::new()?;
    socket.grow_send_buffer(sizes)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => channel(socket, sizes.max_message_size),
        Err(Errno::AGAIN) => Err(io::ErrorKind::ResourceBusy.into()),
        // Nobody serves the socket file of a server that was killed.
        Err(Errno::NOENT | Errno::CONNREFUSED) => Err(match holder(path) {
            Some(process_id) => io::Error::new(io::ErrorKind::NotFound, ServedBy { process_id }),
            None => io::ErrorKind::NotFound.into(),
        }),
        Err(Errno::PROTOTYPE) => Err(io::Error::other(
            "the socket there is not a SEQPACKET socket: it may be another program's, and does not preserve \
                 message boundaries",
        )),
        Err(error) => Err(error.into()),
    }
}

struct SeqpacketEndpoint {
    listening: Arc<Listening>,
    sizes: Sizes,
    /// Releases the name, after the socket is closed. `None` for a socket that was created
    /// elsewhere.
    _watch: Option<Watch>,
}

impl Endpoint for SeqpacketEndpoint {
    fn create(&self) -> io::Result<Box<dyn Instance>> {
        Ok(Box::new(SeqpacketInstance {
            listening: Arc::clone(&self.listening),
            sizes: self.sizes,
        }))
    }

    fn set_full(&self, full: bool) -> io::Result<()> {
        self.listening.set_full(full)
    }

    /// The kernel queues clients on the one listening socket.
    fn useful_backlog(&self) -> usize {
        1
    }

    fn max_message_size(&self) -> usize {
        self.sizes.max_message_size
    }
}

impl Drop for SeqpacketEndpoint {
    fn drop(&mut self) {
        // Whoever serves a shared socket next may not set it.
        if self.listening.is_shared() {
            _ = self.set_full(false);
        }
    }
}

/// An instance: a place at the listening socket.
struct SeqpacketInstance {
    listening: Arc<Listening>,
    sizes: Sizes,
}

impl Instance for SeqpacketInstance {
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>> {
        let socket = ready!(self.listening.poll_accept(cx))?;
        socket.grow_send_buffer(self.sizes)?;
        Poll::Ready(channel(socket, self.sizes.max_message_size))
    }

    fn close(&mut self) {
        self.listening.close();
    }
}
