//! `pipe-server --forward pipe:NAME`: in front of a server that is part of the test.

use std::{process::Stdio, time::Duration};

use pipe_server::{
    Client, Connection, ListenerOptions, PipeListener, RecvHalf, SendError, SendHalf,
};
use support::{UniqueName, in_time, message, unique_name};
use tokio::time::{sleep, timeout};

use crate::program::{OTHER_USER, Server, server, stderr};

/// More than all buffers on the way hold.
const MUCH: usize = 64 * 1024 * 1024;
const LONG: usize = 64 * 1024;

/// A server, and the program in front of it.
struct Front {
    server: PipeListener,
    program: Server,
    name: UniqueName,
    server_name: UniqueName,
}

impl Front {
    fn start(arguments: &[&str]) -> Self {
        Self::before(ListenerOptions::new(), arguments)
    }

    fn before(options: ListenerOptions, arguments: &[&str]) -> Self {
        let (name, server_name) = (unique_name(), unique_name());
        let server = options.bind(&server_name.text).unwrap();
        let program = front_of(&server_name, &name, arguments);
        Self {
            server,
            program,
            name,
            server_name,
        }
    }

    /// A client of the program, and its connection at the server.
    async fn connect(&mut self) -> (Client, Connection) {
        let client = Client::connect(&self.name.text).await.unwrap();
        let connection = self.server.accept().await.unwrap();
        (client, connection)
    }
}

fn front_of(server_name: &UniqueName, name: &UniqueName, arguments: &[&str]) -> Server {
    let forward = format!("pipe:{}", server_name.text);
    let arguments = [&["--forward", &forward], arguments].concat();
    Server::spawn(server(name, &arguments).stderr(Stdio::piped()))
}

#[tokio::test]
async fn messages_are_passed_on_whole_and_in_order_in_both_directions() {
    in_time(async {
        let mut front = Front::start(&[]);
        // Each client has a connection of its own.
        let pairs = [front.connect().await, front.connect().await];
        for (number, (client, connection)) in pairs.into_iter().enumerate() {
            let sent = |index| message(100 * number + index, [1, 5, 4096, 4097, LONG][index % 5]);
            let send = async |mut sender: SendHalf| {
                for index in 0..50 {
                    sender.send(sent(index)).await.unwrap();
                }
                sender
            };
            let receive = async |mut receiver: RecvHalf| {
                for index in 0..50 {
                    assert_eq!(receiver.recv().await.unwrap().unwrap(), sent(index));
                }
                receiver
            };
            let (from_server, to_server) = client.into_split();
            let (from_client, to_client) = connection.into_split();
            // What the server sends, nobody has asked for.
            let _open = tokio::join!(
                send(to_server),
                receive(from_client),
                send(to_client),
                receive(from_server)
            );
        }
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_client_is_passed_on() {
    in_time(async {
        let mut front = Front::start(&[]);
        let (mut client, mut connection) = front.connect().await;
        client.send("request").await.unwrap();
        client.finish().await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), "request");
        assert!(connection.recv().await.unwrap().is_none());
        assert!(connection.is_half_closed());
        connection.send("reply").await.unwrap();
        drop(connection);
        assert_eq!(client.recv().await.unwrap().unwrap(), "reply");
        assert!(client.recv().await.unwrap().is_none());

        // A client that leaves, and what it has sent before.
        let (mut client, mut connection) = front.connect().await;
        for number in 0..3 {
            client.send(message(number, 1000)).await.unwrap();
        }
        drop(client);
        // Nobody gets this one, and it fails once all of the client's messages are passed on.
        _ = connection.send("reply").await;
        for number in 0..3 {
            let received = connection.recv().await.unwrap();
            assert_eq!(received.unwrap(), message(number, 1000));
        }
        assert!(connection.recv().await.unwrap().is_none());
        assert!(!connection.is_half_closed());
    })
    .await;
}

#[tokio::test]
async fn the_end_of_the_server_is_passed_on() {
    in_time(async {
        let mut front = Front::start(&[]);
        let (mut client, mut connection) = front.connect().await;
        connection.send("last").await.unwrap();
        connection.finish().await.unwrap();
        let (mut from_server, mut to_server) = client.into_split();
        assert_eq!(from_server.recv().await.unwrap().unwrap(), "last");
        assert!(from_server.recv().await.unwrap().is_none());
        assert!(from_server.is_half_closed());
        // It still receives.
        to_server.send("request").await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), "request");

        // One that dies has not said that it executed nothing.
        let connected = front.connect().await;
        client = connected.0;
        client.send("request").await.unwrap();
        drop(connected.1);
        let (mut from_server, _to_server) = client.into_split();
        assert!(from_server.recv().await.unwrap().is_none());
        assert!(!from_server.is_half_closed());
    })
    .await;
}

