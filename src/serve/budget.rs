//! The limit on bytes buffered for all clients of a server.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// A client's bytes are counted again once they have changed by this much, so that small messages do not
/// touch memory shared by all connections.
const GRAIN: usize = 1024;

/// The bytes that a server buffers for all of its clients.
///
/// Below the limit, every client is read. At the limit, clients are read in turns, in FIFO order: one message
/// is read and answered, and its reply sent, before the next client is read. So one client can always make
/// progress, whatever is buffered for the others.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    held: AtomicUsize,
    /// Its single permit is the turn.
    queue: Arc<Semaphore>,
    turn: Mutex<Turn>,
    /// Notified each time the server gets below the limit.
    freed: Notify,
}

/// Whose turn it is.
#[derive(Debug, Default)]
struct Turn {
    /// The number of the last turn.
    number: u64,
    /// `None` once that turn is over. Stored here and not with the client, because a turn ends as soon as
    /// the server is below the limit, while its client may still be served.
    permit: Option<OwnedSemaphorePermit>,
    /// Whether reaching the limit was logged.
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

    fn is_spent(&self) -> bool {
        self.held.load(Ordering::SeqCst) >= self.limit
    }

    fn begin_turn(&self, permit: OwnedSemaphorePermit) -> u64 {
        let mut turn = self.turn();
        turn.number += 1;
        turn.permit = Some(permit);
        let number = turn.number;
        // Checked again: it may have changed before the permit was stored.
        if !self.is_spent() {
            drop(turn);
            self.end_turn(number);
            return number;
        }
        let logged = std::mem::replace(&mut turn.logged, true);
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
        let mut turn = self.turn();
        let permit = match turn.number == number {
            true => turn.permit.take(),
            false => None,
        };
        // Outside the lock: this wakes the next client, and a waker is user code.
        drop(turn);
        drop(permit);
    }

    fn add(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::SeqCst);
    }

    fn subtract(&self, bytes: usize) {
        let before = self.held.fetch_sub(bytes, Ordering::SeqCst);
        if before >= self.limit && before - bytes < self.limit {
            let number = self.turn().number;
            self.end_turn(number);
            self.freed.notify_waiters();
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's share of it.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    /// As counted in the budget.
    held: usize,
    /// The number of this client's turn.
    turn: Option<u64>,
}

impl Share {
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        let budget = Arc::clone(budget);
        Self {
            budget,
            held: 0,
            turn: None,
        }
    }

    /// Sets how many bytes are buffered for this client.
    pub(super) fn set(&mut self, bytes: usize) {
        // Zero is always counted, or idle clients would add up.
        if bytes != 0 && bytes.abs_diff(self.held) < GRAIN {
            return;
        }
        if bytes > self.held {
            self.budget.add(bytes - self.held);
        } else if bytes < self.held {
            self.budget.subtract(self.held - bytes);
        }
        self.held = bytes;
    }

    /// Whether every client may be read.
    pub(super) fn is_free(&self) -> bool {
        !self.budget.is_spent()
    }

    /// Whether this client may be read now.
    pub(super) fn may_read(&self) -> bool {
        self.turn.is_some() || self.is_free()
    }

    /// Waits until every client may be read, without a place in the queue.
    pub(super) fn freed(&self) -> impl Future<Output = ()> + Send + use<> {
        let budget = Arc::clone(&self.budget);
        async move {
            let mut freed = pin!(budget.freed.notified());
            // Before the check: a notification between the two counts.
            freed.as_mut().enable();
            if budget.is_spent() {
                freed.await;
            }
        }
    }

    /// Waits until this client may be read. Must complete before anything else is awaited.
    pub(super) async fn admit(&mut self) {
        if self.may_read() {
            return;
        }
        let queue = Arc::clone(&self.budget.queue);
        if let Ok(permit) = queue.acquire_owned().await {
            self.turn = Some(self.budget.begin_turn(permit));
        }
    }

    /// Ends the turn: its message is answered, or there was none.
    pub(super) fn end_turn(&mut self) {
        if let Some(number) = self.turn.take() {
            self.budget.end_turn(number);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        self.end_turn();
    }
}
