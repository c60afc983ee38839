//! Requests and replies.

use pipe_server::{Bytes, CallError, Client, RecvError, SendError};
use pipe_server_cli::exit::{Failure, chain};

use crate::codes;

/// A connection to the server.
#[derive(Debug)]
pub(crate) struct Conversation {
    client: Client,
    address: String,
}

impl Conversation {
    /// With the server at `address`.
    pub(crate) fn new(client: Client, address: String) -> Self {
        Self { client, address }
    }

    /// Sends a message and returns its reply.
    pub(crate) async fn exchange(&mut self, message: Bytes) -> Result<Bytes, Failure> {
        match self.client.call(message).await {
            Ok(reply) => Ok(reply),
            Err(CallError::TimedOut { after, .. }) => Err(no_reply(format!(
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
                    _ => no_reply(problem),
                })
            }
        }
    }
}

fn no_reply(problem: String) -> Failure {
    Failure::new(problem).with_code(codes::NO_REPLY)
}
