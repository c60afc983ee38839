//! The command line.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{ArgAction, Args, Parser, ValueEnum, builder::NonEmptyStringValueParser};
#[cfg(target_os = "linux")]
use pipe_server::os::linux::AccessExt as _;
use pipe_server::{Access, ListenerOptions, PipeName, Trust, UserId, defaults};
use pipe_server_cli::{
    text::Encoding,
    values::{self, SizeLimit, TimeLimit, Wait},
};

use crate::{capacity, dump::DumpOptions, forward::ForwardUrl};

/// The default of `--handler-timeout` with `--forward`: a request or its reply can be lost on the
/// way to NATS, and another pipe can be busy, so that waiting has to end.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);

/// The default of `--handler-timeout` with `--exec`: a command that never ends holds one of few
/// places. Long enough for what somebody waits for.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);

/// The default of `--forward-limit`: with the longest message by default, 64 MiB of requests.
#[cfg(feature = "nats")]
const FORWARD_LIMIT: usize = 1024;

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

#[cfg(windows)]
const USER: &str = "SID";
#[cfg(not(windows))]
const USER: &str = "UID";

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

/// How requests are answered.
#[derive(Args, Debug)]
#[command(next_help_heading = "Answer (one of them)")]
pub(crate) struct AnswerOptions {
    /// Answer with TEXT [default: default answer from server]
    #[arg(long, value_name = "TEXT", group = "answer", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) reply: Option<String>,

    /// Answer with the request itself
    #[arg(long, group = "answer")]
    pub(crate) echo: bool,

    /// Answer with the output of COMMAND, which the shell runs with the request as its stdin
    ///
    /// Its environment identifies the client: PIPE_PEER_UID (Linux) or PIPE_PEER_SID (Windows),
    /// PIPE_PEER_PID and PIPE_CONNECTION_ID. A variable is unset if the system does not know
    /// its value. Use the process id only for logs: the system reuses process ids. It does not
    /// inherit the variables of this server's options, PIPE_SERVER_*.
    ///
    /// It is killed when --handler-timeout expires, its client disconnects or the server ends. On
    /// Linux this kills its process group, but not processes that left the group (setsid,
    /// setpgid). On Windows it terminates its job object, but not processes that others start
    /// for it (a service, WMI). A server that is itself killed (SIGKILL, Task Manager) leaves
    /// its commands running.
    ///
    /// Processes that outlive COMMAND are not killed. The reply is complete once none of them
    /// holds the command's stdout and stderr open. If COMMAND fails or prints nothing, the
    /// connection is closed.
    #[arg(long, value_name = "COMMAND", group = "answer", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) exec: Option<String>,

