//! The halves of a connection. Two tasks can use them at the same time.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tracing::Span;

#[cfg(doc)]
use super::Connection;
use super::{ConnectionOwner, Identity};
use crate::{
    debug::debug_fields,
    engine::{Channel, Link, Receive, Received, Transmit},
    error::{RecvError, SendError},
    peer::Peer,
    telemetry::record_peer,
    timer::Timer,
};

/// The receiving half of a connection, from [`Connection::into_split`]. The connection closes when
/// both halves are dropped. [`reunite`](Self::reunite) makes one connection of them again.
pub struct RecvHalf {
    /// `pub(crate)` for the questions that only [`serve`](crate::serve()) asks an engine.
    pub(crate) engine: Box<dyn Receive>,
    ended: Option<RecvEnd>,
    /// A message for the next `recv`, which was received to identify its sender.
    first: Option<Bytes>,
    /// Runs while nothing arrives.
    idle_timeout: Timer,
    /// Completes when the server shuts down, which closes receiving.
    shutdown: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    /// The span of the connection. `None` once the peer is recorded in it.
    span_without_peer: Option<Span>,
    shared: Arc<Shared>,
}

/// The sending half of a connection, from [`Connection::into_split`]. The connection closes when
/// both halves are dropped. [`RecvHalf::reunite`] makes one connection of them again.
pub struct SendHalf {
    sender: Box<dyn Transmit>,
    ended: bool,
    /// Runs while the other side does not read.
    write_timeout: Timer,
    shared: Arc<Shared>,
}

/// The way in which receiving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecvEnd {
    /// The other side sent an empty message. It may still be reading.
    HalfClosed,
    /// The other side has closed, or sent a message that can't be received.
    Closed,
}

/// The state that both halves share. Dropping it closes the connection.
struct Shared {
    /// `None` on a client.
    owner: Option<Arc<dyn ConnectionOwner>>,
    link: Arc<dyn Link>,
    identity: Arc<Identity>,
    max_message_size: usize,
}

impl Drop for Shared {
    /// Runs before `link` is dropped: at the limit, the next instance must exist before this one
    /// closes.
    fn drop(&mut self) {
        if let Some(owner) = &self.owner {
            owner.release(&self.link);
        }
    }
}

/// Creates the halves of a new connection.
pub(super) fn split(
    channel: Channel,
    owner: Option<Arc<dyn ConnectionOwner>>,
    id: u64,
    max_message_size: usize,
) -> (RecvHalf, SendHalf) {
    let Channel {
        receiver,
        sender,
        link,
    } = channel;
    let identity = Arc::new(Identity::new(id, &link));
    let shared = Arc::new(Shared {
        owner,
        link,
        identity,
        max_message_size,
    });
    let receiver = RecvHalf {
        engine: receiver,
        ended: None,
        first: None,
        idle_timeout: Timer::new(None),
        shutdown: None,
        span_without_peer: None,
        shared: Arc::clone(&shared),
    };
    let sender = SendHalf {
        sender,
        ended: false,
        write_timeout: Timer::new(None),
        shared,
    };
    (receiver, sender)
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

    /// Same as [`Connection::close_recv`].
    pub fn close(&mut self) {
        self.shutdown = None;
        self.engine.close();
    }

    /// Same as [`Connection::peer`].
    ///
    /// # Errors
    ///
    /// Same as [`Connection::peer`].
    pub fn peer(&self) -> io::Result<Peer> {
        self.shared.identity.peer()
    }

    /// Same as [`Connection::id`].
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.identity.id
    }

    /// Returns the length of the longest message that can be received, in bytes.
    #[must_use]
    pub fn max_message_size(&self) -> usize {
        self.shared.max_message_size
    }

    /// Whether `sender` is the other half of the same connection.
    pub(super) fn is_half_of(&self, sender: &SendHalf) -> bool {
        Arc::ptr_eq(&self.shared, &sender.shared)
    }

    /// Same as [`Connection::is_half_closed`].
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        self.ended == Some(RecvEnd::HalfClosed)
    }

    /// Returns how long [`recv`](Self::recv) waits for the next message: on a connection of
    /// [`serve_connections`](crate::serve_connections()) its
    /// [`idle_timeout`](crate::ServeConnections::idle_timeout) at first, else `None`.
    #[must_use]
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout.limit()
    }

    /// Sets how long [`recv`](Self::recv) waits for the next message before it fails with
    /// [`RecvError::TimedOut`]; `None` for no limit, 0 if it may not wait. The time starts over.
    ///
    /// Use this in a protocol whose clients may wait for something, such as a reply or an event,
    /// without being idle.
    pub fn set_idle_timeout(&mut self, time: impl Into<Option<Duration>>) {
        self.idle_timeout = Timer::new(time.into());
    }

    /// Closes the receiving side once `shutdown` completes.
    pub(crate) fn close_at(&mut self, shutdown: impl Future<Output = ()> + Send + Sync + 'static) {
        self.shutdown = Some(Box::pin(shutdown));
    }

    /// Receives a message and keeps it for the next `recv`. Returns whether there was one.
    pub(crate) async fn receive_first(&mut self) -> Result<bool, RecvError> {
        self.first = self.recv().await?;
        Ok(self.first.is_some())
    }

    /// Returns how receiving ended, if it has.
    pub(crate) fn end(&self) -> Option<RecvEnd> {
        self.ended
    }

    /// Same as [`Receive::expects_more`].
    pub(crate) fn expects_more(&self) -> bool {
        self.ended.is_none() && self.engine.expects_more()
    }

    /// Asks the system whether the other side has closed, even if messages from it can still be
    /// received.
    ///
    /// Code that waits in [`recv`](Self::recv) learns of a close by itself. Use this while nothing
    /// is received, or after the other side has ended the conversation.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        self.shared.link.is_hung_up()
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.shared.identity
    }

    /// Records the peer in `span` now or, if the peer is not known yet, once a message has been
    /// received.
    pub(crate) fn record_peer_in(&mut self, span: &Span) {
        if !span.is_disabled() {
            self.span_without_peer = Some(span.clone());
            self.record_peer();
        }
    }

    fn record_peer(&mut self) {
        let Some(span) = &self.span_without_peer else {
            return;
        };
        if let Ok(peer) = self.shared.identity.peer() {
            record_peer(span, &peer);
            self.span_without_peer = None;
        }
    }

    pub(crate) fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, RecvError>> {
        if self.first.is_some() {
            return Poll::Ready(Ok(self.first.take()));
        }
        if self.ended.is_some() {
            return Poll::Ready(Ok(None));
        }
        // Before the receive, so that a client that always has another message can't delay a
        // shutdown.
        if let Some(shutdown) = &mut self.shutdown {
            if shutdown.as_mut().poll(cx).is_ready() {
                self.close();
            }
        }
        let received = ready!(self.poll_in_time(cx));
        Poll::Ready(match received {
            Ok(Received::Message(message)) => {
                self.record_peer();
                Ok(Some(message))
            }
            Ok(Received::End) => {
                self.ended = Some(RecvEnd::HalfClosed);
                Ok(None)
            }
            Ok(Received::Closed) => {
                self.ended = Some(RecvEnd::Closed);
                Ok(None)
            }
            Err(error) => {
                self.ended = Some(RecvEnd::Closed);
                self.shared.identity.set_failed();
                Err(error)
            }
        })
    }

    /// Receives within the idle timeout.
    fn poll_in_time(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        let engine = &mut self.engine;
        let received = self.idle_timeout.poll_within(cx, |cx| engine.poll_recv(cx));
        received.map(|received| received.unwrap_or_else(|after| Err(RecvError::TimedOut { after })))
    }
}

