//! One client's conversation: requests in, replies out.

use std::{
    future::{Future, poll_fn},
    marker::PhantomData,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use tracing::{debug, trace, warn};

use super::{
    admission::{Authorize, Place, UserLimit, Users},
    budget::{Budget, Share},
    failure::Failure,
    handling::Handling,
    in_flight::InFlight,
    panics::poll_caught,
    replies::Replies,
    requests::Requests,
    shutdown::Shutdown,
    timeout::within,
};
use crate::{
    connection::Connection,
    error::{BoxError, Chain},
    handler::Handler,
    identity::{AnySession, Identity},
    into_reply::Reply,
    peer::Peer,
    request::Request,
    session::ConnectionInfo,
    stats::Stats,
};

/// One client being served.
pub(super) struct Conversation<H, T> {
    identity: Arc<Identity>,
    requests: Requests,
    replies: Replies,
    /// How many requests were received.
    requested: u64,
    /// Whether the client was identified and admitted.
    is_identified: bool,
    /// Whether `on_connect` has run.
    is_connected: bool,
    place: Option<Place>,
    handler: Arc<H>,
    server: Arc<Server<H>>,
    shutdown: Shutdown,
    _requests: PhantomData<fn(T)>,
}

/// What all conversations share.
pub(super) struct Server<H> {
    pub(super) handler: Arc<H>,
    pub(super) options: Options,
    pub(super) authorize: Option<Authorize>,
    pub(super) on_connect: Option<OnConnect>,
    pub(super) users: Arc<Users>,
    pub(super) budget: Arc<Budget>,
    pub(super) stats: Stats,
}

impl<H> Server<H> {
    /// Whether clients have to be identified.
    fn identifies(&self) -> bool {
        self.authorize.is_some() || self.users.is_bounded()
    }
}

/// The options of [`Serve`](crate::Serve) that a conversation needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(super) idle_timeout: Option<Duration>,
    pub(super) handler_timeout: Option<Duration>,
    pub(super) write_timeout: Option<Duration>,
    pub(super) concurrency: usize,
    pub(super) cancel_on_disconnect: bool,
    pub(super) max_buffered_bytes: Option<usize>,
    pub(super) max_connections_per_user: UserLimit,
    #[cfg(windows)]
    pub(crate) inline_completions: bool,
}

/// Creates a client's session, or refuses the client.
pub(super) type OnConnect = Box<
    dyn Fn(ConnectionInfo) -> Pin<Box<dyn Future<Output = Result<AnySession, BoxError>> + Send>>
        + Send
        + Sync,
>;

impl<H: Handler<T>, T> Conversation<H, T> {
    pub(super) fn new(connection: Connection, shutdown: Shutdown, server: Arc<Server<H>>) -> Self {
        let identity = Arc::clone(connection.identity());
        let (receiver, sender) = connection.into_split();
        Self {
            identity,
            requests: Requests::new(
                receiver,
                server.options.idle_timeout,
                Share::new(&server.budget),
            ),
            replies: Replies::new(sender, server.options.write_timeout, server.stats.clone()),
            requested: 0,
            is_identified: !server.identifies(),
            is_connected: false,
            place: None,
            handler: server.handler.connected(),
            server,
            shutdown,
            _requests: PhantomData,
        }
    }

    /// Runs it to completion. Called once, and by reference: a future stores an argument passed by value twice.
    pub(super) async fn run(&mut self) {
        debug!("client connected");
        let ended = match self.admit(false).await {
            Ok(()) => self.converse().await,
            Err(refused) => Err(refused),
        };
        let (requests, replies) = (self.requested, self.replies.sent());
        match ended {
            Ok(()) => debug!(requests, replies, "client served"),
            Err(failure) if failure.is_refusal() => self.refuse(&failure),
            Err(failure) => failure.log(&self.server.stats, self.identity.id, requests, replies),
        }
    }

    /// Decides whether the client is served, and creates its session: when it connects or, if the system can't
    /// identify it yet, once a message was `received`.
    async fn admit(&mut self, received: bool) -> Result<(), Failure> {
        let server = &self.server;
        if !self.is_identified {
            let peer = match self.identity.peer() {
                Err(_) if !received => None,
                peer => Some(peer),
            };
            match (&server.authorize, peer) {
                (authorize, Some(peer)) => {
                    self.is_identified = true;
                    self.place = server.users.enter(peer.as_ref().ok().map(Peer::user))?;
                    if let Some(authorize) = authorize {
                        let peer = peer.map_err(|error| Failure::NotAuthorized(error.into()))?;
                        let decided =
                            within(server.options.handler_timeout, &mut authorize(peer)).await;
                        decided
                            .map_err(|time| Failure::ConnectTimeout("authorize", time))?
                            .map_err(Failure::NotAuthorized)?;
                    }
                }
                (Some(_), None) => return Ok(()),
                (None, None) => {}
            }
        }
        if !self.is_connected {
            self.is_connected = true;
            self.begin_session().await?;
        }
        Ok(())
    }

