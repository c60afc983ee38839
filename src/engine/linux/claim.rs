//! The location of a pipe's socket in the file system, and the right to serve it.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{
            DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
            PermissionsExt as _,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FlockOperation, OFlags, chownat, flock},
    io::Errno,
    net::SocketAddrUnix,
    process::{Gid, geteuid},
};

use super::socket::Socket;

/// The directory of short names below `XDG_RUNTIME_DIR`.
const IN_RUNTIME_DIRECTORY: &str = "pipe-server";

/// The directory that holds `path`.
pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

/// Creates the directory of short names, for this user alone. Refuses one that another user could
/// have prepared.
///
/// # Errors
///
/// `PermissionDenied` if another user could replace our socket, `InvalidInput` for a relative
/// `XDG_RUNTIME_DIR`.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.ends_with(IN_RUNTIME_DIRECTORY) {
        let runtime_directory = directory_of(directory);
        if runtime_directory.is_relative() {
            let problem = format!(
                "XDG_RUNTIME_DIR is the relative path {}: set it to an absolute one, or unset it",
                runtime_directory.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        check_directory(runtime_directory)?;
    }
    let advice = "set XDG_RUNTIME_DIR to a directory of this user, or use the pipe's full path";
    create_directory(directory, 0o700, advice)?;
    match owner_of_directory(directory)? {
        Some(owner) if owner != geteuid().as_raw() => Err(denied(format!(
            "the directory {} belongs to another user (uid {owner})",
            directory.display()
        ))),
        _ => Ok(()),
    }
}

/// Creates the directory of system names, which everyone can enter, if this process may. Refuses
/// one in which anyone but root and this user can replace sockets.
///
/// # Errors
///
/// `PermissionDenied` if another user could replace our socket, or if this user can create no
/// socket there.
pub(super) fn make_system_directory(directory: &Path) -> io::Result<()> {
    let advice = "run the server as root, let systemd create the socket (a .socket unit) or the directory \
                  (RuntimeDirectory= and User= in the service's unit), or use a name of this user";
    if create_directory(directory, 0o755, advice)? {
        // The umask may have closed it.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    }
    let owner = owner_of_directory(directory)?;
    let own = geteuid().as_raw();
    let directory = directory.display();
    match owner {
        Some(owner) if owner != own && own != 0 => Err(denied(format!(
            "the directory {directory} belongs to another user (uid {owner}): {advice}"
        ))),
        // Root could create one there, but that user could replace it.
        Some(owner) if owner != own => Err(denied(format!(
            "the directory {directory} belongs to a user (uid {owner}) who could replace the socket: serve the \
             pipe as that user, or give the directory to root"
        ))),
        _ => Ok(()),
    }
}

/// Creates a directory of pipes, and returns whether it is new.
fn create_directory(directory: &Path, mode: u32, advice: &str) -> io::Result<bool> {
    match fs::DirBuilder::new().mode(mode).create(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => {
            let directory = directory.display();
            let problem = format!("its directory {directory} can't be created: {error}; {advice}");
            Err(io::Error::new(error.kind(), problem))
        }
    }
}

/// The owner of a directory of pipes, if it exists.
///
/// # Errors
///
/// Returns the system's error, and `PermissionDenied` if anyone but its owner can write to it.
pub(super) fn owner_of_directory(directory: &Path) -> io::Result<Option<u32>> {
    let Some(metadata) = look_up(directory, fs::symlink_metadata)? else {
        return Ok(None);
    };
    if !metadata.is_dir() || metadata.mode() & 0o022 != 0 {
        return Err(denied(format!(
            "{} is not a directory that only its owner can write to",
            directory.display()
        )));
    }
    Ok(Some(metadata.uid()))
}

/// Refuses a directory in which another user could replace our socket. A missing one is left to the
/// caller.
///
/// # Errors
///
/// `PermissionDenied`.
pub(super) fn check_directory(directory: &Path) -> io::Result<()> {
    let Some(metadata) = look_up(directory, fs::metadata)? else {
        return Ok(());
    };
    let directory = directory.display();
    if !is_ours(&metadata) && metadata.uid() != 0 {
        return Err(denied(format!(
            "the directory {directory} belongs to another user (uid {}): choose one of this user or of root",
            metadata.uid()
        )));
    }
    let (others_write, sticky) = (0o002, 0o1000);
    if metadata.mode() & (others_write | sticky) == others_write {
        return Err(denied(format!(
            "everyone can replace files in the directory {directory}: choose another one, remove the \
             permission (chmod o-w), or set the sticky bit (chmod +t)"
        )));
    }
    Ok(())
}

/// The metadata of the file at `path`, or `None` if there is none.
fn look_up<'a>(
    path: &'a Path,
    read: impl FnOnce(&'a Path) -> io::Result<fs::Metadata>,
) -> io::Result<Option<fs::Metadata>> {
    match read(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let problem = format!("{} can't be read: {error}", path.display());
            Err(io::Error::new(error.kind(), problem))
        }
    }
}

fn is_ours(metadata: &fs::Metadata) -> bool {
    metadata.uid() == geteuid().as_raw()
}

fn denied(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, problem.into())
}

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
    use std::os::unix::{
        fs::{chown, symlink},
        net::UnixListener,
    };

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

    #[test]
    fn a_runtime_directory_of_another_user_is_refused() {
        let runtime_directory = tempfile::tempdir().unwrap();
        let directory = runtime_directory.path().join(IN_RUNTIME_DIRECTORY);
        make_directory(&directory).unwrap();
        if !geteuid().is_root() {
            eprintln!("left out: only root can give a directory away");
            return;
        }
        chown(runtime_directory.path(), Some(65_534), None).unwrap();
        let error = make_directory(&directory).unwrap_err();
        assert!(
            error.to_string().contains("another user (uid 65534)"),
            "{error}"
        );
    }

    #[test]
    fn everyone_can_enter_the_directory_of_system_names_and_only_its_owner_can_write_to_it() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("pipe-server");
        for _ in 0..2 {
            make_system_directory(&directory).unwrap();
            assert_eq!(mode(&directory), 0o755);
        }
        set_mode(&directory, 0o775);
        let error = make_system_directory(&directory).unwrap_err();
        assert!(
            error.to_string().contains("only its owner can write to"),
            "{error}"
        );
        set_mode(&directory, 0o755);
        if !geteuid().is_root() {
            eprintln!("left out: only root can give a directory away");
            return;
        }
        chown(&directory, Some(65_534), None).unwrap();
        let error = make_system_directory(&directory).unwrap_err();
        assert!(error.to_string().contains("uid 65534"), "{error}");
    }

    #[test]
    fn a_link_is_no_directory_of_system_names() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("pipe-server");
        symlink(parent.path(), &directory).unwrap();
        let error = make_system_directory(&directory).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    }

    #[test]
    fn a_relative_runtime_directory_is_refused() {
        let error = make_directory(Path::new("run/pipe-server")).unwrap_err();
        assert!(error.to_string().contains("XDG_RUNTIME_DIR"), "{error}");
        assert!(!Path::new("run").exists());
    }
}
