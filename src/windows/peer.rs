//! Who is on the other side of a pipe.

use std::{io, os::windows::io::AsRawHandle, process, ptr};

use windows_sys::Win32::{
    Foundation::{ERROR_CANNOT_IMPERSONATE, HANDLE, LocalFree},
    Security::{
        Authorization::{GetSecurityInfo, SE_KERNEL_OBJECT},
        OWNER_SECURITY_INFORMATION, RevertToSelf, TOKEN_QUERY,
    },
    System::{
        Pipes::{
            GetNamedPipeClientProcessId, GetNamedPipeClientSessionId, GetNamedPipeServerProcessId,
            GetNamedPipeServerSessionId, ImpersonateNamedPipeClient, PeekNamedPipe,
        },
        Threading::{GetCurrentThread, OpenThreadToken},
    },
};

use super::security::{Token, sid_text, user_of};
use crate::access::{Peer, UserId};

/// Whether the other side is gone and nothing of it is left to read.
pub(crate) fn is_broken(end: &impl AsRawHandle) -> bool {
    let null = ptr::null_mut();
    // SAFETY: the handle is open as long as `end` is borrowed; nothing is asked to be written.
    unsafe {
        PeekNamedPipe(
            end.as_raw_handle(),
            null,
            0,
            null.cast(),
            null.cast(),
            null.cast(),
        ) == 0
    }
}

/// The client of a server's end, by its token: a process number is used again.
pub(crate) fn client_of(server: &impl AsRawHandle) -> io::Result<Peer> {
    let pipe: HANDLE = server.as_raw_handle();
    let (mut process_id, mut session_id) = (0, 0);
    // SAFETY: the handle is open as long as `server` is borrowed; both numbers are written on success.
    let done = unsafe {
        GetNamedPipeClientProcessId(pipe, &mut process_id) != 0
            && GetNamedPipeClientSessionId(pipe, &mut session_id) != 0
    };
    if !done {
        return Err(io::Error::last_os_error());
    }
    let user = UserId::Sid(user_of(&client_token(pipe)?)?);
    Ok(Peer {
        process_id,
        user,
        session_id,
    })
}

/// The token that the client connected with. Impersonation belongs to the thread: it begins and ends here.
fn client_token(pipe: HANDLE) -> io::Result<Token> {
    // SAFETY: the handle is open.
    if unsafe { ImpersonateNamedPipeClient(pipe) } == 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(ERROR_CANNOT_IMPERSONATE as i32) {
            let problem = "the client's user is known only once a message of it has been received";
            return Err(io::Error::new(io::ErrorKind::NotConnected, problem));
        }
        return Err(error);
    }
    let mut token = ptr::null_mut();
    // SAFETY: the thread's pseudo handle is always valid. Opened as the process itself: the client's
    // token may be for identification only.
    let opened = unsafe { OpenThreadToken(GetCurrentThread(), TOKEN_QUERY, 1, &mut token) };
    let error = io::Error::last_os_error();
    // SAFETY: ends the impersonation that was begun above.
    if unsafe { RevertToSelf() } == 0 {
        // Going on as somebody else would be worse than not going on (*RevertToSelf function*).
        process::abort();
    }
    if opened == 0 {
        Err(error)
    } else {
        Ok(Token(token))
    }
}

/// The server of a client's end: its process, and the owner of the pipe.
pub(crate) fn server_of(client: &impl AsRawHandle) -> io::Result<Peer> {
    let pipe: HANDLE = client.as_raw_handle();
    let (mut process_id, mut session_id) = (0, 0);
    // SAFETY: the handle is open as long as `client` is borrowed; both numbers are written on success.
    let done = unsafe {
        GetNamedPipeServerProcessId(pipe, &mut process_id) != 0
            && GetNamedPipeServerSessionId(pipe, &mut session_id) != 0
    };
    if !done {
        return Err(io::Error::last_os_error());
    }
    let (mut owner, mut descriptor) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the handle is open; `owner` points into `descriptor`, which is ours to free on success.
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
        // Wine gives no owner to a pipe that was made without a descriptor.
        Err(io::Error::other("the pipe has no owner"))
    } else {
        // SAFETY: the call succeeded, so `owner` is a valid SID until the descriptor is freed.
        unsafe { sid_text(owner) }
    };
    // SAFETY: the system allocated the descriptor with LocalAlloc; `owner` is not used any more.
    unsafe { LocalFree(descriptor) };
    Ok(Peer {
        process_id,
        user: UserId::Sid(sid?),
        session_id,
    })
}
