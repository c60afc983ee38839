//! The sockets of this engine: their options, and how they are closed.
//!
//! # Passed descriptors
//!
//! A client can attach open files to a message (`SCM_RIGHTS`, unix(7)). Closing the last reference to a file
//! may block: a TCP socket with `SO_LINGER` and unsent data does, for as long as its peer likes. Discarding
//! such a message closes its files: a receive without a control buffer does so, and so does closing a socket
//! that still holds one. No worker may do either.
//!
//! On Linux 6.16 and later the kernel refuses descriptors for us (`SO_PASSRIGHTS`): the sender gets `EPERM`
//! and nothing is sent. On older systems each packet is peeked before it is received, which leaves the
//! descriptors in the socket. That costs one call per message, and messages can't be received in batches. A
//! connection that passes a descriptor is closed on a separate thread (see [`lingering`]).
//!
//! Receiving the descriptors in a control buffer to close them elsewhere was rejected. If the process runs
//! out of descriptors, the kernel closes those that it can't install, in the receiving thread, and a message
//! can hold 253.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    cmsg_space, getsockopt_impl, libc, setsockopt_impl,
    sys::socket::{
        GetSockOpt as _, MsgFlags, SetSockOpt as _, UnixCredentials, recvmsg,
        sockopt::{GetBool, SetBool},
    },
};
use rustix::{
    io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio},
    net::{
        AddressFamily, RecvFlags, Shutdown, SocketFlags, SocketType, accept_with, recv, shutdown,
        socket_with, sockopt,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

// `lingering` also imports this module: dropping a socket may hand it to a thread that drops it.
use super::lingering;
use crate::{engine::Sizes, error::OutOfRange, telemetry::Telemetry};

/// Every socket of this engine is created with these.
pub(super) const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The kernel's own share of the send buffer (`unix_dgram_sendmsg` in net/unix/af_unix.c).
pub(super) const SEND_OVERHEAD: usize = 32;

/// A socket. Dropping it closes it without blocking.
pub(super) struct Socket {
    /// Taken only by `drop`.
    fd: Option<OwnedFd>,
    pub(super) descriptors: Descriptors,
    /// Counts and logs for the pipe that it belongs to; `None` on a client.
    pub(super) telemetry: Option<Telemetry>,
    /// Whether it can be closed without draining.
    drained: AtomicBool,
    /// Whether other processes may hold it, and serve its clients after this one.
    pub(super) shared: bool,
}

/// How the workers are kept from closing descriptors that the other side passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Descriptors {
    /// The kernel refuses them.
    Refused,
    /// Each packet is peeked first.
    Detected,
}

/// What is next in a socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The other side has closed or ended the conversation, and everything was read.
    End,
    /// A packet of this length.
    Packet(usize),
    /// A packet with descriptors, which must not be received.
    Descriptors,
}

impl Socket {
    /// Creates a socket that accepts no descriptors. The sockets that it accepts inherit that.
    pub(super) fn new() -> io::Result<Self> {
        let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        let descriptors = refuse_descriptors(&fd)?;
        Ok(Self::of(fd, descriptors))
    }

    /// Takes over a listening socket that was created elsewhere.
    pub(super) fn shared(fd: OwnedFd) -> io::Result<Self> {
        set_flags(&fd)?;
        let descriptors = refuse_descriptors(&fd)?;
        let mut socket = Self::of(fd, descriptors);
        socket.shared = true;
        Ok(socket)
    }

    /// Takes over a connected socket that may hold packets from before its options were set.
    pub(super) fn connected(fd: OwnedFd) -> io::Result<Self> {
        set_flags(&fd)?;
        let refused = refuse_descriptors(&fd)? == Descriptors::Refused;
        detect_descriptors(&fd)?;
        let mut socket = Self::of(fd, Descriptors::Detected);
        if refused && socket.peek() == Err(Errno::AGAIN) {
            sockopt::set_socket_passcred(&socket, false)?;
            socket.descriptors = Descriptors::Refused;
        }
        Ok(socket)
    }

