//! A client's two-way message channel.

use std::{io, sync::Arc};

use bytes::Bytes;

use crate::{
    debug::debug_fields,
    engine::{Channel, Link},
    error::{RecvError, SendError},
    peer::Peer,
};

pub(crate) use self::{
    halves::{RecvEnd, check},
    identity::{AnySession, AnyState, Identity},
};
pub use self::{
    halves::{RecvHalf, SendHalf},
    reunite::ReuniteError,
};

#[cfg(feature = "futures")]
mod futures;
mod halves;
mod identity;
mod reunite;
#[cfg(test)]
mod tests;

/// The owner of a connection, which is told when it closes.
pub(crate) trait ConnectionOwner: Send + Sync {
    /// Called when a connection closes, while its `link` is still open.
    fn release(&self, link: &Arc<dyn Link>);
}

/// A client's two-way message channel.
///
/// Dropping the connection closes it and frees its instance for the next client. The other side can
/// still read messages that were sent before.
///
/// There is no `AsFd` or `AsHandle`, neither here nor on a listener or a client. A read, a write or
/// an option set beside the connection would break its guarantees. On Windows, foreign overlapped
/// I/O would complete to the port of this library, which takes each completion for one of its own
/// operations. A connection in memory has no descriptor, and a listener on Linux replaces its
/// socket if the file is removed. [`os`](crate::os) has what a descriptor is usually needed for.
pub struct Connection {
    pub(crate) receiver: RecvHalf,
    pub(crate) sender: SendHalf,
}

impl Connection {
    pub(crate) fn new(
        channel: Channel,
        owner: Option<Arc<dyn ConnectionOwner>>,
        id: u64,
        max_message_size: usize,
    ) -> Self {
        let (receiver, sender) = halves::split(channel, owner, id, max_message_size);
        Self { receiver, sender }
    }

    /// Receives the next message, whole and alone. Returns `None` once the other side has closed,
    /// or has ended the conversation with an empty message. On a connection of
    /// [`serve_connections`](crate::serve_connections()), a shutdown ends receiving as well, after
    /// the messages that were sent before it.
    ///
    /// # Errors
    ///
    /// Returns [`RecvError::TooLong`] for a message longer than `max_message_size`, and
    /// [`RecvError::Incomplete`] if the other side closed in the middle of a message; no part of it
    /// is delivered. In [`serve_connections`](crate::serve_connections), returns
    /// [`RecvError::TimedOut`] if nothing arrives for the
    /// [`idle_timeout`](crate::ServeConnections::idle_timeout). After any error nothing more can be
    /// received.
    ///
    /// One case is not detected: if a program on Windows cancels a write that was partly read, and
    /// then writes another message, the part and the new message arrive as one message.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped, no message is lost, not even a partly read one.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, RecvError> {
        self.receiver.recv().await
    }

    /// Sends one message. When this returns, the system has accepted the message. The other side
    /// may not have read it yet.
    ///
    /// Waits for the other side to read while the pipe is full.
    ///
    /// # Errors
    ///
    /// Returns [`SendError::TooLong`], [`SendError::Empty`] or, after [`finish`](Self::finish),
    /// [`SendError::Finished`] before anything is sent. Returns [`SendError::Closed`] if the other
    /// side has closed. In [`serve_connections`](crate::serve_connections), returns
    /// [`SendError::TimedOut`] if the client reads nothing for the
    /// [`write_timeout`](crate::ServeConnections::write_timeout).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: if the future is dropped, the message may or may not be sent. It is never
    /// sent in part, and never after a later message.
    pub async fn send(&mut self, message: impl Into<Bytes>) -> Result<(), SendError> {
        self.sender.send(message).await
    }

    /// Ends the conversation from this side by sending an empty message. No more messages can be
    /// sent. Outstanding replies can still be received.
    ///
    /// # Errors
    ///
    /// Returns [`SendError::Closed`] if the other side has closed, and [`SendError::TimedOut`] as
    /// [`send`](Self::send) does.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it can be called again.
    pub async fn finish(&mut self) -> Result<(), SendError> {
        self.sender.finish().await
    }

    /// Stops the other side from sending more, for a shutdown that loses nothing:
    /// [`recv`](Self::recv) returns the messages that were sent before, and then `None`.
    ///
    /// On Linux, sending fails on the other side from now on (shutdown(2), `SHUT_RD`), so it knows
    /// which messages were not received. Windows can't stop it: `recv` returns the messages that are
    /// in the pipe when it is next called, and leaves later ones unread. Call
    /// [`finish`](Self::finish) last: it tells a client that requests without a reply were not
    /// taken.
    ///
    /// At a shutdown, [`serve_connections`](crate::serve_connections()) does this by itself.
    pub fn close_recv(&mut self) {
        self.receiver.close();
    }

    /// Returns whether the other side has ended the conversation with an empty message, as
    /// [`finish`](Self::finish) does, and may still be reading. Returns `false` until
    /// [`recv`](Self::recv) has returned `None`, and if the other side has closed.
    ///
    /// On Linux, a close that follows the empty message at once may hide it.
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        self.receiver.is_half_closed()
    }

    /// Splits the connection, so that one task can receive while another one sends.
    /// [`RecvHalf::reunite`] undoes this.
    #[must_use]
    pub fn into_split(self) -> (RecvHalf, SendHalf) {
        (self.receiver, self.sender)
    }

    /// Returns the process and the user on the other side. The system is asked once and the answer
    /// is cached.
    ///
    /// # Errors
    ///
    /// Returns the system's error. On Windows the client's user is unknown, and this fails, until a
    /// message from it has been received (*ImpersonateNamedPipeClient*).
    pub fn peer(&self) -> io::Result<Peer> {
        self.identity().peer()
    }

    /// Returns the number of this connection. The connections of a listener are counted from 1; a
    /// client's connection has the number 0.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.identity().id
    }

    /// Returns the length of the longest message in bytes, in both directions.
    #[must_use]
    pub fn max_message_size(&self) -> usize {
        self.sender.max_message_size()
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        self.receiver.identity()
    }
}

debug_fields! { Connection, |connection| id = connection.id() }
