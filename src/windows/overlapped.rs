//! A pipe's handle and its overlapped operations, completed by the system's thread pool.
//!
//! Invariants, on which every unsafe block here and in `operations` rests:
//!
//! - **What the system writes to outlives the operation.** An operation's `OVERLAPPED` and its buffer
//!   lie in [`Operations`], which is behind an `Arc` and never moves. An operation that is started takes
//!   a reference of that `Arc` with it, and its completion gives the reference back.
//! - **Each operation completes exactly once.** With `FILE_SKIP_COMPLETION_PORT_ON_SUCCESS`, one that is
//!   over when the call returns sends no completion: the caller has it back. One that is pending sends
//!   exactly one, also when it is cancelled or its handle is closed.
//! - **One of each kind at a time.** [`Operation::start`] refuses a second one, so nobody touches an
//!   `OVERLAPPED` or a buffer that the system has.
//! - **Nothing is started on a closed handle.** Only [`Pipe`] starts operations, and it owns the handle.
//!
//! What this file believes of Windows, each with its evidence ("WT" is a conformance test of Wine, which
//! is run on Windows; `tests/windows_facts.rs` asks the system itself):
//!
//! - A read that is too short for the message that waits ends in one of two ways, both handled: at once
//!   with `ERROR_MORE_DATA` and no completion (Windows 7, Wine), or pending, with the code in its
//!   completion (Windows 8 and later; WT ntdll `test_completion`). The rest of the message is what the
//!   next read returns (*Named Pipe Type, Read, and Wait Modes*).
//! - An operation that fails at once sends no completion (WT ntdll `test_completion`; mio and .NET rely on
//!   it).
//! - The notification mode is set after the thread pool has bound the handle (WT ntdll).
//! - `CancelThreadpoolIo` follows a call that sends no completion (its page).
//! - `CloseThreadpoolIo` may be called inside the object's last callback (.NET does).
//!
//! No call here can wait for a client. `PeekNamedPipe` could: from Windows 8 on its request returns
//! `STATUS_PENDING` (WT ntdll `test_completion`), and the function then waits for the handle's own event,
//! which any other operation on the handle resets (ebpf-for-windows#3325) and which
//! `FILE_SKIP_SET_EVENT_ON_HANDLE` keeps from ever being set (WT ntdll). So nobody asks how much of a
//! message is left, and that mode is not set, in case another call of the system waits in the same way.

use std::{
    ffi::c_void,
    io, mem,
    os::windows::io::{AsRawHandle, RawHandle},
    ptr,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use windows_sys::Win32::{
    Foundation::{ERROR_MORE_DATA, ERROR_NO_DATA, ERROR_PIPE_CONNECTED, ERROR_SUCCESS},
    Storage::FileSystem::{
        FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, FILE_READ_ATTRIBUTES, FILE_READ_DATA,
        FILE_WRITE_ATTRIBUTES, FILE_WRITE_DATA, OPEN_EXISTING, PIPE_ACCESS_DUPLEX, READ_CONTROL,
        SECURITY_IDENTIFICATION, SECURITY_SQOS_PRESENT, SYNCHRONIZE,
    },
    System::{
        Pipes::{
            PIPE_READMODE_MESSAGE, PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_MESSAGE,
            PIPE_UNLIMITED_INSTANCES, PIPE_WAIT,
        },
        WindowsProgramming::FILE_SKIP_COMPLETION_PORT_ON_SUCCESS,
    },
};

use self::operations::{Done, Operation, Operations, Progress, completed};
use super::{
    cancel,
    security::SecurityDescriptor,
    system::{
        ConnectNamedPipe, CreateFileW, CreateNamedPipeW, CreateThreadpoolIo, Handle, ReadFile,
        SetFileCompletionNotificationModes, SetNamedPipeHandleState, WriteFile, check, last_error,
    },
    wide,
};

mod operations;
#[cfg(test)]
mod tests;

/// What a client needs and no more: `GENERIC_WRITE` also holds the right to create instances
/// (`FILE_APPEND_DATA`), which a careful server withholds from other users.
const CLIENT_RIGHTS: u32 =
    FILE_READ_DATA | FILE_WRITE_DATA | FILE_READ_ATTRIBUTES | FILE_WRITE_ATTRIBUTES | SYNCHRONIZE;

/// How an instance is created.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InstanceOptions {
    /// Whether creating fails when the name is served already, by anybody.
    pub(crate) first: bool,
    pub(crate) allow_remote: bool,
    /// In bytes, each way.
    pub(crate) buffer_size: u32,
}

