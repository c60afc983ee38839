//! The transport between a client and its server.
//!
//! Here it is a message pipe. The comparisons in `comparison/` use other transports, so that all
//! are loaded and measured by the same code.

use std::future::Future;

use pipe_server::Bytes;

use crate::exit::Failure;

/// Makes connections.
pub trait Transport: Clone + Send + Sync + 'static {
    type Sender: Sender;
    type Receiver: Receiver;

    /// Whether it needs Tokio's I/O driver.
    const IO_DRIVER: bool;

    fn connect(
        &self,
    ) -> impl Future<Output = Result<(Self::Sender, Self::Receiver), Failure>> + Send;

    /// What the clients connect to, for error messages.
    fn address(&self) -> &str;
}

/// The sending half of a connection. An error is a text without a full stop.
pub trait Sender: Send + 'static {
    fn send(&mut self, message: Bytes) -> impl Future<Output = Result<(), String>> + Send;
}

/// The receiving half of a connection. An error is a text without a full stop.
pub trait Receiver: Send + 'static {
    /// The next reply, or `None` once the server has closed. Cancel safe.
    fn recv(&mut self) -> impl Future<Output = Result<Option<Bytes>, String>> + Send;
}
