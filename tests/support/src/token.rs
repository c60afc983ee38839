//! The users behind tokens and pipes, in plain Windows calls.
#![allow(unsafe_code, reason = "tests the system calls directly")]

use std::{mem, ptr, slice};

use windows_sys::Win32::{
    Foundation::{ERROR_SUCCESS, HANDLE},
    Security::{PSID, TOKEN_INFORMATION_CLASS, TOKEN_QUERY, TokenImpersonationLevel, TokenUser},
};

use crate::raw_pipe::{End, code, system};

/// The user of a server's client, and the level of impersonation.
pub fn client_of(server: &End) -> Result<(String, i32), u32> {
    let mut token = ptr::null_mut();
    // SAFETY: the handle is open; the impersonation ends before the thread does anything else.
    let opened = unsafe {
        if system::ImpersonateNamedPipeClient(server.handle) == 0 {
            return Err(code(0));
        }
        let thread = system::GetCurrentThread();
        let opened = code(system::OpenThreadToken(thread, TOKEN_QUERY, 1, &mut token));
        assert_eq!(code(system::RevertToSelf()), ERROR_SUCCESS);
        opened
    };
    if opened != ERROR_SUCCESS {
        return Err(opened);
    }
    let user = sid_of(token, TokenUser);
    let level = token_information(token, TokenImpersonationLevel)[0] as i32;
    // SAFETY: the token is open, and we own it.
    unsafe { system::CloseHandle(token) };
    Ok((user, level))
}

/// The user or the default owner of this process, in text form.
pub fn sid_of_process(class: TOKEN_INFORMATION_CLASS) -> String {
    let mut token = ptr::null_mut();
    // SAFETY: the process's pseudo handle is always valid; `token` is written on success.
    let done =
        unsafe { system::OpenProcessToken(system::GetCurrentProcess(), TOKEN_QUERY, &mut token) };
    assert_eq!(code(done), ERROR_SUCCESS);
    let sid = sid_of(token, class);
    // SAFETY: the token is open, and we own it.
    unsafe { system::CloseHandle(token) };
    sid
}

fn sid_of(token: HANDLE, class: TOKEN_INFORMATION_CLASS) -> String {
    let information = token_information(token, class);
    // SAFETY: the structures of these classes start with the address of a SID, which follows them.
    unsafe { text_of(*information.as_ptr().cast::<PSID>()) }
}

fn token_information(token: HANDLE, class: TOKEN_INFORMATION_CLASS) -> Vec<u64> {
    let mut information = vec![0_u64; 64];
    let mut length = 0;
    // SAFETY: the token is open, and the buffer has the given length.
    let done = unsafe {
        system::GetTokenInformation(
            token,
            class,
            information.as_mut_ptr().cast(),
            mem::size_of_val(&information[..]) as u32,
            &mut length,
        )
    };
    assert_eq!(code(done), ERROR_SUCCESS);
    information
}

/// A SID in text form.
///
/// # Safety
///
/// `sid` has to point to a valid SID.
pub unsafe fn text_of(sid: PSID) -> String {
    let mut text = ptr::null_mut();
    // SAFETY: the caller guarantees that `sid` is valid; `text` is written on success, ends in NUL,
    // and is ours to free.
    unsafe {
        let done = system::ConvertSidToStringSidW(sid, &mut text);
        assert_eq!(code(done), ERROR_SUCCESS);
        let length = (0..).take_while(|&index| *text.add(index) != 0).count();
        let sid = String::from_utf16_lossy(slice::from_raw_parts(text, length));
        system::LocalFree(text.cast());
        sid
    }
}
