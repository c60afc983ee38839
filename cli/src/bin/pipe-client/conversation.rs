//! Requests and replies.

use pipe_server::{Bytes, CallError, Client, RecvError, SendError};
use pipe_server_cli::exit::{Failure, chain};

use crate::{options::Options, ping::NOT_ANSWERING};

/// A connection to the server.
#[derive(Debug)]
pub(crate) struct Conversation {
    client: Client,
    address: String,
    ping: bool,
}

impl Conversation {
    /// With the server at `address`.
    pub(crate) fn new(client: Client, options: &Options, address: String) -> Self {
        Self {
            client,
            address,
            ping: options.ping,
        }
    }

    /// Sends a message and returns its reply.
    pub(crate) async fn exchange(&mut self, message: Bytes) -> Result<Bytes, Failure> {
        match self.client.call(message).await {
            Ok(reply) => Ok(reply),
            Err(CallError::TimedOut { after, .. }) => Err(self.no_reply(format!(
                "no reply from {} within {}: see --timeout",
                self.address,
                humantime::format_duration(after)
            ))),
            Err(error) => {
                let problem = format!("no reply from {}: {}", self.address, chain(&error));
                Err(match error {
                    // The server may still answer other clients.
                    CallError::Send(SendError::TooLong { .. })
                    | CallError::Recv(RecvError::TooLong { .. }) => {
                        Failure::new(format!("{problem}: see --max-message-size"))
                    }
                    _ => self.no_reply(problem),
                })
            }
        }
    }

    fn no_reply(&self, problem: String) -> Failure {
        let failure = Failure::new(problem);
        match self.ping {
            true => failure.with_code(NOT_ANSWERING),
            false => failure,
        }
    }
}
