//! What the clones of a client share: the calls that wait, and the connections that they wait for.
//!
//! A connection is a *lane*. It is closed until a call needs it; then a [`Driver`] opens it, exchanges messages
//! on it and closes it, each once. A request is at every moment in one place: in the queue of a lane that is
//! not closed, and thus certainly not sent; or with a driver, and thus sent, or soon; or answered. All moves
//! between queues are made under one lock. What may run other people's code (waking a task, dropping a
//! request, giving a slot back) is done after it is released: see [`Aftermath`].

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    mem,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep_until, timeout},
};

use super::driver::{Driver, End};
#[cfg(feature = "test-util")]
use crate::memory_pipe::MemoryPipe;
use crate::{
    backoff::Backoff,
    client::{Client, ClientOptions},
    connection::check,
    error::{CallFailure, ConnectError, SharedCallError},
    mutex::Mutex,
    name::PipeName,
};

/// How many connections may break under one request before it fails: one that makes its server crash must not
/// do so forever.
const MOST_ATTEMPTS: u8 = 3;

type Answer = Result<Bytes, SharedCallError>;

/// Where the server is.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Name(PipeName),
    #[cfg(feature = "test-util")]
    Memory(MemoryPipe),
}

impl Target {
    pub(super) async fn connect(&self, options: &ClientOptions) -> Result<Client, ConnectError> {
        match self {
            Self::Name(name) => options.connect(name.clone()).await,
            #[cfg(feature = "test-util")]
            Self::Memory(pipe) => options.connect_memory(pipe).await,
        }
    }
}

/// A request, and the place that it takes.
pub(super) struct Request {
    id: u64,
    pub(super) message: Bytes,
    answer: oneshot::Sender<Answer>,
    /// Whether to send it again if the server may have executed it.
    pub(super) repeat: bool,
    /// Whether an earlier connection broke after it may have been sent.
    may_be_executed: bool,
    /// How many connections broke under it.
    attempts: u8,
    _slot: OwnedSemaphorePermit,
}

impl Request {
    /// Whether nobody waits for the reply any more.
    fn is_given_up(&self) -> bool {
        self.answer.is_closed()
    }

    pub(super) fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.answer.poll_closed(cx)
    }

    pub(super) fn answer(self, reply: Bytes) {
        _ = self.answer.send(Ok(reply));
    }

    fn fail(self, failure: CallFailure) {
        let error = SharedCallError::new(self.may_be_executed, failure);
        _ = self.answer.send(Err(error));
    }
}

#[derive(Debug)]
pub(super) struct Pool {
    target: Target,
    options: ClientOptions,
    max_message_size: usize,
    /// One for each call that may be in flight.
    slots: Arc<Semaphore>,
    state: Mutex<State>,
    /// Notified when a lane closes.
    closed: Notify,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    lanes: Vec<Lane>,
    next_id: u64,
    /// A failure that no call waited for: the next one gets it.
    unreported: Option<CallFailure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// New calls are refused.
    ShuttingDown,
    /// The last clone was dropped, so no call is left.
    Dropped,
}

#[derive(Default)]
struct Lane {
    phase: Phase,
    /// Whether opening it may take a while: no other lane was connected when it began.
    waits: bool,
    /// Requests that are not sent; none on a closed lane.
    queue: VecDeque<Request>,
    /// How many its driver has taken from the queue.
    in_flight: usize,
    /// Wakes its driver.
    driver: Option<Waker>,
    /// Grows each time it can't be opened, or breaks before the first reply.
    backoff: Backoff,
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Closed,
    Connecting,
    Connected,
}

impl Lane {
    fn load(&self) -> usize {
        self.queue.len() + self.in_flight
    }

    fn is_due(&self) -> bool {
        self.not_before.is_none_or(|time| time <= Instant::now())
    }

    fn delay(&mut self) {
        self.not_before = Some(Instant::now() + self.backoff.next_jittered_delay());
    }
}

/// What is left to do once the state is unlocked.
#[derive(Default)]
#[must_use]
struct Aftermath {
    wakers: Vec<Waker>,
    drivers: Vec<Driver>,
    failed: Vec<(Request, CallFailure)>,
}

