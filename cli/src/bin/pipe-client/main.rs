//! `pipe-client`: sends messages to a pipe's server and prints its replies.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use pipe_server::{Bytes, ConnectError};
use pipe_server_cli::{
    command_line,
    exit::{self, Failure},
    runtime,
    streams::write_failure,
};
use tokio::{runtime::Builder, time::timeout};

use crate::{
    conversation::Conversation, messages::Messages, options::Options, replies::Replies, rpc::Call,
};

mod codes;
mod conversation;
#[cfg(feature = "interactive")]
mod interactive;
mod messages;
mod options;
mod replay;
mod replies;
mod rpc;

/// How long after the server has left the messages may still end. If both happen at the same time,
/// nothing has failed, but the thread that reads stdin may find it out later.
const END_OF_MESSAGES: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    exit::program("pipe-client", || {
        let parsed = command_line::parse_with_file()?;
        let client = run(Options::with_system_name(parsed.options)?);
        runtime::run(Builder::new_current_thread(), cfg!(unix), client)?
    })
}

async fn run(options: Options) -> Result<(), Failure> {
    if let Some(path) = &options.replay.replay {
        return replay::run(&options, path).await;
    }
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
    // Before connecting: both may fail.
    let rpc = Call::new(&options)?;
    let messages = Messages::new(&options)?;
    let address = options.pipe_name.to_path().display().to_string();
    let connected = options.client().connect(&options.pipe_name).await;
    let client = connected.map_err(|error| connect_failure(error, &options))?;
    let mut replies = Replies::new(&options, address.clone());
    let mut conversation = Conversation::new(client, address);
    if let Some(call) = rpc {
        return call.run(&mut conversation, &mut replies).await;
    }
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
    while let Some(message) = next_message(conversation, &mut messages).await? {
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

/// The next message. Fails if the server leaves while there is none.
async fn next_message(
    conversation: &mut Conversation,
    messages: &mut Messages,
) -> Result<Option<Bytes>, Failure> {
    tokio::select! {
        biased;
        message = messages.next() => message,
        failure = conversation.end() => match timeout(END_OF_MESSAGES, messages.next()).await {
            Ok(message) => message,
            Err(_) => Err(failure),
        }
    }
}

fn connect_failure(error: ConnectError, options: &Options) -> Failure {
    let code = codes::of_connecting(&error);
    let failure = match error {
        ConnectError::Option {
            option, problem, ..
        } => Failure::usage(format!("--{} {problem}", option.replace('_', "-"))),
        ConnectError::Name(error) => Failure::usage(error.to_string()),
        ConnectError::NotFound { .. } if !options.wait => {
            let origin = exit::origin_of_directory(&options.pipe_name);
            Failure::new(format!("{error}, or wait for it with --wait{origin}"))
        }
        other => exit::connect_failure(&other, &options.pipe_name),
    };
    match code {
        Some(code) => failure.with_code(code),
        None => failure,
    }
}
