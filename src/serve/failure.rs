//! Why a client is no longer served.

use std::time::Duration;

use tracing::{debug, error, warn};

use crate::{
    error::{BoxError, Chain, RecvError, SendError},
    from_request::Rejection,
};

/// Why a client is no longer served, other than by its own wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the handler failed")]
    Handler(#[source] BoxError),
    #[error("the handler panicked: {0}")]
    Panic(String),
    #[error(
        "the handler returned an empty reply, which can't be sent since an empty message ends the \
         conversation: return Reply::none() to send no reply"
    )]
    EmptyReply,
    #[error("the handler's reply can't be sent")]
    Reply(#[source] SendError),
    #[error(transparent)]
    Rejected(Rejection),
    #[error("the client was refused (on_connect)")]
    Refused(#[source] BoxError),
    #[error("on_connect took longer than {0:?} (handler_timeout)")]
    ConnectTimeout(Duration),
    #[error("the handler took longer than {0:?} (handler_timeout)")]
    HandlerTimeout(Duration),
    #[error("the client sent nothing for {0:?} (idle_timeout)")]
    IdleTimeout(Duration),
    #[error("the client did not read its reply for {0:?} (write_timeout)")]
    WriteTimeout(Duration),
    #[error("the client left before its reply was ready")]
    Disconnected,
    #[error("receiving a request failed")]
    Recv(#[from] RecvError),
    #[error("sending the reply failed")]
    Send(#[source] SendError),
}

impl Failure {
    /// The error that a handler has returned.
    pub(super) fn handler(error: BoxError) -> Self {
        match error.downcast() {
            Ok(rejection) => Self::Rejected(*rejection),
            Err(error) => Self::Handler(error),
        }
    }

    /// Whether replies can still be sent.
    pub(super) fn leaves_replies(&self) -> bool {
        !matches!(self, Self::WriteTimeout(_) | Self::Send(_))
    }

    /// Logs which connection is closed and why: what the handler did wrong as an error, what the client or a
    /// limit did as a warning.
    pub(super) fn log(&self, connection: u64, requests: u64, replies: u64) {
        let reason = Chain(self);
        match self {
            Self::Handler(_) | Self::Panic(_) | Self::EmptyReply | Self::Reply(_) => error!(
                connection.id = connection,
                requests, replies, "closing the connection: {reason}"
            ),
            Self::Disconnected | Self::Send(SendError::Closed) => debug!(
                connection.id = connection,
                requests, replies, "closing the connection: {reason}"
            ),
            _ => warn!(
                connection.id = connection,
                requests, replies, "closing the connection: {reason}"
            ),
        }
    }
}
