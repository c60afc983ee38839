//! Receiving the requests of one client.

use std::{panic::resume_unwind, sync::Arc, time::Duration};

use jsonrpsee_types::{Id, error::reject_too_big_request};
use pipe_server::{Bytes, RecvError, RecvHalf};
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinSet},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};
use tracing::{Instrument as _, debug, debug_span, field::Empty};

use super::{
    connection::Caller,
    service::{Service, Subscriptions},
};

/// The interval at which to look whether a busy client has left, if receiving can't tell, and
/// whether the last subscription of one that sends nothing has ended.
const CHECK: Duration = Duration::from_secs(1);

/// The way in which a conversation ended.
#[derive(Debug)]
pub(super) enum End {
    /// The client or the server has ended it. Requests that were sent before are answered.
    Conversation,
    /// The client has closed. Its requests in progress are cancelled.
    ClientLeft,
}

/// Receives the requests of a client, and runs a limited number of them at once.
pub(super) struct Receiving<S> {
    receiver: RecvHalf,
    /// Runs only while the client waits for nothing.
    idle_timeout: Option<Duration>,
    caller: Arc<Caller<S>>,
    calls: JoinSet<()>,
    concurrency: usize,
    subscriptions: Subscriptions,
    check: Interval,
}

impl<S: Service> Receiving<S> {
    pub(super) fn new(
        receiver: RecvHalf,
        caller: Arc<Caller<S>>,
        subscriptions: Subscriptions,
        concurrency: usize,
    ) -> Self {
        let mut check = interval_at(Instant::now() + CHECK, CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            idle_timeout: receiver.idle_timeout(),
            receiver,
            caller,
            calls: JoinSet::new(),
            concurrency,
            subscriptions,
            check,
        }
    }

    /// Receives requests, of which `first` is the first, until the conversation ends. Returns once
    /// all of them are answered or cancelled. Tells `close` when nothing more is to be sent.
    pub(super) async fn run(
        mut self,
        first: Result<Option<Bytes>, RecvError>,
        close: oneshot::Sender<End>,
    ) -> Result<End, RecvError> {
        let mut ended = self.take(first).await;
        loop {
            match ended {
                Some(Ok(End::ClientLeft)) => {
                    debug!(calls = self.calls.len(), "the client has left");
                    // Cancels the calls.
                    _ = close.send(End::ClientLeft);
                    while let Some(call) = self.calls.join_next().await {
                        pass_on_panic(call);
                    }
                    return Ok(End::ClientLeft);
                }
                Some(ended) if self.calls.is_empty() => {
                    _ = close.send(End::Conversation);
                    return ended;
                }
                ended_before => ended = self.advance(ended_before).await,
            }
        }
    }

    /// Waits for a request or the end of a call, and returns how receiving has ended, if it has.
    async fn advance(
        &mut self,
        ended: Option<Result<End, RecvError>>,
    ) -> Option<Result<End, RecvError>> {
        let may_receive = ended.is_none() && self.calls.len() < self.concurrency;
        let is_idle = self.calls.is_empty() && !self.subscriptions.are_open();
        // Begins anew, or stops.
        let time = self.idle_timeout.filter(|_| is_idle);
        self.receiver.set_idle_timeout(time);
        let must_check = match may_receive {
            true => self.calls.is_empty() && !is_idle && self.idle_timeout.is_some(),
            false => true,
        };
        tokio::select! {
            biased;
            Some(call) = self.calls.join_next() => pass_on_panic(call),
            received = self.receiver.recv(), if may_receive => return self.take(received).await,
            _ = self.check.tick(), if must_check => {
                if !may_receive && self.receiver.is_hung_up() {
                    return Some(Ok(End::ClientLeft));
                }
            }
        }
        ended
    }

    /// Calls the method of a message. Returns how receiving has ended, if it has.
    async fn take(
        &mut self,
        received: Result<Option<Bytes>, RecvError>,
    ) -> Option<Result<End, RecvError>> {
        match received {
            Ok(Some(message)) => {
                self.call(message);
                None
            }
            Ok(None) if self.receiver.is_half_closed() => Some(Ok(End::Conversation)),
            Ok(None) => Some(Ok(End::ClientLeft)),
            Err(error) => {
                if let RecvError::TooLong { limit, .. } = error {
                    let error = reject_too_big_request(u32::try_from(limit).unwrap_or(u32::MAX));
                    _ = self.caller.sink.send_error(Id::Null, error).await;
                }
                Some(Err(error))
            }
        }
    }

    fn call(&mut self, message: Bytes) {
        self.caller.stats.count_request(message.len());
        let span = debug_span!(
            "request",
            request.bytes = message.len(),
            request.latency_us = Empty,
            reply.bytes = Empty,
            rpc.method = Empty,
        );
        let answering = Arc::clone(&self.caller).answer(message).instrument(span);
        self.calls.spawn(answering.in_current_span());
    }
}

/// The server closes the connection of code that panics, and logs it.
fn pass_on_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        if let Ok(panic) = error.try_into_panic() {
            resume_unwind(panic);
        }
    }
}
