//! Pipes on Windows: the entries of the pipe file system.

use std::fs;

use pipe_server_cli::exit::Failure;

use crate::Cells;

// Who serves a pipe is only known to one who opens it, and that takes an instance from its clients.
pub(crate) const LONG_ABOUT: &str = "\
Lists the pipes of this machine

The columns are the NAME of a pipe and how many INSTANCES it has, connected ones and those that wait for a \
client. The server's process and user are not shown: to ask for them would take an instance from its clients.";

/// A pipe of any server.
#[derive(Debug)]
pub(crate) struct ListedPipe {
    name: String,
    instances: Option<u64>,
}

/// All pipes, by name.
pub(crate) fn pipes() -> Result<Vec<ListedPipe>, Failure> {
    let failure = |error| Failure::new(format!("can't list the pipes: {error}"));
    let mut pipes = Vec::new();
    for entry in fs::read_dir(r"\\.\pipe\").map_err(failure)? {
        let entry = entry.map_err(failure)?;
        pipes.push(ListedPipe {
            name: entry.file_name().to_string_lossy().into_owned(),
            // It comes with the entry: no pipe is opened. The size of a pipe is its number of
            // instances. Windows does not document that; Sysinternals' PipeList shows
            // it, and ReactOS does the same (`EndOfFile` in drivers/filesystems/npfs/
            // dirctl.c).
            instances: entry.metadata().ok().map(|metadata| metadata.len()),
        });
    }
    pipes.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(pipes)
}

impl ListedPipe {
    pub(crate) fn cells(&self) -> Cells {
        vec![
            ("name", self.name.as_str().into()),
            ("instances", self.instances.into()),
        ]
    }
}
