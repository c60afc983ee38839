//! The completion port of this process, and its threads.
//!
//! The system's thread pool (`CreateThreadpoolIo`) does the same for a higher price: under Wine it
//! takes a packet with one thread and calls back on another one, and each of its objects leaks
//! (docs/wine.md).

use std::{
    ffi::c_void,
    io,
    os::windows::io::RawHandle,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use windows_sys::Win32::{
    Foundation::{ERROR_SUCCESS, HANDLE, INVALID_HANDLE_VALUE},
    System::Threading::INFINITE,
};

use super::{
    functions::{
        CloseHandle, CreateIoCompletionPort, GetLastError, GetQueuedCompletionStatus, last_error,
    },
    operations::completed,
};
use crate::sync::Mutex;

/// The port, once it exists. It is never closed.
static PORT: Mutex<Option<usize>> = Mutex::new(None);

/// The most threads that take packets: two for each processor, and at least four. *I/O Completion
/// Ports* recommends at least two for each. The system lets as many run as there are processors
/// (*CreateIoCompletionPort function*, `NumberOfConcurrentThreads` 0), and one more whenever one of
/// them blocks (*I/O Completion Ports*).
static MOST_THREADS: LazyLock<usize> =
    LazyLock::new(|| 2 * thread::available_parallelism().map_or(2, |count| count.get().max(2)));

/// How many threads were started. They never end.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// How many of them wait for a packet.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Binds a handle to the port. From then on `completed` is called with `key` for each of its
/// packets.
///
/// # Safety
///
/// The handle is open and overlapped, and `completed` may be called with `key` for each of its
/// operations.
pub(super) unsafe fn bind_to_port(handle: RawHandle, key: *const c_void) -> io::Result<()> {
    let port = port()?;
    let key = key.expose_provenance();
    // SAFETY: both are open.
    let bound = unsafe { CreateIoCompletionPort(handle, port as HANDLE, key, 0) };
    if bound.is_null() {
        return Err(last_error());
    }
    Ok(())
}

/// The port, with a thread at least.
fn port() -> io::Result<usize> {
    let mut port = PORT.lock();
    if let Some(port) = *port {
        return Ok(port);
    }
    // SAFETY: has no preconditions.
    let new = unsafe { CreateIoCompletionPort(INVALID_HANDLE_VALUE, ptr::null_mut(), 0, 0) };
    if new.is_null() {
        return Err(last_error());
    }
    if let Err(error) = start_thread(new as usize) {
        // SAFETY: nothing else uses it.
        unsafe { CloseHandle(new) };
        return Err(error);
    }
    Ok(*port.insert(new as usize))
}

/// Starts one more thread, up to the maximum.
fn start_thread(port: usize) -> io::Result<()> {
    // Not `fetch_update`: newer versions of Rust have another name for it. A caller that counts
    // itself beyond the maximum for a moment makes others give up only where they would anyway.
    if THREADS.fetch_add(1, Ordering::Relaxed) >= *MOST_THREADS {
        THREADS.fetch_sub(1, Ordering::Relaxed);
        return Ok(());
    }
    let builder = thread::Builder::new().name("pipe-completions".to_owned());
    if let Err(error) = builder.spawn(move || take_packets(port)) {
        THREADS.fetch_sub(1, Ordering::Relaxed);
        return Err(error);
    }
    Ok(())
}

fn take_packets(port: usize) {
    loop {
        let (mut length, mut key, mut overlapped) = (0, 0, ptr::null_mut());
        WAITING.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the port is open, and the variables outlive the call.
        let taken = unsafe {
            GetQueuedCompletionStatus(
                port as HANDLE,
                &mut length,
                &mut key,
                &mut overlapped,
                INFINITE,
            )
        };
        let code = match taken {
            // SAFETY: has no preconditions.
            0 => unsafe { GetLastError() },
            _ => ERROR_SUCCESS,
        };
        let left = WAITING.fetch_sub(1, Ordering::Relaxed) - 1;
        assert!(!overlapped.is_null(), "the port fails: {code}");
        // Two are kept waiting: this one may be busy when the next packet arrives, and so may one
        // of those, since Wine interrupts the thread that started a read before it queues the
        // packet (docs/wine.md). If a thread can't be started, the next packet tries again.
        if left < 2 {
            _ = start_thread(port);
        }
        // A waker may be user code. Its panic was reported, and must not end this thread.
        let key = ptr::with_exposed_provenance(key);
        _ = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: as `bind_to_port` requires; a packet arrives once for each operation.
            unsafe { completed(key, overlapped, code, length as usize) };
        }));
    }
}
