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

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::{
    fs::{AtFlags, FlockOperation, OFlags, chownat, flock, major, minor},
    io::Errno,
    net::SocketAddrUnix,
    process::Gid,
};

use super::{
    directory::{denied, directory_of, is_ours, look_up, other_user},
    socket::Socket,
};
use crate::error::ServedBy;

/// The right to serve a path, held through a lock file beside it. Only what a killed server left
/// behind is removed: two servers that start at once can't remove each other's socket.
pub(super) struct Claim {
    pub(super) path: PathBuf,
    lock: LockFile,
    /// The directory, if it holds nothing but pipes.
    directory: Option<LockedDirectory>,
    /// The socket file that we created.
    bound: Option<FileId>,
}

/// The state of a socket file that we created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketFile {
    InPlace,
    Removed,
    Replaced,
}

impl Claim {
    /// Claims `path`. Its directory is locked as well if it `holds_only_pipes`.
    pub(super) fn new(path: PathBuf, holds_only_pipes: bool) -> io::Result<Self> {
        let directory = holds_only_pipes.then(|| LockedDirectory::new(directory_of(&path)));
        let claim = Self {
            lock: LockFile::take(&path)?,
            directory,
            path,
            bound: None,
        };
        claim.remove_stale_socket()?;
        Ok(claim)
    }

    /// Makes sure that the lock file is in its place, and the directory locked.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if another process of this user has claimed the path by now.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        if let Some(directory) = &mut self.directory {
            directory.renew();
        }
        if !is_at(&self.lock.path, self.lock.id) {
            self.lock = LockFile::take(&self.path)?;
        }
        Ok(())
    }

    /// Whether the socket file is where it was created. Its inode is not reused while the socket is
    /// open.
    pub(super) fn socket_file(&self) -> SocketFile {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) if Some(file_id(&metadata)) == self.bound => SocketFile::InPlace,
            Ok(_) => SocketFile::Replaced,
            Err(error) if error.kind() == io::ErrorKind::NotFound => SocketFile::Removed,
            // It can't be told.
            Err(_) => SocketFile::InPlace,
        }
    }

    /// Removes the socket file, unless another one is in its place.
    pub(super) fn remove_socket_file(&mut self) {
        if self
            .bound
            .take()
            .is_some_and(|bound| is_at(&self.path, bound))
        {
            _ = fs::remove_file(&self.path);
        }
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
        self.bound = Some(file_id(&metadata));
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
        let probe = Socket::new()?;
        match rustix::net::connect(&probe, &SocketAddrUnix::new(&self.path)?) {
            Err(Errno::CONNREFUSED) => fs::remove_file(&self.path),
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::ACCESS) => Err(denied(format!(
                "a socket of {} is there: choose another name",
                other_user(metadata.uid())
            ))),
            Ok(()) => {
                let server = getsockopt(&probe, PeerCredentials).ok();
                Err(in_use(server.and_then(|server| process_id(server.pid()))))
            }
            Err(_) => Err(in_use(None)),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.remove_socket_file();
    }
}

/// A file, by its device and inode.
type FileId = (u64, u64);

fn file_id(metadata: &fs::Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

/// Whether `file` is at `path`.
fn is_at(path: &Path, file: FileId) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| file_id(&metadata) == file)
}

/// The error of a path that `process_id` serves, if it is known.
fn in_use(process_id: Option<u32>) -> io::Error {
    let kind = io::ErrorKind::AddrInUse;
    match process_id {
        Some(process_id) => io::Error::new(kind, ServedBy { process_id }),
        None => kind.into(),
    }
}

/// A process id of the system. 0 stands for a process outside of our PID namespace.
fn process_id(id: i32) -> Option<u32> {
    u32::try_from(id).ok().filter(|&id| id > 0)
}

/// The process that has locked the lock file of `path`, if the system says so.
pub(super) fn holder(path: &Path) -> Option<u32> {
    let metadata = fs::symlink_metadata(beside(path, ".lock")).ok()?;
    let locks = fs::read("/proc/locks").ok()?;
    holder_in(&String::from_utf8_lossy(&locks), file_id(&metadata))
}

