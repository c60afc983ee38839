//! A connected socket that sends and receives messages.

use std::{
    array,
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use nix::sys::socket::{
    getsockopt,
    sockopt::{PeerCredentials, PeerPidfd},
};
use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        MMsgHdr, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmmsg,
        shutdown, sockopt,
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::coop,
};

use super::{
    scratch::{self, BATCH, Packet, SCRATCH_SIZE},
    socket::{Descriptors, NextPacket, SEND_OVERHEAD, Socket},
};
use crate::{
    engine::{Channel, Link, Receive, Received, Transmit},
    error::{RecvError, SendError},
    peer::{Peer, UserId, socket::PeerSocket},
};

/// The number of messages in a row that a task should receive. A turn ends with a poll of the I/O
/// driver, which costs as much as a message: with a turn of 16, a burst of 16 took about a third
/// more CPU time (one client, beside other load).
const TURN: u32 = 64;

/// Creates the channel of a connected socket.
pub(super) fn channel(socket: Socket, max_message_size: usize) -> io::Result<Channel> {
    let socket = socket.register(Interest::READABLE | Interest::WRITABLE)?;
    let link = Arc::new_cyclic(|this| SeqpacketLink {
        socket,
        this: Weak::clone(this),
    });
    Ok(Channel {
        receiver: Box::new(SeqpacketReceiver {
            link: Arc::clone(&link),
            inbox: Inbox {
                max_message_size,
                packets: VecDeque::new(),
                batching: Batching::new(),
            },
        }),
        sender: Box::new(SeqpacketSender {
            link: Arc::clone(&link),
            pending: VecDeque::new(),
        }),
        link,
    })
}

/// A connected socket.
struct SeqpacketLink {
    socket: AsyncFd<Socket>,
    /// For the peer.
    this: Weak<Self>,
}

impl AsFd for SeqpacketLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Opens a descriptor of the process that is connected to `socket`.
pub(crate) fn peer_pidfd(socket: &(impl AsFd + ?Sized)) -> io::Result<OwnedFd> {
    getsockopt(&socket.as_fd(), PeerPidfd).map_err(|error| match error {
        nix::errno::Errno::ENOPROTOOPT => io::Error::new(
            io::ErrorKind::Unsupported,
            "this system has no descriptors of peers (SO_PEERPIDFD): they need Linux 6.5",
        ),
        error => error.into(),
    })
}

impl SeqpacketLink {
    /// Tells an empty message from a closed peer. The socket reads both as zero bytes.
    fn ended(&self) -> Received {
        if self.is_hung_up() {
            let socket = self.socket.get_ref();
            // Packets that pass descriptors may follow the empty message, unless the kernel refuses
            // them. Other unread packets may be discarded, because the peer no longer reads
            // replies.
            if socket.descriptors == Descriptors::Refused {
                socket.set_drained();
            }
            Received::Closed
        } else {
            Received::End
        }
    }
}

impl Link for SeqpacketLink {
    fn peer(&self) -> io::Result<Peer> {
        // rustix is not used here because its process ids are never 0. A peer outside of our PID
        // namespace has the id 0.
        let credentials = getsockopt(&self.socket, PeerCredentials)?;
        Ok(Peer {
            process_id: u32::try_from(credentials.pid()).unwrap_or(0),
            user: UserId::Uid(credentials.uid()),
            group_id: credentials.gid(),
            socket: PeerSocket::new(self.this.clone()),
        })
    }

    /// Returns whether the peer has closed both directions.
    fn is_hung_up(&self) -> bool {
        // Tokio usually has the readiness cached, which saves a poll(2). If not, the event may not
        // have arrived yet. Uses `ready`, because `poll_write_ready` would replace the waker of the
        // task that waits to send.
        let ready = pin!(self.socket.ready(Interest::WRITABLE));
        if let Poll::Ready(Ok(guard)) = ready.poll(&mut Context::from_waker(Waker::noop())) {
            if guard.ready().is_write_closed() {
                return true;
            }
        }
        let mut fds = [PollFd::new(&self.socket, PollFlags::empty())];
        let polled = poll(&mut fds, Some(&Timespec::default()));
        polled.is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }
}

struct SeqpacketReceiver {
    link: Arc<SeqpacketLink>,
    inbox: Inbox,
}

/// Packets that were received and not yet returned.
struct Inbox {
    max_message_size: usize,
    packets: VecDeque<Packet>,
    batching: Batching,
}

