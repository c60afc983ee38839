//! The reasons why a server stops serving a client.

use std::time::Duration;

use crate::{
    error::{BoxError, RecvError, SendError},
    handler::Rejection,
    telemetry::Reason,
};

/// The reason why a connection is closed before the client ends the conversation.
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
    #[error("the handler ended the connection")]
    Ended(#[source] BoxError),
    #[error(transparent)]
    Rejected(Rejection),
    #[error("the client was refused (on_connect)")]
    Refused(#[source] BoxError),
    #[error("the client is not authorized (authorize)")]
    NotAuthorized(#[source] BoxError),
    #[error("the client's user has {0} connections already (max_connections_per_user)")]
    TooManyConnections(usize),
    #[error("{0} took longer than {1:?} (handler_timeout)")]
    ConnectTimeout(&'static str, Duration),
    #[error("the handler took longer than {0:?} (handler_timeout)")]
    HandlerTimeout(Duration),
    #[error("the client sent nothing for {0:?} (idle_timeout)")]
    IdleTimeout(Duration),
    #[error("the client did not read its reply for {0:?} (write_timeout)")]
    WriteTimeout(Duration),
    #[error("the connection's code failed")]
    Code(#[source] BoxError),
    #[error("the connection's code panicked: {0}")]
    CodePanic(String),
    #[error("the client left before its reply was ready")]
    Disconnected,
    #[error("receiving a request failed")]
    Recv(#[from] RecvError),
    #[error("sending the reply failed")]
    Send(#[source] SendError),
}

impl Failure {
    /// Converts an error returned by a handler.
    pub(super) fn handler(error: BoxError) -> Self {
        match error.downcast() {
            Ok(rejection) => Self::Rejected(*rejection),
            Err(error) => Self::Handler(error),
        }
    }

    /// Returns whether earlier replies can still be sent.
    pub(super) fn leaves_replies(&self) -> bool {
        !matches!(self, Self::WriteTimeout(_) | Self::Send(_))
    }

    /// Returns whether the client was refused.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::NotAuthorized(_)
                | Self::TooManyConnections(_)
                | Self::ConnectTimeout(..)
        )
    }

    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Handler(_) => Reason::Handler,
            Self::Panic(_) | Self::CodePanic(_) => Reason::Panic,
            Self::EmptyReply => Reason::EmptyReply,
            Self::Reply(_) => Reason::ReplyTooLong,
            Self::Ended(_) => Reason::Ended,
            Self::Rejected(_) => Reason::Rejected,
            Self::Refused(_) => Reason::Refused,
            Self::NotAuthorized(_) => Reason::NotAuthorized,
            Self::TooManyConnections(_) => Reason::TooManyConnections,
            Self::ConnectTimeout(..) => Reason::ConnectTimeout,
            Self::HandlerTimeout(_) => Reason::HandlerTimeout,
            Self::IdleTimeout(_) => Reason::IdleTimeout,
            Self::WriteTimeout(_) => Reason::WriteTimeout,
            Self::Code(_) => Reason::Code,
            Self::Disconnected | Self::Send(SendError::Closed) => Reason::Disconnected,
            Self::Recv(RecvError::TooLong { .. }) => Reason::RequestTooLong,
            Self::Recv(RecvError::Incomplete) => Reason::RequestIncomplete,
            Self::Recv(RecvError::Io(_)) => Reason::Receive,
            Self::Send(_) => Reason::Send,
        }
    }
}
