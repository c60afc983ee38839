//! The inner interface of an engine: what moves bytes under a connection.
//!
//! An engine turns a [`PipeName`](crate::PipeName) into an [`Endpoint`], which creates
//! [`Instance`]s; an instance that a client connects to becomes a [`Channel`]. Nothing above this
//! module knows which engine it runs on. The rules that every engine keeps, and that the contract
//! suite (`tests/contract.rs`) checks on each of them:
//!
//! - **One message is one operation.** What [`Transmit::start_send`] takes goes to the system in one
//!   write, [`Receive::poll_recv`] gives back one message, whole and alone.
//! - **An empty message is the end.** Sending one is how a side says that it has nothing more to
//!   send; receiving one is [`Received::End`]. The checks that keep users from sending one by
//!   mistake, and messages under `max_message_size`, are made above the engine.
//! - **A poll that is given up loses nothing.** State between two polls lives in the engine's types,
//!   never in a future: a message half read is still there for the next `poll_recv`, one half
//!   written is still written by the next `poll_flush`.
//! - **Closing discards nothing.** Dropping the last [`Link`] of a connection closes it in such a
//!   way that the other side can still read what was sent before. A send that has not been flushed
//!   by then is cancelled: whole, or not at all.
//! - **Dropping is always allowed**, at any time and on any thread, inside a runtime or not.

use std::{
    fmt, io,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use crate::{
    defaults,
    error::{OutOfRange, RecvError, SendError},
    peer::Peer,
};

#[cfg(feature = "test-util")]
pub(crate) mod faulty;
#[cfg(feature = "test-util")]
pub(crate) mod memory;
pub(crate) mod native;
#[cfg(windows)]
mod overlapped;
#[cfg(target_os = "linux")]
mod seqpacket;
#[cfg(windows)]
mod tokio_pipe;

/// How bytes move under a connection on Windows.
#[cfg(windows)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// The one that suits most programs: `Overlapped`.
    #[default]
    Auto,
    /// `tokio::net::windows::named_pipe`, whose messages are 4,095 bytes long at most: for hosts that
    /// want Tokio's own I/O.
    Tokio,
    /// Overlapped I/O of our own, completed by the system's thread pool, with messages of any length.
    Overlapped,
}

/// The word of the option `--engine` of `pipe-server`.
#[cfg(windows)]
impl fmt::Display for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Auto => "auto",
            Self::Tokio => "tokio",
            Self::Overlapped => "overlapped",
        })
    }
}

/// A name that this process serves. Dropping it gives the name up.
pub(crate) trait Endpoint: Send + Sync {
    /// Creates one more instance. Clients can connect to it from here on, before it is first
    /// polled.
    ///
    /// Called from a task of the runtime and from a connection's `drop`.
    fn create(&self) -> io::Result<Box<dyn Instance>>;

    /// Says whether `max_instances` clients are connected, each time that this changes.
    ///
    /// Called from a task of the runtime and from a connection's `drop`. Only an engine whose system
    /// queues clients on its own has something to do: further ones must see that the pipe is busy.
    fn set_full(&self, _full: bool) {}

    /// How many waiting instances are useful. One, where the system itself queues clients.
    fn useful_backlog(&self) -> usize {
        usize::MAX
    }

    /// The longest message that its channels carry, in bytes.
    fn max_message_size(&self) -> usize;
}

/// One server end of a pipe that waits for its client. Dropping it closes it.
pub(crate) trait Instance: Send {
    /// Ready once a client is connected, also if it has already left again. Not polled any more
    /// after that. After an error it may be polled again, and tries again.
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>>;
}

/// One client's two-way message channel, in three parts: two that are each used by one task at a
/// time, and one that both share.
pub(crate) struct Channel {
    pub(crate) receiver: Box<dyn Receive>,
    pub(crate) sender: Box<dyn Transmit>,
    pub(crate) link: Arc<dyn Link>,
}

impl fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Channel").finish_non_exhaustive()
    }
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message, never empty.
    Message(Bytes),
    /// An empty message: the other side sends no more, but may still be reading.
    End,
    /// The other side is gone.
    Closed,
}

/// The receiving half of a channel.
pub(crate) trait Receive: Send {
    /// The next message. After anything but a message it is not polled any more.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>>;
}

/// The sending half of a channel.
pub(crate) trait Transmit: Send {
    /// Ready when another message can be begun. An engine that hands several messages over in one call
    /// has room for some that wait; the others have none until the last one is flushed.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_flush(cx)
    }

    /// Begins to send `message`. Only called when `poll_ready` has been ready since the last one. An
    /// empty one ends the conversation; for that `poll_flush` has been ready.
    fn start_send(&mut self, message: Bytes) -> Result<(), SendError>;

    /// Ready when the messages that were begun are in the system's hands, where the other side can
    /// read them; at once if none was.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>>;
}

/// The system's own object under a channel. The connection is closed when the last reference to it
/// goes; the halves hold one each.
pub(crate) trait Link: Send + Sync {
    /// Who is on the other side.
    fn peer(&self) -> io::Result<Peer>;

    /// Whether the other side is gone, also while messages of it are still to be received.
    fn is_hung_up(&self) -> bool;
}

/// The sizes that an engine is told when a pipe is bound or connected to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// The longest message that may be received, in bytes.
    pub(crate) max_message_size: usize,
    /// How much may lie in the pipe each way before a writer waits, in bytes.
    pub(crate) buffer_size: u32,
}

impl Sizes {
    /// What was asked for, or the default of an engine that carries messages of `longest` bytes. `carrier`
    /// names it.
    pub(crate) fn new(
        max_message_size: Option<usize>,
        buffer_size: usize,
        carrier: &str,
        longest: usize,
    ) -> Result<Self, OutOfRange> {
        let refuse = |option, problem: &str| Err(OutOfRange::new(option, problem));
        let default = defaults::MAX_MESSAGE_SIZE.min(longest);
        let max_message_size = max_message_size.unwrap_or(default);
        if max_message_size == 0 {
            return refuse("max_message_size", "is 0: take 1 byte or more");
        }
        if max_message_size > longest {
            let problem = format!(
                "is {max_message_size} bytes, but {carrier} carries messages of {longest} at most"
            );
            return refuse("max_message_size", &problem);
        }
        let Some(buffer_size) = u32::try_from(buffer_size).ok().filter(|&size| size > 0) else {
            return refuse(
                "buffer_size",
                "is out of range: take 1 to 4,294,967,295 bytes",
            );
        };
        Ok(Self {
            max_message_size,
            buffer_size,
        })
    }
}
