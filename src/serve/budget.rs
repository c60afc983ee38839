//! How many bytes a server holds for all of its clients.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// A client's bytes are counted anew when they have changed by this much, so that small messages, which
/// are most, touch no memory that all connections share.
const GRAIN: usize = 1024;

/// The bytes that a server holds for all of its clients.
///
/// Below the limit everybody reads. At the limit, clients are read in turns, first come, first served: one
/// message is read, answered, and its reply sent before the next client is read. So one client can always
/// go on, whatever the others hold.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    held: AtomicUsize,
    /// Its one permit is the turn.
    queue: Arc<Semaphore>,
    turn: Mutex<Turn>,
}

/// Whose turn it is.
#[derive(Debug, Default)]
struct Turn {
    /// The number of the last turn.
    number: u64,
    /// `None` when that turn is over. Kept here and not with the client: below the limit, a turn ends
    /// while its client is still at work.
    permit: Option<OwnedSemaphorePermit>,
    /// Whether the log says that the limit was reached.
    logged: bool,
}

impl Budget {
    pub(super) fn new(limit: Option<usize>) -> Self {
        Self {
            limit: limit.unwrap_or(usize::MAX),
            held: AtomicUsize::new(0),
            queue: Arc::new(Semaphore::new(1)),
            turn: Mutex::default(),
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
        // Asked once more, in case it has changed before the permit was there to be taken.
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
                "the server holds as many bytes as it may (max_buffered_bytes): clients are read one \
                 after the other"
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
        // Wakes the next one, whose waker is the caller's code.
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
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one client holds of it.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    /// As the budget has it.
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

    /// Takes note of how many bytes are held for this client.
    pub(super) fn set(&mut self, bytes: usize) {
        // All are given back, or clients that idle would add up.
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

    /// Whether everybody may read.
    pub(super) fn is_free(&self) -> bool {
        !self.budget.is_spent()
    }

    /// Whether this client may be read now.
    pub(super) fn may_read(&self) -> bool {
        self.turn.is_some() || self.is_free()
    }

    /// Waits until this client may be read. That is to be done before anything else is waited for.
    pub(super) async fn admit(&mut self) {
        if self.may_read() {
            return;
        }
        let queue = Arc::clone(&self.budget.queue);
        if let Ok(permit) = queue.acquire_owned().await {
            self.turn = Some(self.budget.begin_turn(permit));
        }
    }

    /// What was read in its turn is answered, or there was nothing.
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
