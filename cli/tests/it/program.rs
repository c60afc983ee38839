//! The program `pipe-server` while a test runs.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

use support::UniqueName;

/// A server that is killed when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    /// Held open.
    #[cfg_attr(windows, allow(dead_code, reason = "read by the tests with signals"))]
    pub(crate) stdout: BufReader<ChildStdout>,
    pub(crate) first_line: String,
}

impl Server {
    pub(crate) fn start(name: &UniqueName, arguments: &[&str]) -> Self {
        Self::spawn(&mut server(name, arguments))
    }

    /// Starts `command` and waits until clients can connect.
    pub(crate) fn spawn(command: &mut Command) -> Self {
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
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

pub(crate) fn server(name: &UniqueName, arguments: &[&str]) -> Command {
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
