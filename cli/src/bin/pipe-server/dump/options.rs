//! The options of a dump.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pipe_server_cli::values::{self, SizeLimit};

/// The options of `--dump`.
#[derive(Args, Debug)]
#[command(next_help_heading = "Dump")]
pub(crate) struct DumpOptions {
    /// Append each message in both directions to FILE, or write it to stdout with -
    ///
    /// A line has the time, the number of the connection, > for a message of the client or < for
    /// one of the server, its length and its bytes. A message of the client is written when the
    /// server takes it, and one of the server before it is sent. Messages can be secret: a new
    /// FILE is readable for this user alone (on Windows the directory decides), and one that
    /// others own or may read is refused. On Linux it must be where --log-file may be.
    ///
    /// Clients never wait for it. What it can't take in time is dropped, and a line says how many
    /// messages are missing there. docs/debugging.md shows how to use it, and how pipe-client
    /// --replay sends the same messages again.
    #[arg(long, value_name = "FILE", value_parser = values::path())]
    pub(crate) dump: Option<PathBuf>,

    /// Form of the dump
    ///
    /// The fields of an object of JSON are time, connection, number (of the message in its
    /// connection, in both directions, from 1), from (client or server), bytes (the length), and
    /// text or, if the message is not UTF-8, hex. With truncated it is only the beginning
    /// (--dump-bytes). An object with lost says how many messages are missing.
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        default_value = "text",
        requires = "dump"
    )]
    pub(crate) dump_format: DumpFormat,

    /// Longest part of a message that is written, or none for all of it
    #[arg(long, value_name = "SIZE", default_value = "64KiB", requires = "dump")]
    pub(crate) dump_bytes: SizeLimit,

    /// Longest FILE, or none for no limit
    ///
    /// Before a line that does not fit, FILE is renamed to FILE.1, which replaces the one before,
    /// and begun anew.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", requires = "dump")]
    pub(crate) dump_size: SizeLimit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DumpFormat {
    /// Bytes that are UTF-8 as text, with control characters escaped, and others as \xff
    Text,
    /// Bytes in hexadecimal
    Hex,
    /// One JSON object a line, for pipe-client --replay
    Json,
}