    /// Creates the client's session if `on_connect` is set.
    async fn begin_session(&mut self) -> Result<(), Failure> {
        let Some(on_connect) = &self.server.on_connect else {
            return Ok(());
        };
        let connection = ConnectionInfo::new(&self.identity);
        let made = within(
            self.server.options.handler_timeout,
            &mut on_connect(connection),
        )
        .await;
        let session = made
            .map_err(|time| Failure::ConnectTimeout("on_connect", time))?
            .map_err(Failure::Refused)?;
        self.identity.set_session(session);
        Ok(())
    }

    /// Counts and logs a refused client.
    fn refuse(&self, refused: &Failure) {
        let reason = refused.reason();
        let Some(pass) = self.server.stats.count_error(reason) else {
            return;
        };
        let (id, word, suppressed) = (self.identity.id, reason.as_str(), pass.suppressed);
        let error = Chain(refused);
        match self.identity.peer() {
            Ok(peer) => warn!(
                connection.id = id,
                peer.pid = peer.process_id(),
                peer.user = %peer.user(),
                reason = word,
                suppressed,
                %error,
                "closing the connection"
            ),
            Err(unknown) => warn!(
                connection.id = id,
                peer.unknown = %Chain(&unknown),
                reason = word,
                suppressed,
                %error,
                "closing the connection"
            ),
        }
    }

    async fn converse(&mut self) -> Result<(), Failure> {
        let ended = match self.server.options.concurrency {
            1 => self.answer_requests().await,
            // Boxed, so that it takes no room in the tasks of other servers.
            most => Box::pin(self.answer_concurrently(most)).await,
        };
        match ended {
            Err(failure) if !failure.leaves_replies() => Err(failure),
            // Whatever ended the conversation, earlier replies are still sent.
            ended => ended.and(self.replies.flush().await),
        }
    }

    async fn answer_requests(&mut self) -> Result<(), Failure> {
        let mut shutdown = pin!(self.shutdown.wait());
        while !self.shutdown.is_shutdown() {
            let message = match self.requests.at_hand_before_reply().await? {
                Poll::Ready(message) => message,
                Poll::Pending => {
                    let requests = &mut self.requests;
                    let flushing = self.replies.flush_and(|cx| requests.read_one_ahead(cx));
                    flushing.await?;
                    self.requests.wait(shutdown.as_mut()).await?
                }
            };
            let Some(message) = message else { break };
            self.requests
                .set_answering(message.len() + self.replies.unsent_bytes());
            self.receive(&message).await?;
            self.replies.flush_late().await?;
            let reply = self.answer(message).await?;
            if let Some(message) = reply.into_message() {
                let length = message.len();
                self.requests
                    .set_answering(length + self.replies.unsent_bytes());
                self.replies.feed(message).await?;
            }
            self.requests.set_answering(self.replies.unsent_bytes());
        }
        Ok(())
    }

    /// Counts a request. Decides on the client at its first one, if that is not done yet.
    async fn receive(&mut self, message: &Bytes) -> Result<(), Failure> {
        trace!(bytes = message.len(), "request");
        if !(self.is_identified && self.is_connected) {
            self.admit(true).await?;
        }
        self.requested += 1;
        self.server.stats.count_request(message.len());
        Ok(())
    }

    async fn answer(&mut self, message: Bytes) -> Result<Reply, Failure> {
        let handling = Handling::begin(message.len());
        let handler = &*self.handler;
        let request = Request::received(message, Arc::clone(&self.identity));
        // `call` is inside the future so that its panics are caught as well.
        let mut handled = pin!(async move { handler.call(request).await });
        let (requests, replies) = (&mut self.requests, &mut self.replies);
        let watching = self.server.options.cancel_on_disconnect;
        let mut flushing = true;
        let mut answered = poll_fn(|cx| {
            if let Poll::Ready(answered) = handling.in_scope(|| poll_caught(handled.as_mut(), cx)) {
                let answered = answered.map_err(Failure::Panic)?;
                return Poll::Ready(answered.map_err(Failure::handler));
            }
            // The handler is not ready, so earlier replies are sent meanwhile.
            if flushing && replies.poll_flush(cx)?.is_ready() {
                flushing = false;
            }
            if watching {
                return requests.poll_gone(cx).map(Err);
            }
            Poll::Pending
        });
        let answered = match within(self.server.options.handler_timeout, &mut answered).await {
            Ok(answered) => answered,
            Err(time) => Err(Failure::HandlerTimeout(time)),
        };
        handling.end(&self.server.stats, answered.as_ref().ok());
        answered
    }

