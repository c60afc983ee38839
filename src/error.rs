//! One error for each kind of operation.

use std::{error::Error, fmt, io, time::Duration};

use crate::{name::NameError, peer::UserId};

pub use self::{
    bind::BindError,
    shared::{SharedCallError, SharedCallErrorKind},
    start::StartError,
};

mod bind;
mod shared;
mod start;

/// Any error of a handler, an extractor or a connection's task.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// An error returned when connecting a client fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The name is not a pipe name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An option is out of range.
    #[error("{option} {problem}")]
    #[non_exhaustive]
    Option {
        /// The option's method on [`ClientOptions`](crate::ClientOptions).
        option: &'static str,
        /// The fault of its value, and the accepted range.
        problem: String,
    },
    /// The descriptor is not one of a connected socket that carries messages (`os::linux`).
    #[error("descriptor {descriptor} can't be used as a client: {problem}")]
    #[non_exhaustive]
    Descriptor {
        /// The descriptor's number.
        descriptor: i32,
        /// The kind of descriptor it is instead, and what to do.
        problem: String,
    },
    /// There is no Tokio runtime to connect on.
    #[error("a client can't connect outside a Tokio runtime: await it on one")]
    NoRuntime,
    /// The pipe is on another machine, and `allow_remote` is off (`os::windows`).
    #[error(
        "{address} is on another machine, which would receive this user's credentials: allow remote \
         pipes if that is intended (allow_remote)"
    )]
    #[non_exhaustive]
    Remote {
        /// The pipe's address.
        address: String,
    },
    /// Nobody serves the pipe.
    #[error("{}", not_found(address, *process_id))]
    #[non_exhaustive]
    NotFound {
        /// The pipe's address.
        address: String,
        /// On Linux, a server that runs although clients can't reach it, because its socket file
        /// was removed or replaced.
        process_id: Option<u32>,
    },
    /// Every instance was busy with another client until the connect timeout.
    #[error("{address} is busy: every instance serves another client; {}", busy(*waited))]
    #[non_exhaustive]
    Busy {
        /// The pipe's address.
        address: String,
        /// The time that this client waited. Zero if the connect timeout left none for that.
        waited: Duration,
    },
    /// The server does not let this user in.
    #[error("no permission to connect to {address}: its server does not let this user in")]
    #[non_exhaustive]
    Denied {
        /// The pipe's address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// The pipe, or on Linux the directory of its name, belongs to a user that the client does not
    /// trust. Nothing was sent.
    #[error("{}", untrusted(address, owner))]
    #[non_exhaustive]
    Untrusted {
        /// The pipe's address.
        address: String,
        /// The user it belongs to.
        owner: UserId,
    },
    /// Nobody serves the pipe, and a server could not be started
    /// ([`ClientOptions::start_server`](crate::ClientOptions::start_server)).
    #[error(transparent)]
    Start(#[from] StartError),
    /// The system can't connect.
    #[error("can't connect to {address}")]
    #[non_exhaustive]
    Io {
        /// The pipe's address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
}

impl ConnectError {
    /// Classifies an engine's error that a retry would not resolve.
    pub(crate) fn open(address: impl Into<String>, source: io::Error) -> Self {
        let source = match source.downcast::<OutOfRange>() {
            Ok(out_of_range) => return out_of_range.into(),
            Err(source) => source,
        };
        let address = address.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied { address, source },
            _ => Self::Io { address, source },
        }
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Name(_) | Self::Option { .. } | Self::Remote { .. } | Self::Descriptor { .. } => {
                io::ErrorKind::InvalidInput
            }
            Self::NoRuntime => io::ErrorKind::Other,
            Self::NotFound { .. } => io::ErrorKind::NotFound,
            Self::Busy { .. } => io::ErrorKind::TimedOut,
            Self::Denied { .. } | Self::Untrusted { .. } => io::ErrorKind::PermissionDenied,
            Self::Start(error) => error.kind(),
            Self::Io { source, .. } => source.kind(),
        }
    }
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// An error returned when receiving a message fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The message is longer than `max_message_size`. Nothing more can be received.
    #[error("a message longer than the limit of {limit} bytes arrived (max_message_size)")]
    #[non_exhaustive]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The other side closed, or cancelled its write, in the middle of a message. No part of it was
    /// delivered, and nothing more can be received.
    #[error("a message was cut short: the other side closed the pipe while it was being received")]
    Incomplete,
    /// Nothing arrived for the idle timeout of [`serve_connections`](crate::serve_connections).
    /// Nothing more can be received.
    #[error(
        "the other side sent nothing for {after:?} (idle_timeout): close the connection, or allow more time"
    )]
    #[non_exhaustive]
    TimedOut {
        /// The timeout.
        after: Duration,
    },
    /// The system's error.
    #[error("receiving failed")]
    Io(#[source] io::Error),
}

