//! One client's requests: turns, and those that are read early.

use std::{
    collections::VecDeque,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;

use super::{
    budget::{Held, Share},
    failure::Failure,
    guard::Timer,
};
use crate::connection::{RecvEnd, RecvHalf};

/// How many requests are read early to detect a disconnect: more than most clients pipeline.
const EARLY_REQUESTS: usize = 16;

/// Reading early stops at this many bytes: one message of the default limit.
const EARLY_BYTES: usize = 64 * 1024;

/// How often the system is asked whether the client has disconnected once nothing more is read early. It costs
/// one system call, and only while a handler runs this long.
const HANG_UP_CHECK: Duration = Duration::from_secs(1);

/// The requests of one client.
pub(super) struct Inbound {
    receiver: RecvHalf,
    /// Requests that were read before they could be answered.
    early: VecDeque<Message>,
    share: Share,
    /// Runs while the client is waited for.
    idle_timeout: Timer,
    hang_up_check: Timer,
    /// How many requests were taken since other tasks last ran.
    turn: u32,
}

/// A request as it was received.
pub(super) struct Message {
    pub(super) bytes: Bytes,
    pub(super) held: Held,
}

/// What came of looking for the next request.
pub(super) enum NextRequest {
    Ready(Message),
    NotYet,
    /// The conversation is over.
    End,
}

impl Inbound {
    pub(super) fn new(receiver: RecvHalf, idle_timeout: Option<Duration>, share: Share) -> Self {
        Self {
            receiver,
            early: VecDeque::new(),
            share,
            idle_timeout: Timer::new(idle_timeout),
            hang_up_check: Timer::new(Some(HANG_UP_CHECK)),
            turn: 0,
        }
    }

    /// Whether to take the next request before replies are flushed.
    pub(super) fn expects_next(&self) -> bool {
        !self.early.is_empty() || (self.receiver.expects_more() && self.share.is_free())
    }

    /// Whether other tasks should run before the next request is taken.
    pub(super) fn is_turn_over(&self) -> bool {
        self.turn >= self.receiver.turn()
    }

    /// Other tasks have run.
    pub(super) fn begin_turn(&mut self) {
        self.turn = 0;
    }

    /// Takes the next request. `is_alone`: no earlier one is in flight or has an unsent reply.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        is_alone: bool,
    ) -> Result<NextRequest, Failure> {
        let next = match self.early.pop_front() {
            Some(message) => NextRequest::Ready(message),
            None => self.read_next(cx, is_alone)?,
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

    fn read_next(&mut self, cx: &mut Context<'_>, is_alone: bool) -> Result<NextRequest, Failure> {
        if is_alone {
            // The message of this turn, if there was one, is answered.
            self.share.end_turn();
        }
        if self.share.poll_admit(cx, is_alone).is_pending() {
            return Ok(NextRequest::NotYet);
        }
        let next = self.poll_recv(cx)?;
        if let NextRequest::NotYet = next {
            self.share.end_turn();
        }
        Ok(next)
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Result<NextRequest, Failure> {
        Ok(match self.receiver.poll_recv(cx)? {
            Poll::Ready(Some(bytes)) => NextRequest::Ready(Message {
                held: self.share.hold(bytes.len()),
                bytes,
            }),
            Poll::Ready(None) => NextRequest::End,
            Poll::Pending => NextRequest::NotYet,
        })
    }

    /// Ready once the client has sent nothing for too long. The time that it waits for the budget does not count.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        if self.share.is_waiting() {
            self.idle_timeout.stop();
            return Poll::Pending;
        }
        self.idle_timeout.poll_expired(cx).map(Failure::IdleTimeout)
    }

    /// Watches for a disconnect while the handler runs.
    pub(super) fn poll_disconnected(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        if let Err(failure) = ready!(self.poll_read_early(cx, EARLY_REQUESTS)) {
            return Poll::Ready(failure);
        }
        if self.receiver.end() == Some(RecvEnd::Closed) {
            return Poll::Ready(Failure::Disconnected);
        }
        // Either it has sent more than is read early or nothing more will arrive: reading can't detect it.
        while self.hang_up_check.poll_expired(cx).is_ready() {
            self.hang_up_check.stop();
            if self.receiver.is_hung_up() {
                return Poll::Ready(Failure::Disconnected);
            }
        }
        Poll::Pending
    }

    /// Reads requests early. Ready once `most` of them, or `EARLY_BYTES`, wait, or nothing more can be read.
    pub(super) fn poll_read_early(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<Result<(), Failure>> {
        while self.receiver.end().is_none()
            && self.early.len() < most
            && self.early_bytes() < EARLY_BYTES
            && self.share.is_free()
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
