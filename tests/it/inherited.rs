//! Sockets that were created elsewhere, on Linux: what they must be, and what is left to whoever
//! shares them.

use std::{
    fs::{self, File},
    io::IoSlice,
    mem::MaybeUninit,
    net::TcpListener,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixDatagram, UnixListener},
    },
    path::Path,
    time::Duration,
};

use pipe_server::{
    Access, BindError, Client, ClientOptions, ConnectError, ListenerOptions, PipeListener,
    RecvError, Trust, UserId,
    os::linux::{ClientOptionsExt as _, ListenerOptionsExt as _},
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketFlags, SocketType, bind, connect, listen, recv, sendmsg, socket_with, socketpair,
    },
};
use support::{UniqueName, listening_socket, unique_name};

fn socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

fn listen_on(socket: impl Into<OwnedFd>) -> Result<PipeListener, BindError> {
    ListenerOptions::new().listen_on(socket.into())
}

fn connect_on(socket: impl Into<OwnedFd>) -> Result<Client, ConnectError> {
    ClientOptions::new().connect_on(socket.into())
}

/// Connects if there is room, without waiting.
async fn try_connect(name: &UniqueName) -> Result<Client, ConnectError> {
    let options = ClientOptions::new().connect_timeout(Duration::ZERO);
    options.connect(&name.text).await
}

/// Sends a message with a descriptor.
fn pass_descriptor(socket: &OwnedFd) -> Result<(), Errno> {
    let file = File::open("/dev/null").unwrap();
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let message = [IoSlice::new(b"message")];
    sendmsg(socket, &message, &mut control, SendFlags::empty()).map(drop)
}

fn assert_refused_for_descriptors<T: std::fmt::Debug>(received: Result<T, RecvError>) {
    let error = received.unwrap_err();
    let RecvError::Io(error) = &error else {
        panic!("{error:?}");
    };
    assert!(error.to_string().contains("SCM_RIGHTS"), "{error}");
}

#[tokio::test]
async fn a_listening_socket_is_served_and_its_file_is_left_alone() {
    let name = unique_name();
    let mut listener = listen_on(listening_socket(&name)).unwrap();
    assert_eq!(listener.path(), Path::new(&name.text));
    assert_eq!(listener.name().to_string(), name.text);
    let mut client = Client::connect(&name.text).await.unwrap();
    client.send("hello").await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    assert_eq!(connection.recv().await.unwrap().unwrap(), "hello");
    drop(listener);
    let directory = Path::new(&name.text).parent().unwrap();
    assert_eq!(fs::read_dir(directory).unwrap().count(), 1);
}

#[tokio::test]
async fn clients_in_the_queue_are_left_to_the_next_server() {
    let name = unique_name();
    let socket = listening_socket(&name);
    let listener = listen_on(socket.try_clone().unwrap()).unwrap();
    let mut queued = try_connect(&name).await.unwrap();
    queued.send("queued").await.unwrap();
    drop(listener);
    let mut later = try_connect(&name).await.unwrap();
    later.send("later").await.unwrap();

    let mut next = listen_on(socket).unwrap();
    for message in ["queued", "later"] {
        let mut connection = next.accept().await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), message);
    }
}

#[tokio::test]
async fn the_queue_is_long_again_after_a_full_server() {
    let name = unique_name();
    let socket = listening_socket(&name);
    let options = ListenerOptions::new().max_instances(1);
    let mut listener = options.listen_on(socket.try_clone().unwrap()).unwrap();
    let _client = try_connect(&name).await.unwrap();
    let _connection = listener.accept().await.unwrap();
    let _queued = try_connect(&name).await.unwrap();
    let busy = try_connect(&name).await;
    assert!(matches!(busy, Err(ConnectError::Busy { .. })), "{busy:?}");
    drop(listener);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(try_connect(&name).await.unwrap());
    }

    // One that was killed leaves it short.
    listen(&socket, 0).unwrap();
    let _next = listen_on(socket).unwrap();
    for _ in 0..20 {
        clients.push(try_connect(&name).await.unwrap());
    }
}