/// One end of a pipe. Dropping it cancels what is in flight and closes the handle at once.
#[derive(Debug)]
pub(crate) struct Pipe {
    handle: Handle,
    operations: Arc<Operations>,
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// With the message.
    Whole,
    /// With the buffer: there is more of the message.
    Part,
}

impl Pipe {
    /// Creates an instance (`CreateNamedPipeW`) and has it wait for its client (`ConnectNamedPipe`).
    ///
    /// The system is not asked to limit the number of instances.
    pub(crate) fn create(
        address: &str,
        descriptor: &SecurityDescriptor,
        options: InstanceOptions,
    ) -> io::Result<Self> {
        let pipe = Self::create_instance(address, descriptor, options)?;
        pipe.start_connect()?;
        Ok(pipe)
    }

    fn create_instance(
        address: &str,
        descriptor: &SecurityDescriptor,
        options: InstanceOptions,
    ) -> io::Result<Self> {
        Self::new(instance(address, descriptor, options)?)
    }

    /// Opens a client's end (`CreateFileW`), in message read mode. The server may learn who this is, not
    /// act as this user. `server_of` takes an end that was opened to `see_owner`.
    pub(crate) fn open(address: &str, see_owner: bool) -> io::Result<Self> {
        let address = wide(address);
        let rights = match see_owner {
            true => CLIENT_RIGHTS | READ_CONTROL,
            false => CLIENT_RIGHTS,
        };
        // SAFETY: `address` ends in NUL and lives through the call, whose handle is new.
        let handle = unsafe {
            Handle::owned(CreateFileW(
                address.as_ptr(),
                rights,
                0,
                ptr::null(),
                OPEN_EXISTING,
                FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION,
                ptr::null_mut(),
            ))?
        };
        let mode = PIPE_READMODE_MESSAGE;
        // SAFETY: the handle is open, and `mode` lives through the call.
        let done = unsafe {
            SetNamedPipeHandleState(handle.as_raw_handle(), &mode, ptr::null(), ptr::null())
        };
        check(done)?;
        Self::new(handle)
    }

    fn new(handle: Handle) -> io::Result<Self> {
        let raw = handle.as_raw_handle();
        let operations = Arc::new_cyclic(|this: &Weak<Operations>| Operations {
            // SAFETY: the handle is open and overlapped. The address that the callback gets is that of
            // the value which is being made; no operation is started, and the callback not called,
            // before it is.
            io: unsafe {
                CreateThreadpoolIo(
                    raw,
                    Some(completed),
                    this.as_ptr() as *mut c_void,
                    ptr::null(),
                )
            },
            connect: Operation::default(),
            read: Operation::default(),
            write: Operation::default(),
        });
        if operations.io == 0 {
            return Err(last_error());
        }
        let modes = FILE_SKIP_COMPLETION_PORT_ON_SUCCESS;
        // SAFETY: the handle is open.
        check(unsafe { SetFileCompletionNotificationModes(raw, modes as u8) })?;
        Ok(Self { handle, operations })
    }

