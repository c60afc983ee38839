//! The command-line options.

use std::{num::NonZero, str::FromStr, thread, time::Duration};

use clap::{Parser, ValueEnum, value_parser};
use pipe_server::{PipeName, Trust, defaults};

use crate::{
    exit::Failure,
    values::{self, TimeLimit, Wait},
};

/// Long enough to average out the noise of one second.
const DEFAULT_DURATION: Duration = Duration::from_secs(5);

/// Loads a message pipe and prints how fast its server answers.
///
/// Each client has its own connection. It sends each request as one message and takes the messages
/// that come back for its replies, in order. Any program may serve the pipe.
#[derive(Debug, Parser)]
#[command(name = "pipe-bench", version, after_help = AFTER_HELP)]
pub struct Options {
    /// Name of the pipe, or its full path
    #[arg(long, value_name = "NAME", default_value = "mynamedpipe", value_parser = values::name())]
    pub pipe_name: PipeName,

    /// Connect, make one request and close, over and over
    #[arg(long)]
    pub(crate) connect_rate: bool,

    /// Hold N connections, each of which has made one request
    #[arg(long, value_name = "N", conflicts_with_all = ["connect_rate", "requests"], value_parser = value_parser!(u32).range(1..))]
    pub(crate) idle: Option<u32>,

    /// Process id of the server, to report the memory that idle connections take there
    #[arg(long, value_name = "PID", requires = "idle")]
    pub(crate) pid: Option<u32>,

    /// Number of concurrent clients
    #[arg(long, value_name = "C", default_value = "8", value_parser = value_parser!(u32).range(1..))]
    pub(crate) clients: u32,

    /// Total number of requests, divided evenly among the clients; with --connect-rate, of
    /// connections
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = value_parser!(u64).range(1..))]
    requests: Option<u64>,

    /// How long to load instead, or to hold idle connections [default: 5s; --idle: until Ctrl-C]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) duration: Option<Duration>,

    /// Length of each request
    #[arg(long, value_name = "SIZE", default_value = "64", value_parser = values::size)]
    pub(crate) size: usize,

    /// How many requests each client has in flight; 1 waits for each reply
    #[arg(long, value_name = "D", default_value = "1", value_parser = value_parser!(u32).range(1..))]
    pub depth: u32,

    /// How long a client waits after a reply before its next request
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = values::duration)]
    pub(crate) pause: Duration,

    /// Load before measuring: a number of requests per client, or a time
    #[arg(long, value_name = "N|TIME", default_value = "100")]
    pub(crate) warm_up: Limit,

    /// What to check in every reply
    #[arg(long, value_name = "WHAT", value_enum)]
    pub(crate) verify: Option<Verify>,

    /// How long to wait for a busy pipe, or none; 0s tries once
    #[arg(long, value_name = "TIME", default_value = values::text(defaults::CONNECT_TIMEOUT))]
    pub(crate) connect_timeout: Wait,

    /// Which servers to trust: system, current-user, anyone or a user
    ///
    /// system is this user and the system itself: root on Linux, SYSTEM and Administrators on
    /// Windows. A user is a number such as 1000 on Linux, and a SID such as S-1-5-19 on
    /// Windows. All other servers are refused before anything is sent to them.
    #[arg(long, value_name = "WHOM", default_value_t)]
    pub(crate) trust: Trust,

    /// Connect to a pipe on another machine, as in \\HOST\pipe\NAME
    ///
    /// That sends this user's credentials to HOST, whoever HOST is. Without this flag such a name
    /// is refused.
    #[cfg(windows)]
    #[arg(long)]
    pub(crate) allow_remote: bool,

    /// Give up if no client gets a reply for this long; none waits forever
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) timeout: TimeLimit,

    /// Number of threads that the clients share [default: one per core]
    #[arg(long, value_name = "T", value_parser = value_parser!(u16).range(1..))]
    threads: Option<u16>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

const AFTER_HELP: &str = "\
Sizes are in bytes, or have a unit: 4096, 64KiB, 1MB. Times have a unit: 500ms, 10s, 5min. For no \
limit give none.
messages/s counts requests that were answered. A latency is the time from the start of sending a \
request to its reply.
Exit codes: 0 when every request was answered, 1 for a failure, 2 for bad usage.";

impl Options {
    /// Rejects options that conflict.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if !self.pause.is_zero() && self.depth > 1 {
            return Err(Failure::usage(
                "--pause needs --depth 1: replies that arrive during a pause would be read late"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// How much to measure.
    pub(crate) fn limit(&self) -> Limit {
        match self.requests {
            Some(requests) => Limit::Requests(requests),
            None => Limit::Time(self.duration.unwrap_or(DEFAULT_DURATION)),
        }
    }

    pub(crate) fn threads(&self) -> usize {
        match self.threads {
            Some(threads) => threads.into(),
            None => thread::available_parallelism().map_or(1, NonZero::get),
        }
    }
}

/// How much to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Requests(u64),
    Time(Duration),
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(requests) = text.parse() {
            return Ok(Self::Requests(requests));
        }
        let time = values::duration(text).map_err(|error| format!("{error}, or a number"))?;
        Ok(Self::Time(time))
    }
}

/// What to check in replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Verify {
    /// Each reply equals its request, byte for byte
    Echo,
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
    fn a_warm_up_is_a_number_or_a_time() {
        assert_eq!("10".parse(), Ok(Limit::Requests(10)));
        assert_eq!("0".parse(), Ok(Limit::Requests(0)));
        assert_eq!("2s".parse(), Ok(Limit::Time(Duration::from_secs(2))));
        assert!("soon".parse::<Limit>().is_err());
    }
}
