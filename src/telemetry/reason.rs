//! Reasons for failures, as a fixed set of words.

use std::fmt;

use tracing::Level;

/// Defines [`Reason`] from one table. Each row has the variant, its word in the log, and the log
/// level.
macro_rules! reasons {
    (
        $(#[$attribute:meta])*
        pub enum $name:ident {
            $($(#[$text:meta])* $reason:ident = $word:literal at $level:ident,)*
        }
    ) => {
        $(#[$attribute])*
        pub enum $name {
            $(
                $(#[$text])*
                #[doc = concat!("\n\nThe word is `", $word, "`, the level ", stringify!($level), ".")]
                $reason,
            )*
        }

        impl $name {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$reason),*];

            /// The word in the log.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$reason => $word,)*
                }
            }

            /// The level of the log line.
            pub(super) fn level(self) -> Level {
                match self {
                    $(Self::$reason => Level::$level,)*
                }
            }
        }
    };
}

reasons! {
    /// The reason why a connection was closed early, or why another operation of the server failed.
    /// It is the field `reason` of every logged warning and error, and the key of the error counts
    /// in [`Stats`](crate::Stats).
    ///
    /// At most five lines per second are logged for each reason and listener. The field
    /// `suppressed` of the next line with that reason has the number of lines that were left out.
    /// If no such line follows within a second or two, the number is logged on a separate line.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum Reason {
        /// Accepting a client failed. It is retried.
        Accept = "accept" at WARN,
        /// The next instance can't be created. It is retried.
        CreateInstance = "create_instance" at WARN,
        /// Linux: the length of the queue of clients can't be changed.
        ClientQueue = "client_queue" at WARN,
        /// Linux: the socket file was removed or replaced.
        SocketFile = "socket_file" at WARN,
        /// Linux: a connection on which file descriptors were passed can't be closed yet.
        DelayedClose = "delayed_close" at WARN,
        /// [`on_connect`](crate::Serve::on_connect) refused the client.
        Refused = "refused" at WARN,
        /// [`authorize`](crate::Serve::authorize) refused the client.
        NotAuthorized = "not_authorized" at WARN,
        /// The client's user already has
        /// [`max_connections_per_user`](crate::Serve::max_connections_per_user) connections, or all
        /// other users have all places but those kept for the server's own user.
        TooManyConnections = "too_many_connections" at WARN,
        /// `authorize` or `on_connect` took longer than `handler_timeout`.
        ConnectTimeout = "connect_timeout" at WARN,
        /// The handler can't take the request ([`Rejection`](crate::Rejection)), or the connection's
        /// task can't decode a typed message (`recv_json`).
        Rejected = "rejected" at WARN,
        /// The handler ended the connection while it answered no request
        /// ([`Handler::ended`](crate::Handler::ended)).
        Ended = "ended" at WARN,
        /// A request is longer than `max_message_size`.
        RequestTooLong = "request_too_long" at WARN,
        /// The client disconnected, or cancelled its write, in the middle of a request.
        RequestIncomplete = "request_incomplete" at WARN,
        /// The system reported an error when a request was received.
        Receive = "receive" at WARN,
        /// The system reported an error when a reply was sent.
        Send = "send" at WARN,
        /// The handler took longer than `handler_timeout`.
        HandlerTimeout = "handler_timeout" at WARN,
        /// The client sent nothing for `idle_timeout`.
        IdleTimeout = "idle_timeout" at WARN,
        /// The client did not read its reply for `write_timeout`.
        WriteTimeout = "write_timeout" at WARN,
        /// The server had nearly reached
        /// [`max_buffered_bytes`](crate::Serve::max_buffered_bytes), and the client did not read
        /// its replies and held the most.
        BufferedBytes = "buffered_bytes" at WARN,
        /// The handler returned an error.
        Handler = "handler" at ERROR,
        /// The handler, or the task of a connection, panicked.
        Panic = "panic" at ERROR,
        /// The handler returned an empty reply.
        EmptyReply = "empty_reply" at ERROR,
        /// The handler returned a reply longer than `max_message_size`.
        ReplyTooLong = "reply_too_long" at ERROR,
        /// The task of a connection ([`serve_connections`](crate::serve_connections)) returned an
        /// error, other than that its connection has failed.
        ConnectionTask = "connection_task" at ERROR,
        /// The client disconnected before its reply was sent.
        Disconnected = "disconnected" at DEBUG,
    }
}

impl Reason {
    /// The consequence for the connection or the server, as the text of the log line.
    pub(super) fn consequence(self) -> &'static str {
        match self {
            Self::Accept => "accepting a client failed; trying again",
            Self::CreateInstance => "the next instance can't be created; trying again",
            Self::ClientQueue => "the length of the client queue can't be changed",
            Self::SocketFile => "the socket file is not what the server created",
            Self::DelayedClose => {
                "a connection that passed file descriptors can't be closed yet: no thread could be started"
            }
            _ if self.is_refusal() => "refusing the client",
            _ => "closing the connection",
        }
    }

    /// Returns whether the client was refused.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::Refused | Self::NotAuthorized | Self::TooManyConnections | Self::ConnectTimeout
        )
    }

    /// Returns whether a timeout has closed the connection.
    pub(super) fn is_timeout(self) -> bool {
        matches!(
            self,
            Self::ConnectTimeout | Self::HandlerTimeout | Self::IdleTimeout | Self::WriteTimeout
        )
    }

    pub(super) const COUNT: usize = Self::ALL.len();

    /// The index of the reason in [`ALL`](Self::ALL).
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
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
            let same = Reason::ALL
                .iter()
                .filter(|other| other.as_str() == reason.as_str());
            assert_eq!(same.count(), 1, "{reason}");
        }
    }
}