#[tokio::test]
async fn anything_else_is_refused_with_what_it_is() {
    let name = unique_name();
    let directory = tempfile::tempdir().unwrap();
    let abstract_name = socket();
    let address = format!("pipe-server-test-{}", std::process::id());
    let address = SocketAddrUnix::new_abstract_name(address.as_bytes()).unwrap();
    bind(&abstract_name, &address).unwrap();
    listen(&abstract_name, 1).unwrap();
    let refused: [(OwnedFd, &str); 7] = [
        (File::open("/dev/null").unwrap().into(), "not a socket"),
        (
            TcpListener::bind("127.0.0.1:0").unwrap().into(),
            "an IPv4 (AF_INET) stream socket",
        ),
        (
            UnixListener::bind(directory.path().join("x"))
                .unwrap()
                .into(),
            "a local (AF_UNIX) stream socket",
        ),
        (
            UnixDatagram::unbound().unwrap().into(),
            "a local (AF_UNIX) datagram socket",
        ),
        (socket(), "does not listen"),
        (pair().0, "does not listen"),
        (abstract_name, "an abstract address"),
    ];
    for (socket, what) in refused {
        let error = listen_on(socket).unwrap_err();
        assert!(
            matches!(error, BindError::Descriptor { .. }) && error.to_string().contains(what),
            "{error}"
        );
    }
    let refused: [(OwnedFd, &str); 4] = [
        (File::open("/dev/null").unwrap().into(), "not a socket"),
        (
            UnixDatagram::unbound().unwrap().into(),
            "a local (AF_UNIX) datagram socket",
        ),
        (socket(), "not connected"),
        (listening_socket(&name), "serve it with listen_on"),
    ];
    for (socket, what) in refused {
        let error = connect_on(socket).unwrap_err();
        assert!(
            matches!(error, ConnectError::Descriptor { .. }) && error.to_string().contains(what),
            "{error}"
        );
    }
}

#[tokio::test]
async fn who_may_connect_is_not_decided_here() {
    let name = unique_name();
    for (options, what) in [
        (ListenerOptions::new().access(Access::Everyone), "access"),
        (ListenerOptions::new().socket_group(0), "socket_group"),
    ] {
        let error = options.listen_on(listening_socket(&name)).unwrap_err();
        let BindError::Option { option, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(option, what);
    }
}

#[tokio::test]
async fn descriptors_passed_before_the_socket_was_taken_over_are_refused_too() {
    let name = unique_name();
    let socket = listening_socket(&name);
    let hostile = self::socket();
    connect(&hostile, &SocketAddrUnix::new(name.text.as_str()).unwrap()).unwrap();
    pass_descriptor(&hostile).unwrap();
    let mut patient = Client::connect(&name.text).await.unwrap();

    let mut listener = listen_on(socket).unwrap();
    let mut connection = listener.accept().await.unwrap();
    assert_refused_for_descriptors(connection.recv().await);
    let mut connection = listener.accept().await.unwrap();
    patient.send("hello").await.unwrap();
    assert_eq!(connection.recv().await.unwrap().unwrap(), "hello");

    connect_and_pass_one(&name, &mut listener).await;
}

/// Passes a descriptor after the socket was taken over.
async fn connect_and_pass_one(name: &UniqueName, listener: &mut PipeListener) {
    let hostile = socket();
    connect(&hostile, &SocketAddrUnix::new(name.text.as_str()).unwrap()).unwrap();
    let passed = pass_descriptor(&hostile);
    let mut connection = listener.accept().await.unwrap();
    match passed {
        // Linux 6.16 and later.
        Err(error) => assert_eq!(error, Errno::PERM),
        Ok(()) => assert_refused_for_descriptors(connection.recv().await),
    }
}

#[tokio::test]
async fn both_ends_of_a_socketpair_are_clients() {
    let (one, other) = pair();
    let mut one = connect_on(one).unwrap();
    let mut other = connect_on(other).unwrap().into_connection();
    let long = support::message(1, 60_000);
    one.send("hello").await.unwrap();
    one.send(long.clone()).await.unwrap();
    one.finish().await.unwrap();
    assert_eq!(other.recv().await.unwrap().unwrap(), "hello");
    assert_eq!(other.recv().await.unwrap().unwrap(), long);
    assert_eq!(other.recv().await.unwrap(), None);
    other.send("reply").await.unwrap();
    drop(other);
    assert_eq!(one.recv().await.unwrap().unwrap(), "reply");
    assert_eq!(one.recv().await.unwrap(), None);
    assert_eq!(one.peer().unwrap().process_id(), std::process::id());
}

#[tokio::test]
async fn the_other_end_of_a_socketpair_must_be_trusted() {
    let stranger = UserId::Uid(u32::MAX - 7);
    let options = ClientOptions::new().trust(Trust::User(stranger));
    let error = options.connect_on(pair().0).unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");
}

#[tokio::test]
async fn descriptors_passed_before_a_connected_socket_was_taken_over_are_refused() {
    let (ours, theirs) = pair();
    pass_descriptor(&theirs).unwrap();
    let mut client = connect_on(ours).unwrap();
    assert_refused_for_descriptors(client.recv().await);

    // Whoever shares the other end is not affected.
    let (ours, theirs) = pair();
    let mut client = connect_on(ours).unwrap();
    client.send("hello").await.unwrap();
    let flags = rustix::net::RecvFlags::empty();
    assert_eq!(recv(&theirs, &mut [0; 10], flags).unwrap().1, 5);
}

#[test]
fn a_socket_outside_a_runtime_is_refused() {
    let name = unique_name();
    let error = listen_on(listening_socket(&name)).unwrap_err();
    assert!(matches!(error, BindError::NoRuntime), "{error:?}");
    let error = connect_on(pair().0).unwrap_err();
    assert!(matches!(error, ConnectError::NoRuntime), "{error:?}");
}
