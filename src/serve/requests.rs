//! One client's requests: turns and read-ahead.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    task::yield_now,
    time::{Sleep, sleep},
};

use super::{budget::Share, failure::Failure, pace::Pace, timeout::within};
use crate::{
    connection::{End, RecvHalf},
    error::RecvError,
};

/// How many available requests of one client are answered before it yields to other clients.
///
/// On Linux, as many as one call receives or sends. On Windows a call moves one message, so a longer turn would save
/// nothing. It would make others wait: a thread that takes completions finishes one client's turn before the next.
const TURN: u32 = if cfg!(windows) { 4 } else { 16 };

/// How many requests are read ahead to detect a disconnect: more than most clients pipeline.
const READ_AHEAD: usize = 16;

/// Reading ahead stops at this many bytes: one message of the default limit.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// How often the system is asked whether the client has disconnected once nothing more is read ahead. It costs
/// one system call, and only while a handler runs this long.
const HANG_UP_CHECK: Duration = Duration::from_secs(1);

/// The requests of one client.
pub(super) struct Requests {
    receiver: RecvHalf,
    idle_timeout: Option<Duration>,
    /// Those received while a handler was running.
    ahead: VecDeque<Bytes>,
    ahead_bytes: usize,
    /// The bytes of the request being answered and of unsent replies.
    answering: usize,
    /// The bytes of the requests in flight, if there may be several.
    in_flight: usize,
    share: Share,
    /// Completes once the server is below the limit again.
    freed: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// When to ask whether the client has disconnected.
    next_check: Option<Pin<Box<Sleep>>>,
    /// How many were taken since others last had their turn.
    turn: u32,
    pace: Pace,
}

impl Requests {
    pub(super) fn new(receiver: RecvHalf, idle_timeout: Option<Duration>, share: Share) -> Self {
        Self {
            receiver,
            idle_timeout,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            answering: 0,
            in_flight: 0,
            share,
            freed: None,
            next_check: None,
            turn: 0,
            pace: Pace::default(),
        }
    }

    /// Sets the bytes of the request being answered and of unsent replies.
    pub(super) fn set_answering(&mut self, bytes: usize) {
        self.answering = bytes;
        self.count();
    }

    /// Sets the bytes of the requests in flight, and of replies that wait for an earlier one.
    pub(super) fn set_in_flight(&mut self, bytes: usize) {
        self.in_flight = bytes;
        self.count();
    }

    fn count(&mut self) {
        self.share
            .set(self.ahead_bytes + self.answering + self.in_flight);
    }

    /// Same as `at_hand`, but a client that waits for its reply is not asked.
    pub(super) async fn at_hand_before_reply(&mut self) -> Result<Poll<Option<Bytes>>, Failure> {
        if self.ahead.is_empty() && !self.pace.may_send_ahead() {
            return Ok(Poll::Pending);
        }
        self.at_hand().await
    }

    /// The next request if it is available and this client's turn is not over. Ready with `None` at the end.
    pub(super) async fn at_hand(&mut self) -> Result<Poll<Option<Bytes>>, Failure> {
        if self.turn == TURN || (self.ahead.is_empty() && !self.share.is_free()) {
            return Ok(Poll::Pending);
        }
        let received = poll_fn(|cx| Poll::Ready(self.poll_next(cx))).await;
        self.pace.looked_ahead(received.is_ready());
        if received.is_ready() {
            self.turn += 1;
        }
        Ok(received?)
    }

