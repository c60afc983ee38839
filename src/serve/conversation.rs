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
use tokio::time::Instant;
use tracing::{debug, debug_span, field::Empty, trace, warn};

use super::{
    admission::{Authorize, Place, UserLimit, Users},
    budget::{Budget, Share},
    failure::Failure,
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
                        let decided = within(server.options.handler_timeout, authorize(peer)).await;
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
        let made = within(self.server.options.handler_timeout, on_connect(connection)).await;
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
        let ended = self.answer_requests().await;
        match ended {
            Err(failure) if !failure.leaves_replies() => Err(failure),
            // Whatever ended the conversation, earlier replies are still sent.
            ended => ended.and(self.replies.flush().await),
        }
    }

    async fn answer_requests(&mut self) -> Result<(), Failure> {
        let mut shutdown = pin!(self.shutdown.wait());
        while !self.shutdown.is_shutdown() {
            let message = match self.requests.at_hand().await? {
                Poll::Ready(message) => message,
                Poll::Pending => {
                    self.replies.flush().await?;
                    self.requests.wait(shutdown.as_mut()).await?
                }
            };
            let Some(message) = message else { break };
            trace!(bytes = message.len(), "request");
            let length = message.len();
            self.requests
                .set_answering(length + self.replies.unsent_bytes());
            if !(self.is_identified && self.is_connected) {
                self.admit(true).await?;
            }
            self.requested += 1;
            self.server.stats.count_request(message.len());
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

    async fn answer(&mut self, message: Bytes) -> Result<Reply, Failure> {
        let span = debug_span!(
            "request",
            request.bytes = message.len(),
            request.latency_us = Empty,
            reply.bytes = Empty,
        );
        let began = Instant::now();
        let handler = &*self.handler;
        let request = Request::received(message, Arc::clone(&self.identity));
        // `call` is inside the future so that its panics are caught as well.
        let mut handled = pin!(async move { handler.call(request).await });
        let (requests, replies) = (&mut self.requests, &mut self.replies);
        let watching = self.server.options.cancel_on_disconnect;
        let mut flushing = true;
        let answered = poll_fn(|cx| {
            if let Poll::Ready(answered) = span.in_scope(|| poll_caught(handled.as_mut(), cx)) {
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
        let answered = match within(self.server.options.handler_timeout, answered).await {
            Ok(answered) => answered,
            Err(time) => Err(Failure::HandlerTimeout(time)),
        };
        let time = began.elapsed();
        self.server.stats.count_handled(time);
        if !span.is_disabled() {
            span.record("request.latency_us", time.as_micros() as u64);
            let reply = answered.as_ref().ok().and_then(Reply::message);
            span.record("reply.bytes", reply.map(Bytes::len));
        }
        answered
    }
}
