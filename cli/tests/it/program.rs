//! The program `pipe-server` while a test runs.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
};

use support::{DEADLINE, UniqueName};

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

/// What a server logs. It is read on a thread, so that the server never waits for it.
pub(crate) struct Log {
    lines: mpsc::Receiver<String>,
}

impl Log {
    /// Of a server whose stderr is a pipe.
    pub(crate) fn of(server: &mut Server) -> Self {
        let stderr = BufReader::new(server.child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                _ = sender.send(line);
            }
        });
        Self { lines }
    }

    /// The lines up to the end of the server, after those that were waited for.
    #[cfg(target_os = "linux")]
    pub(crate) fn rest(&self) -> String {
        self.lines.iter().map(|line| line + "\n").collect()
    }

    /// Waits for a line with `part` in it, after those that were waited for before.
    pub(crate) fn wait_for(&self, part: &str) -> String {
        let mut other = Vec::new();
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => other.push(line),
                Err(error) => panic!("no line with {part:?} ({error}), but {other:#?}"),
            }
        }
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
