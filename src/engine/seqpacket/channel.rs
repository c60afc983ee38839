//! A connected socket: how messages go in and out of it.

use std::{
    array,
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    net::Shutdown,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg};
use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{MMsgHdr, RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmmsg, sockopt},
};
use tokio::{io::Interest, task::coop};
use tokio_seqpacket::UnixSeqpacket;

use super::SEND_OVERHEAD;
use crate::{
    access::{Peer, UserId},
    engine::{Channel, Link, Receive, Received, Transmit},
    error::{RecvError, SendError},
};

/// Messages up to this length are received into buffers of the thread and copied out of them, so that an
/// idle connection holds no buffer. The length of one that may be longer is asked first.
const SCRATCH_SIZE: usize = 64 * 1024;

/// How many messages one call moves at most.
const BATCH: usize = 16;

/// Messages of one connection share a block of this size as long as they fit; a longer one gets a block
/// of its own length. A block is used again once the messages in it are dropped.
const BLOCK_SIZE: usize = 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        headers: MultiHeaders::preallocate(BATCH, None),
        buffers: vec![0; BATCH * SCRATCH_SIZE],
    });
}

/// What a thread receives with. The memory of the later buffers is the system's until they are used.
struct Scratch {
    headers: MultiHeaders<()>,
    buffers: Vec<u8>,
}

/// The channel of a connected socket.
pub(super) fn channel(socket: UnixSeqpacket, max_message_size: usize) -> Channel {
    let link = Arc::new(SeqpacketLink {
        socket,
        peer_gone: AtomicBool::new(false),
    });
    Channel {
        receiver: Box::new(SeqpacketReceiver {
            link: Arc::clone(&link),
            max_message_size,
            block: BytesMut::new(),
            received: VecDeque::new(),
            expects_more: false,
        }),
        sender: Box::new(SeqpacketSender {
            link: Arc::clone(&link),
            pending: VecDeque::new(),
        }),
        link,
    }
}

/// A connected socket.
struct SeqpacketLink {
    socket: UnixSeqpacket,
    /// The peer has closed and nothing of it is left to read.
    peer_gone: AtomicBool,
}

impl SeqpacketLink {
    /// Whether the peer has closed both directions.
    fn is_hung_up(&self) -> bool {
        // Tokio knows mostly, and saves the call. If not, the event may still be on its way. Asked with a
        // future and not with `poll_write_ready`, which would forget the task that waits to send.
        let ready = pin!(self.socket.as_async_fd().ready(Interest::WRITABLE));
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
            group_id: credentials.gid(),
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
    /// What the last call has received and is still to be given out.
    received: VecDeque<Packet>,
    /// The socket may hold several messages. A client that waits for each reply sends one at a time, and
    /// for one recv(2) costs less than recvmmsg(2).
    expects_more: bool,
}

/// What one read gives.
enum Packet {
    Message(Bytes),
    /// No bytes: the end.
    Empty,
    TooLong,
}

/// What a call has left in the socket.
enum Left {
    Nothing,
    Unknown,
}

impl Receive for SeqpacketReceiver {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        // A client that always has the next message ready must not keep the others waiting.
        let budget = ready!(coop::poll_proceed(cx));
        let link = Arc::clone(&self.link);
        let io = link.socket.as_async_fd();
        loop {
            if let Some(packet) = self.received.pop_front() {
                budget.made_progress();
                return Poll::Ready(match packet {
                    Packet::Message(message) => Ok(Received::Message(message)),
                    Packet::Empty => Ok(self.ended()),
                    Packet::TooLong => Err(RecvError::TooLong {
                        limit: self.max_message_size,
                    }),
                });
            }
            let mut guard = ready!(io.poll_read_ready(cx)).map_err(RecvError::Io)?;
            match self.receive() {
                Ok(Left::Unknown) | Err(Errno::INTR) => {}
                Ok(Left::Nothing) | Err(Errno::AGAIN) => guard.clear_ready(),
                // The peer closed with messages of ours unread. What it sent before that can still be
                // read: the error is told once.
                Err(Errno::CONNRESET) => {}
                Err(error) => return Poll::Ready(Err(RecvError::Io(error.into()))),
            }
        }
    }
}