impl Receive for SeqpacketReceiver {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        let Self { link, inbox } = self;
        if !inbox.packets.is_empty() {
            // A client that always has another message buffered must not starve other tasks. A read
            // from the socket uses the coop budget by itself.
            ready!(coop::poll_proceed(cx)).made_progress();
        }
        loop {
            if let Some(packet) = inbox.packets.pop_front() {
                return Poll::Ready(match packet {
                    Packet::Message(message) => Ok(Received::Message(message)),
                    Packet::Empty => Ok(link.ended()),
                    Packet::TooLong => Err(RecvError::TooLong {
                        limit: inbox.max_message_size,
                    }),
                    Packet::Descriptors => Err(RecvError::Io(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the other side passed file descriptors (SCM_RIGHTS), which a pipe does not carry: \
                         send the message without them",
                    ))),
                });
            }
            let mut guard = ready!(link.socket.poll_read_ready(cx)).map_err(RecvError::Io)?;
            match inbox.receive(link.socket.get_ref()) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => guard.clear_ready(),
                // The peer closed without reading all of our messages. The socket reports this
                // once; messages that the peer sent before can still be read.
                Err(Errno::CONNRESET) => {}
                Err(error) => return Poll::Ready(Err(RecvError::Io(error.into()))),
            }
        }
    }

    fn expects_more(&self) -> bool {
        !self.inbox.packets.is_empty() || self.inbox.batching.is_on
    }

    fn received_ahead(&self) -> usize {
        let lengths = self.inbox.packets.iter().map(|packet| match packet {
            Packet::Message(message) => message.len(),
            _ => 0,
        });
        lengths.sum()
    }

    fn stop_receiving_ahead(&mut self) {
        self.inbox.batching = Batching::new();
    }

    fn turn(&self) -> u32 {
        TURN
    }

    /// The kernel checks this state and queues a message under one lock (`unix_dgram_sendmsg` in
    /// net/unix/af_unix.c). So a message is either sent before, and can be received, or fails with
    /// `EPIPE`.
    fn close(&mut self) {
        // Fails only if the socket is not connected, and then nothing can be received.
        _ = shutdown(&self.link.socket, Shutdown::Read);
    }
}

impl Inbox {
    /// Receives messages from the socket.
    fn receive(&mut self, socket: &Socket) -> Result<(), Errno> {
        let limit = self.max_message_size;
        // Every packet is peeked first, to learn its length or whether it passes descriptors.
        if limit > SCRATCH_SIZE || socket.descriptors == Descriptors::Detected {
            self.packets.push_back(receive_peeked(socket, limit)?);
        } else if self.batching.is_on {
            let found = scratch::receive_batch(socket, limit, &mut self.packets)?;
            self.batching.received_batch(found);
        } else {
            let packet = scratch::receive_one(socket, limit);
            self.batching.received_one(packet.is_ok());
            self.packets.push_back(packet?);
        }
        Ok(())
    }
}

/// Decides whether the next call receives several messages.
///
/// recvmmsg(2) costs more than recv(2), so it pays off only if the peer sends ahead of its replies.
/// Only a batch can show that: a peer that waits for each reply may be fast enough to always have
/// its next message in the socket. So a batch is tried after some calls in a row have found a
/// message, and after more such calls if the last batch had only one message.
struct Batching {
    is_on: bool,
    /// The number of calls in a row that found a message.
    found_in_a_row: u32,
    /// The number of such calls after which a batch is tried.
    calls_before_batch: u32,
}

impl Batching {
    const FEWEST_CALLS: u32 = 2;
    const MOST_CALLS: u32 = 64;

    fn new() -> Self {
        Self {
            is_on: false,
            found_in_a_row: 0,
            calls_before_batch: Self::FEWEST_CALLS,
        }
    }

    fn received_one(&mut self, found: bool) {
        self.found_in_a_row = if found { self.found_in_a_row + 1 } else { 0 };
        self.is_on = self.found_in_a_row >= self.calls_before_batch;
    }

    fn received_batch(&mut self, found: usize) {
        self.is_on = found > 1;
        if self.is_on {
            self.calls_before_batch = Self::FEWEST_CALLS;
        } else {
            self.found_in_a_row = 0;
            self.calls_before_batch = Self::MOST_CALLS.min(self.calls_before_batch * 2);
        }
    }
}

