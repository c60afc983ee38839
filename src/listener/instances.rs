//! The instances of a pipe, one of which is always kept waiting for the next client.

use std::{
    io, mem,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use crate::{
    connection::ConnectionOwner,
    engine::{Channel, Endpoint, Instance, Link},
    sync::Mutex,
    telemetry::{Details, Reason, Telemetry},
};

/// The instances of one pipe, shared by its listener and its connections.
pub(crate) struct Instances {
    state: Mutex<InstanceSet>,
    telemetry: Telemetry,
}

/// The errors of a change of the number of connected clients.
pub(crate) struct InstanceErrors {
    /// The result of telling the engine that the limit was reached or left.
    set_full: io::Result<()>,
    /// The result of creating the next instance.
    create: io::Result<()>,
}

/// The state of the instances. The limit is enforced here and not by the system: when a connection
/// ends at the limit, its replacement must exist before the old instance closes, or the name would
/// briefly disappear.
struct InstanceSet {
    /// `None` once the listener is dropped.
    endpoint: Option<Box<dyn Endpoint>>,
    waiting: Vec<Box<dyn Instance>>,
    connected: usize,
    /// The time when the last connection closed, or that of `bind`.
    last_closed: Instant,
    /// Links of closed connections, kept open because their replacement could not be created. They
    /// keep the name in existence until it can.
    unreplaced: Vec<Arc<dyn Link>>,
    /// The task that waits for a client. Cleared while that task accepts one: otherwise it would
    /// wake itself with each connection that it refuses, and starve other tasks.
    acceptor: Option<Waker>,
    backlog: usize,
    max: usize,
}

impl Instances {
    /// Creates the first instances.
    pub(crate) fn new(
        telemetry: Telemetry,
        endpoint: Box<dyn Endpoint>,
        backlog: usize,
        max: usize,
    ) -> io::Result<Arc<Self>> {
        let mut state = InstanceSet {
            backlog: backlog.min(endpoint.useful_backlog()),
            max,
            endpoint: Some(endpoint),
            waiting: Vec::new(),
            connected: 0,
            last_closed: Instant::now(),
            unreplaced: Vec::new(),
            acceptor: None,
        };
        state.top_up()?;
        let instances = Self {
            state: Mutex::new(state),
            telemetry,
        };
        instances.update(|_| ());
        Ok(Arc::new(instances))
    }

    /// Changes the state and updates the statistics. Whatever may run user code is returned by
    /// `change`, to be used or dropped outside the lock: a waker, a log subscriber or a metrics
    /// recorder may block, or drop a connection or the listener.
    fn update<T>(&self, change: impl FnOnce(&mut InstanceSet) -> T) -> T {
        let mut state = self.state.lock();
        let changed = change(&mut state);
        let stats = self.telemetry.stats();
        // Under the lock, so that an older count does not replace a newer one.
        let instances = stats.set_instances(state.connected, state.waiting.len());
        drop(state);
        stats.publish_instances(instances);
        changed
    }

    /// Returns a connected channel, for which [`release`](Self::release) must be called, and the
    /// errors to [`log`](Self::log).
    pub(crate) fn poll_accept(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Channel, InstanceErrors)>> {
        let accepted = self.update(|state| state.poll_accept(cx));
        if let Poll::Ready(Ok(_)) = accepted {
            self.telemetry.stats().count_accepted();
        }
        accepted
    }

    /// Releases the name, and refuses further clients as far as the system can. Clients that have
    /// connected are returned by [`poll_accept_rest`](Self::poll_accept_rest). Connections stay
    /// open.
    pub(crate) fn close(&self) {
        drop(self.update(|state| {
            state.close();
            (mem::take(&mut state.unreplaced), state.endpoint.take())
        }));
    }

    /// Ready with the channel of a client that had connected before [`close`](Self::close), for
    /// which [`release`](Self::release) must be called, or with `None` if there is none.
    pub(crate) fn poll_accept_rest(&self, cx: &mut Context<'_>) -> Poll<Option<Channel>> {
        let accepted = self.update(|state| state.poll_accept_rest(cx));
        if let Poll::Ready(Some(_)) = accepted {
            self.telemetry.stats().count_accepted();
        }
        accepted
    }

    /// Closes everything but the connections. Clients that have connected and were not returned are
    /// disconnected.
    pub(crate) fn release_all(&self) {
        drop(self.update(|state| {
            if state.endpoint.is_some() {
                // Some engines keep a dropped instance for a while, and clients could still connect
                // to it.
                state.close();
            }
            let waiting = mem::take(&mut state.waiting);
            (
                waiting,
                mem::take(&mut state.unreplaced),
                state.endpoint.take(),
            )
        }));
    }

    /// Logs the errors. Called outside the lock: a log subscriber is user code, which may call back
    /// into this type.
    pub(crate) fn log(&self, errors: &InstanceErrors) {
        let InstanceErrors { set_full, create } = errors;
        if let Err(error) = set_full {
            self.telemetry
                .report(Reason::ClientQueue, error, Details::default());
        }
        if let Err(error) = create {
            self.telemetry
                .report(Reason::CreateInstance, error, Details::default());
        }
    }

    /// The number of clients served at once. `usize::MAX` for no limit.
    pub(crate) fn max(&self) -> usize {
        self.state.lock().max
    }

    /// The number of clients that are connected.
    pub(crate) fn connected(&self) -> usize {
        self.state.lock().connected
    }

    /// The time since which no client has been connected; `None` if one is.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        (state.connected == 0).then_some(state.last_closed)
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }
}

