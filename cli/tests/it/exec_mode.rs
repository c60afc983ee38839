//! `pipe-server --exec-mode` and `--trim-newline`.

use std::process::{Command, Output, Stdio};

#[cfg(unix)]
use pipe_server::Client;
#[cfg(unix)]
use support::in_time;
use support::{UniqueName, unique_name};

use crate::program::{Server, server};

fn call(name: &UniqueName, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pipe-client"))
        .args(["--pipe-name", &name.text, "--timeout", "50s"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn printed(name: &UniqueName, arguments: &[&str]) -> String {
    let output = call(name, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_last_newline_can_be_removed() {
    let (command, kept, removed) = match cfg!(windows) {
        true => ("echo hello", "68656c6c6f0d0a\n", "68656c6c6f\n"),
        false => ("echo hello; echo", "68656c6c6f0a0a\n", "68656c6c6f0a\n"),
    };
    let name = unique_name();
    let _server = Server::start(&name, &["--exec", command]);
    assert_eq!(printed(&name, &["--hex", "00"]), kept);
    let name = unique_name();
    // The newline does not count for the limit.
    let limit = ["--trim-newline", "--max-message-size", "6"];
    let _server = Server::start(&name, &[&limit, &["--exec", command][..]].concat());
    assert_eq!(printed(&name, &["--hex", "00"]), removed);
}

#[cfg(unix)]
#[test]
fn with_lines_one_command_serves_all_requests_of_a_client() {
    let name = unique_name();
    let command = "n=0; while read -r line; do n=$((n+1)); echo \"$n:$line\"; done";
    let _server = Server::start(&name, &["--exec-mode", "lines", "--exec", command]);
    assert_eq!(printed(&name, &["a", "b", "c d"]), "1:a\n2:b\n3:c d\n");
    // Another client has another command.
    assert_eq!(printed(&name, &["a"]), "1:a\n");
}

#[test]
fn a_client_is_a_command_that_passes_lines_on() {
    let (front, back) = (unique_name(), unique_name());
    let _back = Server::start(&back, &["--echo"]);
    // Built on Linux for Windows it is a path of Linux, which cmd does not understand.
    let program = std::path::absolute(env!("CARGO_BIN_EXE_pipe-client")).unwrap();
    let command = format!(r#""{}" --pipe-name "{}""#, program.display(), back.text);
    let arguments = ["-v", "--exec-mode", "lines", "--exec", &command];
    let server = Server::spawn(server(&front, &arguments).stderr(Stdio::piped()));
    assert_eq!(printed(&front, &["a", "b", "c d"]), "a\nb\nc d\n");
    assert_eq!(printed(&front, &["next"]), "next\n");
    // Two clients, two commands.
    for id in ["1", "2"] {
        let line = server.log().wait_for("command started");
        assert!(line.contains(&format!("connection.id={id}")), "{line}");
    }
}

#[cfg(unix)]
#[test]
fn with_frames_messages_may_be_any_bytes() {
    let name = unique_name();
    let _server = Server::start(&name, &["--exec-mode", "frames", "--exec", "cat"]);
    let messages = ["--hex", "000a0d", "ff", "0a"];
    assert_eq!(printed(&name, &messages), "000a0d\nff\n0a\n");
    let long = "x".repeat(60_000);
    assert_eq!(printed(&name, &[&long]), long + "\n");
}

#[test]
fn a_request_with_a_newline_is_no_line() {
    let name = unique_name();
    let arguments = ["--exec-mode", "lines", "--exec", "cat"];
    let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
    let output = call(&name, &["--hex", "610a62"]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    server.log().wait_for("use --exec-mode frames");
}

#[test]
fn a_command_that_ends_is_reported_with_what_it_said() {
    let (command, status) = match cfg!(windows) {
        true => ("echo complaint 1>&2 & exit 3", "exit code: 3"),
        false => ("echo complaint >&2; exit 3", "exit status: 3"),
    };
    for mode in ["lines", "frames"] {
        let name = unique_name();
        let arguments = ["--exec-mode", mode, "--exec", command];
        let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
        let output = call(&name, &["hello"]);
        assert_eq!(output.status.code(), Some(6), "{output:?}");
        let line = server.log().wait_for("complaint");
        assert!(line.contains(status), "{line}");
    }
}

#[cfg(unix)]
#[test]
fn a_reply_that_is_too_long_or_empty_costs_its_client_the_connection() {
    for (mode, command, said) in [
        ("lines", "yes xxxxxxxxxxx", "more than 10 bytes"),
        ("lines", "yes ''", "printed nothing"),
        ("frames", "yes", "more than 10 bytes"),
        ("frames", "cat /dev/zero", "printed nothing"),
    ] {
        let name = unique_name();
        let limit = ["--max-message-size", "10", "--exec-mode", mode];
        let arguments = [&limit[..], &["--exec", command]].concat();
        let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
        let output = call(&name, &["hello"]);
        assert_eq!(output.status.code(), Some(6), "{output:?}");
        server.log().wait_for(said);
    }
}

/// A command that fills its stderr does not wait for anybody.
#[cfg(unix)]
#[test]
fn what_a_command_logs_does_not_block_it() {
    let name = unique_name();
    let command = "while read -r line; do head -c 200000 /dev/zero >&2; echo \"$line\"; done";
    let _server = Server::start(&name, &["--exec-mode", "lines", "--exec", command]);
    assert_eq!(printed(&name, &["a", "b"]), "a\nb\n");
}

#[cfg(unix)]
#[tokio::test]
async fn a_command_counts_for_the_limit_until_its_client_leaves_and_is_then_killed() {
    in_time(async {
        let name = unique_name();
        let arguments = [
            "-v",
            "--exec-limit",
            "1",
            "--exec-mode",
            "lines",
            "--exec",
            "echo $$; while read -r line; do echo \"$line\"; done",
        ];
        let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
        let mut first = Client::connect(&name.text).await.unwrap();
        let process = first.call("a").await.unwrap();
        let mut second = Client::connect(&name.text).await.unwrap();
        second.send("b").await.unwrap();
        server.log().wait_for("--exec-limit");
        assert_eq!(first.call("c").await.unwrap(), "a");

        drop(first);
        let other = second.recv().await.unwrap().unwrap();
        assert_ne!(process, other);
        // The first one is gone, or it would have kept its place.
        let process = std::str::from_utf8(&process).unwrap().parse().unwrap();
        let process = rustix::process::Pid::from_raw(process).unwrap();
        while rustix::process::test_kill_process(process).is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[test]
fn the_modes_need_a_command() {
    for arguments in [&["--exec-mode", "lines"][..], &["--trim-newline"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_pipe-server"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}
