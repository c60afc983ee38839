//! The task of a shared client: it opens the connections, sends the requests and receives the
//! replies.
//!
//! One task has all connections, so that it chooses one for each request at the moment of sending.
//! A request starts the task, which ends when all connections are closed and no request waits.

use std::{
    future::{Future, poll_fn},
    mem,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    runtime::Handle,
    select,
    task::coop,
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::{connection::PooledConnection, pool::Pool};
use crate::{
    client::Client,
    error::{Chain, ConnectError, SharedCallErrorKind},
};

/// The task of a shared client. Dropping it fails all requests; a runtime that shuts down drops it.
pub(super) struct Driver {
    pool: Arc<Pool>,
    connections: Vec<PooledConnection>,
    has_ended: bool,
}

impl Driver {
    /// Spawns a driver, unless there is one. `first` is a connection that is already open.
    pub(super) fn start(pool: &Arc<Pool>, runtime: &Handle, first: Option<Client>) {
        if mem::replace(&mut pool.queue.lock().has_driver, true) {
            return;
        }
        pool.queue.lock().was_connected |= first.is_some();
        let first = first.map(|client| PooledConnection::new(pool, client));
        let driver = Self {
            pool: Arc::clone(pool),
            connections: first.into_iter().collect(),
            has_ended: false,
        };
        drop(runtime.spawn(driver.run()));
    }

    async fn run(mut self) {
        while !self.has_ended() {
            if self.connections.is_empty() {
                self.connect().await;
            }
            let pool = Arc::clone(&self.pool);
            let mut changed = pin!(pool.changed.notified());
            poll_fn(|cx| match self.poll(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => changed.as_mut().poll(cx),
            })
            .await;
        }
    }

    /// Returns whether all connections are closed and no request needs one.
    fn has_ended(&mut self) -> bool {
        let mut queue = self.pool.queue.lock();
        self.has_ended = self.connections.is_empty() && queue.waiting.is_empty();
        queue.has_driver = !self.has_ended;
        self.has_ended
    }

    /// Opens a connection while there is none, waiting for the server as long as the options allow.
    /// One at a time: a second one could wait for an instance that the server does not have.
    async fn connect(&mut self) {
        let connecting = async {
            let not_before = self.pool.queue.lock().not_before;
            if let Some(time) = not_before {
                sleep_until(time).await;
            }
            self.pool.connect(true).await
        };
        let connected = select! {
            biased;
            () = self.pool.unneeded() => return,
            connected = connecting => connected,
        };
        self.pool.queue.lock().was_connected = connected.is_ok();
        if let Err(failure) = self.add(connected) {
            self.pool.fail_waiting(&failure, |_| true);
        }
    }

    fn add(&mut self, connected: Result<Client, ConnectError>) -> Result<(), SharedCallErrorKind> {
        let client = connected.map_err(|error| {
            debug!(%error, "connecting failed");
            self.pool.queue.lock().delay(false);
            SharedCallErrorKind::Connect(Arc::new(error))
        })?;
        let connection = PooledConnection::new(&self.pool, client);
        self.connections.push(connection);
        Ok(())
    }

    /// Ready once all connections are closed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Replies first: a connection that the server has closed takes no request, and a message
        // that arrives before a request was sent is not its reply.
        self.poll_connections(cx, PooledConnection::poll_replies);
        // A receiver may have a message, but was not allowed to return it.
        let must_yield = !coop::has_budget_remaining();
        if must_yield || self.connect_another(cx) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.send_requests(cx);
        self.poll_connections(cx, PooledConnection::poll_flush);
        let mut connections = self.connections.iter();
        let is_idle = connections.all(|connection| connection.in_flight.is_empty());
        if self.pool.queue.lock().is_over(is_idle) {
            self.connections.clear();
        }
        match self.connections.is_empty() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Polls each connection, and closes those that have failed.
    fn poll_connections(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl Fn(&mut PooledConnection, &mut Context<'_>) -> Poll<SharedCallErrorKind>,
    ) {
        let mut index = 0;
        while let Some(connection) = self.connections.get_mut(index) {
            match poll(connection, cx) {
                Poll::Ready(failure) => {
                    let connection = self.connections.remove(index);
                    self.close(connection, &failure);
                }
                Poll::Pending => index += 1,
            }
        }
    }

    /// Opens another connection, without waiting, if more requests wait than connections are free.
    /// Returns whether there is one more.
    fn connect_another(&mut self, cx: &mut Context<'_>) -> bool {
        let connections = self.connections.iter();
        let free = connections
            .filter(|connection| connection.is_free())
            .count();
        let is_needed = {
            let queue = self.pool.queue.lock();
            queue.waiting.len() > free && queue.not_before.is_none_or(|time| time <= Instant::now())
        };
        let has_any = !self.connections.is_empty();
        let has_all = self.connections.len() == self.pool.most_connections;
        if !is_needed || !has_any || has_all {
            return false;
        }
        let pool = Arc::clone(&self.pool);
        // It is complete at the first poll, as it does not wait.
        match pin!(pool.connect(false)).poll(cx) {
            Poll::Ready(connected) => self.add(connected).is_ok(),
            Poll::Pending => false,
        }
    }

    /// Starts sending the waiting requests, each on the connection with the fewest in flight. One
    /// that waits for a late reply comes last.
    fn send_requests(&mut self, cx: &mut Context<'_>) {
        loop {
            let connections = self.connections.iter_mut();
            let ready = connections.filter_map(|connection| {
                let has_room = connection.poll_room(cx);
                has_room.then_some(connection)
            });
            let best = ready.min_by_key(|connection| {
                let is_late = connection.waits_for_late_reply();
                (is_late, connection.in_flight.len())
            });
            let Some(connection) = best else {
                return;
            };
            let Some(request) = self.pool.next_request(connection.is_slow()) else {
                return;
            };
            connection.send(request);
        }
    }

    /// Closes a connection that has failed.
    fn close(&mut self, connection: PooledConnection, failure: &SharedCallErrorKind) {
        debug!(error = %Chain(failure), "connection failed");
        if matches!(failure, SharedCallErrorKind::OutOfStep) {
            if !self.pool.fail_waiting(failure, |_| true) {
                self.pool.queue.lock().unreported = Some(failure.clone());
            }
        } else if !connection.has_replied && self.connections.is_empty() {
            // It broke under those that waited for it, too.
            self.pool
                .fail_waiting(failure, |request| !request.survives_break());
        }
        self.pool.queue.lock().delay(connection.has_replied);
        connection.close(failure);
        // Its requests may need another one.
        self.pool.changed.notify_one();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.has_ended {
            for connection in mem::take(&mut self.connections) {
                connection.close(&SharedCallErrorKind::Aborted);
            }
            self.pool.queue.lock().has_driver = false;
            self.pool
                .fail_waiting(&SharedCallErrorKind::Aborted, |_| true);
        }
        self.pool.ended.notify_waiters();
    }
}
