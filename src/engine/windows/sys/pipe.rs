//! A pipe's handle and its overlapped operations, completed through a port of this process.
//!
//! Every unsafe block here and in `operations` relies on these invariants:
//!
//! - **Memory that the system writes to outlives the operation.** An operation's `OVERLAPPED` and
//!   buffer are in [`Operations`], which is behind an `Arc` and never moves. Starting an operation
//!   takes a reference to that `Arc`, and its completion releases it.
//! - **Each operation completes exactly once.** With `FILE_SKIP_COMPLETION_PORT_ON_SUCCESS`, an
//!   operation that is over when the call returns queues no completion and belongs to the caller
//!   again. A pending one queues exactly one, even if it is cancelled or its handle is closed.
//! - **At most one of each kind is in flight.** [`start`](super::operations::Operation::start)
//!   panics on a second one, so nothing touches an `OVERLAPPED` or a buffer that the system is
//!   using.
//! - **Nothing is started on a closed handle.** Only [`PipeEnd`] starts operations, and it owns the
//!   handle.
//! - **A handle's key at the port is the address of its [`Operations`].** It is used for a
//!   completion only, which comes with the operation's reference.
//!
//! This file assumes the following about Windows ("WT" is a conformance test of Wine, which also
//! runs on Windows; `tests/windows_facts.rs` tests the system itself):
//!
//! - A read that is too short for the message in the pipe ends in one of two ways, both handled: at
//!   once with `ERROR_MORE_DATA` and no completion (Windows 7, Wine), or pending, with the code in
//!   its completion (Windows 8 and later; WT ntdll `test_completion`). The next read returns the
//!   rest of the message (*Named PipeEnd Type, Read, and Wait Modes*).
//! - An operation that fails at once queues no completion (WT ntdll `test_completion`; mio and .NET
//!   rely on it).
//! - The notification mode is set after the handle is bound to the port (WT ntdll).
//! - A pending operation outlives the thread that started it, since its handle is bound to a port.
//!   With inline completions it may be any thread that polls a connection
//!   (`tests/windows_facts.rs`; .NET relies on it).
//!
//! No call here can block on a client. `PeekNamedPipe` could: since Windows 8 its request returns
//! `STATUS_PENDING` (WT ntdll `test_completion`), and the function then waits for the handle's own
//! event. Any other operation on the handle resets that event (ebpf-for-windows#3325), and
//! `FILE_SKIP_SET_EVENT_ON_HANDLE` prevents it from being set at all (WT ntdll). The remaining
//! length of a message is therefore never queried, and that mode is not set, in case another system
//! call waits in the same way.

#[cfg(pipe_model)]
use std::ffi::c_void;
use std::{
    io, mem,
    os::windows::io::{AsRawHandle, RawHandle},
    ptr,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use windows_sys::Win32::{
    Foundation::{
        ERROR_MORE_DATA, ERROR_NO_DATA, ERROR_NO_SYSTEM_RESOURCES, ERROR_NOT_ENOUGH_QUOTA,
        ERROR_PIPE_CONNECTED, ERROR_SUCCESS, ERROR_WORKING_SET_QUOTA,
    },
    Storage::FileSystem::{
        FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, OPEN_EXISTING, PIPE_ACCESS_DUPLEX,
        SECURITY_CONTEXT_TRACKING, SECURITY_IDENTIFICATION, SECURITY_SQOS_PRESENT,
    },
    System::{
        Pipes::{
            PIPE_READMODE_MESSAGE, PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_MESSAGE,
            PIPE_UNLIMITED_INSTANCES, PIPE_WAIT,
        },
        WindowsProgramming::FILE_SKIP_COMPLETION_PORT_ON_SUCCESS,
    },
};

#[cfg(not(pipe_model))]
use super::port::bind_to_port;
use super::{
    functions::{
        ConnectNamedPipe, CreateFileW, CreateNamedPipeW, ReadFile,
        SetFileCompletionNotificationModes, SetNamedPipeHandleState, WriteFile, check, wide,
    },
    handle::{Handle, cancel},
    operations::{Done, Operations},
    security::SecurityDescriptor,
};

/// How an instance is created.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InstanceOptions {
    /// Fail if the name is already served (`FILE_FLAG_FIRST_PIPE_INSTANCE`).
    pub(crate) first: bool,
    pub(crate) allow_remote: bool,
    /// In bytes, per direction.
    pub(crate) buffer_size: u32,
}

/// One end of a pipe. Dropping it cancels all operations in flight and closes the handle at once.
#[derive(Debug)]
pub(crate) struct PipeEnd {
    handle: Handle,
    operations: Arc<Operations>,
}

/// What a read has returned of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessagePart {
    /// The rest of it, or all.
    Last,
    /// As much as fits the buffer; the message continues.
    More,
}

