//! The listening socket of a pipe, which can be replaced while it is served.

use std::{
    io, mem,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustix::net::{Shutdown, shutdown};
use tokio::io::{Interest, unix::AsyncFd};

use super::{lingering, socket::Socket};
use crate::sync::{Mutex, TaskWaker};

/// The number of clients that the kernel queues until they are accepted; by default it allows at
/// most 4,096 (`net.core.somaxconn`). Long, because a client that finds the queue full has to poll.
pub(super) const QUEUE_LENGTH: i32 = 1024;

/// The queue length at `max_instances`. The kernel queues one client more than this
/// (`unix_recvq_full` in net/unix/af_unix.c), so the shortest queue holds one. Clients already in
/// the queue stay there.
const SHORTEST_QUEUE: i32 = 0;

/// The listening socket of a pipe.
pub(super) struct Listening {
    state: Mutex<ListeningState>,
    acceptor: TaskWaker,
    /// Whether the length of the queue is ours to set.
    sets_queue: bool,
}

struct ListeningState {
    current: Arc<AsyncFd<Socket>>,
    /// Earlier sockets, which nobody can connect to any more but may still have clients queued.
    former: Vec<Arc<AsyncFd<Socket>>>,
    is_closed: bool,
    is_full: bool,
}

impl Listening {
    pub(super) fn new(socket: Socket, sets_queue: bool) -> io::Result<Self> {
        let state = ListeningState {
            current: Arc::new(socket.register(Interest::READABLE)?),
            former: Vec::new(),
            is_closed: false,
            is_full: false,
        };
        Ok(Self {
            state: Mutex::new(state),
            acceptor: TaskWaker::default(),
            sets_queue,
        })
    }

    /// Accepts the next client. Once closed, returns an error if none is queued.
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Socket>> {
        self.acceptor.register(cx.waker());
        let mut drained = Vec::new();
        let mut state = self.state.lock();
        while let Some(former) = state.former.first() {
            match accept(former.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    drained.push(state.former.remove(0));
                }
                accepted => return Poll::Ready(accepted),
            }
        }
        if state.is_closed {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        let current = Arc::clone(&state.current);
        drop(state);
        // Outside the lock: each may hold a waker, which is user code.
        drop(drained);
        loop {
            let mut ready = ready!(current.poll_read_ready(cx))?;
            if let Ok(accepted) = ready.try_io(|socket| accept(socket.get_ref())) {
                return Poll::Ready(accepted);
            }
        }
    }

    /// Listens on `socket` instead. Clients that are queued already are accepted first.
    pub(super) fn replace(&self, socket: Socket) -> io::Result<()> {
        let socket = Arc::new(socket.register(Interest::READABLE)?);
        let mut state = self.state.lock();
        set_queue(&socket, state.is_full)?;
        // From here on it queues nobody (`unix_stream_connect` in net/unix/af_unix.c).
        shutdown(&state.current, Shutdown::Read)?;
        let former = mem::replace(&mut state.current, socket);
        state.former.push(former);
        drop(state);
        self.acceptor.wake();
        Ok(())
    }

    /// Refuses further clients. Those that are queued can still be accepted, except on a shared
    /// socket, whose clients are left to whoever serves it next.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        // As in `replace`.
        if !state.current.get_ref().shared && shutdown(&state.current, Shutdown::Read).is_ok() {
            let former = Arc::clone(&state.current);
            state.former.push(former);
        }
    }

    /// Sets the length of the queue, if it is ours to set.
    pub(super) fn set_full(&self, full: bool) -> io::Result<()> {
        let mut state = self.state.lock();
        state.is_full = full;
        match self.sets_queue {
            true => set_queue(&state.current, full),
            false => Ok(()),
        }
    }

    /// Whether other processes may hold the socket.
    pub(super) fn is_shared(&self) -> bool {
        self.state.lock().current.get_ref().shared
    }
}

/// Growing the queue wakes clients that wait in a blocking connect(2) (`unix_listen`).
fn set_queue(socket: &AsyncFd<Socket>, full: bool) -> io::Result<()> {
    let length = if full { SHORTEST_QUEUE } else { QUEUE_LENGTH };
    Ok(rustix::net::listen(socket, length)?)
}

fn accept(socket: &Socket) -> io::Result<Socket> {
    if lingering::is_full() {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "closing the connections that passed file descriptors (SCM_RIGHTS) blocks, so no client is \
             accepted: end the processes that hold the other ends of those descriptors",
        ));
    }
    loop {
        match socket.accept() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            accepted => return accepted,
        }
    }
}
