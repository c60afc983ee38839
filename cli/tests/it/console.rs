//! Ctrl-C in a console, which on Windows is no signal but an event for every process of the console.

#![allow(unsafe_code, reason = "no crate between a test and the system's calls")]

use std::{
    env,
    io::Read as _,
    os::windows::process::CommandExt as _,
    process::{Command, Stdio},
};

use pipe_server::Client;
use support::unique_name;
use windows_sys::Win32::System::{
    Console::{CTRL_C_EVENT, GenerateConsoleCtrlEvent, SetConsoleCtrlHandler},
    Threading::CREATE_NO_WINDOW,
};

use crate::program::{Server, server};

/// Set in the process that has a console of its own.
const HAS_CONSOLE: &str = "PIPE_SERVER_TEST_HAS_CONSOLE";

#[tokio::test]
async fn ctrl_c_ends_the_server_in_good_order() {
    if env::var_os(HAS_CONSOLE).is_some() {
        return press_ctrl_c().await;
    }
    // This test again, with a console that it shares with nobody but the server.
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "console::ctrl_c_ends_the_server_in_good_order"])
        .env(HAS_CONSOLE, "yes")
        .creation_flags(CREATE_NO_WINDOW)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "{said}");
}

async fn press_ctrl_c() {
    let name = unique_name();
    let mut server = Server::spawn(server(&name, &[]).stderr(Stdio::piped()));
    let first_line = &server.first_line;
    assert!(first_line.starts_with("listening on "), "{first_line}");
    let mut client = Client::connect(&name.text).await.unwrap();
    client.call("hello").await.unwrap();

    // SAFETY: this process ignores the event from here on, and sends it to all processes of the console.
    let sent = unsafe {
        SetConsoleCtrlHandler(None, 1);
        GenerateConsoleCtrlEvent(CTRL_C_EVENT, 0)
    };
    assert_ne!(sent, 0, "{}", std::io::Error::last_os_error());

    // The client stays connected: it is told by the end, and does not hold the server up.
    assert!(client.recv().await.unwrap().is_none());
    let status = server.child.wait().unwrap();
    let mut log = String::new();
    let stderr = server.child.stderr.as_mut().unwrap();
    stderr.read_to_string(&mut log).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("Ctrl-C") && log.contains("served=1"), "{log}");
}
