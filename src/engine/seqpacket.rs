//! The Linux engine: `AF_UNIX` sockets of type `SOCK_SEQPACKET`, which keep messages whole.

use std::{
    cell::RefCell,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    net::Shutdown,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, OwnedFd},
    fs::{FlockOperation, Mode, fchmod, flock},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recv, send,
        sockopt,
    },
};
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

use super::{Channel, Endpoint, Instance, Link, Receive, Received, Sizes, Transmit};
use crate::{
    access::{Access, Peer, UserId},
    error::{RecvError, SendError},
    name::PipeName,
};

/// How many clients the kernel queues until they are accepted; it takes 4,096 at most by default
/// (`net.core.somaxconn`). A client that finds the queue full has to poll, so it is long.
const QUEUE_LENGTH: i32 = 1024;

/// Messages up to this length are received into a buffer of the thread in one call and copied out of
/// it, so that an idle connection holds no buffer. The length of one that may be longer is asked first.
const SCRATCH_SIZE: usize = 64 * 1024;

/// Messages of one connection share a block of this size as long as they fit; a longer one gets a block
/// of its own length. A block is used again once the messages in it are dropped.
const BLOCK_SIZE: usize = 1024;

/// What the kernel takes of the send buffer for itself (`unix_dgram_sendmsg` in net/unix/af_unix.c).
const SEND_OVERHEAD: usize = 32;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Serves `name`: a socket that only those whom `access` lets in can connect to, from its first moment.
pub(crate) fn bind(
    name: &PipeName,
    access: &Access,
    sizes: Sizes,
) -> io::Result<Box<dyn Endpoint>> {
    let path = PathBuf::from(name.address());
    make_directory(&path)?;
    let claim = Claim::new(path)?;
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
pub(crate) fn connect(path: &str, sizes: Sizes) -> io::Result<Channel> {
    let socket = socket()?;
    grow_send_buffer(&socket, sizes)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => channel(UnixSeqpacket::try_from(socket)?, sizes.max_message_size),
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
/// `InvalidInput` when the system allows less than `max_message_size`.
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
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "max_message_size is {} bytes, but this system carries messages of {longest} at \
                 most: choose a smaller one, or raise net.core.wmem_max",
                sizes.max_message_size
            ),
        ));
    }
    Ok(true)
}

/// Makes the directory of a short name's socket, for this user alone, and refuses one that another
/// user could have prepared. The directory of a path that the user gave is the user's affair.
fn make_directory(path: &Path) -> io::Result<()> {
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    let ours = [
        "pipe-server".to_owned(),
        format!("pipe-server-{}", rustix::process::getuid().as_raw()),
    ];
    let is_ours = directory.file_name().and_then(|name| name.to_str());
    if !is_ours.is_some_and(|name| ours.iter().any(|ours| ours == name)) {
        return Ok(());
    }
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(about(directory, "can't be made", &error));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(directory)?;
    let owner = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != owner || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} is not a directory that only this user can write to",
                directory.display()
            ),
        ));
    }
    Ok(())
}

fn about(path: &Path, problem: &str, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("{} {problem}: {error}", path.display()),
    )
}

/// The right to serve a path, held through a lock file beside it. What a killed server left behind
/// is removed, and nothing else: two servers that start at once can't remove each other's socket.
struct Claim {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
    /// The socket file that we made, by device and inode.
    bound: Option<(u64, u64)>,
}

impl Claim {
    fn new(path: PathBuf) -> io::Result<Self> {
        let mut lock_path = OsString::from(&path);
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = lock_file(&lock_path)?;
        let claim = Self {
            path,
            lock_path,
            _lock: lock,
            bound: None,
        };
        claim.remove_stale_socket()?;
        Ok(claim)
    }

    fn remove_stale_socket(&self) -> io::Result<()> {
        let metadata = match fs::symlink_metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if !metadata.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is no socket is there; it was left as it is",
            ));
        }
        // A server that holds no lock of ours still answers.
        match rustix::net::connect(socket()?, &SocketAddrUnix::new(&self.path)?) {
            Err(Errno::CONNREFUSED) => fs::remove_file(&self.path),
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::ACCESS) => Err(io::ErrorKind::PermissionDenied.into()),
            Ok(()) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let ours = |metadata: &fs::Metadata| self.bound == Some(identity(metadata));
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| ours(&metadata)) {
            _ = fs::remove_file(&self.path);
        }
        _ = fs::remove_file(&self.lock_path);
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Opens and locks the file, which its last holder may be removing at this moment.
fn lock_file(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)
            .map_err(|error| about(path, "can't be opened", &error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) => return Err(error.into()),
        }
        match fs::symlink_metadata(path) {
            Ok(there) if identity(&there) == identity(&file.metadata()?) => return Ok(file),
            _ => {}
        }
    }
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
        Poll::Ready(channel(socket, self.sizes.max_message_size))
    }
}

fn channel(socket: UnixSeqpacket, max_message_size: usize) -> io::Result<Channel> {
    let link = Arc::new(SeqpacketLink {
        socket,
        peer_gone: AtomicBool::new(false),
    });
    Ok(Channel {
        receiver: Box::new(SeqpacketReceiver {
            link: Arc::clone(&link),
            max_message_size,
            block: BytesMut::new(),
        }),
        sender: Box::new(SeqpacketSender {
            link: Arc::clone(&link),
            pending: None,
        }),
        link,
    })
}

