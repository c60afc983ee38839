//! `--forward`: requests are answered by the subscribers of a NATS subject, on this machine or on
//! others.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    future::{poll_fn, ready},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, Event, Message, StatusCode, Subject, Subscriber, connection::State,
};
use futures_core::Stream as _;
use percent_encoding::percent_decode_str;
use pipe_server::{Bytes, Request};
use pipe_server_cli::exit::Failure;
use tokio::{
    sync::{Semaphore, SemaphorePermit, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};
use url::Url;

/// NATS's own.
const DEFAULT_PORT: u16 = 4222;

/// How long one attempt to connect may take, for each address of the host, and in all. `async-nats`
/// limits only the first part, and would wait for ever for the greeting of a server that says
/// nothing.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long `async-nats` may take to reconnect before this program starts again: an attempt of it
/// can hang, too.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// The backoff after a failed attempt to connect, doubled after each further one. Once connected,
/// `async-nats` reconnects, with a backoff of up to 4 s as well.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// How often an idle connection is checked. `async-nats` gives it up after three times without an
/// answer.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// How many requests `async-nats` may hold before it writes them. Further ones wait in their own
/// tasks.
const REQUESTS_QUEUED: usize = 64;

/// How many replies may wait to be passed on, at least; further ones are dropped. More than one per
/// request, because workers may reply too late or twice.
const REPLIES_QUEUED: usize = 4096;

/// The shortest time between two log lines about the connection, and between two equal ones.
/// Clients can cause some of them.
const LOGGED_EVERY: Duration = Duration::from_secs(1);
const REPEATED_EVERY: Duration = Duration::from_secs(60);

/// How much of an error reply is logged, in characters.
const ERROR_KEPT: usize = 1024;

/// The headers of an error reply, by the convention of NATS's services.
const ERROR_HEADER: &str = "Nats-Service-Error";
const ERROR_CODE_HEADER: &str = "Nats-Service-Error-Code";

/// The value of `--forward`. It is not checked while the command line is parsed, because clap's
/// errors quote the value, which may contain a password.
#[derive(Clone)]
pub(crate) struct ForwardUrl(String);

impl From<String> for ForwardUrl {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for ForwardUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ForwardUrl(..)")
    }
}

impl ForwardUrl {
    /// The parts of the URL.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it, without quoting what may be a secret.
    pub(crate) fn target(&self) -> Result<Target, Failure> {
        Target::parse(&self.0).map_err(|problem| Failure::usage(format!("--forward: {problem}")))
    }
}

/// Where requests are published.
pub(crate) struct Target {
    /// Without credentials.
    server: Url,
    tls: bool,
    credentials: Credentials,
    subject: String,
}

#[derive(PartialEq, Eq)]
enum Credentials {
    None,
    Token(String),
    Password { user: String, password: String },
}

