//! The link to the NATS server: it connects again and again, and knows the requests that wait for
//! a reply.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pipe_server::Bytes;
use pipe_server_cli::mutex::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::rustls::crypto::ring;
use tracing::{debug, info, warn};

use super::{
    ForwardError,
    connect::{NatsAddress, NatsConnection},
    protocol::{NatsError, ServerInfo},
    session::Session,
    target::Target,
};

/// How long one attempt to connect may take in all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The backoff between two attempts to connect, doubled after each, unless the connection between
/// them lasted.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// How many requests may be on their way to the connection. Further ones wait in their own tasks.
const REQUESTS_QUEUED: usize = 64;

/// How many servers of a cluster are remembered. One of them names them.
const MOST_SERVERS: usize = 64;

/// The shortest time between two log lines about the connection, and between two equal ones.
/// Clients can cause some of them.
const LOGGED_EVERY: Duration = Duration::from_secs(1);
const REPEATED_EVERY: Duration = Duration::from_secs(60);

/// How much is logged of what a server says, in characters.
const ERROR_KEPT: usize = 1024;

type Answer = Result<Bytes, ForwardError>;

/// The link to the server, and the requests that wait for a reply.
#[derive(Debug)]
pub(super) struct NatsLink {
    /// Without credentials.
    address: String,
    pub(super) subject: String,
    /// The longest reply, in bytes.
    pub(super) limit: usize,
    /// The start of the subjects on which replies arrive. It is random, so that others can't guess
    /// it, and the same on all connections, so that a reply may arrive on the next one.
    pub(super) inbox: String,
    connect_timeout: Duration,
    requests: mpsc::Sender<Outgoing>,
    waiting: Mutex<HashMap<u64, WaitingRequest>>,
    /// The token of the next request.
    next: AtomicU64,
    complaint: Mutex<Option<Complaint>>,
}

/// A request on its way to the connection.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) token: u64,
    pub(super) payload: Bytes,
}

#[derive(Debug)]
struct WaitingRequest {
    answer: oneshot::Sender<Answer>,
    /// Whether the request may have been published.
    is_published: bool,
}

/// The last one that was logged.
#[derive(Debug)]
struct Complaint {
    text: String,
    logged: Instant,
}

impl NatsLink {
    /// Returns the link, and the requests for [`keep`](Self::keep).
    pub(super) fn new(target: &Target, limit: usize) -> (Self, mpsc::Receiver<Outgoing>) {
        let (requests, receiver) = mpsc::channel(REQUESTS_QUEUED);
        let link = Self {
            address: target.server.to_string(),
            subject: target.subject.clone(),
            limit,
            inbox: random_inbox(),
            connect_timeout: CONNECT_TIMEOUT,
            requests,
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            complaint: Mutex::default(),
        };
        (link, receiver)
    }

    /// Publishes a request, once there is a connection, and waits for the first reply.
    ///
    /// If the future is dropped before the request is on the connection, it is not published.
    pub(super) async fn request(self: &Arc<Self>, payload: Bytes) -> Answer {
        let mut waiting = Waiting::new(self);
        let token = waiting.token;
        let outgoing = self.requests.send(Outgoing { token, payload }).await;
        outgoing.map_err(|_| ForwardError::Closed)?;
        let answer = (&mut waiting.answer).await;
        answer.map_err(|_| ForwardError::Closed)?
    }

