//! The command line.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{ArgAction, Args, Parser, ValueEnum};
#[cfg(target_os = "linux")]
use pipe_server::os::linux::AccessExt as _;
use pipe_server::{Access, ListenerOptions, PipeName, defaults};
use pipe_server_cli::values::{self, SizeLimit, TimeLimit, Wait};

#[cfg(windows)]
use self::pipe::Engine;
#[cfg(windows)]
use self::service::ServiceOptions;
use self::{answer::AnswerOptions, pipe::PipeOptions};
use crate::{capacity, dump::DumpOptions};

pub(crate) use self::answer::ExecMode;
#[cfg(windows)]
pub(crate) use self::service::ServiceAction;

mod answer;
mod pipe;
#[cfg(windows)]
mod service;

/// The default of `--handler-timeout` with `--forward`: a request or its reply can be lost on the
/// way to NATS, and another pipe can be busy, so that waiting has to end.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);

/// The default of `--handler-timeout` with `--exec`: a command that never ends holds one of few
/// places. Long enough for what somebody waits for.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves a message pipe: a named pipe on Windows, a SEQPACKET socket on Linux.
///
/// Without options it behaves as Microsoft's sample server: every request gets the same reply. When
/// clients can connect, "listening on ADDRESS" is printed to stdout; the log goes to stderr or to
/// --log-file. Ctrl-C, Ctrl-Break (Windows), SIGTERM and SIGHUP let running requests finish; a
/// second one, but for SIGHUP, ends the server at once. SIGHUP and SIGINT stay ignored if they are
/// at the start, as under nohup. On Linux it serves the socket that systemd passes, if there is one.
#[derive(Debug, Parser)]
#[command(name = "pipe-server", version, after_help = AFTER_HELP)]
pub(crate) struct Options {
    /// Name of the pipe, or its full path [default: mynamedpipe]
    #[arg(long, value_name = "NAME", value_parser = values::name())]
    pub(crate) pipe_name: Option<PipeName>,

    /// Serve the pipe as one of the system, where the clients of all users look for it with
    /// --system
    ///
    /// On Linux it is /run/pipe-server/NAME.pipe, in a directory that belongs to root or, in a
    /// systemd service, to the service's user (RuntimeDirectory=pipe-server). By default only
    /// the server's own user and root may connect: admit others with --access or
    /// --socket-group. On Windows every short name is one of the system.
    #[arg(long)]
    pub(crate) system: bool,

    /// Name of the socket to serve, if systemd passes several (FileDescriptorName= in the .socket
    /// unit)
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["pipe_name", "system"])]
    pub(crate) fd_name: Option<String>,

    /// How many clients are served at the same time, 1 or more, or unlimited; further ones wait
    ///
    /// On Linux it is also limited by the limit of open files: the server raises its soft limit to
    /// the hard limit (ulimit -Hn), reserves files for itself and for --exec-limit commands,
    /// and serves one client with each of the rest.
    #[arg(long, value_name = "N|unlimited", default_value = "unlimited")]
    max_instances: CountLimit,

    /// How many connections one user may have, 1 or more, or unlimited; further ones are refused
    /// [default: 256 or half of --max-instances, for other users only]
    ///
    /// Other users are all but the server's own and the system (root; SYSTEM and Administrators),
    /// for whom an eighth of --max-instances, at least one of several places, is kept. A number
    /// given here limits everyone; unlimited also gives up the places that are kept.
    #[arg(long, value_name = "N|unlimited")]
    max_connections_per_user: Option<CountLimit>,

    #[command(flatten)]
    pub(crate) answer: AnswerOptions,

    #[command(flatten)]
    pub(crate) pipe: PipeOptions,

    #[command(flatten)]
    pub(crate) limits: LimitOptions,

    #[cfg(windows)]
    #[command(flatten)]
    pub(crate) service: ServiceOptions,

    #[command(flatten)]
    pub(crate) logging: LoggingOptions,

    #[command(flatten)]
    pub(crate) dump: DumpOptions,
}

