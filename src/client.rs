//! The client side of a pipe.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;

#[cfg(any(feature = "json", feature = "postcard"))]
use crate::connection::Identity;
#[cfg(doc)]
use crate::trust::Trust;
use crate::{
    connection::{Connection, RecvEnd, RecvHalf, SendHalf},
    engine::Channel,
    error::{CallError, ConnectError, RecvError, SendError},
    name::{NameError, PipeName},
    peer::Peer,
    timer::timeout,
};

pub use self::options::ClientOptions;
#[cfg(feature = "tower")]
pub use self::shared::SharedCall;
pub use self::shared::{SharedClient, SharedClientOptions};

#[cfg(feature = "futures")]
mod futures;
mod options;
mod shared;
mod start;

/// The error of a call whose reply had not arrived when receiving ended.
fn no_reply(receiver: &RecvHalf) -> CallError {
    match receiver.end() {
        // The server has answered all requests that it took, and says so.
        Some(RecvEnd::HalfClosed) => CallError::NotExecuted,
        Some(RecvEnd::Closed) | None => CallError::Closed,
    }
}

/// A connection to a server, on which one task at a time makes calls. To make calls from many
/// tasks, use [`SharedClient`].
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use pipe_server::Client;
///
/// let mut client = Client::connect("mynamedpipe").await?;
/// let reply = client.call("Default message from client.").await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    call_timeout: Option<Duration>,
    /// The number of outstanding replies: to the call in flight, and to abandoned calls.
    unanswered: usize,
}

impl Client {
    pub(crate) fn new(
        channel: Channel,
        max_message_size: usize,
        call_timeout: Option<Duration>,
    ) -> Self {
        Self {
            connection: Connection::new(channel, None, 0, max_message_size),
            call_timeout,
            unanswered: 0,
        }
    }

    /// Connects to the pipe `name` with the default [`ClientOptions`].
    ///
    /// # Errors
    ///
    /// Same as [`ClientOptions::connect`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`ClientOptions::connect`].
    pub async fn connect(
        name: impl TryInto<PipeName, Error: Into<NameError>>,
    ) -> Result<Self, ConnectError> {
        ClientOptions::new().connect(name).await
    }

    /// Sends a request and receives its reply, within the
    /// [`call_timeout`](ClientOptions::call_timeout).
    ///
    /// The server must send one reply to each request, in order, and nothing else. Replies to
    /// messages sent with [`send`](Self::send) must be received first.
    ///
    /// # Errors
    ///
    /// [`CallError`] says whether sending or receiving failed. It is [`CallError::Closed`] if the
    /// server closed the pipe instead of replying, and [`CallError::TimedOut`] after the call
    /// timeout.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, or the call times out, the request may or may not be sent, but
    /// never in part. The client remains usable: the next call first waits for the reply to this
    /// one, and drops it. If the server does not reply, that call waits until its own timeout, or
    /// forever if there is none.
    pub async fn call(&mut self, request: impl Into<Bytes>) -> Result<Bytes, CallError> {
        let request = request.into();
        let call_timeout = self.call_timeout;
        match timeout(call_timeout, &mut pin!(self.exchange(request))).await {
            Ok(result) => result,
            Err(after) => Err(CallError::TimedOut { after }),
        }
    }

    async fn exchange(&mut self, request: Bytes) -> Result<Bytes, CallError> {
        // Receive the replies to abandoned calls first.
        self.receive_replies().await?;
        self.connection.sender.feed(request).await?;
        // From here on the request counts as sent: this call flushes it, or else the next one.
        self.unanswered += 1;
        let reply = self.receive_replies().await?;
        reply.ok_or(CallError::Closed)
    }

    /// Flushes the started messages, and receives replies until none is outstanding. Returns the
    /// last reply.
    async fn receive_replies(&mut self) -> Result<Option<Bytes>, CallError> {
        let Connection { receiver, sender } = &mut self.connection;
        let unanswered = &mut self.unanswered;
        let mut last = None;
        poll_fn(|cx| {
            // Send and receive at the same time: the server may not read on until one of its
            // earlier replies has been read.
            let sent = sender.poll_flush(cx).map_err(|error| {
                *unanswered = unanswered.saturating_sub(1);
                error
            })?;
            while *unanswered > 0 {
                let Some(reply) = ready!(receiver.poll_recv(cx))? else {
                    if receiver.end() == Some(RecvEnd::Closed) {
                        // What the system had not accepted now fails to be sent.
                        ready!(sent);
                    }
                    return Poll::Ready(Err(no_reply(receiver)));
                };
                last = Some(reply);
                *unanswered -= 1;
            }
            sent.map(|()| Ok(last.take()))
        })
        .await
    }

    /// Sends one message. See [`Connection::send`].
    ///
    /// # Errors
    ///
    /// Same as [`Connection::send`].
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe, as [`Connection::send`].
    pub async fn send(&mut self, message: impl Into<Bytes>) -> Result<(), SendError> {
        self.connection.send(message).await
    }

    /// Receives one message, or `None` once the server has closed. Replies to abandoned calls are
    /// received as well. See [`Connection::recv`].
    ///
    /// # Errors
    ///
    /// Same as [`Connection::recv`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`Connection::recv`].
    pub async fn recv(&mut self) -> Result<Option<Bytes>, RecvError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, RecvError>> {
        let received = ready!(self.connection.receiver.poll_recv(cx));
        if let Ok(Some(_)) = received {
            self.unanswered = self.unanswered.saturating_sub(1);
        }
        Poll::Ready(received)
    }

    /// Ends the conversation. Outstanding replies can still be received. See
    /// [`Connection::finish`].
    ///
    /// # Errors
    ///
    /// Same as [`Connection::finish`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`Connection::finish`].
    pub async fn finish(&mut self) -> Result<(), SendError> {
        self.connection.finish().await
    }

    /// Returns the process that serves the pipe. On Windows, its user is the owner of the pipe.
    ///
    /// # Errors
    ///
    /// Returns the system's error. On Windows this fails on a client connected with
    /// [`Trust::Anyone`], since that client does not request the right to read the owner.
    pub fn peer(&self) -> io::Result<Peer> {
        self.connection.peer()
    }

    #[cfg(any(feature = "json", feature = "postcard"))]
    pub(crate) fn identity(&self) -> &Identity {
        self.connection.identity()
    }

    /// Returns the length of the longest message in bytes, in both directions. The server has its own
    /// limit.
    #[must_use]
    pub fn max_message_size(&self) -> usize {
        self.connection.max_message_size()
    }

    /// Returns the underlying connection, for code that works on either side.
    #[must_use]
    pub fn into_connection(self) -> Connection {
        self.connection
    }

    /// Splits the client, so that one task can receive while another one sends.
    /// [`RecvHalf::reunite`] makes a [`Connection`] of the halves.
    #[must_use]
    pub fn into_split(self) -> (RecvHalf, SendHalf) {
        self.connection.into_split()
    }
}