    /// Connects and passes requests and replies on, for ever.
    pub(super) async fn keep(
        self: Arc<Self>,
        target: Target,
        mut requests: mpsc::Receiver<Outgoing>,
    ) {
        let mut pause = FIRST_PAUSE;
        let mut servers = vec![target.address.clone()];
        for attempt in 0.. {
            let address = servers[attempt % servers.len()].clone();
            match self.connect(&target, &address).await {
                Ok(connection) => {
                    let begun = Instant::now();
                    *self.complaint.lock() = None;
                    info!(address = self.address, "connected to the NATS server of --forward");
                    let (error, info) = Session::run(&self, connection, &mut requests).await;
                    self.lost(&error);
                    servers = known_servers(&target, &info);
                    if begun.elapsed() > LONGEST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
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

    async fn connect(
        &self,
        target: &Target,
        address: &NatsAddress,
    ) -> Result<NatsConnection, NatsError> {
        let connecting = NatsConnection::open(target, address);
        let silent = |_| NatsError::Silent(self.connect_timeout);
        timeout(self.connect_timeout, connecting)
            .await
            .map_err(silent)?
    }

    /// A reply may still arrive on the next connection, but not from a server that means harm.
    fn lost(&self, error: &NatsError) {
        self.complain(&format!(
            "the connection to the NATS server of --forward is lost: {error}; reconnecting: requests wait until \
             --handler-timeout"
        ));
        if !error.is_violation() {
            return;
        }
        let published: Vec<_> = {
            let mut waiting = self.waiting.lock();
            let published = waiting.iter().filter(|(_, request)| request.is_published);
            let published: Vec<_> = published.map(|(token, _)| *token).collect();
            let requests = published.iter().map(|token| waiting.remove(token));
            requests.flatten().collect()
        };
        for request in published {
            let error = ForwardError::Violation(error.to_string());
            _ = request.answer.send(Err(error));
        }
    }

    /// The request for which a message on `subject` is the reply, if one waits.
    pub(super) fn token(&self, subject: &str) -> Option<u64> {
        let token = subject.strip_prefix(&self.inbox)?.parse().ok()?;
        self.waiting.lock().contains_key(&token).then_some(token)
    }

    /// Marks a request as published. Returns whether anybody waits for its reply.
    pub(super) fn publishes(&self, token: u64) -> bool {
        match self.waiting.lock().get_mut(&token) {
            Some(request) => {
                request.is_published = true;
                true
            }
            None => false,
        }
    }

    pub(super) fn answer(&self, token: u64, answer: Answer) {
        let request = self.waiting.lock().remove(&token);
        if let Some(request) = request {
            _ = request.answer.send(answer);
        }
    }

    /// Logs an error that the server reports.
    pub(super) fn complain_of(&self, text: &str) {
        let text: String = text.chars().take(ERROR_KEPT).collect();
        let text = text.escape_debug();
        self.complain(&format!(
            "the NATS server of --forward reports an error: {text}"
        ));
    }

    /// Logs a warning, unless one was logged a moment ago or it says the same as the last one.
    pub(super) fn complain(&self, text: &str) {
        let address = &self.address;
        let now = Instant::now();
        let mut complaint = self.complaint.lock();
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
}

/// The servers to try, the one of the URL first.
fn known_servers(target: &Target, info: &ServerInfo) -> Vec<NatsAddress> {
    let mut servers = vec![target.address.clone()];
    let named = info.connect_urls.iter().take(MOST_SERVERS);
    for address in named.filter_map(|url| NatsAddress::parse(url)) {
        if !servers.contains(&address) {
            servers.push(address);
        }
    }
    servers
}

fn random_inbox() -> String {
    let mut bytes = [0; 16];
    let filled = ring::default_provider().secure_random.fill(&mut bytes);
    filled.expect("the system has random numbers");
    format!("_INBOX.{}.", hex::encode(bytes))
}

/// A request that waits for its reply. Dropping it forgets the request.
#[derive(Debug)]
struct Waiting {
    link: Arc<NatsLink>,
    token: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Waiting {
    fn new(link: &Arc<NatsLink>) -> Self {
        let (sender, answer) = oneshot::channel();
        let token = link.next.fetch_add(1, Ordering::Relaxed);
        let request = WaitingRequest {
            answer: sender,
            is_published: false,
        };
        link.waiting.lock().insert(token, request);
        Self {
            link: Arc::clone(link),
            token,
            answer,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.link.waiting.lock().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use support::nats;

    use super::*;

    fn link(url: &str) -> (NatsLink, mpsc::Receiver<Outgoing>, Target) {
        let target = Target::parse(url).unwrap();
        let (link, requests) = NatsLink::new(&target, 1000);
        (link, requests, target)
    }

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
        let (mut link, requests, target) = link(&url);
        link.connect_timeout = Duration::from_millis(50);
        let link = Arc::new(link);
        tokio::spawn(Arc::clone(&link).keep(target, requests));
        silent.await.unwrap();
        let reply = timeout(Duration::from_secs(60), link.request("hello".into())).await;
        assert_eq!(reply.expect("it hangs").unwrap(), "hello");
    }

    #[test]
    fn a_request_that_is_given_up_is_forgotten_and_not_published() {
        let (link, _requests, _) = link("nats://localhost/a");
        let link = Arc::new(link);
        let waiting = Waiting::new(&link);
        let (token, subject) = (waiting.token, format!("{}{}", link.inbox, waiting.token));
        assert!(link.publishes(token));
        assert_eq!(link.token(&subject), Some(token));
        drop(waiting);
        assert!(!link.publishes(token));
        assert_eq!(link.token(&subject), None);
        assert!(link.waiting.lock().is_empty());
    }

    #[test]
    fn only_what_was_published_fails_with_a_server_that_breaks_the_protocol() {
        let (link, _requests, _) = link("nats://localhost/a");
        let link = Arc::new(link);
        let (mut published, mut unpublished) = (Waiting::new(&link), Waiting::new(&link));
        assert!(link.publishes(published.token));
        link.lost(&NatsError::Closed);
        published.answer.try_recv().unwrap_err();
        link.lost(&NatsError::LineTooLong);
        let error = published.answer.try_recv().unwrap().unwrap_err();
        assert!(error.to_string().contains("65536"), "{error}");
        unpublished.answer.try_recv().unwrap_err();
        assert!(link.publishes(unpublished.token));
    }

    #[test]
    fn the_servers_of_a_cluster_are_tried_after_the_one_of_the_url() {
        let target = Target::parse("nats://localhost:1/a").unwrap();
        let urls = (1..1000).map(|port| format!("localhost:{port}"));
        let info = ServerInfo {
            max_payload: 0,
            tls_required: false,
            connect_urls: urls.collect(),
            lame_duck: false,
        };
        let servers = known_servers(&target, &info);
        assert_eq!(servers.len(), MOST_SERVERS);
        assert_eq!(servers[0], target.address);
    }

    #[test]
    fn inboxes_are_not_repeated() {
        assert_ne!(random_inbox(), random_inbox());
    }

    #[tokio::test(start_paused = true)]
    async fn a_complaint_is_not_repeated_at_once() {
        let (link, _requests, _) = link("nats://localhost/a");
        let logged = || link.complaint.lock().as_ref().map(|last| last.logged);
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
