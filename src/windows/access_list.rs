//! Who may connect, as an access list.

use std::io;

use windows_sys::Win32::Foundation::ERROR_ACCESS_DENIED;

use super::{
    overlapped::{InstanceOptions, instance},
    rights,
    security::{SecurityDescriptor, current_user},
    system::code,
};
use crate::{access::Access, error::OutOfRange};

impl SecurityDescriptor {
    /// # Errors
    ///
    /// [`OutOfRange`] for an [`Access::Sddl`] that can't be served with.
    pub(crate) fn new(access: &Access) -> io::Result<Self> {
        match access {
            Access::Sddl(text) => of_user(text),
            Access::CurrentUser => Self::parse(&list("")?),
            Access::Everyone => {
                let granted = rights::GRANTED;
                Self::parse(&list(&format!("(A;;{granted:#x};;;WD)"))?)
            }
        }
    }
}

/// A protected list: this user and SYSTEM may do anything, and `others` what they are given.
///
/// Nobody is denied. An entry for NETWORK would be, but tokens of users who log on through SSH or WinRM
/// hold that group too, and their own second instance is checked against the list.
/// `PIPE_REJECT_REMOTE_CLIENTS` is what keeps clients on other machines out.
///
/// The owner is left to the system: it is the one that this process's token names for new objects (*Owner
/// of a New Object*), which `is_own` and .NET's clients expect.
fn list(others: &str) -> io::Result<String> {
    let user = current_user()?;
    Ok(format!("D:P(A;;GA;;;{user})(A;;GA;;;SY){others}"))
}

/// The descriptor `text`, which has to let this process create a second instance, and so any number.
///
/// The first instance of a pipe is created whatever its list says, every further one is checked
/// against it (*Named Pipe Security and Access Rights*). A list that shuts out its own server would
/// show only when the first client connects, so it is tried on a pipe that no client knows of.
fn of_user(text: &str) -> io::Result<SecurityDescriptor> {
    let descriptor = SecurityDescriptor::parse(text).map_err(|error| {
        let problem = format!("is {text:?}, which is not understood as a descriptor: {error}");
        OutOfRange::new("access", problem)
    })?;
    let address = format!(r"\\.\pipe\pipe-server-{:032x}", fastrand::u128(..));
    let options = |first| InstanceOptions {
        first,
        allow_remote: false,
        buffer_size: 0,
    };
    let _first = instance(&address, &descriptor, options(true))?;
    match instance(&address, &descriptor, options(false)) {
        Err(error) if code(&error) == Some(ERROR_ACCESS_DENIED) => {
            let problem = format!(
                "is {text:?}, which does not let this process itself create further instances: add an \
                 entry that gives its user all rights, such as (A;;GA;;;{})",
                current_user()?
            );
            Err(OutOfRange::new("access", problem).into())
        }
        second => second.map(|_| descriptor),
    }
}
