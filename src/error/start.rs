//! The error of starting a server for a client.

use std::{fmt, io, process::ExitStatus, time::Duration};

/// An error returned when the server that a client needs can't be started
/// ([`ClientOptions::start_server`](crate::ClientOptions::start_server)).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The system can't start the command.
    #[error(
        "nobody serves {address}, and its server can't be started with `{command}`: correct the command, or \
         start the server yourself"
    )]
    #[non_exhaustive]
    Spawn {
        /// The pipe's address.
        address: String,
        /// The program and its arguments.
        command: String,
        /// The system's error.
        source: io::Error,
    },
    /// The connect timeout expired before the command could be started.
    #[error(
        "nobody serves {address}, and no time was left to start its server with `{command}`: allow more time \
         (connect_timeout), or start the server yourself"
    )]
    #[non_exhaustive]
    NoTime {
        /// The pipe's address.
        address: String,
        /// The program and its arguments.
        command: String,
    },
    /// The command ended before anybody served the pipe.
    #[error(
        "nobody serves {address}: `{command}`, which was started to serve it, ended ({status}){}",
        Stderr(stderr)
    )]
    #[non_exhaustive]
    Ended {
        /// The pipe's address.
        address: String,
        /// The program and its arguments.
        command: String,
        /// The exit status of the command.
        status: ExitStatus,
        /// The last lines that it wrote to stderr, up to 4 KiB.
        stderr: String,
    },
    /// Nobody served the pipe within the connect timeout. The command is still running, or has
    /// ended successfully.
    #[error(
        "nobody serves {address} {waited:.1?} after its server was started with `{command}`: have it serve \
         that name, or allow more time (connect_timeout){}",
        Stderr(stderr)
    )]
    #[non_exhaustive]
    TimedOut {
        /// The pipe's address.
        address: String,
        /// The program and its arguments.
        command: String,
        /// The time that this client waited.
        waited: Duration,
        /// The last lines that it has written to stderr, up to 4 KiB.
        stderr: String,
    },
}

impl StartError {
    pub(super) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Spawn { source, .. } => source.kind(),
            Self::Ended { .. } => io::ErrorKind::NotFound,
            Self::NoTime { .. } | Self::TimedOut { .. } => io::ErrorKind::TimedOut,
        }
    }
}

/// Another program's output, on one line of an error and harmless to a terminal.
struct Stderr<'a>(&'a str);

impl fmt::Display for Stderr<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.lines().map(str::trim);
        for (index, line) in lines.filter(|line| !line.is_empty()).enumerate() {
            formatter.write_str(if index == 0 { "; its stderr: " } else { " / " })?;
            for character in line.chars() {
                match character.is_control() {
                    true => write!(formatter, "{}", character.escape_default())?,
                    false => write!(formatter, "{character}")?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_a_command_is_on_one_line_without_control_characters() {
        let shown = |text| Stderr(text).to_string();
        assert_eq!(shown(" \r\n\n"), "");
        let text = "first\r\n\n \x1b[2Jsecond\n";
        assert_eq!(shown(text), r"; its stderr: first / \u{1b}[2Jsecond");
    }
}
