//! The place of a pipe's socket in the file system, and the right to serve it.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    net::SocketAddrUnix,
};

use super::socket::Socket;

/// Makes the directory of a short name's socket, for this user alone, and refuses one that another
/// user could have prepared. The directory of a path that the user gave is the user's affair.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    let ours = [
        "pipe-server".to_owned(),
        format!("pipe-server-{}", rustix::process::getuid().as_raw()),
    ];
    let is_ours = directory.file_name().and_then(|name| name.to_str());
    if !is_ours.is_some_and(|name| ours.iter().any(|ours| ours == name)) {
        return Ok(());
    }
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io::Error::new(
                error.kind(),
                format!(
                    "its directory {} can't be made: {error}; set XDG_RUNTIME_DIR to a directory of this \
                     user, or give the pipe's whole path",
                    directory.display()
                ),
            ));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(directory)?;
    let owner = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != owner || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} is not a directory that only this user can write to",
                directory.display()
            ),
        ));
    }
    Ok(())
}

/// The right to serve a path, held through a lock file beside it. What a killed server left behind
/// is removed, and nothing else: two servers that start at once can't remove each other's socket.
pub(super) struct Claim {
    pub(super) path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
    /// The socket file that we made, by device and inode.
    pub(super) bound: Option<(u64, u64)>,
}

impl Claim {
    pub(super) fn new(path: PathBuf) -> io::Result<Self> {
        let mut lock_path = OsString::from(&path);
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = lock_file(&lock_path)?;
        let claim = Self {
            path,
            lock_path,
            _lock: lock,
            bound: None,
        };
        claim.remove_stale_socket()?;
        Ok(claim)
    }

    fn remove_stale_socket(&self) -> io::Result<()> {
        let metadata = match fs::symlink_metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if !metadata.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is no socket is there and was left as it is: choose another name, or remove it",
            ));
        }
        // A server that holds no lock of ours still answers.
        match rustix::net::connect(&Socket::new()?, &SocketAddrUnix::new(&self.path)?) {
            Err(Errno::CONNREFUSED) => fs::remove_file(&self.path),
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::ACCESS) => Err(io::ErrorKind::PermissionDenied.into()),
            Ok(()) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let ours = |metadata: &fs::Metadata| self.bound == Some(identity(metadata));
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| ours(&metadata)) {
            _ = fs::remove_file(&self.path);
        }
        _ = fs::remove_file(&self.lock_path);
    }
}

pub(super) fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Why a lock file can't be opened: mostly for want of its directory.
fn unopened(path: &Path, error: &io::Error) -> io::Error {
    let problem = match path.parent() {
        Some(directory) if error.kind() == io::ErrorKind::NotFound => format!(
            "there is no directory {}: make it, or choose another name",
            directory.display()
        ),
        _ => format!("{} can't be opened: {error}", path.display()),
    };
    io::Error::new(error.kind(), problem)
}

/// Opens and locks the file, which its last holder may be removing at this moment.
fn lock_file(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)
            .map_err(|error| unopened(path, &error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) => return Err(error.into()),
        }
        match fs::symlink_metadata(path) {
            Ok(there) if identity(&there) == identity(&file.metadata()?) => return Ok(file),
            _ => {}
        }
    }
}
