//! The access list of a pipe.

use std::io;

use windows_sys::Win32::Foundation::ERROR_ACCESS_DENIED;

use super::{
    code, rights,
    sys::{InstanceOptions, SecurityDescriptor, create_instance, current_user},
};
use crate::{access::Access, error::OutOfRange};

/// The security descriptor of a pipe.
///
/// # Errors
///
/// Returns [`OutOfRange`] for an unusable [`Access::Custom`].
pub(super) fn descriptor(access: &Access) -> io::Result<SecurityDescriptor> {
    match access {
        Access::Custom(access) => of_user(&access.sddl),
        Access::CurrentUser => SecurityDescriptor::parse(&list("")?),
        Access::Everyone => {
            let granted = rights::GRANTED;
            SecurityDescriptor::parse(&list(&format!("(A;;{granted:#x};;;WD)"))?)
        }
    }
}

/// A protected list that grants this user and SYSTEM all rights, followed by the entries in
/// `others`.
///
/// It denies nobody. NETWORK would be a candidate, but users who log on through SSH or WinRM have
/// that group in their token too, and their own second instance is checked against the list.
/// `PIPE_REJECT_REMOTE_CLIENTS` rejects clients on other machines instead.
///
/// No owner is set, so the system uses the token's default owner for new objects (*Owner of a New
/// Object*), which `is_own` and .NET's clients expect.
fn list(others: &str) -> io::Result<String> {
    let user = current_user()?;
    Ok(format!("D:P(A;;GA;;;{user})(A;;GA;;;SY){others}"))
}

/// Parses the descriptor `text`, which must let this process create further instances.
///
/// The list does not apply to the first instance of a pipe, only to later ones (*Named Pipe
/// Security and Access Rights*). A list that denies its own server would fail only when the first
/// client connects, so it is first tried on a pipe with a random name.
fn of_user(text: &str) -> io::Result<SecurityDescriptor> {
    let descriptor = SecurityDescriptor::parse(text).map_err(|error| {
        let problem = format!("is {text:?}, which is not a valid security descriptor: {error}");
        OutOfRange::new("access", problem)
    })?;
    let address = format!(r"\\.\pipe\pipe-server-{:032x}", fastrand::u128(..));
    let options = |first| InstanceOptions {
        first,
        allow_remote: false,
        buffer_size: 0,
    };
    let _first = create_instance(&address, &descriptor, options(true))?;
    match create_instance(&address, &descriptor, options(false)) {
        Err(error) if code(&error) == Some(ERROR_ACCESS_DENIED) => {
            let problem = format!(
                "is {text:?}, which does not let this process create further instances: add an \
                 entry that grants its user all rights, such as (A;;GA;;;{})",
                current_user()?
            );
            Err(OutOfRange::new("access", problem).into())
        }
        second => second.map(|_| descriptor),
    }
}
