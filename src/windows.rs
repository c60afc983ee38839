//! The only unsafe code: Windows calls that Tokio and the standard library don't make.
//!
//! Invariants: every handle and every allocation of the system is owned by a type that gives it back
//! when dropped; an impersonation never outlives the function that began it.
#![allow(unsafe_code)]

use std::io;

use windows_sys::{
    Win32::Foundation::{ERROR_ACCESS_DENIED, ERROR_PIPE_BUSY},
    core::BOOL,
};

mod overlapped;
mod peer;
mod security;

#[cfg(feature = "test-util")]
pub(crate) use self::security::current_user;
pub(crate) use self::{
    overlapped::{InstanceOptions, Pipe, Read},
    peer::{client_of, is_broken, server_of},
    security::{SecurityDescriptor, create_server, is_current_user},
};

/// The system's code of an error.
pub(crate) fn code(error: &io::Error) -> Option<u32> {
    error.raw_os_error().map(|code| code as u32)
}

/// Why an instance could not be created. With `FILE_FLAG_FIRST_PIPE_INSTANCE` a name that is taken is
/// denied, whoever has it.
pub(crate) fn creation_error(error: io::Error, first: bool) -> io::Error {
    match code(&error) {
        Some(ERROR_ACCESS_DENIED | ERROR_PIPE_BUSY) if first => {
            io::Error::new(io::ErrorKind::AddrInUse, error)
        }
        _ => error,
    }
}

/// `text` as the system's calls take it: in UTF-16, with a NUL at its end.
fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// The system's error, if `done` says that there is one.
fn check(done: BOOL) -> io::Result<()> {
    if done == 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