/// A client of `program` is disconnected, and the log says why.
async fn is_refused(program: &Server, name: &UniqueName, said: &str) {
    let mut client = Client::connect(&name.text).await.unwrap();
    // It may be gone already.
    _ = client.send("hello").await;
    assert!(client.recv().await.unwrap().is_none());
    let line = program.log().wait_for("can't forward");
    assert!(line.contains(said), "{line}");
}

#[tokio::test]
async fn a_client_ends_if_the_server_is_away_and_the_next_one_is_served_when_it_is_back() {
    in_time(async {
        let (name, server_name) = (unique_name(), unique_name());
        let program = front_of(&server_name, &name, &[]);
        is_refused(&program, &name, "nobody serves ").await;

        let _server = Server::start(&server_name, &["--echo"]);
        let mut client = Client::connect(&name.text).await.unwrap();
        assert_eq!(client.call("hello").await.unwrap(), "hello");
    })
    .await;
}

#[tokio::test]
async fn a_client_ends_if_the_server_is_busy_for_too_long() {
    in_time(async {
        let options = ListenerOptions::new().max_instances(1);
        let front = Front::before(options, &["--handler-timeout", "50ms"]);
        let mut server = front.server;
        let _client = Client::connect(&front.server_name.text).await.unwrap();
        let _connection = server.accept().await.unwrap();
        // The one more that Linux queues.
        #[cfg(target_os = "linux")]
        let _queued = Client::connect(&front.server_name.text).await.unwrap();
        is_refused(&front.program, &front.name, "busy").await;
    })
    .await;
}

/// The program ends when it has no client.
const ENDS_WITHOUT_CLIENTS: [&str; 4] = ["--exit-when-idle", "2s", "--handler-timeout", "none"];

