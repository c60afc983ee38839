//! The engines of Windows: `overlapped`, which is the default, and `tokio`. Both are safe code on
//! [`sys`].

use std::io;

use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_BROKEN_PIPE, ERROR_NO_DATA, ERROR_PIPE_BUSY,
    ERROR_PIPE_NOT_CONNECTED,
};

use crate::error::SendError;

mod access_list;
pub(super) mod overlapped;
mod rights;
mod start_lock;
mod sys;
pub(super) mod tokio_pipe;

pub(crate) use self::start_lock::{StartLock, start_lock};
#[cfg(pipe_model)]
pub use self::sys::model;
#[cfg(not(pipe_model))]
pub(crate) use self::sys::without_inherited_stdio;
pub(crate) use self::sys::{current_user, is_own};

/// The system's code of an error.
fn code(error: &io::Error) -> Option<u32> {
    error.raw_os_error().map(|code| code as u32)
}

/// Whether an operation failed because the other side closed its end or was disconnected.
fn is_closed_error(error: &io::Error) -> bool {
    matches!(
        code(error),
        Some(ERROR_BROKEN_PIPE | ERROR_NO_DATA | ERROR_PIPE_NOT_CONNECTED)
    )
}

/// The error of a failed write.
fn send_error(error: io::Error) -> SendError {
    if is_closed_error(&error) {
        SendError::Closed
    } else {
        SendError::Io(error)
    }
}

/// Takes one waiting instance of `address` away from clients. Returns `false` if that fails because
/// the access list keeps even this user out.
///
/// Windows has no call that refuses further clients. Closing an instance, even after its wait was
/// cancelled, would lose a client that connects at that moment. So this process connects and
/// leaves: an instance that had a client refuses others until it is disconnected
/// (`the_name_is_busy_while_every_instance_has_a_client_even_a_closed_one` in
/// `tests/windows_facts.rs`). If several instances wait, the system chooses which one gets this
/// client.
fn use_up_instance(address: &str) -> bool {
    match sys::open_instance(address, rights::REQUESTED) {
        Ok(_) => true,
        // Every instance has a client.
        Err(error) => code(&error) == Some(ERROR_PIPE_BUSY),
    }
}

/// The error of creating an instance. With `FILE_FLAG_FIRST_PIPE_INSTANCE`, a name in use is
/// reported as access denied or busy, whoever serves it.
fn creation_error(error: io::Error, first: bool) -> io::Error {
    match code(&error) {
        Some(ERROR_ACCESS_DENIED | ERROR_PIPE_BUSY) if first => {
            io::Error::new(io::ErrorKind::AddrInUse, error)
        }
        _ => error,
    }
}
