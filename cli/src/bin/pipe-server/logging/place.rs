//! The place of the file of a log or dump, where nobody else may put another one.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
};

/// What is written to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Log,
    /// Messages, which only the server's own user may read.
    Dump,
}

impl Content {
    /// The option that limits the file's length.
    pub(super) fn size_option(self) -> &'static str {
        match self {
            Self::Log => "--log-file-size",
            Self::Dump => "--dump-size",
        }
    }

    /// What to do for another kind of output.
    #[cfg(unix)]
    fn instead(self) -> &'static str {
        match self {
            Self::Log => "leave --log-file out to log to stderr",
            Self::Dump => "use --dump - for stdout, and redirect that",
        }
    }
}

/// Opens the file at the start. A link of the server's own user, or of root, is followed.
///
/// # Errors
///
/// The system's error, and on Unix an error that says what to do if the file is one that can block,
/// or could be exchanged by another user.
pub(super) fn open(path: &Path, content: Content) -> io::Result<File> {
    let mut options = options();
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;

        unix::check_directories(path)?;
        if content == Content::Dump {
            options.mode(0o600);
        }
    }
    #[cfg(unix)]
    let is_new = fs::symlink_metadata(path).is_err();
    let file = open_with(&mut options, path, Links::Follow, content)?;
    #[cfg(unix)]
    {
        unix::check_file(path, &file, content)?;
        if is_new {
            unix::admit_owner(&file)?;
        }
    }
    Ok(file)
}

/// Opens the next file of the log, which nobody has put there but another process with the same
/// log. `last` is the one before.
pub(super) fn open_next(path: &Path, last: &File, content: Content) -> io::Result<File> {
    let mut options = options();
    // Whoever may not read this file may not read the next one. On Windows the directory says who
    // may.
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};

        options.mode(last.metadata()?.permissions().mode());
    }
    #[cfg(windows)]
    let _ = last;
    match options.create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            options.create_new(false).create(false);
            let file = open_with(&mut options, path, Links::Refuse, content)?;
            #[cfg(unix)]
            unix::check_file(path, &file, content)?;
            Ok(file)
        }
        #[cfg(unix)]
        Ok(file) => unix::admit_owner(&file).map(|()| file),
        result => result,
    }
}

/// The length of the file at `path`, if there is one.
pub(super) fn length(path: &Path) -> io::Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
        Ok(_) => Err(no_file("it is no longer a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    options
}

/// Whether a link is followed. On Windows making one takes a right of its own.
#[cfg_attr(windows, allow(dead_code, reason = "links are always followed"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    Follow,
    Refuse,
}

fn open_with(
    options: &mut OpenOptions,
    path: &Path,
    links: Links,
    content: Content,
) -> io::Result<File> {
    #[cfg(unix)]
    return unix::open(options, path, links, content);
    #[cfg(windows)]
    {
        let _ = (links, content);
        options.open(path)
    }
}

