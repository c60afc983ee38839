//! `pipe-client`: sends messages to a pipe's server and prints its replies.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::Instant,
};

use pipe_server::ConnectError;
use pipe_server_cli::{
    command_line,
    exit::{self, Failure},
    runtime,
};
use tokio::runtime::Builder;

use crate::{conversation::Conversation, messages::Messages, options::Options, replies::Replies};

mod codes;
mod conversation;
#[cfg(feature = "interactive")]
mod interactive;
mod messages;
mod options;
mod replies;

fn main() -> ExitCode {
    let ended = command_line::parse_with_file()
        .and_then(|parsed| Options::with_system_name(parsed.options))
        .and_then(|options| {
            let client = run(options);
            runtime::run(Builder::new_current_thread(), cfg!(unix), client)?
        });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report("pipe-client"),
    }
}

async fn run(options: Options) -> Result<(), Failure> {
    // Without a terminal there is nothing to edit lines at: they are read from stdin as always.
    let at_a_prompt =
        options.interactive && io::stdin().is_terminal() && io::stdout().is_terminal();
    #[cfg(not(feature = "interactive"))]
    if at_a_prompt {
        return Err(Failure::usage(
            "--interactive: this pipe-client was built without a prompt: build it with --features interactive"
                .to_owned(),
        ));
    }
    // Before connecting: it may fail.
    let messages = Messages::new(&options)?;
    let address = options.pipe_name.to_path().display().to_string();
    let connected = options.client().connect(&options.pipe_name).await;
    let client = connected.map_err(|error| connect_failure(error, &options))?;
    let mut replies = Replies::new(&options, address.clone());
    let mut conversation = Conversation::new(client, address);
    #[cfg(feature = "interactive")]
    if at_a_prompt {
        return interactive::converse(&mut conversation, &mut replies, &options).await;
    }
    exchange_all(&mut conversation, &mut replies, messages, options.repeat).await
}

async fn exchange_all(
    conversation: &mut Conversation,
    replies: &mut Replies,
    mut messages: Messages,
    repeat: u64,
) -> Result<(), Failure> {
    while let Some(message) = messages.next().await? {
        for _ in 0..repeat {
            let sent = Instant::now();
            let reply = conversation.exchange(message.clone()).await;
            let reply = reply.map_err(|error| conversation.failure(error))?;
            match replies.print(&reply, sent.elapsed()) {
                // The reader of the replies has exited, as in `pipe-client | head`.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                printed => printed.map_err(write_failure)?,
            }
        }
    }
    Ok(())
}

fn write_failure(error: io::Error) -> Failure {
    Failure::new(format!("can't write to stdout: {error}"))
}

fn connect_failure(error: ConnectError, options: &Options) -> Failure {
    let code = codes::of_connecting(&error);
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
