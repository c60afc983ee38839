//! Concurrency limits: how many clients are served and how many `--exec` commands run at the same
//! time.
//!
//! On Linux both take file descriptors, and the limit of open files (`RLIMIT_NOFILE`) bounds them
//! together. Further clients wait, as at `max_instances`. Without this limit, clients would use up
//! the descriptors that commands need.

use std::{num::NonZero, thread};

use pipe_server::defaults;
use pipe_server_cli::exit::Failure;
#[cfg(target_os = "linux")]
use pipe_server_cli::memory_limit;

use crate::{options::Options, pipe_source::PipeSource};

/// How many commands run at the same time per processor. More than one, because commands often wait
/// for I/O.
const COMMANDS_PER_PROCESSOR: usize = 4;

/// The default of `--max-buffered-bytes`: the library's, or a quarter of the memory that this
/// process may have.
#[cfg(target_os = "linux")]
pub(crate) fn buffered_bytes() -> usize {
    let quarter = memory_limit::get().map(|limit| usize::try_from(limit / 4).unwrap_or(usize::MAX));
    let lowered = quarter.filter(|&bytes| bytes < defaults::MAX_BUFFERED_BYTES);
    if let Some(bytes) = lowered {
        tracing::info!(
            bytes,
            "--max-buffered-bytes is a quarter of the memory that the server may have"
        );
    }
    lowered.unwrap_or(defaults::MAX_BUFFERED_BYTES).max(1)
}

/// The default of `--max-buffered-bytes`.
#[cfg(not(target_os = "linux"))]
pub(crate) fn buffered_bytes() -> usize {
    defaults::MAX_BUFFERED_BYTES
}

/// How much the server does at the same time.
#[derive(Debug)]
pub(crate) struct Capacity {
    /// How many clients are served; `None` for no limit.
    pub(crate) max_instances: Option<usize>,
    /// How many commands run.
    pub(crate) commands: usize,
    /// Whether users other than the server's own may connect.
    admits_others: bool,
    #[cfg(target_os = "linux")]
    descriptors: descriptors::Descriptors,
    #[cfg(target_os = "linux")]
    asked: Option<usize>,
}

