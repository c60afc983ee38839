//! The handles that a new process inherits.

use std::{
    io,
    os::windows::io::{AsRawHandle as _, RawHandle},
};

use super::functions::{GetHandleInformation, HANDLE_FLAG_INHERIT, SetHandleInformation};
use crate::sync::Mutex;

/// Runs `spawn`, which starts a process with other stdio than this process has. Meanwhile the
/// handles of this process's stdio can't be inherited.
///
/// The standard library sets `bInheritHandles`, so a child gets every inheritable handle
/// (*CreateProcessW*). Stdio that this process has inherited is inheritable. A child that outlives
/// this process would keep its stdout open, and whoever reads that would wait for the child's end.
///
/// Other threads may start processes meanwhile. The standard library gives them inheritable
/// duplicates of this process's stdio, so they are not affected. A child that foreign code starts
/// with the handles themselves may lack them. The cure, a list of the handles to inherit
/// (`PROC_THREAD_ATTRIBUTE_HANDLE_LIST`), is not available in the standard library.
pub(crate) fn without_inherited_stdio<T>(spawn: impl FnOnce() -> T) -> T {
    /// One at a time: another thread would restore the flags too early.
    static SPAWNING: Mutex<()> = Mutex::new(());

    let _one = SPAWNING.lock();
    let handles = [
        io::stdin().as_raw_handle(),
        io::stdout().as_raw_handle(),
        io::stderr().as_raw_handle(),
    ];
    let _inheritable: Vec<_> = handles.into_iter().filter_map(NotInherited::new).collect();
    spawn()
}

/// A handle that is not inherited until this is dropped.
struct NotInherited(RawHandle);

impl NotInherited {
    /// `None` if the handle is not inherited anyway, or is none.
    fn new(handle: RawHandle) -> Option<Self> {
        let mut flags = 0;
        // SAFETY: any value may be queried, and `flags` outlives the call.
        let done = unsafe { GetHandleInformation(handle, &mut flags) };
        if done == 0 || flags & HANDLE_FLAG_INHERIT == 0 {
            return None;
        }
        // SAFETY: changes only what later processes inherit.
        unsafe { SetHandleInformation(handle, HANDLE_FLAG_INHERIT, 0) };
        Some(Self(handle))
    }
}

impl Drop for NotInherited {
    fn drop(&mut self) {
        // SAFETY: as above. If the handle was closed meanwhile, the call fails, or changes what is
        // inherited of a later object with the same handle.
        unsafe { SetHandleInformation(self.0, HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT) };
    }
}
