//! The programs to run, and a directory for their sockets and logs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use tempfile::TempDir;

use crate::{
    Options, System,
    contenders::{Client, Contender, Program},
    loads::Load,
};

/// The default message limit of the servers, in bytes.
const USUAL_LONGEST: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Programs {
    system: System,
    cargo: PathBuf,
    others: PathBuf,
    node: Option<PathBuf>,
    runner: Option<PathBuf>,
    directory: TempDir,
}

impl Programs {
    pub(crate) fn new(options: &Options) -> io::Result<Self> {
        Ok(Self {
            system: options.system,
            cargo: options.programs.clone(),
            others: options.other_programs.clone(),
            node: options.node.clone(),
            runner: options.runner.clone(),
            directory: tempfile::tempdir()?,
        })
    }

    /// The file that receives a server's stderr.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Removes the socket that a killed server left behind; not every server replaces it.
    pub(crate) fn clear(&self, contender: &Contender) {
        if self.system == System::Linux {
            _ = fs::remove_file(self.pipe_name(contender));
        }
    }

    /// Strips a program's message of its own name and the pipe's, which differ from run to run.
    pub(crate) fn without_names(&self, message: &str, contender: &Contender) -> String {
        let name = self.pipe_name(contender);
        let message = message
            .replace(&format!(r"\\.\pipe\{name}"), "the pipe")
            .replace(&name, "the pipe");
        match message.split_once(": ") {
            Some(("pipe-bench" | "contender-load" | "contender-echo" | "pipe-server", rest)) => {
                rest.to_owned()
            }
            _ => message,
        }
    }

    /// The command that starts a contender's server for one load.
    pub(crate) fn server(&self, contender: &Contender, load: &Load) -> Result<Command, String> {
        let mut command = match contender.program {
            Program::Cargo(name) => self.command(&self.cargo.join(name)),
            Program::C(name) => self.command(&self.others.join(name)),
            Program::Go(name) => {
                let program = self.others.join(name);
                if !self.file(&program).exists() {
                    return Err("it could not be built on this machine".to_owned());
                }
                self.command(&program)
            }
            Program::Node(script) => {
                let node = self.node.as_ref();
                let mut command = self.command(node.ok_or("this machine has no Node.js")?);
                command.arg(script);
                command
            }
        };
        let cores = thread::available_parallelism().map_or(1, usize::from);
        for argument in contender.arguments {
            command.arg(match *argument {
                "{name}" | "{address}" => self.pipe_name(contender),
                "{longest}" => load.size().max(USUAL_LONGEST).to_string(),
                "{threads}" => cores.to_string(),
                // As many as our engine starts.
                "{port_threads}" => (2 * cores.max(2)).to_string(),
                other => other.to_owned(),
            });
        }
        if load.counts_allocations() {
            command
                .env("LD_PRELOAD", self.others.join("count-allocations.so"))
                .env("COUNT_ALLOCATIONS", self.allocations_file(contender));
        }
        Ok(command)
    }

    /// How often a contender's server has allocated memory, if it was started for a load that counts this.
    pub(crate) fn allocations(&self, contender: &Contender) -> Result<u64, String> {
        if let Program::Go(_) = contender.program {
            return Err("it has an allocator of its own".to_owned());
        }
        let count = fs::read(self.allocations_file(contender)).unwrap_or_default();
        let count = count.try_into().map(u64::from_ne_bytes);
        count.map_err(|_| "its allocations can't be counted".to_owned())
    }

    fn allocations_file(&self, contender: &Contender) -> PathBuf {
        let name = format!("{}.allocations", short_name(contender));
        self.directory.path().join(name)
    }

    /// The command of a client that speaks the contender's protocol.
    pub(crate) fn client(&self, contender: &Contender) -> Command {
        let mut command = match contender.client {
            Client::Pipe => self.command(&self.cargo.join("pipe-bench")),
            Client::Other(wire) => {
                let mut command = self.command(&self.cargo.join("contender-load"));
                command.arg(wire);
                command
            }
        };
        command.args(["--json", "--pipe-name", &self.pipe_name(contender)]);
        // Wine gives no owner to the pipes of servers that leave the access to the system.
        command.args(["--trust", "anyone"]);
        command
    }

    /// The command of the clients that are blocking threads in C. They read the processor time of `server`, a
    /// process.
    pub(crate) fn threads(&self, contender: &Contender, server: u32) -> Result<Command, String> {
        let socket_type = contender.socket_type();
        let socket_type = socket_type.ok_or("no client in C speaks its protocol")?;
        let mut command = self.command(&self.others.join("socket-load"));
        command.args([socket_type, &self.pipe_name(contender), &server.to_string()]);
        Ok(command)
    }

    /// The file that contains a program.
    fn file(&self, program: &Path) -> PathBuf {
        match self.system {
            System::Linux => program.to_owned(),
            System::Windows => program.with_extension("exe"),
        }
    }

    fn command(&self, program: &Path) -> Command {
        let program = self.file(program);
        let mut command = match &self.runner {
            Some(runner) => {
                let mut command = Command::new(runner);
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            // When it fails, its last line is reported.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// A name that is unique to this run and contender.
    fn pipe_name(&self, contender: &Contender) -> String {
        let short = short_name(contender);
        match self.system {
            System::Linux => self.directory.path().join(short).display().to_string(),
            System::Windows => format!("compare-{}-{short}", std::process::id()),
        }
    }
}

/// A contender's name, for files and pipes.
fn short_name(contender: &Contender) -> String {
    let characters = contender.name.chars();
    characters.filter(char::is_ascii_alphanumeric).collect()
}

/// The line in which a program says why it failed.
pub(crate) fn last_line(printed: &str) -> Option<&str> {
    printed.lines().rfind(|line| !line.starts_with("note: "))
}
