//! The limit on bytes buffered for all clients of a server.

use std::{
    collections::HashMap,
    convert::Infallible,
    mem,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tracing::warn;

use crate::{
    connection::Identity,
    peer::UserId,
    sync::{Mutex, TaskWaker},
};

/// The budget is updated only when a client's bytes have changed by this much, so that small
/// messages do not write to memory shared by all connections.
const GRAIN: usize = 1024;

/// A client that has not read its replies for this long may be closed. A client that reads is
/// scheduled within this time, also on a busy machine.
const PATIENCE: Duration = Duration::from_millis(250);

/// The interval at which clients are chosen while the budget is spent.
const INTERVAL: Duration = Duration::from_millis(50);

/// The warning that the budget is spent is logged at most once in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The part of the limit that is shared equally by all clients. The rest is for whoever comes
/// first.
const SPARE: usize = 4;

/// The limit on the bytes that a server buffers for all of its clients.
///
/// Until the budget is spent, all clients are read. Then a client is read only if it holds little,
/// or nothing of its earlier requests and replies. So a client that waits for each reply is always
/// served, and what others hold delays nobody. Meanwhile [`Budget::keep`] closes the clients that
/// hold most and do not read.
pub(super) struct Budget {
    limit: usize,
    /// The budget is spent when this many bytes are held.
    most: usize,
    held: AtomicUsize,
    /// Notified each time the budget is spent.
    spent: Notify,
    /// The clients by connection.
    clients: Mutex<HashMap<u64, Weak<ClientBudget>>>,
}

impl Budget {
    /// A limit of 0 is taken as 1: then the budget is spent as soon as anything is held, and
    /// not before.
    pub(super) fn new(limit: Option<usize>) -> Self {
        let limit = limit.unwrap_or(usize::MAX).max(1);
        Self {
            limit,
            most: limit - limit / SPARE,
            held: AtomicUsize::new(0),
            spent: Notify::new(),
            clients: Mutex::default(),
        }
    }

    fn is_spent(&self) -> bool {
        self.held.load(Ordering::SeqCst) >= self.most
    }

    fn add(&self, bytes: usize) {
        let before = self.held.fetch_add(bytes, Ordering::SeqCst);
        if before < self.most && before + bytes >= self.most {
            self.spent.notify_one();
        }
    }

    /// Closes clients each time the budget is spent. Never returns.
    ///
    /// Runs beside the server and not in the task that spends the last bytes, so that one task
    /// decides whom to close, and a request never pays for it.
    pub(super) async fn keep(&self) -> Infallible {
        let mut logged: Option<Instant> = None;
        loop {
            self.spent.notified().await;
            if logged.is_none_or(|time| time.elapsed() >= LOG_INTERVAL) {
                logged = Some(Instant::now());
                // Outside the lock: a log subscriber is user code.
                let connections = self.clients.lock().len();
                warn!(
                    limit = self.limit,
                    connections,
                    "max_buffered_bytes is nearly reached: connections whose clients do not read are closed, \
                     those that hold most first"
                );
            }
            while self.is_spent() {
                self.close_excess();
                sleep(INTERVAL).await;
            }
            // Not by the task that frees the bytes: each request might wake all clients.
            self.wake_waiting();
        }
    }

    /// Returns the clients. They are dropped outside the lock, which a dropped client takes.
    fn clients(&self) -> Vec<Arc<ClientBudget>> {
        let clients = self.clients.lock();
        clients.values().filter_map(Weak::upgrade).collect()
    }

    /// Chooses clients to close until the budget is no longer spent: of the users with a client
    /// that does not read, the one that holds most, and of that user's clients the one that holds
    /// most.
    fn close_excess(&self) {
        let clients = self.clients();
        let mut excess = (self.held.load(Ordering::SeqCst) + 1).saturating_sub(self.most);
        let mut users: HashMap<Option<UserId>, Holder<'_>> = HashMap::new();
        for client in &clients {
            let held = client.counted.load(Ordering::Relaxed);
            // Asking for a user may take system calls.
            if held == 0 {
                continue;
            }
            let holder = users.entry(client.user()).or_default();
            let blocking = client.blocking.lock();
            if blocking.is_chosen {
                excess = excess.saturating_sub(held);
                continue;
            }
            if blocking.is_unread() {
                holder.unread.push((held, client));
            }
            holder.held += held;
        }
        for holder in users.values_mut() {
            holder.unread.sort_unstable_by_key(|&(held, _)| held);
        }
        while excess > 0 {
            let unread = users.values_mut().filter(|user| !user.unread.is_empty());
            let Some(worst) = unread.max_by_key(|user| user.held) else {
                return;
            };
            if let Some((held, client)) = worst.unread.pop() {
                worst.held -= held;
                excess = excess.saturating_sub(held);
                client.choose();
            }
        }
    }

    fn wake_waiting(&self) {
        for client in self.clients() {
            let was_waiting = mem::take(&mut client.blocking.lock().is_waiting);
            if was_waiting {
                client.task.wake();
            }
        }
    }
}

/// The bytes of one user, and those clients of the user that do not read, each with its bytes.
#[derive(Default)]
struct Holder<'a> {
    held: usize,
    unread: Vec<(usize, &'a Arc<ClientBudget>)>,
}

/// One client of the server, and the budget as its task sees it. Only that task changes the bytes.
pub(super) struct ClientBudget {
    budget: Arc<Budget>,
    identity: Arc<Identity>,
    held: AtomicUsize,
    /// The part of `held` that the budget counts.
    counted: AtomicUsize,
    /// Whether `Blocking::unread_since` is set. Changed by its own task.
    is_unread: AtomicBool,
    blocking: Mutex<Blocking>,
    task: TaskWaker,
}

/// What a client that can't go on waits for.
#[derive(Debug, Default)]
struct Blocking {
    /// The time since which the client has not read its replies.
    unread_since: Option<Instant>,
    /// Whether the client is to be closed.
    is_chosen: bool,
    /// Whether the client waits to be read until others have freed bytes.
    is_waiting: bool,
}

impl Blocking {
    /// Returns whether the client has not read its replies in time.
    fn is_unread(&self) -> bool {
        self.unread_since
            .is_some_and(|since| since.elapsed() >= PATIENCE)
    }
}

impl ClientBudget {
    /// Adds a client to the budget.
    pub(super) fn new(budget: &Arc<Budget>, identity: &Arc<Identity>) -> Arc<Self> {
        let client = Arc::new(Self {
            budget: Arc::clone(budget),
            identity: Arc::clone(identity),
            held: AtomicUsize::new(0),
            counted: AtomicUsize::new(0),
            is_unread: AtomicBool::new(false),
            blocking: Mutex::default(),
            task: TaskWaker::default(),
        });
        let mut clients = budget.clients.lock();
        clients.insert(identity.id, Arc::downgrade(&client));
        drop(clients);
        client
    }

    /// Returns a count of no bytes yet.
    pub(super) fn hold(self: &Arc<Self>) -> HeldBytes {
        HeldBytes {
            client: Arc::clone(self),
            bytes: 0,
        }
    }

    /// Returns whether the budget is spent.
    pub(super) fn is_spent(&self) -> bool {
        self.budget.is_spent()
    }

    /// Returns whether this client may be read, although it has earlier requests or replies: the
    /// budget is not spent, or this client holds little.
    pub(super) fn may_hold_more(&self) -> bool {
        let budget = &self.budget;
        !budget.is_spent() || {
            let spare = budget.limit / SPARE / budget.clients.lock().len();
            self.held.load(Ordering::Relaxed) < spare
        }
    }

    /// Ready when `may_hold_more` returns true.
    pub(super) fn poll_may_hold_more(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.may_hold_more() {
            return Poll::Ready(());
        }
        self.task.register(cx.waker());
        self.blocking.lock().is_waiting = true;
        // Checked again: the clients may have been woken before this one was registered.
        match self.may_hold_more() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Called while the client's replies can't be sent. Ready with the limit of the server if this
    /// client has to be closed.
    pub(super) fn poll_unread(&self, cx: &mut Context<'_>) -> Poll<usize> {
        self.task.register(cx.waker());
        let mut blocking = self.blocking.lock();
        if !self.is_unread.load(Ordering::Relaxed) {
            self.is_unread.store(true, Ordering::Relaxed);
            blocking.unread_since = Some(Instant::now());
        }
        match blocking.is_chosen {
            true => Poll::Ready(self.budget.limit),
            false => Poll::Pending,
        }
    }

    /// Called when the client's replies can be sent.
    pub(super) fn read(&self) {
        if self.is_unread.load(Ordering::Relaxed) {
            self.is_unread.store(false, Ordering::Relaxed);
            let mut blocking = self.blocking.lock();
            blocking.unread_since = None;
            blocking.is_chosen = false;
        }
    }

    fn user(&self) -> Option<UserId> {
        Some(self.identity.peer().ok()?.user().clone())
    }

    fn choose(&self) {
        self.blocking.lock().is_chosen = true;
        self.task.wake();
    }

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
            self.budget.held.fetch_sub(counted - held, Ordering::SeqCst);
        }
    }
}

impl Drop for ClientBudget {
    fn drop(&mut self) {
        self.budget.clients.lock().remove(&self.identity.id);
    }
}

/// The bytes of one or more messages. They count until this value is dropped.
pub(super) struct HeldBytes {
    client: Arc<ClientBudget>,
    bytes: usize,
}

impl HeldBytes {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the count to `bytes`.
    pub(super) fn resize(&mut self, bytes: usize) {
        if bytes == self.bytes {
            return;
        }
        let client = &self.client;
        let held = client.held.load(Ordering::Relaxed) - self.bytes + bytes;
        client.held.store(held, Ordering::Relaxed);
        self.bytes = bytes;
        client.settle(held);
    }

    /// Adds the bytes of `other`, which then counts none.
    pub(super) fn absorb(&mut self, mut other: Self) {
        self.bytes += mem::take(&mut other.bytes);
    }

    /// Moves `bytes` of these bytes to a count of their own.
    pub(super) fn split(&mut self, bytes: usize) -> Self {
        self.bytes -= bytes;
        Self {
            client: Arc::clone(&self.client),
            bytes,
        }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests;
