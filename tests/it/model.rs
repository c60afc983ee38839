//! What only the model of Windows can show: other users, calls that fail without a reason, and a sender that leaves in
//! the middle of a message.

use std::{
    collections::HashSet,
    future::{Future, poll_fn},
    io,
    pin::pin,
    task::Poll,
};

use pipe_server::{
    Access, BindError, Client, ClientOptions, ConnectError, Connection, ListenerOptions,
    PipeListener, RecvError,
    model::{Model, Options, User, run, seeds},
    os::windows::{Engine, ListenerOptionsExt as _},
};
use support::{in_time, message, unique_name};
use tokio::task::yield_now;

/// Runs as `server` what `access` serves, and connects as `client`.
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

/// Runs a test with many seeds of the forms that check access.
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
fn an_access_list_that_shuts_out_its_own_server_is_refused_at_once() {
    with_access_checks(|| async {
        for list in ["D:P(A;;GA;;;SY)", "D:P(A;;0x12019b;;;WD)", "D:P"] {
            for most in [1, 4] {
                let options = ListenerOptions::new()
                    .access(Access::Sddl(list.to_owned()))
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
                assert!(text.contains("does not let this process itself"), "{text}");
                assert!(text.contains(User::PLAIN.sid), "{text}");
                let kind = io::Error::from(error).kind();
                assert_eq!(kind, io::ErrorKind::InvalidInput);
            }
        }
        let options = ListenerOptions::new().access(Access::Sddl("D:P(A;;GA;;;WD)".to_owned()));
        assert!(bind(options).is_ok());
    });
}

#[test]
fn another_user_is_let_in_only_if_everyone_is() {
    with_access_checks(|| async {
        let client = ClientOptions::new();
        let refused = connect_as(
            User::PLAIN,
            Access::CurrentUser,
            User::OTHER,
            client.clone(),
        )
        .await;
        assert!(
            matches!(refused, Err(ConnectError::Denied { .. })),
            "{refused:?}"
        );
        let connected = connect_as(User::PLAIN, Access::Everyone, User::OTHER, client).await;
        assert!(connected.is_ok(), "{connected:?}");
    });
}

#[test]
fn a_client_for_its_own_user_alone_knows_its_own_pipes_by_their_owner() {
    with_access_checks(|| async {
        let cases = [
            (User::PLAIN, User::PLAIN, true),
            (User::PLAIN, User::ELEVATED, true),
            (User::ELEVATED, User::ELEVATED, true),
            // To a plain client a pipe of the Administrators may be anybody's among them.
            (User::ELEVATED, User::PLAIN, false),
            (User::OTHER, User::PLAIN, false),
            (User::PLAIN, User::OTHER, false),
        ];
        for (server, client, connects) in cases {
            let options = ClientOptions::new().only_current_user(true);
            let case = format!("{server:?} and {client:?}");
            let owner = server.owner;
            let connected = connect_as(server, Access::Everyone, client, options).await;
            match connected {
                Ok(()) => assert!(connects, "{case}"),
                Err(ConnectError::OtherUser { owner: named, .. }) => {
                    assert!(!connects, "{case}");
                    assert_eq!(named, owner);
                }
                Err(error) => panic!("{case}: {error:?}"),
            }
        }
    });
}

#[test]
fn a_message_that_its_sender_leaves_in_the_middle_of_has_one_outcome() {
    let mut outcomes = HashSet::new();
    let seeds = seeds(300);
    let many = seeds.end - seeds.start >= 300;
    for seed in seeds {
        let outcome = run(Options::seeded(seed), leave_in_the_middle);
        outcomes.insert(outcome);
    }
    if many {
        let expected = ["cut short", "whole"];
        assert_eq!(
            outcomes,
            HashSet::from(expected),
            "each is seen with some seed"
        );
    }
}

async fn leave_in_the_middle() -> &'static str {
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
        Ok(None) => panic!("the part that had arrived is gone without a word"),
        Err(RecvError::Incomplete) => "cut short",
        Err(error) => panic!("{error:?}"),
    }
}

/// Whatever fails: nothing is lost in the middle, split, merged or repeated, nothing hangs, and nothing is left.
#[test]
fn calls_that_fail_cost_connections_and_nothing_else() {
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

/// Answers what comes, as long as that is in order.
async fn echo(mut connection: Connection) {
    let mut expected = None;
    while let Ok(Some(received)) = connection.recv().await {
        let number = received[0];
        assert!(received == numbered(number), "a message that nobody sent");
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
        // Each conversation has numbers of its own.
        let first = client * 40 + attempt * 10;
        let Ok(mut client) = Client::connect(&name).await else {
            yield_now().await;
            continue;
        };
        for number in (first..).take(6) {
            match client.call(numbered(number)).await {
                Ok(reply) => assert!(reply == numbered(number), "another's reply"),
                Err(_) => break,
            }
        }
    }
}

/// A message that begins with its number.
fn numbered(number: u8) -> Vec<u8> {
    let length = [1, 4000, 4096, 4097, 9000, 20_000][usize::from(number % 6)];
    let mut bytes = message(number.into(), length);
    bytes[0] = number;
    bytes
}
