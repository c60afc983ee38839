//! Pipes on Linux: SEQPACKET sockets with a path.
//!
//! A connection would count as a client. So the kernel's lists are read: /proc/net/unix says who
//! listens, and /proc/locks which process holds the lock file of a server
//! (`engine/linux/claim.rs`).

use std::{
    collections::{BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    str,
};

use nix::unistd::{Uid, User};
use pipe_server::PipeName;
use pipe_server_cli::exit::Failure;
use rustix::fs::{major, minor};

use crate::Cells;

pub(crate) const LONG_ABOUT: &str = "\
Lists the pipes of this machine

These are the SEQPACKET sockets with a path that somebody listens on, and those that a killed server has left in \
this user's directory of short names. Nobody connects to them. The columns are the NAME for --pipe-name, the STATE \
(serving or stale), the server's PID and OWNER, and the MODE, the permissions of the socket. The process id is known \
of the servers of this project; the owner is a user's name, or else a number.";

/// A pipe.
#[derive(Debug)]
pub(crate) struct ListedPipe {
    path: PathBuf,
    serving: bool,
    process_id: Option<u32>,
    /// What is known of the socket, unless it is in a directory that this user can't enter.
    socket: Option<Socket>,
}

#[derive(Debug)]
struct Socket {
    owner: u32,
    mode: u32,
}

/// The pipes, by path.
pub(crate) fn pipes() -> Result<Vec<ListedPipe>, Failure> {
    let read = |path: &str| {
        fs::read(path).map_err(|error| Failure::new(format!("can't read {path}: {error}")))
    };
    let listening = listening(&read("/proc/net/unix")?);
    let locks = locks(&read("/proc/locks")?);
    let directory = directory_of_short_names();
    let mut paths = listening.clone();
    paths.extend(short_names_in(directory.as_deref()));
    let pipes = paths.into_iter().filter_map(|path| {
        let socket = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.file_type().is_socket() => Some(Socket {
                owner: metadata.uid(),
                mode: metadata.mode() & 0o7777,
            }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            // Nobody can connect.
            _ => return None,
        };
        let process_id = lock_of(&path).and_then(|lock| locks.get(&lock).copied());
        Some(ListedPipe {
            // In another network namespace the socket is not in the list.
            serving: listening.contains(&path) || process_id.is_some(),
            path,
            process_id,
            socket,
        })
    });
    Ok(pipes.collect())
}

impl ListedPipe {
    pub(crate) fn cells(&self) -> Cells {
        let socket = self.socket.as_ref();
        let state = if self.serving { "serving" } else { "stale" };
        vec![
            ("name", self.name().into()),
            ("state", state.into()),
            ("pid", self.process_id.into()),
            ("owner", socket.map(|socket| user(socket.owner)).into()),
            (
                "mode",
                socket.map(|socket| format!("{:04o}", socket.mode)).into(),
            ),
        ]
    }

    /// The short name, if this environment's is for this path.
    fn name(&self) -> String {
        let stem = self.path.file_stem().and_then(OsStr::to_str);
        let short = stem.and_then(|stem| stem.parse::<PipeName>().ok());
        match short {
            Some(short) if short.to_path() == self.path => short.to_string(),
            _ => self.path.to_string_lossy().into_owned(),
        }
    }
}

fn user(id: u32) -> String {
    match User::from_uid(Uid::from_raw(id)) {
        Ok(Some(user)) => user.name,
        _ => id.to_string(),
    }
}

/// Where this environment has the sockets of short names.
fn directory_of_short_names() -> Option<PathBuf> {
    let name: PipeName = "any".parse().ok()?;
    name.to_path().parent().map(Path::to_owned)
}

/// The sockets of short names, served or not.
fn short_names_in(directory: Option<&Path>) -> Vec<PathBuf> {
    let entries = directory.and_then(|directory| fs::read_dir(directory).ok());
    let paths = entries.into_iter().flatten().flatten();
    paths
        .map(|entry| entry.path())
        .filter(|path| path.extension() == Some(OsStr::new("pipe")))
        .collect()
}

/// The paths of listening SEQPACKET sockets in `/proc/net/unix` (proc_net(5)).
fn listening(table: &[u8]) -> BTreeSet<PathBuf> {
    const SO_ACCEPTCON: u32 = 0x10000;
    const SOCK_SEQPACKET: u32 = 5;

    let path = |line: &[u8]| {
        // Num, RefCount, Protocol, Flags, Type, St and Inode have a space between them, after
        // padding.
        let mut rest = line;
        let mut columns = [&[][..]; 7];
        for column in &mut columns {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(|&byte| byte == b' ')?;
            (*column, rest) = rest.split_at(end);
        }
        let number = |column: &[u8]| u32::from_str_radix(str::from_utf8(column).ok()?, 16).ok();
        let path = rest.get(1..)?;
        let listens = number(columns[3])? & SO_ACCEPTCON != 0;
        // Others are relative to an unknown directory, or names without a file.
        (listens && number(columns[4])? == SOCK_SEQPACKET && path.starts_with(b"/"))
            .then(|| PathBuf::from(OsStr::from_bytes(path)))
    };
    let lines = table.split(|&byte| byte == b'\n');
    lines.filter_map(path).collect()
}

/// A file, by its device and inode.
type FileId = (u32, u32, u64);

/// The processes that hold an exclusive flock(2), by its file (proc_locks(5)).
fn locks(table: &[u8]) -> HashMap<FileId, u32> {
    let table = String::from_utf8_lossy(table);
    let lock = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let &[_, "FLOCK", _, "WRITE", process_id, file, ..] = &columns[..] else {
            return None;
        };
        let mut file = file.split(':');
        let major = u32::from_str_radix(file.next()?, 16).ok()?;
        let minor = u32::from_str_radix(file.next()?, 16).ok()?;
        let inode = file.next()?.parse().ok()?;
        // 0 and -1 are processes of other namespaces.
        let process_id = process_id.parse().ok().filter(|&id| id > 0)?;
        Some(((major, minor, inode), process_id))
    };
    table.lines().filter_map(lock).collect()
}