#[tokio::test]
async fn a_client_that_leaves_while_the_server_is_busy_is_noticed() {
    in_time(async {
        for messages in [0, 1, 5] {
            let options = ListenerOptions::new().max_instances(1);
            let mut front = Front::before(options, &ENDS_WITHOUT_CLIENTS);
            let _served = Client::connect(&front.server_name.text).await.unwrap();
            // The one more that Linux queues.
            #[cfg(target_os = "linux")]
            let _accepted = front.server.accept().await.unwrap();
            #[cfg(target_os = "linux")]
            let _queued = Client::connect(&front.server_name.text).await.unwrap();
            let mut client = Client::connect(&front.name.text).await.unwrap();
            for number in 0..messages {
                client.send(message(number, 10)).await.unwrap();
            }
            drop(client);
            assert_eq!(
                front.program.ended().0,
                Some(0),
                "after {messages} messages"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_after_its_end_is_noticed() {
    in_time(async {
        let limit = ["--handler-timeout", "none", "--max-message-size", "1000"];
        let mut front = Front::start(&limit);
        let (mut client, mut connection) = front.connect().await;
        client.send("request").await.unwrap();
        client.finish().await.unwrap();
        while connection.recv().await.unwrap().is_some() {}
        drop(client);
        until_hung_up(connection).await;

        let (mut client, mut connection) = front.connect().await;
        client.send(message(0, 1001)).await.unwrap();
        while connection.recv().await.unwrap().is_some() {}
        drop(client);
        until_hung_up(connection).await;
    })
    .await;
}

async fn until_hung_up(connection: Connection) {
    let (receiver, _sender) = connection.into_split();
    while !receiver.is_hung_up() {
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_trusted_gets_nothing() {
    in_time(async {
        let front = Front::start(&["--trust", OTHER_USER]);
        is_refused(&front.program, &front.name, "--trust").await;
    })
    .await;
}

#[tokio::test]
async fn a_message_over_the_limit_ends_its_client() {
    in_time(async {
        let mut front = Front::start(&["--max-message-size", "1000"]);
        let (mut client, mut connection) = front.connect().await;
        client.send(message(0, 1000)).await.unwrap();
        client.send(message(1, 1001)).await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), message(0, 1000));
        // The server is asked for no more, and what it answers still comes.
        assert!(connection.recv().await.unwrap().is_none());
        connection.send("reply").await.unwrap();
        drop(connection);
        assert_eq!(client.recv().await.unwrap().unwrap(), "reply");
        assert!(client.recv().await.unwrap().is_none());
        front.program.log().wait_for("request_too_long");

        let (mut client, mut connection) = front.connect().await;
        connection.send(message(0, 1001)).await.unwrap();
        assert!(client.recv().await.unwrap().is_none());
        let line = front.program.log().wait_for("receiving from");
        assert!(line.contains("see --max-message-size"), "{line}");
    })
    .await;
}

/// Sends until the other side would have to read, and returns how much was taken.
async fn fill(mut send: impl AsyncFnMut() -> Result<(), SendError>) -> usize {
    let mut taken = 0;
    // Too short a time would only let this pass with less.
    while taken < MUCH {
        match timeout(Duration::from_millis(200), send()).await {
            Ok(sent) => sent.unwrap(),
            Err(_) => return taken,
        }
        taken += LONG;
    }
    taken
}

#[tokio::test]
async fn whoever_is_not_read_waits() {
    in_time(async {
        let mut front = Front::start(&["--write-timeout", "none"]);
        let (mut client, mut connection) = front.connect().await;
        let long = message(0, LONG);
        let taken = fill(async || connection.send(long.clone()).await).await;
        assert!(taken < MUCH, "{taken} bytes wait for the client");
        let taken = fill(async || client.send(long.clone()).await).await;
        assert!(taken < MUCH, "{taken} bytes wait for the server");

        // Others are served meanwhile.
        let (mut other, mut other_connection) = front.connect().await;
        other.send("hello").await.unwrap();
        assert_eq!(other_connection.recv().await.unwrap().unwrap(), "hello");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_never_reads_holds_no_client() {
    in_time(async {
        let mut front = Front::start(&["--write-timeout", "100ms"]);
        let (mut client, connection) = front.connect().await;
        let long = message(0, LONG);
        while client.send(long.clone()).await.is_ok() {}
        front.program.log().wait_for("(--write-timeout)");
        drop(connection);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_disconnected() {
    in_time(async {
        // Nobody reads the dump either.
        let mut front = Front::start(&["--write-timeout", "100ms", "--dump", "-"]);
        let (client, mut connection) = front.connect().await;
        let long = message(0, LONG);
        while connection.send(long.clone()).await.is_ok() {}
        front.program.log().wait_for("write_timeout");
        drop(client);
    })
    .await;
}

#[test]
fn a_wrong_destination_is_bad_usage() {
    let name = unique_name();
    let itself = format!("pipe:{}", name.text);
    for (url, said) in [
        (itself.as_str(), "the pipe of this server itself"),
        ("pipe:", "pipe"),
        ("mynamedpipe", "pipe:NAME"),
        ("", "pipe:NAME"),
    ] {
        let mut command = server(&name, &["--forward", url]);
        let output = command.stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains(said), "{output:?}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn messages_are_counted() {
    use rustix::process::Signal;

    in_time(async {
        let mut front = Front::start(&[]);
        let (mut client, mut connection) = front.connect().await;
        client.send("request").await.unwrap();
        connection.recv().await.unwrap();
        for message in ["one", "two"] {
            connection.send(message).await.unwrap();
            client.recv().await.unwrap();
        }
        // Counted before the end.
        client.finish().await.unwrap();
        connection.recv().await.unwrap();
        connection.finish().await.unwrap();
        client.recv().await.unwrap();
        front.program.signal(Signal::USR1);
        let line = front.program.log().wait_for("figures");
        let counted = "requests=1 replies=2 bytes_received=7 bytes_sent=6";
        assert!(line.contains(counted), "{line}");
    })
    .await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_shutdown_lets_requests_finish() {
    use rustix::process::Signal;

    in_time(async {
        let mut front = Front::start(&[]);
        let (mut client, mut connection) = front.connect().await;
        client.send("request").await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), "request");
        front.program.signal(Signal::TERM);
        // The server is told that no more will come.
        assert!(connection.recv().await.unwrap().is_none());
        connection.send("reply").await.unwrap();
        drop(connection);
        assert_eq!(client.recv().await.unwrap().unwrap(), "reply");
        assert!(client.recv().await.unwrap().is_none());
        assert_eq!(front.program.ended().0, Some(0));
    })
    .await;
}
