//! Ctrl-C and Ctrl-Break in a console, each of which on Windows is no signal but an event for the processes of the
//! console.

#![allow(unsafe_code, reason = "no crate between a test and the system's calls")]

use std::{
    env,
    os::windows::process::CommandExt as _,
    process::{Command, Stdio},
};

use pipe_server::Client;
use support::{in_time, unique_name, win32::wine_lacks};
use windows_sys::Win32::System::{
    Console::{CTRL_BREAK_EVENT, CTRL_C_EVENT, GenerateConsoleCtrlEvent, SetConsoleCtrlHandler},
    Threading::{CREATE_NEW_PROCESS_GROUP, CREATE_NO_WINDOW},
};

use crate::{
    log::{MANY_REQUESTS, echo},
    program::{Server, server},
};

/// Set in the process that has a console of its own.
const HAS_CONSOLE: &str = "PIPE_SERVER_TEST_HAS_CONSOLE";

#[tokio::test]
async fn ctrl_c_ends_the_server_in_good_order() {
    if has_console("console::ctrl_c_ends_the_server_in_good_order") {
        in_time(end_with("Ctrl-C", 0, |_| press_ctrl_c())).await;
    }
}

/// A supervisor that stops a process group, which Ctrl-C does not reach.
#[tokio::test]
async fn ctrl_break_ends_the_server_in_good_order() {
    if wine_lacks("Ctrl-Break") || !has_console("console::ctrl_break_ends_the_server_in_good_order")
    {
        return;
    }
    in_time(end_with(
        "Ctrl-Break",
        CREATE_NEW_PROCESS_GROUP,
        press_ctrl_break,
    ))
    .await;
}

/// Ends a server, in a process with these flags, in good order.
async fn end_with(event: &str, flags: u32, press: fn(&Server)) {
    let name = unique_name();
    let mut command = server(&name, &[]);
    command.creation_flags(flags);
    let mut server = Server::spawn(command.stderr(Stdio::piped()));
    let first_line = &server.first_line;
    assert!(first_line.starts_with("listening on "), "{first_line}");
    let mut client = Client::connect(&name.text).await.unwrap();
    client.call("hello").await.unwrap();
    press(&server);

    // The client stays connected: it is told by the end, and does not hold the server up.
    assert!(client.recv().await.unwrap().is_none());
    assert_eq!(server.ended(), (Some(0), String::new()));
    server.log().wait_for(event);
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
        // Shells such as Git Bash let their programs ignore Ctrl-C, which those inherit.
        // SAFETY: without a handler, it only sets that.
        assert_ne!(unsafe { SetConsoleCtrlHandler(None, 0) }, 0);
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

fn press_ctrl_break(server: &Server) {
    // SAFETY: sends it to the process group of the server alone.
    let sent = unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, server.child.id()) };
    assert_ne!(sent, 0, "{}", std::io::Error::last_os_error());
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
