//! Security descriptors and tokens.

use std::{ffi::c_void, io, mem, os::windows::io::AsRawHandle, ptr};

use tokio::net::windows::named_pipe::{NamedPipeServer, ServerOptions};
use windows_sys::Win32::Security::{
    Authorization::SDDL_REVISION_1, PSECURITY_DESCRIPTOR, PSID, SECURITY_ATTRIBUTES,
    TOKEN_INFORMATION_CLASS, TOKEN_OWNER, TOKEN_QUERY, TOKEN_USER, TokenOwner, TokenUser,
};

use super::{
    functions::{
        ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW,
        GetCurrentProcess, GetTokenInformation, LocalFree, OpenProcessToken, check, last_error,
        wide,
    },
    handle::Handle,
};
use crate::peer::UserId;

/// A security descriptor allocated by the system.
pub(crate) struct SecurityDescriptor(PSECURITY_DESCRIPTOR);

// SAFETY: the descriptor is never changed once created, and LocalFree may be called on any thread.
unsafe impl Send for SecurityDescriptor {}
// SAFETY: as above.
unsafe impl Sync for SecurityDescriptor {}

impl SecurityDescriptor {
    pub(crate) fn parse(text: &str) -> io::Result<Self> {
        let wide = wide(text);
        let mut descriptor = ptr::null_mut();
        // SAFETY: `wide` ends in NUL and outlives the call; `descriptor` is written on success.
        let done = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                wide.as_ptr(),
                SDDL_REVISION_1,
                &mut descriptor,
                ptr::null_mut(),
            )
        };
        check(done).map(|()| Self(descriptor))
    }

    /// The argument for calls that create an object. It points to the descriptor.
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
        // SAFETY: the system allocated it with LocalAlloc, and `self` owns it.
        unsafe { LocalFree(self.0) };
    }
}

/// Creates one of Tokio's instances with an access list.
pub(crate) fn create_tokio_server(
    options: &ServerOptions,
    address: &str,
    descriptor: &SecurityDescriptor,
) -> io::Result<NamedPipeServer> {
    let mut attributes = descriptor.attributes();
    let attributes: *mut c_void = (&raw mut attributes).cast();
    // SAFETY: `attributes` points to a SECURITY_ATTRIBUTES whose descriptor is valid; both outlive
    // the call.
    unsafe { options.create_with_security_attributes_raw(address, attributes) }
}

/// The SID of this process's user, in text form.
pub(crate) fn current_user() -> io::Result<String> {
    user_of(&process_token()?)
}

/// Whether `owner` is this process's user or the default owner of its token, which for an elevated
/// administrator is the Administrators group.
pub(crate) fn is_own(owner: &UserId) -> io::Result<bool> {
    let UserId::Sid(sid) = owner;
    let token = process_token()?;
    Ok(*sid == user_of(&token)? || *sid == owner_of(&token)?)
}

fn process_token() -> io::Result<Handle> {
    let mut token = ptr::null_mut();
    // SAFETY: the process's pseudo handle is always valid; on success `token` is a new handle that
    // we own.
    unsafe {
        check(OpenProcessToken(
            GetCurrentProcess(),
            TOKEN_QUERY,
            &mut token,
        ))?;
        Handle::owned(token)
    }
}

/// The user of a token.
pub(super) fn user_of(token: &Handle) -> io::Result<String> {
    let information = token_information(token, TokenUser, mem::size_of::<TOKEN_USER>())?;
    // SAFETY: the buffer is aligned and long enough, and starts with a TOKEN_USER, whose SID lies
    // in the same buffer.
    unsafe { sid_text((*information.as_ptr().cast::<TOKEN_USER>()).User.Sid) }
}

/// The default owner of objects created with a token.
fn owner_of(token: &Handle) -> io::Result<String> {
    let information = token_information(token, TokenOwner, mem::size_of::<TOKEN_OWNER>())?;
    // SAFETY: as above, with a TOKEN_OWNER.
    unsafe { sid_text((*information.as_ptr().cast::<TOKEN_OWNER>()).Owner) }
}

/// Queries a token (`GetTokenInformation`). Returns at least `shortest` bytes, as u64 values so
/// that the structure in them is aligned.
fn token_information(
    token: &Handle,
    class: TOKEN_INFORMATION_CLASS,
    shortest: usize,
) -> io::Result<Vec<u64>> {
    let token = token.as_raw_handle();
    let mut length = 0;
    // SAFETY: without a buffer, only the required length is written.
    unsafe { GetTokenInformation(token, class, ptr::null_mut(), 0, &mut length) };
    let mut buffer = vec![0_u64; (length as usize).max(shortest).div_ceil(8)];
    let room = (buffer.len() * 8) as u32;
    // SAFETY: `buffer` has room for `room` bytes.
    check(unsafe {
        GetTokenInformation(token, class, buffer.as_mut_ptr().cast(), room, &mut length)
    })?;
    Ok(buffer)
}

/// A SID in text form.
///
/// # Safety
///
/// `sid` has to point to a valid SID.
pub(super) unsafe fn sid_text(sid: PSID) -> io::Result<String> {
    let mut text = ptr::null_mut();
    // SAFETY: the caller guarantees that `sid` is valid; `text` is written on success.
    if unsafe { ConvertSidToStringSidW(sid, &mut text) } == 0 {
        return Err(last_error());
    }
    // SAFETY: the system wrote a NUL-terminated string.
    let units = unsafe {
        let length = (0..).take_while(|&index| *text.add(index) != 0).count();
        std::slice::from_raw_parts(text, length)
    };
    let sid = String::from_utf16_lossy(units);
    // SAFETY: the system allocated the text with LocalAlloc; `units` is no longer used.
    unsafe { LocalFree(text.cast()) };
    Ok(sid)
}
