//! One connection of a shared client, from opening it to closing it.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    task::coop,
    time::{Sleep, sleep},
};
use tracing::debug;

use super::pool::{Pool, Request};
use crate::{
    client::Client,
    connection::{RecvHalf, SendHalf},
    error::{CallError, CallFailure, Chain, ConnectError, RecvError, SendError},
};

/// The task of an open lane. Dropping it, as a runtime that shuts down does, fails what was taken.
pub(super) struct Driver {
    pool: Arc<Pool>,
    lane: usize,
    /// The requests that the engine has taken and the server has not answered, in order. Those that were
    /// given up stay here: their replies still arrive.
    taken: VecDeque<Request>,
    /// How many were taken since the engine was last flushed. At most these are not sent.
    unflushed: usize,
    /// Whether sending failed, so that the last request taken is certainly not sent.
    last_is_unsent: bool,
    has_replied: bool,
    /// Runs while the first request in `taken` is given up.
    stalled: Option<Pin<Box<Sleep>>>,
    has_ended: bool,
}

/// How a lane ended.
#[derive(Debug)]
pub(super) enum End {
    /// Nobody waits for it any more: the client was shut down or dropped, or the calls were.
    Unneeded,
    /// It could not be opened. Unless it has waited for the server, calls can use another lane.
    NotConnected {
        error: Arc<ConnectError>,
        waited: bool,
    },
    /// The connection broke, or was closed because it can no longer be used.
    Broken {
        failure: CallFailure,
        /// Whether the first request would break the next connection as well.
        is_final: bool,
    },
    OutOfStep,
    /// The task was dropped.
    Aborted,
}

impl End {
    /// Whether requests that were sent are lost.
    pub(super) fn is_break(&self) -> bool {
        matches!(self, Self::Broken { .. })
    }

    /// Whether to pause before the lane is opened again.
    pub(super) fn is_failure(&self) -> bool {
        !matches!(self, Self::Unneeded | Self::Aborted)
    }

    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Broken { is_final: true, .. })
    }

    pub(super) fn failure(&self) -> CallFailure {
        match self {
            Self::Unneeded => CallFailure::ShutDown,
            Self::NotConnected { error, .. } => CallFailure::Connect(Arc::clone(error)),
            Self::Broken { failure, .. } => failure.clone(),
            Self::OutOfStep => CallFailure::OutOfStep,
            Self::Aborted => CallFailure::Aborted,
        }
    }

    fn broken(error: impl Into<CallError>) -> Self {
        let error = error.into();
        // The first reply is the one that is too long, and would be again.
        let is_final = matches!(error, CallError::Recv(RecvError::TooLong { .. }));
        Self::Broken {
            failure: CallFailure::Connection(Arc::new(error)),
            is_final,
        }
    }
}

impl Driver {
    pub(super) fn new(pool: Arc<Pool>, lane: usize) -> Self {
        Self {
            pool,
            lane,
            taken: VecDeque::new(),
            unflushed: 0,
            last_is_unsent: false,
            has_replied: false,
            stalled: None,
            has_ended: false,
        }
    }

    /// Opens the lane, unless `client` is its connection, and drives it until it ends.
    pub(super) async fn run(mut self, client: Option<Client>) {
        let end = match self.connect(client).await {
            // The connection is closed when this returns, so that its instance is free for the next one.
            Ok(client) => self.exchange(client).await,
            Err(end) => end,
        };
        self.end(&end);
    }

    async fn connect(&mut self, client: Option<Client>) -> Result<Client, End> {
        if let Some(client) = client {
            return Ok(client);
        }
        let mut connecting = pin!(self.pool.connect(self.lane));
        let connected = poll_fn(|cx| match self.pool.poll_unneeded(self.lane, cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => connecting.as_mut().poll(cx).map(Some),
        });
        match connected.await {
            None => Err(End::Unneeded),
            Some((Ok(client), _)) => {
                self.pool.opened(self.lane);
                Ok(client)
            }
            Some((Err(error), waited)) => {
                let error = Arc::new(error);
                Err(End::NotConnected { error, waited })
            }
        }
    }

    async fn exchange(&mut self, client: Client) -> End {
        let (mut receiver, mut sender) = client.into_split();
        poll_fn(|cx| {
            // Replies first: a connection that the server has closed takes no request, and a message that
            // arrives before a request was sent is not its reply.
            if let Poll::Ready(end) = self.poll_replies(&mut receiver, cx) {
                return Poll::Ready(end);
            }
            if let Poll::Ready(end) = self.poll_requests(&mut sender, cx) {
                return Poll::Ready(end);
            }
            self.poll_stalled(cx)
        })
        .await
    }

    fn poll_replies(&mut self, receiver: &mut RecvHalf, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let reply = match ready!(receiver.poll_recv(cx)) {
                Ok(Some(reply)) => reply,
                Ok(None) => return Poll::Ready(End::broken(CallError::Closed)),
                Err(error) => return Poll::Ready(End::broken(error)),
            };
            let Some(request) = self.taken.pop_front() else {
                return Poll::Ready(End::OutOfStep);
            };
            self.unflushed = self.unflushed.min(self.taken.len());
            self.has_replied = true;
            self.stalled = None;
            request.answer(reply);
        }
    }

    fn poll_requests(&mut self, sender: &mut SendHalf, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let mut room = match sender.poll_room(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => return Poll::Ready(self.send_failed(error)),
                Poll::Pending => false,
            };
            if room && self.taken.is_empty() && !coop::has_budget_remaining() {
                // The receiver may have a message, but was not allowed to return it.
                cx.waker().wake_by_ref();
                room = false;
            }
            let in_flight = self.taken.len();
            let request = match self.pool.poll_request(self.lane, in_flight, room, cx) {
                Poll::Ready(Some(request)) => request,
                Poll::Ready(None) => return Poll::Ready(End::Unneeded),
                Poll::Pending => break,
            };
            let message = request.message.clone();
            self.taken.push_back(request);
            self.unflushed += 1;
            if let Err(error) = sender.start(message) {
                return Poll::Ready(self.send_failed(error));
            }
        }
        match sender.poll_flush(cx) {
            Poll::Ready(Ok(())) => self.unflushed = 0,
            Poll::Ready(Err(error)) => return Poll::Ready(self.send_failed(error)),
            Poll::Pending => {}
        }
        Poll::Pending
    }

    /// The request that failed and all after it are not sent. Which one that is, is not known, but the last one
    /// is always among them.
    fn send_failed(&mut self, error: SendError) -> End {
        self.last_is_unsent = self.unflushed > 0;
        End::broken(error)
    }

    /// Ready once the server has not answered for so long that all calls would time out.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let (Some(after), Some(first)) = (self.pool.call_timeout(), self.taken.front_mut()) else {
            return Poll::Pending;
        };
        if self.stalled.is_none() {
            ready!(first.poll_given_up(cx));
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(after)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(End::Broken {
            failure: CallFailure::Stalled { after },
            is_final: true,
        })
    }

    fn end(&mut self, end: &End) {
        self.has_ended = true;
        match end {
            End::Unneeded | End::Aborted => debug!(connection = self.lane, "connection closed"),
            _ => {
                let failure = end.failure();
                let error = Chain(&failure);
                debug!(connection = self.lane, %error, "connection failed");
            }
        }
        self.pool.ended(
            self.lane,
            end,
            mem::take(&mut self.taken),
            self.last_is_unsent,
            self.has_replied,
        );
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(&End::Aborted);
        }
    }
}
