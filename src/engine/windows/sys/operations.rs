//! The operations of a handle, and their completion. The invariants are those of `pipe`.

use std::{
    cell::UnsafeCell,
    ffi::c_void,
    io, mem,
    os::windows::io::AsRawHandle,
    ptr,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use windows_sys::{
    Win32::{
        Foundation::{ERROR_IO_PENDING, ERROR_SUCCESS},
        System::IO::OVERLAPPED,
    },
    core::BOOL,
};

use super::{
    functions::{CancelIoEx, GetLastError},
    handle::Handle,
};
use crate::{engine::inline, sync::Mutex};

/// The operations of one handle.
#[derive(Debug, Default)]
pub(super) struct Operations {
    pub(super) connect: Operation<()>,
    pub(super) read: Operation<BytesMut>,
    pub(super) write: Operation<Bytes>,
}

impl Operations {
    pub(super) fn any_pending(&self) -> bool {
        self.connect.is_pending() || self.read.is_pending() || self.write.is_pending()
    }
}

/// Called on a thread of the port when a pending operation completes, with the address of its
/// [`Operations`].
pub(super) unsafe fn completed(
    operations: *const c_void,
    overlapped: *mut OVERLAPPED,
    code: u32,
    length: usize,
) {
    // SAFETY: the reference that `Operation::start` leaked, reclaimed exactly once.
    let operations = unsafe { Arc::from_raw(operations.cast::<Operations>()) };
    inline::complete(|| {
        if operations.connect.is_at(overlapped) {
            operations.connect.complete(code, length);
        } else if operations.read.is_at(overlapped) {
            operations.read.complete(code, length);
        } else {
            operations.write.complete(code, length);
        }
    });
}

/// One kind of operation; at most one is in flight. `B` is the buffer that it owns.
#[derive(Debug)]
pub(super) struct Operation<B> {
    overlapped: UnsafeCell<OVERLAPPED>,
    stage: Mutex<Stage<B>>,
}

// SAFETY: `overlapped` is accessed only by `start` and, while the operation is pending, by the
// system; `stage` says which. The rest is Send.
unsafe impl<B: Send> Send for Operation<B> {}
// SAFETY: as above.
unsafe impl<B: Send> Sync for Operation<B> {}

#[derive(Debug)]
enum Stage<B> {
    None,
    Pending { buffer: B, waker: Option<Waker> },
    Done(Done<B>),
}

/// A completed operation and its buffer.
#[derive(Debug)]
pub(super) struct Done<B> {
    /// A system error code or `ERROR_SUCCESS`.
    pub(super) code: u32,
    /// The number of bytes transferred.
    pub(super) length: usize,
    pub(super) buffer: B,
}

impl<B> Default for Operation<B> {
    fn default() -> Self {
        Self {
            overlapped: UnsafeCell::default(),
            stage: Mutex::new(Stage::None),
        }
    }
}

impl<B> Operation<B> {
    /// Starts an operation with `call`, and returns it if it completes at once. Otherwise it is
    /// pending, and `poll` returns it when it completes.
    ///
    /// `call` has to make one overlapped system call with the given `OVERLAPPED`, on the handle
    /// that `operations` belongs to. Until the operation completes, the system may use that
    /// `OVERLAPPED` and the memory that `buffer` refers to, which does not move with `buffer`.
    pub(super) fn start(
        &self,
        operations: &Arc<Operations>,
        mut buffer: B,
        call: impl FnOnce(&mut B, *mut OVERLAPPED) -> BOOL,
    ) -> Option<Done<B>> {
        let mut stage = self.stage.lock();
        assert!(
            matches!(*stage, Stage::None),
            "an operation is already in flight"
        );
        let overlapped = self.overlapped.get();
        // SAFETY: no operation is in flight and the lock is held, so nothing else accesses it.
        unsafe { *overlapped = OVERLAPPED::default() };
        let reference = Arc::into_raw(Arc::clone(operations));
        let succeeded = call(&mut buffer, overlapped) != 0;
        let code = if succeeded {
            ERROR_SUCCESS
        } else {
            // SAFETY: has no preconditions.
            unsafe { GetLastError() }
        };
        if code == ERROR_IO_PENDING {
            // A completion that has already arrived waits for the lock. No caller's code, such as a
            // waker's clone, may run before the buffer is stored: if it panicked, the buffer would
            // be freed while the system uses it.
            *stage = Stage::Pending {
                buffer,
                waker: None,
            };
            return None;
        }
        // SAFETY: the operation is over and queues no completion, so the reference is still ours.
        unsafe { drop(Arc::from_raw(reference)) };
        // SAFETY: the system no longer uses it.
        let length = unsafe { (*overlapped).InternalHigh };
        Some(Done {
            code,
            length,
            buffer,
        })
    }

    /// Ready with `None` if no operation was started.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Done<B>>> {
        // Wakers are cloned and dropped outside the lock, since both run the caller's code.
        let mut new = None;
        loop {
            let mut stage = self.stage.lock();
            match &mut *stage {
                Stage::None => return Poll::Ready(None),
                Stage::Pending { waker, .. } => {
                    if waker.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
                        return Poll::Pending;
                    }
                    if let Some(new) = new.take() {
                        let _old = waker.replace(new);
                        drop(stage);
                        return Poll::Pending;
                    }
                }
                Stage::Done(_) => {
                    if let Stage::Done(done) = mem::replace(&mut *stage, Stage::None) {
                        return Poll::Ready(Some(done));
                    }
                }
            }
            drop(stage);
            new = Some(cx.waker().clone());
        }
    }

    fn complete(&self, code: u32, length: usize) {
        let mut stage = self.stage.lock();
        let Stage::Pending { buffer, waker } = mem::replace(&mut *stage, Stage::None) else {
            unreachable!("only a pending operation completes");
        };
        *stage = Stage::Done(Done {
            code,
            length,
            buffer,
        });
        drop(stage);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Cancels this operation on its handle, if it is in flight. It completes in any case.
    pub(super) fn cancel(&self, handle: &Handle) {
        // Locked, so that no other operation is started at this address meanwhile.
        let stage = self.stage.lock();
        if matches!(*stage, Stage::Pending { .. }) {
            // SAFETY: the handle is open, and the address is only compared with those in flight.
            unsafe { CancelIoEx(handle.as_raw_handle(), self.overlapped.get()) };
        }
    }

    pub(super) fn is_pending(&self) -> bool {
        matches!(*self.stage.lock(), Stage::Pending { .. })
    }

    fn is_at(&self, overlapped: *const OVERLAPPED) -> bool {
        ptr::eq(self.overlapped.get(), overlapped)
    }
}

impl<B> Done<B> {
    pub(super) fn result(self) -> io::Result<()> {
        match self.code {
            ERROR_SUCCESS => Ok(()),
            _ => Err(self.error()),
        }
    }

    pub(super) fn error(self) -> io::Error {
        io::Error::from_raw_os_error(self.code as i32)
    }
}
