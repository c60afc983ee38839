//! Ctrl-C in a console, which on Windows is no signal but an event for every process of the
//! console.

#![allow(unsafe_code, reason = "no crate between a test and the system's calls")]

use std::{
    env,
    os::windows::process::CommandExt as _,
    process::{Command, Stdio},
};

use pipe_server::Client;
use support::{in_time, unique_name};
use windows_sys::Win32::System::{
    Console::{CTRL_C_EVENT, GenerateConsoleCtrlEvent, SetConsoleCtrlHandler},
    Threading::CREATE_NO_WINDOW,
};

use crate::{
    log::{MANY_REQUESTS, echo},
    program::{Server, server},
};

/// Set in the process that has a console of its own.
const HAS_CONSOLE: &str = "PIPE_SERVER_TEST_HAS_CONSOLE";

#[tokio::test]
async fn ctrl_c_ends_the_server_in_good_order() {
    if !has_console("console::ctrl_c_ends_the_server_in_good_order") {
        return;
    }
    let name = unique_name();
    let mut server = Server::spawn(server(&name, &[]).stderr(Stdio::piped()));
    let first_line = &server.first_line;
    assert!(first_line.starts_with("listening on "), "{first_line}");
    let mut client = Client::connect(&name.text).await.unwrap();
    client.call("hello").await.unwrap();
    press_ctrl_c();

    // The client stays connected: it is told by the end, and does not hold the server up.
    assert!(client.recv().await.unwrap().is_none());
    assert_eq!(server.ended(), (Some(0), String::new()));
    server.log().wait_for("Ctrl-C");
    server.log().wait_for("served=1");
}

#[tokio::test]
async fn a_log_that_nobody_reads_does_not_keep_ctrl_c_from_ending_the_server() {
    if !has_console("console::a_log_that_nobody_reads_does_not_keep_ctrl_c_from_ending_the_server")
    {
        return;
    }
    let name = unique_name();
    let mut server = Server::spawn(server(&name, &["--echo", "-vv"]).stderr(Stdio::piped()));
    in_time(async {
        let mut client = Client::connect(&name.text).await.unwrap();
        echo(&mut client, MANY_REQUESTS).await;
    })
    .await;
    press_ctrl_c();
    assert_eq!(server.ended().0, Some(0));
}

/// Whether this process has a console that it shares with nobody but its children. If not, one that
/// has runs `test` again.
fn has_console(test: &str) -> bool {
    if env::var_os(HAS_CONSOLE).is_some() {
        return true;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test])
        .env(HAS_CONSOLE, "yes")
        .creation_flags(CREATE_NO_WINDOW)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "{said}");
    false
}

fn press_ctrl_c() {
    // SAFETY: this process ignores the event from here on, and sends it to all processes of the
    // console.
    let sent = unsafe {
        SetConsoleCtrlHandler(None, 1);
        GenerateConsoleCtrlEvent(CTRL_C_EVENT, 0)
    };
    assert_ne!(sent, 0, "{}", std::io::Error::last_os_error());
}
