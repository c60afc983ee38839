//! `pipe-server --exec-mode` and `--trim-newline`.

use std::process::{Command, Output, Stdio};

use pipe_server::Client;
use support::{UniqueName, in_time, unique_name};

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
        ("lines", "read -r l; yes xxxxxxxxxxx", "more than 10 bytes"),
        ("lines", "read -r l; yes ''", "printed nothing"),
        ("frames", "head -c 9 >/dev/null; yes", "more than 10 bytes"),
        (
            "frames",
            "head -c 9 >/dev/null; cat /dev/zero",
            "printed nothing",
        ),
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
async fn a_command_that_ends_while_its_client_idles_ends_the_connection_and_leaves_its_place() {
    in_time(async {
        let command = "read -r line; echo re; echo complaint >&2; exit 3";
        let name = unique_name();
        let limit = ["--exec-limit", "1", "--exec-mode", "lines"];
        let arguments = [&limit[..], &["--exec", command]].concat();
        let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
        for _ in 0..2 {
            let mut client = Client::connect(&name.text).await.unwrap();
            assert_eq!(client.call("a").await.unwrap(), "re");
            assert_eq!(client.recv().await.unwrap(), None);
            let line = server.log().wait_for("complaint");
            assert!(
                line.contains("(exit status: 3) while its client was idle"),
                "{line}"
            );
        }
    })
    .await;
}

/// The commands are clients of a pipe of this test, because no program of cmd reads line by line.
#[cfg(windows)]
mod on_windows {
    use pipe_server::{Connection, PipeListener};

    use super::*;

