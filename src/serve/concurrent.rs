//! The requests of one client that the handler processes at once.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use super::{budget::HeldBytes, failure::Failure};
use crate::{handler::Reply, sync::TaskWaker};

/// The requests of one client that are in the handler, and the answers that wait for an earlier
/// one, in the order of the requests.
///
/// The connection's task polls them. `FuturesOrdered` and a task per request were rejected because
/// both allocate for every request. Here slots are reused, and a request that fails cancels the
/// later ones at once.
pub(super) struct InFlight<F> {
    /// The slots in use, oldest first, followed by spare ones.
    slots: VecDeque<Slot<F>>,
    used: usize,
    max: usize,
    has_failed: bool,
    /// Wakes the connection's task.
    task: Arc<TaskWaker>,
}

struct Slot<F> {
    /// `Some` while the request is in the handler.
    future: Pin<Box<Option<F>>>,
    answer: Option<Result<Reply, Failure>>,
    /// Counts the bytes of the request and, once it is answered, of the reply.
    held: Option<HeldBytes>,
    /// Created by the first poll. `None` if only one request may be in flight.
    waker: Option<SlotWaker>,
}

/// Wakes the task for one slot, and records that this slot was woken.
struct SlotWaker {
    shared: Arc<SlotWake>,
    waker: Waker,
}

struct SlotWake {
    is_woken: AtomicBool,
    task: Arc<TaskWaker>,
}

impl<F: Future<Output = Result<Reply, Failure>>> InFlight<F> {
    /// Creates an empty set for up to `max` requests at once.
    pub(super) fn new(max: usize) -> Self {
        Self {
            slots: VecDeque::with_capacity(1),
            used: 0,
            max,
            has_failed: false,
            task: Arc::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Returns whether a request is in the handler, and not only its answer here.
    pub(super) fn is_handling(&self) -> bool {
        let mut used = self.slots.iter().take(self.used);
        used.any(|slot| slot.answer.is_none())
    }

    /// Returns whether another request may be added. None may after a failure.
    pub(super) fn has_room(&self) -> bool {
        self.used < self.max && !self.has_failed
    }

    /// Adds a request that `future` answers.
    pub(super) fn push(&mut self, future: F, held: HeldBytes) {
        if self.used == self.slots.len() {
            self.slots.push_back(Slot::new());
        }
        let slot = &mut self.slots[self.used];
        slot.future.set(Some(future));
        slot.held = Some(held);
        if let Some(waker) = &slot.waker {
            waker.shared.is_woken.store(true, Ordering::Relaxed);
        }
        self.used += 1;
    }

    /// Polls the requests that were woken. Returns whether the oldest one is answered.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.used == 0 {
            return false;
        }
        if self.max == 1 {
            // No other slot can wake the task, so this one needs no waker of its own.
            self.slots[0].poll(cx);
        } else {
            self.poll_woken(cx);
        }
        self.slots[0].answer.is_some()
    }

    fn poll_woken(&mut self, cx: &mut Context<'_>) {
        // Registered before the flags are read, so that a slot woken from here on wakes this
        // task.
        self.task.register(cx.waker());
        for index in 0..self.used {
            let slot = &mut self.slots[index];
            slot.poll_if_woken(&self.task);
            if slot.has_failed() {
                self.has_failed = true;
                self.slots.truncate(index + 1);
                self.used = index + 1;
                break;
            }
        }
    }

    /// Removes the oldest request if it is answered. Returns its answer and the count of its bytes.
    pub(super) fn pop(&mut self) -> Option<(Result<Reply, Failure>, HeldBytes)> {
        let slot = self.slots.front_mut()?;
        let (answer, held) = (slot.answer.take()?, slot.held.take()?);
        self.used -= 1;
        self.slots.rotate_left(1);
        Some((answer, held))
    }

    /// Frees the spare slots, but keeps at least one slot.
    pub(super) fn shrink(&mut self) {
        if self.slots.len() > 1 {
            self.slots.truncate(self.used.max(1));
            self.slots.shrink_to_fit();
        }
    }
}

impl<F: Future<Output = Result<Reply, Failure>>> Slot<F> {
    fn new() -> Self {
        Self {
            future: Box::pin(None),
            answer: None,
            held: None,
            waker: None,
        }
    }

    fn has_failed(&self) -> bool {
        matches!(self.answer, Some(Err(_)))
    }

    fn poll_if_woken(&mut self, task: &Arc<TaskWaker>) {
        let waker = self.waker.take().unwrap_or_else(|| SlotWaker::new(task));
        let is_woken = &waker.shared.is_woken;
        // Acquire: the poll observes everything that happened before the wake-up.
        if is_woken.load(Ordering::Relaxed) && is_woken.swap(false, Ordering::Acquire) {
            self.poll(&mut Context::from_waker(&waker.waker));
        }
        self.waker = Some(waker);
    }

    /// Polls the handler if it has not answered yet.
    fn poll(&mut self, cx: &mut Context<'_>) {
        let Some(future) = self.future.as_mut().as_pin_mut() else {
            return;
        };
        let Poll::Ready(answer) = future.poll(cx) else {
            return;
        };
        // Drop the handler's state now and not when the reply is sent.
        self.future.set(None);
        if let Some(held) = &mut self.held {
            let reply = answer.as_ref().ok().and_then(Reply::message);
            held.resize(reply.map_or(0, |message| message.len()));
        }
        self.answer = Some(answer);
    }
}

impl SlotWaker {
    fn new(task: &Arc<TaskWaker>) -> Self {
        let shared = Arc::new(SlotWake {
            is_woken: AtomicBool::new(true),
            task: Arc::clone(task),
        });
        let waker = Waker::from(Arc::clone(&shared));
        Self { shared, waker }
    }
}

impl Wake for SlotWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_woken.swap(true, Ordering::Release) {
            self.task.wake();
        }
    }
}