/// A connected socket.
struct SeqpacketLink {
    socket: UnixSeqpacket,
    /// The peer has closed and nothing of it is left to read.
    peer_gone: AtomicBool,
}

impl Link for SeqpacketLink {
    fn peer(&self) -> io::Result<Peer> {
        let credentials = self.socket.peer_cred()?;
        let process_id = credentials
            .pid()
            .and_then(|pid| u32::try_from(pid).ok())
            .unwrap_or(0);
        Ok(Peer {
            process_id,
            user: UserId::Uid(credentials.uid()),
        })
    }
}

impl Drop for SeqpacketLink {
    /// A socket that is closed with messages unread gives its peer `ECONNRESET` before the replies
    /// that the peer could still read (`unix_release_sock` in net/unix/af_unix.c), so they are read
    /// first. After the shutdown no more can come.
    fn drop(&mut self) {
        if *self.peer_gone.get_mut() {
            return;
        }
        _ = self.socket.shutdown(Shutdown::Both);
        let mut nothing = [0; 1];
        while matches!(
            recv(&self.socket, &mut nothing, RecvFlags::DONTWAIT),
            Ok((1.., _)) | Err(Errno::INTR)
        ) {}
    }
}

struct SeqpacketReceiver {
    link: Arc<SeqpacketLink>,
    max_message_size: usize,
    /// Where messages are copied to.
    block: BytesMut,
}

impl Receive for SeqpacketReceiver {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        let link = Arc::clone(&self.link);
        let io = link.socket.as_async_fd();
        loop {
            let mut guard = ready!(io.poll_read_ready(cx)).map_err(RecvError::Io)?;
            let received = match guard.try_io(|_| self.try_recv().map_err(io::Error::from)) {
                Ok(received) => received,
                Err(_would_block) => continue,
            };
            return Poll::Ready(match received {
                Ok(Some(message)) if message.is_empty() => Ok(self.ended()),
                Ok(Some(message)) => Ok(Received::Message(message)),
                Ok(None) => Err(RecvError::TooLong {
                    limit: self.max_message_size,
                }),
                // The peer closed with messages of ours unread. What it sent before that can still be
                // read: the error is told once.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                Err(error) => Err(RecvError::Io(error)),
            });
        }
    }
}

impl SeqpacketReceiver {
    /// One message, empty at the end, or `None` if it is too long.
    fn try_recv(&mut self) -> Result<Option<Bytes>, Errno> {
        let socket = &self.link.socket;
        if self.max_message_size > SCRATCH_SIZE {
            let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
            let (_, length) = recv(socket, &mut [0; 0], peek)?;
            if length > SCRATCH_SIZE && length <= self.max_message_size {
                let mut message = Vec::with_capacity(length);
                recv(socket, spare_capacity(&mut message), RecvFlags::empty())?;
                return Ok(Some(message.into()));
            }
        }
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            scratch.reserve_exact(SCRATCH_SIZE);
            let (_, length) = recv(socket, spare_capacity(scratch), RecvFlags::TRUNC)?;
            if length > self.max_message_size || length > scratch.len() {
                return Ok(None);
            }
            let size = length.max(BLOCK_SIZE);
            if self.block.capacity() < length && !self.block.try_reclaim(size) {
                self.block = BytesMut::with_capacity(size);
            }
            self.block.extend_from_slice(scratch);
            Ok(Some(self.block.split().freeze()))
        })
    }

    /// Whether the end is an empty message, or the peer is gone: a read can't tell.
    fn ended(&self) -> Received {
        let mut fds = [PollFd::new(&self.link.socket, PollFlags::empty())];
        let polled = poll(&mut fds, Some(&Timespec::default()));
        if polled.is_ok() && fds[0].revents().contains(PollFlags::HUP) {
            self.link.peer_gone.store(true, Ordering::Relaxed);
            Received::Closed
        } else {
            Received::End
        }
    }
}

struct SeqpacketSender {
    link: Arc<SeqpacketLink>,
    pending: Option<Bytes>,
}

impl Transmit for SeqpacketSender {
    fn start_send(&mut self, message: Bytes) -> Result<(), SendError> {
        if message.is_empty() {
            return self
                .link
                .socket
                .shutdown(Shutdown::Write)
                .map_err(SendError::Io);
        }
        self.pending = Some(message);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Some(message) = &self.pending else {
            return Poll::Ready(Ok(()));
        };
        let socket = &self.link.socket;
        let flags = SendFlags::NOSIGNAL | SendFlags::EOR;
        let sent = loop {
            let mut guard =
                ready!(socket.as_async_fd().poll_write_ready(cx)).map_err(SendError::Io)?;
            match guard.try_io(|_| send(socket, message, flags).map_err(io::Error::from)) {
                Ok(sent) => break sent,
                Err(_would_block) => continue,
            }
        };
        let length = message.len();
        self.pending = None;
        Poll::Ready(match sent {
            Ok(_) => Ok(()),
            Err(error) => Err(match Errno::from_io_error(&error) {
                Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => SendError::Closed,
                Some(Errno::MSGSIZE) => {
                    let buffer = sockopt::socket_send_buffer_size(socket).unwrap_or(0);
                    SendError::TooLong {
                        length,
                        limit: buffer.saturating_sub(SEND_OVERHEAD),
                    }
                }
                _ => SendError::Io(error),
            }),
        })
    }
}
