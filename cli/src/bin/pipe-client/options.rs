//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{
    Parser, ValueEnum,
    builder::{ArgPredicate, NonEmptyStringValueParser},
    value_parser,
};
#[cfg(windows)]
use pipe_server::os::windows::ClientOptionsExt as _;
use pipe_server::{ClientOptions, PipeName, Trust, defaults};
use pipe_server_cli::{
    exit::Failure,
    process_group,
    text::{Encoding, Form},
    values::{self, TimeLimit, Wait},
};

use crate::replay::ReplayOptions;

/// Sends messages to a pipe and prints each reply on its own line.
///
/// Without MESSAGE and --file each line of stdin is sent as a message; at a terminal the message of
/// Microsoft's sample is sent instead.
#[derive(Debug, Parser)]
#[command(name = "pipe-client", version, after_help = AFTER_HELP)]
pub(crate) struct Options {
    /// Name of the pipe, or its full path
    #[arg(long, value_name = "NAME", default_value = "mynamedpipe", value_parser = values::name())]
    pub(crate) pipe_name: PipeName,

    /// Connect to the pipe of the system, not to one of this user
    ///
    /// On Linux it is /run/pipe-server/NAME.pipe. On Windows the two are the same.
    #[arg(long)]
    system: bool,

    /// Encoding of the messages, and of the replies
    ///
    /// auto sends UTF-8 and detects the encoding of each reply. Lines of stdin that are to be sent
    /// as UTF-8 need not be valid text.
    #[arg(long, value_name = "ENCODING", value_enum, default_value_t)]
    pub(crate) encoding: Encoding,

    /// Whether a NUL ends each text that is sent
    ///
    /// Microsoft's sample server prints a request up to its NUL. Without one, its ANSI build also
    /// prints what lies behind the text in its buffer. In replies, a terminating NUL is
    /// recognized with any choice.
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    terminator: Terminator,

