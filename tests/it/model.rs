//! Tests that need the model of Windows: other users, injected faults, and a sender that closes in
//! the middle of a message.

use std::{
    collections::HashSet,
    future::{Future, IntoFuture, poll_fn},
    io,
    pin::pin,
    task::{Context, Poll, Waker},
};

use pipe_server::{
    Access, BindError, Bytes, Client, ClientOptions, ConnectError, Connection, ListenerOptions,
    Peer, PipeListener, RecvError, SendError, Trust, UserId,
    model::{Model, Options, User, run, seeds},
    os::windows::{AccessExt as _, Engine, ListenerOptionsExt as _},
    serve,
};
use support::{in_time, message, unique_name};
use tokio::{sync::oneshot, task::yield_now};
use windows_sys::Win32::Foundation::{
    ERROR_BROKEN_PIPE, ERROR_NO_SYSTEM_RESOURCES, ERROR_NOT_ENOUGH_QUOTA, ERROR_OPERATION_ABORTED,
    ERROR_WORKING_SET_QUOTA,
};

/// Serves a pipe with `access` as `server`, and connects to it as `client`.
async fn connect_as(
    server: User,
    access: Access,
    client: User,
    options: ClientOptions,
) -> Result<(), ConnectError> {
    Model::run_as(server);
    let listener = bind(ListenerOptions::new().access(access)).unwrap();
    Model::run_as(client);
    let connected = options.connect(listener.path()).await;
    connected.map(|_| ())
}

fn bind(options: ListenerOptions) -> Result<PipeListener, BindError> {
    options.engine(Engine::Overlapped).bind(unique_name().text)
}

/// Runs a test with many seeds, in the forms that check access.
fn with_access_checks<F: Future<Output = ()>>(test: impl Fn() -> F) {
    for seed in seeds(30) {
        let options = Options::seeded(seed);
        if options.form.checks_access() {
            run(options, || in_time(test()));
        }
    }
}

#[test]
fn a_user_who_logged_on_through_ssh_can_serve() {
    with_access_checks(|| async {
        for access in [Access::CurrentUser, Access::Everyone] {
            let default = ClientOptions::new();
            let connected = connect_as(User::NETWORK, access, User::NETWORK, default).await;
            assert!(connected.is_ok(), "{connected:?}");
        }
    });
}

#[test]
fn an_access_list_that_denies_its_own_server_is_refused_at_bind() {
    with_access_checks(|| async {
        for list in ["D:P(A;;GA;;;SY)", "D:P(A;;0x12019b;;;WD)", "D:P"] {
            for most in [1, 4] {
                let options = ListenerOptions::new()
                    .access(Access::sddl(list))
                    .max_instances(most);
                let error = bind(options).unwrap_err();
                assert!(
                    matches!(
                        error,
                        BindError::Option {
                            option: "access",
                            ..
                        }
                    ),
                    "{error:?}"
                );
                let text = error.to_string();
                assert!(text.contains("does not let this process create"), "{text}");
                assert!(text.contains(User::PLAIN.sid), "{text}");
                let kind = io::Error::from(error).kind();
                assert_eq!(kind, io::ErrorKind::InvalidInput);
            }
        }
        let options = ListenerOptions::new().access(Access::sddl("D:P(A;;GA;;;WD)"));
        assert!(bind(options).is_ok());
    });
}

/// Covers the rows of the tables in the docs of `Access` and `Peer` that the model supports.
#[test]
fn clients_that_are_let_in_are_identified_by_their_user() {
    with_access_checks(|| async {
        let cases = [
            // Server, client, and whether `CurrentUser` lets the client in. `Everyone` always
            // does.
            (User::PLAIN, User::PLAIN, true),
            (User::PLAIN, User::ELEVATED, true),
            (User::PLAIN, User::NETWORK, true),
            (User::ELEVATED, User::PLAIN, true),
            (User::PLAIN, User::LOCAL_SYSTEM, true),
            (User::PLAIN, User::LOCAL_SERVICE, false),
            (User::PLAIN, User::OTHER, false),
            (User::ELEVATED, User::OTHER, false),
            (User::LOCAL_SYSTEM, User::PLAIN, false),
        ];
        for (server, client, current_user) in cases {
            for (access, let_in) in [
                (Access::CurrentUser, current_user),
                (Access::Everyone, true),
            ] {
                let case = format!("{client:?} with {access:?} of {server:?}");
                let user = client.sid;
                match user_of_a_client(server.clone(), access, client.clone()).await {
                    Ok(known) => {
                        assert!(let_in, "{case}");
                        assert_eq!(known, user, "{case}");
                    }
                    Err(ConnectError::Denied { .. }) => assert!(!let_in, "{case}"),
                    Err(error) => panic!("{case}: {error:?}"),
                }
            }
        }
    });
}

