//! The lock of the client that starts a server.

use std::{
    env,
    fs::{File, OpenOptions},
    io,
    os::windows::fs::OpenOptionsExt as _,
    path::Path,
};

use windows_sys::Win32::Foundation::{ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION};

use super::code;
use crate::name::PipeName;

/// The right to start the server of a name, among the clients of this user. A file that only one
/// process can have open, and that is gone with its handle (*CreateFileW*). A mutex would belong to
/// a thread.
pub(crate) type StartLock = File;

/// Takes the lock. `None` if another client has it.
pub(crate) fn start_lock(name: &PipeName, _path: &Path) -> io::Result<Option<StartLock>> {
    const FILE_FLAG_DELETE_ON_CLOSE: u32 = 0x0400_0000;
    /// A file name has at most 255 characters. If two names share a lock, one only waits longer.
    const LONGEST: usize = 100;

    let address = name.address();
    let excess = address.chars().count().saturating_sub(LONGEST);
    // Pipe names are case-insensitive.
    let end = address.chars().skip(excess);
    let end: String = end
        .map(|character| match character.is_alphanumeric() {
            true => character.to_ascii_lowercase(),
            false => '_',
        })
        .collect();
    let path = env::temp_dir().join(format!("pipe-server-start{end}.lock"));
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .share_mode(0)
        .custom_flags(FILE_FLAG_DELETE_ON_CLOSE)
        .open(&path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) => match code(&error) {
            Some(ERROR_SHARING_VIOLATION) => Ok(None),
            // It is being deleted. Without it, no file can be created in that directory.
            Some(ERROR_ACCESS_DENIED) if path.exists() => Ok(None),
            _ => Err(error),
        },
    }
}
