//! The directory of a pipe's socket: who can replace what is in it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use rustix::process::geteuid;

use crate::{name::PipeName, peer::UserId};

/// The directory of short names below `XDG_RUNTIME_DIR`.
const IN_RUNTIME_DIRECTORY: &str = "pipe-server";

/// The directory that holds `path`.
pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

/// Creates the directory of the socket at `path` if `name` says which one it is, and checks it. The
/// directory of a short name belongs to the user and is created, and so is that of a system name if
/// this user may; that of any other path is used as it is.
///
/// # Errors
///
/// `PermissionDenied` if another user could replace the socket.
pub(super) fn prepare(name: &PipeName, path: &Path) -> io::Result<()> {
    let directory = directory_of(path);
    if name.short().is_some() {
        make_directory(directory)
    } else if name.is_system() {
        make_system_directory(directory)
    } else {
        check_directory(directory)
    }
}

/// Creates the directory of short names, for this user alone. Refuses one that another user could
/// have prepared.
///
/// # Errors
///
/// `PermissionDenied` if another user could replace our socket, `InvalidInput` for a relative
/// `XDG_RUNTIME_DIR`.
fn make_directory(directory: &Path) -> io::Result<()> {
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
        Some(owner) if !is_own(owner) => Err(denied(format!(
            "the directory {} belongs to {}",
            directory.display(),
            other_user(owner)
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
fn make_system_directory(directory: &Path) -> io::Result<()> {
    let advice = "run the server as root, let systemd create the socket (a .socket unit) or the directory \
                  (RuntimeDirectory= and User= in the service's unit), or use a name of this user";
    create_directory(directory, 0o755, advice)?;
    let owner = owner_of_directory(directory)?;
    let directory = directory.display();
    match owner {
        Some(owner) if !is_own(owner) && geteuid().as_raw() != 0 => Err(denied(format!(
            "the directory {directory} belongs to {}: {advice}",
            other_user(owner)
        ))),
        // Root could create one there, but that user could replace it.
        Some(owner) if !is_own(owner) => Err(denied(format!(
            "the directory {directory} belongs to {}, who could replace the socket: serve the pipe as that user, or \
             give the directory to root",
            other_user(owner)
        ))),
        _ => Ok(()),
    }
}

/// Creates a directory of pipes, unless it exists.
fn create_directory(directory: &Path, mode: u32, advice: &str) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(directory) {
        // The umask may have closed it, also for this user.
        Ok(()) => fs::set_permissions(directory, fs::Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
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
fn check_directory(directory: &Path) -> io::Result<()> {
    let Some(metadata) = look_up(directory, fs::metadata)? else {
        return Ok(());
    };
    let directory = directory.display();
    let (owner, mode) = (metadata.uid(), metadata.mode());
    let (others_write, sticky) = (0o002, 0o1000);
    let is_shared = mode & others_write != 0;
    let is_sticky = mode & sticky != 0;
    // In a user namespace root may be unmapped, and then so is the owner of /tmp.
    let may_be_roots = owner == 0 || (is_shared && is_sticky && UserId::Uid(owner).is_unmapped());
    if !is_own(owner) && !may_be_roots {
        return Err(denied(format!(
            "the directory {directory} belongs to {}: choose one of this user or of root",
            other_user(owner)
        )));
    }
    if is_shared && !is_sticky {
        return Err(denied(format!(
            "everyone can replace files in the directory {directory}: choose another one, remove the \
             permission (chmod o-w), or set the sticky bit (chmod +t)"
        )));
    }
    Ok(())
}

/// The metadata of the file at `path`, or `None` if there is none.
pub(super) fn look_up<'a>(
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

pub(super) fn is_ours(metadata: &fs::Metadata) -> bool {
    is_own(metadata.uid())
}

fn is_own(uid: u32) -> bool {
    uid == geteuid().as_raw() && !UserId::Uid(uid).is_unmapped()
}

/// The owner of a file that is not of this user, for a message.
pub(super) fn other_user(uid: u32) -> String {
    match UserId::Uid(uid).is_unmapped() {
        true => format!("a user whom this user namespace does not map (shown as uid {uid})"),
        false => format!("another user (uid {uid})"),
    }
}

pub(super) fn denied(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, problem.into())
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    pub(in super::super) fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    pub(in super::super) fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
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
