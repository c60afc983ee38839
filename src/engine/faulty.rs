//! Fault injection for the memory engine.
//!
//! Each half of a connection has its own random numbers, so its faults do not depend on the order
//! in which tasks run. Faults keep the rules of an engine (see the parent module): a failure loses
//! messages at the end of a conversation, never in the middle.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, MutexGuard},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use fastrand::Rng;
use tokio::time::{Sleep, sleep};

use super::{Channel, Endpoint, Instance, Link, Receive, Received, Transmit, memory::Wire};
use crate::{
    error::{RecvError, SendError},
    peer::Peer,
    sync::Mutex,
};

/// On average, one in this many operations on a connection fails.
const OPERATIONS_PER_FAULT: u32 = 24;

/// On average, one in this many attempts to create or accept fails, and up to `LONGEST_FAILURE`
/// after it.
const ATTEMPTS_PER_FAILURE: u32 = 12;
const LONGEST_FAILURE: u32 = 8;

/// The maximum number of messages that wait in a sender for the flush, as on an engine that sends
/// several at once.
const ROOM: usize = 4;

/// The longest delay, in milliseconds.
const LONGEST_DELAY: u64 = 20;

/// Failures of a pipe of
/// [`bind_memory_with_faults`](crate::ListenerOptions::bind_memory_with_faults), to test a handler,
/// a client or a protocol on a failing transport.
///
/// Clones share their faults. Delays need a Tokio runtime with time enabled; its clock may be
/// paused.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::future::IntoFuture;
/// use pipe_server::{Bytes, CallError, Faults, ListenerOptions, serve};
///
/// let faults = Faults::new();
/// let (listener, pipe) = ListenerOptions::new().bind_memory_with_faults(&faults)?;
/// tokio::spawn(serve(listener, |request: Bytes| async move { request }).into_future());
///
/// faults.fail_send(2);
/// let mut client = pipe.connect().await?;
/// assert_eq!(client.call("one").await?, "one");
/// assert!(matches!(client.call("two").await, Err(CallError::Closed)));
///
/// // The server survives: it retries after a delay.
/// faults.fail_accept(3);
/// let mut client = pipe.without_faults().connect().await?;
/// assert_eq!(client.call("three").await?, "three");
/// # Ok(()) }
/// ```
///
/// A test that tries many seeds prints the one that fails:
///
/// ```
/// # use pipe_server::Faults;
/// for seed in 0..100 {
///     let faults = Faults::seeded(seed);
///     // … the test, which names the seed when it panics
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Faults {
    schedule: Arc<Mutex<Schedule>>,
}

#[derive(Debug, Default)]
struct Schedule {
    /// `None` if nothing fails at random.
    seed: Option<u64>,
    /// Whether operations fail at random now: not before `bind` has returned, nor after `stop`.
    random: bool,
    create: Failures,
    accept: Failures,
    connections: Rng,
    recv: Option<u64>,
    send: Option<u64>,
    injected: u64,
}

