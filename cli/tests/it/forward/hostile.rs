//! NATS servers that mean harm. None of them costs memory that it chooses.

use std::{
    io::{self, Write as _},
    net::{TcpListener, TcpStream},
    process::Stdio,
    thread,
};

use pipe_server::Client;
use support::{
    in_time,
    nats::{MAX_PAYLOAD, NatsClient},
    unique_name,
};

use crate::program::{Server, server};

const SUBJECT: &str = "a.subject";

/// How much a server sends unless it is stopped.
const FLOOD: usize = 256 * 1024 * 1024;

/// How much memory this program may need meanwhile. Most of it is the program itself.
const MOST_MEMORY: usize = 64 * 1024 * 1024;

const TWO_GIB: u64 = 2 * 1024 * 1024 * 1024;

/// Sends `text` again and again, and reads nothing. Ends when the client closes the connection.
fn flood(connection: &mut TcpStream, text: &str) -> io::Result<()> {
    let block = text.repeat(64 * 1024 / text.len());
    for _ in 0..FLOOD / block.len() {
        connection.write_all(block.as_bytes())?;
    }
    Ok(())
}

/// Starts a server with a NATS server that does `attack` to its first connection, and refuses
/// others from then on.
fn under(attack: impl FnOnce(TcpStream) -> io::Result<()> + Send + 'static) -> Target {
    let nats = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}/{SUBJECT}", nats.local_addr().unwrap());
    thread::spawn(move || {
        let (connection, _) = nats.accept().unwrap();
        drop(nats);
        _ = attack(connection);
    });
    let name = unique_name();
    let arguments = ["--forward", &url, "--handler-timeout", "none"];
    let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
    Target {
        name: name.text.clone(),
        server,
        _name: name,
    }
}

struct Target {
    name: String,
    server: Server,
    _name: support::UniqueName,
}

impl Target {
    /// One call, which fails at once: there is no `--handler-timeout`.
    async fn fail(&self) {
        let mut client = Client::connect(&self.name).await.unwrap();
        client.call("hello").await.unwrap_err();
    }

    fn check_memory(&self) {
        let peak = peak_memory(self.server.child.id());
        assert!(peak < MOST_MEMORY, "{peak} bytes");
    }
}

#[cfg(target_os = "linux")]
fn peak_memory(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.unwrap().trim().trim_end_matches(" kB");
    peak.parse::<usize>().unwrap() * 1024
}

#[cfg(windows)]
fn peak_memory(process: u32) -> usize {
    support::process::peak_memory(process).unwrap()
}

/// Greets, and does `attack` when the first request is there.
fn at_a_request(
    max_payload: u64,
    attack: impl FnOnce(&mut NatsClient, String) -> io::Result<()> + Send + 'static,
) -> Target {
    under(move |connection| {
        let mut client = NatsClient::greet(connection, max_payload);
        let request = client.request(SUBJECT, "nothing").unwrap();
        attack(&mut client, request.inbox)
    })
}

/// Runs an `attack` that ends the connection with an error that says all of `said`.
async fn breaks_the_protocol(target: Target, said: &[&str]) {
    target.fail().await;
    let log = target.server.log();
    // In the order in which they are logged.
    let lines = [
        log.wait_for("the connection to the NATS server of --forward is lost"),
        log.wait_for("broke its protocol"),
    ];
    for line in lines {
        assert!(said.iter().all(|part| line.contains(part)), "{line}");
    }
    target.check_memory();
}

#[tokio::test]
async fn a_greeting_without_an_end_is_not_collected() {
    in_time(async {
        let target = under(|mut connection| {
            connection.write_all(b"INFO {\"server_name\":\"")?;
            flood(&mut connection, "a")
        });
        let line = target.server.log().wait_for("can't connect to the NATS");
        assert!(line.contains("a line of more than 65536 bytes"), "{line}");
        target.check_memory();
    })
    .await;
}

#[tokio::test]
async fn a_line_without_an_end_is_not_collected() {
    in_time(async {
        let target = at_a_request(MAX_PAYLOAD, |client, _| {
            client.connection.write_all(b"-ERR '")?;
            flood(&mut client.connection, "a")
        });
        breaks_the_protocol(target, &["a line of more than 65536 bytes"]).await;
    })
    .await;
}

#[tokio::test]
async fn answers_to_a_flood_of_pings_are_not_collected() {
    in_time(async {
        let target = at_a_request(MAX_PAYLOAD, |client, _| {
            flood(&mut client.connection, "PING\r\n")
        });
        breaks_the_protocol(target, &["more than 1000 PINGs"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_message_longer_than_max_payload_is_not_collected() {
    in_time(async {
        let target = at_a_request(MAX_PAYLOAD, |client, inbox| {
            client.announce(&inbox, None, TWO_GIB)?;
            flood(&mut client.connection, "a")
        });
        breaks_the_protocol(target, &["2147483648 bytes", "max_payload is 1048576"]).await;
    })
    .await;
}

#[tokio::test]
async fn headers_longer_than_max_payload_are_not_collected() {
    in_time(async {
        let target = at_a_request(MAX_PAYLOAD, |client, inbox| {
            client.announce(&inbox, Some(TWO_GIB), TWO_GIB)?;
            flood(&mut client.connection, "a")
        });
        breaks_the_protocol(target, &["2147483648 bytes", "max_payload is 1048576"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_large_max_payload_makes_no_longer_message_acceptable() {
    in_time(async {
        let target = at_a_request(u64::MAX, |client, inbox| {
            client.announce(&inbox, None, TWO_GIB)?;
            flood(&mut client.connection, "a")
        });
        target.fail().await;
        let log = target.server.log();
        log.wait_for("the reply has 2147483648 bytes, more than 65536");
        log.wait_for("is lost");
        target.check_memory();
    })
    .await;
}

#[tokio::test]
async fn a_large_max_payload_makes_no_longer_headers_acceptable() {
    in_time(async {
        let target = at_a_request(u64::MAX, |client, inbox| {
            client.announce(&inbox, Some(TWO_GIB), TWO_GIB + 1)?;
            flood(&mut client.connection, "a")
        });
        target.fail().await;
        let log = target.server.log();
        log.wait_for("the reply's headers have 2147483648 bytes, more than 65536");
        log.wait_for("is lost");
        target.check_memory();
    })
    .await;
}

#[tokio::test]
async fn what_is_not_the_protocol_ends_the_connection() {
    for (text, said) in [
        ("MSG \u{fffd}", "MSG"),
        ("MSG a 1 x\r\n", "MSG"),
        ("HMSG a 1 5 4\r\n", "HMSG"),
        ("HMSG a 1 5\r\n", "HMSG"),
        ("HELP\r\n", "HELP"),
        ("\r\n", "\"\""),
        ("INFO {\r\n", "INFO"),
    ] {
        in_time(async {
            let target = at_a_request(MAX_PAYLOAD, move |client, _| {
                let text = text.replace('\u{fffd}', "a 1 1 ");
                client.connection.write_all(text.as_bytes())?;
                // Not a character.
                client.connection.write_all(b"\xff\r\n")
            });
            breaks_the_protocol(target, &["not NATS's protocol", said]).await;
        })
        .await;
    }
}
