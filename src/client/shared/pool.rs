//! The state that the clones of a client share: the unsent requests, and how to connect.
//!
//! A request is at every moment in one place: waiting here, and thus certainly not sent; or with a
//! connection, and thus sent, or soon; or answered. What may run other people's code (waking a
//! task, dropping or answering a request) is done while the queue is unlocked.

use std::{
    collections::BTreeMap,
    future::Future,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};

#[cfg(feature = "test-util")]
use crate::memory_pipe::MemoryPipe;
use crate::{
    backoff::Backoff,
    client::{Client, ClientOptions},
    error::{ConnectError, SharedCallError, SharedCallErrorKind},
    name::PipeName,
    sync::Mutex,
};

/// The number of connections that may break under a request that the server may have executed,
/// before it fails. A request that crashes its server must not do so forever.
const MOST_ATTEMPTS: u8 = 3;

/// The number of connections that may break under a request that was not executed. More, because a
/// server may be restarted several times in a row. With the delays between them these attempts
/// take about three seconds.
const MOST_UNEXECUTED_ATTEMPTS: u8 = 10;

pub(super) type Answer = Result<Bytes, SharedCallError>;

/// The address of the server.
pub(super) enum Address {
    Name(PipeName),
    #[cfg(feature = "test-util")]
    Memory(MemoryPipe),
}

pub(super) struct Pool {
    pub(super) address: Address,
    pub(super) options: ClientOptions,
    pub(super) max_message_size: usize,
    pub(super) most_connections: usize,
    pub(super) max_in_flight: usize,
    /// One for each call that may be in flight.
    pub(super) slots: Arc<Semaphore>,
    pub(super) queue: Mutex<Queue>,
    /// Wakes the driver.
    pub(super) changed: Notify,
    /// Notified when the driver has ended.
    pub(super) ended: Notify,
}

#[derive(Default)]
pub(super) struct Queue {
    /// By number, so that a request that returns is in its former place.
    pub(super) waiting: BTreeMap<u64, Request>,
    last_number: u64,
    status: ClientStatus,
    pub(super) has_driver: bool,
    /// Grows each time a connection can't be opened, or breaks before the first reply.
    backoff: Backoff,
    pub(super) not_before: Option<Instant>,
    /// Whether the last attempt to connect succeeded. The server is then waited for when it
    /// restarts.
    pub(super) was_connected: bool,
    /// A failure that no call waited for: the next one gets it.
    pub(super) unreported: Option<SharedCallErrorKind>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ClientStatus {
    #[default]
    Open,
    /// New calls are refused.
    ShutDown,
    /// The last clone was dropped, so no call is left.
    Dropped,
}

impl Queue {
    /// Delays the next connection after one that has failed, unless it has brought a reply.
    pub(super) fn delay(&mut self, has_replied: bool) {
        if has_replied {
            self.backoff.reset();
            self.not_before = None;
        } else {
            self.not_before = Some(Instant::now() + self.backoff.next_jittered_delay());
        }
    }

    /// Returns whether to close the connections. `is_idle` says that none has a request in flight.
    pub(super) fn is_over(&self, is_idle: bool) -> bool {
        match self.status {
            ClientStatus::Open => false,
            ClientStatus::ShutDown => is_idle && self.waiting.is_empty(),
            ClientStatus::Dropped => true,
        }
    }
}

/// A request, and the slot that it occupies.
pub(super) struct Request {
    pub(super) message: Bytes,
    pub(super) answer: oneshot::Sender<Answer>,
    /// Whether to send the request again if the server may have executed it.
    pub(super) repeat: bool,
    /// Whether a connection broke after the request may have been sent.
    pub(super) may_be_executed: bool,
    /// Connections that broke under the request.
    attempts: u8,
    number: u64,
    /// When the call times out.
    deadline: Option<Instant>,
    _slot: OwnedSemaphorePermit,
}

impl Request {
    /// Counts a connection that broke under the request. Returns whether another one may send it.
    pub(super) fn survives_break(&mut self) -> bool {
        self.attempts += 1;
        match self.may_be_executed {
            true => self.repeat && self.attempts < MOST_ATTEMPTS,
            false => self.attempts < MOST_UNEXECUTED_ATTEMPTS,
        }
    }

    pub(super) fn fail(self, failure: SharedCallErrorKind) {
        let error = SharedCallError::new(self.may_be_executed, failure);
        self.answer(Err(error));
    }