impl SeqpacketReceiver {
    /// Takes messages from the socket.
    fn receive(&mut self) -> Result<Left, Errno> {
        if self.max_message_size > SCRATCH_SIZE {
            let socket = &self.link.socket;
            let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
            let (_, length) = recv(socket, &mut [0; 0], peek)?;
            if length > SCRATCH_SIZE && length <= self.max_message_size {
                let mut message = Vec::with_capacity(length);
                recv(socket, spare_capacity(&mut message), RecvFlags::empty())?;
                self.received.push_back(Packet::Message(message.into()));
                return Ok(Left::Unknown);
            }
        }
        SCRATCH.with_borrow_mut(|scratch| {
            // Without room for the longest message a second one may be one whose length has to be asked.
            if !self.expects_more || self.max_message_size > SCRATCH_SIZE {
                self.receive_one(&mut scratch.buffers[..SCRATCH_SIZE])
            } else {
                self.receive_batch(scratch)
            }
        })
    }

    fn receive_one(&mut self, buffer: &mut [u8]) -> Result<Left, Errno> {
        let (_, length) = recv(&self.link.socket, &mut *buffer, RecvFlags::TRUNC)?;
        self.take(buffer.get(..length));
        self.expects_more = true;
        Ok(Left::Unknown)
    }

    /// Takes up to `BATCH` messages in one call (recvmmsg(2)).
    fn receive_batch(&mut self, scratch: &mut Scratch) -> Result<Left, Errno> {
        self.expects_more = false;
        let mut lengths = [None; BATCH];
        let mut taken = 0;
        {
            let mut buffers = scratch.buffers.chunks_exact_mut(SCRATCH_SIZE);
            let mut slices: [_; BATCH] =
                array::from_fn(|_| [IoSliceMut::new(buffers.next().unwrap_or_default())]);
            let messages = recvmmsg(
                self.link.socket.as_raw_fd(),
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
            let more = self.take(length.map(|length| &buffer[..length]));
            if !more {
                // Every further read of an ended socket gives the end again.
                break;
            }
        }
        self.expects_more = taken > 1;
        Ok(match taken {
            BATCH => Left::Unknown,
            _ => Left::Nothing,
        })
    }

    /// Takes down what one read gave; `None` is more than there was room for. Returns whether it was a
    /// message.
    fn take(&mut self, read: Option<&[u8]>) -> bool {
        let packet = match read {
            Some([]) => Packet::Empty,
            Some(message) if message.len() <= self.max_message_size => self.copy(message),
            _ => Packet::TooLong,
        };
        let is_message = matches!(packet, Packet::Message(_));
        self.received.push_back(packet);
        is_message
    }

    fn copy(&mut self, message: &[u8]) -> Packet {
        let length = message.len();
        let size = length.max(BLOCK_SIZE);
        if self.block.capacity() < length && !self.block.try_reclaim(size) {
            self.block = BytesMut::with_capacity(size);
        }
        self.block.extend_from_slice(message);
        Packet::Message(self.block.split().freeze())
    }

    /// Whether the end is an empty message, or the peer is gone: a read can't tell.
    fn ended(&self) -> Received {
        if self.link.is_hung_up() {
            self.link.peer_gone.store(true, Ordering::Relaxed);
            Received::Closed
        } else {
            Received::End
        }
    }
}

struct SeqpacketSender {
    link: Arc<SeqpacketLink>,
    /// Messages that were begun, up to `BATCH`.
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
            return self
                .link
                .socket
                .shutdown(Shutdown::Write)
                .map_err(SendError::Io);
        }
        self.pending.push_back(message);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let socket = &self.link.socket;
        while !self.pending.is_empty() {
            let mut guard =
                ready!(socket.as_async_fd().poll_write_ready(cx)).map_err(SendError::Io)?;
            match guard.try_io(|_| send_batch(socket, &self.pending).map_err(io::Error::from)) {
                Ok(Ok(sent)) => drop(self.pending.drain(..sent)),
                Ok(Err(error)) => return Poll::Ready(Err(self.failed(error))),
                Err(_would_block) => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl SeqpacketSender {
    /// Why the first of the pending messages was not sent. It is given up.
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

/// Sends as many of the pending messages as the socket takes, and says how many.
fn send_batch(socket: &UnixSeqpacket, pending: &VecDeque<Bytes>) -> Result<usize, Errno> {
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