impl Faults {
    /// Creates faults that occur only as requested through the other methods.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates random faults from `seed`. The same seed gives the same faults.
    ///
    /// Creating and accepting fail for a while, now and then. On both ends of a connection,
    /// receiving and sending fail or are delayed, also between the messages of a batch and
    /// after a part of a message; connections break; and looking up the peer fails. `bind`
    /// itself does not fail.
    ///
    /// The faults of one half of a connection depend only on the seed and on how many connections
    /// were made before. Those of the listener also depend on how often it is polled, so a
    /// fully repeatable test needs a current-thread runtime with a paused clock.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let faults = Self::new();
        let mut random = Rng::with_seed(seed);
        let mut schedule = faults.lock();
        schedule.seed = Some(seed);
        schedule.create.random = random.fork();
        schedule.accept.random = random.fork();
        schedule.connections = random.fork();
        drop(schedule);
        faults
    }

    /// Makes the next `attempts` to create an instance fail, including those of `bind`.
    pub fn fail_create(&self, attempts: u32) {
        self.lock().create.left = attempts;
    }

    /// Makes the next `attempts` to accept a client fail. No client is lost.
    pub fn fail_accept(&self, attempts: u32) {
        self.lock().accept.left = attempts;
    }

    /// Makes the server fail with [`RecvError::Incomplete`] when it receives the message with this
    /// number, counted from 1, on any connection made from now on. The client seems to leave in
    /// the middle of the message.
    pub fn fail_recv(&self, number: u64) {
        self.lock().recv = Some(number);
    }

    /// Makes the server fail with [`SendError::Io`] when it sends the message with this number,
    /// counted from 1, on any connection made from now on.
    pub fn fail_send(&self, number: u64) {
        self.lock().send = Some(number);
    }

    /// Ends all faults. Connections that have failed stay failed, so the next call on one of them
    /// still fails, including a call of a [`SharedClient`](crate::SharedClient).
    pub fn stop(&self) {
        let mut schedule = self.lock();
        schedule.random = false;
        schedule.create.left = 0;
        schedule.accept.left = 0;
        schedule.recv = None;
        schedule.send = None;
    }

    /// The number of operations that have failed. Delays do not count.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.lock().injected
    }

    /// Lets operations fail at random from now on.
    pub(crate) fn start(&self) {
        let mut schedule = self.lock();
        schedule.random = schedule.seed.is_some();
    }

    /// Wraps `endpoint` so that creating and accepting fail.
    pub(crate) fn bound(&self, endpoint: Box<dyn Endpoint>) -> Box<dyn Endpoint> {
        let faults = self.clone();
        Box::new(FaultyEndpoint { endpoint, faults })
    }

    /// Wraps both ends of a new connection, the server's first, so that their operations fail.
    pub(crate) fn connected(&self, [server, client]: [Channel; 2], wire: &Wire) -> [Channel; 2] {
        let (mut random, recv, send) = {
            let mut schedule = self.lock();
            (schedule.connections.fork(), schedule.recv, schedule.send)
        };
        let mut plan = |fails_at| Plan {
            faults: self.clone(),
            wire: wire.clone(),
            random: random.fork(),
            fails_at,
            operations: 0,
            current: None,
        };
        let server = channel(server, [plan(recv), plan(send), plan(None)]);
        let client = channel(client, [plan(None), plan(None), plan(None)]);
        [server, client]
    }

    /// Fails if an attempt of the listener is to fail now.
    fn attempt(
        &self,
        operation: &str,
        failures: fn(&mut Schedule) -> &mut Failures,
    ) -> io::Result<()> {
        let mut schedule = self.lock();
        let by_chance = schedule.random;
        let fails = failures(&mut schedule).fails(by_chance);
        drop(schedule);
        match fails {
            true => Err(self.error(operation)),
            false => Ok(()),
        }
    }

    /// An error that names its origin.
    fn error(&self, operation: &str) -> io::Error {
        let mut schedule = self.lock();
        schedule.injected += 1;
        io::Error::other(match schedule.seed {
            Some(seed) => format!("{operation} failed on purpose (Faults::seeded({seed}))"),
            None => format!("{operation} failed on purpose (Faults)"),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock()
    }
}

/// Failures of the listener, several in a row.
#[derive(Debug, Default)]
struct Failures {
    random: Rng,
    left: u32,
}

impl Failures {
    fn fails(&mut self, by_chance: bool) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return true;
        }
        let fails = by_chance && self.random.u32(..ATTEMPTS_PER_FAILURE) == 0;
        if fails {
            self.left = self.random.u32(..LONGEST_FAILURE);
        }
        fails
    }
}

/// Has the trait's own `set_full` and `useful_backlog`, as the memory engine has.
struct FaultyEndpoint {
    endpoint: Box<dyn Endpoint>,
    faults: Faults,
}

