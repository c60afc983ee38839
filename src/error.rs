//! One error a kind of operation.

use std::io;

use crate::name::NameError;

/// Why a pipe can't be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The name is no pipe name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An option has a value that can't be.
    #[error("{option} {problem}")]
    Option {
        /// The option's method on [`ListenerOptions`](crate::ListenerOptions).
        option: &'static str,
        /// What is wrong with its value, and which values can be.
        problem: String,
    },
    /// Another server has the name.
    #[error("{address} is served already: stop the other server or choose another name")]
    InUse {
        /// The pipe's address.
        address: String,
    },
    /// The system does not let this process serve the name.
    #[error(
        "no permission to serve {address}: another user may be serving it, or the place is not this user's"
    )]
    Denied {
        /// The pipe's address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// The system can't create the pipe.
    #[error("can't create {address}: {source}")]
    Create {
        /// The pipe's address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
}

impl BindError {
    /// Sorts the system's error.
    pub(crate) fn create(address: &str, source: io::Error) -> Self {
        let address = address.to_owned();
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { address },
            io::ErrorKind::PermissionDenied => Self::Denied { address, source },
            _ => Self::Create { address, source },
        }
    }
}

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        let kind = match &error {
            BindError::Name(_) | BindError::Option { .. } => io::ErrorKind::InvalidInput,
            BindError::InUse { .. } => io::ErrorKind::AddrInUse,
            BindError::Denied { source, .. } | BindError::Create { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// Why a client could not connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The name is no pipe name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An option has a value that can't be.
    #[error("{option} {problem}")]
    Option {
        /// The option's method on [`ClientOptions`](crate::ClientOptions).
        option: &'static str,
        /// What is wrong with its value, and which values can be.
        problem: String,
    },
    /// The pipe is on another machine, and
    #[cfg_attr(
        windows,
        doc = "[`allow_remote`](crate::ClientOptions::allow_remote) was not turned on."
    )]
    #[cfg_attr(not(windows), doc = "`allow_remote` was not turned on.")]
    #[error(
        "{address} is on another machine, which would be sent this user's credentials: allow remote \
         pipes if that is meant (allow_remote)"
    )]
    Remote {
        /// The pipe's address.
        address: String,
    },
    /// Nobody serves the pipe.
    #[error("nobody serves {address}: start the server, or check the name")]
    NotFound {
        /// The pipe's address.
        address: String,
    },
    /// Every instance stayed busy with another client until the connect timeout.
    #[error(
        "{address} stayed busy for {waited:?}: every instance serves another client; try again later"
    )]
    Busy {
        /// The pipe's address.
        address: String,
        /// How long this client waited.
        waited: std::time::Duration,
    },
    /// The server does not let this user in.
    #[error("no permission to connect to {address}: its server does not let this user in")]
    Denied {
        /// The pipe's address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// The pipe belongs to another user, and
    /// [`only_current_user`](crate::ClientOptions::only_current_user) was asked for.
    #[error("{address} belongs to another user ({owner}), who could read what is sent there")]
    OtherUser {
        /// The pipe's address.
        address: String,
        /// The user that it belongs to.
        owner: String,
    },
    /// The system can't connect.
    #[error("can't connect to {address}: {source}")]
    Io {
        /// The pipe's address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        let kind = match &error {
            ConnectError::Name(_) | ConnectError::Option { .. } | ConnectError::Remote { .. } => {
                io::ErrorKind::InvalidInput
            }
            ConnectError::NotFound { .. } => io::ErrorKind::NotFound,
            ConnectError::Busy { .. } => io::ErrorKind::TimedOut,
            ConnectError::Denied { .. } | ConnectError::OtherUser { .. } => {
                io::ErrorKind::PermissionDenied
            }
            ConnectError::Io { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// Why no message could be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The message is longer than `max_message_size`. Nothing more can be received.
    #[error("a message longer than the limit of {limit} bytes arrived (max_message_size)")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The other side left, or took the message back, when a part of it had arrived. Nothing of it was
    /// delivered, and nothing more can be received.
    #[error("a message was cut short: the other side closed the pipe while it was being received")]
    Incomplete,
    /// The system's error.
    #[error("receiving failed: {0}")]
    Io(#[source] io::Error),
}

impl From<RecvError> for io::Error {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Io(error) => error,
            too_long @ RecvError::TooLong { .. } => Self::new(io::ErrorKind::InvalidData, too_long),
            incomplete @ RecvError::Incomplete => {
                Self::new(io::ErrorKind::UnexpectedEof, incomplete)
            }
        }
    }
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message is longer than the limit. Nothing of it was sent.
    #[error("a message of {length} bytes is longer than the limit of {limit}; nothing was sent")]
    TooLong {
        /// The message's length, in bytes.
        length: usize,
        /// The limit, in bytes: `max_message_size`, or what the engine can carry.
        limit: usize,
    },
    /// The message is empty: an empty message would end the conversation. Nothing was sent.
    #[error("an empty message can't be sent: it would end the conversation")]
    Empty,
    /// The other side has closed, or this side has ended the conversation.
    #[error("the other side has closed the pipe")]
    Closed,
    /// The system's error.
    #[error("sending failed: {0}")]
    Io(#[source] io::Error),
}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> Self {
        let kind = match error {
            SendError::Io(error) => return error,
            SendError::TooLong { .. } | SendError::Empty => io::ErrorKind::InvalidInput,
            SendError::Closed => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}

/// Why a request got no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The request was not sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The reply could not be received.
    #[error(transparent)]
    Recv(#[from] RecvError),
    /// The server closed the pipe and did not reply.
    #[error("the server closed the pipe and did not reply")]
    Closed,
    /// An earlier call was dropped before its reply came, so the next reply is not this request's.
    #[error("an earlier call was dropped before its reply came: connect again")]
    OutOfStep,
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Send(error) => error.into(),
            CallError::Recv(error) => error.into(),
            CallError::Closed => Self::new(io::ErrorKind::UnexpectedEof, error),
            CallError::OutOfStep => Self::other(error),
        }
    }
}
