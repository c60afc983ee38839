//! Hostile clients on Linux: what they do costs them their own connection and nobody else anything.

use std::{
    future::IntoFuture as _,
    io::{self, IoSlice, Read as _, Write as _},
    mem::MaybeUninit,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::mpsc,
    thread,
    time::Duration,
};

use pipe_server::{Bytes, ClientOptions, ListenerOptions, serve};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketAddrUnix, SocketType, connect, recv, send, sendmsg, socket, sockopt,
    },
};
use tokio::{runtime, sync::oneshot, time::timeout};

use support::{DEADLINE, UniqueName, unique_name};

/// What a hostile client sends.
#[derive(Clone, Copy, Debug)]
enum Attack {
    /// With its first message, which recv(2) receives.
    First,
    /// Behind other messages, which recvmmsg(2) receives together.
    Batched,
    /// Behind a message that is too long: the server closes the connection with the rest unread.
    Unread,
    /// With an empty message.
    Empty,
    /// Behind an empty message, which ends the conversation.
    BehindTheEnd,
}

#[test]
fn descriptors_that_a_client_passes_stop_nobody_and_do_not_leak() {
    for attack in [
        Attack::First,
        Attack::Batched,
        Attack::Unread,
        Attack::Empty,
        Attack::BehindTheEnd,
    ] {
        for stays in [true, false] {
            let server = Server::start();
            let mut blocking = Blocking::new();
            let hostile = server.connect();
            // The server is in the middle of it when the hostile messages arrive.
            server.answers_a_client();
            let passed = blocking.pass(&hostile, attack);
            let hostile = stays.then_some(hostile);
            server.answers_a_client();
            match &hostile {
                // The message was not sent. What was sent before it is answered as usual.
                Some(_) if passed == Err(Errno::PERM) => {}
                Some(hostile) => wait_for_the_end(hostile),
                None => {}
            }
            server.answers_a_client();
            drop(hostile);
            blocking.expect_closed(passed.is_ok());
            server.answers_a_client();
            server.stop();
        }
    }
}

#[test]
fn a_server_stops_while_a_client_that_passed_descriptors_is_queued() {
    let server = Server::start_with(ListenerOptions::new().max_instances(1));
    let served = server.connect();
    send(&served, b"hello", SendFlags::empty()).unwrap();
    assert_eq!(recv(&served, &mut [0; 5], RecvFlags::empty()).unwrap().1, 5);
    let mut blocking = Blocking::new();
    let queued = server.connect();
    let passed = blocking.pass(&queued, Attack::First);
    server.stop();
    drop((served, queued));
    blocking.expect_closed(passed.is_ok());
}

/// An echo server on a thread of its own, which is its only worker.
struct Server {
    name: UniqueName,
    stop: oneshot::Sender<()>,
    stopped: mpsc::Receiver<()>,
}

impl Server {
    fn start() -> Self {
        Self::start_with(ListenerOptions::new())
    }

    fn start_with(options: ListenerOptions) -> Self {
        let name = unique_name();
        let text = name.text.clone();
        let (stop, stopping) = oneshot::channel();
        let (bound, is_bound) = mpsc::channel();
        let (ended, stopped) = mpsc::channel();
        thread::spawn(move || {
            runtime().block_on(async {
                let listener = options.max_message_size(1000).bind(&text).unwrap();
                bound.send(()).unwrap();
                serve(listener, |request: Bytes| async move {
                    Ok::<_, io::Error>(request)
                })
                .with_graceful_shutdown(async { _ = stopping.await })
                .drain_timeout(Duration::ZERO)
                .into_future()
                .await;
            });
            _ = ended.send(());
        });
        is_bound.recv().unwrap();
        Self {
            name,
            stop,
            stopped,
        }
    }

    fn connect(&self) -> OwnedFd {
        let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(&self.name.text).unwrap()).unwrap();
        socket
    }

    /// More than once: the server polls what else has happened between two requests.
    fn answers_a_client(&self) {
        let conversation = async {
            let mut client = ClientOptions::new().connect(&self.name.text).await.unwrap();
            for text in ["one", "two", "three"] {
                assert_eq!(client.call(text).await.unwrap(), text);
            }
        };
        let ended = runtime().block_on(async { timeout(DEADLINE, conversation).await });
        ended.expect("the server answers nobody");
    }

    fn stop(self) {
        self.stop.send(()).unwrap();
        let stopped = self.stopped.recv_timeout(DEADLINE);
        stopped.expect("the server does not stop");
    }
}

fn runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Replies may come before it.
fn wait_for_the_end(socket: &OwnedFd) {
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(DEADLINE)).unwrap();
    while recv(socket, &mut [0; 1000], RecvFlags::empty())
        .expect("the connection stays open")
        .1
        > 0
    {}
}

/// A socket whose close blocks for an hour, and one that tells its other end when it is closed.
struct Blocking {
    tcp: Option<TcpStream>,
    marker: Option<UnixStream>,
    end: UnixStream,
    /// Reads nothing.
    _peer: TcpStream,
}

impl Blocking {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        tcp.set_nonblocking(true).unwrap();
        while tcp.write(&[0; 65_536]).is_ok() {}
        let (end, marker) = UnixStream::pair().unwrap();
        Self {
            tcp: Some(tcp),
            marker: Some(marker),
            end,
            _peer: peer,
        }
    }

    /// Passes both descriptors and gives up its own.
    fn pass(&mut self, socket: &OwnedFd, attack: Attack) -> Result<(), Errno> {
        let (before, message): (&[&[u8]], &[u8]) = match attack {
            Attack::First => (&[], b"take it"),
            Attack::Batched => (&[b"one", b"two", b"three"], b"take it"),
            Attack::Unread => (&[&[0; 1001]], b"take it"),
            Attack::Empty => (&[b"one"], b""),
            Attack::BehindTheEnd => (&[b"one", b""], b"take it"),
        };
        for before in before {
            // The server may have closed already.
            match send(socket, before, SendFlags::NOSIGNAL) {
                Ok(_) | Err(Errno::PIPE) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let (tcp, marker) = (self.tcp.take().unwrap(), self.marker.take().unwrap());
        sockopt::set_socket_linger(&tcp, Some(Duration::from_secs(3600))).unwrap();
        let descriptors = [tcp.as_fd(), marker.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let message = [IoSlice::new(message)];
        let sent = sendmsg(socket, &message, &mut control, SendFlags::NOSIGNAL);
        if sent.is_err() {
            // Nobody else has it.
            sockopt::set_socket_linger(&tcp, None).unwrap();
        }
        // Blocks if the server was quicker and does it wrong.
        thread::spawn(move || drop(tcp));
        sent.map(drop)
    }

    /// Waits until nobody holds the descriptors.
    fn expect_closed(mut self, was_passed: bool) {
        let (closed, is_closed) = mpsc::channel();
        thread::spawn(move || closed.send(self.end.read(&mut [0]).unwrap()));
        let read = is_closed.recv_timeout(DEADLINE);
        assert_eq!(read, Ok(0), "leaked; passed: {was_passed}");
    }
}
