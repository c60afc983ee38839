//! The limit of open files on Linux.

use rustix::{
    io,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// Raises this process's limit to the maximum. Returns what it was before, and whether it could be
/// raised.
pub fn raise() -> (Rlimit, io::Result<()>) {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    (before, setrlimit(Resource::Nofile, raised))
}
