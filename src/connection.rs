//! A client's two-way message channel, and its halves.

use std::{
    fmt,
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tracing::{Span, field::display};

use crate::{
    engine::{Channel, Link, Receive, Received, Transmit},
    error::{RecvError, SendError},
    identity::Identity,
    instances::Instances,
    peer::Peer,
};

/// A client's two-way message channel.
///
/// Dropping it closes the pipe and frees its instance for the next client. The other side can still read what
/// was sent before.
pub struct Connection {
    receiver: RecvHalf,
    sender: SendHalf,
}

/// The receiving half of a connection, from [`Connection::into_split`]. The pipe is closed when both
/// halves are dropped.
pub struct RecvHalf {
    receiver: Box<dyn Receive>,
    ended: Option<End>,
    /// The connection's span, until the peer is recorded in it.
    anonymous: Option<Span>,
    shared: Arc<Shared>,
}

/// The sending half of a connection, from [`Connection::into_split`]. The pipe is closed when both
/// halves are dropped.
pub struct SendHalf {
    sender: Box<dyn Transmit>,
    ended: bool,
    max_message_size: usize,
    shared: Arc<Shared>,
}

/// How receiving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With an empty message: the other side may still be reading.
    Said,
    /// The other side is gone, or sent something that can't be received.
    Closed,
}

/// What both halves share. Dropping it closes the connection.
struct Shared {
    /// The instances that this connection belongs to; `None` on a client.
    instances: Option<Arc<Instances>>,
    link: Arc<dyn Link>,
    identity: Arc<Identity>,
}

impl Drop for Shared {
    /// Before `link` is dropped: at the limit, the next instance must exist before this one closes.
    fn drop(&mut self) {
        if let Some(instances) = &self.instances {
            instances.release(&self.link);
        }
    }
}

impl Connection {
    pub(crate) fn new(
        channel: Channel,
        instances: Option<Arc<Instances>>,
        id: u64,
        max_message_size: usize,
    ) -> Self {
        let Channel {
            receiver,
            sender,
            link,
        } = channel;
        let identity = Arc::new(Identity::new(id, &link));
        let shared = Arc::new(Shared {
            instances,
            link,
            identity,
        });
        Self {
            receiver: RecvHalf {
                receiver,
                ended: None,
                anonymous: None,
                shared: Arc::clone(&shared),
            },
            sender: SendHalf {
                sender,
                ended: false,
                max_message_size,
                shared,
            },
        }
    }

    /// Receives the next message, whole and alone. Returns `None` once the other side has closed or has ended
    /// the conversation with an empty message.
    ///
    /// # Errors
    ///
    /// [`RecvError::TooLong`] for a message over `max_message_size`. [`RecvError::Incomplete`] if the other
    /// side closed in the middle of a message; no part of it is delivered. After any error nothing more can
    /// be received.
    ///
    /// One case is not detected. If a program on Windows cancels a write that was partly read and then writes
    /// another message, that part and the new message arrive as one.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped, no message is lost, not even a partly read one.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, RecvError> {
        self.receiver.recv().await
    }

    /// Sends one message. When this returns, the system has the message; whether the other side has read it
    /// is not known.
    ///
    /// Waits for the other side to read while the pipe is full.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLong`], [`SendError::Empty`] and, after [`finish`](Self::finish),
    /// [`SendError::Finished`], before anything is sent. [`SendError::Closed`] if the other side is gone.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: if the future is dropped, the message may or may not be sent. It is never sent in
    /// part, and never after a later one.
    pub async fn send(&mut self, message: impl Into<Bytes>) -> Result<(), SendError> {
        self.sender.send(message).await
    }

    /// Ends the conversation from this side by sending the empty message. The other side receives nothing
    /// more. Outstanding replies can still be received.
    ///
    /// # Errors
    ///
    /// [`SendError::Closed`] if the other side is gone.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it can be called again.
    pub async fn finish(&mut self) -> Result<(), SendError> {
        self.sender.finish().await
    }

    /// Splits the connection, so that one task can receive while another one sends.
    #[must_use]
    pub fn into_split(self) -> (RecvHalf, SendHalf) {
        (self.receiver, self.sender)
    }

    /// Who is on the other side. The system is asked once; the answer is cached.
    ///
    /// # Errors
    ///
    /// Returns the system's error. On Windows the client's user is unknown, and this fails, until a message
    /// from it has been received (*ImpersonateNamedPipeClient*).
    pub fn peer(&self) -> io::Result<Peer> {
        self.identity().peer()
    }

    /// The number of this connection, counted from 1 for each listener; 0 on a client.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.identity().id
    }

    /// The longest message that can be sent, in bytes.
    #[must_use]
    pub fn max_message_size(&self) -> usize {
        self.sender.max_message_size
    }

    pub(crate) fn halves(&mut self) -> (&mut RecvHalf, &mut SendHalf) {
        (&mut self.receiver, &mut self.sender)
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.receiver.shared.identity
    }

    /// Records the peer in the connection's span: now, or once a message has been received if the peer is not
    /// known before.
    pub(crate) fn record_peer(&mut self, span: &Span) {
        if !span.is_disabled() {
            self.receiver.anonymous = Some(span.clone());
            self.receiver.record_peer();
        }
    }
}

impl RecvHalf {
    /// Same as [`Connection::recv`].
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