impl Aftermath {
    fn run(self, runtime: Option<&Handle>) {
        for driver in self.drivers {
            match runtime {
                Some(runtime) => drop(runtime.spawn(driver.run(None))),
                // It fails the requests in its queue.
                None => drop(driver),
            }
        }
        for waker in self.wakers {
            waker.wake();
        }
        for (request, failure) in self.failed {
            request.fail(failure);
        }
    }
}

impl Pool {
    /// With a connection, if the first one is open already.
    pub(super) fn new(
        target: Target,
        options: ClientOptions,
        max_message_size: usize,
        max_in_flight: usize,
        connections: usize,
        first: Option<Client>,
    ) -> Arc<Self> {
        let mut lanes = Vec::new();
        lanes.resize_with(connections, Lane::default);
        let pool = Arc::new(Self {
            target,
            options,
            max_message_size,
            slots: Arc::new(Semaphore::new(max_in_flight)),
            state: Mutex::new(State {
                stage: Stage::Open,
                lanes,
                next_id: 0,
                unreported: None,
            }),
            closed: Notify::new(),
        });
        if let Some(client) = first {
            pool.state.lock().lanes[0].phase = Phase::Connected;
            tokio::spawn(Driver::new(Arc::clone(&pool), 0).run(Some(client)));
        }
        pool
    }

    /// Waits for a slot.
    pub(super) fn reserve(
        &self,
    ) -> impl Future<Output = Result<OwnedSemaphorePermit, SharedCallError>> + use<> {
        let slots = Arc::clone(&self.slots);
        async {
            let slot = slots.acquire_owned().await;
            slot.map_err(|_closed| SharedCallError::NotSent(CallFailure::ShutDown))
        }
    }

    pub(super) fn call_timeout(&self) -> Option<Duration> {
        self.options.call_timeout
    }