impl PipeEnd {
    /// Creates an instance (`CreateNamedPipeW`) and starts waiting for its client
    /// (`ConnectNamedPipe`).
    ///
    /// The system does not limit the number of instances; the listener does.
    pub(crate) fn create(
        address: &str,
        descriptor: &SecurityDescriptor,
        options: InstanceOptions,
    ) -> io::Result<Self> {
        let end = Self::new(create_instance(address, descriptor, options)?)?;
        end.start_connect()?;
        Ok(end)
    }

    /// Opens a client's end in message read mode. `server_of` requires one opened with
    /// `READ_CONTROL` among its `rights`.
    pub(crate) fn open(address: &str, rights: u32) -> io::Result<Self> {
        let handle = open_instance(address, rights)?;
        let mode = PIPE_READMODE_MESSAGE;
        // SAFETY: the handle is open, and `mode` outlives the call.
        let done = unsafe {
            SetNamedPipeHandleState(handle.as_raw_handle(), &mode, ptr::null(), ptr::null())
        };
        check(done)?;
        Self::new(handle)
    }

    fn new(handle: Handle) -> io::Result<Self> {
        let raw = handle.as_raw_handle();
        let operations = Arc::<Operations>::default();
        let key = Arc::as_ptr(&operations).cast();
        // SAFETY: the handle is open and overlapped. The key is the address of the operations, and
        // each one that queues a packet has a reference to them.
        unsafe { bind_to_port(raw, key)? };
        let modes = FILE_SKIP_COMPLETION_PORT_ON_SUCCESS;
        // SAFETY: the handle is open.
        check(unsafe { SetFileCompletionNotificationModes(raw, modes as u8) })?;
        Ok(Self { handle, operations })
    }

    /// Starts to wait for a client. Called when nothing waits: by `create`, and after
    /// `poll_connect` has failed.
    pub(crate) fn start_connect(&self) -> io::Result<()> {
        let connect = &self.operations.connect;
        // SAFETY: as `Operation::start` requires, without a buffer.
        let done = connect.start(&self.operations, (), |(), overlapped| unsafe {
            ConnectNamedPipe(self.handle.as_raw_handle(), overlapped)
        });
        match done {
            None => Ok(()),
            // A client connected before this call. If it has closed already, its messages can still
            // be read.
            Some(Done {
                code: ERROR_SUCCESS | ERROR_PIPE_CONNECTED | ERROR_NO_DATA,
                ..
            }) => Ok(()),
            Some(done) => Err(done.error()),
        }
    }

    /// Ready once a client has connected, even if it has closed since.
    pub(crate) fn poll_connect(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match ready!(self.operations.connect.poll(cx)) {
            Some(done) if done.code != ERROR_NO_DATA => done.result(),
            _ => Ok(()),
        })
    }

    /// Appends a message, or the next part of one, to `buffer`, up to its capacity. While this is
    /// pending, `buffer` is empty: its contents are owned by the read.
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<MessagePart>> {
        let read = &self.operations.read;
        let done = loop {
            if let Some(done) = ready!(read.poll(cx)) {
                break done;
            }
            if let Some(done) = self.start_read(mem::take(buffer)) {
                break done;
            }
            // Pending: the next poll registers the waker.
        };
        let (code, length) = (done.code, done.length);
        *buffer = done.buffer;
        // SAFETY: the system wrote `length` bytes into the spare capacity.
        unsafe { buffer.set_len(buffer.len() + length) };
        Poll::Ready(match code {
            ERROR_SUCCESS => Ok(MessagePart::Last),
            ERROR_MORE_DATA => Ok(MessagePart::More),
            code => Err(io::Error::from_raw_os_error(code as i32)),
        })
    }

    /// Cancels the wait for a client, if it is in flight. `poll_connect` still returns its result.
    pub(crate) fn cancel_connect(&self) {
        self.operations.connect.cancel(&self.handle);
    }

    /// Cancels the read, if it is in flight. `poll_read` still returns its result.
    pub(crate) fn cancel_read(&self) {
        self.operations.read.cancel(&self.handle);
    }

    fn start_read(&self, buffer: BytesMut) -> Option<Done<BytesMut>> {
        let handle = self.handle.as_raw_handle();
        let read = &self.operations.read;
        read.start(&self.operations, buffer, |buffer, overlapped| {
            let room = buffer.spare_capacity_mut();
            let length = u32::try_from(room.len()).unwrap_or(u32::MAX);
            // SAFETY: as `Operation::start` requires; `room` is part of the buffer.
            unsafe {
                ReadFile(
                    handle,
                    room.as_mut_ptr().cast(),
                    length,
                    ptr::null_mut(),
                    overlapped,
                )
            }
        })
    }

    /// Writes one message of less than 4 GiB with one `WriteFile`.
    ///
    /// Panics if a write is in flight: `poll_write` has to be ready first.
    pub(crate) fn start_write(&self, message: Bytes) -> io::Result<()> {
        let handle = self.handle.as_raw_handle();
        let write = &self.operations.write;
        let started = write.start(&self.operations, message, |message, overlapped| {
            // SAFETY: as `Operation::start` requires; the message is the buffer.
            unsafe {
                WriteFile(
                    handle,
                    message.as_ptr(),
                    message.len() as u32,
                    ptr::null_mut(),
                    overlapped,
                )
            }
        });
        started.map_or(Ok(()), written)
    }

    /// Returns whether a write is in flight.
    pub(crate) fn is_writing(&self) -> bool {
        self.operations.write.is_pending()
    }

    /// Ready when no write is in flight, with the result of the last one.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = ready!(self.operations.write.poll(cx));
        Poll::Ready(done.map_or(Ok(()), written))
    }
}

