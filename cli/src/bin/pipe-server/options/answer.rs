//! The options that choose and limit the answer.

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use pipe_server::{Trust, defaults};
use pipe_server_cli::text::Encoding;

use super::at_least_one;
use crate::forward::ForwardUrl;

/// The default of `--forward-limit`: with the longest message by default, 64 MiB of requests.
#[cfg(feature = "nats")]
const FORWARD_LIMIT: usize = 1024;

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
