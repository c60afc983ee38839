//! `pipe-bench` with other carriers than a message pipe: `contender-load WIRE [OPTION]...`. Everything but the
//! carrier is pipe-bench's own code.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::{exit::Failure, options::Options};

#[path = "../../../../src/bin/pipe-bench/bench.rs"]
mod bench;
#[path = "../../../../src/bin/pipe-bench/conversation.rs"]
mod conversation;
#[path = "../../../../src/bin/shared/exit.rs"]
mod exit;
mod framed;
#[path = "../../../../src/bin/pipe-bench/idle.rs"]
mod idle;
#[path = "../../../../src/bin/pipe-bench/memory.rs"]
mod memory;
#[cfg(feature = "nng")]
mod nng;
#[path = "../../../../src/bin/pipe-bench/options.rs"]
mod options;
#[path = "../../../../src/bin/pipe-bench/progress.rs"]
mod progress;
#[path = "../../../../src/bin/pipe-bench/report.rs"]
mod report;
#[path = "../../../../src/bin/pipe-bench/run.rs"]
mod run;
#[path = "../../../../src/bin/shared/runtime.rs"]
mod runtime;
#[path = "../../../../src/bin/pipe-bench/transport.rs"]
mod transport;
#[path = "../../../../src/bin/shared/values.rs"]
mod values;
#[path = "../../../../src/bin/pipe-bench/visits.rs"]
mod visits;
#[cfg(feature = "zeromq")]
mod zeromq;

/// pipe-bench for servers that do not speak on a message pipe.
#[derive(Debug, Parser)]
struct Arguments {
    /// What carries the messages
    #[arg(value_enum)]
    wire: Wire,

    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Wire {
    /// A byte stream with a length before each message: a stream socket, or a pipe in byte mode
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
        Wire::Framed => bench::run(options, framed::Stream::new(options)),
        #[cfg(feature = "zeromq")]
        Wire::Zeromq => bench::run(options, zeromq::Dealer::new(options)),
        #[cfg(feature = "nng")]
        Wire::Nng => bench::run(options, nng::Requester::new(options)),
    }
}