const AFTER_HELP: &str = "\
Sizes are in bytes, or have a unit: 4096, 64KiB, 1MB. Times have a unit: 500ms, 10s, 5min. For no \
limit give none.
RUST_LOG, if set, decides what is logged in place of -v and -q: a level, or levels of modules, as in \
warn,pipe_server=debug.
Exit codes: 0 after a signal or --exit-when-idle, 1 for a failure, 2 for bad usage, 130 after a second signal.";

impl Options {
    /// The listener's options except `max_instances`. Options that were not given keep the
    /// library's default.
    pub(crate) fn listener(&self) -> ListenerOptions {
        let mut options = ListenerOptions::new()
            .access(self.pipe.access.clone().unwrap_or_default())
            .max_message_size(self.pipe.max_message_size);
        if let Some(bytes) = self.pipe.buffer_size {
            options = options.buffer_size(bytes);
        }
        if let Some(instances) = self.pipe.backlog {
            options = options.backlog(instances);
        }
        #[cfg(target_os = "linux")]
        {
            use pipe_server::os::linux::ListenerOptionsExt as _;

            options = options.socket_group(self.pipe.socket_group);
        }
        #[cfg(windows)]
        {
            use pipe_server::os::windows::ListenerOptionsExt as _;

            options = options
                .allow_remote(self.pipe.allow_remote)
                .engine(self.pipe.engine.into());
        }
        options
    }

    /// How many clients at the same time; `None` is unlimited.
    pub(crate) fn max_instances(&self) -> Option<usize> {
        self.max_instances.0
    }

    /// The limit of `--max-connections-per-user`, if it was given; `Some(None)` is unlimited.
    pub(crate) fn max_connections_per_user(&self) -> Option<Option<usize>> {
        self.max_connections_per_user.map(|limit| limit.0)
    }

    /// How much to buffer for all clients; `None` is unlimited.
    pub(crate) fn max_buffered_bytes(&self) -> Option<usize> {
        match self.pipe.max_buffered_bytes {
            Some(SizeLimit(limit)) => limit,
            None => Some(capacity::buffered_bytes()),
        }
    }

    /// Whether `--access` or `--socket-group` admits other users.
    pub(crate) fn admits_others(&self) -> bool {
        match &self.pipe.access {
            Some(Access::Everyone) => true,
            #[cfg(target_os = "linux")]
            Some(access @ Access::Custom(_)) => {
                access.as_mode().is_none_or(|mode| mode & 0o077 != 0)
            }
            #[cfg(target_os = "linux")]
            _ => self.pipe.socket_group.is_some(),
            // It may admit anybody.
            #[cfg(windows)]
            Some(Access::Custom(_)) => true,
            #[cfg(not(target_os = "linux"))]
            _ => false,
        }
    }

    /// How long the answer to a request may take.
    pub(crate) fn handler_timeout(&self) -> Option<Duration> {
        match self.limits.handler_timeout {
            Some(TimeLimit(time)) => time,
            None if self.answer.forwards() => Some(FORWARD_TIMEOUT),
            None => self.answer.exec.is_some().then_some(EXEC_TIMEOUT),
        }
    }

    /// Whether the engine is on Tokio's own I/O.
    pub(crate) fn engine_needs_io_driver(&self) -> bool {
        #[cfg(windows)]
        return matches!(self.pipe.engine, Engine::Tokio);
        #[cfg(not(windows))]
        true
    }

    /// Whether the engine or the answer is on Tokio's own I/O.
    pub(crate) fn need_io_driver(&self) -> bool {
        self.engine_needs_io_driver() || self.answer.forwards_to_nats()
    }
}

/// What a client can hold, and for how long.
#[derive(Args, Debug)]
#[command(next_help_heading = "Time limits")]
pub(crate) struct LimitOptions {
    /// How long a client may send no request, or none
    #[arg(long, value_name = "TIME", default_value = "none")]
    pub(crate) idle_timeout: TimeLimit,

    /// How long the answer to a request may take, with the time it waits for --exec-limit, or none
    /// [default: none, or 60s with --exec, 10s with --forward]
    ///
    /// With --forward pipe:NAME, it is how long connecting to a busy NAME may take: which message
    /// answers which is not known then, and their time is not limited.
    #[arg(long, value_name = "TIME")]
    handler_timeout: Option<TimeLimit>,