    pub(super) fn of(fd: OwnedFd, descriptors: Descriptors) -> Self {
        Self {
            fd: Some(fd),
            descriptors,
            telemetry: None,
            drained: AtomicBool::new(false),
            shared: false,
        }
    }

    /// Accepts the next client in its queue.
    pub(super) fn accept(&self) -> io::Result<Self> {
        let fd = accept_with(self, FLAGS)?;
        let mut socket = if self.shared && PassRights.get(&fd) != Ok(false) {
            // It has the options that the shared socket had when the client connected.
            Self::connected(fd)?
        } else {
            Self::of(fd, self.descriptors)
        };
        socket.telemetry = self.telemetry.clone();
        Ok(socket)
    }

    /// Registers it with the current runtime.
    #[allow(
        deprecated,
        reason = "the replacement is unsafe. Its requirement holds here: the descriptor stays the same \
                  until the socket is dropped, after it was deregistered"
    )]
    pub(super) fn register(self, interest: Interest) -> io::Result<AsyncFd<Self>> {
        AsyncFd::with_interest(self, interest)
    }

    /// Marks the socket as having nothing left to read that matters when it is closed.
    pub(super) fn set_drained(&self) {
        self.drained.store(true, Ordering::Relaxed);
    }

    /// Peeks what can be received next. Only for [`Descriptors::Detected`].
    pub(super) fn peek(&self) -> Result<Next, Errno> {
        let mut control = cmsg_space!(UnixCredentials);
        let room = control.capacity();
        control.resize(room, 0);
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
        // One buffer without room, because with none QEMU's user mode returns 0 without a system call.
        let mut nothing = [IoSliceMut::new(&mut [])];
        let packet = recvmsg::<()>(self.as_raw_fd(), &mut nothing, Some(&mut control), flags)
            .map_err(|error| Errno::from_raw_os_error(error as i32))?;
        // Has room for the sender's credentials, which every packet has and the end does not, and for nothing
        // else.
        if packet.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Ok(Next::Descriptors);
        }
        let is_end = packet
            .cmsgs()
            .is_ok_and(|mut control| control.next().is_none());
        Ok(match is_end {
            true => Next::End,
            false => Next::Packet(packet.bytes),
        })
    }

    /// Makes room for the longest message, and returns whether the kernel's default was too small. Never
    /// shrinks the buffer: that would lower the limit for messages that are sent.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when the system allows less than `max_message_size`.
    pub(super) fn grow_send_buffer(&self, sizes: Sizes) -> io::Result<bool> {
        let wanted = sizes
            .max_message_size
            .saturating_add(SEND_OVERHEAD)
            .max(sizes.buffer_size as usize);
        if sockopt::socket_send_buffer_size(self)? >= wanted {
            return Ok(false);
        }
        // The kernel doubles the value and caps it at net.core.wmem_max, socket(7).
        sockopt::set_socket_send_buffer_size(self, wanted.min(i32::MAX as usize))?;
        let longest = sockopt::socket_send_buffer_size(self)?.saturating_sub(SEND_OVERHEAD);
        if longest < sizes.max_message_size {
            let problem = format!(
                "is {} bytes, but this system carries messages of at most {longest}: choose a smaller one, or \
                 raise net.core.wmem_max",
                sizes.max_message_size
            );
            return Err(OutOfRange::new("max_message_size", problem).into());
        }
        Ok(true)
    }

    /// Reads and discards what is left. Returns whether the socket can be closed without blocking.
    fn drain(&self) -> bool {
        let mut nothing = [0; 1];
        loop {
            if self.descriptors == Descriptors::Detected {
                match self.peek() {
                    Ok(Next::Packet(_)) => {}
                    Ok(Next::End) => return true,
                    Err(Errno::INTR) => continue,
                    // The peer closed without reading all of our messages. Reported once.
                    Err(Errno::CONNRESET) => continue,
                    // Nothing was ever sent to it, or it listens: the clients in its queue can't be
                    // inspected.
                    Err(Errno::NOTCONN) => {
                        return sockopt::socket_acceptconn(self).is_ok_and(|listens| !listens);
                    }
                    Ok(Next::Descriptors) | Err(_) => return false,
                }
            }
            match recv(self, &mut nothing, RecvFlags::DONTWAIT) {
                Ok((0, _)) if self.descriptors == Descriptors::Refused => return true,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) if self.descriptors == Descriptors::Refused => return true,
                Err(_) => {}
            }
        }
    }
}