impl Endpoint for FaultyEndpoint {
    fn create(&self) -> io::Result<Box<dyn Instance>> {
        self.faults
            .attempt("creating an instance", |schedule| &mut schedule.create)?;
        Ok(Box::new(FaultyInstance {
            instance: self.endpoint.create()?,
            faults: self.faults.clone(),
            connected: None,
        }))
    }

    fn max_message_size(&self) -> usize {
        self.endpoint.max_message_size()
    }
}

struct FaultyInstance {
    instance: Box<dyn Instance>,
    faults: Faults,
    /// A client that is connected but not handed out yet.
    connected: Option<(Channel, Pause)>,
}

impl Instance for FaultyInstance {
    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Channel>> {
        let (channel, mut pause) = match self.connected.take() {
            Some(connected) => connected,
            None => {
                let Poll::Ready(channel) = self.instance.poll_connect(cx) else {
                    // Only while nobody is connected, so that no client is lost.
                    self.faults
                        .attempt("accepting a client", |schedule| &mut schedule.accept)?;
                    return Poll::Pending;
                };
                let mut schedule = self.faults.lock();
                let pause = match schedule.random {
                    true => Pause::draw(&mut schedule.accept.random),
                    false => Pause::Polls(0),
                };
                (channel?, pause)
            }
        };
        if pause.poll(cx).is_pending() {
            self.connected = Some((channel, pause));
            return Poll::Pending;
        }
        Poll::Ready(Ok(channel))
    }

    fn close(&mut self) {
        self.instance.close();
    }
}

fn channel(channel: Channel, [receiving, sending, identifying]: [Plan; 3]) -> Channel {
    Channel {
        receiver: Box::new(FaultyReceiver {
            receiver: channel.receiver,
            plan: receiving,
            received: None,
        }),
        sender: Box::new(FaultySender {
            sender: channel.sender,
            plan: sending,
            messages: VecDeque::new(),
            failed: false,
        }),
        link: Arc::new(FaultyLink {
            link: channel.link,
            plan: Mutex::new(identifying),
        }),
    }
}

/// The faults of one half of a connection.
struct Plan {
    faults: Faults,
    wire: Wire,
    random: Rng,
    /// The number of the operation that fails.
    fails_at: Option<u64>,
    operations: u64,
    /// The operation in progress.
    current: Option<(Option<Fault>, Pause)>,
}

/// A failure of an operation.
#[derive(Clone, Copy)]
enum Fault {
    /// With an error of the system.
    Error,
    /// Between the first and the last byte.
    Midway,
    /// The connection breaks, for both sides.
    Cut,
}

impl Plan {
    /// Decides what happens to the next operation.
    fn draw(&mut self) -> (Option<Fault>, Pause) {
        self.operations += 1;
        if self.fails_at == Some(self.operations) {
            return (Some(Fault::Midway), Pause::Polls(0));
        }
        if !self.faults.lock().random {
            return (None, Pause::Polls(0));
        }
        let fault = match self.random.u32(..OPERATIONS_PER_FAULT * 3) {
            0 => Some(Fault::Error),
            1 => Some(Fault::Midway),
            2 => Some(Fault::Cut),
            _ => None,
        };
        (fault, Pause::draw(&mut self.random))
    }

    /// The fault of the operation in progress, which begins if there is none.
    fn fault(&mut self) -> Option<Fault> {
        let current = self.current.take().unwrap_or_else(|| self.draw());
        self.current.insert(current).0
    }

    /// Ready after the delay of the operation in progress, which has then ended.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some((_, pause)) = &mut self.current {
            ready!(pause.poll(cx));
        }
        self.current = None;
        Poll::Ready(())
    }

    /// Breaks the connection.
    fn cut(&self) {
        self.faults.lock().injected += 1;
        self.wire.cut();
    }
}

