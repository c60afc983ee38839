//! The Windows engine on overlapped I/O: messages of any length.
//!
//! A message that fits the buffer costs one `ReadFile`, directly into the memory that its receiver
//! gets. A longer one ends a read with `ERROR_MORE_DATA`; the buffer grows and the next read
//! continues where the last one ended, until the message is whole or over the limit. Each message
//! is sent with one `WriteFile`. The engine never asks how much of a message is left: that call can
//! block (see `sys/pipe.rs`). So one case is not detected. If a sender cancels a write that was
//! partly read and then writes another message, that part and the new message arrive as one.
//! Windows drops the rest of the first message (WT kernel32 `test_CancelIoEx`), and no read reports
//! it. This is the sender's own doing, since it could have written the same bytes in one call. The
//! clients of this library never cancel a write and continue.

use std::{
    io, mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::task::coop;
use windows_sys::Win32::Foundation::{
    ERROR_INVALID_PARAMETER, ERROR_OPERATION_ABORTED, ERROR_PIPE_BUSY, ERROR_PIPE_NOT_CONNECTED,
};

use super::{
    access_list, code, creation_error, is_closed_error, rights, send_error,
    sys::{self, InstanceOptions, MessagePart, PipeEnd, SecurityDescriptor},
    use_up_instance,
};
use crate::{
    access::Access,
    engine::{Channel, Endpoint, Instance, Link, Receive, Received, Sizes, Transmit},
    error::{RecvError, SendError},
    name::PipeName,
    peer::Peer,
};

/// The initial size of the read buffer, which most messages fit into. It grows with the messages
/// received, up to the pipe's buffer size, and never shrinks. So an ordinary message on a
/// connection costs one call, and an idle connection holds no more than it has needed.
const FIRST_ROOM: usize = 4096;

/// The factor by which the buffer grows when a message does not fit. Four, so that a message of 1
/// MiB takes two more reads than one that fits the pipe's default buffer.
const GROWTH: usize = 4;

/// A call moves one message, so a longer turn would save nothing. It would make others wait: with
/// inline completions a thread finishes one client's turn before the next.
pub(super) const TURN: u32 = 4;

/// The longest message that one `WriteFile` accepts.
pub(crate) const MAX_MESSAGE_SIZE: usize = u32::MAX as usize;

/// Serves `name`. The first instance is created with `FILE_FLAG_FIRST_PIPE_INSTANCE`, so nobody
/// else can have the name.
pub(crate) fn bind(
    name: &PipeName,
    access: &Access,
    allow_remote: bool,
    sizes: Sizes,
) -> io::Result<Box<dyn Endpoint>> {
    Ok(Box::new(OverlappedEndpoint {
        address: name.address().into(),
        descriptor: access_list::descriptor(access)?,
        allow_remote,
        sizes,
        first: AtomicBool::new(true),
    }))
}

/// Connects to `name`. `ResourceBusy` if no instance is free. With `identify` the link can be asked
/// for its peer, which takes one more right.
pub(crate) fn connect(name: &PipeName, sizes: Sizes, identify: bool) -> io::Result<Channel> {
    let rights = match identify {
        true => rights::REQUESTED_WITH_OWNER,
        false => rights::REQUESTED,
    };
    let pipe = PipeEnd::open(name.address(), rights).map_err(|error| match code(&error) {
        // The second: the server closed the instance while it was being opened.
        Some(ERROR_PIPE_BUSY | ERROR_PIPE_NOT_CONNECTED) => io::ErrorKind::ResourceBusy.into(),
        Some(ERROR_INVALID_PARAMETER) => io::Error::new(
            io::ErrorKind::InvalidData,
            "its server created a byte pipe, which does not preserve message boundaries",
        ),
        _ => error,
    })?;
    Ok(channel(pipe, sys::server_of, sizes))
}

struct OverlappedEndpoint {
    address: Arc<str>,
    descriptor: SecurityDescriptor,
    allow_remote: bool,
    sizes: Sizes,
    first: AtomicBool,
}

impl Endpoint for OverlappedEndpoint {
    fn create(&self) -> io::Result<Box<dyn Instance>> {
        let first = self.first.load(Ordering::Relaxed);
        let options = InstanceOptions {
            first,
            allow_remote: self.allow_remote,
            buffer_size: self.sizes.buffer_size,
        };
        let pipe = PipeEnd::create(&self.address, &self.descriptor, options)
            .map_err(|error| creation_error(error, first))?;
        self.first.store(false, Ordering::Relaxed);
        Ok(Box::new(OverlappedInstance {
            address: Arc::clone(&self.address),
            pipe: Some(pipe),
            failed: false,
            is_closed: false,
            sizes: self.sizes,
        }))
    }

    fn max_message_size(&self) -> usize {
        self.sizes.max_message_size
    }
}

struct OverlappedInstance {
    address: Arc<str>,
    /// `None` once connected.
    pipe: Option<PipeEnd>,
    /// Whether waiting for a client has failed and must be restarted.
    failed: bool,
    is_closed: bool,
    sizes: Sizes,
}

impl Instance for OverlappedInstance {
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>> {
        if let Some(pipe) = &self.pipe {
            if self.failed {
                pipe.start_connect()?;
                self.failed = false;
            }
            let connected = ready!(pipe.poll_connect(cx));
            self.failed = connected.is_err();
            connected?;
        }
        let pipe = self.pipe.take().ok_or(io::ErrorKind::NotConnected)?;
        if self.is_closed && sys::peer_has_left_nothing(&pipe) {
            // Usually the client that `close` made. Any other one has nothing to be served.
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        Poll::Ready(Ok(channel(pipe, sys::client_of, self.sizes)))
    }

    fn close(&mut self) {
        self.is_closed = true;
        if !use_up_instance(&self.address) {
            self.pipe.iter().for_each(PipeEnd::cancel_connect);
        }
    }
}

fn channel(pipe: PipeEnd, peer: fn(&PipeEnd) -> io::Result<Peer>, sizes: Sizes) -> Channel {
    let link = Arc::new(OverlappedLink { pipe, peer });
    Channel {
        receiver: Box::new(OverlappedReceiver {
            link: Arc::clone(&link),
            max_message_size: sizes.max_message_size,
            buffer: BytesMut::new(),
            room: FIRST_ROOM,
            longest_room: FIRST_ROOM.max(sizes.buffer_size as usize),
            last_long: 0,
            reading: false,
            found_at_once: false,
            is_closed: false,
            left: None,
        }),
        sender: Box::new(OverlappedSender {
            link: Arc::clone(&link),
        }),
        link,
    }
}

struct OverlappedLink {
    pipe: PipeEnd,
    /// Looks up who is on the other side of this end.
    peer: fn(&PipeEnd) -> io::Result<Peer>,
}

impl Link for OverlappedLink {
    fn peer(&self) -> io::Result<Peer> {
        (self.peer)(&self.pipe)
    }

    fn is_hung_up(&self) -> bool {
        sys::peer_has_closed(&self.pipe)
    }
}

struct OverlappedReceiver {
    link: Arc<OverlappedLink>,
    max_message_size: usize,
    /// The part of a message that was read, and the room for its rest or for the next message.
    buffer: BytesMut,
    /// The minimum room for the first read of a message, in bytes.
    room: usize,
    longest_room: usize,
    /// The length of the last message that did not fit `longest_room`: the next one may be as
    /// long.
    last_long: usize,
    /// Whether a read is in flight, which then has the buffer.
    reading: bool,
    /// Whether the last message was there when its read was started.
    found_at_once: bool,
    is_closed: bool,
    /// The bytes still to be read after `close`, once they are known.
    left: Option<usize>,
}

impl Receive for OverlappedReceiver {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        // A client that always has the next message ready must not starve the others.
        let budget = ready!(coop::poll_proceed(cx));
        self.found_at_once = !self.reading;
        let received = ready!(match self.is_closed {
            true => self.poll_closed(cx),
            false => self.poll_message(cx),
        });
        budget.made_progress();
        Poll::Ready(received)
    }

    /// The next read is needed anyway, and may be started while a reply is being written.
    fn expects_more(&self) -> bool {
        self.found_at_once
    }

    fn turn(&self) -> u32 {
        TURN
    }

    /// Windows can't stop the other side. The next `poll_recv` finds out how much is in the pipe:
    /// see `poll_closed`.
    fn close(&mut self) {
        self.is_closed = true;
    }
}

impl OverlappedReceiver {
    /// Receives a message that is in the pipe, or the end.
    ///
    /// A read that is in flight, or that has begun a message, is completed first. The pipe then
    /// holds whole messages, so its unread bytes are those of the messages that were sent before.
    /// No more is read: a client that always has another message in the pipe would keep the
    /// connection open for ever. What is not read is not executed, whatever the system counts, and
    /// the client learns that from the empty message at the end.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        if !self.reading && self.buffer.is_empty() && self.left.is_none() {
            self.left = Some(sys::unread_bytes(&self.link.pipe));
        }
        if self.left == Some(0) {
            return Poll::Ready(Ok(Received::End));
        }
        let received = ready!(self.poll_message(cx));
        if let (Some(left), Ok(Received::Message(message))) = (&mut self.left, &received) {
            *left = left.saturating_sub(message.len());
        }
        Poll::Ready(received)
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        let mut begun = !self.buffer.is_empty();
        loop {
            if !self.reading && !begun {
                self.make_room();
            }
            self.reading = true;
            let mut read = self.link.pipe.poll_read(cx, &mut self.buffer);
            if read.is_pending() && self.is_closed {
                // Its completion tells whether it was cancelled or had just received a message.
                self.link.pipe.cancel_read();
                read = self.link.pipe.poll_read(cx, &mut self.buffer);
            }
            let read = ready!(read);
            self.reading = false;
            match read {
                Ok(MessagePart::Last) => return Poll::Ready(self.take_message()),
                Ok(MessagePart::More) => self.grow()?,
                Err(error) => return Poll::Ready(self.classify(error)),
            }
            begun = true;
        }
    }

    /// Makes room for an ordinary message, in the memory of earlier ones if those are dropped.
    fn make_room(&mut self) {
        if !self.buffer.try_reclaim(self.room) {
            self.buffer = BytesMut::with_capacity(self.room);
        }
    }

    /// Makes room for more of a message that has filled the buffer, unless that exceeds the limit.
    fn grow(&mut self) -> Result<(), RecvError> {
        let length = self.buffer.len();
        if length > self.max_message_size {
            return Err(self.too_long());
        }
        let next = if length < self.last_long {
            self.last_long
        } else {
            length.saturating_mul(GROWTH)
        };
        // One byte over the limit is enough to see that a message is too long.
        let next = next.min(self.max_message_size.saturating_add(1));
        self.buffer.reserve(next - length);
        Ok(())
    }

    /// Takes the message, which is now whole.
    fn take_message(&mut self) -> Result<Received, RecvError> {
        let length = self.buffer.len();
        if length > self.max_message_size {
            return Err(self.too_long());
        }
        if length == 0 {
            return Ok(Received::End);
        }
        if length > self.longest_room {
            self.last_long = length;
        }
        if length > self.room {
            self.room = length.next_power_of_two().min(self.longest_room);
        }
        let capacity = self.buffer.capacity();
        if capacity > self.longest_room && capacity / 2 > length {
            // The memory of an unusually long message: a short one in it would keep it allocated.
            let message = mem::take(&mut self.buffer);
            return Ok(Received::Message(Bytes::copy_from_slice(&message)));
        }
        Ok(Received::Message(self.buffer.split().freeze()))
    }

    /// Classifies the error of a read.
    fn classify(&self, error: io::Error) -> Result<Received, RecvError> {
        if self.is_closed && code(&error) == Some(ERROR_OPERATION_ABORTED) {
            Ok(Received::End)
        } else if !is_closed_error(&error) {
            Err(RecvError::Io(error))
        } else if self.buffer.is_empty() {
            Ok(Received::Closed)
        } else {
            Err(RecvError::Incomplete)
        }
    }

    fn too_long(&self) -> RecvError {
        RecvError::TooLong {
            limit: self.max_message_size,
        }
    }
}

struct OverlappedSender {
    link: Arc<OverlappedLink>,
}

impl Transmit for OverlappedSender {
    fn start_send(&mut self, message: Bytes) -> Result<(), SendError> {
        if message.len() > MAX_MESSAGE_SIZE {
            return Err(SendError::TooLong {
                length: message.len(),
                limit: MAX_MESSAGE_SIZE,
            });
        }
        self.link.pipe.start_write(message).map_err(send_error)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.link.pipe.poll_write(cx).map_err(send_error)
    }

    fn pending(&self) -> usize {
        usize::from(self.link.pipe.is_writing())
    }
}
