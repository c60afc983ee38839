//! Packets of any kind, with descriptors and credentials, for a server that echoes. A well-behaved client beside the
//! hostile one is always answered.

#![no_main]

use std::{
    future::{Future, IntoFuture as _},
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Mutex, OnceLock, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use pipe_server::{Client, ListenerOptions, serve};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown,
        SocketAddrUnix, SocketType, UCred, connect, recv, send, sendmsg, shutdown, socket, sockopt,
    },
    process::{getgid, getpid, getuid},
};
use tokio::runtime::{Builder, Runtime};

const LONGEST: usize = 1000;

/// Longer than any machine is busy.
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Action {
    Send { length: u16 },
    SendCredentials { length: u16 },
    SendDescriptors { length: u16, count: u8 },
    Read,
    StopReading,
}

#[derive(Arbitrary, Debug)]
struct Input {
    actions: Vec<Action>,
    /// Leaves without reading its replies.
    leaves: bool,
}

fuzz_target!(|input: Input| {
    let server = Server::get();
    let hostile = server.connect();
    let mut expected = Expected::default();
    for action in input.actions.iter().take(40) {
        expected.act(&hostile, *action);
    }
    if input.leaves {
        drop(hostile);
    } else {
        expected.read_to_the_end(&hostile);
    }
    server.answers();
});

/// What the hostile client is owed.
#[derive(Default)]
struct Expected {
    /// The messages that the server answers, and how many of the replies were read.
    answered: Vec<Vec<u8>>,
    read: usize,
    /// Something has ended the conversation: nothing after it is answered.
    ended: bool,
    deaf: bool,
    sent: u8,
}

impl Expected {
    fn act(&mut self, socket: &OwnedFd, action: Action) {
        match action {
            Action::Send { length } => {
                let message = self.message(length);
                let sent = send(socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                self.note(sent, message, false);
            }
            Action::SendCredentials { length } => {
                let message = self.message(length);
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let (pid, uid, gid) = (getpid(), getuid(), getgid());
                let credentials = UCred { pid, uid, gid };
                assert!(control.push(SendAncillaryMessage::ScmCredentials(credentials)));
                let sent = send_with(socket, &message, &mut control);
                self.note(sent, message, false);
            }
            Action::SendDescriptors { length, count } => {
                let message = self.message(length);
                let (one, _other) = UnixStream::pair().unwrap();
                let count = 1 + usize::from(count) % 253;
                let descriptors = vec![one.as_fd(); count];
                let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
                let sent = send_with(socket, &message, &mut control);
                self.note(sent, message, true);
            }
            Action::Read => {
                let mut buffer = [0; LONGEST + 1];
                let flags = RecvFlags::DONTWAIT;
                if let Ok((_, length @ 1..)) = recv(socket, &mut buffer, flags) {
                    self.reply(&buffer[..length]);
                }
            }
            Action::StopReading => {
                shutdown(socket, Shutdown::Read).unwrap();
                self.deaf = true;
            }
        }
    }

    /// No two neighbours are alike.
    fn message(&mut self, length: u16) -> Vec<u8> {
        self.sent = self.sent.wrapping_add(1);
        // Around the limit, mostly.
        vec![self.sent; usize::from(length) % (LONGEST + 30)]
    }

    fn note(&mut self, sent: Result<usize, Errno>, message: Vec<u8>, descriptors: bool) {
        match sent {
            // The socket is full, the server has closed, or the system passes no descriptors.
            Err(
                Errno::AGAIN | Errno::PIPE | Errno::CONNRESET | Errno::PERM | Errno::TOOMANYREFS,
            ) => {}
            Err(error) => panic!("{error}"),
            Ok(_) => {
                self.ended |= descriptors || message.is_empty() || message.len() > LONGEST;
                if !self.ended {
                    self.answered.push(message);
                }
            }
        }
    }

    fn reply(&mut self, reply: &[u8]) {
        let expected = self.answered.get(self.read);
        assert_eq!(
            Some(reply),
            expected.map(|message| &message[..]),
            "reply {}",
            self.read
        );
        self.read += 1;
    }

    fn read_to_the_end(&mut self, socket: &OwnedFd) {
        sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(DEADLINE)).unwrap();
        sockopt::set_socket_timeout(socket, sockopt::Timeout::Send, Some(DEADLINE)).unwrap();
        shutdown(socket, Shutdown::Write).unwrap();
        loop {
            let mut buffer = [0; LONGEST + 1];
            match recv(socket, &mut buffer, RecvFlags::empty()) {
                Ok((_, 0)) => break,
                Ok((_, length)) => self.reply(&buffer[..length]),
                // Told once, before the replies that can still be read.
                Err(Errno::CONNRESET) => {}
                Err(error) => panic!("the connection stays open: {error}"),
            }
        }
        assert!(
            self.deaf || self.read == self.answered.len(),
            "replies are lost"
        );
    }
}

fn send_with(
    socket: &OwnedFd,
    message: &[u8],
    control: &mut SendAncillaryBuffer<'_, '_, '_>,
) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(message)], control, flags)
}

/// One for the whole run, on a thread of its own.
struct Server {
    path: PathBuf,
    client: Mutex<(Runtime, Client)>,
    _directory: tempfile::TempDir,
}

impl Server {
    fn get() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let (bound, is_bound) = mpsc::channel();
        let bind = path.clone();
        thread::spawn(move || {
            runtime().block_on(async {
                let options = ListenerOptions::new().max_message_size(LONGEST);
                let listener = options.bind(&bind).unwrap();
                bound.send(()).unwrap();
                serve(listener, |request: Bytes| async move { request })
                    .into_future()
                    .await;
            });
        });
        is_bound.recv().unwrap();
        let runtime = runtime();
        let client = runtime.block_on(Client::connect(&path)).unwrap();
        Self {
            path,
            client: Mutex::new((runtime, client)),
            _directory: directory,
        }
    }

    fn connect(&self) -> OwnedFd {
        let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let address = SocketAddrUnix::new(&self.path).unwrap();
        // Runs out of descriptors if the server keeps any.
        connect(&socket, &address).unwrap();
        socket
    }

    /// To one that has been there from the beginning, and to a new one.
    fn answers(&self) {
        let (runtime, client) = &mut *self.client.lock().unwrap();
        let calls = async {
            assert_eq!(client.call("well").await.unwrap(), "well");
            let mut next = Client::connect(&self.path).await.unwrap();
            assert_eq!(next.call("next").await.unwrap(), "next");
        };
        runtime.block_on(in_time(calls));
    }
}

async fn in_time(calls: impl Future<Output = ()>) {
    let ended = tokio::time::timeout(DEADLINE, calls).await;
    ended.expect("the server answers nobody");
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}