/// A delay. Not polled again once it is over.
enum Pause {
    /// A number of polls.
    Polls(u32),
    Time(Pin<Box<Sleep>>),
}

impl Pause {
    fn draw(random: &mut Rng) -> Self {
        match random.u32(..12) {
            0 => {
                let time = Duration::from_millis(random.u64(1..=LONGEST_DELAY));
                Self::Time(Box::pin(sleep(time)))
            }
            1..4 => Self::Polls(random.u32(1..4)),
            _ => Self::Polls(0),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Polls(0) => Poll::Ready(()),
            Self::Polls(left) => {
                *left -= 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Self::Time(sleep) => sleep.as_mut().poll(cx),
        }
    }
}

/// Keeps the trait's defaults for `received_ahead` and `stop_receiving_ahead`, as the memory engine
/// does.
struct FaultyReceiver {
    receiver: Box<dyn Receive>,
    plan: Plan,
    /// Received and held back.
    received: Option<Received>,
}

impl Receive for FaultyReceiver {
    fn expects_more(&self) -> bool {
        self.received.is_some() || self.receiver.expects_more()
    }

    fn turn(&self) -> u32 {
        self.receiver.turn()
    }

    fn close(&mut self) {
        self.receiver.close();
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, RecvError>> {
        let fault = self.plan.fault();
        match fault {
            Some(Fault::Error) => {
                let error = self.plan.faults.error("receiving");
                return Poll::Ready(Err(RecvError::Io(error)));
            }
            Some(Fault::Cut) => {
                self.plan.cut();
                return Poll::Ready(Ok(Received::Closed));
            }
            Some(Fault::Midway) | None => {}
        }
        if self.received.is_none() {
            self.received = Some(ready!(self.receiver.poll_recv(cx))?);
        }
        ready!(self.plan.poll_end(cx));
        let received = self.received.take().unwrap_or(Received::Closed);
        Poll::Ready(match (fault, &received) {
            (Some(Fault::Midway), Received::Message(_)) => {
                self.plan.cut();
                Err(RecvError::Incomplete)
            }
            _ => Ok(received),
        })
    }
}

struct FaultySender {
    sender: Box<dyn Transmit>,
    plan: Plan,
    /// Messages that were started and are not in the pipe yet.
    messages: VecDeque<Bytes>,
    failed: bool,
}

impl Transmit for FaultySender {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        if self.messages.len() < ROOM && !self.failed {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush(cx)
    }

    fn start_send(&mut self, message: Bytes) -> Result<(), SendError> {
        self.messages.push_back(message);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        if self.failed {
            return Poll::Ready(Err(SendError::Closed));
        }
        loop {
            ready!(self.sender.poll_flush(cx))?;
            if self.messages.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match self.plan.fault() {
                Some(Fault::Error | Fault::Midway) => {
                    self.fail();
                    let error = self.plan.faults.error("sending");
                    return Poll::Ready(Err(SendError::Io(error)));
                }
                Some(Fault::Cut) => {
                    self.fail();
                    self.plan.cut();
                    return Poll::Ready(Err(SendError::Closed));
                }
                None => {}
            }
            ready!(self.plan.poll_end(cx));
            if let Some(message) = self.messages.pop_front() {
                self.sender.start_send(message)?;
            }
        }
    }

    fn pending(&self) -> usize {
        self.messages.len() + self.sender.pending()
    }
}

impl FaultySender {
    fn fail(&mut self) {
        self.failed = true;
        self.messages.pop_front();
    }
}

struct FaultyLink {
    link: Arc<dyn Link>,
    plan: Mutex<Plan>,
}

impl Link for FaultyLink {
    fn peer(&self) -> io::Result<Peer> {
        let mut plan = self.plan.lock();
        match plan.draw().0 {
            Some(_) => Err(plan.faults.error("asking for the peer")),
            None => self.link.peer(),
        }
    }

    fn is_hung_up(&self) -> bool {
        self.link.is_hung_up()
    }
}