    /// How long to wait for a busy pipe and, with --wait, for a server, or none; 0s tries once
    /// [default: 20s; with --ping: 5s]
    #[arg(
        long,
        value_name = "TIME",
        default_value = values::text(defaults::CONNECT_TIMEOUT),
        default_value_if("ping", "true", PING_TIMEOUT),
        hide_default_value = true
    )]
    connect_timeout: Wait,

    /// Which servers to trust: system, current-user, anyone or a user
    ///
    /// system is this user and the system itself: root on Linux, SYSTEM and Administrators on
    /// Windows. A user is a number such as 1000 on Linux, and a SID such as S-1-5-19 on
    /// Windows. All other servers are refused before anything is sent to them.
    #[arg(long, value_name = "WHOM", default_value_t)]
    trust: Trust,

    /// Connect to a pipe on another machine, as in \\HOST\pipe\NAME
    ///
    /// That sends this user's credentials to HOST, whoever HOST is. Without this flag such a name
    /// is refused.
    #[cfg(windows)]
    #[arg(long)]
    allow_remote: bool,

    /// Check whether the server answers; the exit code says why it does not
    ///
    /// Sends each MESSAGE or --file, or else the message of Microsoft's sample, and prints how
    /// long the reply took instead of the reply. Lines of stdin are not read. To the server it
    /// is a message like any other: with --exec, it runs the command.
    ///
    /// A busy pipe is tried again until --connect-timeout. On Linux, a server at its
    /// --max-instances still queues one client before the pipe is busy: a ping in that queue
    /// gets no reply and exits 6.
    #[arg(long)]
    pub(crate) ping: bool,

    /// Wait for a server that is not there yet
    #[arg(long)]
    pub(crate) wait: bool,

    /// Start the server with the shell's COMMAND if there is none, and wait until it answers, up to
    /// --connect-timeout
    ///
    /// It keeps running when this program ends: have it end by itself (pipe-server
    /// --exit-when-idle). Of many clients at once one starts it. If COMMAND fails, the end of its
    /// stderr is shown.
    #[arg(long, value_name = "COMMAND", value_parser = NonEmptyStringValueParser::new())]
    start: Option<String>,

    /// Longest message in either direction [default: 64KiB, or the engine's maximum if that is
    /// less]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    max_message_size: Option<usize>,

    /// How long to wait for each reply, or none [default: none; with --ping: 5s; with --replay: 30s]
    #[arg(
        long,
        value_name = "TIME",
        default_value = "none",
        default_value_ifs([
            ("ping", ArgPredicate::from("true"), PING_TIMEOUT),
            ("replay", ArgPredicate::IsPresent, REPLAY_TIMEOUT),
        ]),
        hide_default_value = true
    )]
    timeout: TimeLimit,

    /// Send the contents of FILE as one message, unchanged; - is stdin. Repeat it for more files
    ///
    /// Nothing is sent unless all of them can be read and none is longer than a message may be.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["messages", "terminator"], value_parser = values::path())]
    pub(crate) file: Vec<PathBuf>,

    /// Send each message N times, one after the other
    #[arg(long, value_name = "N", default_value = "1", value_parser = value_parser!(u64).range(1..))]
    pub(crate) repeat: u64,

    /// MESSAGE and the lines of stdin are hexadecimal, and replies are printed in it
    ///
    /// Whitespace between digits is ignored. With --json, replies have the field hex instead of
    /// text.
    #[arg(long, conflicts_with_all = ["encoding", "terminator", "raw", "nul"])]
    pub(crate) hex: bool,

    /// Print the bytes of replies unchanged, with nothing between them
    ///
    /// Without it, characters that control a terminal are escaped if stdout is one.
    #[arg(long, conflicts_with_all = ["nul", "json", "ping"])]
    pub(crate) raw: bool,

    /// Lines of stdin and replies end with NUL, as for xargs -0 and grep -z
    ///
    /// Replies in UTF-8 are printed unchanged except for their end, unless stdout is a terminal.
    #[arg(long, conflicts_with_all = ["json", "ping"])]
    pub(crate) nul: bool,

    /// Read messages at a prompt; Ctrl-D ends
    ///
    /// Each line is a message, and the next message of the server is its reply. What the server
    /// sends at other times is shown at once, above the prompt, and its end of the connection
    /// ends the program. Without a terminal there is no prompt, and the lines of stdin are
    /// sent.
    #[arg(short, long, conflicts_with_all = ["messages", "file", "raw", "nul", "ping"])]
    pub(crate) interactive: bool,

    /// File for the history of --interactive [default: none is kept]
    ///
    /// It is created for this user alone. Lines that begin with a space are left out.
    #[cfg(feature = "interactive")]
    #[arg(long, value_name = "FILE", value_parser = values::path())]
    pub(crate) history: Option<PathBuf>,

    /// Call METHOD of a JSON-RPC 2.0 server and print the result; MESSAGE is its parameters
    ///
    /// The parameters are an array or an object in JSON, or left out. The result is printed as JSON.
    /// An error object goes to stderr instead, and the exit code is 8.
    #[arg(
        long,
        value_name = "METHOD",
        conflicts_with_all = ["file", "interactive", "ping", "repeat", "hex", "encoding", "terminator"],
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub(crate) rpc: Option<String>,

    /// With --rpc, print the notifications that follow the result, until Ctrl-C
    ///
    /// A notification is printed as its parameters, and one of a subscription as its result alone.
    #[arg(long, requires = "rpc")]
    pub(crate) subscribe: bool,

    /// Print one JSON object per reply
    ///
    /// Its fields are number (of the reply, from 1), bytes (its length), text (without a
    /// terminating NUL) and latency_us (microseconds from the start of sending the request). A
    /// reply that is not text in its encoding has the field hex instead of text.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) replay: ReplayOptions,

    /// What to send, each as one message
    #[arg(value_name = "MESSAGE", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) messages: Vec<String>,
}

