//! The limit on bytes buffered for all clients of a server.

use std::{
    future::Future,
    mem,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use crate::mutex::Mutex;

/// The budget is updated only when a client's bytes have changed by this much, so that small
/// messages do not write to memory shared by all connections.
const GRAIN: usize = 1024;

/// The limit on the bytes that a server buffers for all of its clients.
///
/// Below the limit, all clients are read. At the limit, clients are read in turns, in FIFO order:
/// the request of one client is read and answered, and its reply sent, before the next client is
/// read. So one client can always make progress, however much is buffered for the others.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    held: AtomicUsize,
    /// Has a single permit: the client that holds it has the turn.
    queue: Arc<Semaphore>,
    turn: Mutex<Turn>,
    /// Notified each time the bytes fall below the limit.
    freed: Notify,
}

/// The turn of the client that is read while the server is at the limit.
#[derive(Debug, Default)]
struct Turn {
    /// The number of the current or last turn.
    number: u64,
    /// `None` once that turn is over. Stored here and not in the `Share`, because a turn ends as
    /// soon as the bytes fall below the limit, even if its client is still being served.
    permit: Option<OwnedSemaphorePermit>,
    /// Whether the warning about the limit was logged.
    logged: bool,
}

impl Budget {
    pub(super) fn new(limit: Option<usize>) -> Self {
        Self {
            limit: limit.unwrap_or(usize::MAX),
            held: AtomicUsize::new(0),
            queue: Arc::new(Semaphore::new(1)),
            turn: Mutex::default(),
            freed: Notify::new(),
        }
    }

    fn is_at_limit(&self) -> bool {
        self.held.load(Ordering::SeqCst) >= self.limit
    }

    fn begin_turn(&self, permit: OwnedSemaphorePermit) -> u64 {
        let mut turn = self.turn.lock();
        turn.number += 1;
        turn.permit = Some(permit);
        let number = turn.number;
        // Checked again: the bytes may have fallen below the limit before the permit was stored.
        if !self.is_at_limit() {
            drop(turn);
            self.end_turn(number);
            return number;
        }
        let logged = mem::replace(&mut turn.logged, true);
        drop(turn);
        if !logged {
            let limit = self.limit;
            warn!(
                limit,
                "the server has reached max_buffered_bytes: clients are read one at a time"
            );
        }
        number
    }

    fn end_turn(&self, number: u64) {
        let mut turn = self.turn.lock();
        let permit = match turn.number == number {
            true => turn.permit.take(),
            false => None,
        };
        // Outside the lock: dropping the permit wakes the next client, and a waker is user code.
        drop(turn);
        drop(permit);
    }

    fn add(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::SeqCst);
    }

    fn subtract(&self, bytes: usize) {
        let before = self.held.fetch_sub(bytes, Ordering::SeqCst);
        if before >= self.limit && before - bytes < self.limit {
            let number = self.turn.lock().number;
            self.end_turn(number);
            self.freed.notify_waiters();
        }
    }
}

/// One client's share of the budget.
pub(super) struct Share {
    count: Arc<ShareCount>,
    /// The number of this client's turn, if it has one.
    turn: Option<u64>,
    /// Waits for a turn or for free bytes. `None` while the client need not wait.
    waiting: Option<Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>>,
    /// Whether `waiting` waits for a turn.
    is_queued: bool,
}

/// The bytes of one client. Only the task of this client changes them.
#[derive(Debug)]
struct ShareCount {
    budget: Arc<Budget>,
    held: AtomicUsize,
    /// The part of `held` that the budget counts.
    counted: AtomicUsize,
}

/// The bytes of one or more messages. They count until this value is dropped.
#[derive(Debug)]
pub(super) struct Held {
    count: Arc<ShareCount>,
    bytes: usize,
}

impl Share {
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self {
            count: Arc::new(ShareCount {
                budget: Arc::clone(budget),
                held: AtomicUsize::new(0),
                counted: AtomicUsize::new(0),
            }),
            turn: None,
            waiting: None,
            is_queued: false,
        }
    }

    /// Counts a message of `bytes` bytes.
    pub(super) fn hold(&self, bytes: usize) -> Held {
        let mut held = Held {
            count: Arc::clone(&self.count),
            bytes: 0,
        };
        held.resize(bytes);
        held
    }

    /// Returns whether the server is below the limit, so that every client may be read.
    pub(super) fn is_below_limit(&self) -> bool {
        !self.count.budget.is_at_limit()
    }

    /// Ready when this client may be read. At the limit, a client that `may_queue` waits for its
    /// turn. Any other client waits until the server is below the limit: its turn could not end
    /// before its earlier requests do.
    pub(super) fn poll_admit(&mut self, cx: &mut Context<'_>, may_queue: bool) -> Poll<()> {
        while !self.is_below_limit() && (self.turn.is_none() || !may_queue) {
            if self.is_queued != may_queue {
                self.waiting = None;
                self.is_queued = may_queue;
            }
            let budget = &self.count.budget;
            let waiting = self.waiting.get_or_insert_with(|| match may_queue {
                true => Box::pin(turn(Arc::clone(&budget.queue))),
                false => Box::pin(freed(Arc::clone(budget))),
            });
            let permit = ready!(waiting.as_mut().poll(cx));
            self.waiting = None;
            if let Some(permit) = permit {
                self.turn = Some(self.count.budget.begin_turn(permit));
            }
        }
        self.waiting = None;
        Poll::Ready(())
    }

    /// Returns whether this client waits until it may be read.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Ends the turn: its request is answered, or there was none.
    pub(super) fn end_turn(&mut self) {
        if let Some(number) = self.turn.take() {
            self.count.budget.end_turn(number);
        }
    }
}

async fn turn(queue: Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    queue.acquire_owned().await.ok()
}

async fn freed(budget: Arc<Budget>) -> Option<OwnedSemaphorePermit> {
    let mut freed = pin!(budget.freed.notified());
    // Enabled before the check, so that a notification between the two is not missed.
    freed.as_mut().enable();
    if budget.is_at_limit() {
        freed.await;
    }
    None
}

impl Drop for Share {
    fn drop(&mut self) {
        self.end_turn();
    }
}

impl Held {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the count to `bytes`.
    pub(super) fn resize(&mut self, bytes: usize) {
        let count = &self.count;
        let held = count.held.load(Ordering::Relaxed) - self.bytes + bytes;
        count.held.store(held, Ordering::Relaxed);
        self.bytes = bytes;
        count.settle(held);
    }

    /// Adds the bytes of `other`, which then counts none.
    pub(super) fn absorb(&mut self, mut other: Self) {
        self.bytes += mem::take(&mut other.bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.resize(0);
    }
}

impl ShareCount {
    /// Updates the budget if its count differs by `GRAIN` or more. A change to zero is always
    /// reported, or the differences of idle clients would add up.
    fn settle(&self, held: usize) {
        let counted = self.counted.load(Ordering::Relaxed);
        if held.abs_diff(counted) < GRAIN && (held > 0 || counted == 0) {
            return;
        }
        self.counted.store(held, Ordering::Relaxed);
        if held > counted {
            self.budget.add(held - counted);
        } else {
            self.budget.subtract(counted - held);
        }
    }
}
