//! The exit codes of `pipe-client`, which scripts and health checks tell apart.

#[cfg(target_os = "linux")]
use std::path::Path;
use std::process::{Command, Output, Stdio};

use pipe_server::{Client, ListenerOptions, PipeListener};
use support::{UniqueName, in_time, unique_name};
use tokio::task::spawn_blocking;

use crate::program::{OTHER_USER, Server, run_client, stderr};

/// The two ways to ask a server: for its reply, and whether there is one.
const WAYS: [&str; 2] = ["hello", "--ping"];

async fn ask(way: &'static str, name: &UniqueName, arguments: &[&'static str]) -> Output {
    let name = name.text.clone();
    let arguments = arguments.to_owned();
    let run = move || {
        Command::new(env!("CARGO_BIN_EXE_pipe-client"))
            .args(["--pipe-name", &name, way])
            .args(arguments)
            // Empty: if it were read, no message would be sent.
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    spawn_blocking(run).await.unwrap()
}

/// Asserts the code and that the one line on stderr contains `said`.
fn assert_failed(output: &Output, code: i32, said: &str) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let line = stderr(output);
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains(said), "{line}");
}

/// Asserts that a measured time with one digit after the point follows `words`.
fn assert_is_rounded(line: &str, words: &str) {
    let time = line.split_once(words).unwrap_or_else(|| panic!("{line}")).1;
    let (_, after_the_point) = time.split_once('.').unwrap();
    let digits = after_the_point.find(|c: char| !c.is_ascii_digit());
    assert_eq!(digits, Some(1), "{line}");
}

#[tokio::test]
async fn a_server_that_answers_is_0() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    for message in [&[][..], &["hello"]] {
        let output = ask("--ping", &name, message).await;
        assert!(output.status.success(), "{output:?}");
        let line = String::from_utf8(output.stdout).unwrap();
        assert_is_rounded(&line, " replied in ");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_3() {
    let name = unique_name();
    let wait = ["--wait", "--connect-timeout", "10ms"];
    for way in WAYS {
        assert_failed(&ask(way, &name, &[]).await, 3, "nobody serves");
        assert_failed(&ask(way, &name, &wait).await, 3, "nobody serves");
    }
}

#[tokio::test]
async fn a_busy_server_is_4() {
    in_time(async {
        let name = unique_name();
        let mut listener = ListenerOptions::new()
            .max_instances(1)
            .bind(&name.text)
            .unwrap();
        let _client = Client::connect(&name.text).await.unwrap();
        let _connection = listener.accept().await.unwrap();
        // The one more that Linux queues.
        #[cfg(target_os = "linux")]
        let _queued = Client::connect(&name.text).await.unwrap();
        for way in WAYS {
            let output = ask(way, &name, &["--connect-timeout", "0s"]).await;
            assert_failed(&output, 4, "busy");
            assert_failed(&output, 4, "this client did not wait");
            let output = ask(way, &name, &["--connect-timeout", "10ms"]).await;
            assert_failed(&output, 4, "busy");
            assert_is_rounded(&stderr(&output), "waited ");
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_not_trusted_is_5() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    for way in WAYS {
        let output = ask(way, &name, &["--trust", OTHER_USER]).await;
        assert_failed(&output, 5, "--trust");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_that_denies_access_is_5() {
    use std::os::unix::process::CommandExt as _;

    use crate::program::{NOBODY, can_run_as_nobody};

    let name = unique_name();
    let _server = Server::start(&name, &["--echo", "--access", "mode:0000"]);
    for way in WAYS {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
        command.args(["--pipe-name", &name.text, way]);
        // No mode keeps root out.
        if rustix::process::geteuid().is_root() {
            if !can_run_as_nobody() {
                return;
            }
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_failed(&output, 5, "no permission");
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_6() {
    in_time(async {
        let name = unique_name();
        let mut listener = PipeListener::bind(&name.text).unwrap();
        for way in WAYS {
            let silent = ask(way, &name, &["--timeout", "100ms"]);
            let (output, _connection) = tokio::join!(silent, listener.accept());
            assert_failed(&output, 6, "within 100ms: see --timeout");

            let closing = async {
                let mut connection = listener.accept().await.unwrap();
                connection.recv().await.unwrap().unwrap();
            };
            let (output, ()) = tokio::join!(ask(way, &name, &[]), closing);
            assert_failed(&output, 6, "no reply from");
        }
    })
    .await;
}

#[tokio::test]
async fn other_failures_keep_their_codes() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    for way in WAYS {
        let output = ask(way, &name, &["--max-message-size", "1"]).await;
        assert_failed(&output, 1, "--max-message-size");
        let output = ask(way, &name, &["--max-message-size", "1TiB"]).await;
        assert_failed(&output, 2, "--max-message-size");
    }
}

#[test]
fn a_missing_server_is_named_and_exits_3() {
    let name = unique_name();
    let output = run_client(&name, &["hello"], "");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(
        stderr(&output).starts_with("pipe-client: nobody serves "),
        "{output:?}"
    );
}

/// A server and a client without the same directory never find each other.
#[cfg(target_os = "linux")]
#[test]
fn a_missing_server_of_a_short_name_tells_where_its_directory_comes_from() {
    let directory = tempfile::tempdir().unwrap();
    let ask = |runtime_directory: Option<&Path>, name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-client"));
        command.args(["--pipe-name", name, "hello"]);
        match runtime_directory {
            Some(directory) => command.env("XDG_RUNTIME_DIR", directory),
            None => command.env_remove("XDG_RUNTIME_DIR"),
        };
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        stderr(&output)
    };
    let short = format!("test-{}", std::process::id());
    let said = ask(Some(directory.path()), &short);
    assert!(said.contains("XDG_RUNTIME_DIR says"), "{said}");
    let said = ask(None, &short);
    assert!(said.contains("XDG_RUNTIME_DIR is not set"), "{said}");
    let path = directory.path().join("path");
    let said = ask(Some(directory.path()), path.to_str().unwrap());
    assert!(!said.contains("XDG_RUNTIME_DIR"), "{said}");
}
