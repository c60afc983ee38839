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
#[derive(Debug)]
pub(crate) struct StartLock {
    _file: File,
}

/// Takes the lock. `None` if another client has it.
pub(crate) fn start_lock(name: &PipeName, _path: &Path) -> io::Result<Option<StartLock>> {
    const FILE_FLAG_DELETE_ON_CLOSE: u32 = 0x0400_0000;
    /// A file name has at most 255 characters. If two names share a lock, one only waits longer.
    const LONGEST: usize = 100;

    // Pipe names are case-insensitive.
    let name: String = name
        .address()
        .chars()
        .map(|character| match character.is_alphanumeric() {
            true => character.to_ascii_lowercase(),
            false => '_',
        })
        .collect();
    let begin = name
        .char_indices()
        .rev()
        .nth(LONGEST)
        .map_or(0, |(index, _)| index);
    let path = env::temp_dir().join(format!("pipe-server-start{}.lock", &name[begin..]));
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .share_mode(0)
        .custom_flags(FILE_FLAG_DELETE_ON_CLOSE)
        .open(&path);
    match opened {
        Ok(file) => Ok(Some(StartLock { _file: file })),
        Err(error) => match code(&error) {
            Some(ERROR_SHARING_VIOLATION) => Ok(None),
            // It is being deleted. Without it, no file can be created in that directory.
            Some(ERROR_ACCESS_DENIED) if path.exists() => Ok(None),
            _ => Err(error),
        },
    }
}
