//! What a new process inherits.

use std::{
    io,
    os::windows::io::{AsRawHandle as _, RawHandle},
    sync::{Mutex, PoisonError},
};

use super::functions::{GetHandleInformation, HANDLE_FLAG_INHERIT, SetHandleInformation};

/// Runs `spawn`, which starts a process whose own stdio is not this process's. That process would
/// inherit this one's too, if it was itself inherited (*CreateProcessW*, `bInheritHandles`; the
/// standard library always sets that), and whoever reads this process's output would wait for the
/// end of that process.
pub(crate) fn without_inherited_stdio<T>(spawn: impl FnOnce() -> T) -> T {
    /// One at a time: another thread would restore the flags too early.
    static SPAWNING: Mutex<()> = Mutex::new(());

    let _one = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
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
        // SAFETY: as above. A handle that was closed meanwhile is refused.
        unsafe { SetHandleInformation(self.0, HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT) };
    }
}
