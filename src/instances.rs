//! The instances of a pipe, and how one is kept waiting for the next client.

use std::{
    io, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tracing::warn;

use crate::{
    engine::{Channel, Endpoint, Instance, Link},
    error::Chain,
    name::PipeName,
    reason::Reason,
    stats::{InstancesChange, Stats},
};

/// The instances of one pipe, shared by its listener and its connections.
pub(crate) struct Instances {
    state: Mutex<State>,
    stats: Stats,
}

/// The limit is enforced here and not by the system. When a connection ends at the limit, its replacement
/// must exist before the old instance closes, or the name would briefly disappear.
struct State {
    /// `None` once the listener is dropped.
    endpoint: Option<Box<dyn Endpoint>>,
    waiting: Vec<Box<dyn Instance>>,
    connected: usize,
    /// Instances of closed connections, kept open because their replacement could not be created. They hold
    /// the name until it can.
    finished: Vec<Arc<dyn Link>>,
    acceptor: Option<Waker>,
    backlog: usize,
    max: usize,
}

impl Instances {
    /// Creates the first instances.
    pub(crate) fn new(
        name: PipeName,
        endpoint: Box<dyn Endpoint>,
        backlog: usize,
        max: usize,
    ) -> io::Result<Arc<Self>> {
        let mut state = State {
            backlog: backlog.min(endpoint.useful_backlog()),
            max,
            endpoint: Some(endpoint),
            waiting: Vec::new(),
            connected: 0,
            finished: Vec::new(),
            acceptor: None,
        };
        state.top_up()?;
        let stats = Stats::new(name);
        stats.publish_instances(stats.set_instances(state.connected, state.waiting.len()));
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            stats,
        }))
    }

    /// Returns a connected channel, for which [`release`](Self::release) must be called, and whether the next
    /// instance could be created.
    pub(crate) fn poll_accept(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Channel, io::Result<()>)>> {
        let mut state = self.lock();
        let accepted = state.poll_accept(cx);
        let change = self.count(&state);
        drop(state);
        self.stats.publish_instances(change);
        if let Poll::Ready(Ok(_)) = accepted {
            self.stats.count_accepted();
        }
        accepted
    }

    /// Releases a connection, and creates the next instance if the limit left none waiting. Called while the
    /// connection's own instance, which `link` holds, is still open.
    pub(crate) fn release(&self, link: &Arc<dyn Link>) {
        let mut state = self.lock();
        let connected = state.connected - 1;
        state.set_connected(connected);
        let topped_up = state.top_up();
        if topped_up.is_err() && state.waiting.is_empty() {
            state.finished.push(Arc::clone(link));
        }
        let change = self.count(&state);
        let acceptor = state.acceptor.take();
        // Outside the lock: a waker, a log subscriber and a recorder of metrics are user code, which may drop
        // a connection or the listener, or block.
        drop(state);
        self.stats.publish_instances(change);
        self.log_missing(topped_up);
        if let Some(acceptor) = acceptor {
            acceptor.wake();
        }
    }

    /// Gives up the name. Connections stay open.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        let endpoint = state.endpoint.take();
        let waiting = mem::take(&mut state.waiting);
        let finished = mem::take(&mut state.finished);
        let change = self.count(&state);
        drop(state);
        self.stats.publish_instances(change);
        drop((waiting, finished, endpoint));
    }

    /// Called outside the lock: a log subscriber is user code, which may call back into this type.
    pub(crate) fn log_missing(&self, topped_up: io::Result<()>) {
        let Err(error) = topped_up else { return };
        let reason = Reason::Instance;
        if let Some(pass) = self.stats.count_error(reason) {
            warn!(
                pipe.name = %self.stats.log_limit().pipe(),
                reason = reason.as_str(),
                suppressed = pass.suppressed,
                error = %Chain(&error),
                "the next instance can't be created; trying again"
            );
        }
    }

    /// The figures of the pipe and its connections.
    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Called under the lock, so that an older count does not replace a newer one.
    fn count(&self, state: &State) -> InstancesChange {
        self.stats
            .set_instances(state.connected, state.waiting.len())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sets the number of connected clients, and tells the engine when it reaches or leaves the limit.
    fn set_connected(&mut self, connected: usize) {
        let was_full = self.connected == self.max;
        self.connected = connected;
        let is_full = self.connected == self.max;
        if let Some(endpoint) = &self.endpoint {
            if is_full != was_full {
                endpoint.set_full(is_full);
            }
        }
    }

    /// Creates instances until `backlog` of them wait or the limit is reached.
    fn top_up(&mut self) -> io::Result<()> {
        let Some(endpoint) = &self.endpoint else {
            return Ok(());
        };
        while self.waiting.len() < self.backlog && self.connected + self.waiting.len() < self.max {
            self.waiting.push(endpoint.create()?);
            self.finished.clear();
        }
        Ok(())
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Channel, io::Result<()>)>> {
        let topped_up = self.top_up();
        // Every waiting instance is polled: the system chooses which one a client gets.
        for index in 0..self.waiting.len() {
            match self.waiting[index].poll_connect(cx) {
                Poll::Ready(Ok(channel)) => {
                    // Create the replacement first, while the connected instance holds the name.
                    self.set_connected(self.connected + 1);
                    drop(self.waiting.remove(index));
                    return Poll::Ready(Ok((channel, self.top_up())));
                }
                Poll::Ready(Err(error)) => {
                    // Create the replacement first here, too. Until that succeeds, the instance is kept and
                    // polled again: the name may depend on it, and a client may still connect to it.
                    let failed = self.waiting.remove(index);
                    if self.top_up().is_err() {
                        self.waiting.push(failed);
                    }
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {}
            }
        }
        topped_up?;
        self.acceptor = Some(cx.waker().clone());
        Poll::Pending
    }
}
