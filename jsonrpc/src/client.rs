//! The transport of a jsonrpsee client.

use jsonrpsee_core::client::{
    Client, ClientBuilder, ReceivedMessage, TransportReceiverT, TransportSenderT,
};
use pipe_server::{ConnectError, NameError, PipeName, RecvError, RecvHalf, SendError, SendHalf};
use thiserror::Error;

/// Connects a client of jsonrpsee, with its default options, to the pipe `name`.
///
/// For other options, of the pipe or of the client, see [`transport`].
///
/// # Errors
///
/// Same as [`pipe_server::ClientOptions::connect`].
///
/// # Cancel safety
///
/// Cancel safe, as [`pipe_server::ClientOptions::connect`].
pub async fn connect(
    name: impl TryInto<PipeName, Error: Into<NameError>>,
) -> Result<Client, ConnectError> {
    let (sender, receiver) = transport(pipe_server::Client::connect(name).await?);
    Ok(ClientBuilder::default().build_with_tokio(sender, receiver))
}

/// Splits a connected client into the halves of a transport for jsonrpsee's `ClientBuilder`.
///
/// A request longer than [`max_message_size`](pipe_server::ClientOptions::max_message_size), and a
/// message from the server that is longer, end the jsonrpsee client with a transport error.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use jsonrpsee::core::client::ClientBuilder;
/// use pipe_server::ClientOptions;
///
/// let pipe = ClientOptions::new().wait_for_server(true).connect("mynamedpipe").await?;
/// let (sender, receiver) = pipe_server_jsonrpc::transport(pipe);
/// let client = ClientBuilder::default()
///     .request_timeout(Duration::from_secs(5))
///     .build_with_tokio(sender, receiver);
/// # Ok(()) }
/// ```
#[must_use]
pub fn transport(client: pipe_server::Client) -> (PipeSender, PipeReceiver) {
    let (receiver, sender) = client.into_split();
    (PipeSender(sender), PipeReceiver(receiver))
}

/// The sending half of a client's transport, from [`transport`].
#[derive(Debug)]
pub struct PipeSender(SendHalf);

impl TransportSenderT for PipeSender {
    type Error = SendError;

    async fn send(&mut self, message: String) -> Result<(), SendError> {
        self.0.send(message).await
    }

    async fn close(&mut self) -> Result<(), SendError> {
        self.0.finish().await
    }
}

/// The receiving half of a client's transport, from [`transport`].
#[derive(Debug)]
pub struct PipeReceiver(RecvHalf);

impl TransportReceiverT for PipeReceiver {
    type Error = ReceiveError;

    async fn receive(&mut self) -> Result<ReceivedMessage, ReceiveError> {
        let message = self.0.recv().await?.ok_or(ReceiveError::Closed)?;
        Ok(ReceivedMessage::Bytes(message.into()))
    }
}

/// The error of a [`PipeReceiver`], which ends its client.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The server has closed the connection, or has shut down.
    #[error("the server has closed the pipe")]
    Closed,
    /// Receiving has failed.
    #[error("receiving from the pipe failed")]
    Failed(#[from] RecvError),
}
