//! Requests that a worker of NATS answers, with a NATS server that is part of the tests.

use std::{net::TcpListener, process::Stdio, thread};

use pipe_server::Client;
use support::{in_time, unique_name};

use crate::program::{Server, server};

/// The port of a server that echoes the requests of one client.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (connection, _) = listener.accept().unwrap();
        support::nats::echo(connection, "a.subject", "nothing");
    });
    port
}

#[tokio::test]
async fn requests_are_forwarded_and_answered() {
    in_time(async {
        let name = unique_name();
        let url = format!("nats://127.0.0.1:{}/a.subject", echo());
        let _server = Server::start(&name, &["--forward", &url]);
        let mut client = Client::connect(&name.text).await.unwrap();
        for length in [1, 1000, 60_000] {
            let request = support::message(length, length);
            assert_eq!(client.call(request.clone()).await.unwrap(), request);
        }
    })
    .await;
}

#[test]
fn a_wrong_url_is_bad_usage_and_its_password_is_not_printed() {
    for (url, said) in [
        ("http://ann:s3cret@localhost/a", "scheme"),
        ("nats://ann:s3cret@localhost", "no subject"),
        ("nats://ann:s3cret@localhost/a b", "blank"),
        ("", "scheme"),
    ] {
        let name = unique_name();
        let mut command = server(&name, &["--forward", url]);
        let output = command.stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(said), "{stderr}");
        assert!(!stderr.contains("s3cret"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}