/// The client's user as the server sees it after receiving a message.
async fn user_of_a_client(
    server: User,
    access: Access,
    client: User,
) -> Result<String, ConnectError> {
    Model::run_as(server);
    let mut listener = bind(ListenerOptions::new().access(access)).unwrap();
    Model::run_as(client);
    let options = ClientOptions::new().trust(Trust::Anyone);
    let mut client = options.connect(listener.path()).await?;
    client.send("hello").await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    connection.recv().await.unwrap();
    Ok(connection.peer().unwrap().user().to_string())
}

/// Serves a pipe whose client opens between the system's two calls that create an instance, and
/// returns both.
async fn opened_early() -> (PipeListener, Client) {
    let name = unique_name().text;
    let (opened, client) = oneshot::channel();
    let address = name.clone();
    Model::before_next_connect(move || {
        let connecting = pin!(Client::connect(&address));
        match connecting.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(connected) => _ = opened.send(connected.unwrap()),
            Poll::Pending => panic!("an instance exists"),
        }
    });
    let listener = ListenerOptions::new().bind(&name).unwrap();
    (listener, client.await.unwrap())
}

#[test]
fn a_client_that_opens_before_the_server_listens_is_authorized_by_its_first_message() {
    for seed in seeds(60) {
        run(Options::seeded(seed), || in_time(authorize_early()));
    }
}

async fn authorize_early() {
    let (listener, mut client) = opened_early().await;
    let is_plain = |peer: Peer| async move { peer.user().to_string() == User::PLAIN.sid };
    let serving = serve(listener, |request: Bytes| async move { request })
        .authorize(is_plain)
        .max_connections_per_user(1);
    let serving = tokio::spawn(serving.into_future());
    assert_eq!(client.call("hello").await.unwrap(), "hello");
    serving.abort();
}

#[test]
fn a_peer_that_is_not_known_yet_can_be_asked_for_again() {
    for seed in seeds(60) {
        run(Options::seeded(seed), || in_time(ask_again()));
    }
}

async fn ask_again() {
    let (mut listener, mut client) = opened_early().await;
    let mut connection = listener.accept().await.unwrap();
    for _ in 0..2 {
        let error = connection.peer().unwrap_err();
        assert!(error.to_string().contains("until a message"), "{error}");
    }
    client.send("hello").await.unwrap();
    connection.recv().await.unwrap();
    for _ in 0..2 {
        let peer = connection.peer().unwrap();
        assert_eq!(peer.user().to_string(), User::PLAIN.sid);
    }
}

/// The table in the documentation of `Trust`, and other users.
#[test]
fn a_client_talks_to_the_servers_that_it_trusts() {
    with_access_checks(|| async {
        let cases = [
            // Server, client, and whether `System` and `CurrentUser` include the server.
            (User::PLAIN, User::PLAIN, true, true),
            (User::PLAIN, User::ELEVATED, true, true),
            (User::ELEVATED, User::ELEVATED, true, true),
            (User::ELEVATED, User::PLAIN, true, false),
            (User::LOCAL_SYSTEM, User::PLAIN, true, false),
            (User::LOCAL_SERVICE, User::PLAIN, false, false),
            (User::OTHER, User::PLAIN, false, false),
            (User::PLAIN, User::OTHER, false, false),
            (User::PLAIN, User::LOCAL_SYSTEM, false, false),
        ];
        for (server, client, system, current_user) in cases {
            let owner = UserId::Sid(server.owner.to_owned());
            for (trust, trusted) in [
                (Trust::System, system),
                (Trust::CurrentUser, current_user),
                (Trust::User(owner.clone()), true),
                (Trust::Anyone, true),
            ] {
                let case = format!("{server:?}, {client:?} and {trust:?}");
                let options = ClientOptions::new().trust(trust);
                let (server, client) = (server.clone(), client.clone());
                match connect_as(server, Access::Everyone, client, options).await {
                    Ok(()) => assert!(trusted, "{case}"),
                    Err(ConnectError::Untrusted { owner: named, .. }) => {
                        assert!(!trusted, "{case}");
                        assert_eq!(named, owner, "{case}");
                    }
                    Err(error) => panic!("{case}: {error:?}"),
                }
            }
        }
    });
}

#[test]
fn a_message_whose_sender_closes_midway_is_received_whole_or_reported_incomplete() {
    let mut outcomes = HashSet::new();
    let seeds = seeds(300);
    let many = seeds.end - seeds.start >= 300;
    for seed in seeds {
        let outcome = run(Options::seeded(seed), close_midway);
        outcomes.insert(outcome);
    }
    if many {
        let expected = ["incomplete", "whole"];
        assert_eq!(
            outcomes,
            HashSet::from(expected),
            "each occurs with some seed"
        );
    }
}

async fn close_midway() -> &'static str {
    let long = message(1, 60_000);
    let mut listener = bind(ListenerOptions::new().buffer_size(4096)).unwrap();
    let mut client = Client::connect(listener.path()).await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    {
        let mut sending = pin!(client.send(long.clone()));
        poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx)))
            .await
            .is_ready();
    }
    {
        let mut receiving = pin!(connection.recv());
        let received = poll_fn(|cx| Poll::Ready(receiving.as_mut().poll(cx))).await;
        if let Poll::Ready(received) = received {
            assert!(received.unwrap().unwrap() == long);
            return "whole";
        }
    }
    drop(client);
    match connection.recv().await {
        Ok(Some(received)) => {
            assert!(received == long);
            "whole"
        }
        Ok(None) => panic!("a partly received message was dropped without an error"),
        Err(RecvError::Incomplete) => "incomplete",
        Err(error) => panic!("{error:?}"),
    }
}