fn no_file(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{
        FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    };

    use pipe_server::UserId;
    use rustix::{
        fs::{OFlags, fcntl_getfl, fcntl_setfl},
        io::Errno,
        process::geteuid,
    };

    use super::*;

    const STICKY: u32 = 0o1000;
    const OTHERS_WRITE: u32 = 0o002;

    /// What the owner of a file needs to open it again.
    const OWNER: u32 = 0o600;

    /// The rights of all users but the owner.
    const OTHERS: u32 = 0o077;

    /// The most links that Linux follows for one path (path_resolution(7)).
    const LINKS: usize = 40;

    /// Opens without blocking, and without making a terminal this process's own.
    pub(super) fn open(
        options: &mut OpenOptions,
        path: &Path,
        links: Links,
        content: Content,
    ) -> io::Result<File> {
        let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        flags.set(OFlags::NOFOLLOW, links == Links::Refuse);
        let file = options
            .custom_flags(flags.bits() as i32)
            .open(path)
            .map_err(|error| match Errno::from_io_error(&error) {
                // A FIFO without a reader, or a socket.
                Some(Errno::NXIO) => can_block(content),
                Some(Errno::LOOP) if links == Links::Refuse => no_file("it is a link"),
                _ => error,
            })?;
        let kind = file.metadata()?.file_type();
        let device_allowed = links == Links::Follow;
        if !(kind.is_file() || device_allowed && kind.is_char_device()) {
            return Err(can_block(content));
        }
        // As a device may: nobody else has this open file.
        fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
        Ok(file)
    }

    /// Lets this user open a new file again, whatever the umask.
    pub(super) fn admit_owner(file: &File) -> io::Result<()> {
        let mode = file.metadata()?.mode();
        match mode & OWNER {
            OWNER => Ok(()),
            _ => file.set_permissions(fs::Permissions::from_mode(mode & 0o777 | OWNER)),
        }
    }

    fn can_block(content: Content) -> io::Error {
        no_file(&format!(
            "it is neither a regular file nor a character device, such as /dev/null, and could block: {}",
            content.instead()
        ))
    }

    /// Refuses a file in a directory where another user could exchange it, as for sockets. That also
    /// goes for every link on the way to it.
    pub(super) fn check_directories(path: &Path) -> io::Result<()> {
        let mut path = path.to_owned();
        // The system follows no more than this, and opening fails.
        for _ in 0..LINKS {
            check_directory(&path)?;
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                return Ok(());
            };
            if !metadata.is_symlink() {
                return Ok(());
            }
            if !is_trusted(metadata.uid()) {
                return Err(denied(&format!(
                    "it is a link of {}: remove it, or choose another path",
                    other_user(metadata.uid())
                )));
            }
            let target = fs::read_link(&path)?;
            path = parent_of(&path).join(target);
        }
        Ok(())
    }

    fn check_directory(path: &Path) -> io::Result<()> {
        let directory = parent_of(path);
        let metadata = fs::metadata(directory)?;
        let directory = directory.display();
        let (owner, mode) = (metadata.uid(), metadata.mode());
        let is_sticky = mode & (OTHERS_WRITE | STICKY) == OTHERS_WRITE | STICKY;
        // In a user namespace root may be unmapped, and then so is the owner of /tmp.
        let may_be_roots = is_sticky && UserId::Uid(owner).is_unmapped();
        if !is_trusted(owner) && !may_be_roots {
            return Err(denied(&format!(
                "the directory {directory} belongs to {}, who could exchange it: choose one of this user or of root",
                other_user(owner)
            )));
        }
        if mode & OTHERS_WRITE != 0 && !is_sticky {
            return Err(denied(&format!(
                "everyone can replace files in the directory {directory}: choose another one, remove the permission \
                 (chmod o-w), or set the sticky bit (chmod +t)"
            )));
        }
        Ok(())
    }

    /// Refuses a file that another user may have put there, or that others may read though it is
    /// for messages.
    pub(super) fn check_file(path: &Path, file: &File, content: Content) -> io::Result<()> {
        let metadata = file.metadata()?;
        let is_private = content == Content::Dump && metadata.is_file();
        // A file's owner can read it, and anybody can put one into a shared directory.
        if (is_private || is_in_shared_directory(path)?) && !is_trusted(metadata.uid()) {
            return Err(denied(&format!(
                "it belongs to {}: remove it, or choose another file",
                other_user(metadata.uid())
            )));
        }
        if is_private && metadata.mode() & OTHERS != 0 {
            return Err(denied(&format!(
                "other users may read or write it (mode {:03o}): chmod 600 it, or remove it",
                metadata.mode() & 0o777
            )));
        }
        Ok(())
    }

    fn is_in_shared_directory(path: &Path) -> io::Result<bool> {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Ok(fs::metadata(parent_of(&path))?.mode() & OTHERS_WRITE != 0)
    }

    fn parent_of(path: &Path) -> &Path {
        match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        }
    }

    /// Whether `uid` is this user or root.
    fn is_trusted(uid: u32) -> bool {
        uid == 0 || uid == geteuid().as_raw() && !UserId::Uid(uid).is_unmapped()
    }

    /// Describes an owner other than this user, for a message.
    fn other_user(uid: u32) -> String {
        match UserId::Uid(uid).is_unmapped() {
            true => format!("a user whom this user namespace does not map (shown as uid {uid})"),
            false => format!("another user (uid {uid})"),
        }
    }

    fn denied(problem: &str) -> io::Error {
        io::Error::new(io::ErrorKind::PermissionDenied, problem)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Somebody may put it there after the last file was renamed.
    #[test]
    fn the_next_file_is_never_opened_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let [victim, next] = ["victim", "next"].map(|name| directory.path().join(name));
        let last = File::create(&victim).unwrap();
        symlink(&victim, &next).unwrap();
        let error = open_next(&next, &last, Content::Log).unwrap_err();
        assert_eq!(error.to_string(), "it is a link");
    }
}
