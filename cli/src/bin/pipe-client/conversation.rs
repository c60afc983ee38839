//! Requests and replies.

use std::{future::pending, time::Duration};

use pipe_server::{Bytes, CallError, Client, RecvError, SendError};
use pipe_server_cli::exit::{Failure, chain};

use crate::codes;

/// A connection to the server.
#[derive(Debug)]
pub(crate) struct Conversation {
    client: Client,
    address: String,
    /// A message that came before the next request was sent, and counts as its reply.
    early: Option<Bytes>,
}

impl Conversation {
    /// With the server at `address`.
    pub(crate) fn new(client: Client, address: String) -> Self {
        Self {
            client,
            address,
            early: None,
        }
    }

    /// Sends a message and returns its reply.
    pub(crate) async fn exchange(&mut self, message: Bytes) -> Result<Bytes, CallError> {
        match self.early.take() {
            None => self.client.call(message).await,
            Some(reply) => {
                self.client.send(message).await?;
                Ok(reply)
            }
        }
    }

    /// Waits until the server leaves, and describes that.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no message is lost.
    pub(crate) async fn end(&mut self) -> Failure {
        if self.early.is_none() {
            match self.unsolicited().await {
                Ok(message) => self.early = Some(message),
                Err(failure) => return failure,
            }
        }
        // Further messages stay in the pipe.
        pending().await
    }

    /// The next message of the server, which nobody has asked for. Fails once it has closed the
    /// connection.
    ///
    /// Cancel safe.
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
            return self.too_late(after);
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

    /// The failure of a reply that has not come within `limit`.
    pub(crate) fn too_late(&self, limit: Duration) -> Failure {
        no_reply(format!(
            "no reply from {} within {}: see --timeout",
            self.address,
            humantime::format_duration(limit)
        ))
    }
}

fn no_reply(problem: String) -> Failure {
    Failure::new(problem).with_code(codes::NO_REPLY)
}
