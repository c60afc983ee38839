//! The error of serving a pipe.

use std::io;

use super::{OutOfRange, by_process, served_by};
use crate::name::NameError;

/// An error returned when serving a pipe fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The name is not a pipe name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An option is out of range.
    #[error("{option} {problem}")]
    #[non_exhaustive]
    Option {
        /// The option's method on [`ListenerOptions`](crate::ListenerOptions).
        option: &'static str,
        /// The fault of its value, and the accepted range.
        problem: String,
    },
    /// The pipe is on another machine.
    #[error("{address} is a pipe on another machine, which can't be served here")]
    #[non_exhaustive]
    Remote {
        /// The pipe's address.
        address: String,
    },
    /// The descriptor is not one of a socket that can be served (`os::linux`).
    #[error("descriptor {descriptor} can't be served: {problem}")]
    #[non_exhaustive]
    Descriptor {
        /// The descriptor's number.
        descriptor: i32,
        /// The kind of descriptor it is instead, and what to do.
        problem: String,
    },
    /// There is no Tokio runtime to serve the pipe on.
    #[error("a pipe can't be served outside a Tokio runtime: bind it in an async function")]
    NoRuntime,
    /// Another server has the name.
    #[error(
        "{address} is already served{}: stop the other server or choose another name",
        by_process(*process_id)
    )]
    #[non_exhaustive]
    InUse {
        /// The pipe's address.
        address: String,
        /// The process that serves it, if it is known. Always `None` on Windows.
        process_id: Option<u32>,
    },
    /// The system does not let this process serve the name.
    #[error(
        "no permission to serve {address}: another user may be serving it, or its directory may belong to \
         another user"
    )]
    #[non_exhaustive]
    Denied {
        /// The pipe's address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// The system can't create the pipe.
    #[error("can't create {address}")]
    #[non_exhaustive]
    Create {
        /// The pipe's address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
}

impl BindError {
    /// Classifies an engine's error.
    pub(crate) fn create(address: impl Into<String>, source: io::Error) -> Self {
        let source = match source.downcast::<OutOfRange>() {
            Ok(out_of_range) => return out_of_range.into(),
            Err(source) => source,
        };
        let address = address.into();
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse {
                address,
                process_id: served_by(&source),
            },
            io::ErrorKind::PermissionDenied => Self::Denied { address, source },
            _ => Self::Create { address, source },
        }
    }
}

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        let kind = match &error {
            BindError::Name(_)
            | BindError::Option { .. }
            | BindError::Remote { .. }
            | BindError::Descriptor { .. } => io::ErrorKind::InvalidInput,
            BindError::NoRuntime => io::ErrorKind::Other,
            BindError::InUse { .. } => io::ErrorKind::AddrInUse,
            BindError::Denied { source, .. } | BindError::Create { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}
