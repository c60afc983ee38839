//! Pipes on Linux: SEQPACKET sockets with a path.
//!
//! A connection would count as a client. So the kernel is asked: sock_diag(7) says who listens, and
//! /proc/locks which process holds the lock file of a server (`engine/linux/claim.rs`).

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::unistd::{Uid, User};
use pipe_server::PipeName;
use pipe_server_cli::exit::Failure;
use rustix::fs::{major, minor};

use self::sock_diag::{ListeningSocket, listening_sockets};
use crate::Cells;

mod sock_diag;

pub(crate) const LONG_ABOUT: &str = "\
Lists the pipes of this machine

These are the SEQPACKET sockets with a path that somebody listens on, and those that a killed server has left in \
this user's directory of short names. Nobody connects to them. The columns are the NAME for --pipe-name, the STATE, the \
server's PID and OWNER, and the MODE, the permissions of the socket. The state is serving, stale (its server was \
killed) or unreachable (a server listens, but its socket file was removed or replaced). The process id is known of \
the servers of this project; the owner is a user's name, or else a number.";

/// A pipe.
#[derive(Debug)]
pub(crate) struct ListedPipe {
    path: PathBuf,
    state: State,
    process_id: Option<u32>,
    /// What is known of the socket, unless it is in a directory that this user can't enter.
    socket: Option<Socket>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Serving,
    Stale,
    Unreachable,
}

#[derive(Debug)]
struct Socket {
    owner: u32,
    mode: u32,
}

/// The pipes, by path.
pub(crate) fn pipes() -> Result<Vec<ListedPipe>, Failure> {
    let listening = listening_sockets().map_err(|error| {
        let what =
            "can't ask the kernel for its sockets (sock_diag, of the kernel module unix_diag)";
        Failure::new(format!("{what}: {error}"))
    })?;
    let locks = fs::read("/proc/locks")
        .map_err(|error| Failure::new(format!("can't read /proc/locks: {error}")))?;
    let locks = locks_in(&locks);
    let mut pipes: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for ListeningSocket { path, inode } in listening {
        pipes.entry(path).or_default().push(inode);
    }
    for path in short_names_in(directory_of_short_names().as_deref()) {
        pipes.entry(path).or_default();
    }
    let listed = pipes.into_iter();
    Ok(listed
        .flat_map(|(path, inodes)| pipes_at(&path, &inodes, &locks))
        .collect())
}

/// The pipe at `path`, and those that were there before it and are still served. The listening
/// sockets that were bound to the path have these `inodes`.
fn pipes_at(path: &Path, inodes: &[u32], locks: &HashMap<FileId, u32>) -> Vec<ListedPipe> {
    let metadata = fs::symlink_metadata(path);
    let can_not_enter =
        matches!(&metadata, Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
    let metadata = metadata.ok().filter(|file| file.file_type().is_socket());
    // The kernel reports 32 bits of it.
    let inode = metadata.as_ref().map(|file| file.ino() as u32);
    let process_id = lock_of(path).and_then(|lock| locks.get(&lock).copied());
    let listed = |state, metadata: Option<&fs::Metadata>| ListedPipe {
        path: path.to_owned(),
        state,
        process_id: process_id.filter(|_| state != State::Stale),
        socket: metadata.map(|file| Socket {
            owner: file.uid(),
            mode: file.mode() & 0o7777,
        }),
    };
    let mut pipes = Vec::new();
    if let Some(file) = &metadata {
        // In another network namespace the socket is not in the list.
        let unlisted = inodes.is_empty() && process_id.is_some();
        let is_served = unlisted || inode.is_some_and(|inode| inodes.contains(&inode));
        let state = if is_served {
            State::Serving
        } else {
            State::Stale
        };
        pipes.push(listed(state, Some(file)));
    }
    let others = inodes.iter().filter(|&&other| Some(other) != inode);
    // Which of them is there can't be told in a directory that this user can't enter.
    let state = if can_not_enter {
        State::Serving
    } else {
        State::Unreachable
    };
    pipes.extend(others.map(|_| listed(state, None)));
    pipes
}

impl ListedPipe {
    pub(crate) fn cells(&self) -> Cells {
        let socket = self.socket.as_ref();
        let state = match self.state {
            State::Serving => "serving",
            State::Stale => "stale",
            State::Unreachable => "unreachable",
        };
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

/// A file, by its device and inode.
type FileId = (u32, u32, u64);

/// The processes that hold an exclusive flock(2), by its file (proc_locks(5)).
fn locks_in(table: &[u8]) -> HashMap<FileId, u32> {
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
    fn exclusive_locks_have_a_process() {
        let table = b"\
1: FLOCK  ADVISORY  WRITE 2213 fe:0a:10191166 0 EOF
2: FLOCK  ADVISORY  READ 2214 fe:0a:10133507 0 EOF
3: POSIX  ADVISORY  WRITE 2215 fe:0a:101335 0 EOF
4: FLOCK  ADVISORY  WRITE 0 fe:0a:10191167 0 EOF
4: -> FLOCK  ADVISORY  WRITE 2216 fe:0a:10191166 0 EOF
";
        let locks = locks_in(table);
        assert_eq!(locks, HashMap::from([((0xfe, 0x0a, 10_191_166), 2213)]));
    }
}