    /// When COMMAND is started, and how it gets requests
    ///
    /// With lines and frames it is started for a client's first request and killed when the client
    /// disconnects. Until then it counts for --exec-limit. It must flush each reply, print nothing
    /// else, not even before the first request, and log to stderr only.
    ///
    /// If it ends or prints something else while its client waits for no reply, the connection of
    /// its client is closed, and the log says why. What it prints before it reads a request is
    /// never taken for the reply; on Windows that is certain only for its first request. What it
    /// prints after that can't be told from the reply: one reply may then be wrong, and the
    /// connection is closed when the true one comes. A request reaches it in several pieces: it
    /// must read on until it has all of the line or frame.
    ///
    /// If a request finds no command free, one whose client is idle makes room: of the user who
    /// runs most, the one that has been idle for longest. The connection of its client is closed,
    /// because a new command would not know what this one was told.
    #[arg(
        long,
        value_name = "MODE",
        value_enum,
        default_value_t,
        requires = "exec"
    )]
    pub(crate) exec_mode: ExecMode,

    /// Remove the newline at the end of what COMMAND prints in the mode request
    #[arg(long, requires = "exec")]
    pub(crate) trim_newline: bool,

    /// How many commands run at the same time, 1 or more [default: 4 per processor]
    ///
    /// Further requests wait, and --handler-timeout includes the time they wait. The next one is of
    /// the user who runs the fewest commands; users who run as many take turns, and the requests of
    /// one user are answered in FIFO order. If other users may connect (--access), one user runs
    /// three quarters of the commands at most.
    ///
    /// If the client has disconnected by then, the command is not run. A command that can't be
    /// started because the system is short of memory, processes or open files is retried.
    ///
    /// On Linux the default is lower if the limit of open files is low. Commands get the limit
    /// that the server was started with.
    #[arg(long, value_name = "N", requires = "exec", value_parser = at_least_one)]
    pub(crate) exec_limit: Option<usize>,

    /// Let another server answer, or a worker that subscribes to a subject of a NATS server
    ///
    /// With pipe:NAME each client gets a connection of its own to the pipe NAME of this machine, a
    /// name or a full path. Each message is passed on as it is, in both directions, also what
    /// the server sends unasked, and so is the end of either side. If nobody serves NAME, it
    /// is still busy after --handler-timeout, or its server is not trusted (--trust), the
    /// client is disconnected and the log says why.
    ///
    /// The other forms need a build with NATS (--features nats): nats://HOST:PORT/SUBJECT, or
    /// tls://HOST:PORT/SUBJECT; the port is 4222 by default. If the NATS server wants a user
    /// and a password or a token, put USER:PASSWORD@ or TOKEN@ in front of HOST, and give the
    /// URL by its environment variable or in the file of --config: other users can see the
    /// command line.
    ///
    /// A request is published to NATS once and never repeated. If nobody subscribes to SUBJECT,
    /// the reply is empty or too long, or none arrives within --handler-timeout, the
    /// connection is closed. The NATS server may start later than this one, and a lost
    /// connection is restored: until then requests wait. docs/forward.md has more.
    #[arg(long, value_name = "URL", group = "answer")]
    pub(crate) forward: Option<ForwardUrl>,

    /// Which servers to trust with --forward pipe:NAME: system, current-user, anyone or a user
    /// [default: system]
    ///
    /// system is this user and the system itself: root on Linux, SYSTEM and Administrators on
    /// Windows. A user is a number such as 1000 on Linux, and a SID such as S-1-5-19 on
    /// Windows. Nothing is sent to other servers.
    #[arg(long, value_name = "WHOM", requires = "forward")]
    pub(crate) trust: Option<Trust>,

    /// How many forwarded requests wait for their replies at the same time, 1 or more
    ///
    /// Further requests wait in FIFO order, and --handler-timeout includes the time they wait.
    #[cfg(feature = "nats")]
    #[arg(long, value_name = "N", requires = "forward", default_value_t = FORWARD_LIMIT, value_parser = at_least_one)]
    pub(crate) forward_limit: usize,

    /// How many requests of one client are answered at the same time, 1 or more
    ///
    /// For clients that send further requests before the first reply. Replies are sent in the
    /// order of the requests. With --exec, as many commands of one client run at the same
    /// time, within --exec-limit. If one fails, those of the client's later requests are
    /// killed.
    #[arg(long, value_name = "N", default_value_t = defaults::CONCURRENCY, value_parser = at_least_one)]
    pub(crate) concurrency: usize,

    /// Encoding of --reply; auto takes the request's, and its terminating NUL if it has one
    #[arg(long, value_name = "ENCODING", value_enum, default_value_t)]
    pub(crate) encoding: Encoding,
}

impl AnswerOptions {
    /// Whether requests are forwarded.
    pub(crate) fn forwards(&self) -> bool {
        self.forward.is_some()
    }

    /// Whether requests are forwarded through a network connection.
    pub(crate) fn forwards_to_nats(&self) -> bool {
        self.forward.as_ref().is_some_and(|url| !url.is_pipe())
    }

    /// Whether each client takes another connection, to another pipe.
    #[cfg(target_os = "linux")]
    pub(crate) fn forwards_to_pipe(&self) -> bool {
        self.forward.as_ref().is_some_and(ForwardUrl::is_pipe)
    }

    /// Whether an answer waits for others: a command or a worker.
    pub(crate) fn waits(&self) -> bool {
        self.exec.is_some() || self.forwards()
    }
}

/// How a command gets requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExecMode {
    /// Once per request, which is its stdin; its stdout is the reply
    #[default]
    Request,
    /// Once per client: each request and each reply is a line
    Lines,
    /// Once per client: before each request and reply comes its length, 4 bytes, little endian
    Frames,
}

/// The pipe itself.
#[derive(Args, Debug)]
#[command(next_help_heading = "Pipe")]
pub(crate) struct PipeOptions {
    /// Longest message in either direction [default: 64KiB, or 4095 with --engine tokio]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    max_message_size: Option<usize>,

    /// How much data the pipe buffers in each direction before a writer waits [default: 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = values::size_u32)]
    buffer_size: Option<u32>,

    /// How much the server buffers for all clients together [default: 256MiB]
    ///
    /// Near the limit, clients that do not read their replies are disconnected, those that hold
    /// most first. Others are served as ever, but fewer of their requests are read ahead. On
    /// Linux the default is a quarter of the memory that the process may have (ulimit -v or -d, or
    /// the limit of its control groups), if that is less.
    #[arg(long, value_name = "SIZE|unlimited")]
    max_buffered_bytes: Option<SizeLimit>,

    /// How many instances wait for clients, 1 or more [default: 2]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    backlog: Option<usize>,

