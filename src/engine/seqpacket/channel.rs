//! A connected socket, and how it sends and receives messages.

use std::{
    array,
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    os::fd::AsRawFd as _,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use nix::sys::socket::{MsgFlags, MultiHeaders, getsockopt, recvmmsg, sockopt::PeerCredentials};
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

use super::socket::{Descriptors, Next, SEND_OVERHEAD, Socket};
use crate::{
    engine::{Channel, Link, Receive, Received, Transmit},
    error::{RecvError, SendError},
    peer::{Peer, UserId},
};

/// Messages up to this length are received into per-thread buffers and copied out, so that an idle connection
/// holds no buffer. The length of one that may be longer is peeked first.
const SCRATCH_SIZE: usize = 64 * 1024;

/// The maximum number of messages in one call.
const BATCH: usize = 16;

/// The size of the block that a thread's short messages share. A block for each connection would add its size to
/// what an idle one holds. Not larger, because a message that a handler keeps keeps the whole block.
const BLOCK_SIZE: usize = 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        headers: MultiHeaders::preallocate(BATCH, None),
        buffers: vec![0; BATCH * SCRATCH_SIZE],
        blocks: Blocks::default(),
    });
}

/// What a thread receives with.
struct Scratch {
    headers: MultiHeaders<()>,
    /// The system allocates the memory of the later ones when they are first used.
    buffers: Vec<u8>,
    blocks: Blocks,
}

/// What messages are copied into. A block is reused once the messages in it are dropped.
#[derive(Default)]
struct Blocks {
    /// Messages share it as long as they fit.
    short: BytesMut,
    /// Holds one message of more than `BLOCK_SIZE` bytes.
    long: BytesMut,
    long_size: usize,
}

