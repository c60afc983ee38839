//! `pipe-bench`: loads a message pipe and measures its server.

use std::process::ExitCode;

use pipe_server_cli::{
    command_line,
    load::{self, Options, Pipe},
};

fn main() -> ExitCode {
    let loaded =
        command_line::parse().and_then(|options: Options| load::run(&options, Pipe::new(&options)));
    match loaded {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report("pipe-bench"),
    }
}
