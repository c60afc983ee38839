//! One client's conversation: receives requests and sends replies.

use std::{
    future::{Future, poll_fn},
    marker::PhantomData,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::task::yield_now;
use tracing::{debug, trace};

use super::{
    accept::AcceptedClient,
    admission::AdmissionProgress,
    budget::{Budget, ClientBudget, HeldBytes},
    concurrent::InFlight,
    failure::Failure,
    guard,
    inbound::{Inbound, Message, NextRequest},
    options::Timeouts,
    outbound::Outbound,
    shutdown::Shutdown,
};
use crate::{
    connection::{AnyState, Identity},
    handler::{Handler, Reply, Request},
    telemetry::Telemetry,
};

/// The state of one client being served.
pub(super) struct Conversation<H, T> {
    identity: Arc<Identity>,
    admission: AdmissionProgress,
    inbound: Inbound,
    outbound: Outbound,
    /// The number of requests received.
    requested: u64,
    /// The result of receiving, once it has ended. Requests received before are still answered.
    ended: Option<Result<(), Failure>>,
    handler: Arc<H>,
    server: Arc<Server<H>>,
    shutdown: Shutdown,
    _requests: PhantomData<fn(T)>,
}

/// The state that all conversations of a server share.
pub(super) struct Server<H> {
    pub(super) handler: Arc<H>,
    pub(super) options: Options,
    pub(super) state: Option<AnyState>,
    pub(super) timeouts: Timeouts,
    pub(super) budget: Arc<Budget>,
    pub(super) telemetry: Telemetry,
}

/// The options that only [`Serve`](crate::Serve) has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) handler_timeout: Option<Duration>,
    pub(super) concurrency: usize,
    pub(super) cancel_on_disconnect: bool,
    pub(super) max_buffered_bytes: Option<usize>,
}

/// The next action of a conversation.
enum Step {
    /// Give a request to the handler.
    Answer(Message),
    /// Feed the handler's reply to the outbound side.
    Reply(Result<Reply, Failure>, HeldBytes),
    /// Let other tasks run.
    Yield,
    /// Take what the client has sent, and no more: the server shuts down.
    Close,
    End,
}

impl<H: Handler<T>, T> Conversation<H, T> {
    pub(super) fn new(client: AcceptedClient, server: Arc<Server<H>>) -> Self {
        let identity = Arc::clone(client.connection.identity());
        if let Some(state) = &server.state {
            identity.set_state(Arc::clone(state));
        }
        let (receiver, sender) = client.connection.into_split();
        let (timeouts, stats) = (server.timeouts, server.telemetry.stats().clone());
        let budget = ClientBudget::new(&server.budget, &identity);
        Self {
            identity,
            admission: client.admission,
            inbound: Inbound::new(receiver, timeouts.idle, Arc::clone(&budget)),
            outbound: Outbound::new(sender, timeouts.write, budget, stats),
            requested: 0,
            ended: None,
            handler: server.handler.for_connection(),
            server,
            shutdown: client.shutdown,
            _requests: PhantomData,
        }
    }

    /// Runs the conversation to completion. Called once. Takes `self` by reference because a future
    /// stores an argument passed by value twice.
    pub(super) async fn run(&mut self) {
        debug!("client connected");
        let ended = match self.admit(false).await {
            Ok(()) => self.converse().await,
            Err(refused) => Err(refused),
        };
        let (requests, replies) = (self.requested, self.outbound.sent());
        match ended {
            Ok(()) => debug!(requests, replies, "client served"),
            Err(failure) => {
                let telemetry = &self.server.telemetry;
                failure.report(&self.identity, telemetry, Some((requests, replies)));
            }
        }
    }

    async fn admit(&mut self, received: bool) -> Result<(), Failure> {
        self.admission.admit(&self.identity, received).await
    }

    async fn converse(&mut self) -> Result<(), Failure> {
        match self.answer_requests().await {
            Err(failure) if !failure.leaves_replies() => Err(failure),
            // Earlier replies are still sent, whatever ended the conversation.
            ended => {
                let flushed = poll_fn(|cx| self.outbound.poll_flush(cx)).await;
                ended.and(flushed)?;
                if self.inbound.is_closed() {
                    // Tells the client that every request the server has taken is answered. The
                    // client may have closed.
                    _ = poll_fn(|cx| self.outbound.poll_finish(cx)).await;
                }
                Ok(())
            }
        }
    }