/// The channel of a connected socket.
pub(super) fn channel(socket: Socket, max_message_size: usize) -> io::Result<Channel> {
    let link = Arc::new(SeqpacketLink {
        socket: socket.register(Interest::READABLE | Interest::WRITABLE)?,
        has_sent: AtomicBool::new(false),
    });
    Ok(Channel {
        receiver: Box::new(SeqpacketReceiver {
            link: Arc::clone(&link),
            inbox: Inbox {
                max_message_size,
                packets: VecDeque::new(),
                in_a_row: 0,
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
    /// Whether something was sent since the last read.
    has_sent: AtomicBool,
}

impl SeqpacketLink {
    /// Whether the end that was read is an empty message or the peer is gone: a read can't tell.
    fn ended(&self) -> Received {
        if self.is_hung_up() {
            let socket = self.socket.get_ref();
            // Descriptors may follow an empty message. Anything else may be discarded: replies are no longer
            // read.
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
        // Not through rustix, whose process ids are never 0: a peer outside our PID namespace has id 0.
        let credentials = getsockopt(&self.socket, PeerCredentials)?;
        Ok(Peer {
            process_id: u32::try_from(credentials.pid()).unwrap_or(0),
            user: UserId::Uid(credentials.uid()),
            group_id: credentials.gid(),
        })
    }

    /// Whether the peer has closed both directions.
    fn is_hung_up(&self) -> bool {
        // Tokio usually has the readiness cached, which saves a poll(2). If not, the event may still be on
        // its way. `ready` and not `poll_write_ready`, which would forget the task that waits to send.
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

/// What was received and not yet returned.
struct Inbox {
    max_message_size: usize,
    packets: VecDeque<Packet>,
    /// How many messages were received one at a time since the socket was last empty, with nothing sent in
    /// between; 2 or more as long as batches find several.
    in_a_row: u32,
}

/// The result of one read.
enum Packet {
    Message(Bytes),
    /// No bytes: an empty message or the end.
    Empty,
    TooLong,
    /// A packet with descriptors, still in the socket.
    Descriptors,
}

/// What a call left in the socket.
enum Left {
    Nothing,
    Unknown,
}

impl Receive for SeqpacketReceiver {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        // A client that always has the next message ready must not starve the others.
        let budget = ready!(coop::poll_proceed(cx));
        let Self { link, inbox } = self;
        loop {
            if let Some(packet) = inbox.packets.pop_front() {
                budget.made_progress();
                return Poll::Ready(match packet {
                    Packet::Message(message) => Ok(Received::Message(message)),
                    Packet::Empty => Ok(link.ended()),
                    Packet::TooLong => Err(RecvError::TooLong {
                        limit: inbox.max_message_size,
                    }),
                    Packet::Descriptors => Err(RecvError::Io(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the other side passed file descriptors (SCM_RIGHTS), which a pipe does not \
                         carry: send the message without them",
                    ))),
                });
            }
            let mut guard = ready!(link.socket.poll_read_ready(cx)).map_err(RecvError::Io)?;
            // Loaded first, because a swap would cost more, and nothing depends on an exact answer.
            if link.has_sent.load(Ordering::Relaxed) {
                link.has_sent.store(false, Ordering::Relaxed);
                inbox.has_sent();
            }
            match inbox.receive(link.socket.get_ref()) {
                Ok(Left::Unknown) | Err(Errno::INTR) => {}
                Ok(Left::Nothing) | Err(Errno::AGAIN) => guard.clear_ready(),
                // The peer closed without reading all of our messages. What it sent before can still be read:
                // the error is reported once.
                Err(Errno::CONNRESET) => {}
                Err(error) => return Poll::Ready(Err(RecvError::Io(error.into()))),
            }
        }
    }
}

impl Inbox {
    /// The next message may answer what was sent, so it does not show that the peer sends ahead.
    fn has_sent(&mut self) {
        if self.in_a_row < 2 {
            self.in_a_row = 0;
        }
    }

    /// Receives messages from the socket.
    fn receive(&mut self, socket: &Socket) -> Result<Left, Errno> {
        // Every packet must be peeked first, which also gives its length.
        let one_at_a_time =
            self.max_message_size > SCRATCH_SIZE || socket.descriptors == Descriptors::Detected;
        if one_at_a_time {
            let length = match next(socket)? {
                Next::Packet(length) => length,
                Next::End => 0,
                Next::Descriptors => {
                    self.packets.push_back(Packet::Descriptors);
                    return Ok(Left::Unknown);
                }
            };
            if length > SCRATCH_SIZE && length <= self.max_message_size {
                let mut message = Vec::with_capacity(length);
                recv(socket, spare_capacity(&mut message), RecvFlags::empty())?;
                self.packets.push_back(Packet::Message(message.into()));
                return Ok(Left::Unknown);
            }
        }
        SCRATCH.with_borrow_mut(|scratch| {
            // A client that waits for each reply has sent one message, and recv(2) is the cheapest call that
            // finds no second one. Asking recvmmsg(2) for both at once costs more than two calls of recv.
            if one_at_a_time || self.in_a_row < 2 {
                self.receive_one(socket, scratch)
            } else {
                self.receive_batch(socket, scratch)
            }
        })
    }

    fn receive_one(&mut self, socket: &Socket, scratch: &mut Scratch) -> Result<Left, Errno> {
        let buffer = &mut scratch.buffers[..SCRATCH_SIZE];
        let received = recv(socket, &mut *buffer, RecvFlags::TRUNC);
        self.in_a_row = match received {
            Ok(_) => self.in_a_row.saturating_add(1),
            Err(_) => 0,
        };
        let (_, length) = received?;
        self.take(buffer.get(..length), &mut scratch.blocks);
        Ok(Left::Unknown)
    }

    /// Receives up to `BATCH` messages in one call (recvmmsg(2)).
    fn receive_batch(&mut self, socket: &Socket, scratch: &mut Scratch) -> Result<Left, Errno> {
        let mut lengths = [None; BATCH];
        let mut taken = 0;
        {
            let mut buffers = scratch.buffers.chunks_exact_mut(SCRATCH_SIZE);
            let mut slices: [_; BATCH] =
                array::from_fn(|_| [IoSliceMut::new(buffers.next().unwrap_or_default())]);
            let messages = recvmmsg(
                socket.as_raw_fd(),
                &mut scratch.headers,
                &mut slices,
                MsgFlags::MSG_DONTWAIT,
                None,
            )
            .map_err(|error| Errno::from_raw_os_error(error as i32))?;
            for (message, length) in messages.zip(&mut lengths) {
                let cut = message.flags.contains(MsgFlags::MSG_TRUNC);
                *length = (!cut).then_some(message.bytes);
                taken += 1;
            }
        }
        let buffers = scratch.buffers.chunks_exact(SCRATCH_SIZE);
        for (length, buffer) in lengths[..taken].iter().zip(buffers) {
            let read = length.map(|length| &buffer[..length]);
            let more = self.take(read, &mut scratch.blocks);
            if !more {
                // Every further read of an ended socket returns the end again.
                break;
            }
        }
        if taken == 1 {
            self.in_a_row = 0;
        }
        Ok(match taken {
            BATCH => Left::Unknown,
            _ => Left::Nothing,
        })
    }

    /// Records the result of one read; `None` is a message that did not fit. Returns whether it was a
    /// message.
    fn take(&mut self, read: Option<&[u8]>, blocks: &mut Blocks) -> bool {
        let packet = match read {
            Some([]) => Packet::Empty,
            Some(message) if message.len() <= self.max_message_size => {
                Packet::Message(blocks.copy(message))
            }
            _ => Packet::TooLong,
        };
        let is_message = matches!(packet, Packet::Message(_));
        self.packets.push_back(packet);
        is_message
    }
}

impl Blocks {
    fn copy(&mut self, message: &[u8]) -> Bytes {
        let length = message.len();
        let block = if length <= BLOCK_SIZE {
            if self.short.capacity() < length && !self.short.try_reclaim(BLOCK_SIZE) {
                self.short = BytesMut::with_capacity(BLOCK_SIZE);
            }
            &mut self.short
        } else {
            // In a larger block a message would keep more than twice its length.
            let fits = (length..=2 * length).contains(&self.long_size);
            if !fits || !self.long.try_reclaim(self.long_size) {
                self.long = BytesMut::with_capacity(length);
                self.long_size = length;
            }
            &mut self.long
        };
        block.extend_from_slice(message);
        block.split().freeze()
    }
}

/// What is next in the socket.
fn next(socket: &Socket) -> Result<Next, Errno> {
    if socket.descriptors == Descriptors::Detected {
        return socket.peek();
    }
    let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
    let (_, length) = recv(socket, &mut [0; 0], peek)?;
    Ok(Next::Packet(length))
}

struct SeqpacketSender {
    link: Arc<SeqpacketLink>,
    /// Messages that were started, up to `BATCH`.
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
            let mut guard = ready!(socket.poll_write_ready(cx)).map_err(SendError::Io)?;
            match guard.try_io(|socket| Ok(send_batch(socket.get_ref(), &self.pending)?)) {
                Ok(Ok(sent)) => {
                    self.pending.drain(..sent);
                    self.link.has_sent.store(true, Ordering::Relaxed);
                }
                Ok(Err(error)) => return Poll::Ready(Err(self.failed(error))),
                Err(_would_block) => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl SeqpacketSender {
    /// Returns why the first pending message was not sent, and drops it.
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

/// Sends as many pending messages as the socket takes, and returns their number.
fn send_batch(socket: &Socket, pending: &VecDeque<Bytes>) -> Result<usize, Errno> {
    let flags = SendFlags::NOSIGNAL | SendFlags::EOR | SendFlags::DONTWAIT;
    if pending.len() == 1 {
        return send(socket, &pending[0], flags).map(|_| 1);
    }
    // sendmmsg(2) reports an error only for the first of them.
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

    #[test]
    fn a_message_that_is_kept_keeps_no_block_that_a_longer_one_left() {
        for (length, limit) in [(1, BLOCK_SIZE), (BLOCK_SIZE, BLOCK_SIZE), (2000, 4000)] {
            let mut blocks = Blocks::default();
            drop(blocks.copy(&[0; SCRATCH_SIZE]));
            let kept = blocks.copy(&vec![0; length]);
            drop(blocks);
            let block = kept.try_into_mut().unwrap();
            assert!(block.capacity() <= limit, "{length}: {}", block.capacity());
        }
    }
}
