//! A running client.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::programs;

/// Long enough for 10,000 connections, and for Wine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Killed when dropped.
#[derive(Debug)]
pub(crate) struct Client {
    child: Child,
    first_line: mpsc::Receiver<String>,
}

impl Client {
    pub(crate) fn start(command: &mut Command) -> Result<Self, String> {
        let mut child = command
            .spawn()
            .map_err(|error| format!("can't start {:?}: {error}", command.get_program()))?;
        let (told, first_line) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                let mut line = String::new();
                _ = BufReader::new(stdout).read_line(&mut line);
                _ = told.send(line);
            });
        }
        Ok(Self { child, first_line })
    }

    /// Waits for its results. The client may keep running after that.
    pub(crate) fn measured(&mut self) -> Result<Value, String> {
        match self.first_line.recv_timeout(TIMEOUT) {
            Ok(line) if !line.is_empty() => serde_json::from_str(&line)
                .map_err(|error| format!("the client printed {line:?}: {error}")),
            Ok(_) => Err(self.last_line()),
            Err(_) => Err(format!("the client printed no result within {TIMEOUT:?}")),
        }
    }

    fn last_line(&mut self) -> String {
        let mut printed = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            _ = stderr.read_to_string(&mut printed);
        }
        let line = programs::last_line(&printed).unwrap_or("the client printed no result");
        line.to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Runs a client and returns one of the figures that it measured.
pub(crate) fn figure(command: &mut Command, name: &str) -> Result<f64, String> {
    let measured = Client::start(command)?.measured()?;
    measured[name]
        .as_f64()
        .ok_or_else(|| format!("the client measured no {name}"))
}