    /// Starts to wait for a client. Called when nothing waits: by `create`, and after `poll_connect` has failed.
    pub(crate) fn start_connect(&self) -> io::Result<()> {
        let connect = &self.operations.connect;
        // SAFETY: as `Operation::start` asks, with no buffer.
        let done = connect.start(&self.operations, (), |(), overlapped| unsafe {
            ConnectNamedPipe(self.handle.as_raw_handle(), overlapped)
        });
        match done {
            None => Ok(()),
            // Somebody was faster than this call. Somebody who has left again counts as well: what was
            // written can still be read.
            Some(Done {
                code: ERROR_SUCCESS | ERROR_PIPE_CONNECTED | ERROR_NO_DATA,
                ..
            }) => Ok(()),
            Some(done) => Err(done.error()),
        }
    }

    /// Ready once a client is connected, also if it has left again.
    pub(crate) fn poll_connect(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.operations.connect.poll(cx) {
            Progress::Pending => Poll::Pending,
            Progress::None => Poll::Ready(Ok(())),
            Progress::Done(Done {
                code: ERROR_SUCCESS | ERROR_NO_DATA,
                ..
            }) => Poll::Ready(Ok(())),
            Progress::Done(done) => Poll::Ready(Err(done.error())),
        }
    }

    /// Appends to `buffer` what comes in, as far as its capacity allows: a message, or the next part of
    /// one. While this is pending `buffer` is empty, and what was in it is with the read.
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<Read>> {
        let read = &self.operations.read;
        let done = loop {
            match read.poll(cx) {
                Progress::Pending => return Poll::Pending,
                Progress::Done(done) => break done,
                Progress::None => {}
            }
            if let Some(done) = self.start_read(mem::take(buffer)) {
                break done;
            }
            // Pending: the next poll says who is woken.
        };
        let (code, length) = (done.code, done.length);
        *buffer = done.buffer;
        // SAFETY: the system wrote `length` bytes into the room behind the bytes that were there.
        unsafe { buffer.set_len(buffer.len() + length) };
        Poll::Ready(match code {
            ERROR_SUCCESS => Ok(Read::Whole),
            ERROR_MORE_DATA => Ok(Read::Part),
            code => Err(io::Error::from_raw_os_error(code as i32)),
        })
    }

    fn start_read(&self, buffer: BytesMut) -> Option<Done<BytesMut>> {
        let handle = self.handle.as_raw_handle();
        let read = &self.operations.read;
        read.start(&self.operations, buffer, |buffer, overlapped| {
            let room = buffer.spare_capacity_mut();
            let length = u32::try_from(room.len()).unwrap_or(u32::MAX);
            // SAFETY: as `Operation::start` asks; `room` is part of the buffer.
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

    /// Writes one message of less than 4 GiB, in one `WriteFile`. Only called when `poll_write` is ready.
    pub(crate) fn start_write(&self, message: Bytes) -> io::Result<()> {
        let handle = self.handle.as_raw_handle();
        let write = &self.operations.write;
        let started = write.start(&self.operations, message, |message, overlapped| {
            // SAFETY: as `Operation::start` asks; the message is the buffer.
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
        started.map_or(Ok(()), Done::result)
    }

    /// Ready when no write is in flight any more, with the result of the one that was.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.operations.write.poll(cx) {
            Progress::Pending => Poll::Pending,
            Progress::None => Poll::Ready(Ok(())),
            Progress::Done(done) => Poll::Ready(done.result()),
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // Closing alone would leave a pending write, and with it the instance, to a peer that may never
        // read (mio#1944). What was written before stays readable.
        if self.operations.any_pending() {
            cancel(&self.handle);
        }
    }
}

impl AsRawHandle for Pipe {
    fn as_raw_handle(&self) -> RawHandle {
        self.handle.as_raw_handle()
    }
}

/// A new instance, which clients can open (`CreateNamedPipeW`).
pub(super) fn instance(
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
    // SAFETY: `address` ends in NUL; it and `attributes`, with the descriptor that they point to, live
    // through the call, whose handle is new.
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
