//! The Linux engine: `AF_UNIX` sockets of type `SOCK_SEQPACKET`, which keep messages whole.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{Mode, fchmod},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
};
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

use self::{
    channel::channel,
    claim::{Claim, identity, make_directory},
};
use super::{Channel, Endpoint, Instance, Sizes};
use crate::{access::Access, error::OutOfRange};

mod channel;
mod claim;

/// How many clients the kernel queues until they are accepted; it takes 4,096 at most by default
/// (`net.core.somaxconn`). A client that finds the queue full has to poll, so it is long.
const QUEUE_LENGTH: i32 = 1024;

/// What the kernel takes of the send buffer for itself (`unix_dgram_sendmsg` in net/unix/af_unix.c).
const SEND_OVERHEAD: usize = 32;

/// Serves `path`: a socket that only those whom `access` lets in can connect to, from its first moment.
/// The directory of a short name is the user's own and is made; that of any other path is taken as it is.
pub(crate) fn bind(
    path: &Path,
    own_directory: bool,
    access: &Access,
    sizes: Sizes,
) -> io::Result<Box<dyn Endpoint>> {
    if own_directory {
        make_directory(path)?;
    }
    let claim = Claim::new(path.to_owned())?;
    let mode = match access {
        Access::CurrentUser => 0o600,
        Access::Everyone => 0o666,
        Access::Mode(mode) => *mode,
    };
    let socket = socket()?;
    let grow_send_buffers = grow_send_buffer(&socket, sizes)?;
    // Linux gives the socket file the mode of the socket itself, less the umask (unix_bind in
    // net/unix/af_unix.c): set before bind, nobody gets in in between.
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&claim.path)?)?;
    let mut endpoint = SeqpacketEndpoint {
        listener: None,
        sizes,
        grow_send_buffers,
        claim,
    };
    fs::set_permissions(&endpoint.claim.path, fs::Permissions::from_mode(mode))?;
    endpoint.claim.bound = Some(identity(&fs::symlink_metadata(&endpoint.claim.path)?));
    rustix::net::listen(&socket, QUEUE_LENGTH)?;
    let listener = UnixSeqpacketListener::try_from(socket)?;
    endpoint.listener = Some(Arc::new(Mutex::new(listener)));
    Ok(Box::new(endpoint))
}

/// Connects to the socket at `path`. `ResourceBusy` when its queue is full, which can't be waited for.
pub(crate) fn connect(path: &Path, sizes: Sizes) -> io::Result<Channel> {
    let socket = socket()?;
    grow_send_buffer(&socket, sizes)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => Ok(channel(
            UnixSeqpacket::try_from(socket)?,
            sizes.max_message_size,
        )),
        Err(Errno::AGAIN) => Err(io::ErrorKind::ResourceBusy.into()),
        // The file of a server that was killed: nobody serves it.
        Err(Errno::CONNREFUSED) => Err(io::ErrorKind::NotFound.into()),
        Err(error) => Err(error.into()),
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Makes room for the longest message, and says whether the kernel's default was too small. It is never
/// made smaller: that would shorten the longest message that can be sent.
///
/// # Errors
///
/// [`OutOfRange`] when the system allows less than `max_message_size`.
fn grow_send_buffer(socket: impl AsFd, sizes: Sizes) -> io::Result<bool> {
    let wanted = sizes
        .max_message_size
        .saturating_add(SEND_OVERHEAD)
        .max(sizes.buffer_size);
    if sockopt::socket_send_buffer_size(&socket)? >= wanted {
        return Ok(false);
    }
    // The kernel doubles the value and caps it at net.core.wmem_max, socket(7).
    sockopt::set_socket_send_buffer_size(&socket, wanted.min(i32::MAX as usize))?;
    let longest = sockopt::socket_send_buffer_size(&socket)?.saturating_sub(SEND_OVERHEAD);
    if longest < sizes.max_message_size {
        let problem = format!(
            "is {} bytes, but this system carries messages of {longest} at most: choose a smaller one, or \
             raise net.core.wmem_max",
            sizes.max_message_size
        );
        return Err(OutOfRange::new("max_message_size", problem).into());
    }
    Ok(true)
}

struct SeqpacketEndpoint {
    /// Set before `bind` returns.
    listener: Option<Arc<Mutex<UnixSeqpacketListener>>>,
    sizes: Sizes,
    /// Whether the kernel's default is too small, also for the sockets of the clients.
    grow_send_buffers: bool,
    claim: Claim,
}

impl Endpoint for SeqpacketEndpoint {
    fn create(&self) -> io::Result<Box<dyn Instance>> {
        let listener = self.listener.clone().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Box::new(SeqpacketInstance {
            listener,
            sizes: self.sizes,
            grow_send_buffer: self.grow_send_buffers,
        }))
    }

    /// The kernel queues clients on the one listening socket.
    fn useful_backlog(&self) -> usize {
        1
    }
}

/// A place at the listening socket.
struct SeqpacketInstance {
    listener: Arc<Mutex<UnixSeqpacketListener>>,
    sizes: Sizes,
    grow_send_buffer: bool,
}

impl Instance for SeqpacketInstance {
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>> {
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = ready!(listener.poll_accept(cx))?;
        if self.grow_send_buffer {
            grow_send_buffer(&socket, self.sizes)?;
        }
        Poll::Ready(Ok(channel(socket, self.sizes.max_message_size)))
    }
}