    /// Returns whether the reply comes too late. A call that was dropped has not timed out.
    pub(super) fn has_timed_out(&self) -> bool {
        let deadline = self.deadline.filter(|_| self.answer.is_closed());
        deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Answers the call. If its waker panics, no other call notices.
    pub(super) fn answer(self, answer: Answer) {
        let send = || {
            let request = self;
            _ = request.answer.send(answer);
        };
        _ = catch_unwind(AssertUnwindSafe(send));
    }
}

impl Pool {
    /// Waits for a slot.
    pub(super) fn reserve(
        &self,
    ) -> impl Future<Output = Result<OwnedSemaphorePermit, SharedCallError>> + use<> {
        let slots = Arc::clone(&self.slots);
        async {
            let slot = slots.acquire_owned().await;
            slot.map_err(|_closed| SharedCallError::NotExecuted(SharedCallErrorKind::ShutDown))
        }
    }

    /// Opens a connection. Waits for the server, or for an instance, as long as the options allow,
    /// or not at all.
    pub(super) async fn connect(&self, wait: bool) -> Result<Client, ConnectError> {
        let mut options = self.options.clone();
        if !wait {
            options = options
                .connect_timeout(Duration::ZERO)
                .wait_for_server(false)
                .without_start();
        } else if self.queue.lock().was_connected {
            options = options.wait_by_default();
        }
        match &self.address {
            Address::Name(name) => options.connect(name.clone()).await,
            #[cfg(feature = "test-util")]
            Address::Memory(pipe) => options.connect_memory(pipe).await,
        }
    }

    /// Lets a request wait for a connection. Returns its number, and where its answer arrives.
    pub(super) fn submit(
        &self,
        message: Bytes,
        repeat: bool,
        slot: OwnedSemaphorePermit,
        deadline: Option<Instant>,
    ) -> (u64, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        let mut queue = self.queue.lock();
        queue.last_number += 1;
        let number = queue.last_number;
        let request = Request {
            message,
            answer,
            repeat,
            may_be_executed: false,
            attempts: 0,
            number,
            deadline,
            _slot: slot,
        };
        let refusal = match queue.status {
            ClientStatus::Open => queue.unreported.take(),
            ClientStatus::ShutDown | ClientStatus::Dropped => Some(SharedCallErrorKind::ShutDown),
        };
        if let Some(failure) = refusal {
            drop(queue);
            request.fail(failure);
        } else {
            queue.waiting.insert(number, request);
            drop(queue);
            self.changed.notify_one();
        }
        (number, receiver)
    }

    /// Takes the request to be sent next, the oldest or the newest one.
    pub(super) fn next_request(&self, newest: bool) -> Option<Request> {
        let waiting = &mut self.queue.lock().waiting;
        let next = match newest {
            true => waiting.pop_last(),
            false => waiting.pop_first(),
        };
        next.map(|(_, request)| request)
    }

    /// Takes a request back, if it still waits.
    pub(super) fn withdraw(&self, number: u64) -> Option<Request> {
        let request = self.queue.lock().waiting.remove(&number)?;
        // Connecting ends if nobody waits.
        self.changed.notify_one();
        Some(request)
    }

    /// Lets a request wait again, unless its call was given up.
    pub(super) fn put_back(&self, request: Request) {
        let mut queue = self.queue.lock();
        // While it is locked: a call that is given up from here on withdraws the request.
        if request.answer.is_closed() {
            drop(queue);
        } else {
            queue.waiting.insert(request.number, request);
        }
    }

    /// Fails the waiting requests for which `fails` is true. Returns whether there are any.
    pub(super) fn fail_waiting(
        &self,
        failure: &SharedCallErrorKind,
        mut fails: impl FnMut(&mut Request) -> bool,
    ) -> bool {
        let mut failed = Vec::new();
        let mut queue = self.queue.lock();
        for (number, mut request) in mem::take(&mut queue.waiting) {
            if fails(&mut request) {
                failed.push(request);
            } else {
                queue.waiting.insert(number, request);
            }
        }
        drop(queue);
        let any = !failed.is_empty();
        failed
            .into_iter()
            .for_each(|request| request.fail(failure.clone()));
        any
    }

    /// Ready once no request waits.
    pub(super) async fn unneeded(&self) {
        while !self.queue.lock().waiting.is_empty() {
            self.changed.notified().await;
        }
    }

    /// Refuses new calls, and waits until those in flight are complete and the connections are
    /// closed.
    pub(super) async fn shut_down(&self) {
        self.leave(ClientStatus::ShutDown);
        loop {
            let ended = self.ended.notified();
            if !self.queue.lock().has_driver {
                return;
            }
            ended.await;
        }
    }

    pub(super) fn leave(&self, status: ClientStatus) {
        self.queue.lock().status = status;
        self.slots.close();
        self.changed.notify_one();
    }
}
