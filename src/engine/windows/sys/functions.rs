//! Every Windows function that the library calls. Under `--cfg pipe_model` the functions of the
//! model (`tests/model/`) replace them; nothing else changes.
//!
//! Errors are read with [`last_error`] right after the call.

use std::io;

use windows_sys::core::BOOL;

#[cfg(not(pipe_model))]
pub(super) use windows_sys::{
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

/// Of processes, which the model does not have.
#[cfg(not(pipe_model))]
pub(super) use windows_sys::Win32::Foundation::{
    GetHandleInformation, HANDLE_FLAG_INHERIT, SetHandleInformation,
};

#[cfg(pipe_model)]
pub(super) use super::model::functions::*;

/// The error of the preceding call.
pub(super) fn last_error() -> io::Error {
    // SAFETY: has no preconditions.
    io::Error::from_raw_os_error(unsafe { GetLastError() } as i32)
}

/// The error of the call that returned `done`, if it failed.
pub(super) fn check(done: BOOL) -> io::Result<()> {
    if done == 0 { Err(last_error()) } else { Ok(()) }
}

/// `text` as the system's calls take it: in UTF-16, with a NUL at its end.
pub(super) fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}
