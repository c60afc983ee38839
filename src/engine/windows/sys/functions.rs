//! Every Windows function that the library calls. Under `--cfg pipe_model`, and always under Miri, the
//! functions of `super::model` replace them; nothing else changes.
//!
//! Errors are read with [`last_error`] right after the call.

use std::{io, os::windows::io::AsRawHandle, ptr};

use windows_sys::{
    Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE},
    core::BOOL,
};

#[cfg(not(any(miri, pipe_model)))]
pub(crate) use windows_sys::{
    Wdk::Storage::FileSystem::NtQueryInformationFile,
    Win32::{
        Foundation::{CloseHandle, GetLastError, LocalFree},
        Security::{
            Authorization::{
                ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW,
                GetSecurityInfo,
            },
            GetTokenInformation, RevertToSelf,
        },
        Storage::FileSystem::{
            CreateFileW, ReadFile, SetFileCompletionNotificationModes, WriteFile,
        },
        System::{
            IO::{CancelIoEx, CreateIoCompletionPort, GetQueuedCompletionStatus},
            Pipes::{
                ConnectNamedPipe, CreateNamedPipeW, GetNamedPipeClientProcessId,
                GetNamedPipeClientSessionId, GetNamedPipeServerProcessId,
                GetNamedPipeServerSessionId, ImpersonateNamedPipeClient, SetNamedPipeHandleState,
            },
            Threading::{GetCurrentProcess, GetCurrentThread, OpenProcessToken, OpenThreadToken},
        },
    },
};

#[cfg(any(miri, pipe_model))]
pub(crate) use super::model::functions::*;

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

/// The error of the preceding call.
pub(super) fn last_error() -> io::Error {
    // SAFETY: has no preconditions.
    io::Error::from_raw_os_error(unsafe { GetLastError() } as i32)
}

/// The error of the call that returned `done`, if it failed.
pub(super) fn check(done: BOOL) -> io::Result<()> {
    if done == 0 { Err(last_error()) } else { Ok(()) }
}

/// The system's code of an error.
pub(crate) fn code(error: &io::Error) -> Option<u32> {
    error.raw_os_error().map(|code| code as u32)
}

/// Cancels all operations in flight on a handle (`CancelIoEx`). What was written before stays readable.
pub(crate) fn cancel(end: &impl AsRawHandle) {
    // SAFETY: the handle is open as long as `end` is borrowed.
    unsafe { CancelIoEx(end.as_raw_handle(), ptr::null()) };
}

/// `text` as the system's calls take it: in UTF-16, with a NUL at its end.
pub(super) fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}
