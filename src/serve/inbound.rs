//! One client's requests: receiving them, reading ahead, and yielding after a turn.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;

use super::{
    budget::{ClientBudget, HeldBytes},
    failure::Failure,
    guard::Timer,
};
use crate::connection::{RecvEnd, RecvHalf};

/// The maximum number of requests that are read early to detect a disconnect. Most clients pipeline
/// fewer.
const EARLY_REQUESTS: usize = 16;

/// Reading early stops at this many bytes, which is one message of the default limit.
const EARLY_BYTES: usize = 64 * 1024;

/// The interval at which the system is asked whether the client has disconnected, once no more
/// requests can be read early. It costs one system call, and only while a handler runs this long.
const HANG_UP_CHECK: Duration = Duration::from_secs(1);

/// The requests of one client.
pub(super) struct Inbound {
    receiver: RecvHalf,
    is_closed: bool,
    /// Requests that were read early, before they could be answered.
    early: VecDeque<Message>,
    budget: Arc<ClientBudget>,
    /// Counts the bytes of the messages that the engine has received ahead.
    ahead: HeldBytes,
    /// Runs while the client is idle.
    idle_timeout: Timer,
    hang_up_check: Timer,
    /// Requests taken in this turn: since the task last yielded, or found no request.
    turn: u32,
}

/// A received request.
pub(super) struct Message {
    pub(super) bytes: Bytes,
    pub(super) held: HeldBytes,
}

/// The result of `Inbound::poll_next`.
pub(super) enum NextRequest {
    Ready(Message),
    NotYet,
    /// The client has ended the conversation or closed.
    End,
}

impl Inbound {
    pub(super) fn new(
        receiver: RecvHalf,
        idle_timeout: Option<Duration>,
        budget: Arc<ClientBudget>,
    ) -> Self {
        Self {
            receiver,
            is_closed: false,
            early: VecDeque::new(),
            ahead: budget.hold(),
            budget,
            idle_timeout: Timer::new(idle_timeout),
            hang_up_check: Timer::new(Some(HANG_UP_CHECK)),
            turn: 0,
        }
    }

    /// Returns whether to take the next request before replies are flushed.
    pub(super) fn expects_next(&self) -> bool {
        !self.early.is_empty() || (self.receiver.expects_more() && self.budget.may_hold_more())
    }

    /// Stops the client from sending more. Requests that were sent before are still received.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.receiver.close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Returns whether the task should yield before it takes the next request.
    pub(super) fn is_turn_over(&self) -> bool {
        self.turn >= self.receiver.engine.turn()
    }

    /// Begins a new turn, after the task has yielded.
    pub(super) fn begin_turn(&mut self) {
        self.turn = 0;
    }

    /// Takes the next request. `is_idle` says that no earlier one is in flight or has an unsent
    /// reply.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        is_idle: bool,
    ) -> Result<NextRequest, Failure> {
        let next = match self.early.pop_front() {
            Some(message) => NextRequest::Ready(message),
            None => self.read_next(cx, is_idle)?,
        };
        match next {
            NextRequest::Ready(_) => {
                self.turn += 1;
                self.idle_timeout.stop();
            }
            NextRequest::NotYet => self.turn = 0,
            NextRequest::End => {}
        }
        Ok(next)
    }

    /// An idle client is read even if the server holds too much: it holds nothing itself.
    fn read_next(&mut self, cx: &mut Context<'_>, is_idle: bool) -> Result<NextRequest, Failure> {
        if !is_idle && self.budget.poll_may_hold_more(cx).is_pending() {
            return Ok(NextRequest::NotYet);
        }
        self.poll_recv(cx)
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Result<NextRequest, Failure> {
        if self.budget.is_spent() {
            self.receiver.engine.stop_receiving_ahead();
        }
        Ok(match self.receiver.poll_recv(cx)? {
            Poll::Ready(Some(bytes)) => {
                let ahead = self.receiver.engine.received_ahead();
                self.ahead.resize(ahead + bytes.len());
                let held = self.ahead.split(bytes.len());
                NextRequest::Ready(Message { bytes, held })
            }
            Poll::Ready(None) => NextRequest::End,
            Poll::Pending => NextRequest::NotYet,
        })
    }

    /// Ready once the client has been idle for too long.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        self.idle_timeout.poll_expired(cx).map(Failure::IdleTimeout)
    }

    /// Ready once the client has disconnected. Called while the handler runs.
    pub(super) fn poll_disconnected(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        if let Err(failure) = ready!(self.poll_read_early(cx, EARLY_REQUESTS)) {
            return Poll::Ready(failure);
        }
        if self.receiver.end() == Some(RecvEnd::Closed) {
            return Poll::Ready(Failure::Disconnected);
        }
        // Reading can't detect a disconnect here: the client has sent more than may be read early,
        // the budget is spent, or nothing more will arrive.
        while self.hang_up_check.poll_expired(cx).is_ready() {
            self.hang_up_check.stop();
            if self.receiver.is_hung_up() {
                return Poll::Ready(Failure::Disconnected);
            }
        }
        Poll::Pending
    }

    /// Reads requests early. Ready once `most` of them or `EARLY_BYTES` wait, the budget is spent,
    /// or nothing more can be read.
    pub(super) fn poll_read_early(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<Result<(), Failure>> {
        while self.receiver.end().is_none()
            && self.early.len() < most
            && self.early_bytes() < EARLY_BYTES
            && self.budget.poll_may_hold_more(cx).is_ready()
        {
            match self.poll_recv(cx)? {
                NextRequest::Ready(message) => self.early.push_back(message),
                NextRequest::NotYet => return Poll::Pending,
                NextRequest::End => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    fn early_bytes(&self) -> usize {
        self.early.iter().map(|message| message.bytes.len()).sum()
    }
}
