//! The internal interface of an engine: what moves bytes under a connection.
//!
//! An engine turns a [`PipeName`](crate::PipeName) into an [`Endpoint`], which creates [`Instance`]s. An
//! instance that a client connects to becomes a [`Channel`]. Nothing above this module knows which engine it
//! runs on. Every engine keeps these rules, and the contract suite (`tests/it/contract.rs`) checks them on
//! each:
//!
//! - **One message is one operation.** What [`Transmit::start_send`] takes goes to the system in one write;
//!   [`Receive::poll_recv`] returns one message, whole and alone.
//! - **An empty message is the end.** A side sends one to say that it has nothing more to send; receiving one
//!   is [`Received::End`]. The checks that keep users from sending one by mistake, and messages under
//!   `max_message_size`, are above the engine.
//! - **An abandoned poll loses nothing.** State between two polls lives in the engine's types, never in a
//!   future: the next `poll_recv` continues a partly read message, and the next `poll_flush` a partly written
//!   one.
//! - **Closing discards nothing.** Dropping the last [`Link`] of a connection closes it so that the other
//!   side can still read what was sent before. A send that was not flushed by then is cancelled: whole, or
//!   not at all.
//! - **Dropping is always allowed**, at any time and on any thread, inside a runtime or not.
#![cfg_attr(
    not(any(windows, target_os = "linux")),
    allow(
        dead_code,
        reason = "these systems have the memory engine at most, which needs less"
    )
)]

use std::{
    fmt, io,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use crate::{
    access::Access,
    defaults,
    error::{OutOfRange, RecvError, SendError},
    peer::Peer,
};

#[cfg(feature = "test-util")]
pub(crate) mod faulty;
#[cfg_attr(
    not(windows),
    allow(dead_code, reason = "only Windows has threads that complete I/O")
)]
pub(crate) mod inline;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(feature = "test-util")]
pub(crate) mod memory;
pub(crate) mod native;
#[cfg(not(any(windows, target_os = "linux")))]
mod unsupported;
#[cfg(windows)]
pub(crate) mod windows;

/// The I/O under a connection on Windows.
#[cfg(windows)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// Chooses the engine that suits most programs: `Overlapped`.
    #[default]
    Auto,
    /// `tokio::net::windows::named_pipe`, with messages of at most 4,095 bytes: for hosts that want Tokio's
    /// own I/O.
    Tokio,
    /// Overlapped I/O, completed through a port, with messages of any length.
    ///
    /// The port and its threads, up to two for each processor and at least four, are shared by all pipes of the
    /// process and last as long as it does. A DLL that uses this engine must not be unloaded.
    Overlapped,
}

/// Writes the value of `pipe-server`'s `--engine` option.
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
    /// Creates another instance. Clients can connect to it at once, before it is first polled.
    ///
    /// Called from a task of the runtime and from a connection's `drop`.
    fn create(&self) -> io::Result<Box<dyn Instance>>;

    /// Says whether `max_instances` clients are connected. Called each time this changes.
    ///
    /// Called from a task of the runtime and from a connection's `drop`. Does something only on an engine
    /// whose system queues clients by itself: further clients must see a busy pipe.
    fn set_full(&self, _full: bool) -> io::Result<()> {
        Ok(())
    }

    /// The number of waiting instances that are useful: one, where the system itself queues clients.
    fn useful_backlog(&self) -> usize {
        usize::MAX
    }

    /// The longest message that its channels carry, in bytes.
    fn max_message_size(&self) -> usize;
}

/// A server end of a pipe that waits for its client. Dropping it closes it.
pub(crate) trait Instance: Send {
    /// Ready once a client is connected, even if it has already left again; not polled again after that.
    /// After an error it may be polled again, and retries.
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>>;
}

/// A client's two-way message channel, in three parts: two that are each used by one task at a time, and one
/// that both share.
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

/// The result of receiving.
#[derive(Clone, Debug)]
pub(crate) enum Received {
    /// A message, never empty.
    Message(Bytes),
    /// An empty message: the other side sends nothing more, but may still be reading.
    End,
    /// The other side is gone.
    Closed,
}

/// The receiving half of a channel.
pub(crate) trait Receive: Send {
    /// Receives the next message. Not polled again after anything but a message.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>>;

    /// Whether to ask for another message before replies are flushed: one is in hand, or the peer sends ahead.
    /// No on an engine that can't tell.
    fn expects_more(&self) -> bool {
        false
    }

    /// The number of messages that a task should receive in a row before others run.
    fn turn(&self) -> u32;
}

/// The sending half of a channel.
pub(crate) trait Transmit: Send {
    /// Ready when another message can be started. An engine that sends several messages in one call has room
    /// for some that wait; the others have none until the last one is flushed.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_flush(cx)
    }

    /// Starts sending `message`. Called only after `poll_ready` has been ready since the last one. An empty
    /// message ends the conversation; before it, `poll_flush` has been ready.
    fn start_send(&mut self, message: Bytes) -> Result<(), SendError>;

    /// Ready when the system has all messages that were started, and the other side can read them; at once if
    /// none was.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>>;
}

/// The system's object under a channel. The connection is closed when the last reference to it is dropped;
/// each half holds one.
pub(crate) trait Link: Send + Sync {
    /// The process and the user on the other side.
    fn peer(&self) -> io::Result<Peer>;

    /// Whether the other side is gone, even if messages from it can still be received.
    fn is_hung_up(&self) -> bool;
}

/// The options of a listener that its engine applies.
#[derive(Clone, Debug, Default)]
pub(crate) struct EngineOptions {
    pub(crate) access: Access,
    pub(crate) max_message_size: Option<usize>,
    pub(crate) buffer_size: usize,
    #[cfg(target_os = "linux")]
    pub(crate) socket_group: Option<u32>,
    #[cfg(windows)]
    pub(crate) allow_remote: bool,
    #[cfg(windows)]
    pub(crate) engine: Engine,
}

impl EngineOptions {
    /// The sizes of a pipe on an engine that carries messages of `longest` bytes. `carrier` is its name in the
    /// error.
    pub(crate) fn sizes(&self, carrier: &str, longest: usize) -> Result<Sizes, OutOfRange> {
        Sizes::new(self.max_message_size, self.buffer_size, carrier, longest)
    }
}

/// The sizes given to an engine when a pipe is bound or connected to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// The longest message that may be received, in bytes.
    pub(crate) max_message_size: usize,
    /// The number of bytes that the pipe buffers in each direction before a writer waits.
    pub(crate) buffer_size: u32,
}

impl Sizes {
    /// The requested sizes, or the defaults for an engine that carries messages of `longest` bytes. `carrier`
    /// is its name in the error.
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
            return refuse("max_message_size", "is 0: use 1 byte or more");
        }
        if max_message_size > longest {
            let problem = format!(
                "is {max_message_size} bytes, but {carrier} carries messages of at most {longest}"
            );
            return refuse("max_message_size", &problem);
        }
        let Some(buffer_size) = u32::try_from(buffer_size).ok().filter(|&size| size > 0) else {
            return refuse(
                "buffer_size",
                "is out of range: use 1 to 4,294,967,295 bytes",
            );
        };
        Ok(Self {
            max_message_size,
            buffer_size,
        })
    }
}
