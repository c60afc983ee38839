//! What the server answers.

use std::{future::pending, sync::Arc};

use pipe_server::{BoxError, Handler, Reply, Request};
use pipe_server_cli::text::{Encoding, Form};

#[cfg(feature = "nats")]
use crate::forward::nats::Forward;
use crate::{
    capacity::Capacity,
    exec::{ClientCommand, Exec, Framing},
    options::{ExecMode, Options},
};

/// The sample's answer (*Multithreaded Pipe Server*).
const DEFAULT_REPLY: &str = "default answer from server";

/// One of the ways to answer.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Always the same text.
    Text { text: String, encoding: Encoding },
    /// The request.
    Echo,
    /// What a command prints that is started for the request.
    Exec(Exec),
    /// What a command prints that is started for the client.
    ExecForClient(ClientCommand),
    /// What a worker replies through NATS.
    #[cfg(feature = "nats")]
    Forward(Forward),
}

impl Answer {
    /// The one that the user has chosen; the sample's without a choice.
    pub(crate) fn new(options: &Options, capacity: &Capacity, max_message_size: usize) -> Self {
        let chosen = &options.answer;
        if let Some(command) = &chosen.exec {
            let command = capacity.command(command);
            let exec = Exec::new(
                command,
                (capacity.commands, capacity.commands_per_user()),
                max_message_size,
                chosen.trim_newline,
            );
            let framing = match chosen.exec_mode {
                ExecMode::Request => return Self::Exec(exec),
                ExecMode::Lines => Framing::Lines,
                ExecMode::Frames => Framing::Frames,
            };
            return Self::ExecForClient(ClientCommand::new(Arc::new(exec), framing));
        }
        if chosen.echo {
            return Self::Echo;
        }
        let text = chosen
            .reply
            .clone()
            .unwrap_or_else(|| DEFAULT_REPLY.to_owned());
        Self::Text {
            text,
            encoding: chosen.encoding,
        }
    }

    /// The reply to one request.
    pub(crate) async fn to(&self, request: Request) -> Result<Reply, BoxError> {
        match self {
            Self::Text { text, encoding } => {
                Ok(Form::of(request.bytes(), *encoding).encode(text).into())
            }
            Self::Echo => Ok(request.into_bytes().into()),
            // Boxed: every connection has room for the largest of these futures.
            Self::Exec(exec) => Ok(Box::pin(exec.run(&request)).await?.into()),
            Self::ExecForClient(command) => Ok(Box::pin(command.run(&request)).await?.into()),
            #[cfg(feature = "nats")]
            Self::Forward(forward) => Ok(Box::pin(forward.run(request)).await?.into()),
        }
    }
}

impl Handler for Answer {
    async fn call(&self, request: Request) -> Result<Reply, BoxError> {
        self.to(request).await
    }

    fn for_connection(self: &Arc<Self>) -> Arc<Self> {
        match &**self {
            Self::ExecForClient(command) => Arc::new(Self::ExecForClient(command.for_another())),
            _ => Arc::clone(self),
        }
    }

    async fn ended(&self) -> BoxError {
        match self {
            Self::ExecForClient(command) => Box::pin(command.ended()).await.into(),
            _ => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use pipe_server::Peer;

    use super::*;

    async fn default_answer_to(request: &'static [u8]) -> Reply {
        let answer = Answer::Text {
            text: DEFAULT_REPLY.to_owned(),
            encoding: Encoding::Auto,
        };
        let peer = Peer::current().expect("the system knows this process");
        answer
            .to(Request::new(request, peer))
            .await
            .expect("a text can always be answered")
    }

    #[tokio::test]
    async fn a_plain_request_gets_a_plain_answer() {
        assert_eq!(default_answer_to(b"hello").await, DEFAULT_REPLY.into());
    }

    #[tokio::test]
    async fn both_builds_of_the_samples_client_get_their_own_encoding_and_terminator() {
        let narrow = b"default answer from server\0".to_vec();
        let wide: Vec<u8> = narrow.iter().flat_map(|&byte| [byte, 0]).collect();
        assert_eq!(default_answer_to(b"hello\0").await, narrow.into());
        assert_eq!(default_answer_to(b"h\0e\0l\0l\0o\0\0\0").await, wide.into());
    }
}
