//! `pipe-client`: sends messages to a pipe's server and prints its replies.

use std::{io, process::ExitCode, time::Instant};

use clap::Parser;
use pipe_server::ConnectError;
use pipe_server_cli::{
    exit::{self, Failure},
    runtime,
};
use tokio::runtime::Builder;

use crate::{conversation::Conversation, messages::Messages, options::Options};

mod conversation;
mod messages;
mod options;
mod ping;

fn main() -> ExitCode {
    let ended = Options::parse()
        .with_system_name()
        .and_then(|options| runtime::run(Builder::new_current_thread(), cfg!(unix), run(options)));
    match ended.and_then(|ended| ended) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report("pipe-client"),
    }
}

async fn run(options: Options) -> Result<(), Failure> {
    let connected = options.client().connect(&options.pipe_name).await;
    let client = connected.map_err(|error| connect_failure(error, &options))?;
    let mut conversation = Conversation::new(client, &options);
    let mut messages = Messages::new(&options);
    while let Some(message) = messages.next().await? {
        let sent = Instant::now();
        let reply = conversation.exchange(&message).await?;
        let line = match options.ping {
            true => format!("{} replied in {:?}", conversation.address(), sent.elapsed()),
            false => reply,
        };
        match conversation::print(&line) {
            // The reader of the replies has exited, as in `pipe-client | head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(Failure::new(format!("can't write to stdout: {error}"))),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn connect_failure(error: ConnectError, options: &Options) -> Failure {
    let code = match options.ping {
        true => ping::connect_code(&error),
        false => None,
    };
    let failure = match error {
        ConnectError::Option {
            option, problem, ..
        } => Failure::usage(format!("--{} {problem}", option.replace('_', "-"))),
        ConnectError::Name(error) => Failure::usage(error.to_string()),
        ConnectError::NotFound { .. } if !options.wait => {
            Failure::new(format!("{error}, or wait for it with --wait"))
        }
        other => exit::connect_failure(&other),
    };
    match code {
        Some(code) => failure.with_code(code),
        None => failure,
    }
}