/// The result of a write.
fn written(done: Done<Bytes>) -> io::Result<()> {
    let length = done.buffer.len();
    done.result().map_err(|error| write_error(error, length))
}

/// The error of writing a message of `length` bytes. Says what to do if memory is short: the system
/// holds a message as a whole until it is read, even one that exceeds the pipe's buffer, and charges
/// it to its sender (ReactOS `NpAddDataQueueEntry`).
pub(crate) fn write_error(error: io::Error, length: usize) -> io::Error {
    match error.raw_os_error().map(|code| code as u32) {
        Some(ERROR_NO_SYSTEM_RESOURCES | ERROR_WORKING_SET_QUOTA | ERROR_NOT_ENOUGH_QUOTA) => {
            let problem = format!(
                "the system has no memory for a message of {length} bytes, which it keeps until it is read: send \
                 smaller messages, or have fewer of them unread ({error})"
            );
            io::Error::new(io::ErrorKind::OutOfMemory, problem)
        }
        _ => error,
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        // Without this, a pending write would keep the instance until the peer reads, which may
        // never happen (mio#1944). Completed writes stay readable.
        if self.operations.any_pending() {
            cancel(&self.handle);
        }
    }
}

impl AsRawHandle for PipeEnd {
    fn as_raw_handle(&self) -> RawHandle {
        self.handle.as_raw_handle()
    }
}

/// Creates an instance that clients can open (`CreateNamedPipeW`).
pub(crate) fn create_instance(
    address: &str,
    descriptor: &SecurityDescriptor,
    options: InstanceOptions,
) -> io::Result<Handle> {
    let address = wide(address);
    let attributes = descriptor.attributes();
    let mut open_mode = PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED;
    if options.first {
        open_mode |= FILE_FLAG_FIRST_PIPE_INSTANCE;
    }
    let mut pipe_mode = PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE | PIPE_WAIT;
    if !options.allow_remote {
        pipe_mode |= PIPE_REJECT_REMOTE_CLIENTS;
    }
    // SAFETY: `address` ends in NUL; it, `attributes` and the descriptor that they point to outlive
    // the call, which returns a new handle.
    unsafe {
        Handle::owned(CreateNamedPipeW(
            address.as_ptr(),
            open_mode,
            pipe_mode,
            PIPE_UNLIMITED_INSTANCES,
            options.buffer_size,
            options.buffer_size,
            0,
            &attributes,
        ))
    }
}

/// Opens a client's end (`CreateFileW`). The server can identify this user but not impersonate it.
/// It takes this user's token from each message (dynamic tracking), because one taken at the open
/// may be lost: see
/// `a_client_with_static_tracking_that_opens_before_connect_may_never_be_identified` in
/// `tests/windows_facts.rs`.
pub(crate) fn open_instance(address: &str, rights: u32) -> io::Result<Handle> {
    let address = wide(address);
    // SAFETY: `address` ends in NUL and outlives the call, which returns a new handle.
    unsafe {
        Handle::owned(CreateFileW(
            address.as_ptr(),
            rights,
            0,
            ptr::null(),
            OPEN_EXISTING,
            FILE_FLAG_OVERLAPPED
                | SECURITY_SQOS_PRESENT
                | SECURITY_IDENTIFICATION
                | SECURITY_CONTEXT_TRACKING,
            ptr::null_mut(),
        ))
    }
}

/// Binds a handle to the port of the model, which calls `completed` as the threads of `port` do.
#[cfg(pipe_model)]
unsafe fn bind_to_port(handle: RawHandle, key: *const c_void) -> io::Result<()> {
    // SAFETY: the handle is open, and `completed` may be called with its key.
    unsafe { super::model::functions::bind_to_port(handle, key, super::operations::completed) }
}

#[cfg(test)]
mod tests;
