//! The right to serve a path.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FlockOperation, OFlags, chownat, flock},
    io::Errno,
    net::SocketAddrUnix,
    process::Gid,
};

use super::{
    directory::{denied, is_ours, look_up},
    socket::Socket,
};

/// The right to serve a path, held through a lock file beside it. Only what a killed server left
/// behind is removed: two servers that start at once can't remove each other's socket.
pub(super) struct Claim {
    pub(super) path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
    /// The socket file that we created, by device and inode.
    bound: Option<(u64, u64)>,
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

    /// Takes the socket file, which bind(2) has just created, and sets its `group`, if there is
    /// one, and then its `mode`: the umask may have cleared some bits.
    ///
    /// Works on the inode, since anyone who can write to the directory could replace the path with
    /// a link.
    pub(super) fn take_socket_file(&mut self, mode: u32, group: Option<Gid>) -> io::Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::PATH | OFlags::NOFOLLOW).bits() as i32)
            .open(&self.path)?;
        let metadata = file.metadata()?;
        // With a second link it may be another socket of this user.
        let is_new = metadata.file_type().is_socket() && metadata.nlink() == 1;
        if !is_new || !is_ours(&metadata) {
            return Err(denied(
                "the socket was replaced while it was being created: choose a directory that only this user can \
                 write to",
            ));
        }
        self.bound = Some(identity(&metadata));
        if let Some(group) = group {
            chownat(&file, "", None, Some(group), AtFlags::EMPTY_PATH).map_err(|error| {
                let problem = format!(
                    "its group can't be set to gid {}: {error}; choose a group that this process is in, or \
                     run it as root",
                    group.as_raw()
                );
                io::Error::new(io::Error::from(error).kind(), problem)
            })?;
        }
        if metadata.mode() & 0o7777 != mode {
            // fchmod(2) rejects O_PATH descriptors, and fchmodat2(2) requires Linux 6.6.
            let inode = format!("/proc/self/fd/{}", file.as_raw_fd());
            fs::set_permissions(&inode, fs::Permissions::from_mode(mode)).map_err(|error| {
                let problem = format!(
                    "its mode can't be set to {mode:04o}: {error}; mount /proc, or set a umask that lets \
                     the mode through"
                );
                io::Error::new(error.kind(), problem)
            })?;
        }
        Ok(())
    }

    fn remove_stale_socket(&self) -> io::Result<()> {
        let Some(metadata) = look_up(&self.path, fs::symlink_metadata)? else {
            return Ok(());
        };
        if !metadata.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is not a socket is there and was left unchanged: choose another name, or remove it",
            ));
        }
        // A server that does not take our lock still answers.
        match rustix::net::connect(&Socket::new()?, &SocketAddrUnix::new(&self.path)?) {
            Err(Errno::CONNREFUSED) => fs::remove_file(&self.path),
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::ACCESS) => Err(denied(format!(
                "a socket of another user (uid {}) is there: choose another name",
                metadata.uid()
            ))),
            Ok(()) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.bound.is_some_and(|bound| is_at(&self.path, bound)) {
            _ = fs::remove_file(&self.path);
        }
        _ = fs::remove_file(&self.lock_path);
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Whether a file, given by device and inode, is at `path`.
fn is_at(path: &Path, file: (u64, u64)) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| identity(&metadata) == file)
}

/// The error of a lock file that can't be opened: usually its directory does not exist.
fn unopened(path: &Path, error: &io::Error) -> io::Error {
    let problem = match path.parent() {
        Some(directory) if error.kind() == io::ErrorKind::NotFound => format!(
            "the directory {} does not exist: create it, or choose another name",
            directory.display()
        ),
        _ => format!("{} can't be opened: {error}", path.display()),
    };
    io::Error::new(error.kind(), problem)
}

/// Opens and locks the file, which its last holder may be removing at the same time.
///
/// # Errors
///
/// `AddrInUse` if another process of this user has locked it.
fn lock_file(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            // Opening a FIFO would wait for its reader.
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
            .open(path)
            .map_err(|error| unopened(path, &error))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || !is_ours(&metadata) {
            return Err(denied(format!(
                "{} is not a file of this user (its owner is uid {}): remove it, or choose another name",
                path.display(),
                metadata.uid()
            )));
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) => return Err(error.into()),
        }
        if is_at(path, identity(&metadata)) {
            return Ok(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_mode_is_given_to_the_socket_and_never_to_what_a_link_points_at() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut claim = Claim::new(path.clone()).unwrap();
        let _socket = UnixListener::bind(&path).unwrap();
        set_mode(&path, 0o600);
        claim.take_socket_file(0o666, None).unwrap();
        assert_eq!(mode(&path), 0o666);

        // Another process was faster.
        let victim = directory.path().join("victim");
        fs::write(&victim, "secret").unwrap();
        set_mode(&victim, 0o600);
        fs::remove_file(&path).unwrap();
        symlink(&victim, &path).unwrap();
        let error = claim.take_socket_file(0o666, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        assert_eq!(mode(&victim), 0o600);

        let other = directory.path().join("other");
        let _other = UnixListener::bind(&other).unwrap();
        set_mode(&other, 0o600);
        fs::remove_file(&path).unwrap();
        fs::hard_link(&other, &path).unwrap();
        claim.take_socket_file(0o666, None).unwrap_err();
        assert_eq!(mode(&other), 0o600);
    }
}
