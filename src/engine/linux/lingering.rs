//! Sockets whose close may block, closed outside the runtime's workers (see
//! [`descriptors`](super::descriptors)).

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use rustix::{
    cmsg_space,
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, SocketFlags, accept_with,
        recvmsg, shutdown, sockopt,
    },
};

use super::descriptors::{NextPacket, peek};
use crate::{
    sync::Mutex,
    telemetry::{Details, Reason, Telemetry, report_alone},
};

/// The maximum number of sockets that are closed at the same time, in the whole process. One thread
/// each, since a close may block as long as another process likes.
const MAX_THREADS: usize = 64;

/// The maximum number of descriptors in one message (`SCM_MAX_FD` in include/net/scm.h).
const MAX_DESCRIPTORS: usize = 253;

/// Enough for `run`.
const STACK_SIZE: usize = 64 * 1024;

static CLOSING: Mutex<Closing> = Mutex::new(Closing {
    threads: 0,
    waiting: VecDeque::new(),
});

struct Closing {
    /// Each is closing one socket.
    threads: usize,
    waiting: VecDeque<Lingering>,
}

/// A socket to close.
struct Lingering {
    fd: OwnedFd,
    /// Whether other processes may hold it, so that its contents are left to them.
    shared: bool,
}

/// Whether there may be no thread left for another one. Meanwhile no client is accepted, so that
/// hostile clients can't exhaust the process's descriptors.
pub(super) fn is_full() -> bool {
    let mut closing = CLOSING.lock();
    let is_full = closing.waiting.len() + closing.threads >= MAX_THREADS;
    // None could be started, and no further socket has to be closed that would start one.
    if is_full && closing.threads == 0 && start_thread().is_ok() {
        closing.threads += 1;
    }
    is_full
}

/// Closes `fd` on another thread. It was shut down unless it is `shared`: other processes may hold
/// it.
pub(super) fn close(fd: OwnedFd, shared: bool, telemetry: Option<&Telemetry>) {
    close_on(Lingering { fd, shared }, telemetry, start_thread);
}

fn start_thread() -> io::Result<()> {
    let thread = thread::Builder::new()
        .name("pipe-server-close".to_owned())
        .stack_size(STACK_SIZE);
    thread.spawn(run).map(drop)
}

/// Closes `socket` on a thread that `start` starts, or on one that runs already if it can't.
fn close_on(
    socket: Lingering,
    telemetry: Option<&Telemetry>,
    start: impl FnOnce() -> io::Result<()>,
) {
    let mut closing = CLOSING.lock();
    closing.waiting.push_back(socket);
    if closing.threads == MAX_THREADS {
        return;
    }
    match start() {
        Ok(()) => closing.threads += 1,
        Err(error) => {
            drop(closing);
            match telemetry {
                Some(telemetry) => {
                    telemetry.report(Reason::DelayedClose, &error, Details::default());
                }
                None => report_alone(Reason::DelayedClose, &error),
            }
        }
    }
}

/// Closes sockets until none is left.
fn run() {
    let mut closing = CLOSING.lock();
    while let Some(socket) = closing.waiting.pop_front() {
        drop(closing);
        if !socket.shared {
            discard(&socket.fd);
        }
        drop(socket);
        closing = CLOSING.lock();
    }
    closing.threads -= 1;
}

/// Receives what the socket still holds, so that closing it closes nothing else.
fn discard(socket: impl AsFd + Copy) {
    // The clients in the queue of a listening socket.
    while let Ok(queued) = accept_with(socket, SocketFlags::CLOEXEC) {
        _ = shutdown(&queued, Shutdown::Both);
        discard(queued.as_fd());
    }
    loop {
        match peek(socket) {
            Ok(NextPacket::Packet(_) | NextPacket::Descriptors) => close_next(socket),
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Ok(NextPacket::End) | Err(_) => return,
        }
    }
}

/// Receives a packet and closes its descriptors. For sockets among them, lingering is turned off
/// first, which leaves few that block.
fn close_next(socket: impl AsFd + Copy) {
    // The sender's credentials would take up room for descriptors.
    _ = sockopt::set_socket_passcred(socket, false);
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    // One buffer, as in `peek`.
    let mut nothing = [IoSliceMut::new(&mut [])];
    _ = recvmsg(socket, &mut nothing, &mut control, flags);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for descriptor in descriptors {
                _ = sockopt::set_socket_linger(&descriptor, None);
            }
        }
    }
    _ = sockopt::set_socket_passcred(socket, true);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::net::{AddressFamily, SocketType, socket_with};
    use support::log::Log;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    fn socket() -> Lingering {
        let flags = SocketFlags::CLOEXEC;
        Lingering {
            fd: socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap(),
            shared: false,
        }
    }

    fn no_thread() -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_cannot_be_started_is_counted_and_logged_five_times_a_second() {
        let log = Log::start();
        let telemetry = Telemetry::new("threadless".parse().unwrap());
        for _ in 0..20 {
            close_on(socket(), Some(&telemetry), no_thread);
        }
        assert_eq!(
            telemetry
                .stats()
                .snapshot()
                .errors
                .get(Reason::DelayedClose),
            20
        );
        assert_eq!(log.lines_with(r#"reason="delayed_close""#).len(), 5);
    }

    #[test]
    fn clients_are_accepted_again_once_a_thread_can_be_started() {
        let telemetry = Telemetry::new("threadless".parse().unwrap());
        for _ in 0..MAX_THREADS {
            close_on(socket(), Some(&telemetry), no_thread);
        }
        let begun = Instant::now();
        while is_full() {
            assert!(begun.elapsed() < DEADLINE, "no thread was started");
            thread::yield_now();
        }
    }
}