impl ConnectionOwner for Instances {
    /// Creates the instance that the limit held back, before the connection closes.
    fn release(&self, link: &Arc<dyn Link>) {
        let (errors, acceptor) = self.update(|state| {
            state.last_closed = Instant::now();
            let set_full = state.set_connected(state.connected - 1);
            let create = state.top_up();
            if create.is_err() && state.waiting.is_empty() {
                state.unreplaced.push(Arc::clone(link));
            }
            (InstanceErrors { set_full, create }, state.acceptor.take())
        });
        self.log(&errors);
        if let Some(acceptor) = acceptor {
            acceptor.wake();
        }
    }
}

impl InstanceSet {
    /// Sets the number of connected clients, and tells the engine if this reaches or leaves the
    /// limit.
    fn set_connected(&mut self, connected: usize) -> io::Result<()> {
        let was_full = self.connected == self.max;
        self.connected = connected;
        let is_full = self.connected == self.max;
        match &self.endpoint {
            Some(endpoint) if is_full != was_full => endpoint.set_full(is_full),
            _ => Ok(()),
        }
    }

    /// Creates instances until `backlog` of them wait or the limit is reached.
    fn top_up(&mut self) -> io::Result<()> {
        let Some(endpoint) = &self.endpoint else {
            return Ok(());
        };
        while self.waiting.len() < self.backlog && self.connected + self.waiting.len() < self.max {
            self.waiting.push(endpoint.create()?);
            self.unreplaced.clear();
        }
        Ok(())
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Channel, InstanceErrors)>> {
        let topped_up = self.top_up();
        // Every waiting instance is polled: the system chooses the one that a client gets.
        for index in 0..self.waiting.len() {
            match self.waiting[index].poll_connect(cx) {
                Poll::Ready(Ok(channel)) => {
                    // Create the replacement first, while the connected instance keeps the name in
                    // existence.
                    let set_full = self.set_connected(self.connected + 1);
                    drop(self.waiting.remove(index));
                    let create = self.top_up();
                    return Poll::Ready(Ok((channel, InstanceErrors { set_full, create })));
                }
                Poll::Ready(Err(error)) => {
                    // Create the replacement first here, too. Keep and poll the failed instance if
                    // that fails: the name may depend on it, and a client may still connect to it.
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

    fn close(&mut self) {
        // At the limit no instance waits, but the system's own queue may hold clients.
        if let (Some(endpoint), true) = (&self.endpoint, self.waiting.is_empty()) {
            if endpoint.useful_backlog() == 1 {
                self.waiting.extend(endpoint.create());
            }
        }
        for instance in &mut self.waiting {
            instance.close();
        }
    }

    fn poll_accept_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Channel>> {
        let mut index = 0;
        while let Some(instance) = self.waiting.get_mut(index) {
            match instance.poll_connect(cx) {
                Poll::Ready(Ok(channel)) => {
                    self.connected += 1;
                    return Poll::Ready(Some(channel));
                }
                Poll::Ready(Err(_)) => drop(self.waiting.remove(index)),
                Poll::Pending => index += 1,
            }
        }
        match self.waiting.is_empty() {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use support::log::Log;

    use super::*;
    use crate::peer::Peer;

    /// A pipe whose queue can't be changed.
    struct Stubborn;

    impl Endpoint for Stubborn {
        fn create(&self) -> io::Result<Box<dyn Instance>> {
            Ok(Box::new(Self))
        }

        fn set_full(&self, _full: bool) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }

        fn max_message_size(&self) -> usize {
            1
        }
    }

    impl Instance for Stubborn {
        fn poll_connect(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<Channel>> {
            Poll::Pending
        }

        fn close(&mut self) {}
    }

    impl Link for Stubborn {
        fn peer(&self) -> io::Result<Peer> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn is_hung_up(&self) -> bool {
            true
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_cannot_be_changed_is_counted_and_logged_five_times_a_second() {
        let log = Log::start();
        let telemetry = Telemetry::new("stubborn".parse().unwrap());
        let instances = Instances::new(telemetry, Box::new(Stubborn), 1, 1).unwrap();
        let link: Arc<dyn Link> = Arc::new(Stubborn);
        for _ in 0..100 {
            // The state after `poll_accept`.
            instances.state.lock().connected = 1;
            instances.release(&link);
        }
        let errors = instances.telemetry().stats().snapshot().errors;
        assert_eq!(errors.get(Reason::ClientQueue), 100);
        assert_eq!(log.lines_with(r#"reason="client_queue""#).len(), 5);
    }
}
