//! `pipe-bench`: loads a message pipe and measures its server.

use std::process::ExitCode;

use clap::Parser;

use crate::{options::Options, pipe::Pipe};

mod bench;
mod conversation;
#[path = "../shared/exit.rs"]
mod exit;
mod idle;
mod memory;
mod options;
mod pipe;
mod progress;
mod report;
mod run;
#[path = "../shared/runtime.rs"]
mod runtime;
mod transport;
#[path = "../shared/values.rs"]
mod values;
mod visits;

fn main() -> ExitCode {
    let options = Options::parse();
    match bench::run(&options, Pipe::new(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report("pipe-bench"),
    }
}
