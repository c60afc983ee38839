//! `pipe-bench`: loads a message pipe and measures its server.

use std::process::ExitCode;

use pipe_server_cli::{
    command_line,
    exit::program,
    load::{self, Options, Pipe},
};

fn main() -> ExitCode {
    program("pipe-bench", || {
        let options: Options = command_line::parse()?;
        load::run(&options, Pipe::new(&options))
    })
}