/// The process that has locked `file`, in the text of proc_locks(5).
fn holder_in(locks: &str, (device, inode): FileId) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let holder = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        match columns[..] {
            [_, "FLOCK", _, "WRITE", id, locked, ..] if locked == file => id.parse().ok(),
            _ => None,
        }
    };
    locks.lines().find_map(holder).and_then(process_id)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(suffix);
    path.into()
}

/// A locked file beside a socket. A server holds one while it serves the socket, and a client holds
/// another while it starts the server.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    id: FileId,
    _locked: File,
}

impl LockFile {
    /// Locks the lock file of the path `served`.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if another process of this user has locked it.
    fn take(served: &Path) -> io::Result<Self> {
        Self::try_take(beside(served, ".lock"))?.ok_or_else(|| in_use(holder(served)))
    }

    /// Locks the file that decides which client starts the server of `path`. `None` if another
    /// client has locked it.
    pub(super) fn take_start_lock(path: &Path) -> io::Result<Option<Self>> {
        Self::try_take(beside(path, ".start.lock"))
    }

    /// Locks the lock file at `path`, which its last holder may be removing at the same time. `None`
    /// if another process of this user has locked it.
    fn try_take(path: PathBuf) -> io::Result<Option<Self>> {
        loop {
            let (file, id) = open_lock_file(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            if is_at(&path, id) {
                return Ok(Some(Self {
                    path,
                    id,
                    _locked: file,
                }));
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if is_at(&self.path, self.id) {
            _ = fs::remove_file(&self.path);
        }
    }
}

/// A directory with a shared lock, which keeps systemd-tmpfiles from removing the old files in it
/// (tmpfiles.d(5), "Age").
struct LockedDirectory {
    path: PathBuf,
    locked: Option<(File, FileId)>,
}

impl LockedDirectory {
    fn new(path: &Path) -> Self {
        let mut directory = Self {
            path: path.to_owned(),
            locked: None,
        };
        directory.renew();
        directory
    }

    /// Locks the directory that is at the path now.
    fn renew(&mut self) {
        if matches!(self.locked, Some((_, id)) if is_at(&self.path, id)) {
            return;
        }
        let lock = || {
            let directory = OpenOptions::new()
                .read(true)
                .custom_flags((OFlags::NOFOLLOW | OFlags::DIRECTORY).bits() as i32)
                .open(&self.path)?;
            flock(&directory, FlockOperation::NonBlockingLockShared)?;
            let id = file_id(&directory.metadata()?);
            io::Result::Ok((directory, id))
        };
        // It fails while the directory is being cleaned.
        self.locked = lock().ok();
    }
}

/// Opens a lock file, and creates it if it does not exist.
fn open_lock_file(path: &Path) -> io::Result<(File, FileId)> {
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
        let what = match is_ours(&metadata) {
            true => "it is not a regular file".to_owned(),
            false => format!("it belongs to {}", other_user(metadata.uid())),
        };
        return Err(denied(format!(
            "{} is not a file of this user ({what}): remove it, or choose another name",
            path.display()
        )));
    }
    if metadata.mode() & 0o7777 != 0o600 {
        // Under some umasks its own user could not open it again.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok((file, file_id(&metadata)))
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

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::{
        super::directory::tests::{mode, set_mode},
        *,
    };

    #[test]
    fn a_lock_is_held_by_a_process_of_this_namespace() {
        let locks = "\
1: FLOCK  ADVISORY  WRITE 2213 fe:0a:10191166 0 EOF
2: FLOCK  ADVISORY  READ 2214 fe:0a:10133507 0 EOF
3: FLOCK  ADVISORY  WRITE 0 fe:0a:10191167 0 EOF
3: -> FLOCK  ADVISORY  WRITE 2216 fe:0a:10191168 0 EOF
";
        let device = rustix::fs::makedev(0xfe, 0x0a);
        assert_eq!(holder_in(locks, (device, 10_191_166)), Some(2213));
        for inode in [10_133_507, 10_191_167, 10_191_168, 166] {
            assert_eq!(holder_in(locks, (device, inode)), None, "{inode}");
        }
    }

    #[test]
    fn the_mode_is_given_to_the_socket_and_never_to_what_a_link_points_at() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut claim = Claim::new(path.clone(), false).unwrap();
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