    /// One call, from waiting for a slot, unless there is one already, to the reply.
    pub(super) async fn call(
        self: &Arc<Self>,
        message: Bytes,
        repeat: bool,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Answer {
        if let Err(error) = check(&message, self.max_message_size) {
            let failure = CallFailure::Request(Arc::new(error));
            return Err(SharedCallError::NotSent(failure));
        }
        let mut submitted = None;
        let exchange = async {
            let slot = match slot {
                Some(slot) => slot,
                None => self.reserve().await?,
            };
            let call = submitted.insert(self.submit(message, repeat, slot)?);
            call.answer().await
        };
        let Some(after) = self.call_timeout() else {
            return exchange.await;
        };
        if let Ok(answer) = timeout(after, exchange).await {
            return answer;
        }
        let failure = CallFailure::TimedOut { after };
        match submitted {
            Some(call) => call.give_up(failure),
            None => Err(SharedCallError::NotSent(failure)),
        }
    }

    /// Queues a request on a lane, and opens the lane if it is closed.
    fn submit(
        self: &Arc<Self>,
        message: Bytes,
        repeat: bool,
        slot: OwnedSemaphorePermit,
    ) -> Result<Call, SharedCallError> {
        let Ok(runtime) = Handle::try_current() else {
            let failure = CallFailure::Connect(Arc::new(ConnectError::NoRuntime));
            return Err(SharedCallError::NotSent(failure));
        };
        let (sender, receiver) = oneshot::channel();
        let mut aftermath = Aftermath::default();
        let id = {
            let mut state = self.state.lock();
            if state.stage != Stage::Open {
                return Err(SharedCallError::NotSent(CallFailure::ShutDown));
            }
            if let Some(failure) = state.unreported.take() {
                return Err(SharedCallError::NotSent(failure));
            }
            let id = state.next_id;
            state.next_id += 1;
            let request = Request {
                id,
                message,
                answer: sender,
                repeat,
                may_be_executed: false,
                attempts: 0,
                _slot: slot,
            };
            self.assign(&mut state, request, &mut aftermath);
            id
        };
        aftermath.run(Some(&runtime));
        Ok(Call {
            pool: Arc::clone(self),
            id,
            answer: receiver,
            done: false,
        })
    }

    /// Puts a request at the end of a lane's queue.
    fn assign(self: &Arc<Self>, state: &mut State, request: Request, aftermath: &mut Aftermath) {
        let index = state.choose();
        let lane = &mut state.lanes[index];
        lane.queue.push_back(request);
        if lane.phase == Phase::Closed {
            lane.phase = Phase::Connecting;
            aftermath.drivers.push(Driver::new(Arc::clone(self), index));
        }
        aftermath.wakers.extend(lane.driver.take());
    }

    /// Takes a request back, if it is still in a queue.
    fn withdraw(&self, id: u64) -> Option<Request> {
        let (request, waker) = {
            let mut state = self.state.lock();
            state.lanes.iter_mut().find_map(|lane| {
                let index = lane.queue.iter().position(|request| request.id == id)?;
                // A driver that is still connecting stops if nobody waits.
                let waker = match lane.phase {
                    Phase::Connecting => lane.driver.take(),
                    Phase::Connected | Phase::Closed => None,
                };
                Some((lane.queue.remove(index), waker))
            })?
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        request
    }

    /// Refuses new calls, and waits until those in flight are complete and the lanes are closed.
    pub(super) async fn shut_down(&self) {
        self.leave(Stage::ShuttingDown);
        loop {
            let closed = self.closed.notified();
            let is_closed = |lane: &Lane| lane.phase == Phase::Closed;
            if self.state.lock().lanes.iter().all(is_closed) {
                return;
            }
            closed.await;
        }
    }

    /// Closes all lanes. No call is left.
    pub(super) fn drop_lanes(&self) {
        self.leave(Stage::Dropped);
    }

    fn leave(&self, stage: Stage) {
        let mut aftermath = Aftermath::default();
        {
            let mut state = self.state.lock();
            state.stage = stage;
            for lane in &mut state.lanes {
                aftermath.wakers.extend(lane.driver.take());
            }
        }
        self.slots.close();
        aftermath.run(None);
    }
}

impl State {
    /// The lane for the next request: the one with the least in flight, and an open one rather than a closed
    /// one. As long as none is connected, no further one is opened: it could wait for an instance that the
    /// server does not have.
    fn choose(&self) -> usize {
        let lanes = || self.lanes.iter().enumerate();
        if !self.is_connected() {
            let connecting = lanes().find(|(_, lane)| lane.phase == Phase::Connecting);
            return connecting.map_or(0, |(index, _)| index);
        }
        let usable = lanes().filter(|(_, lane)| match lane.phase {
            Phase::Connected => true,
            Phase::Connecting => !lane.waits,
            Phase::Closed => lane.is_due(),
        });
        let least = usable.min_by_key(|(_, lane)| (lane.load(), lane.phase == Phase::Closed));
        least.map_or(0, |(index, _)| index)
    }

    fn is_connected(&self) -> bool {
        let mut lanes = self.lanes.iter();
        lanes.any(|lane| lane.phase == Phase::Connected)
    }
}

/// For drivers.
impl Pool {
    /// Opens a connection for a lane, after its pause. Also says whether it would have waited for the server:
    /// it does not if calls can use another lane.
    pub(super) async fn connect(&self, lane: usize) -> (Result<Client, ConnectError>, bool) {
        let (waits, not_before) = {
            let mut state = self.state.lock();
            let waits = !state.is_connected();
            state.lanes[lane].waits = waits;
            (waits, state.lanes[lane].not_before)
        };
        if waits {
            if let Some(time) = not_before {
                sleep_until(time).await;
            }
            return (self.target.connect(&self.options).await, true);
        }
        let options = self.options.clone();
        let options = options
            .connect_timeout(Duration::ZERO)
            .wait_for_server(false);
        (self.target.connect(&options).await, false)
    }

    /// Ready once nobody waits for a lane that is being opened.
    pub(super) fn poll_unneeded(&self, lane: usize, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.stage == Stage::Dropped || state.lanes[lane].queue.is_empty() {
            return Poll::Ready(());
        }
        state.lanes[lane].driver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Reports that a lane is open, and spreads the requests that have waited for it or another one.
    pub(super) fn opened(self: &Arc<Self>, lane: usize) {
        let mut aftermath = Aftermath::default();
        {
            let mut state = self.state.lock();
            let opened = &mut state.lanes[lane];
            opened.phase = Phase::Connected;
            opened.waits = false;
            let mut waiting = mem::take(&mut opened.queue);
            // Two can wait if the others broke while they were being opened.
            for lane in state.lanes.iter_mut().filter(|lane| lane.waits) {
                waiting.append(&mut lane.queue);
                aftermath.wakers.extend(lane.driver.take());
            }
            for request in waiting {
                self.assign(&mut state, request, &mut aftermath);
            }
        }
        aftermath.run(Handle::try_current().ok().as_ref());
    }

    /// Takes the next request from a lane's queue, if there is room for one; `None` if the lane is to be
    /// closed.
    pub(super) fn poll_request(
        &self,
        lane: usize,
        in_flight: usize,
        room: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Request>> {
        let mut state = self.state.lock();
        let stage = state.stage;
        let lane = &mut state.lanes[lane];
        lane.in_flight = in_flight;
        let is_idle = in_flight == 0 && lane.queue.is_empty();
        if stage == Stage::Dropped || (stage == Stage::ShuttingDown && is_idle) {
            return Poll::Ready(None);
        }
        if room {
            if let Some(request) = lane.queue.pop_front() {
                lane.in_flight += 1;
                return Poll::Ready(Some(request));
            }
        }
        lane.driver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Closes a lane, and decides what becomes of its requests: those that were taken from its queue and are
    /// not answered, of which the last one is certainly not sent if `last_is_unsent`, and those still in it.
    pub(super) fn ended(
        self: &Arc<Self>,
        lane: usize,
        end: &End,
        taken: VecDeque<Request>,
        last_is_unsent: bool,
        has_replied: bool,
    ) {
        let mut aftermath = Aftermath::default();
        let runtime = Handle::try_current().ok();
        let mut given_up = Vec::new();
        {
            let mut state = self.state.lock();
            let closed = &mut state.lanes[lane];
            closed.phase = Phase::Closed;
            closed.waits = false;
            closed.in_flight = 0;
            closed.driver = None;
            if has_replied {
                closed.backoff.reset();
                closed.not_before = None;
            } else if end.is_failure() {
                closed.delay();
            }
            let waiting = mem::take(&mut closed.queue);
            let unsent = usize::from(last_is_unsent);
            let sent = taken.len().saturating_sub(unsent);
            let taken = taken.into_iter().enumerate().map(|(index, mut request)| {
                let is_sent = index < sent;
                request.may_be_executed |= is_sent;
                (request, is_sent)
            });
            let waiting = waiting.into_iter().map(|request| (request, false));
            let is_connected = state.is_connected();
            let is_dropped = state.stage == Stage::Dropped;
            let mut reported = false;
            for (index, (mut request, is_sent)) in taken.chain(waiting).enumerate() {
                if is_sent || !has_replied {
                    request.attempts += u8::from(end.is_break());
                }
                let stays = match end {
                    _ if is_dropped => false,
                    End::Unneeded => true,
                    End::NotConnected { waited, .. } => !waited || is_connected,
                    End::Broken { .. } => {
                        let may_repeat = request.repeat && !(index == 0 && end.is_final());
                        request.attempts < MOST_ATTEMPTS && (!is_sent || may_repeat)
                    }
                    End::OutOfStep | End::Aborted => false,
                };
                if request.is_given_up() {
                    given_up.push(request);
                } else if stays {
                    self.assign(&mut state, request, &mut aftermath);
                } else {
                    reported = true;
                    aftermath.failed.push((request, end.failure()));
                }
            }
            if matches!(end, End::OutOfStep) && !reported {
                state.unreported = Some(end.failure());
            }
        }
        drop(given_up);
        aftermath.run(runtime.as_ref());
        self.closed.notify_waiters();
    }
}

/// The caller's side of a request.
pub(super) struct Call {
    pool: Arc<Pool>,
    id: u64,
    answer: oneshot::Receiver<Answer>,
    /// Whether it was answered or given up.
    done: bool,
}

impl Call {
    async fn answer(&mut self) -> Answer {
        let answer = (&mut self.answer).await;
        self.done = true;
        // There is none if the waker of another call panicked.
        answer.unwrap_or(Err(SharedCallError::Unanswered(CallFailure::Aborted)))
    }

    /// Returns the answer if there is one by now, and `failure` otherwise.
    fn give_up(mut self, failure: CallFailure) -> Answer {
        self.done = true;
        self.answer.close();
        if let Ok(answer) = self.answer.try_recv() {
            return answer;
        }
        let may_be_executed = match self.pool.withdraw(self.id) {
            Some(request) => request.may_be_executed,
            None => true,
        };
        Err(SharedCallError::new(may_be_executed, failure))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.done {
            self.answer.close();
            drop(self.pool.withdraw(self.id));
        }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Lane")
            .field("phase", &self.phase)
            .field("waiting", &self.queue.len())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
