//! The sockets of this engine: their options, and how they are closed.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio},
    net::{
        AddressFamily, RecvFlags, Shutdown, SocketFlags, SocketType, accept_with, recv, shutdown,
        socket_with, sockopt,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{descriptors, lingering};
use crate::{engine::Sizes, error::OutOfRange, telemetry::Telemetry};

pub(super) use super::descriptors::{Descriptors, NextPacket};

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

impl Socket {
    /// Creates a socket that accepts no descriptors. The sockets that it accepts inherit that.
    pub(super) fn new() -> io::Result<Self> {
        let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        let descriptors = descriptors::refuse(&fd)?;
        Ok(Self::of(fd, descriptors))
    }

    /// Takes over a listening socket that was created elsewhere.
    pub(super) fn shared(fd: OwnedFd) -> io::Result<Self> {
        set_flags(&fd)?;
        let descriptors = descriptors::refuse(&fd)?;
        let mut socket = Self::of(fd, descriptors);
        socket.shared = true;
        Ok(socket)
    }

    /// Takes over a connected socket that may hold packets from before its options were set.
    pub(super) fn connected(fd: OwnedFd) -> io::Result<Self> {
        set_flags(&fd)?;
        let refused = descriptors::refuse(&fd)? == Descriptors::Refused;
        descriptors::detect(&fd)?;
        descriptors::clear_other_control_data(&fd)?;
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
        let mut socket = if self.shared && !descriptors::are_refused(&fd) {
            // The client's socket has the options that the shared one had when the client
            // connected.
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

    /// Peeks at the next packet. Only for [`Descriptors::Detected`].
    pub(super) fn peek(&self) -> Result<NextPacket, Errno> {
        descriptors::peek(self)
    }

    /// Makes room for the longest message. Never shrinks the buffer: that would lower the limit for
    /// messages that are sent.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when the system allows less than `max_message_size`.
    pub(super) fn grow_send_buffer(&self, sizes: Sizes) -> io::Result<()> {
        let wanted = sizes
            .max_message_size
            .saturating_add(SEND_OVERHEAD)
            .max(sizes.buffer_size as usize);
        if sockopt::socket_send_buffer_size(self)? >= wanted {
            return Ok(());
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
        Ok(())
    }

    /// Reads and discards what is left. Returns whether the socket can be closed without blocking.
    fn drain(&self) -> bool {
        let mut nothing = [0; 1];
        loop {
            if self.descriptors == Descriptors::Detected {
                match self.peek() {
                    Ok(NextPacket::Packet(_)) => {}
                    Ok(NextPacket::End) => return true,
                    Err(Errno::INTR) => continue,
                    // The peer closed without reading all of our messages. Reported once.
                    Err(Errno::CONNRESET) => continue,
                    // Nothing was ever sent to it, or it listens: the clients in its queue can't be
                    // inspected.
                    Err(Errno::NOTCONN) => {
                        return sockopt::socket_acceptconn(self).is_ok_and(|listens| !listens);
                    }
                    Ok(NextPacket::Descriptors) | Err(_) => return false,
                }
            }
            let received = recv(self, &mut nothing, RecvFlags::DONTWAIT);
            let may_hold_more = matches!(received, Ok((1.., _)) | Err(Errno::INTR));
            if self.descriptors == Descriptors::Refused && !may_hold_more {
                return true;
            }
        }
    }
}

impl Drop for Socket {
    /// Closing a socket with unread messages gives its peer `ECONNRESET` before the replies that
    /// the peer could still read (`unix_release_sock` in net/unix/af_unix.c), so they are read
    /// first. After the shutdown no more can arrive.
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
        // The queue of a shared socket is left to those who share it. If nobody does, closing it
        // closes the queued clients.
        if let Some(fd) = self.fd.take() {
            lingering::close(fd, self.shared, self.telemetry.as_ref());
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
        descriptors::detect(&ours).unwrap();
        (Socket::of(ours, Descriptors::Detected), theirs)
    }

    /// Passes a TCP socket whose close blocks for an hour. The caller holds its peer, which reads
    /// nothing; the stream ends once everything that was passed is closed.
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
            assert_eq!(ours.peek(), Ok(NextPacket::Packet(message.len())));
            recv(&ours, &mut [0; 10], RecvFlags::empty()).unwrap();
        }
        let (_peer, end) = pass(&theirs, b"");
        assert_eq!(ours.peek(), Ok(NextPacket::Descriptors));
        assert_eq!(ours.peek(), Ok(NextPacket::Descriptors), "it stays there");
        within_the_deadline(|| drop(ours));
        expect_closed(end);

        let (ours, theirs) = pair();
        drop(theirs);
        assert_eq!(ours.peek(), Ok(NextPacket::End));
    }

    #[test]
    fn only_descriptors_count_as_such_on_a_socket_from_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddrUnix::new(directory.path().join("socket")).unwrap();
        let kind = SocketType::SEQPACKET;
        let listener = socket_with(AddressFamily::UNIX, kind, FLAGS, None).unwrap();
        descriptors::add_other_control_data(&listener);
        rustix::net::bind(&listener, &address).unwrap();
        listen(&listener, 1).unwrap();
        let client = socket_with(AddressFamily::UNIX, kind, FLAGS, None).unwrap();
        connect(&client, &address).unwrap();
        let (one, other) = socketpair(AddressFamily::UNIX, kind, FLAGS, None).unwrap();
        descriptors::add_other_control_data(&one);
        for sender in [&client, &other] {
            send(sender, b"message");
            send(sender, b"");
            pass(sender, b"");
        }

        let listener = Socket::shared(listener).unwrap();
        for socket in [listener.accept().unwrap(), Socket::connected(one).unwrap()] {
            for length in [7, 0] {
                assert_eq!(socket.peek(), Ok(NextPacket::Packet(length)));
                recv(&socket, &mut [0; 10], RecvFlags::empty()).unwrap();
            }
            assert_eq!(socket.peek(), Ok(NextPacket::Descriptors));
        }
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
        descriptors::allow(&listener);
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
        descriptors::detect(&listener).unwrap();
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
