//! The error of a call of a shared client.

use std::{io, sync::Arc, time::Duration};

use super::{CallError, ConnectError, RecvError, SendError};

/// An error returned when a call of a [`SharedClient`](crate::SharedClient) gets no reply.
///
/// The variant says whether the request can be sent again: there are only these two. Its
/// [`kind`](Self::kind), which is also its source, says why the call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SharedCallError {
    /// The server has not executed the request: it was not sent, or the server shut down before it
    /// took it.
    #[error("the request was not executed")]
    NotExecuted(#[source] SharedCallErrorKind),
    /// The request may have been sent, so the server may have executed it.
    #[error("the request got no reply: the server may have executed it")]
    Unanswered(#[source] SharedCallErrorKind),
}

impl SharedCallError {
    pub(crate) fn new(may_be_executed: bool, kind: SharedCallErrorKind) -> Self {
        match may_be_executed {
            false => Self::NotExecuted(kind),
            true => Self::Unanswered(kind),
        }
    }

    /// Returns why the call failed.
    #[must_use]
    pub fn kind(&self) -> &SharedCallErrorKind {
        match self {
            Self::NotExecuted(kind) | Self::Unanswered(kind) => kind,
        }
    }

    /// Returns whether the server may have executed the request. If not, it can safely be sent
    /// again.
    #[must_use]
    pub fn may_be_executed(&self) -> bool {
        matches!(self, Self::Unanswered(_))
    }
}

impl From<SharedCallError> for io::Error {
    fn from(error: SharedCallError) -> Self {
        Self::new(error.kind().io_kind(), error)
    }
}

/// The reason why a call of a [`SharedClient`](crate::SharedClient) failed. One failure can end
/// many calls, so it can be cloned.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SharedCallErrorKind {
    /// The request is empty, or longer than `max_message_size`.
    #[error(transparent)]
    Request(Arc<SendError>),
    /// There is no connection to the server.
    #[error(transparent)]
    Connect(Arc<ConnectError>),
    /// The connection to the server broke.
    #[error(transparent)]
    Connection(Arc<CallError>),
    /// The server sent a message that is not the reply to any request. Replies that it sent before
    /// may belong to other requests than they seem to. The connection was closed.
    #[error(
        "the server is out of step: it sent a message that no request had asked for; it must reply once to \
         each request, in order, and send nothing else"
    )]
    OutOfStep,
    /// The server did not answer an earlier request, whose call had been given up. The connection
    /// was closed.
    #[error(
        "the server stopped answering: an earlier call was given up, and its reply did not arrive within \
         another {after:?} (call_timeout)"
    )]
    #[non_exhaustive]
    Stalled {
        /// The call timeout.
        after: Duration,
    },
    /// The call timeout has elapsed.
    #[error("the call was not complete within {after:?} (call_timeout)")]
    #[non_exhaustive]
    TimedOut {
        /// The timeout.
        after: Duration,
    },
    /// The client has been shut down.
    #[error("the client has been shut down")]
    ShutDown,
    /// The task of the connection was aborted: the runtime on which it was opened has been shut
    /// down.
    #[error("the task of the connection was aborted: its runtime has been shut down")]
    Aborted,
}

impl SharedCallErrorKind {
    fn io_kind(&self) -> io::ErrorKind {
        match self {
            Self::Request(_) => io::ErrorKind::InvalidInput,
            Self::Connect(error) => error.kind(),
            Self::Connection(error) => match &**error {
                CallError::Send(SendError::Io(error)) | CallError::Recv(RecvError::Io(error)) => {
                    error.kind()
                }
                CallError::Recv(RecvError::TooLong { .. }) => io::ErrorKind::InvalidData,
                _ => io::ErrorKind::ConnectionAborted,
            },
            Self::OutOfStep => io::ErrorKind::InvalidData,
            Self::Stalled { .. } | Self::TimedOut { .. } => io::ErrorKind::TimedOut,
            Self::ShutDown => io::ErrorKind::BrokenPipe,
            Self::Aborted => io::ErrorKind::ConnectionAborted,
        }
    }
}
