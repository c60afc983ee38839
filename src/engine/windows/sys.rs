//! The only unsafe code: Windows calls that Tokio and the standard library do not provide.
//!
//! Invariants: every handle is owned by a type that closes it on drop, every allocation of the system is
//! freed, and an impersonation never outlives the function that began it.
#![allow(unsafe_code)]

use std::io;

use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_BROKEN_PIPE, ERROR_NO_DATA, ERROR_PIPE_BUSY,
    ERROR_PIPE_NOT_CONNECTED,
};

mod access_list;
#[cfg(any(miri, pipe_model))]
pub mod model;
mod overlapped;
mod peer;
mod rights;
mod security;
mod system;

#[cfg(feature = "test-util")]
pub(crate) use self::security::current_user;
pub(crate) use self::{
    overlapped::{InstanceOptions, Pipe, Read},
    peer::{client_of, is_closing, server_of},
    security::{SecurityDescriptor, create_server, is_own},
    system::{cancel, code},
};

/// Whether an operation failed because the other side closed its end or was disconnected.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    matches!(
        code(error),
        Some(ERROR_BROKEN_PIPE | ERROR_NO_DATA | ERROR_PIPE_NOT_CONNECTED)
    )
}

/// The error of creating an instance. With `FILE_FLAG_FIRST_PIPE_INSTANCE`, a name in use is reported as
/// access denied or busy, whoever serves it.
pub(crate) fn creation_error(error: io::Error, first: bool) -> io::Error {
    match code(&error) {
        Some(ERROR_ACCESS_DENIED | ERROR_PIPE_BUSY) if first => {
            io::Error::new(io::ErrorKind::AddrInUse, error)
        }
        _ => error,
    }
}
