//! The requests of one client that are in the handler at once.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use super::{failure::Failure, handling::Handling};
use crate::{into_reply::Reply, stats::Stats};

/// The requests of one client that are in the handler and the replies that wait for an earlier one, in the order of
/// the requests.
///
/// The connection's task polls them, and only those that were woken. `FuturesOrdered` and a task per request were
/// refused, since both allocate for every request. Here slots are reused, and one that fails cancels those after it
/// at once.
pub(super) struct InFlight<F> {
    /// The oldest first.
    slots: VecDeque<Slot<F>>,
    /// Empty ones.
    spare: Vec<Slot<F>>,
    bytes: usize,
    has_failed: bool,
    task: Arc<Task>,
    stats: Stats,
}

struct Slot<F> {
    future: Pin<Box<Option<F>>>,
    /// While it is in the handler.
    handling: Option<Handling>,
    /// Once the handler is done.
    answer: Option<Result<Reply, Failure>>,
    /// Those of the request, and then those of the reply.
    bytes: usize,
    signal: Arc<Signal>,
    waker: Waker,
}

/// Whether a slot was woken.
struct Signal {
    is_woken: AtomicBool,
    task: Arc<Task>,
}

/// The connection's task.
#[derive(Default)]
struct Task(Mutex<Option<Waker>>);

impl<F: Future<Output = Result<Reply, Failure>>> InFlight<F> {
    pub(super) fn new(stats: Stats) -> Self {
        Self {
            slots: VecDeque::new(),
            spare: Vec::new(),
            bytes: 0,
            has_failed: false,
            task: Arc::default(),
            stats,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many there are, with the replies that wait.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The bytes of the requests in the handler and of the replies that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether one has failed. It is the last one then.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Adds one of so many bytes.
    pub(super) fn push(&mut self, handling: Handling, bytes: usize, future: F) {
        let mut slot = match self.spare.pop() {
            Some(slot) => slot,
            None => Slot::new(&self.task),
        };
        slot.future.set(Some(future));
        slot.handling = Some(handling);
        slot.bytes = bytes;
        slot.signal.is_woken.store(true, Ordering::Relaxed);
        self.bytes += bytes;
        self.slots.push_back(slot);
    }

    /// Polls those that were woken. Returns whether the oldest one is answered.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.slots.is_empty() {
            return false;
        }
        // Before the signals are read: from here on, one that is set wakes this task.
        self.task.register(cx.waker());
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let before = slot.bytes;
            let is_done = slot.poll(&self.stats);
            self.bytes = self.bytes - before + slot.bytes;
            if is_done && matches!(slot.answer, Some(Err(_))) {
                self.has_failed = true;
                self.cancel_from(index + 1);
                break;
            }
        }
        self.slots[0].answer.is_some()
    }

    /// Removes the oldest one if it is answered.
    pub(super) fn pop(&mut self) -> Option<Result<Reply, Failure>> {
        let answer = self.slots.front_mut()?.answer.take()?;
        if let Some(slot) = self.slots.pop_front() {
            self.bytes -= slot.bytes;
            self.spare.push(slot);
        }
        Some(answer)
    }

    /// Cancels all.
    pub(super) fn cancel(&mut self) {
        self.cancel_from(0);
    }

    fn cancel_from(&mut self, index: usize) {
        for mut slot in self.slots.drain(index..) {
            self.bytes -= slot.bytes;
            if let Some(handling) = slot.handling.take() {
                handling.end(&self.stats, None);
            }
        }
    }

    /// Frees the memory of all but one request.
    pub(super) fn shrink(&mut self) {
        self.spare.truncate(1);
    }
}

impl<F: Future<Output = Result<Reply, Failure>>> Slot<F> {
    fn new(task: &Arc<Task>) -> Self {
        let signal = Arc::new(Signal {
            is_woken: AtomicBool::new(false),
            task: Arc::clone(task),
        });
        Self {
            future: Box::pin(None),
            handling: None,
            answer: None,
            bytes: 0,
            waker: Waker::from(Arc::clone(&signal)),
            signal,
        }
    }

    /// Polls it if it was woken. Returns whether that completed it.
    fn poll(&mut self, stats: &Stats) -> bool {
        if !self.signal.is_woken.load(Ordering::Relaxed) {
            return false;
        }
        // Acquire: the poll sees what happened before it was woken.
        self.signal.is_woken.swap(false, Ordering::Acquire);
        let (Some(handling), Some(future)) = (&self.handling, self.future.as_mut().as_pin_mut())
        else {
            // An old waker of a request that is done.
            return false;
        };
        let mut cx = Context::from_waker(&self.waker);
        let Poll::Ready(answer) = handling.in_scope(|| future.poll(&mut cx)) else {
            return false;
        };
        // The handler's state is dropped now, not when the reply is sent.
        self.future.set(None);
        if let Some(handling) = self.handling.take() {
            handling.end(stats, answer.as_ref().ok());
        }
        let reply = answer.as_ref().ok().and_then(Reply::message);
        self.bytes = reply.map_or(0, |message| message.len());
        self.answer = Some(answer);
        true
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_woken.swap(true, Ordering::Release) {
            self.task.wake();
        }
    }
}

impl Task {
    fn register(&self, waker: &Waker) {
        let mut registered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *registered {
            Some(registered) => registered.clone_from(waker),
            None => *registered = Some(waker.clone()),
        }
    }

    fn wake(&self) {
        let registered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waker = registered.clone();
        // Outside the lock: a waker is user code.
        drop(registered);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