    /// How long a client may leave a reply unread, or none
    ///
    /// With --forward pipe:NAME, also how long the server of NAME may leave a message unread.
    #[arg(long, value_name = "TIME", default_value = values::text(defaults::WRITE_TIMEOUT))]
    pub(crate) write_timeout: TimeLimit,

    /// Exit once no client has been connected for TIME, or none
    ///
    /// Nobody is lost: the name is released first, and a client that connected before is served.
    /// For servers that clients start when they need them (pipe-client --start).
    #[arg(long, value_name = "TIME", default_value = "none")]
    pub(crate) exit_when_idle: TimeLimit,

    /// How long requests in flight may take to finish after a signal, or none; 0s aborts them at
    /// once
    #[arg(long, value_name = "TIME", default_value = values::text(defaults::DRAIN_TIMEOUT))]
    pub(crate) drain_timeout: Wait,
}

/// The log.
#[derive(Args, Debug)]
#[command(next_help_heading = "Log")]
pub(crate) struct LoggingOptions {
    /// Form of the log
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    pub(crate) log_format: LogFormat,

    /// Append the log to FILE instead of writing it to stderr
    ///
    /// The file is opened when the server starts, and created if it does not exist. What it can't
    /// take in time is dropped and counted. On Linux it is a regular file or a character device,
    /// such as /dev/null, in a directory of this user or of root where no other user could exchange
    /// it.
    #[arg(long, value_name = "FILE", value_parser = values::path())]
    pub(crate) log_file: Option<PathBuf>,

    /// How long the file of --log-file may get, or none
    ///
    /// Before a line that does not fit, FILE is renamed to FILE.1, which replaces the one before,
    /// and begun anew: twice as much is kept at most. If the server may not rename it or begin
    /// a new one, it says so in FILE, goes on there, and tries again later.
    #[arg(long, value_name = "SIZE", default_value = "10MiB")]
    pub(crate) log_file_size: SizeLimit,

    /// Log more: connections with -v, messages with -vv
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,

    /// Log errors only
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// How often to log statistics, or none
    ///
    /// These are the numbers of connections, requests and bytes, errors by reason, and how long
    /// replies take. SIGUSR1 (Linux), or sc.exe control NAME 128 for a Windows service, logs them
    /// immediately.
    #[arg(long, value_name = "TIME", default_value = "none")]
    pub(crate) stats: TimeLimit,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines to read
    Text,
    /// One JSON object a line
    Json,
}

/// A number of clients; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CountLimit(Option<usize>);

impl FromStr for CountLimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "unlimited" {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(count @ 1..) => Ok(Self(Some(count))),
            _ => Err("give 1 or more, or unlimited"),
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, &'static str> {
    text.parse()
        .ok()
        .filter(|&number| number > 0)
        .ok_or("give 1 or more")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn counts_are_1_or_more_or_unlimited() {
        assert_eq!("1".parse(), Ok(CountLimit(Some(1))));
        assert_eq!("1000".parse(), Ok(CountLimit(Some(1000))));
        assert_eq!("unlimited".parse(), Ok(CountLimit(None)));
        for wrong in ["0", "-1", "", "all"] {
            assert!(wrong.parse::<CountLimit>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_command_has_a_time_limit_by_default() {
        let limit = |arguments: &[&str]| {
            let arguments = ["pipe-server"].iter().chain(arguments);
            Options::try_parse_from(arguments)
                .unwrap()
                .handler_timeout()
        };
        assert_eq!(limit(&[]), None);
        assert_eq!(limit(&["--exec", "a"]), Some(EXEC_TIMEOUT));
        assert_eq!(limit(&["--exec", "a", "--handler-timeout", "none"]), None);
        let five = ["--exec", "a", "--handler-timeout", "5min"];
        assert_eq!(limit(&five), Some(Duration::from_secs(300)));
    }

    #[test]
    fn only_one_answer_can_be_chosen() {
        assert!(Options::try_parse_from(["pipe-server", "--echo", "--reply", "a"]).is_err());
        assert!(Options::try_parse_from(["pipe-server", "--echo", "--exec", "a"]).is_err());
    }
}
