//! Why something failed, as one of a fixed set of words.

use std::fmt;

use tracing::Level;

/// Why a connection was closed early, or why the server could not do something for a moment. It is the field
/// `reason` of every logged warning and error, and the key of the errors in a server's statistics.
///
/// | word | level | what happened |
/// |---|---|---|
/// | `accept` | warning | accepting a client failed; it is retried |
/// | `instance` | warning | the next instance can't be created; it is retried |
/// | `queue` | warning | Linux: the length of the queue of clients can't be changed |
/// | `close` | warning | Linux: a connection that passed file descriptors can't be closed yet |
/// | `refused` | warning | [`on_connect`](crate::Serve::on_connect) refused the client |
/// | `not_authorized` | warning | [`authorize`](crate::Serve::authorize) refused the client |
/// | `too_many_connections` | warning | the client's user has [`max_connections_per_user`](crate::Serve::max_connections_per_user) connections |
/// | `connect_timeout` | warning | `authorize` or `on_connect` took longer than `handler_timeout` |
/// | `rejected` | warning | a request is not what the handler takes ([`Rejection`](crate::Rejection)) |
/// | `request_too_long` | warning | a request is longer than `max_message_size` |
/// | `request_incomplete` | warning | the client left, or cancelled its write, in the middle of a request |
/// | `receive` | warning | the system can't receive a request |
/// | `send` | warning | the system can't send a reply |
/// | `handler_timeout` | warning | the handler took longer than `handler_timeout` |
/// | `idle_timeout` | warning | the client sent nothing for `idle_timeout` |
/// | `write_timeout` | warning | the client did not read its reply for `write_timeout` |
/// | `handler` | error | the handler returned an error |
/// | `panic` | error | the handler, or the code of a connection, panicked |
/// | `empty_reply` | error | the handler returned an empty reply |
/// | `reply_too_long` | error | the handler returned a reply longer than `max_message_size` |
/// | `code` | error | the code of a connection ([`serve_connections`](crate::serve_connections)) returned an error |
/// | `disconnected` | debug | the client left before its reply was sent |
///
/// At most five lines a second are logged for each reason and listener. The field `suppressed` of the next
/// line with that reason says how many were left out. If none follows within a second or two, a separate line
/// says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the table above documents them")]
pub enum Reason {
    Accept,
    Instance,
    Queue,
    Close,
    Refused,
    NotAuthorized,
    TooManyConnections,
    ConnectTimeout,
    Rejected,
    RequestTooLong,
    RequestIncomplete,
    Receive,
    Send,
    HandlerTimeout,
    IdleTimeout,
    WriteTimeout,
    Handler,
    Panic,
    EmptyReply,
    ReplyTooLong,
    Code,
    Disconnected,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 22] = [
        Self::Accept,
        Self::Instance,
        Self::Queue,
        Self::Close,
        Self::Refused,
        Self::NotAuthorized,
        Self::TooManyConnections,
        Self::ConnectTimeout,
        Self::Rejected,
        Self::RequestTooLong,
        Self::RequestIncomplete,
        Self::Receive,
        Self::Send,
        Self::HandlerTimeout,
        Self::IdleTimeout,
        Self::WriteTimeout,
        Self::Handler,
        Self::Panic,
        Self::EmptyReply,
        Self::ReplyTooLong,
        Self::Code,
        Self::Disconnected,
    ];

    /// The word in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Instance => "instance",
            Self::Queue => "queue",
            Self::Close => "close",
            Self::Refused => "refused",
            Self::NotAuthorized => "not_authorized",
            Self::TooManyConnections => "too_many_connections",
            Self::ConnectTimeout => "connect_timeout",
            Self::Rejected => "rejected",
            Self::RequestTooLong => "request_too_long",
            Self::RequestIncomplete => "request_incomplete",
            Self::Receive => "receive",
            Self::Send => "send",
            Self::HandlerTimeout => "handler_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::Handler => "handler",
            Self::Panic => "panic",
            Self::EmptyReply => "empty_reply",
            Self::ReplyTooLong => "reply_too_long",
            Self::Code => "code",
            Self::Disconnected => "disconnected",
        }
    }

    /// The level that the table above gives.
    pub(super) fn level(self) -> Level {
        match self {
            Self::Handler | Self::Panic | Self::EmptyReply | Self::ReplyTooLong | Self::Code => {
                Level::ERROR
            }
            Self::Disconnected => Level::DEBUG,
            _ => Level::WARN,
        }
    }

    /// What follows from it, as the text of the log line.
    pub(super) fn consequence(self) -> &'static str {
        match self {
            Self::Accept => "accepting a client failed; trying again",
            Self::Instance => "the next instance can't be created; trying again",
            Self::Queue => "the length of the client queue can't be changed",
            Self::Close => {
                "a connection that passed file descriptors can't be closed yet: no thread could be started"
            }
            _ => "closing the connection",
        }
    }

    /// Its index in [`ALL`](Self::ALL).
    pub(super) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_there_in_order_and_each_has_a_word_of_its_own() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index);
            let same = Reason::ALL
                .iter()
                .filter(|other| other.as_str() == reason.as_str());
            assert_eq!(same.count(), 1, "{reason}");
        }
    }
}
