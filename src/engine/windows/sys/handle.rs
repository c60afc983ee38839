//! A handle that is owned.

use std::{io, os::windows::io::AsRawHandle, ptr};

use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE};

use super::functions::{CancelIoEx, CloseHandle, last_error};

/// A handle that is closed when it is dropped.
#[derive(Debug)]
pub(crate) struct Handle(HANDLE);

// SAFETY: a handle is a number that any thread of the process may use.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// Takes ownership of a handle that a call has just returned, or returns the call's error.
    ///
    /// # Safety
    ///
    /// `handle` is `INVALID_HANDLE_VALUE`, or open and owned by nobody else.
    pub(super) unsafe fn owned(handle: HANDLE) -> io::Result<Self> {
        if handle == INVALID_HANDLE_VALUE {
            Err(last_error())
        } else {
            Ok(Self(handle))
        }
    }
}

impl AsRawHandle for Handle {
    fn as_raw_handle(&self) -> HANDLE {
        self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and `self` owns it.
        unsafe { CloseHandle(self.0) };
    }
}

/// Cancels all operations in flight on a handle (`CancelIoEx`). What was written before stays
/// readable.
pub(crate) fn cancel(end: &impl AsRawHandle) {
    // SAFETY: the handle is open as long as `end` is borrowed.
    unsafe { CancelIoEx(end.as_raw_handle(), ptr::null()) };
}
