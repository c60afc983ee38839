//! Access lists, and the current user.

use std::{ffi::c_void, io, mem, ptr};

use tokio::net::windows::named_pipe::{NamedPipeServer, ServerOptions};
use windows_sys::Win32::{
    Foundation::{CloseHandle, HANDLE, LocalFree},
    Security::{
        Authorization::{
            ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW,
            SDDL_REVISION_1,
        },
        GetTokenInformation, PSECURITY_DESCRIPTOR, PSID, SECURITY_ATTRIBUTES, TOKEN_QUERY,
        TOKEN_USER, TokenUser,
    },
    System::Threading::{GetCurrentProcess, OpenProcessToken},
};

use super::wide;
use crate::access::{Access, UserId};

/// `FILE_READ_DATA | FILE_WRITE_DATA | FILE_READ_EA | FILE_WRITE_EA | FILE_READ_ATTRIBUTES |
/// FILE_WRITE_ATTRIBUTES | READ_CONTROL | SYNCHRONIZE`: all that a client needs, and not the right to
/// create instances (`FILE_APPEND_DATA`), which `GENERIC_WRITE` holds.
const CLIENT_RIGHTS: &str = "0x12019b";

/// The well-known Administrators group, which owns what an elevated administrator makes.
const ADMINISTRATORS: &str = "S-1-5-32-544";

/// A security descriptor in the system's memory.
pub(crate) struct SecurityDescriptor(PSECURITY_DESCRIPTOR);

// SAFETY: the descriptor is never changed after it was made, and LocalFree may be called on any thread.
unsafe impl Send for SecurityDescriptor {}
// SAFETY: as above.
unsafe impl Sync for SecurityDescriptor {}

impl SecurityDescriptor {
    pub(crate) fn new(access: &Access, allow_remote: bool) -> io::Result<Self> {
        match access {
            Access::Sddl(text) => Self::parse(text),
            Access::CurrentUser => Self::parse(&list(&current_user()?, allow_remote, "")),
            Access::Everyone => {
                let everyone = format!("(A;;{CLIENT_RIGHTS};;;WD)");
                Self::parse(&list(&current_user()?, allow_remote, &everyone))
            }
        }
    }

    fn parse(text: &str) -> io::Result<Self> {
        let wide = wide(text);
        let mut descriptor = ptr::null_mut();
        // SAFETY: `wide` ends in NUL and lives through the call; `descriptor` is written on success.
        let done = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                wide.as_ptr(),
                SDDL_REVISION_1,
                &mut descriptor,
                ptr::null_mut(),
            )
        };
        if done == 0 {
            let error = io::Error::last_os_error();
            let problem = format!("the security descriptor {text:?} is not understood: {error}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        Ok(Self(descriptor))
    }

    /// The form in which the calls that create something take it. It points to the descriptor.
    pub(super) fn attributes(&self) -> SECURITY_ATTRIBUTES {
        SECURITY_ATTRIBUTES {
            nLength: mem::size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: self.0,
            bInheritHandle: 0,
        }
    }
}

impl Drop for SecurityDescriptor {
    fn drop(&mut self) {
        // SAFETY: the system allocated it with LocalAlloc, and nobody else has it.
        unsafe { LocalFree(self.0) };
    }
}

/// A protected list: the user and SYSTEM may do anything, NETWORK nothing unless asked for.
///
/// The owner is this user, also where an elevated administrator's objects would be owned by the
/// Administrators group: so a client of the same user knows whose pipe it is.
fn list(user: &str, allow_remote: bool, others: &str) -> String {
    let network = if allow_remote { "" } else { "(D;;GA;;;NU)" };
    format!("O:{user}D:P{network}(A;;GA;;;{user})(A;;GA;;;SY){others}")
}

/// Creates an instance with an access list.
pub(crate) fn create_server(
    options: &ServerOptions,
    address: &str,
    descriptor: &SecurityDescriptor,
) -> io::Result<NamedPipeServer> {
    let mut attributes = descriptor.attributes();
    let attributes: *mut c_void = (&raw mut attributes).cast();
    // SAFETY: `attributes` points to a SECURITY_ATTRIBUTES whose descriptor is valid; both live through
    // the call.
    unsafe { options.create_with_security_attributes_raw(address, attributes) }
}

/// The user that this process runs as, as a SID in text form.
pub(crate) fn current_user() -> io::Result<String> {
    let mut token = ptr::null_mut();
    // SAFETY: the pseudo handle of the process is always valid; `token` is written on success.
    let done = unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &mut token) };
    if done == 0 {
        return Err(io::Error::last_os_error());
    }
    user_of(&Token(token))
}

/// Whether what `owner` made was made by this user.
pub(crate) fn is_current_user(owner: &UserId) -> bool {
    let UserId::Sid(sid) = owner;
    sid == ADMINISTRATORS || current_user().is_ok_and(|current| *sid == current)
}

/// An access token.
pub(super) struct Token(pub(super) HANDLE);

impl Drop for Token {
    fn drop(&mut self) {
        // SAFETY: the handle is open and nobody else has it.
        unsafe { CloseHandle(self.0) };
    }
}

/// The user of a token.
pub(super) fn user_of(token: &Token) -> io::Result<String> {
    let mut length = 0;
    // SAFETY: no buffer is given, so only the length that is needed is written.
    unsafe { GetTokenInformation(token.0, TokenUser, ptr::null_mut(), 0, &mut length) };
    // In units of u64, so that the structure in it is aligned.
    let mut buffer = vec![0_u64; (length as usize).div_ceil(8)];
    // SAFETY: `buffer` has room for `length` bytes.
    let done = unsafe {
        GetTokenInformation(
            token.0,
            TokenUser,
            buffer.as_mut_ptr().cast(),
            length,
            &mut length,
        )
    };
    if done == 0 || buffer.len() * 8 < mem::size_of::<TOKEN_USER>() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the buffer, aligned and long enough, begins with a TOKEN_USER, whose
    // SID lies in the same buffer.
    unsafe { sid_text((*buffer.as_ptr().cast::<TOKEN_USER>()).User.Sid) }
}

/// A SID in text form.
///
/// # Safety
///
/// `sid` has to point to a valid SID.
pub(super) unsafe fn sid_text(sid: PSID) -> io::Result<String> {
    let mut text = ptr::null_mut();
    // SAFETY: the caller vouches for `sid`; `text` is written on success.
    if unsafe { ConvertSidToStringSidW(sid, &mut text) } == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system wrote a text that ends in NUL.
    let units = unsafe {
        let length = (0..).take_while(|&index| *text.add(index) != 0).count();
        std::slice::from_raw_parts(text, length)
    };
    let sid = String::from_utf16_lossy(units);
    // SAFETY: the system allocated the text with LocalAlloc; `units` is not used any more.
    unsafe { LocalFree(text.cast()) };
    Ok(sid)
}