    /// Who may connect: current-user, everyone, sddl:TEXT (Windows) or mode:OCTAL (Linux)
    /// [default: current-user]
    ///
    /// On Windows, everyone grants other users what a client needs, but not the right to create
    /// instances, which is part of the GENERIC_WRITE that most programs ask for. Whether
    /// Windows therefore refuses them is not known; pipe-client does not ask for it. On Linux,
    /// give a path with everyone: other users can't reach the directory of a short name.
    #[arg(long, value_name = "WHO")]
    pub(crate) access: Option<Access>,

    /// Group of the socket, by name or number: its members may connect
    ///
    /// The socket's mode is then 0660, unless --access says everyone or mode:OCTAL. The server has
    /// to be in the group, or be root. Give a path whose directory the group can enter; a
    /// short name is refused. Clients of other users need --trust with this server's user.
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "GROUP", value_parser = group_id)]
    socket_group: Option<u32>,
    /// Serve only this user, a number on Linux and a SID on Windows; repeat it for more users
    ///
    /// Users that are not listed are refused and logged, including the server's own and the
    /// system's. A listed user must also be able to connect (--access). On Windows, a client
    /// that is not identified when it connects is refused after its first message, before that
    /// is answered.
    #[arg(long, value_name = USER)]
    pub(crate) allow_user: Vec<UserId>,

    /// Let clients on other machines connect
    #[cfg(windows)]
    #[arg(long)]
    allow_remote: bool,

    /// How bytes move under the connections
    #[cfg(windows)]
    #[arg(long, value_name = "ENGINE", value_enum, default_value = "auto")]
    engine: Engine,
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

/// This server as a service.
#[cfg(windows)]
#[derive(Args, Debug)]
#[command(next_help_heading = "Windows service")]
pub(crate) struct ServiceOptions {
    /// Install a service that runs this program with the other options, or remove it
    ///
    /// The service starts with the system, and again within a minute after a failure. It needs
    /// --access, because by default only its own account may connect. Its log goes to
    /// %ProgramData%\pipe-server\NAME.log, unless --log-file is given. A stop lets running
    /// requests finish, up to --drain-timeout. What its clients need, and how to install it with
    /// sc.exe: docs/windows-service.md.
    #[arg(long = "service", value_name = "ACTION", value_enum)]
    pub(crate) action: Option<ServiceAction>,

    /// Name of the service: letters, digits, and . _ -
    #[arg(long = "service-name", value_name = "NAME", default_value = "pipe-server", requires = "action",
        value_parser = service_name)]
    pub(crate) name: String,

    /// Account without a password that the service runs as [default: NT SERVICE\NAME, which is its
    /// own]
    ///
    /// Others are NT AUTHORITY\LocalService, NT AUTHORITY\NetworkService, LocalSystem, and a
    /// managed account, DOMAIN\NAME$. It must be able to read this program.
    #[arg(long = "service-account", value_name = "ACCOUNT", requires = "action",
        value_parser = NonEmptyStringValueParser::new())]
    pub(crate) account: Option<String>,
}

#[cfg(windows)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceAction {
    /// Register the service, with the other options; it is not started yet
    Install,
    /// Stop the service and delete it
    Remove,
    /// Be the service: only the service manager can start that
    Run,
}

/// These characters need no quotes and have one uppercase form, which the SID of the service
/// depends on.
#[cfg(windows)]
fn service_name(text: &str) -> Result<String, &'static str> {
    let fits = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    match (1..=80).contains(&text.len()) && text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => Err("give 1 to 80 letters, digits, and . _ -"),
    }
}

#[cfg(windows)]
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Engine {
    /// The best one there is: overlapped
    Auto,
    /// Tokio's own pipe, with messages of 4095 bytes at most
    Tokio,
    /// Overlapped I/O, with messages of any length
    Overlapped,
}

#[cfg(windows)]
impl From<Engine> for pipe_server::os::windows::Engine {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Auto => Self::Auto,
            Engine::Tokio => Self::Tokio,
            Engine::Overlapped => Self::Overlapped,
        }
    }
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

/// The id of a group, given by its name or as a number.
#[cfg(target_os = "linux")]
fn group_id(text: &str) -> Result<u32, String> {
    // As chown(1): the name of a group may be a number too.
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => return Ok(group.gid.as_raw()),
        Ok(None) => {}
        Err(error) => return Err(format!("groups can't be looked up: {error}; give a number")),
    }
    text.parse()
        .map_err(|_| "there is no such group: give one of getent group, or a number".to_owned())
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

    #[cfg(target_os = "linux")]
    #[test]
    fn a_group_has_a_name_or_a_number() {
        assert_eq!(group_id("root"), Ok(0));
        assert_eq!(group_id("54321"), Ok(54_321));
        assert!(group_id("no such group").is_err());
        assert!(group_id("-1").is_err());
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