    /// Like `answer_requests`, with up to `most` requests in the handler at once.
    async fn answer_concurrently(&mut self, most: usize) -> Result<(), Failure> {
        let handler = Arc::clone(&self.handler);
        let handler_timeout = self.server.options.handler_timeout;
        let handle = |request| handle(&*handler, request, handler_timeout);
        let mut in_flight = InFlight::new(self.server.stats.clone());
        let ended = self.answer_in_flight(&mut in_flight, most, handle).await;
        in_flight.cancel();
        ended
    }

    async fn answer_in_flight<F: Future<Output = Result<Reply, Failure>>>(
        &mut self,
        in_flight: &mut InFlight<F>,
        most: usize,
        handle: impl Fn(Request) -> F,
    ) -> Result<(), Failure> {
        let watching = self.server.options.cancel_on_disconnect;
        let mut shutdown = pin!(self.shutdown.wait());
        // Why no more requests are read.
        let mut ended = None;
        loop {
            // In order, and also those before one that has failed.
            poll_fn(|cx| Poll::Ready(in_flight.poll(cx))).await;
            while let Some(answered) = in_flight.pop() {
                if let Some(message) = answered?.into_message() {
                    let length = message.len();
                    self.requests
                        .set_answering(length + self.replies.unsent_bytes());
                    let feeding = self.replies.feed(message);
                    beside(in_flight, &mut self.requests, feeding).await?;
                }
            }
            self.requests.set_answering(self.replies.unsent_bytes());
            self.requests.set_in_flight(in_flight.bytes());

            let may_read = |in_flight: &InFlight<F>, shutdown: &Shutdown| {
                in_flight.len() < most && !in_flight.has_failed() && !shutdown.is_shutdown()
            };
            let mut received = Ok(Poll::Pending);
            if ended.is_none() && may_read(in_flight, &self.shutdown) {
                received = self.requests.at_hand().await;
            }
            if let Ok(Poll::Pending) = received {
                let flushing = self.replies.flush();
                beside(in_flight, &mut self.requests, flushing).await?;
                self.requests.set_answering(0);
                received = if in_flight.is_empty() {
                    match ended.take() {
                        Some(ended) => return ended,
                        None if self.shutdown.is_shutdown() => return Ok(()),
                        None => {}
                    }
                    in_flight.shrink();
                    self.requests.wait(shutdown.as_mut()).await.map(Poll::Ready)
                } else {
                    self.requests.end_turn().await;
                    let (requests, shutdown) = (&mut self.requests, &self.shutdown);
                    let is_open = ended.is_none();
                    let next = poll_fn(|cx| {
                        let is_answered = in_flight.poll(cx);
                        requests.set_in_flight(in_flight.bytes());
                        if is_answered {
                            return Poll::Ready(Ok(Poll::Pending));
                        }
                        let reading = is_open && may_read(in_flight, shutdown);
                        let next = requests.poll_beside(cx, reading, watching);
                        next.map_ok(Poll::Ready)
                    });
                    next.await
                };
            }
            match received {
                Ok(Poll::Ready(Some(message))) => {
                    let bytes = message.len();
                    self.requests.set_in_flight(in_flight.bytes() + bytes);
                    self.receive(&message).await?;
                    let flushing = self.replies.flush_late();
                    beside(in_flight, &mut self.requests, flushing).await?;
                    let request = Request::received(message, Arc::clone(&self.identity));
                    in_flight.push(Handling::begin(bytes), bytes, handle(request));
                }
                // The requests in flight are still answered.
                Ok(Poll::Ready(None)) => ended = Some(Ok(())),
                Ok(Poll::Pending) => {}
                Err(failure) if watching => return Err(failure),
                Err(failure) => ended = Some(Err(failure)),
            }
        }
    }
}

/// Calls the handler in a future that does not borrow the conversation.
async fn handle<H: Handler<T>, T>(
    handler: &H,
    request: Request,
    handler_timeout: Option<Duration>,
) -> Result<Reply, Failure> {
    // `call` is inside the future so that its panics are caught as well.
    let mut handled = pin!(async move { handler.call(request).await });
    let mut answered = poll_fn(|cx| poll_caught(handled.as_mut(), cx));
    match within(handler_timeout, &mut answered).await {
        Ok(answered) => answered.map_err(Failure::Panic)?.map_err(Failure::handler),
        Err(time) => Err(Failure::HandlerTimeout(time)),
    }
}

/// Completes `sending` while handlers run beside it.
async fn beside<F: Future<Output = Result<Reply, Failure>>>(
    in_flight: &mut InFlight<F>,
    requests: &mut Requests,
    sending: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let mut sending = pin!(sending);
    let sent = poll_fn(|cx| {
        let sent = sending.as_mut().poll(cx);
        if sent.is_pending() {
            in_flight.poll(cx);
            requests.set_in_flight(in_flight.bytes());
        }
        sent
    });
    sent.await
}

#[cfg(test)]
mod tests;
