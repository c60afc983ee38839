//! The connection to the NATS server, and the requests that wait for a reply.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, Event, Message, Subscriber, connection::State};
use futures_core::Stream as _;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::target::Target;

/// How long `async-nats` may take to reconnect before this program starts again: an attempt of it
/// can hang, too.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// The backoff after a failed attempt to connect, doubled after each further one. Once connected,
/// `async-nats` reconnects, with a backoff of up to 4 s as well.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// The shortest time between two log lines about the connection, and between two equal ones.
/// Clients can cause some of them.
const LOGGED_EVERY: Duration = Duration::from_secs(1);
const REPEATED_EVERY: Duration = Duration::from_secs(60);

/// The connection to the server, and the requests that wait for a reply.
///
/// Not `Client::request`: it keeps an entry for every request without a reply, also when nobody
/// waits for it any more, so that clients could fill the memory.
#[derive(Debug)]
pub(super) struct NatsLink {
    /// Without credentials.
    address: String,
    pub(super) most: usize,
    reconnect_timeout: Duration,
    /// How many attempts to connect this program has made. The events of earlier ones are ignored.
    attempts: AtomicU64,
    state: watch::Sender<LinkState>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Message>>>,
    /// The token of the next request.
    next: AtomicU64,
    complaint: Mutex<Option<Complaint>>,
}

#[derive(Debug, Default)]
struct LinkState {
    connection: Option<Arc<NatsConnection>>,
    /// What the last event said. It may be missing, because `async-nats` drops events when there
    /// are many.
    up: bool,
}

#[derive(Debug)]
pub(super) struct NatsConnection {
    pub(super) client: Client,
    /// The subject below which replies arrive. It is random, so that others can't guess it.
    pub(super) inbox: String,
}

impl LinkState {
    fn is_up(&self) -> bool {
        let Some(connection) = &self.connection else {
            return false;
        };
        self.up || connection.client.connection_state() == State::Connected
    }
}

/// The last one that was logged.
#[derive(Debug)]
struct Complaint {
    text: String,
    logged: Instant,
}

impl NatsLink {
    pub(super) fn new(address: String, most: usize) -> Self {
        Self {
            address,
            most,
            reconnect_timeout: RECONNECT_TIMEOUT,
            attempts: AtomicU64::new(0),
            state: watch::Sender::new(LinkState::default()),
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            complaint: Mutex::default(),
        }
    }

