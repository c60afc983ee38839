//! Making one connection of its halves again.

use super::{Connection, RecvHalf, SendHalf};

impl RecvHalf {
    /// Makes one connection of both of its halves again, in the state that they are in: messages
    /// that were not sent completely, a finished or closed direction and time limits remain.
    ///
    /// # Errors
    ///
    /// Returns both halves if they belong to different connections.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use pipe_server::{Client, PipeListener};
    ///
    /// let name = format!("reunite-example-{}", std::process::id());
    /// let mut listener = PipeListener::bind(&name)?;
    /// let mut client = Client::connect(&name).await?;
    /// let (receiver, mut sender) = listener.accept().await?.into_split();
    ///
    /// let sending = tokio::spawn(async move { sender.send("hello").await.map(|()| sender) });
    /// let mut connection = receiver.reunite(sending.await??)?;
    /// connection.send("world").await?;
    /// assert_eq!(client.recv().await?.unwrap(), "hello");
    /// assert_eq!(client.recv().await?.unwrap(), "world");
    /// # Ok(()) }
    /// ```
    #[allow(
        clippy::result_large_err,
        reason = "the halves in the error are as large as the connection"
    )]
    pub fn reunite(self, sender: SendHalf) -> Result<Connection, ReuniteError> {
        match self.is_half_of(&sender) {
            true => Ok(Connection {
                receiver: self,
                sender,
            }),
            false => Err(ReuniteError(self, sender)),
        }
    }
}

/// An error returned when the halves given to [`RecvHalf::reunite`] belong to different
/// connections. It has both of them.
#[derive(Debug, thiserror::Error)]
#[error("the halves belong to different connections: reunite those of one `into_split`")]
pub struct ReuniteError(pub RecvHalf, pub SendHalf);