    /// A pipe, and a command that passes lines on to it.
    fn pipe_and_command() -> (UniqueName, PipeListener, String) {
        let name = unique_name();
        let listener = PipeListener::bind(&name.text).unwrap();
        // Built on Linux for Windows it is a path of Linux, which cmd does not understand.
        let program = std::path::absolute(env!("CARGO_BIN_EXE_pipe-client")).unwrap();
        let command = format!(r#""{}" --pipe-name "{}""#, program.display(), name.text);
        (name, listener, command)
    }

    fn kill(process: &Connection) {
        let id = process.peer().unwrap().process_id().to_string();
        let mut kill = Command::new("taskkill");
        assert!(kill.args(["/F", "/PID", &id]).status().unwrap().success());
    }

    #[tokio::test]
    async fn what_a_command_does_while_its_client_idles_ends_the_connection() {
        in_time(async {
            // What cmd goes on with when the client is killed.
            for (then, said) in [
                ("", "while its client was idle"),
                ("& echo note& more", "\"note\" that no request asked for"),
            ] {
                let (_name, mut pipe, command) = pipe_and_command();
                let command = command + then;
                let name = unique_name();
                let arguments = ["--exec-mode", "lines", "--exec", &command];
                let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
                let mut client = Client::connect(&name.text).await.unwrap();
                client.send("a").await.unwrap();
                let mut process = pipe.accept().await.unwrap();
                assert_eq!(process.recv().await.unwrap().unwrap(), "a");
                process.send("re").await.unwrap();
                assert_eq!(client.recv().await.unwrap().unwrap(), "re");
                kill(&process);
                assert_eq!(client.recv().await.unwrap(), None);
                server.log().wait_for(said);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_greeting_of_a_command_is_no_reply() {
        in_time(async {
            let (_name, _pipe, command) = pipe_and_command();
            let command = format!("echo hello& {command}");
            let name = unique_name();
            let arguments = ["--exec-mode", "lines", "--exec", &command];
            let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
            let mut client = Client::connect(&name.text).await.unwrap();
            client.send("a").await.unwrap();
            assert_eq!(client.recv().await.unwrap(), None);
            server.log().wait_for("\"hello\" that no request asked for");
        })
        .await;
    }
}

/// The client's replies to `requests`, sent at once, until its connection ends, and what the
/// server logs about it.
#[cfg(unix)]
async fn replies_until_it_ends(
    mode: &str,
    command: &str,
    requests: &[&'static str],
) -> (Vec<String>, String) {
    let conversation = async {
        let name = unique_name();
        let arguments = ["--exec-mode", mode, "--exec", command];
        let server = Server::spawn(server(&name, &arguments).stderr(Stdio::piped()));
        let mut client = Client::connect(&name.text).await.unwrap();
        for request in requests {
            // It may have ended already.
            _ = client.send(*request).await;
        }
        let mut replies = Vec::new();
        while let Ok(Some(reply)) = client.recv().await {
            replies.push(String::from_utf8_lossy(&reply).into_owned());
        }
        (replies, server.log().wait_for("closing the connection"))
    };
    let ended = tokio::time::timeout(support::DEADLINE, conversation).await;
    ended.expect("the conversation does not end")
}

#[cfg(unix)]
#[tokio::test]
async fn a_line_too_many_ends_the_conversation_and_is_never_a_reply() {
    let command = r#"while read -r l; do echo "re:$l"; [ "$l" = b ] && echo note; done"#;
    let (replies, line) = replies_until_it_ends("lines", command, &["a", "b"]).await;
    assert_eq!(replies, ["re:a", "re:b"]);
    assert!(line.contains("note"), "{line}");
    assert!(line.contains("that no request asked for"), "{line}");
}

/// The further lines come in one piece with the reply, and the next request is there already.
#[cfg(unix)]
#[tokio::test]
async fn a_line_too_many_is_found_before_the_next_request_is_passed_on() {
    let command = r#"while read -r l; do printf 're:%s\nnote\n' "$l"; done"#;
    let (replies, line) = replies_until_it_ends("lines", command, &["a", "b", "c"]).await;
    assert_eq!(replies, ["re:a"]);
    assert!(line.contains("note"), "{line}");
}

#[cfg(unix)]
#[tokio::test]
async fn bytes_after_a_frame_end_the_conversation() {
    let command = "head -c 5; printf note; cat";
    let (replies, line) = replies_until_it_ends("frames", command, &["a"]).await;
    assert_eq!(replies, ["a"]);
    assert!(line.contains("note"), "{line}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_greeting_of_a_command_is_no_reply() {
    let lines = "echo hello; while read -r l; do echo \"re:$l\"; done";
    let frames = r"printf '\005\000\000\000hello'; cat";
    for (mode, command) in [("lines", lines), ("frames", frames)] {
        let (replies, line) = replies_until_it_ends(mode, command, &["a", "b"]).await;
        assert!(replies.is_empty(), "{replies:?}");
        assert!(line.contains("hello"), "{line}");
        assert!(line.contains("that no request asked for"), "{line}");
    }
}

/// More than a pipe takes, with nobody who reads it while its client idles.
#[cfg(unix)]
#[tokio::test]
async fn what_a_command_logs_while_its_client_idles_does_not_block_it() {
    in_time(async {
        let name = unique_name();
        let directory = tempfile::tempdir().unwrap();
        let done = directory.path().join("done");
        let command = format!(
            "read -r l; echo \"$l\"; head -c 200000 /dev/zero >&2; touch '{}'; cat",
            done.display()
        );
        let _server = Server::start(&name, &["--exec-mode", "lines", "--exec", &command]);
        let mut client = Client::connect(&name.text).await.unwrap();
        assert_eq!(client.call("a").await.unwrap(), "a");
        while !done.exists() {
            tokio::task::yield_now().await;
        }
        assert_eq!(client.call("b").await.unwrap(), "b");
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

#[cfg(target_os = "linux")]
#[test]
fn a_server_that_is_process_1_says_that_it_reaps_only_its_own_commands() {
    let unshared = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", program]);
        command
    };
    if !unshared("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("left out: needs the right to create a PID namespace");
        return;
    }
    for (answer, warns) in [(&["--exec", "cat"][..], true), (&["--echo"], false)] {
        let name = unique_name();
        let started = server(&name, answer);
        let mut command = unshared(env!("CARGO_BIN_EXE_pipe-server"));
        command
            .args(started.get_args())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let server = Server::spawn(&mut command);
        assert_eq!(printed(&name, &["hello"]), "hello\n");
        let log = server.killed_log();
        assert_eq!(log.contains("docker run --init"), warns, "{log}");
    }
}