/// The name stays, and neither a handle nor a place among `max_instances` is lost.
#[test]
fn an_instance_whose_connect_completes_with_an_error_is_replaced() {
    for seed in seeds(100) {
        for most in [1, 2, 4] {
            run(Options::seeded(seed), || in_time(replace_failed(most)));
        }
    }
}

async fn replace_failed(most: usize) {
    let options = ListenerOptions::new().max_instances(most).backlog(2);
    let mut listener = bind(options).unwrap();
    for code in [
        ERROR_BROKEN_PIPE,
        ERROR_NO_SYSTEM_RESOURCES,
        ERROR_OPERATION_ABORTED,
    ] {
        let failed = Model::fail_connects(code);
        assert_eq!(failed, most.min(2), "each instance waits for a client");
        for _ in 0..failed {
            let error = listener.accept().await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(code as i32));
        }
    }
    let mut connected = Vec::new();
    for number in 0..most {
        let mut client = Client::connect(listener.path()).await.unwrap();
        let mut connection = listener.accept().await.unwrap();
        let sent = message(number, 100);
        client.send(sent.clone()).await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), sent);
        connected.push((client, connection));
    }
}

#[test]
fn a_message_that_the_system_has_no_memory_for_says_what_to_do() {
    for seed in seeds(30) {
        run(Options::seeded(seed), || in_time(send_without_memory()));
    }
}

async fn send_without_memory() {
    let mut listener = bind(ListenerOptions::new()).unwrap();
    for code in [
        ERROR_NO_SYSTEM_RESOURCES,
        ERROR_WORKING_SET_QUOTA,
        ERROR_NOT_ENOUGH_QUOTA,
    ] {
        let mut client = Client::connect(listener.path()).await.unwrap();
        let mut connection = listener.accept().await.unwrap();
        Model::fail_next_write(code);
        assert_no_memory(client.send(message(1, 50_000)).await, code);
        Model::fail_next_write(code);
        assert_no_memory(connection.send(message(1, 50_000)).await, code);
    }
}

fn assert_no_memory(sent: Result<(), SendError>, code: u32) {
    let Err(SendError::Io(error)) = sent else {
        panic!("{sent:?}");
    };
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    let text = error.to_string();
    for part in [
        "50000 bytes",
        "send smaller messages",
        &format!("os error {code}"),
    ] {
        assert!(text.contains(part), "{text}");
    }
}

/// Whatever fails, no message is lost in the middle, split, merged or repeated, and nothing hangs
/// or leaks.
#[test]
fn failing_calls_cost_connections_and_nothing_else() {
    for seed in seeds(if cfg!(miri) { 1 } else { 500 }) {
        let options = Options {
            faults: 10 + (seed % 50) as u32,
            ..Options::seeded(seed)
        };
        run(options, || in_time(converse_with_faults()));
    }
}

async fn converse_with_faults() {
    let name = unique_name().text;
    let mut listener = loop {
        match ListenerOptions::new()
            .max_instances(2)
            .buffer_size(4096)
            .bind(&name)
        {
            Ok(listener) => break listener,
            Err(_) => yield_now().await,
        }
    };
    let serving = tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok(connection) => drop(tokio::spawn(echo(connection))),
                Err(_) => yield_now().await,
            }
        }
    });
    let clients = if cfg!(miri) { 2 } else { 4 };
    let clients: Vec<_> = (0..clients)
        .map(|number| tokio::spawn(call(name.clone(), number)))
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    serving.abort();
}

/// Echoes requests, and checks that they arrive in order.
async fn echo(mut connection: Connection) {
    let mut expected = None;
    while let Ok(Some(received)) = connection.recv().await {
        let number = received[0];
        assert!(
            received == numbered(number),
            "a message that was never sent"
        );
        assert!(
            expected.is_none_or(|expected| expected == number),
            "out of order"
        );
        expected = Some(number.wrapping_add(1));
        if connection.send(received).await.is_err() {
            return;
        }
    }
}

async fn call(name: String, client: u8) {
    for attempt in 0..4 {
        // The numbers are unique to this conversation.
        let first = client * 40 + attempt * 10;
        let Ok(mut client) = Client::connect(&name).await else {
            yield_now().await;
            continue;
        };
        for number in (first..).take(6) {
            match client.call(numbered(number)).await {
                Ok(reply) => assert!(reply == numbered(number), "the wrong reply"),
                Err(_) => break,
            }
        }
    }
}

/// A message that starts with its number.
fn numbered(number: u8) -> Vec<u8> {
    let length = [1, 4000, 4096, 4097, 9000, 20_000][usize::from(number % 6)];
    let mut bytes = message(number.into(), length);
    bytes[0] = number;
    bytes
}
