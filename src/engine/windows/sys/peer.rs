//! Who is on the other side of a pipe.

use std::{io, mem, os::windows::io::AsRawHandle, process, ptr};

use windows_sys::{
    Wdk::Storage::FileSystem::{
        FILE_PIPE_CONNECTED_STATE, FILE_PIPE_LOCAL_INFORMATION, FilePipeLocalInformation,
    },
    Win32::{
        Foundation::{ERROR_CANNOT_IMPERSONATE, ERROR_CANT_OPEN_ANONYMOUS, HANDLE},
        Security::{Authorization::SE_KERNEL_OBJECT, OWNER_SECURITY_INFORMATION, TOKEN_QUERY},
        System::IO::IO_STATUS_BLOCK,
    },
};

use super::{
    functions::{
        GetCurrentThread, GetNamedPipeClientProcessId, GetNamedPipeClientSessionId,
        GetNamedPipeServerProcessId, GetNamedPipeServerSessionId, GetSecurityInfo,
        ImpersonateNamedPipeClient, LocalFree, NtQueryInformationFile, OpenThreadToken,
        RevertToSelf, last_error,
    },
    handle::Handle,
    security::{sid_text, user_of},
};
use crate::peer::{Peer, UserId};

/// Whether the other side has closed its end.
///
/// Uses `NtQueryInformationFile`, as libuv does. `PeekNamedPipe` may wait on the handle's event
/// (see `pipe`); this call waits, if at all, on its own event (ReactOS `NtQueryInformationFile`,
/// for files that were not opened for synchronous I/O).
pub(crate) fn peer_has_closed(end: &impl AsRawHandle) -> bool {
    state_of(end).is_none_or(|state| state.NamedPipeState != FILE_PIPE_CONNECTED_STATE)
}

/// Returns whether the other side has closed, and nothing that it wrote is left to read
/// (`ReadDataAvailable` in *FILE_PIPE_LOCAL_INFORMATION structure*).
pub(crate) fn peer_has_left_nothing(end: &impl AsRawHandle) -> bool {
    state_of(end).is_none_or(|state| {
        state.NamedPipeState != FILE_PIPE_CONNECTED_STATE && state.ReadDataAvailable == 0
    })
}

/// Returns the number of bytes that the other side has written and that are not read yet. No limit
/// if it has closed, because reading then ends by itself, or if the system does not say.
///
/// Only the rest counts of a message that was read in part, and a write that waits for room counts
/// as well (`the_unread_bytes_include_waiting_writes_and_the_rest_of_a_message` in
/// `tests/windows_facts.rs`).
pub(crate) fn unread_bytes(end: &impl AsRawHandle) -> usize {
    state_of(end)
        .filter(|state| state.NamedPipeState == FILE_PIPE_CONNECTED_STATE)
        .map_or(usize::MAX, |state| state.ReadDataAvailable as usize)
}

fn state_of(end: &impl AsRawHandle) -> Option<FILE_PIPE_LOCAL_INFORMATION> {
    let mut information = FILE_PIPE_LOCAL_INFORMATION::default();
    let mut status_block = IO_STATUS_BLOCK::default();
    // SAFETY: the handle is open as long as `end` is borrowed; both structures outlive the call,
    // which writes at most the given length.
    let status = unsafe {
        NtQueryInformationFile(
            end.as_raw_handle(),
            &mut status_block,
            (&raw mut information).cast(),
            mem::size_of::<FILE_PIPE_LOCAL_INFORMATION>() as u32,
            FilePipeLocalInformation,
        )
    };
    (status >= 0).then_some(information)
}

/// The client of a server's end. The user is taken from its token, since process ids are reused.
pub(crate) fn client_of(server: &impl AsRawHandle) -> io::Result<Peer> {
    let pipe: HANDLE = server.as_raw_handle();
    let (mut process_id, mut session_id) = (0, 0);
    // SAFETY: the handle is open as long as `server` is borrowed; both numbers are written on
    // success.
    let done = unsafe {
        GetNamedPipeClientProcessId(pipe, &mut process_id) != 0
            && GetNamedPipeClientSessionId(pipe, &mut session_id) != 0
    };
    if !done {
        return Err(last_error());
    }
    let user = UserId::Sid(user_of(&client_token(pipe)?)?);
    Ok(Peer {
        process_id,
        user,
        session_id,
    })
}

/// The token that the client connected with. Impersonation is a property of the thread, so it
/// begins and ends here.
fn client_token(pipe: HANDLE) -> io::Result<Handle> {
    // SAFETY: the handle is open.
    if unsafe { ImpersonateNamedPipeClient(pipe) } == 0 {
        let error = last_error();
        if error.raw_os_error() == Some(ERROR_CANNOT_IMPERSONATE as i32) {
            let problem = "the client's user is unknown until a message from it has been received";
            return Err(io::Error::new(io::ErrorKind::NotConnected, problem));
        }
        return Err(error);
    }
    let mut token = ptr::null_mut();
    // SAFETY: the thread's pseudo handle is always valid. `OpenAsSelf` checks access as the
    // process, since the client's token may be for identification only.
    let opened = unsafe { OpenThreadToken(GetCurrentThread(), TOKEN_QUERY, 1, &mut token) };
    let error = last_error();
    // SAFETY: ends the impersonation that was begun above.
    if unsafe { RevertToSelf() } == 0 {
        // The thread must not continue as the client (*RevertToSelf function*).
        process::abort();
    }
    if opened == 0 {
        if error.raw_os_error() == Some(ERROR_CANT_OPEN_ANONYMOUS as i32) {
            let problem = "the client's user is unknown: it connected with SECURITY_ANONYMOUS";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
        }
        return Err(error);
    }
    // SAFETY: the system has just opened the token for us.
    unsafe { Handle::owned(token) }
}

/// The server of a client's end: its process, and the pipe's owner as its user.
pub(crate) fn server_of(client: &impl AsRawHandle) -> io::Result<Peer> {
    let pipe: HANDLE = client.as_raw_handle();
    let (mut process_id, mut session_id) = (0, 0);
    // SAFETY: the handle is open as long as `client` is borrowed; both numbers are written on
    // success.
    let done = unsafe {
        GetNamedPipeServerProcessId(pipe, &mut process_id) != 0
            && GetNamedPipeServerSessionId(pipe, &mut session_id) != 0
    };
    if !done {
        return Err(last_error());
    }
    let (mut owner, mut descriptor) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the handle is open; `owner` points into `descriptor`, which is ours to free on
    // success.
    let code = unsafe {
        GetSecurityInfo(
            pipe,
            SE_KERNEL_OBJECT,
            OWNER_SECURITY_INFORMATION,
            &mut owner,
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::null_mut(),
            &mut descriptor,
        )
    };
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code as i32));
    }
    let sid = if owner.is_null() {
        // Under Wine, a pipe created without a descriptor has no owner.
        Err(io::Error::other("the pipe has no owner"))
    } else {
        // SAFETY: the call succeeded, so `owner` is a valid SID until the descriptor is freed.
        unsafe { sid_text(owner) }
    };
    // SAFETY: the system allocated the descriptor with LocalAlloc; `owner` is no longer used.
    unsafe { LocalFree(descriptor) };
    Ok(Peer {
        process_id,
        user: UserId::Sid(sid?),
        session_id,
    })
}
