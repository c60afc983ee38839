//! `pipe-bench`: loads a message pipe and measures its server.

use std::process::ExitCode;

use clap::Parser;
use pipe_server_cli::load::{self, Options, Pipe};

fn main() -> ExitCode {
    let options = Options::parse();
    match load::run(&options, Pipe::new(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report("pipe-bench"),
    }
}
