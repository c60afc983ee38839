//! The load tool as a user runs it, against the real server.

use std::process::{Command, Output, Stdio};

use pipe_server::PipeListener;
use serde_json::Value;
use support::{UniqueName, unique_name};

use crate::program::Server;

fn bench(name: &UniqueName, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pipe-bench"))
        .args(["--pipe-name", &name.text])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// What it measured.
fn measured(name: &UniqueName, arguments: &[&str]) -> Value {
    let output = bench(name, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The line with which it failed.
fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn every_request_is_sent_by_one_of_the_clients_and_answered() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    for depth in ["1", "7"] {
        let arguments = ["--clients", "3", "--requests", "100", "--depth", depth];
        let figures = measured(&name, &[&arguments[..], &["--verify", "echo"]].concat());
        assert_eq!(figures["messages"], 100, "{figures}");
        assert!(figures["messages_per_second"].as_f64().unwrap() > 0.0);
        let latency = |name: &str| figures[name].as_f64().unwrap();
        assert!(latency("p50_us") > 0.0, "{figures}");
        assert!(latency("p50_us") <= latency("p99_us"), "{figures}");
        assert!(latency("p99_us") <= latency("max_us"), "{figures}");
    }
}

#[test]
fn the_table_is_two_lines() {
    let name = unique_name();
    let _server = Server::start(&name, &[]);
    let output = bench(&name, &["--requests", "10", "--warm-up", "0"]);
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert_eq!(lines[0].len(), lines[1].replace('µ', "u").len(), "{table}");
    assert!(
        lines[0].contains("messages/s") && lines[0].contains("p99"),
        "{table}"
    );
    // The bar is for terminals.
    assert!(output.stderr.is_empty(), "{:?}", output.stderr);
}

#[cfg(unix)]
#[test]
fn the_bar_has_a_unit_and_a_rate() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    for (arguments, count, rate) in [
        (&["--requests", "100"][..], "/100 messages", " messages/s"),
        (&["--duration", "50ms"], " messages,", " messages/s"),
        (
            &["--requests", "100", "--connect-rate"],
            "/100 connections",
            " connections/s",
        ),
    ] {
        let bar = bar(&name, arguments);
        assert!(bar.contains(count), "{arguments:?}: {bar:?}");
        assert!(bar.contains(rate), "{arguments:?}: {bar:?}");
    }
}

/// Everything that it shows on stderr, which is a terminal.
#[cfg(unix)]
fn bar(name: &UniqueName, arguments: &[&str]) -> String {
    use std::{
        fs::{File, OpenOptions},
        io::Read as _,
    };

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let path = ptsname(&terminal, Vec::new()).unwrap();
    let mut side = OpenOptions::new();
    let side = side.read(true).write(true).open(path.to_str().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipe-bench"));
    command
        .args(["--pipe-name", &name.text])
        .args(arguments)
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(side.unwrap());
    let mut child = command.spawn().unwrap();
    // With it goes this process's copy of the terminal's other side.
    drop(command);
    let mut shown = Vec::new();
    // It ends with EIO when the program does.
    _ = File::from(terminal).read_to_end(&mut shown);
    assert!(child.wait().unwrap().success());
    String::from_utf8(shown).unwrap()
}

#[test]
fn more_on_the_way_than_the_pipe_holds_blocks_nobody() {
    let name = unique_name();
    let _server = Server::start(&name, &["--echo"]);
    let arguments = ["--clients", "2", "--requests", "200", "--depth", "64"];
    let figures = measured(
        &name,
        &[&arguments[..], &["--size", "64KiB", "--verify", "echo"]].concat(),
    );
    assert_eq!(figures["messages"], 200, "{figures}");
}

#[test]
fn a_reply_that_is_no_echo_is_named() {
    let name = unique_name();
    let _server = Server::start(&name, &["--reply", "something else", "--encoding", "utf-8"]);
    let said = failure(&bench(&name, &["--clients", "1", "--verify", "echo"]));
    assert!(
        said.contains("the reply to request 1 is not the request"),
        "{said}"
    );
    assert!(said.contains("14 bytes instead of 64"), "{said}");
}

#[cfg(windows)]
#[test]
fn another_machine_is_asked_only_if_allowed() {
    let mut remote = unique_name();
    remote.text = format!(r"\\localhost\pipe\{}", remote.text);
    let said = failure(&bench(&remote, &[]));
    assert!(said.contains("use --allow-remote"), "{said}");
    // Nobody serves it there.
    let said = failure(&bench(&remote, &["--allow-remote"]));
    assert!(said.contains("nobody serves"), "{said}");
}

#[test]
fn a_missing_server_is_named() {
    let name = unique_name();
    let said = failure(&bench(&name, &[]));
    assert!(said.starts_with("pipe-bench: nobody serves "), "{said}");
}

#[tokio::test]
async fn a_server_that_answers_nobody_is_given_up() {
    let name = unique_name();
    let mut listener = PipeListener::bind(&name.text).unwrap();
    let accepting = tokio::spawn(async move {
        let mut connections = Vec::new();
        loop {
            connections.push(listener.accept().await.unwrap());
        }
    });
    let arguments = ["--clients", "2", "--timeout", "300ms"];
    let output = tokio::task::spawn_blocking(move || bench(&name, &arguments))
        .await
        .unwrap();
    let said = failure(&output);
    assert!(said.contains("within 300ms: see --timeout"), "{said}");
    accepting.abort();
}

#[test]
fn connections_are_counted_and_measured() {
    let name = unique_name();
    let _server = Server::start(&name, &[]);
    let arguments = [
        "--connect-rate",
        "--clients",
        "2",
        "--requests",
        "20",
        "--warm-up",
        "1",
    ];
    let figures = measured(&name, &arguments);
    assert_eq!(figures["connections"], 20, "{figures}");
    assert!(figures["connections_per_second"].as_f64().unwrap() > 0.0);
    assert!(figures["visit_p50_us"].as_f64() >= figures["connect_p50_us"].as_f64());
}

#[test]
fn idle_connections_are_held_and_their_memory_is_told() {
    let name = unique_name();
    let server = Server::start(&name, &[]);
    let process = server.child.id().to_string();
    let figures = measured(
        &name,
        &["--idle", "50", "--duration", "0s", "--pid", &process],
    );
    assert_eq!(figures["connections"], 50, "{figures}");
    assert!(
        figures["memory_before"].as_f64().unwrap() > 100_000.0,
        "{figures}"
    );
    assert!(figures["memory_per_connection"].is_number(), "{figures}");
}

#[test]
fn bad_usage_exits_2_and_says_what_to_do() {
    let name = unique_name();
    for (arguments, cure) in [
        (&["--pause", "1s", "--depth", "2"][..], "--depth 1"),
        (&["--requests", "1", "--duration", "1s"], "--duration"),
        (&["--pid", "1"], "--idle"),
        (&["--size", "0"], "1 byte or more"),
        (&["--clients", "0"], "--clients"),
        (&["--warm-up", "soon"], "--warm-up"),
    ] {
        let output = bench(&name, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(cure), "{arguments:?}: {said}");
    }
}