    /// Waits for the next request, yielding to other clients if the turn is over. `None` at the end, or when the
    /// server shuts down. All replies must have been flushed.
    pub(super) async fn wait(
        &mut self,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<Bytes>, Failure> {
        self.set_answering(0);
        self.share.end_turn();
        self.end_turn().await;
        let gave_way = self.pace.gives_way();
        if gave_way {
            give_way().await;
        }
        let mut has_waited = false;
        let idle_timeout = self.idle_timeout;
        loop {
            // Time spent in the queue does not count as idle time.
            if self.ahead.is_empty() && !self.share.is_free() {
                let mut admitted = pin!(self.share.admit());
                let shuts_down = poll_fn(|cx| match admitted.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(false),
                    Poll::Pending => shutdown.as_mut().poll(cx).map(|()| true),
                });
                if shuts_down.await {
                    return Ok(None);
                }
                has_waited = true;
            }
            let mut woken = false;
            let mut received = poll_fn(|cx| {
                if woken && self.ahead.is_empty() && !self.share.may_read() {
                    return Poll::Ready(None);
                }
                woken = true;
                // The request first: on a busy connection the rest is never polled.
                if let Poll::Ready(received) = self.poll_next(cx) {
                    return Poll::Ready(Some(received));
                }
                has_waited = true;
                self.share.end_turn();
                shutdown.as_mut().poll(cx).map(|()| Some(Ok(None)))
            });
            match within(idle_timeout, &mut received).await {
                Ok(Some(received)) => {
                    self.pace.asked(gave_way, !has_waited);
                    self.turn = if gave_way || has_waited {
                        0
                    } else {
                        self.turn + 1
                    };
                    return Ok(received?);
                }
                // A message has arrived but can't be read yet.
                Ok(None) => {}
                Err(time) => return Err(Failure::IdleTimeout(time)),
            }
        }
    }

    /// Receives one request while replies can't be sent: the client may be sending it, and read them only then.
    pub(super) fn read_one_ahead(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        if self.ahead.is_empty() && self.receiver.end().is_none() && self.share.is_free() {
            if let Poll::Ready(received) = self.receiver.poll_recv(cx) {
                if let Some(message) = received? {
                    self.keep(message);
                }
            }
        }
        Ok(())
    }

    /// Keeps a request that was received ahead.
    fn keep(&mut self, message: Bytes) {
        self.ahead_bytes += message.len();
        self.ahead.push_back(message);
        self.count();
    }

    /// Yields to other clients if this client's turn is over.
    pub(super) async fn end_turn(&mut self) {
        if self.turn == TURN {
            yield_now().await;
            self.turn = 0;
        }
    }

    /// The next request while others are in flight, or a disconnect if it is `watching` for one. If not
    /// `reading`, no request is taken.
    pub(super) fn poll_beside(
        &mut self,
        cx: &mut Context<'_>,
        reading: bool,
        watching: bool,
    ) -> Poll<Result<Option<Bytes>, Failure>> {
        let polled = if reading && self.poll_may_read(cx).is_ready() {
            // Reading also detects a disconnect.
            self.poll_next(cx).map_err(Failure::from)
        } else if watching {
            self.poll_gone(cx).map(Err)
        } else {
            Poll::Pending
        };
        match polled {
            Poll::Ready(_) => {
                self.turn += 1;
                self.pace.sent_ahead();
            }
            Poll::Pending => self.turn = 0,
        }
        polled
    }

    /// Ready if the next request may be read while others are in flight. A client that has a request in flight
    /// never waits for its turn at the limit: it could keep all the others waiting for that request.
    fn poll_may_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.ahead.is_empty() && !self.share.is_free() {
            let share = &self.share;
            let freed = self.freed.get_or_insert_with(|| Box::pin(share.freed()));
            ready!(freed.as_mut().poll(cx));
            self.freed = None;
        }
        Poll::Ready(())
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, RecvError>> {
        match self.ahead.pop_front() {
            Some(message) => {
                self.ahead_bytes -= message.len();
                Poll::Ready(Ok(Some(message)))
            }
            None => self.receiver.poll_recv(cx),
        }
    }

    /// Watches for a disconnect while the handler runs.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        while self.receiver.end().is_none()
            && self.ahead.len() < READ_AHEAD
            && self.ahead_bytes < READ_AHEAD_BYTES
            && self.share.is_free()
        {
            match self.receiver.poll_recv(cx) {
                Poll::Ready(Ok(Some(message))) => self.keep(message),
                Poll::Ready(Ok(None)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.receiver.end() == Some(End::Closed) {
            return Poll::Ready(Failure::Disconnected);
        }
        // Either it has sent more than is read ahead or nothing more will arrive: reading can't detect it.
        let sleep = || Box::pin(sleep(HANG_UP_CHECK));
        while self
            .next_check
            .get_or_insert_with(sleep)
            .as_mut()
            .poll(cx)
            .is_ready()
        {
            self.next_check = None;
            if self.receiver.is_hung_up() {
                return Poll::Ready(Failure::Disconnected);
            }
        }
        Poll::Pending
    }
}

/// Lets other tasks run. Unlike with `yield_now`, the runtime does not poll for I/O first. It may wake an idle worker.
async fn give_way() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
