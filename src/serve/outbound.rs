//! One client's replies: batching, flushing and counting.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tracing::trace;

use super::{
    budget::{ClientBudget, HeldBytes},
    failure::Failure,
};
use crate::{connection::SendHalf, error::SendError, telemetry::Stats};

/// Replies are flushed once they have this many bytes. By default a socket accepts less than this
/// at once, so the limit does not make the calls that send replies smaller.
const BATCH_BYTES: usize = 256 * 1024;

/// The replies to one client. The engine may send several together.
pub(super) struct Outbound {
    sender: SendHalf,
    /// Replies that were fed to the engine and not yet flushed.
    unsent: u64,
    /// Counts the bytes of the unsent replies.
    held: Option<HeldBytes>,
    budget: Arc<ClientBudget>,
    sent: u64,
    stats: Stats,
}

impl Outbound {
    pub(super) fn new(
        mut sender: SendHalf,
        write_timeout: Option<Duration>,
        budget: Arc<ClientBudget>,
        stats: Stats,
    ) -> Self {
        sender.set_write_timeout(write_timeout);
        Self {
            sender,
            unsent: 0,
            held: None,
            budget,
            sent: 0,
            stats,
        }
    }

    /// The number of replies sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns whether the replies must be flushed before another request is answered.
    pub(super) fn is_full(&self) -> bool {
        self.held
            .as_ref()
            .is_some_and(|held| held.bytes() >= BATCH_BYTES)
    }

    /// Ready when another reply can be fed.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let room = self.sender.poll_room(cx);
        self.apply_budget(room, cx)
    }

    /// Feeds a reply to the engine. Called once `poll_room` is ready.
    pub(super) fn feed(&mut self, reply: Bytes, held: HeldBytes) -> Result<(), Failure> {
        trace!(bytes = reply.len(), "reply");
        self.sender.start(reply).map_err(|error| match error {
            SendError::Empty => Failure::EmptyReply,
            error @ SendError::TooLong { .. } => Failure::Reply(error),
            error => Failure::Send(error),
        })?;
        self.unsent += 1;
        match &mut self.held {
            Some(all) => all.absorb(held),
            None => self.held = Some(held),
        }
        Ok(())
    }

    /// Ready once all replies are sent.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.unsent > 0 {
            let flushed = self.sender.poll_flush(cx);
            ready!(self.apply_budget(flushed, cx))?;
            let replies = mem::take(&mut self.unsent);
            let bytes = self.held.take().map_or(0, |held| held.bytes());
            self.sent += replies;
            self.stats.count_replies(replies, bytes as u64);
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the client that its requests without a reply were not taken, by ending the
    /// conversation. Ready once it is told.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let finished = self.sender.poll_finish(cx);
        self.apply_budget(finished, cx)
    }

    /// Applies the budget to the result of polling the sender.
    fn apply_budget(
        &mut self,
        sent: Poll<Result<(), SendError>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failure>> {
        if sent.is_pending() {
            if let Poll::Ready(limit) = self.budget.poll_unread(cx) {
                return Poll::Ready(Err(Failure::BufferedBytes(limit)));
            }
            return Poll::Pending;
        }
        self.budget.read();
        sent.map_err(|error| match error {
            SendError::TimedOut { after } => Failure::WriteTimeout(after),
            error => Failure::Send(error),
        })
    }
}
