//! One client's two-way message channel, and its halves.

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

/// One client's two-way message channel.
///
/// Dropping it closes the pipe for the client, which can still read what was sent before, and makes
/// its instance free for the next one.
pub struct Connection {
    receiver: RecvHalf,
    sender: SendHalf,
}

/// The receiving half of a connection, from [`Connection::into_split`]. The pipe is closed when both
/// halves are dropped.
pub struct RecvHalf {
    receiver: Box<dyn Receive>,
    ended: Option<End>,
    /// The connection's span, while it does not say who is on the other side.
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
    /// By an empty message: the other side may still be reading.
    Said,
    /// The other side is gone, or sent what can't be received.
    Closed,
}

/// What both halves hold. The connection is closed when it is dropped.
struct Shared {
    /// Those that the connection is one of; `None` on a client.
    instances: Option<Arc<Instances>>,
    link: Arc<dyn Link>,
    identity: Arc<Identity>,
}

impl Drop for Shared {
    /// Before `link` is dropped: at the limit the next instance has to exist before this one closes.
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

    /// Receives the next message, whole and alone, or `None` when the other side has closed or has
    /// ended the conversation with an empty message.
    ///
    /// # Errors
    ///
    /// [`RecvError::TooLong`] for a message over `max_message_size`, [`RecvError::Incomplete`] for one
    /// that the other side left in the middle of; nothing of it is delivered. After these and any other
    /// error nothing more can be received.
    ///
    /// Not detected: a program on Windows that cancels a write of which a part was already read, and then
    /// writes another message, has sent that part and that message as one.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped, no message is lost, also not a half-read one.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, RecvError> {
        self.receiver.recv().await
    }

    /// Sends one message. It is in the system's hands when this returns; whether the other side has
    /// read it is not known.
    ///
    /// Waits while the pipe is full and the other side does not read.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLong`], [`SendError::Empty`] and, after [`finish`](Self::finish),
    /// [`SendError::Finished`], before anything is sent; [`SendError::Closed`] when the other side is
    /// gone.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: if the future is dropped, the message may or may not be sent, but whole or
    /// not at all, and before any later one.
    pub async fn send(&mut self, message: impl Into<Bytes>) -> Result<(), SendError> {
        self.sender.send(message).await
    }

    /// Ends the conversation from this side: sends the empty message, after which the other side
    /// receives nothing more. Replies that are still to come can be received.
    ///
    /// # Errors
    ///
    /// [`SendError::Closed`] when the other side is gone.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it can be called again.
    pub async fn finish(&mut self) -> Result<(), SendError> {
        self.sender.finish().await
    }

    /// Splits the connection so that one task can receive while another one sends.
    #[must_use]
    pub fn into_split(self) -> (RecvHalf, SendHalf) {
        (self.receiver, self.sender)
    }

    /// Who is on the other side: asked of the system the first time, remembered from then on.
    ///
    /// # Errors
    ///
    /// The system's. On Windows the client's user is known only once a message of it has been
    /// received (*ImpersonateNamedPipeClient*); before that this fails.
    pub fn peer(&self) -> io::Result<Peer> {
        self.identity().peer()
    }

    /// The number of this connection: 1 for a listener's first, then counting up; 0 on a client.
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

    /// Records in the connection's span who is on the other side: now, or once a message has been received
    /// if that is not known before.
    pub(crate) fn record_peer(&mut self, span: &Span) {
        if !span.is_disabled() {
            self.receiver.anonymous = Some(span.clone());
            self.receiver.record_peer();
        }
    }
}

impl RecvHalf {
    /// As [`Connection::recv`].
    ///
    /// # Errors
    ///
    /// As [`Connection::recv`].
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

    /// Whether the other side is gone. What it sent before may still be there to be received.
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
    /// As [`Connection::send`].
    ///
    /// # Errors
    ///
    /// As [`Connection::send`].
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe, as [`Connection::send`].
    pub async fn send(&mut self, message: impl Into<Bytes>) -> Result<(), SendError> {
        self.feed(message.into()).await?;
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Begins to send one message, which is sure to be sent only once `poll_flush` is ready.
    pub(crate) async fn feed(&mut self, message: Bytes) -> Result<(), SendError> {
        self.check(&message)?;
        poll_fn(|cx| self.sender.poll_ready(cx)).await?;
        self.sender.start_send(message)
    }

    /// Ready when all messages that were begun are in the system's hands.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.sender.poll_flush(cx)
    }

    /// As [`Connection::finish`].
    ///
    /// # Errors
    ///
    /// As [`Connection::finish`].
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
        let (length, limit) = (message.len(), self.max_message_size);
        if self.ended {
            Err(SendError::Finished)
        } else if length == 0 {
            Err(SendError::Empty)
        } else if length > limit {
            Err(SendError::TooLong { length, limit })
        } else {
            Ok(())
        }
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
            self.check(&message)?;
            self.sender.start_send(message)
        }

        fn poll_flush(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Result<(), SendError>> {
            self.sender.poll_flush(cx)
        }

        /// Ends the conversation, as [`Connection::finish`] does.
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
