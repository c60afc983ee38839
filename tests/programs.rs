//! The programs as a user runs them: answers, exit codes, stdout and stderr apart, signals.

#![cfg(all(feature = "cli", feature = "test-util"))]

mod support;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdout, Command, Output, Stdio},
};

#[cfg(unix)]
use std::io::Read;

use support::{UniqueName, unique_name};

/// A server that is killed when dropped.
struct Server {
    child: Child,
    #[cfg_attr(
        windows,
        allow(dead_code, reason = "read by the tests with signals; held open here")
    )]
    stdout: BufReader<ChildStdout>,
    first_line: String,
}

impl Server {
    fn start(name: &UniqueName, arguments: &[&str]) -> Self {
        Self::spawn(&mut server(name, arguments))
    }

    /// Starts `command` and waits until clients can connect.
    fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut first_line = String::new();
        stdout.read_line(&mut first_line).unwrap();
        Self {
            child,
            stdout,
            first_line,
        }
    }

    #[cfg(unix)]
    fn signal(&self, signal: rustix::process::Signal) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, signal).unwrap();
    }

    /// Ends it with a signal and gives its exit code and the rest of its stdout.
    #[cfg(unix)]
    fn end(mut self, signal: rustix::process::Signal) -> (Option<i32>, String) {
        self.signal(signal);
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn server(name: &UniqueName, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-server"));
    command
        .args(["--pipe-name", &name.text])
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

fn client(name: &UniqueName, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pipe-client"))
        .args(["--pipe-name", &name.text])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended already.
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn replies(name: &UniqueName, arguments: &[&str], input: &str) -> String {
    let output = client(name, arguments, input);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_first_line_on_stdout_is_the_address() {
    let name = unique_name();
    let server = Server::start(&name, &[]);
    let address: pipe_server::PipeName = name.text.parse().unwrap();
    assert_eq!(
        server.first_line.trim_end(),
        format!("listening on {address}")
    );
}

#[test]
fn the_default_answer_is_the_samples() {
    let name = unique_name();
    let _server = Server::start(&name, &[]);
    assert_eq!(
        replies(&name, &["hello"], ""),
        "default answer from server\n"
    );
}

#[test]
fn each_message_gets_a_reply_on_a_line_of_its_own() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo", "--max-instances", "1"]);
    assert_eq!(
        replies(&name, &["one", "two words", "grüße"], ""),
        "one\ntwo words\ngrüße\n"
    );
    assert_eq!(replies(&name, &["again"], ""), "again\n");
}

#[test]
fn lines_of_stdin_are_messages_and_empty_ones_are_left_out() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let output = client(&name, &[], "one\n\ntwo\n");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\ntwo\n");
    assert!(
        stderr(&output).contains("is empty and is not sent"),
        "{output:?}"
    );
}

#[test]
fn a_reply_comes_in_the_encoding_of_its_request() {
    let name = unique_name();
    let _server = Server::start(&name, &["--reply", "grüße"]);
    for encoding in ["utf-8", "utf-16"] {
        assert_eq!(
            replies(&name, &["--encoding", encoding, "hello"], ""),
            "grüße\n"
        );
    }
}

#[test]
fn bad_usage_exits_2_and_says_what_to_do() {
    for (arguments, cure) in [
        (["--max-instances", "0"], "1 to 254, or unlimited"),
        (["--max-instances", "255"], "1 to 254, or unlimited"),
        (["--pipe-name", "a\\b"], "can't be part of the pipe name"),
        (["--idle-timeout", "soon"], "--idle-timeout"),
        (["--no-such-flag", "x"], "--no-such-flag"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-server"));
        let output = command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(cure), "{arguments:?}: {output:?}");
    }
}

#[test]
fn a_missing_server_is_named_and_exits_1() {
    let name = unique_name();
    let output = client(&name, &["hello"], "");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        stderr(&output).starts_with("pipe-client: nobody serves "),
        "{output:?}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_missing_directory_is_named() {
    let name = unique_name();
    for (xdg, pipe) in [
        ("/nowhere", format!("{}/x/pipe", name.text)),
        (name.text.as_str(), "short".to_owned()),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_pipe-server"))
            .args(["--pipe-name", &pipe])
            .env("XDG_RUNTIME_DIR", xdg)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = stderr(&output);
        assert!(said.contains(&name.text), "{said}");
        assert!(
            said.contains("make it") || said.contains("XDG_RUNTIME_DIR"),
            "{said}"
        );
    }
}

/// Wine does not know exclusive names: it lets a second server in.
#[cfg(target_os = "linux")]
#[test]
fn a_second_server_on_the_name_exits_1_with_one_line() {
    let name = unique_name();
    let _server = Server::start(&name, &[]);
    let output = server(&name, &[]).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("is served already"), "{said}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(
        replies(&name, &["hello"], ""),
        "default answer from server\n"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_socket_that_a_killed_server_left_is_replaced() {
    let name = unique_name();
    // Killed by the guard: it can't clean up.
    drop(Server::start(&name, &[]));
    assert!(std::path::Path::new(&name.text).exists());
    let _server = Server::start(&name, &[]);
    assert_eq!(
        replies(&name, &["hello"], ""),
        "default answer from server\n"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_no_socket_is_left_as_it_is() {
    let name = unique_name();
    std::fs::write(&name.text, "precious").unwrap();
    let output = server(&name, &[]).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("no socket"), "{output:?}");
    assert_eq!(std::fs::read_to_string(&name.text).unwrap(), "precious");
}

#[cfg(target_os = "linux")]
#[test]
fn only_this_user_may_connect_unless_told_otherwise() {
    use std::os::unix::fs::PermissionsExt;

    for (arguments, mode) in [
        (&[][..], 0o600),
        (&["--access", "mode:0660"], 0o660),
        (&["--access", "everyone"], 0o666),
    ] {
        let name = unique_name();
        let _server = Server::start(&name, arguments);
        let permissions = std::fs::metadata(&name.text).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, mode);
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_and_sigterm_drain_exit_0_and_leave_nothing_behind() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let name = unique_name();
        let server = Server::start(&name, &["--echo"]);
        assert_eq!(replies(&name, &["hello"], ""), "hello\n");
        assert_eq!(server.end(signal), (Some(0), String::new()));
        let directory = std::path::Path::new(&name.text).parent().unwrap();
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    }
}

#[cfg(unix)]
#[test]
fn exec_answers_with_what_the_command_prints() {
    let name = unique_name();
    let _server = Server::start(&name, &["--exec", "tr a-z A-Z"]);
    assert_eq!(replies(&name, &["hello", "again"], ""), "HELLO\nAGAIN\n");
}

#[cfg(windows)]
#[test]
fn exec_answers_with_what_the_command_prints() {
    let name = unique_name();
    let _server = Server::start(&name, &["--exec", "echo hello"]);
    assert!(replies(&name, &["x"], "").starts_with("hello"));
}

#[cfg(unix)]
#[test]
fn a_failing_command_is_reported_and_costs_its_client_the_connection() {
    let name = unique_name();
    let mut command = server(&name, &["--exec", "echo complaint >&2; exit 3"]);
    let mut server = Server::spawn(command.stderr(Stdio::piped()));
    let log = server.child.stderr.take().unwrap();
    let output = client(&name, &["hello"], "");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("did not reply"), "{output:?}");
    drop(server);
    let mut logged = String::new();
    BufReader::new(log).read_to_string(&mut logged).unwrap();
    assert!(
        logged.contains("exit status: 3") && logged.contains("complaint"),
        "{logged}"
    );
}

/// What ends a command, on Linux: a command with a child, both of which hold a fifo open.
#[cfg(target_os = "linux")]
mod endings {
    use std::{fs, time::Instant};

    use rustix::process::Signal;

    use super::*;

    struct Held {
        name: UniqueName,
        directory: tempfile::TempDir,
    }

    impl Held {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let held = Self {
                name: unique_name(),
                directory,
            };
            assert!(
                Command::new("mkfifo")
                    .arg(held.fifo())
                    .status()
                    .unwrap()
                    .success()
            );
            held
        }

        fn fifo(&self) -> std::path::PathBuf {
            self.directory.path().join("held")
        }

        /// A server whose command would take minutes, and a client that has asked it.
        fn start(&self, arguments: &[&str]) -> (Server, Child) {
            let command = format!("{{ sleep 300 & sleep 300; }} >{}", self.fifo().display());
            let server = Server::start(&self.name, &[arguments, &["--exec", &command]].concat());
            let client = Command::new(env!("CARGO_BIN_EXE_pipe-client"))
                .args(["--pipe-name", &self.name.text, "hello"])
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            (server, client)
        }

        /// Waits until the command runs, ends it, and waits until nobody holds the fifo.
        fn assert_killed_by(&self, end: impl FnOnce()) {
            let begun = Instant::now();
            let mut held = fs::File::open(self.fifo()).unwrap();
            end();
            held.read_to_end(&mut Vec::new()).unwrap();
            assert!(
                begun.elapsed().as_secs() < 100,
                "the command was not killed"
            );
        }
    }

    #[test]
    fn a_command_is_killed_with_its_children_when_its_time_is_over() {
        let held = Held::new();
        let (_server, mut client) = held.start(&["--handler-timeout", "1s"]);
        held.assert_killed_by(|| {});
        assert_eq!(client.wait().unwrap().code(), Some(1));
    }

    #[test]
    fn a_command_is_killed_with_its_children_when_its_client_is_gone() {
        let held = Held::new();
        let (_server, mut client) = held.start(&[]);
        held.assert_killed_by(|| client.kill().unwrap());
        client.wait().unwrap();
    }

    #[test]
    fn a_command_is_killed_with_its_children_when_the_drain_time_is_over() {
        let held = Held::new();
        let (mut server, mut client) = held.start(&["--drain-timeout", "100ms"]);
        held.assert_killed_by(|| server.signal(Signal::TERM));
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
        assert_eq!(client.wait().unwrap().code(), Some(1));
    }

    #[test]
    fn a_second_signal_ends_the_server_and_its_commands_at_once() {
        let held = Held::new();
        let (mut server, mut client) = held.start(&["--drain-timeout", "1h"]);
        // SIGINT and SIGTERM: two of the same may become one on their way.
        held.assert_killed_by(|| {
            server.signal(Signal::INT);
            server.signal(Signal::TERM);
        });
        assert_eq!(server.child.wait().unwrap().code(), Some(130));
        assert_eq!(client.wait().unwrap().code(), Some(1));
    }

    #[test]
    fn a_command_may_leave_its_request_unread() {
        let name = unique_name();
        let _server = Server::start(&name, &["--exec", "exec <&-; printf done"]);
        assert_eq!(replies(&name, &[&"x".repeat(60_000)], ""), "done\n");
    }

    #[test]
    fn a_command_that_prints_too_much_or_nothing_costs_its_client_the_connection() {
        for command in ["yes", "true"] {
            let name = unique_name();
            let _server = Server::start(&name, &["--max-message-size", "10", "--exec", command]);
            assert_eq!(
                client(&name, &["hello"], "").status.code(),
                Some(1),
                "{command}"
            );
        }
    }
}

#[test]
fn a_server_that_nobody_reads_serves_all_the_same() {
    let name = unique_name();
    let mut child = server(&name, &["-vv"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    let output = client(&name, &["--wait", "hello"], "");
    _ = child.kill();
    _ = child.wait();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "default answer from server\n"
    );
}
