//! The command line.

use clap::{Parser, builder::NonEmptyStringValueParser};
#[cfg(windows)]
use pipe_server::os::windows::ClientOptionsExt as _;
use pipe_server::{ClientOptions, PipeName, Trust, defaults};
use pipe_server_cli::{
    exit::Failure,
    text::Encoding,
    values::{self, TimeLimit, Wait},
};

/// Sends messages to a pipe and prints each reply on its own line.
///
/// Without MESSAGE each line of stdin is sent as a message; at a terminal the message of Microsoft's sample is
/// sent instead.
#[derive(Debug, Parser)]
#[command(name = "pipe-client", version, after_help = AFTER_HELP)]
pub(crate) struct Options {
    /// Name of the pipe, or its full path
    #[arg(long, value_name = "NAME", default_value = "mynamedpipe")]
    pub(crate) pipe_name: PipeName,

    /// Connect to the pipe of the system, not to one of this user
    ///
    /// On Linux it is /run/pipe-server/NAME.pipe. On Windows the two are the same.
    #[arg(long)]
    system: bool,

    /// Encoding of the messages, and of the replies
    ///
    /// auto sends UTF-8 and detects the encoding of each reply. utf-16 also sends a terminating NUL, as the sample's
    /// Unicode client does.
    #[arg(long, value_name = "ENCODING", value_enum, default_value_t)]
    pub(crate) encoding: Encoding,

    /// How long to wait for a busy pipe and, with --wait, for a server, or none; 0s tries once
    #[arg(long, value_name = "TIME", default_value = values::text(defaults::CONNECT_TIMEOUT))]
    connect_timeout: Wait,

    /// Which servers to trust: system, current-user, anyone or a user
    ///
    /// system is this user and the system itself: root on Linux, SYSTEM and Administrators on Windows. A user
    /// is a number such as 1000 on Linux, and a SID such as S-1-5-19 on Windows. All other servers are
    /// refused before anything is sent to them.
    #[arg(long, value_name = "WHOM", default_value_t)]
    trust: Trust,

    /// Connect to a pipe on another machine, as in \\HOST\pipe\NAME
    ///
    /// That sends this user's credentials to HOST, whoever HOST is. Without this flag such a name is refused.
    #[cfg(windows)]
    #[arg(long)]
    allow_remote: bool,

    /// Check whether the server answers; the exit code says why it does not
    ///
    /// Sends each MESSAGE, or the message of Microsoft's sample, and prints how long the reply took instead of
    /// the reply. Stdin is not read. To the server it is a message like any other: with --exec, it runs the
    /// command.
    ///
    /// A busy pipe is tried again until --connect-timeout. On Linux, a server at its --max-instances still queues
    /// one client before the pipe is busy: a ping in that queue gets no reply and exits 6.
    #[arg(long)]
    pub(crate) ping: bool,

    /// Wait for a server that is not there yet
    #[arg(long)]
    pub(crate) wait: bool,

    /// Longest message in either direction [default: 64KiB, or the engine's maximum if that is less]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    max_message_size: Option<usize>,

    /// How long to wait for each reply, or none [default: none; with --ping: 5s]
    #[arg(
        long,
        value_name = "TIME",
        default_value = "none",
        default_value_if("ping", "true", PING_TIMEOUT),
        hide_default_value = true
    )]
    timeout: TimeLimit,

    /// What to send, each as one message
    #[arg(value_name = "MESSAGE", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) messages: Vec<String>,
}

/// A health check has to end. Docker's, for one, is killed after 30 s by default.
const PING_TIMEOUT: &str = "5s";

const AFTER_HELP: &str = "\
Sizes are in bytes, or have a unit: 4096, 64KiB, 1MB. Times have a unit: 500ms, 10s, 5min. For no
limit give none.
Exit codes: 0 when every message was replied to, 1 for a failure, 2 for bad usage. With --ping also
3 when nobody serves the pipe, 4 when it is busy, 5 when access is denied or the server is not
trusted, and 6 when there is no reply.";

impl Options {
    /// The longest line of stdin that can be a message, in bytes.
    pub(crate) fn longest_line(&self) -> usize {
        let bytes = self.max_message_size.unwrap_or(defaults::MAX_MESSAGE_SIZE);
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

    /// The connection's options. Options that were not given keep the library's default.
    pub(crate) fn client(&self) -> ClientOptions {
        let options = ClientOptions::new();
        #[cfg(windows)]
        let options = options.allow_remote(self.allow_remote);
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
}