impl Capacity {
    /// How many of the commands run for one user: if others may connect, the last quarter is left
    /// to them, whatever this user's requests take.
    pub(crate) fn commands_per_user(&self) -> usize {
        match self.admits_others {
            true => (self.commands - self.commands.div_ceil(4)).max(1),
            false => self.commands,
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Capacity {
    /// The limits that the options ask for.
    #[allow(clippy::unnecessary_wraps, reason = "it fails on Linux")]
    pub(crate) fn new(options: &Options, source: &PipeSource) -> Result<Self, Failure> {
        let exec_limit = options.answer.exec_limit;
        Ok(Self {
            max_instances: options.max_instances(),
            commands: exec_limit.unwrap_or_else(|| processors() * COMMANDS_PER_PROCESSOR),
            admits_others: source.admits_others(options),
        })
    }

    /// Logs which limits were lowered: none.
    pub(crate) fn log(&self) {}

    /// How many threads Tokio may start for what blocks: its 512, and those of the commands. Each
    /// pipe of a command takes one, and idle ones too, or nobody would notice that they end.
    #[cfg(windows)]
    pub(crate) fn blocking_threads(&self) -> usize {
        const OF_A_COMMAND: usize = 3;
        // Tokio adds its workers to them.
        self.commands.min(usize::MAX / 8) * OF_A_COMMAND + 512
    }

    /// The command to run: unchanged, because the limit of open files is.
    pub(crate) fn command(&self, command: &str) -> String {
        command.to_owned()
    }
}

#[cfg(target_os = "linux")]
impl Capacity {
    /// Raises the limit of open files to the maximum, and lowers the requested limits to what fits
    /// in it.
    ///
    /// # Errors
    ///
    /// If not even one client fits in it.
    pub(crate) fn new(options: &Options, source: &PipeSource) -> Result<Self, Failure> {
        let answer = &options.answer;
        let asked = options.max_instances();
        let descriptors = descriptors::Descriptors::raise();
        let commands = answer.exec_limit.unwrap_or_else(|| {
            let most = descriptors.limit() / 4 / descriptors::OF_A_COMMAND;
            (processors() * COMMANDS_PER_PROCESSOR).min(most).max(1)
        });
        let reserve = descriptors.reserve(answer.exec.is_some().then_some(commands));
        let of_a_client = if answer.forwards_to_pipe() { 2 } else { 1 };
        let most = descriptors.limit().saturating_sub(reserve) / of_a_client;
        if most == 0 {
            return Err(Failure::new(format!(
                "{} files may be open, but {} are needed to serve one client: raise the limit (ulimit -n), or \
                 lower --exec-limit",
                descriptors.limit(),
                reserve.saturating_add(of_a_client),
            )));
        }
        Ok(Self {
            max_instances: Some(asked.unwrap_or(most).min(most)),
            commands,
            admits_others: source.admits_others(options),
            descriptors,
            asked,
        })
    }

    /// Logs which limits were lowered.
    pub(crate) fn log(&self) {
        use tracing::{info, warn};

        let Some(max_instances) = self.max_instances else {
            return;
        };
        let open_files = self.descriptors.limit();
        match self.asked {
            None => info!(
                max_instances,
                open_files, "the limit of open files bounds how many clients are served at once"
            ),
            Some(asked) if asked > max_instances => warn!(
                max_instances,
                open_files,
                "--max-instances {asked} is lowered to what the limit of open files allows: raise that limit \
                 (ulimit -n)"
            ),
            Some(_) => {}
        }
    }

    /// The command that runs `command` with the limit of open files that this server was started
    /// with. Programs that use select(2) fail with numbers from 1,024 on.
    // Set by the shell: setting it between fork and exec takes unsafe code.
    pub(crate) fn command(&self, command: &str) -> String {
        match self.descriptors.raised_from {
            Some(limit) => format!("ulimit -S -n {limit}; {command}"),
            None => command.to_owned(),
        }
    }
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(target_os = "linux")]
mod descriptors {
    use std::fs;

    use pipe_server_cli::open_files;
    use tracing::warn;

    use super::processors;

    /// A running command's pipes and pidfd.
    pub(super) const OF_A_COMMAND: usize = 4;

    /// Further descriptors needed to start a command: the other ends of its pipes, and those that
    /// tell the standard library whether it started.
    const OF_A_START: usize = 5;

    /// What the server itself opens: the pipe's socket and lock file, epoll, signals. 10 were
    /// observed.
    const OF_THE_SERVER: usize = 16;

    /// The limit of open files.
    #[derive(Debug)]
    pub(super) struct Descriptors {
        limit: Option<u64>,
        pub(super) raised_from: Option<u64>,
        /// How many were open at the start.
        open: usize,
    }

    impl Descriptors {
        /// Raises the limit to the hard one.
        pub(super) fn raise() -> Self {
            let open = fs::read_dir("/proc/self/fd").map_or(3, Iterator::count);
            let (before, raised) = open_files::raise();
            let (limit, raised_from) = match raised {
                Ok(()) if before.current == before.maximum => (before.maximum, None),
                Ok(()) => (before.maximum, before.current),
                Err(error) => {
                    let limit = before.current;
                    warn!(%error, limit, "the limit of open files can't be raised to the hard one");
                    (limit, None)
                }
            };
            Self {
                limit,
                raised_from,
                open,
            }
        }

        pub(super) fn limit(&self) -> usize {
            let limit = self.limit.unwrap_or(u64::MAX);
            usize::try_from(limit).unwrap_or(usize::MAX)
        }

        /// How many are reserved.
        pub(super) fn reserve(&self, commands: Option<usize>) -> usize {
            // Each worker may be closing one connection that no longer counts, and starting a
            // command.
            let workers = processors();
            let own = self.open + OF_THE_SERVER + workers;
            match commands {
                Some(commands) => commands
                    .saturating_mul(OF_A_COMMAND)
                    .saturating_add(workers * OF_A_START + own),
                None => own,
            }
        }
    }
}
