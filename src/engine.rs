//! The internal interface of an engine, which moves the bytes of a connection.
//!
//! An engine turns a [`PipeName`](crate::PipeName) into an [`Endpoint`], which creates
//! [`Instance`]s. An instance becomes a [`Channel`] when a client connects to it. Nothing above
//! this module knows which engine it runs on. Every engine follows these rules, and the contract
//! suite (`tests/it/contract.rs`) checks them for each:
//!
//! - **One message is one operation.** A message passed to [`Transmit::start_send`] goes to the
//!   system in one write. [`Receive::poll_recv`] returns one message, whole and alone.
//! - **An empty message is the end.** A side sends an empty message to say that it has nothing more
//!   to send. The other side receives it as [`Received::End`]. The connection, above the engine,
//!   refuses to send empty and too long messages of the user.
//! - **Dropping a future loses nothing.** State between two polls lives in the engine's types,
//!   never in a future. The next `poll_recv` continues a partly read message, and the next
//!   `poll_flush` a partly written one.
//! - **Closing discards nothing.** Dropping the last [`Link`] of a connection closes it, and the
//!   other side can still read messages that were sent before. A message that was not flushed by
//!   then is sent whole, or not at all.
//! - **Dropping is always allowed**, at any time and on any thread, inside a runtime or not.
#![cfg_attr(
    not(any(windows, target_os = "linux")),
    allow(
        dead_code,
        reason = "these systems have the memory engine at most, which needs less"
    )
)]

use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use crate::{
    access::Access,
    debug::debug_fields,
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
    /// The engine that suits most programs, which is `Overlapped`.
    #[default]
    Auto,
    /// `tokio::net::windows::named_pipe`, with messages of at most 4,095 bytes. For hosts that want
    /// Tokio's own I/O.
    Tokio,
    /// Overlapped I/O with a completion port, and messages of any length.
    ///
    /// All pipes of the process share the port and its threads, up to two per processor and at
    /// least four. They exist until the process ends, so a DLL that uses this engine must not be
    /// unloaded.
    Overlapped,
}

/// Writes the value of `pipe-server`'s `--engine` option.
#[cfg(windows)]
impl std::fmt::Display for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Auto => "auto",
            Self::Tokio => "tokio",
            Self::Overlapped => "overlapped",
        })
    }
}

/// A name that this process serves. Dropping it releases the name.
pub(crate) trait Endpoint: Send + Sync {
    /// Creates another instance. Clients can connect to it at once, before it is polled.
    ///
    /// Called from a task of the runtime and from a connection's `drop`.
    fn create(&self) -> io::Result<Box<dyn Instance>>;

    /// Tells the engine whether `max_instances` clients are connected. Called each time this
    /// changes.
    ///
    /// Called from a task of the runtime and from a connection's `drop`. Only needed if the system
    /// itself queues clients: at the limit, further clients must see a busy pipe.
    fn set_full(&self, _full: bool) -> io::Result<()> {
        Ok(())
    }

    /// The largest useful number of waiting instances. It is 1 if the system itself queues clients.
    fn useful_backlog(&self) -> usize {
        usize::MAX
    }

    /// The longest message that its channels carry, in bytes.
    fn max_message_size(&self) -> usize;
}

/// A server end of a pipe that waits for its client. Dropping it closes it.
pub(crate) trait Instance: Send {
    /// Ready once a client is connected, even if it has already disconnected. Not polled again
    /// after that, unless it is closed. After an error it is polled again, and retries.
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>>;

    /// Refuses further clients, if the system can. From then on `poll_connect` returns those that
    /// have connected before, and then an error.
    fn close(&mut self);
}

/// A client's two-way message channel: two halves, each used by one task at a time, and the link
/// that both share.
pub(crate) struct Channel {
    pub(crate) receiver: Box<dyn Receive>,
    pub(crate) sender: Box<dyn Transmit>,
    pub(crate) link: Arc<dyn Link>,
}

debug_fields! { Channel, |_| }

/// The result of a receive.
#[derive(Clone, Debug)]
pub(crate) enum Received {
    /// A message, never empty.
    Message(Bytes),
    /// An empty message. The other side sends nothing more, but may still be reading.
    End,
    /// The other side has closed.
    Closed,
}

/// The receiving half of a channel.
pub(crate) trait Receive: Send + Sync {
    /// Receives the next message. Not polled again after anything but a message.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>>;

    /// Returns whether to receive another message before replies are flushed: one is buffered, or
    /// the peer seems to send ahead of its replies. Always `false` on an engine that can't tell.
    fn expects_more(&self) -> bool {
        false
    }

    /// The bytes of the messages that were received and not yet returned.
    fn received_ahead(&self) -> usize {
        0
    }

    /// Receives the next message alone, even if the peer seems to send ahead of its replies.
    fn stop_receiving_ahead(&mut self) {}

    /// The number of messages in a row that a task should receive before it yields.
    fn turn(&self) -> u32;

    /// Stops the other side from sending more, if the system can. From then on `poll_recv` returns
    /// the messages that were sent before, and then `Received::End` or `Received::Closed`.
    fn close(&mut self);
}

/// The sending half of a channel.
pub(crate) trait Transmit: Send + Sync {
    /// Ready when another message can be started. An engine that sends several messages in one call
    /// accepts some before they are flushed. On other engines this waits until the last message is
    /// flushed.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_flush(cx)
    }

    /// Starts sending `message`. Called only after `poll_ready` has been ready since the last
    /// message. An empty message ends the conversation; `poll_flush` is ready before it is started.
    fn start_send(&mut self, message: Bytes) -> Result<(), SendError>;

    /// Ready when the system has accepted all messages that were started, and the other side can
    /// read them. Ready at once if none were started. An error drops the message that failed.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>>;

    /// The number of messages that were started, and that the system has neither accepted nor
    /// refused.
    fn pending(&self) -> usize;
}

/// The system's object of a channel. Each half holds a reference, and the connection closes when
/// the last reference is dropped.
pub(crate) trait Link: Send + Sync {
    /// Returns the process and the user on the other side.
    fn peer(&self) -> io::Result<Peer>;

    /// Returns whether the other side has closed, even if messages from it can still be received.
    fn is_hung_up(&self) -> bool;
}

/// The options of a listener that its engine applies.
#[derive(Clone, Debug, Default)]
pub(crate) struct EngineOptions {
    pub(crate) access: Access,
    pub(crate) max_message_size: Option<usize>,
    pub(crate) buffer_size: u32,
    #[cfg(target_os = "linux")]
    pub(crate) socket_group: Option<u32>,
    #[cfg(windows)]
    pub(crate) allow_remote: bool,
    #[cfg(windows)]
    pub(crate) engine: Engine,
}

impl EngineOptions {
    /// Checks the sizes for an engine that carries messages of up to `longest` bytes. `carrier` is
    /// the name of the engine in the error.
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
    /// Checks the requested sizes, or uses the defaults, for an engine that carries messages of up
    /// to `longest` bytes. `carrier` is the name of the engine in the error.
    pub(crate) fn new(
        max_message_size: Option<usize>,
        buffer_size: u32,
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
        if buffer_size == 0 {
            return refuse("buffer_size", "is 0: use 1 byte or more");
        }
        Ok(Self {
            max_message_size,
            buffer_size,
        })
    }
}