impl SendHalf {
    /// Sets how long sending waits for the other side to read.
    pub(crate) fn set_write_timeout(&mut self, time: Option<Duration>) {
        self.write_timeout = Timer::new(time);
    }

    /// Same as [`Connection::peer`].
    ///
    /// # Errors
    ///
    /// Same as [`Connection::peer`].
    pub fn peer(&self) -> io::Result<Peer> {
        self.shared.identity.peer()
    }

    /// Same as [`Connection::id`].
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.identity.id
    }

    /// Returns the length of the longest message that can be sent, in bytes.
    #[must_use]
    pub fn max_message_size(&self) -> usize {
        self.shared.max_message_size
    }

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

    /// Starts sending one message. It is only guaranteed to be sent once `poll_flush` is ready.
    pub(crate) async fn feed(&mut self, message: Bytes) -> Result<(), SendError> {
        // Checked before waiting for room.
        self.check(&message)?;
        poll_fn(|cx| self.poll_room(cx)).await?;
        self.start(message)
    }

    /// Ready when another message can be started.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_in_time(cx, |sender, cx| sender.poll_ready(cx))
    }

    /// Starts sending one message. Called once `poll_room` is ready.
    pub(crate) fn start(&mut self, message: Bytes) -> Result<(), SendError> {
        self.check(&message)?;
        let started = self.sender.start_send(message);
        self.noted(started)
    }

    /// The number of messages that were started, and that the system has neither accepted nor
    /// refused.
    pub(crate) fn pending(&self) -> usize {
        self.sender.pending()
    }

    /// Ready when the system has accepted all messages that were started.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_in_time(cx, |sender, cx| sender.poll_flush(cx))
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

    pub(crate) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        ready!(self.poll_flush(cx))?;
        if !self.ended {
            self.ended = true;
            let started = self.sender.start_send(Bytes::new());
            self.noted(started)?;
        }
        self.poll_flush(cx)
    }

    /// Polls `poll_sent` within the write timeout, which begins anew with each message that the
    /// other side makes room for.
    fn poll_in_time(
        &mut self,
        cx: &mut Context<'_>,
        poll_sent: impl Fn(&mut dyn Transmit, &mut Context<'_>) -> Poll<Result<(), SendError>>,
    ) -> Poll<Result<(), SendError>> {
        let pending = self.sender.pending();
        let sender = &mut *self.sender;
        let mut sent = self
            .write_timeout
            .poll_within(cx, |cx| poll_sent(sender, cx));
        let is_over = matches!(sent, Poll::Ready(Ok(_)));
        if !is_over && self.sender.pending() < pending {
            self.write_timeout.stop();
            sent = self.write_timeout.poll_expired(cx).map(Err);
        }
        let sent = ready!(sent).unwrap_or_else(|after| Err(SendError::TimedOut { after }));
        Poll::Ready(self.noted(sent))
    }

    /// Notes that sending has failed, if it has.
    fn noted(&self, sent: Result<(), SendError>) -> Result<(), SendError> {
        if sent.is_err() {
            self.shared.identity.set_failed();
        }
        sent
    }

    fn check(&self, message: &Bytes) -> Result<(), SendError> {
        if self.ended {
            return Err(SendError::Finished);
        }
        check(message, self.max_message_size())
    }
}

/// Checks that `message` is neither empty nor longer than `limit`.
pub(crate) fn check(message: &Bytes, limit: usize) -> Result<(), SendError> {
    match message.len() {
        0 => Err(SendError::Empty),
        length if length > limit => Err(SendError::TooLong { length, limit }),
        _ => Ok(()),
    }
}

debug_fields! { RecvHalf, |half| id = half.id() }

debug_fields! { SendHalf, |half| id = half.id() }
