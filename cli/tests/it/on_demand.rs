//! Servers that a client starts, and that end when nobody needs them.

use std::{thread, time::Duration};

use support::unique_name;

use crate::program::{Server, replies, run_client, stderr};

#[test]
fn a_client_starts_a_server_that_ends_when_it_is_idle() {
    let name = unique_name();
    let server = env!("CARGO_BIN_EXE_pipe-server");
    let start = format!(
        r#""{server}" --pipe-name "{}" --echo --exit-when-idle 300ms"#,
        name.text
    );
    // Its output ends although the server is still running.
    let arguments = ["--start", &start, "hello"];
    assert_eq!(replies(&name, &arguments, ""), "hello\n");
    // The server may have ended before this client has begun.
    let arguments = ["--start", &start, "again"];
    assert_eq!(replies(&name, &arguments, ""), "again\n");
    let has_ended = || {
        // Each look at it is a client.
        thread::sleep(Duration::from_secs(1));
        run_client(&name, &["gone"], "").status.code() == Some(3)
    };
    assert!((0..60).any(|_| has_ended()), "the server does not end");
}

#[test]
fn a_command_that_fails_is_reported_with_its_stderr() {
    let name = unique_name();
    let start = match cfg!(windows) {
        true => "echo no configuration 1>&2 & exit 7",
        false => "echo no configuration >&2; exit 7",
    };
    let output = run_client(&name, &["--start", start, "hello"], "");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let error = stderr(&output);
    assert!(error.contains("no configuration"), "{error}");
    assert!(error.contains(": 7)"), "{error}");
}

#[test]
fn an_idle_server_exits_by_itself() {
    let name = unique_name();
    let mut server = Server::start(&name, &["--exit-when-idle", "10ms"]);
    assert_eq!(server.ended().0, Some(0));
}
