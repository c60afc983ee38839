//! The programs that are run, and a directory for their sockets and logs.

use std::{
    fs, io,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use tempfile::TempDir;

use crate::{
    Options, System,
    contenders::{Client, Contender, Program},
    loads::Load,
};

/// The longest message of a server that was not told, in bytes.
const USUAL_LONGEST: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Programs {
    system: System,
    cargo: PathBuf,
    c: PathBuf,
    runner: Option<PathBuf>,
    directory: TempDir,
}

impl Programs {
    pub(crate) fn new(options: &Options) -> io::Result<Self> {
        Ok(Self {
            system: options.system,
            cargo: options.programs.clone(),
            c: options.c_programs.clone(),
            runner: options.runner.clone(),
            directory: tempfile::tempdir()?,
        })
    }

    /// Where what a server prints to stderr goes.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Removes the socket that a contender's killed server has left: not every one replaces it.
    pub(crate) fn clear(&self, contender: &Contender) {
        if self.system == System::Linux {
            _ = fs::remove_file(self.pipe_name(contender));
        }
    }

    /// What a program said, less its own name and that of the pipe: they are others each time.
    pub(crate) fn without_names(&self, said: &str, contender: &Contender) -> String {
        let name = self.pipe_name(contender);
        let said = said
            .replace(&format!(r"\\.\pipe\{name}"), "the pipe")
            .replace(&name, "the pipe");
        match said.split_once(": ") {
            Some(("pipe-bench" | "contender-load" | "contender-echo" | "pipe-server", rest)) => {
                rest.to_owned()
            }
            _ => said,
        }
    }

    /// A contender's server, ready for one load.
    pub(crate) fn server(&self, contender: &Contender, load: &Load) -> Command {
        let program = match contender.program {
            Program::Cargo(name) => self.cargo.join(name),
            Program::C(name) => self.c.join(name),
        };
        let mut command = self.command(program);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        for argument in contender.arguments {
            command.arg(match *argument {
                "{name}" | "{address}" => self.pipe_name(contender),
                "{longest}" => load.size().max(USUAL_LONGEST).to_string(),
                "{threads}" => cores.to_string(),
                other => other.to_owned(),
            });
        }
        command
    }

    /// The client that a contender understands.
    pub(crate) fn client(&self, contender: &Contender) -> Command {
        let mut command = match contender.client {
            Client::Pipe => self.command(self.cargo.join("pipe-bench")),
            Client::Other(wire) => {
                let mut command = self.command(self.cargo.join("contender-load"));
                command.arg(wire);
                command
            }
        };
        command.args(["--json", "--pipe-name", &self.pipe_name(contender)]);
        // Wine gives no owner to the pipes of servers that leave the access to the system.
        command.args(["--trust", "anyone"]);
        command
    }

    fn command(&self, mut program: PathBuf) -> Command {
        if self.system == System::Windows {
            program.set_extension("exe");
        }
        let mut command = match &self.runner {
            Some(runner) => {
                let mut command = Command::new(runner);
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            // Its last line is told when it fails.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// A name of this run's own: each server has one, and so has each process.
    fn pipe_name(&self, contender: &Contender) -> String {
        let short: String = contender
            .name
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect();
        match self.system {
            System::Linux => self.directory.path().join(short).display().to_string(),
            System::Windows => format!("compare-{}-{short}", std::process::id()),
        }
    }
}

/// The line in which a program says why it failed.
pub(crate) fn last_words(said: &str) -> Option<&str> {
    said.lines().rfind(|line| !line.starts_with("note: "))
}