    async fn answer_requests(&mut self) -> Result<(), Failure> {
        let (handler, server) = (Arc::clone(&self.handler), Arc::clone(&self.server));
        let mut in_flight = InFlight::new(server.options.concurrency);
        let mut shutdown = pin!(self.shutdown.wait());
        let mut handler_ended = pin!(handler.ended());
        loop {
            let step = poll_fn(|cx| {
                let step = self.poll_step(cx, &mut in_flight);
                let may_close = step.is_pending() && !self.inbound.is_closed();
                if may_close && shutdown.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ok(Step::Close));
                }
                if step.is_pending() && !in_flight.is_handling() {
                    let ended = handler_ended.as_mut().poll(cx);
                    return ended.map(|error| Err(Failure::Ended(error)));
                }
                step
            });
            match step.await? {
                Step::Answer(Message { bytes, held }) => {
                    self.receive(&bytes).await?;
                    let request = Request::received(bytes, Arc::clone(&self.identity));
                    let (limit, stats) = (server.options.handler_timeout, server.telemetry.stats());
                    in_flight.push(guard::answer(&*handler, request, limit, stats), held);
                }
                Step::Reply(reply, held) => {
                    if let Some(message) = reply?.into_message() {
                        self.outbound.feed(message, held)?;
                    }
                }
                Step::Yield => {
                    yield_now().await;
                    self.inbound.begin_turn();
                    // With a client that always has another request, no step is ever pending.
                    if self.shutdown.is_shutdown() && !self.inbound.is_closed() {
                        self.inbound.close();
                    }
                }
                Step::Close => self.inbound.close(),
                Step::End => return Ok(()),
            }
        }
    }

    /// Counts a request, and first completes the admission if it had to wait for a message.
    async fn receive(&mut self, message: &Bytes) -> Result<(), Failure> {
        trace!(bytes = message.len(), "request");
        if !self.admission.is_complete() {
            self.admit(true).await?;
        }
        self.requested += 1;
        self.server.telemetry.stats().count_request(message.len());
        Ok(())
    }

    /// Finds the next step. Polls the requests in flight first, then takes a request that the
    /// engine expects to have, then flushes, then takes any request.
    ///
    /// A reply is therefore never held back while its client waits for it: replies are flushed as
    /// soon as no further request is expected, or the next one is not answered at its first poll.
    fn poll_step<F: Future<Output = Result<Reply, Failure>>>(
        &mut self,
        cx: &mut Context<'_>,
        in_flight: &mut InFlight<F>,
    ) -> Poll<Result<Step, Failure>> {
        if in_flight.poll(cx) && self.outbound.poll_room(cx)?.is_ready() {
            if let Some((reply, held)) = in_flight.pop() {
                return Poll::Ready(Ok(Step::Reply(reply, held)));
            }
        }
        let may_take = in_flight.has_room();
        let is_turn_over = self.inbound.is_turn_over();
        if may_take && !is_turn_over && !self.outbound.is_full() && self.inbound.expects_next() {
            if let Some(message) = self.take_next(cx, false) {
                return Poll::Ready(Ok(Step::Answer(message)));
            }
        }
        let is_flushed = self.outbound.poll_flush(cx)?.is_ready();
        let is_idle = is_flushed && in_flight.is_empty();
        if !is_flushed {
            self.read_one_early(cx);
        } else if may_take && is_turn_over {
            return Poll::Ready(Ok(Step::Yield));
        } else if may_take {
            if let Some(message) = self.take_next(cx, is_idle) {
                return Poll::Ready(Ok(Step::Answer(message)));
            }
        }
        if is_idle {
            in_flight.shrink();
            return self.poll_end(cx);
        }
        if self.server.options.cancel_on_disconnect && !in_flight.is_empty() {
            return self.poll_disconnected(cx).map(Err);
        }
        Poll::Pending
    }

    /// Takes the next request. If receiving has ended, stores the result in `ended`.
    fn take_next(&mut self, cx: &mut Context<'_>, is_idle: bool) -> Option<Message> {
        if self.ended.is_some() {
            return None;
        }
        match self.inbound.poll_next(cx, is_idle) {
            Ok(NextRequest::Ready(message)) => return Some(message),
            Ok(NextRequest::NotYet) => {}
            Ok(NextRequest::End) => self.ended = Some(Ok(())),
            Err(failure) => self.ended = Some(Err(failure)),
        }
        None
    }

    /// Reads one request while replies can't be flushed. The client may be in the middle of sending
    /// a long request, and read its replies only afterwards.
    fn read_one_early(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(Err(failure)) = self.inbound.poll_read_early(cx, 1) {
            self.ended = Some(Err(failure));
        }
    }

    /// Ready when the conversation is over. Called only if no request is in flight and no reply is
    /// unsent.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Failure>> {
        if let Some(ended) = self.ended.take() {
            return Poll::Ready(ended.map(|()| Step::End));
        }
        self.inbound.poll_idle(cx).map(Err)
    }

    /// Ready once the client has disconnected. Called while requests are in flight.
    fn poll_disconnected(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        match self.ended.take() {
            Some(Err(failure)) => Poll::Ready(failure),
            ended => {
                self.ended = ended;
                self.inbound.poll_disconnected(cx)
            }
        }
    }
}

#[cfg(test)]
mod tests;