impl From<RecvError> for io::Error {
    fn from(error: RecvError) -> Self {
        let kind = match error {
            RecvError::Io(error) => return error,
            RecvError::TooLong { .. } => io::ErrorKind::InvalidData,
            RecvError::Incomplete => io::ErrorKind::UnexpectedEof,
            RecvError::TimedOut { .. } => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

/// An error returned when sending a message fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message is longer than the limit. Nothing of it was sent.
    #[error("a message of {length} bytes is longer than the limit of {limit}; nothing was sent")]
    #[non_exhaustive]
    TooLong {
        /// The message's length, in bytes.
        length: usize,
        /// The limit, in bytes: `max_message_size`, or the engine's.
        limit: usize,
    },
    /// The message is empty, which would end the conversation. Nothing was sent.
    #[error("an empty message can't be sent: it would end the conversation")]
    Empty,
    /// This side has ended the conversation with `finish`.
    #[error("nothing can be sent after finish, which has ended the conversation")]
    Finished,
    /// The other side has closed the pipe.
    #[error("the other side has closed the pipe")]
    Closed,
    /// The other side read nothing for the write timeout of
    /// [`serve_connections`](crate::serve_connections). The message may still be sent, whole or not
    /// at all.
    #[error(
        "the other side read nothing for {after:?} (write_timeout): close the connection, or allow more time"
    )]
    #[non_exhaustive]
    TimedOut {
        /// The timeout.
        after: Duration,
    },
    /// The system's error.
    #[error("sending failed")]
    Io(#[source] io::Error),
}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> Self {
        let kind = match error {
            SendError::Io(error) => return error,
            SendError::TooLong { .. } | SendError::Empty => io::ErrorKind::InvalidInput,
            SendError::Finished | SendError::Closed => io::ErrorKind::BrokenPipe,
            SendError::TimedOut { .. } => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

/// An error returned when a request gets no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The request was not sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The reply could not be received.
    #[error(transparent)]
    Recv(#[from] RecvError),
    /// The server closed the pipe instead of replying. It may have executed the request.
    #[error("the server closed the pipe and did not reply")]
    Closed,
    /// The server ended the conversation and had answered all requests that it took. It has not
    /// executed this one.
    #[error("the server shut down before it executed the request: send it again")]
    NotExecuted,
    /// The call timeout has elapsed. The client remains usable.
    #[error("the server did not reply within {after:?} (call_timeout)")]
    #[non_exhaustive]
    TimedOut {
        /// The timeout.
        after: Duration,
    },
}

impl CallError {
    /// Returns whether the server may have executed the request. If not, it can safely be sent
    /// again.
    #[must_use]
    pub fn may_be_executed(&self) -> bool {
        match self {
            Self::Send(_) | Self::NotExecuted => false,
            Self::Recv(_) | Self::Closed | Self::TimedOut { .. } => true,
        }
    }
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Send(error) => error.into(),
            CallError::Recv(error) => error.into(),
            CallError::Closed | CallError::NotExecuted => {
                Self::new(io::ErrorKind::UnexpectedEof, error)
            }
            CallError::TimedOut { .. } => Self::new(io::ErrorKind::TimedOut, error),
        }
    }
}

/// The process that serves a pipe. An engine that learns it returns it inside an `io::Error`.
#[derive(Debug, thiserror::Error)]
#[error("it is served by process {process_id}")]
pub(crate) struct ServedBy {
    pub(crate) process_id: u32,
}

/// The process that serves the pipe, if `error` says so.
pub(crate) fn served_by(error: &io::Error) -> Option<u32> {
    let served_by = error.get_ref()?.downcast_ref::<ServedBy>()?;
    Some(served_by.process_id)
}

fn untrusted(address: &str, owner: &UserId) -> String {
    if owner.is_unmapped() {
        return format!(
            "{address} belongs to a user whom this user namespace does not map (shown as user {owner}) and who could \
             read what is sent there: connect from the server's namespace, or trust anyone (trust)"
        );
    }
    format!(
        "{address} belongs to user {owner}, who is not trusted and could read what is sent there: if this is the \
         right server, trust that user (trust)"
    )
}

fn by_process(process_id: Option<u32>) -> String {
    process_id.map_or_else(String::new, |id| format!(" by process {id}"))
}

fn busy(waited: Duration) -> String {
    match waited {
        Duration::ZERO => {
            "this client did not wait, allow it some time (connect_timeout)".to_owned()
        }
        waited => format!("waited {waited:.1?}, try again later"),
    }
}

fn not_found(address: &str, process_id: Option<u32>) -> String {
    match process_id {
        None => format!("nobody serves {address}: start the server, or check the name"),
        Some(id) => format!(
            "nobody serves {address}, although its server runs (process {id}): its socket file was removed \
             or replaced; restart the server"
        ),
    }
}

/// An option that is out of range. An engine that learns the range from the system returns it
/// inside an `io::Error`.
#[derive(Debug, thiserror::Error)]
#[error("{option} {problem}")]
pub(crate) struct OutOfRange {
    pub(crate) option: &'static str,
    pub(crate) problem: String,
}

impl OutOfRange {
    pub(crate) fn new(option: &'static str, problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self { option, problem }
    }
}

impl From<OutOfRange> for BindError {
    fn from(OutOfRange { option, problem }: OutOfRange) -> Self {
        Self::Option { option, problem }
    }
}

impl From<OutOfRange> for ConnectError {
    fn from(OutOfRange { option, problem }: OutOfRange) -> Self {
        Self::Option { option, problem }
    }
}

impl From<OutOfRange> for io::Error {
    fn from(error: OutOfRange) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// Writes an error followed by its sources, as in `a: b: c`, for the log. A source that the error
/// already prints is not repeated.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chain = self.0.to_string();
        let mut source = self.0.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Compared with separators, so that a part of a word does not match.
            if !format!(": {chain}: ").contains(&format!(": {text}: ")) {
                chain = format!("{chain}: {text}");
            }
            source = error.source();
        }
        formatter.write_str(&chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> io::Error {
        io::Error::new(io::ErrorKind::PermissionDenied, "the reason")
    }

    #[test]
    fn the_reason_of_the_system_is_said_once_and_by_the_source() {
        let errors: [Box<dyn Error>; 5] = [
            Box::new(BindError::create("x", denied())),
            Box::new(BindError::create("x", io::Error::other("the reason"))),
            Box::new(ConnectError::open("x", denied())),
            Box::new(CallError::from(RecvError::Io(denied()))),
            Box::new(CallError::from(SendError::Io(denied()))),
        ];
        for error in errors {
            assert!(!error.to_string().contains("the reason"), "{error}");
            let chain = Chain(&*error).to_string();
            assert_eq!(chain.matches("the reason").count(), 1, "{chain}");
        }
    }

    /// An error whose text already includes its source's, as in some libraries.
    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Wordy {
        text: &'static str,
        source: Option<Box<Wordy>>,
    }

    impl Wordy {
        fn chain<const N: usize>(texts: [&'static str; N]) -> String {
            let mut error = None;
            for text in texts.into_iter().rev() {
                let source = error.map(Box::new);
                error = Some(Self { text, source });
            }
            Chain(&error.unwrap()).to_string()
        }
    }

    #[test]
    fn a_chain_repeats_nothing() {
        assert_eq!(Wordy::chain(["a", "b", "c"]), "a: b: c");
        assert_eq!(Wordy::chain(["a: b", "b"]), "a: b");
        assert_eq!(Wordy::chain(["a", "a"]), "a");
        assert_eq!(Wordy::chain(["a: b: c", "b: c", "c"]), "a: b: c");
        assert_eq!(Wordy::chain(["a: b", "b", "c"]), "a: b: c");
        // A part of a word is not a repetition.
        assert_eq!(Wordy::chain(["not found", "found"]), "not found: found");
    }

    #[test]
    fn an_option_that_the_engine_refuses_is_an_option_error() {
        let refused = || io::Error::from(OutOfRange::new("max_message_size", "is too much"));
        let error = BindError::create("x", refused());
        assert!(matches!(error, BindError::Option { .. }), "{error:?}");
        let error = ConnectError::open("x", refused());
        assert!(matches!(error, ConnectError::Option { .. }), "{error:?}");
    }
}