/// Whether a NUL ends a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Terminator {
    /// With --encoding utf-16, as the sample's Unicode client sends it
    #[default]
    Auto,
    /// Always, as both builds of the sample's client send it
    Nul,
    /// Never
    None,
}

/// How long `--ping` waits to connect, and then for the reply. A health check has to end. Docker's,
/// for one, is killed after 30 s by default.
const PING_TIMEOUT: &str = "5s";

/// How long `--replay` waits for a recorded message: a server that does not send it differs.
const REPLAY_TIMEOUT: &str = "30s";

const AFTER_HELP: &str = "\
Sizes are in bytes, or have a unit: 4096, 64KiB, 1MB. Times have a unit: 500ms, 10s, 5min. For no \
limit give none.
Exit codes: 0 when every message was replied to, 2 for bad usage, 3 when nobody serves the pipe, 4 when \
it is busy, 5 when access is denied or the server is not trusted, 6 when there is no reply or the \
connection is closed instead, as for a user whom --allow-user of pipe-server leaves out, 7 when a --replay \
differs from its recording, 8 when --rpc is answered with an error, and 1 for any other failure.";

impl Options {
    /// The longest message, in bytes.
    pub(crate) fn longest_message(&self) -> usize {
        self.max_message_size.unwrap_or(defaults::MAX_MESSAGE_SIZE)
    }

    /// How long to wait for each reply.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout.0
    }

    /// The longest line of stdin that can be a message, in bytes.
    pub(crate) fn longest_line(&self) -> usize {
        let bytes = self.longest_message();
        if self.hex {
            // Two digits and a space for each byte.
            return bytes.saturating_mul(3);
        }
        match self.encoding {
            // Two bytes of UTF-16 are at most three of UTF-8.
            Encoding::Utf16 => (bytes / 2).saturating_mul(3),
            Encoding::Auto | Encoding::Utf8 => bytes,
        }
    }

    /// The same with the name that `--system` makes of `--pipe-name`.
    pub(crate) fn with_system_name(mut self) -> Result<Self, Failure> {
        self.pipe_name = values::pipe_name(self.pipe_name, self.system)?;
        Ok(self)
    }

    /// The form in which text is sent.
    pub(crate) fn form(&self) -> Form {
        let wide = self.encoding == Encoding::Utf16;
        Form {
            wide,
            terminated: match self.terminator {
                // The sample's Unicode server reads up to the NUL. UTF-8 is sent without one, for
                // all other servers, including `pipe-server --exec` commands.
                Terminator::Auto => wide,
                Terminator::Nul => true,
                Terminator::None => false,
            },
        }
    }

    /// The connection's options. Options that were not given keep the library's default.
    pub(crate) fn client(&self) -> ClientOptions {
        let options = ClientOptions::new();
        #[cfg(windows)]
        let options = options.allow_remote(self.allow_remote);
        let options = match &self.start {
            Some(command) => options.start_server(process_group::shell(command).into_std()),
            None => options,
        };
        options
            .connect_timeout(self.connect_timeout.0)
            .call_timeout(self.timeout.0)
            .wait_for_server(self.wait)
            .trust(self.trust.clone())
            .max_message_size(self.max_message_size)
    }
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
    fn a_ping_waits_five_seconds_unless_told_otherwise() {
        let times = |arguments: &[&str]| {
            let options = Options::parse_from([&["pipe-client"], arguments].concat());
            (options.connect_timeout.0, options.timeout.0)
        };
        let five = Some(Duration::from_secs(5));
        assert_eq!(times(&[]), (Some(defaults::CONNECT_TIMEOUT), None));
        assert_eq!(times(&["--ping"]), (five, five));
        let longer = ["--ping", "--connect-timeout", "1min", "--timeout", "none"];
        assert_eq!(times(&longer), (Some(Duration::from_secs(60)), None));

        let help = Options::command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let connect = values::text(defaults::CONNECT_TIMEOUT);
        let expected = format!("0s tries once [default: {connect}; with --ping: {PING_TIMEOUT}]");
        assert!(help.contains(&expected), "{help}");
    }
}
