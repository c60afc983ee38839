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
    pub(crate) async fn exchange(&mut self, message: Bytes) -> Result<Bytes, CallError> {
        self.client.call(message).await
    }

    /// The next message of the server, which nobody has asked for. Fails once it has closed the
    /// connection.
    ///
    /// Cancel safe.
    #[cfg(feature = "interactive")]
    pub(crate) async fn unsolicited(&mut self) -> Result<Bytes, Failure> {
        match self.client.recv().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(no_reply(format!("{} closed the connection", self.address))),
            Err(error) => Err(self.failure(error.into())),
        }
    }

    /// Describes why there is no reply.
    pub(crate) fn failure(&self, error: CallError) -> Failure {
        if let CallError::TimedOut { after, .. } = error {
            return no_reply(format!(
                "no reply from {} within {}: see --timeout",
                self.address,
                humantime::format_duration(after)
            ));
        }
        let problem = format!("no reply from {}: {}", self.address, chain(&error));
        match error {
            // The server may still answer other clients.
            CallError::Send(SendError::TooLong { .. })
            | CallError::Recv(RecvError::TooLong { .. }) => {
                Failure::new(format!("{problem}: see --max-message-size"))
            }
            _ => no_reply(problem),
        }
    }
}

fn no_reply(problem: String) -> Failure {
    Failure::new(problem).with_code(codes::NO_REPLY)
}
