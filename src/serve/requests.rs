//! One client's requests: when its turn is over, and what came in early.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::task::yield_now;

use super::{failure::Failure, timeout::within};
use crate::connection::{End, RecvHalf};

/// How many requests that are there already are answered before other clients have their turn.
const TURN: u32 = 16;

/// The requests of one client.
pub(super) struct Requests {
    receiver: RecvHalf,
    idle_timeout: Option<Duration>,
    /// One that came in while the handler was running.
    early: Option<Bytes>,
    /// How many were taken since this client had to be waited for.
    turn: u32,
}

impl Requests {
    pub(super) fn new(receiver: RecvHalf, idle_timeout: Option<Duration>) -> Self {
        Self {
            receiver,
            idle_timeout,
            early: None,
            turn: 0,
        }
    }

    /// The next request if it is there and this client's turn is not over. Ready with `None` when there
    /// will be none.
    pub(super) async fn at_hand(&mut self) -> Result<Poll<Option<Bytes>>, Failure> {
        if let Some(early) = self.early.take() {
            return Ok(Poll::Ready(Some(early)));
        }
        if self.turn == TURN {
            return Ok(Poll::Pending);
        }
        let receiver = &mut self.receiver;
        match poll_fn(|cx| Poll::Ready(receiver.poll_recv(cx))).await {
            Poll::Ready(received) => {
                self.turn += 1;
                Ok(Poll::Ready(received?))
            }
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Waits for the next request, and lets other clients go first if the turn is over. `None` when there
    /// will be none, or the server shuts down.
    pub(super) async fn wait(
        &mut self,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<Bytes>, Failure> {
        if self.turn == TURN {
            yield_now().await;
        }
        self.turn = 0;
        let receiver = &mut self.receiver;
        let received = poll_fn(|cx| {
            // The request first: on a busy connection the rest is never looked at.
            if let Poll::Ready(received) = receiver.poll_recv(cx) {
                return Poll::Ready(received);
            }
            shutdown.as_mut().poll(cx).map(|()| Ok(None))
        });
        match within(self.idle_timeout, received).await {
            Ok(received) => Ok(received?),
            Err(time) => Err(Failure::IdleTimeout(time)),
        }
    }

    /// Watches for the client's disconnect while the handler runs. Ready when there is nothing left to watch:
    /// the client has ended the conversation and may still be reading, or the next request has come in.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.early.is_some() {
            return Poll::Ready(Ok(()));
        }
        self.receiver.poll_recv(cx).map(|received| match received {
            Ok(Some(message)) => {
                self.early = Some(message);
                Ok(())
            }
            Ok(None) if self.receiver.end() == Some(End::Said) => Ok(()),
            Ok(None) => Err(Failure::Disconnected),
            Err(error) => Err(error.into()),
        })
    }
}
