//! The reasons why a server stops serving a client.

use std::{error::Error, io, iter, time::Duration};

use crate::{
    connection::Identity,
    error::{BoxError, RecvError, SendError},
    handler::Rejection,
    telemetry::{Details, Reason, Telemetry},
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
    #[error(
        "other users have {0} connections already, and the remaining places are kept for the server's own user \
         and the system (max_instances)"
    )]
    NoPlaceForOthers(usize),
    #[error("the client can't be identified before its first message, and sent none for {0:?}")]
    Unidentified(Duration),
    #[error(
        "the client can't be identified before its first message, has sent none, and its place was needed \
         (max_instances)"
    )]
    PlaceNeeded,
    #[error("{0} took longer than {1:?} (handler_timeout)")]
    ConnectTimeout(&'static str, Duration),
    #[error("the handler took longer than {0:?} (handler_timeout)")]
    HandlerTimeout(Duration),
    #[error("the client sent nothing for {0:?} (idle_timeout)")]
    IdleTimeout(Duration),
    #[error("the client did not read its reply for {0:?} (write_timeout)")]
    WriteTimeout(Duration),
    #[error(
        "the client did not read its replies, and held the most when the server held nearly {0} bytes \
         (max_buffered_bytes)"
    )]
    BufferedBytes(usize),
    #[error("the connection's task failed")]
    Task {
        reason: Reason,
        #[source]
        error: BoxError,
    },
    #[error("the connection's task panicked: {0}")]
    TaskPanic(String),
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

    /// Converts an error returned by a connection's task. `has_connection_failed` says that the
    /// connection itself has failed before: the error may only pass that on.
    pub(super) fn task(error: BoxError, has_connection_failed: bool) -> Self {
        let reason = match has_connection_failed {
            true => reason_in(&*error),
            false => None,
        };
        let reason = reason.unwrap_or(Reason::ConnectionTask);
        Self::Task { reason, error }
    }

    /// Returns whether earlier replies can still be sent.
    pub(super) fn leaves_replies(&self) -> bool {
        !matches!(
            self,
            Self::WriteTimeout(_) | Self::BufferedBytes(_) | Self::Send(_)
        )
    }

    /// Reports the failure of a connection, with the numbers of its requests and replies if they
    /// are counted.
    pub(super) fn report(
        &self,
        identity: &Identity,
        telemetry: &Telemetry,
        counts: Option<(u64, u64)>,
    ) {
        let reason = self.reason();
        let is_refusal = reason.is_refusal();
        let counts = counts.filter(|_| !is_refusal);
        let details = Details {
            connection: Some(identity.id),
            peer: is_refusal.then(|| identity.peer()),
            requests: counts.map(|(requests, _)| requests),
            replies: counts.map(|(_, replies)| replies),
            ..Details::default()
        };
        telemetry.report(reason, self, details);
    }

    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Handler(_) => Reason::Handler,
            Self::Panic(_) | Self::TaskPanic(_) => Reason::Panic,
            Self::EmptyReply => Reason::EmptyReply,
            Self::Reply(_) => Reason::ReplyTooLong,
            Self::Ended(_) => Reason::Ended,
            Self::Rejected(_) => Reason::Rejected,
            Self::Refused(_) => Reason::Refused,
            Self::NotAuthorized(_) => Reason::NotAuthorized,
            Self::TooManyConnections(_) | Self::NoPlaceForOthers(_) | Self::PlaceNeeded => {
                Reason::TooManyConnections
            }
            Self::ConnectTimeout(..) => Reason::ConnectTimeout,
            Self::HandlerTimeout(_) => Reason::HandlerTimeout,
            Self::IdleTimeout(_) | Self::Unidentified(_) => Reason::IdleTimeout,
            Self::WriteTimeout(_) => Reason::WriteTimeout,
            Self::BufferedBytes(_) => Reason::BufferedBytes,
            Self::Task { reason, .. } => *reason,
            Self::Disconnected => Reason::Disconnected,
            Self::Recv(error) => receiving(error),
            Self::Send(error) => sending(error).unwrap_or(Reason::Send),
        }
    }
}

fn receiving(error: &RecvError) -> Reason {
    match error {
        RecvError::TooLong { .. } => Reason::RequestTooLong,
        RecvError::Incomplete => Reason::RequestIncomplete,
        RecvError::TimedOut { .. } => Reason::IdleTimeout,
        RecvError::Io(_) => Reason::Receive,
    }
}

/// `None` for an error of the sender itself.
fn sending(error: &SendError) -> Option<Reason> {
    match error {
        SendError::TooLong { .. } | SendError::Empty | SendError::Finished => None,
        SendError::Closed => Some(Reason::Disconnected),
        SendError::TimedOut { .. } => Some(Reason::WriteTimeout),
        SendError::Io(_) => Some(Reason::Send),
    }
}

/// The reason of the first error of a connection, or of a message on it, among `error` and its
/// sources.
fn reason_in(error: &(dyn Error + 'static)) -> Option<Reason> {
    iter::successors(Some(error), |&error| error.source()).find_map(|error| {
        // An `io::Error` that was made from such an error does not name it as its source.
        let error: &(dyn Error + 'static) = match error.downcast_ref().map(io::Error::get_ref) {
            Some(Some(inner)) => inner,
            _ => error,
        };
        #[cfg(feature = "json")]
        if error.is::<crate::JsonRejection>() {
            return Some(Reason::Rejected);
        }
        #[cfg(feature = "postcard")]
        if error.is::<crate::PostcardRejection>() {
            return Some(Reason::Rejected);
        }
        match error.downcast_ref() {
            Some(error) => Some(receiving(error)),
            None => error.downcast_ref().and_then(sending),
        }
    })
}
