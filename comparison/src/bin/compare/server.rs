//! A contender's running server.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout},
    sync::mpsc,
    thread,
    time::Duration,
};

use pipe_server_cli::load::memory;

use crate::{
    contenders::Contender,
    loads::Load,
    programs::{self, Programs},
};

/// Long enough for Wine to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a server may take to settle before its memory is read.
const SETTLING: Duration = Duration::from_millis(300);

/// Killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Held open so that the server can print.
    _stdout: Option<BufReader<ChildStdout>>,
}

impl Server {
    /// Starts it and waits until clients can connect.
    pub(crate) fn start(
        contender: &Contender,
        load: &Load,
        programs: &Programs,
    ) -> Result<Self, String> {
        programs.clear(contender);
        let log = fs::File::create(programs.log()).map_err(|error| error.to_string())?;
        let mut command = programs.server(contender, load)?;
        let mut child = command
            .stderr(log)
            .spawn()
            .map_err(|error| format!("can't start {:?}: {error}", command.get_program()))?;
        let stdout = child.stdout.take();
        let mut server = Self {
            child,
            _stdout: None,
        };
        let (told, hear) = mpsc::channel();
        thread::spawn(move || {
            let Some(stdout) = stdout else { return };
            let mut stdout = BufReader::new(stdout);
            let mut line = String::new();
            _ = stdout.read_line(&mut line);
            _ = told.send((line, stdout));
        });
        match hear.recv_timeout(START_TIMEOUT) {
            Ok((line, stdout)) if line.starts_with("listening on ") => {
                server._stdout = Some(stdout);
                Ok(server)
            }
            Ok(_) => {
                let log = fs::read_to_string(programs.log()).unwrap_or_default();
                let line = programs::last_line(&log).unwrap_or("the server exited at once");
                Err(line.to_owned())
            }
            Err(_) => Err(format!("the server was not ready within {START_TIMEOUT:?}")),
        }
    }

    /// Kills it and starts another one in its place.
    pub(crate) fn restart(
        &mut self,
        contender: &Contender,
        load: &Load,
        programs: &Programs,
    ) -> Result<(), String> {
        self.end();
        *self = Self::start(contender, load, programs)?;
        Ok(())
    }

    fn end(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory once it has settled, in bytes.
    pub(crate) fn memory(&self) -> Result<u64, String> {
        thread::sleep(SETTLING);
        memory::resident(self.process())
            .map_err(|error| format!("can't read the server's memory: {error}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