    /// Connects and passes replies on, for ever.
    pub(super) async fn keep(self: Arc<Self>, target: Target) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.connect(&target).await {
                Ok(replies) => {
                    pause = FIRST_PAUSE;
                    self.deliver(replies).await;
                    self.state.send_replace(LinkState::default());
                }
                Err(error) => self.complain(&format!(
                    "can't connect to the NATS server of --forward: {error}; trying again: requests wait until \
                     --handler-timeout"
                )),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn connect(self: &Arc<Self>, target: &Target) -> Result<Subscriber, String> {
        let client = target.connect(self).await?;
        let inbox = client.new_inbox();
        // Before the first request is published, on the same connection.
        let replies = client.subscribe(format!("{inbox}.*")).await;
        let replies = replies.map_err(|error| error.to_string())?;
        self.state.send_replace(LinkState {
            connection: Some(Arc::new(NatsConnection { client, inbox })),
            up: true,
        });
        Ok(replies)
    }

    /// Passes replies on until the connection is closed, or lost for too long.
    async fn deliver(&self, mut replies: Subscriber) {
        let mut lost = pin!(self.lost());
        loop {
            let reply = tokio::select! {
                reply = next(&mut replies) => reply,
                () = &mut lost => None,
            };
            let Some(reply) = reply else {
                return;
            };
            let token = reply.subject.rsplit('.').next();
            let Some(token) = token.and_then(|token| token.parse().ok()) else {
                continue;
            };
            match self.waiting().remove(&token) {
                Some(waiting) => _ = waiting.send(reply),
                None => debug!("a reply arrived too late, or a second time"),
            }
        }
    }

    /// Waits until the connection is lost and `async-nats` does not restore it in time.
    async fn lost(&self) {
        const KEPT: &str = "the sender is in this link";
        let mut state = self.state.subscribe();
        loop {
            state.wait_for(|state| !state.up).await.expect(KEPT);
            let restored = state.wait_for(|state| state.up);
            if timeout(self.reconnect_timeout, restored).await.is_err() {
                return;
            }
        }
    }

    /// Waits until there is a connection. Cancel safe.
    pub(super) async fn connection(&self) -> Arc<NatsConnection> {
        let mut state = self.state.subscribe();
        let state = state.wait_for(LinkState::is_up).await;
        let state = state.expect("the sender is in this link");
        Arc::clone(state.connection.as_ref().expect("it is up"))
    }

    pub(super) fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn happened(&self, event: Event, attempt: u64) {
        let address = &self.address;
        // A client that was given up may still try to reconnect, until it can.
        if attempt != self.attempts.load(Ordering::Relaxed) {
            return;
        }
        match event {
            Event::Connected => {
                self.state.send_modify(|state| state.up = true);
                *self.complaint() = None;
                info!(address, "connected to the NATS server of --forward");
            }
            Event::Disconnected => {
                self.state.send_modify(|state| state.up = false);
                self.complain(
                    "the connection to the NATS server of --forward is lost; reconnecting: requests wait until \
                     --handler-timeout",
                );
            }
            Event::LameDuckMode => self.complain(
                "the NATS server of --forward is about to shut down (lame duck mode), and will close the connection",
            ),
            Event::SlowConsumer(_) => self.complain(
                "replies arrived faster than they were taken, and some were dropped: their requests time out",
            ),
            Event::ServerError(error) => {
                self.complain(&format!("the NATS server of --forward reports an error: {error}"));
            }
            Event::ClientError(error) => self.complain(&format!(
                "can't reconnect to the NATS server of --forward: {error}; trying again"
            )),
            Event::Draining | Event::Closed => debug!(address, %event, "event of the connection"),
        }
    }

    /// Logs a warning, unless one was logged a moment ago or it says the same as the last one.
    fn complain(&self, text: &str) {
        let address = &self.address;
        let now = Instant::now();
        let mut complaint = self.complaint();
        let passed = complaint.as_ref().is_none_or(|last| {
            let quiet = match last.text == text {
                true => REPEATED_EVERY,
                false => LOGGED_EVERY,
            };
            now - last.logged >= quiet
        });
        if !passed {
            debug!(address, "{text}");
            return;
        }
        *complaint = Some(Complaint {
            text: text.to_owned(),
            logged: now,
        });
        warn!(address, "{text}");
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complaint(&self) -> MutexGuard<'_, Option<Complaint>> {
        self.complaint
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next reply; `None` once the connection is closed. Cancel safe.
async fn next(replies: &mut Subscriber) -> Option<Message> {
    poll_fn(|cx| Pin::new(&mut *replies).poll_next(cx)).await
}

/// A request that waits for its reply. Dropping it forgets the request.
#[derive(Debug)]
pub(super) struct Waiting {
    link: Arc<NatsLink>,
    pub(super) token: u64,
    pub(super) reply: oneshot::Receiver<Message>,
}

impl Waiting {
    pub(super) fn new(link: &Arc<NatsLink>) -> Self {
        let (sender, reply) = oneshot::channel();
        let token = link.next.fetch_add(1, Ordering::Relaxed);
        link.waiting().insert(token, sender);
        Self {
            link: Arc::clone(link),
            token,
            reply,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.link.waiting().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use pipe_server::{Peer, Request};
    use support::nats;

    use super::*;
    use crate::forward::Forward;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_says_nothing_does_not_keep_the_next_attempt_from_being_made() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("nats://{}/a", listener.local_addr().unwrap());
        let (sender, silent) = oneshot::channel();
        thread::spawn(move || {
            let next = || listener.accept().unwrap().0;
            nats::echo(next(), "a", "SUB");
            let held = next();
            sender.send(()).unwrap();
            nats::echo(next(), "a", "nothing");
            drop(held);
        });
        let mut link = NatsLink::new(String::new(), 1);
        link.reconnect_timeout = Duration::from_millis(50);
        let forward = Forward::over(link, Target::parse(&url).unwrap(), 1000);
        silent.await.unwrap();
        let request = Request::new("hello", Peer::current().unwrap());
        let reply = timeout(Duration::from_secs(60), forward.run(request)).await;
        assert_eq!(reply.expect("it hangs").unwrap(), "hello");
    }

    #[test]
    fn a_request_that_is_given_up_is_forgotten() {
        let link = Arc::new(NatsLink::new(String::new(), 1));
        let waiting = Waiting::new(&link);
        assert_eq!(link.waiting().len(), 1);
        drop(waiting);
        assert!(link.waiting().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_complaint_is_not_repeated_at_once() {
        let link = NatsLink::new(String::new(), 1);
        let logged = || link.complaint().as_ref().map(|last| last.logged);
        link.complain("a");
        let first = logged();
        sleep(LOGGED_EVERY).await;
        link.complain("a");
        assert_eq!(logged(), first);
        link.complain("b");
        let second = logged();
        assert_ne!(second, first);
        link.complain("a");
        assert_eq!(logged(), second);
        sleep(REPEATED_EVERY).await;
        link.complain("b");
        assert_ne!(logged(), second);
    }
}