/// Receives one packet of any length, unless it passes descriptors.
fn receive_peeked(socket: &Socket, limit: usize) -> Result<Packet, Errno> {
    let length = match next(socket)? {
        NextPacket::Packet(length) => length,
        NextPacket::End => 0,
        NextPacket::Descriptors => return Ok(Packet::Descriptors),
    };
    if length <= SCRATCH_SIZE || length > limit {
        return scratch::receive_one(socket, limit);
    }
    let mut message = Vec::with_capacity(length);
    recv(socket, spare_capacity(&mut message), RecvFlags::empty())?;
    Ok(Packet::Message(message.into()))
}

/// Peeks the next packet.
fn next(socket: &Socket) -> Result<NextPacket, Errno> {
    if socket.descriptors == Descriptors::Detected {
        return socket.peek();
    }
    let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
    let (_, length) = recv(socket, &mut [0; 0], peek)?;
    Ok(NextPacket::Packet(length))
}

struct SeqpacketSender {
    link: Arc<SeqpacketLink>,
    /// Messages that were started and not yet sent, up to `BATCH`.
    pending: VecDeque<Bytes>,
}

impl Transmit for SeqpacketSender {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        if self.pending.len() < BATCH {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush(cx)
    }

    fn start_send(&mut self, message: Bytes) -> Result<(), SendError> {
        if message.is_empty() {
            return shutdown(&self.link.socket, Shutdown::Write)
                .map_err(|error| SendError::Io(error.into()));
        }
        self.pending.push_back(message);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let socket = &self.link.socket;
        while !self.pending.is_empty() {
            let mut guard = match ready!(socket.poll_write_ready(cx)) {
                Ok(guard) => guard,
                Err(error) => return Poll::Ready(Err(self.failed(error))),
            };
            match guard.try_io(|socket| Ok(send_batch(socket.get_ref(), &self.pending)?)) {
                Ok(Ok(sent)) => drop(self.pending.drain(..sent)),
                Ok(Err(error)) => return Poll::Ready(Err(self.failed(error))),
                Err(_would_block) => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    fn pending(&self) -> usize {
        self.pending.len()
    }
}

impl SeqpacketSender {
    /// Drops the first pending message, and returns why it was not sent.
    fn failed(&mut self, error: io::Error) -> SendError {
        let length = self.pending.pop_front().map_or(0, |message| message.len());
        match Errno::from_io_error(&error) {
            Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => SendError::Closed,
            Some(Errno::MSGSIZE) => {
                let buffer = sockopt::socket_send_buffer_size(&self.link.socket).unwrap_or(0);
                SendError::TooLong {
                    length,
                    limit: buffer.saturating_sub(SEND_OVERHEAD),
                }
            }
            _ => SendError::Io(error),
        }
    }
}

/// Sends as many pending messages as the socket accepts, and returns their number.
fn send_batch(socket: &Socket, pending: &VecDeque<Bytes>) -> Result<usize, Errno> {
    let flags = SendFlags::NOSIGNAL | SendFlags::EOR | SendFlags::DONTWAIT;
    if pending.len() == 1 {
        return send(socket, &pending[0], flags).map(|_| 1);
    }
    // sendmmsg(2) returns an error only if the first message fails.
    let mut slices = [IoSlice::new(&[]); BATCH];
    for (slice, message) in slices.iter_mut().zip(pending) {
        *slice = IoSlice::new(message);
    }
    let mut no_control: [_; BATCH] = array::from_fn(|_| SendAncillaryBuffer::default());
    let mut messages = slices.chunks(1).zip(&mut no_control);
    let mut messages: [_; BATCH] = array::from_fn(|_| match messages.next() {
        Some((slice, control)) => MMsgHdr::new(slice, control),
        None => unreachable!("there are as many slices"),
    });
    sendmmsg(socket, &mut messages[..pending.len()], flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how many of 1,000 calls receive a batch from a peer that has `in_socket` messages in
    /// the socket each time.
    fn batches(in_socket: usize) -> usize {
        let mut batching = Batching::new();
        let mut batches = 0;
        for _ in 0..1000 {
            if batching.is_on {
                batches += 1;
                batching.received_batch(in_socket);
            } else {
                batching.received_one(in_socket > 0);
            }
        }
        batches
    }

    #[test]
    fn only_a_peer_that_sends_ahead_gets_batches() {
        assert_eq!(batches(0), 0);
        assert!((1..25).contains(&batches(1)), "{}", batches(1));
        assert_eq!(batches(2), 998);
    }
}