impl Target {
    fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "give nats://HOST:PORT/SUBJECT, or tls://HOST:PORT/SUBJECT";

        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("the URL has no scheme: {FORM}"));
        };
        let tls = match scheme {
            "nats" => false,
            "tls" => true,
            _ => return Err(format!("the URL's scheme is not nats or tls: {FORM}")),
        };
        // Not left to the URL: '%' and '?' are ordinary characters of a subject.
        let (authority, subject) = rest.split_once('/').unwrap_or((rest, ""));
        check_subject(subject)?;
        let mut server = Url::parse(&format!("{scheme}://{authority}"))
            .map_err(|error| format!("the URL's host is wrong: {error}; {FORM}"))?;
        if server.host_str().is_none_or(str::is_empty) {
            return Err(format!("the URL has no host: {FORM}"));
        }
        if !server.path().is_empty() || server.query().is_some() || server.fragment().is_some() {
            return Err(
                "'?', '#' and '\\' can't be in front of the URL's subject; in a password, write them as \
                 %3F, %23 and %5C"
                    .to_owned(),
            );
        }
        let user = decode(server.username())?;
        let credentials = match server.password().map(decode).transpose()? {
            Some(password) => Credentials::Password { user, password },
            None if user.is_empty() => Credentials::None,
            None => Credentials::Token(user),
        };
        let port = server.port().unwrap_or(DEFAULT_PORT);
        // They fail only for a URL without a host.
        _ = server.set_username("");
        _ = server.set_password(None);
        _ = server.set_port(Some(port));
        Ok(Self {
            server,
            tls,
            credentials,
            subject: subject.to_owned(),
        })
    }

    /// Connects, once.
    async fn connect(&self, link: &Arc<NatsLink>) -> Result<Client, String> {
        let options = match &self.credentials {
            Credentials::None => ConnectOptions::new(),
            Credentials::Token(token) => ConnectOptions::with_token(token.clone()),
            Credentials::Password { user, password } => {
                ConnectOptions::with_user_and_password(user.clone(), password.clone())
            }
        };
        let (events, attempt) = (Arc::clone(link), link.next_attempt());
        let connecting = options
            .name("pipe-server")
            // For the servers that this one names, too.
            .require_tls(self.tls)
            .connection_timeout(ADDRESS_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .client_capacity(REQUESTS_QUEUED)
            .subscription_capacity(link.most.max(REPLIES_QUEUED))
            .event_callback(move |event| {
                events.happened(event, attempt);
                ready(())
            })
            .connect(self.server.as_str());
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {CONNECT_TIMEOUT:?}")),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Target")
            .field("server", &self.server.as_str())
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

fn check_subject(subject: &str) -> Result<(), String> {
    let problem = if subject.is_empty() {
        "the URL has no subject: put one after the host, as in nats://HOST:PORT/SUBJECT"
    } else if subject.contains(|c: char| c.is_whitespace() || c.is_control()) {
        "the URL's subject has a blank or a control character in it: remove it"
    } else if subject.contains(['*', '>']) {
        "the URL's subject has a wildcard (* or >), and requests can't be published to one: name one subject"
    } else if subject.split('.').any(str::is_empty) {
        "the URL's subject has an empty part: put characters before, after and between its dots"
    } else {
        return Ok(());
    };
    Err(problem.to_owned())
}

fn decode(text: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(Cow::into_owned)
        .map_err(|_| "the URL's user, password or token is not UTF-8".to_owned())
}

/// The way to the subscribers.
#[derive(Debug)]
pub(crate) struct Forward {
    link: Arc<NatsLink>,
    subject: Subject,
    /// The longest reply, in bytes.
    limit: usize,
    /// One permit per request in flight, in FIFO order.
    permits: Semaphore,
}

/// Why a request got no reply. It is logged, and the connection is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("nobody answers on the subject {0} of --forward: start a worker that subscribes to it")]
    NoResponders(Subject),
    #[error(
        "the request has {length} bytes and the NATS server takes {limit}: raise its max_payload, or lower \
         --max-message-size"
    )]
    RequestTooLong { length: usize, limit: usize },
    #[error("the reply has {length} bytes, more than {limit}: see --max-message-size")]
    ReplyTooLong { length: usize, limit: usize },
    #[error("the reply is empty, and an empty message can't be sent")]
    Empty,
    #[error("the worker replied with an error ({code}): {text}")]
    Worker { code: String, text: String },
    #[error("the connection to the NATS server was closed")]
    Closed,
}

impl Forward {
    /// Starts to connect, and returns at once: the server may start later than this one.
    ///
    /// Up to `most` requests are in flight at the same time.
    pub(crate) fn start(target: Target, most: usize, limit: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        let link = NatsLink::new(target.server.to_string(), most);
        Self::over(link, target, limit)
    }

    fn over(link: NatsLink, target: Target, limit: usize) -> Self {
        let subject = Subject::from(target.subject.as_str());
        let most = link.most;
        let link = Arc::new(link);
        tokio::spawn(Arc::clone(&link).keep(target));
        Self {
            link,
            subject,
            limit,
            permits: Semaphore::new(most),
        }
    }

    /// Publishes the request, once there is a connection and fewer than `most` requests are in
    /// flight, and returns the first reply.
    ///
    /// If the future is dropped before the request is handed to the connection, it is not
    /// published. It is published only once.
    pub(crate) async fn run(&self, request: Request) -> Result<Bytes, ForwardError> {
        let _permit = self.permit().await;
        let connection = self.link.connection().await;
        let length = request.bytes().len();
        let limit = connection.client.server_info().max_payload;
        if length > limit {
            return Err(ForwardError::RequestTooLong { length, limit });
        }
        let mut waiting = Waiting::new(&self.link);
        let reply_to = format!("{}.{}", connection.inbox, waiting.token);
        let client = &connection.client;
        client
            .publish_with_reply(self.subject.clone(), reply_to, request.into_bytes())
            .await
            .map_err(|_| ForwardError::Closed)?;
        let reply = (&mut waiting.reply).await;
        self.checked(reply.map_err(|_| ForwardError::Closed)?)
    }

