//! The log of `pipe-server` on stderr.

use std::process::Stdio;

use pipe_server::Client;
use support::{in_time, unique_name};

use crate::program::{Server, server};

/// With `-vv` they log more than a pipe and the log's queue hold.
pub(crate) const MANY_REQUESTS: usize = 6_000;

pub(crate) async fn echo(client: &mut Client, requests: usize) {
    for _ in 0..requests {
        assert_eq!(client.call("hello").await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_blocks_no_client() {
    in_time(async {
        let name = unique_name();
        let server = Server::spawn(server(&name, &["--echo", "-vv"]).stderr(Stdio::piped()));
        let mut client = Client::connect(&name.text).await.unwrap();
        echo(&mut client, MANY_REQUESTS).await;

        // Read at last, the log says what is missing, and goes on.
        let notice = server.log().wait_for("log lines were dropped");
        let (_, dropped) = notice.split_once("lines=").unwrap();
        assert!(dropped.parse::<u64>().unwrap() > 0, "{notice}");
        echo(&mut client, 1).await;
        server.log().wait_for("TRACE");
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_log_that_nobody_reads_does_not_keep_the_server_from_ending() {
    use rustix::process::Signal;

    for signal in [Signal::TERM, Signal::INT] {
        let name = unique_name();
        let server = Server::spawn(server(&name, &["--echo", "-vv"]).stderr(Stdio::piped()));
        in_time(async {
            let mut client = Client::connect(&name.text).await.unwrap();
            echo(&mut client, MANY_REQUESTS).await;
        })
        .await;
        assert_eq!(server.end(signal).0, Some(0));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_stdout_that_nobody_reads_blocks_neither_clients_nor_the_end() {
    use std::{fs::File, io::Write as _};

    use pipe_server::ClientOptions;
    use rustix::process::{Pid, Signal};
    use support::DEADLINE;

    use crate::program::ended;

    let (unread, full) = rustix::pipe::pipe().unwrap();
    let size = rustix::pipe::fcntl_getpipe_size(&full).unwrap();
    let full = File::from(full);
    (&full).write_all(&vec![b'x'; size]).unwrap();

    let name = unique_name();
    let mut server = server(&name, &["--echo"])
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    in_time(async {
        let options = ClientOptions::new()
            .wait_for_server(true)
            .connect_timeout(DEADLINE);
        let mut client = options.connect(&name.text).await.unwrap();
        echo(&mut client, 1).await;
    })
    .await;
    rustix::process::kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    let mut log = server.stderr.take().unwrap();
    assert_eq!(ended(&mut server, &mut log).0, Some(0));
    drop(unread);
}

/// The line of the log about a command of `--exec` that complains and fails.
async fn line_about(command: &str, arguments: &[&str]) -> String {
    let name = unique_name();
    let arguments = [arguments, &["--exec", command]].concat();
    let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
    in_time(async {
        let mut client = Client::connect(&name.text).await.unwrap();
        client.call("hello").await.unwrap_err();
    })
    .await;
    server.log().wait_for("complaint")
}

#[tokio::test]
async fn a_command_can_not_forge_lines_of_the_log() {
    let (command, escaped) = match cfg!(windows) {
        true => (
            "echo complaint 1>&2 & echo forged 1>&2 & exit 3",
            r"\r\nforged",
        ),
        false => (
            r"printf 'complaint\nforged\r\033[2J\302\233\342\200\256' >&2; exit 3",
            r"complaint\nforged\r\u{1b}[2J\u{9b}\u{202e}",
        ),
    };
    let line = line_about(command, &[]).await;
    assert!(line.contains(escaped), "{line}");
}

#[cfg(unix)]
#[tokio::test]
async fn the_log_in_json_shows_no_terminal_what_it_should_not_see() {
    let command = r"printf 'complaint\n\033[2J\302\233\342\200\256' >&2; exit 3";
    let line = line_about(command, &["--log-format", "json"]).await;
    let escaped = r"complaint\n\u001b[2J\u009b\u202e";
    assert!(line.contains(escaped), "{line}");
    assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
}
