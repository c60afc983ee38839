//! `pipe-bench` over other transports than a message pipe: `contender-load WIRE [OPTION]...`. Everything but the
//! transport is pipe-bench's own code.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use pipe_server_cli::{
    exit::Failure,
    load::{self, Options},
};

mod framed;
#[cfg(feature = "nng")]
mod nng;
#[cfg(feature = "zeromq")]
mod zeromq;

/// pipe-bench for servers that do not use a message pipe.
#[derive(Debug, Parser)]
struct Arguments {
    /// Transport of the messages
    #[arg(value_enum)]
    wire: Wire,

    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Wire {
    /// A byte stream with length-prefixed messages: a stream socket, or a pipe in byte mode
    Framed,
    /// ZeroMQ over a Unix socket
    #[cfg(feature = "zeromq")]
    Zeromq,
    /// nng over a Unix socket
    #[cfg(feature = "nng")]
    Nng,
}

fn main() -> ExitCode {
    let Arguments { wire, options } = Arguments::parse();
    match run(wire, &options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report("contender-load"),
    }
}

fn run(wire: Wire, options: &Options) -> Result<(), Failure> {
    match wire {
        Wire::Framed => load::run(options, framed::Stream::new(options)),
        #[cfg(feature = "zeromq")]
        Wire::Zeromq => load::run(options, zeromq::Dealer::new(options)),
        #[cfg(feature = "nng")]
        Wire::Nng => load::run(options, nng::Requester::new(options)),
    }
}
