//! `pipe-server --forward`.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    process::Stdio,
    thread,
};

use pipe_server::Client;
use support::{in_time, unique_name};

use crate::program::{Server, server};

#[cfg(target_os = "linux")]
mod nats;

/// As much of a NATS server and its worker as one client needs, for where there is no real one. It answers each request
/// with the request.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut output, _) = listener.accept().unwrap();
        let mut input = BufReader::new(output.try_clone().unwrap());
        let info = r#"{"server_id":"A","version":"2.10.0","headers":true,"max_payload":1048576}"#;
        write!(output, "INFO {info}\r\n").unwrap();
        let (mut id, mut line) = (String::new(), String::new());
        while input.read_line(&mut line).unwrap_or(0) > 0 {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["PING"] => output.write_all(b"PONG\r\n").unwrap(),
                ["SUB", _, number] => number.clone_into(&mut id),
                ["PUB", "a.subject", inbox, length] => {
                    let mut payload = vec![0; length.parse::<usize>().unwrap() + 2];
                    input.read_exact(&mut payload).unwrap();
                    write!(output, "MSG {inbox} {id} {length}\r\n").unwrap();
                    output.write_all(&payload).unwrap();
                }
                _ => assert!(line.starts_with("CONNECT"), "{line}"),
            }
            line.clear();
        }
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