impl Drop for Socket {
    /// Closing a socket with unread messages gives its peer `ECONNRESET` before the replies that the peer
    /// could still read (`unix_release_sock` in net/unix/af_unix.c), so they are read first. After the
    /// shutdown no more can arrive.
    fn drop(&mut self) {
        if *self.drained.get_mut() {
            return;
        }
        if !self.shared {
            _ = shutdown(&*self, Shutdown::Both);
            if self.drain() {
                return;
            }
        }
        // Its queue is left to those who share it. If nobody does, closing it closes the queued clients.
        if let Some(fd) = self.fd.take() {
            let mut rest = Self::of(fd, self.descriptors);
            rest.telemetry = self.telemetry.take();
            rest.shared = self.shared;
            // Dropping this socket only closes it.
            rest.set_drained();
            lingering::close(rest);
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("only drop takes it").as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// The flags of [`FLAGS`], on a socket that was created elsewhere.
fn set_flags(fd: impl AsFd) -> io::Result<()> {
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(ioctl_fionbio(&fd, true)?)
}

/// Refuses descriptors from now on if the kernel can, and detects them if not.
fn refuse_descriptors(fd: impl AsFd) -> io::Result<Descriptors> {
    match PassRights.set(&fd, &false) {
        Ok(()) => Ok(Descriptors::Refused),
        Err(nix::errno::Errno::ENOPROTOOPT) => {
            detect_descriptors(fd)?;
            Ok(Descriptors::Detected)
        }
        Err(error) => Err(error.into()),
    }
}

/// Lets [`Socket::peek`] distinguish an empty packet from the end: from now on every packet carries its
/// sender's credentials.
pub(super) fn detect_descriptors(fd: impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_socket_passcred(fd, true)?)
}

/// include/uapi/asm-generic/socket.h and arch/sparc/include/uapi/asm/socket.h.
const SO_PASSRIGHTS: libc::c_int = match cfg!(any(target_arch = "sparc", target_arch = "sparc64")) {
    true => 92,
    false => 83,
};

#[derive(Clone, Copy)]
struct PassRights;

// rustix has neither this option nor a way to set arbitrary ones.
setsockopt_impl!(PassRights, libc::SOL_SOCKET, SO_PASSRIGHTS, bool, SetBool);
getsockopt_impl!(PassRights, libc::SOL_SOCKET, SO_PASSRIGHTS, bool, GetBool);

/// Kernels that refuse descriptors never reach the code that detects them, so it is tested here.
#[cfg(test)]
mod tests {
    use std::{
        io::{IoSlice, Read as _, Write as _},
        mem::MaybeUninit,
        net::{TcpListener, TcpStream},
        os::unix::net::UnixStream,
        sync::mpsc,
        thread,
        time::Duration,
    };

    use rustix::{
        cmsg_space,
        net::{
            SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, connect, listen,
            sendmsg, socketpair,
        },
    };

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    fn pair() -> (Socket, OwnedFd) {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None);
        let (ours, theirs) = pair.unwrap();
        detect_descriptors(&ours).unwrap();
        (Socket::of(ours, Descriptors::Detected), theirs)
    }

    /// Passes a TCP socket whose close blocks for an hour. The caller holds its peer, which reads nothing;
    /// the stream ends once everything that was passed is closed.
    fn pass(socket: &OwnedFd, message: &[u8]) -> (TcpStream, UnixStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        tcp.set_nonblocking(true).unwrap();
        while tcp.write(&[0; 65_536]).is_ok() {}
        sockopt::set_socket_linger(&tcp, Some(Duration::from_secs(3600))).unwrap();
        let (end, marker) = UnixStream::pair().unwrap();
        let descriptors = [tcp.as_fd(), marker.as_fd()];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let message = [IoSlice::new(message)];
        sendmsg(socket, &message, &mut control, SendFlags::empty()).unwrap();
        (peer, end)
    }

    fn send(socket: &OwnedFd, message: &[u8]) {
        rustix::net::send(socket, message, SendFlags::empty()).unwrap();
    }

    /// Fails instead of blocking.
    fn within_the_deadline<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || done.send(run()));
        is_done.recv_timeout(DEADLINE).expect("it blocks")
    }

    fn expect_closed(mut end: UnixStream) {
        let read = within_the_deadline(move || end.read(&mut [0]).unwrap());
        assert_eq!(read, 0);
    }

    #[test]
    fn packets_descriptors_and_the_end_are_told_apart() {
        let (ours, theirs) = pair();
        assert_eq!(ours.peek(), Err(Errno::AGAIN));
        for message in [&b"message"[..], b""] {
            send(&theirs, message);
            assert_eq!(ours.peek(), Ok(Next::Packet(message.len())));
            recv(&ours, &mut [0; 10], RecvFlags::empty()).unwrap();
        }
        let (_peer, end) = pass(&theirs, b"");
        assert_eq!(ours.peek(), Ok(Next::Descriptors));
        assert_eq!(ours.peek(), Ok(Next::Descriptors), "it stays there");
        within_the_deadline(|| drop(ours));
        expect_closed(end);

        let (ours, theirs) = pair();
        drop(theirs);
        assert_eq!(ours.peek(), Ok(Next::End));
    }

    #[test]
    fn a_socket_with_descriptors_in_it_is_closed_elsewhere() {
        let (ours, theirs) = pair();
        send(&theirs, b"message");
        send(&theirs, b"");
        let (_peer, one) = pass(&theirs, b"one");
        send(&theirs, b"");
        let (_other_peer, two) = pass(&theirs, b"two");
        drop(theirs);
        within_the_deadline(|| drop(ours));
        expect_closed(one);
        expect_closed(two);
    }

    #[test]
    fn a_shared_socket_with_descriptors_in_its_queue_is_closed_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddrUnix::new(directory.path().join("socket")).unwrap();
        let listener = Socket::new().unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        // From before it was shared, so the kernel does not refuse it.
        _ = PassRights.set(&listener, &true);
        listen(&listener, 1).unwrap();
        let client = Socket::new().unwrap();
        connect(&client, &address).unwrap();
        let client = client.as_fd().try_clone_to_owned().unwrap();
        let (_peer, end) = pass(&client, b"message");
        let fd = listener.as_fd().try_clone_to_owned().unwrap();
        let shared = Socket::shared(fd).unwrap();
        listener.set_drained();
        drop(listener);
        // The last one to hold it.
        within_the_deadline(|| drop(shared));
        // Only its closing blocks.
        drop(_peer);
        expect_closed(end);
    }

    #[test]
    fn a_listening_socket_with_descriptors_in_its_queue_is_closed_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddrUnix::new(directory.path().join("socket")).unwrap();
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).unwrap();
        detect_descriptors(&listener).unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        listen(&listener, 1).unwrap();
        let listener = Socket::of(listener, Descriptors::Detected);
        let client = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).unwrap();
        connect(&client, &address).unwrap();
        let (_peer, end) = pass(&client, b"message");
        within_the_deadline(|| drop(listener));
        expect_closed(end);
    }
}
