//! Sockets whose close may block, closed outside the runtime's workers (see [`socket`](super::socket)).

use std::{
    collections::VecDeque,
    mem::MaybeUninit,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use rustix::{
    cmsg_space,
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, accept_with, recvmsg,
        shutdown, sockopt,
    },
};
use tracing::warn;

use super::socket::{FLAGS, Next, Socket};
use crate::reason::Reason;

/// How many of them are closed at the same time, in the whole process. One thread each, since a close may
/// block as long as another process likes.
const MAX_THREADS: usize = 64;

/// The maximum number of descriptors in one message (`SCM_MAX_FD` in include/net/scm.h).
const MAX_DESCRIPTORS: usize = 253;

/// Enough for `run`.
const STACK_SIZE: usize = 64 * 1024;

static CLOSING: Mutex<Closing> = Mutex::new(Closing {
    threads: 0,
    unclosed: 0,
    waiting: VecDeque::new(),
});

struct Closing {
    threads: usize,
    /// Those that wait and those that a thread is closing. Bounded: see [`is_full`].
    unclosed: usize,
    waiting: VecDeque<Socket>,
}

/// Whether there may be no thread left for another one. Meanwhile no client is accepted, so that hostile
/// clients can't exhaust the process's descriptors.
pub(super) fn is_full() -> bool {
    lock().unclosed >= MAX_THREADS
}

/// Closes `socket`, which was shut down, on another thread.
pub(super) fn close(socket: Socket) {
    let mut closing = lock();
    closing.unclosed += 1;
    closing.waiting.push_back(socket);
    if closing.threads == MAX_THREADS {
        return;
    }
    let thread = thread::Builder::new()
        .name("pipe-server-close".to_owned())
        .stack_size(STACK_SIZE)
        .spawn(run);
    match thread {
        Ok(_) => closing.threads += 1,
        Err(error) => {
            drop(closing);
            let reason = Reason::Close.as_str();
            warn!(reason, %error, "a connection that passed file descriptors can't be closed yet: no thread could be started");
        }
    }
}

/// Closes sockets until none is left.
fn run() {
    let mut closing = lock();
    while let Some(socket) = closing.waiting.pop_front() {
        drop(closing);
        discard(&socket);
        drop(socket);
        closing = lock();
        closing.unclosed -= 1;
    }
    closing.threads -= 1;
}

/// Receives what the socket still holds, so that closing it closes nothing else.
fn discard(socket: &Socket) {
    if socket.shared {
        return;
    }
    // The clients in the queue of a listening socket.
    while let Ok(queued) = accept_with(socket, FLAGS) {
        let queued = Socket::of(queued, socket.descriptors);
        _ = shutdown(&queued, Shutdown::Both);
        discard(&queued);
        queued.set_drained();
    }
    loop {
        match socket.peek() {
            Ok(Next::Packet(_) | Next::Descriptors) => close_next(socket),
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Ok(Next::End) | Err(_) => return,
        }
    }
}

/// Receives a packet and closes its descriptors. For sockets among them, lingering is turned off first, which
/// leaves few that block.
fn close_next(socket: &Socket) {
    // The sender's credentials would take up room for descriptors.
    _ = sockopt::set_socket_passcred(socket, false);
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    _ = recvmsg(socket, &mut [], &mut control, flags);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for descriptor in descriptors {
                _ = sockopt::set_socket_linger(&descriptor, None);
            }
        }
    }
    _ = sockopt::set_socket_passcred(socket, true);
}

fn lock() -> MutexGuard<'static, Closing> {
    CLOSING.lock().unwrap_or_else(PoisonError::into_inner)
}