    async fn permit(&self) -> SemaphorePermit<'_> {
        if let Ok(permit) = self.permits.try_acquire() {
            return permit;
        }
        debug!("as many requests are in flight as --forward-limit allows; waiting for one to end");
        let permit = self.permits.acquire().await;
        permit.expect("the semaphore is never closed")
    }

    fn checked(&self, reply: Message) -> Result<Bytes, ForwardError> {
        if reply.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(ForwardError::NoResponders(self.subject.clone()));
        }
        let header = |name: &str| {
            let value = reply.headers.as_ref()?.get(name)?;
            Some(value.as_str().chars().take(ERROR_KEPT).collect::<String>())
        };
        let (code, text) = (header(ERROR_CODE_HEADER), header(ERROR_HEADER));
        if code.is_some() || text.is_some() {
            return Err(ForwardError::Worker {
                code: code.unwrap_or_default(),
                text: text.unwrap_or_default(),
            });
        }
        match reply.payload.len() {
            0 => Err(ForwardError::Empty),
            length if length > self.limit => Err(ForwardError::ReplyTooLong {
                length,
                limit: self.limit,
            }),
            _ => Ok(reply.payload),
        }
    }
}

/// The connection to the server, and the requests that wait for a reply.
///
/// Not `Client::request`: it keeps an entry for every request without a reply, also when nobody
/// waits for it any more, so that clients could fill the memory.
#[derive(Debug)]
struct NatsLink {
    /// Without credentials.
    address: String,
    most: usize,
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
struct NatsConnection {
    client: Client,
    /// The subject below which replies arrive. It is random, so that others can't guess it.
    inbox: String,
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
    fn new(address: String, most: usize) -> Self {
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
    async fn keep(self: Arc<Self>, target: Target) {
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
    async fn connection(&self) -> Arc<NatsConnection> {
        let mut state = self.state.subscribe();
        let state = state.wait_for(LinkState::is_up).await;
        let state = state.expect("the sender is in this link");
        Arc::clone(state.connection.as_ref().expect("it is up"))
    }

    fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn happened(&self, event: Event, attempt: u64) {
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
struct Waiting {
    link: Arc<NatsLink>,
    token: u64,
    reply: oneshot::Receiver<Message>,
}

impl Waiting {
    fn new(link: &Arc<NatsLink>) -> Self {
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

    use pipe_server::Peer;
    use support::nats;

    use super::*;

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

    fn problem(url: &str) -> String {
        Target::parse(url).unwrap_err()
    }

    #[test]
    fn a_url_names_a_server_and_a_subject() {
        let target = Target::parse("nats://example.org/a.b-c_D?%20").unwrap();
        assert_eq!(target.server.as_str(), "nats://example.org:4222");
        assert_eq!(target.subject, "a.b-c_D?%20");
        assert!(!target.tls && target.credentials == Credentials::None);

        let target = Target::parse("tls://[::1]:5000/a").unwrap();
        assert_eq!(target.server.as_str(), "tls://[::1]:5000");
        assert!(target.tls);
    }

    #[test]
    fn credentials_are_decoded_and_in_neither_the_address_nor_the_debug_output() {
        let target = Target::parse("nats://ann:s%2Fe%40cret@localhost/a").unwrap();
        let password = Credentials::Password {
            user: "ann".to_owned(),
            password: "s/e@cret".to_owned(),
        };
        assert!(target.credentials == password);
        let shown = format!("{} {target:?}", target.server);
        assert!(!shown.contains("ann") && !shown.contains("cret"), "{shown}");

        let target = Target::parse("nats://t0ken@localhost/a").unwrap();
        assert!(target.credentials == Credentials::Token("t0ken".to_owned()));
        let url = ForwardUrl::from("nats://t0ken@localhost/a".to_owned());
        assert!(!format!("{url:?}").contains("t0ken"));
    }

    #[test]
    fn a_wrong_url_is_refused_with_what_to_do_and_without_its_password() {
        for (url, said) in [
            ("localhost:4222/a", "no scheme"),
            ("http://u:secret@localhost/a", "not nats or tls"),
            ("nats://u:secret@localhost:4222", "no subject"),
            ("nats://u:secret@localhost:4222/", "no subject"),
            ("nats:///a", "host"),
            ("nats://u:secret@:4222/a", "host"),
            ("nats://u:secret@localhost:port/a", "port"),
            ("nats://u:secret@localhost/a b", "blank"),
            ("nats://u:secret@localhost/a\n", "blank"),
            ("nats://u:secret@localhost/a.*", "wildcard"),
            ("nats://u:secret@localhost/a.>", "wildcard"),
            ("nats://u:secret@localhost/a..b", "empty part"),
            ("nats://u:secret@localhost/.a", "empty part"),
            ("nats://u:secret?@localhost/a", ""),
            ("nats://u:secret#@localhost/a", ""),
            ("nats://u:%ff@localhost/a", "UTF-8"),
        ] {
            let problem = problem(url);
            assert!(problem.contains(said), "{url}: {problem}");
            assert!(!problem.contains("secret"), "{url}: {problem}");
        }
    }
}