    /// How receiving ended, if it has.
    pub(crate) fn end(&self) -> Option<End> {
        self.ended
    }

    /// Whether another message can be received without a system call.
    pub(crate) fn has_received(&self) -> bool {
        self.ended.is_none() && self.receiver.has_received()
    }

    /// How many messages in a row a task should receive before others run.
    pub(crate) fn turn(&self) -> u32 {
        self.receiver.turn()
    }

    /// Whether the other side is gone. Messages that it sent before may still be received.
    pub(crate) fn is_hung_up(&self) -> bool {
        self.shared.link.is_hung_up()
    }

    fn record_peer(&mut self) {
        let Some(span) = &self.anonymous else { return };
        if let Ok(peer) = self.shared.identity.peer() {
            span.record("peer.pid", peer.process_id());
            span.record("peer.user", display(peer.user()));
            self.anonymous = None;
        }
    }

    pub(crate) fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, RecvError>> {
        if self.ended.is_some() {
            return Poll::Ready(Ok(None));
        }
        let received = ready!(self.receiver.poll_recv(cx));
        Poll::Ready(match received {
            Ok(Received::Message(message)) => {
                self.record_peer();
                Ok(Some(message))
            }
            Ok(Received::End) => {
                self.ended = Some(End::Said);
                Ok(None)
            }
            Ok(Received::Closed) => {
                self.ended = Some(End::Closed);
                Ok(None)
            }
            Err(error) => {
                self.ended = Some(End::Closed);
                Err(error)
            }
        })
    }
}

impl SendHalf {
    /// Same as [`Connection::send`].
    ///
    /// # Errors
    ///
    /// Same as [`Connection::send`].
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe, as [`Connection::send`].
    pub async fn send(&mut self, message: impl Into<Bytes>) -> Result<(), SendError> {
        self.feed(message.into()).await?;
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Starts sending one message. It is guaranteed to be sent only once `poll_flush` is ready.
    pub(crate) async fn feed(&mut self, message: Bytes) -> Result<(), SendError> {
        // Before it waits for room.
        self.check(&message)?;
        poll_fn(|cx| self.poll_room(cx)).await?;
        self.start(message)
    }

    /// Ready when another message can be started.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.sender.poll_ready(cx)
    }

    /// Starts sending one message, once there is room for it.
    pub(crate) fn start(&mut self, message: Bytes) -> Result<(), SendError> {
        self.check(&message)?;
        self.sender.start_send(message)
    }

    /// Ready when the system has all messages that were started.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.sender.poll_flush(cx)
    }

    /// Same as [`Connection::finish`].
    ///
    /// # Errors
    ///
    /// Same as [`Connection::finish`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`Connection::finish`].
    pub async fn finish(&mut self) -> Result<(), SendError> {
        poll_fn(|cx| self.poll_finish(cx)).await
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        ready!(self.sender.poll_flush(cx))?;
        if !self.ended {
            self.ended = true;
            self.sender.start_send(Bytes::new())?;
        }
        self.sender.poll_flush(cx)
    }

    fn check(&self, message: &Bytes) -> Result<(), SendError> {
        if self.ended {
            return Err(SendError::Finished);
        }
        check(message, self.max_message_size)
    }
}

/// Whether `message` can be sent at all.
pub(crate) fn check(message: &Bytes, limit: usize) -> Result<(), SendError> {
    match message.len() {
        0 => Err(SendError::Empty),
        length if length > limit => Err(SendError::TooLong { length, limit }),
        _ => Ok(()),
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RecvHalf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.shared.identity.id;
        formatter
            .debug_struct("RecvHalf")
            .field("id", &id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SendHalf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.shared.identity.id;
        formatter
            .debug_struct("SendHalf")
            .field("id", &id)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "futures")]
mod futures {
    use std::pin::Pin;

    use futures_core::Stream;
    use futures_sink::Sink;

    use super::*;

    impl Stream for RecvHalf {
        type Item = Result<Bytes, RecvError>;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.poll_recv(cx).map(Result::transpose)
        }
    }

    impl Sink<Bytes> for SendHalf {
        type Error = SendError;

        fn poll_ready(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Result<(), SendError>> {
            self.sender.poll_ready(cx)
        }

        fn start_send(mut self: Pin<&mut Self>, message: Bytes) -> Result<(), SendError> {
            self.start(message)
        }

        fn poll_flush(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Result<(), SendError>> {
            self.sender.poll_flush(cx)
        }

        /// Ends the conversation. See [`Connection::finish`].
        fn poll_close(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Result<(), SendError>> {
            self.poll_finish(cx)
        }
    }

    impl Stream for Connection {
        type Item = Result<Bytes, RecvError>;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            Pin::new(&mut self.receiver).poll_next(cx)
        }
    }

    impl Sink<Bytes> for Connection {
        type Error = SendError;

        fn poll_ready(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Result<(), SendError>> {
            Pin::new(&mut self.sender).poll_ready(cx)
        }

        fn start_send(mut self: Pin<&mut Self>, message: Bytes) -> Result<(), SendError> {
            Pin::new(&mut self.sender).start_send(message)
        }

        fn poll_flush(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Result<(), SendError>> {
            Pin::new(&mut self.sender).poll_flush(cx)
        }

        fn poll_close(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Result<(), SendError>> {
            Pin::new(&mut self.sender).poll_close(cx)
        }
    }
}