/// The lock file of the server of `path`, if there is one.
fn lock_of(path: &Path) -> Option<FileId> {
    let mut lock = OsString::from(path);
    lock.push(".lock");
    let metadata = fs::symlink_metadata(lock).ok()?;
    let device = metadata.dev();
    Some((major(device), minor(device), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_seqpacket_sockets_that_listen_at_a_path_are_listed() {
        let table = b"\
Num       RefCount Protocol Flags    Type St Inode Path
000000006d1922e6: 00000002 00000000 00010000 0005 01 566714 /run/a b\xff
000000001ecc0c38: 00000003 00000000 00000000 0005 03 518103 /run/connected
000000008be432bf: 00000002 00000000 00010000 0001 01    103 /run/stream
000000002840e8a3: 00000002 00000000 00010000 0005 01 553844 @abstract
000000002840e8a4: 00000002 00000000 00010000 0005 01 553845 ./relative
000000002840e8a5: 00000002 00000000 00010000 0005 01  53846
";
        let paths: Vec<_> = listening(table).into_iter().collect();
        assert_eq!(paths, [Path::new(OsStr::from_bytes(b"/run/a b\xff"))]);
    }

    #[test]
    fn exclusive_locks_have_a_process() {
        let table = b"\
1: FLOCK  ADVISORY  WRITE 2213 fe:0a:10191166 0 EOF
2: FLOCK  ADVISORY  READ 2214 fe:0a:10133507 0 EOF
3: POSIX  ADVISORY  WRITE 2215 fe:0a:101335 0 EOF
4: FLOCK  ADVISORY  WRITE 0 fe:0a:10191167 0 EOF
4: -> FLOCK  ADVISORY  WRITE 2216 fe:0a:10191166 0 EOF
";
        let locks = locks(table);
        assert_eq!(locks, HashMap::from([((0xfe, 0x0a, 10_191_166), 2213)]));
    }
}
