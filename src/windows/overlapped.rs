//! A pipe's handle and its overlapped operations, completed by the system's thread pool.
//!
//! Invariants, on which every unsafe block here rests:
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

use std::{
    cell::UnsafeCell,
    ffi::c_void,
    io, mem,
    os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle, RawHandle},
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use windows_sys::{
    Win32::{
        Foundation::{
            ERROR_IO_PENDING, ERROR_MORE_DATA, ERROR_NO_DATA, ERROR_PIPE_CONNECTED, ERROR_SUCCESS,
            GetLastError, HANDLE, INVALID_HANDLE_VALUE,
        },
        Storage::FileSystem::{
            CreateFileW, FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, FILE_READ_ATTRIBUTES,
            FILE_READ_DATA, FILE_WRITE_ATTRIBUTES, FILE_WRITE_DATA, OPEN_EXISTING,
            PIPE_ACCESS_DUPLEX, READ_CONTROL, ReadFile, SECURITY_IDENTIFICATION,
            SECURITY_SQOS_PRESENT, SYNCHRONIZE, SetFileCompletionNotificationModes, WriteFile,
        },
        System::{
            IO::{CancelIoEx, OVERLAPPED},
            Pipes::{
                ConnectNamedPipe, CreateNamedPipeW, PIPE_READMODE_MESSAGE,
                PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_MESSAGE, PIPE_UNLIMITED_INSTANCES, PIPE_WAIT,
                PeekNamedPipe, SetNamedPipeHandleState,
            },
            Threading::{
                CancelThreadpoolIo, CloseThreadpoolIo, CreateThreadpoolIo, PTP_CALLBACK_INSTANCE,
                PTP_IO, StartThreadpoolIo,
            },
            WindowsProgramming::{
                FILE_SKIP_COMPLETION_PORT_ON_SUCCESS, FILE_SKIP_SET_EVENT_ON_HANDLE,
            },
        },
    },
    core::BOOL,
};

use super::{check, security::SecurityDescriptor, wide};

#[cfg(test)]
mod tests;

/// What a client needs and no more: the right to create instances (`FILE_APPEND_DATA`), which
/// `GENERIC_WRITE` holds, is refused to other users by a careful server.
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

/// One end of a pipe. Dropping it cancels what is under way and closes the handle at once.
#[derive(Debug)]
pub(crate) struct Pipe {
    handle: OwnedHandle,
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
        // SAFETY: `address` ends in NUL; it and `attributes`, with the descriptor that they point to,
        // live through the call.
        let handle = unsafe {
            CreateNamedPipeW(
                address.as_ptr(),
                open_mode,
                pipe_mode,
                PIPE_UNLIMITED_INSTANCES,
                options.buffer_size,
                options.buffer_size,
                0,
                &attributes,
            )
        };
        Self::new(owned(handle)?)
    }

    /// Opens a client's end (`CreateFileW`), in message read mode. The server may learn who this is, not
    /// act as this user. `server_of` takes an end that was opened to `see_owner`.
    pub(crate) fn open(address: &str, see_owner: bool) -> io::Result<Self> {
        let address = wide(address);
        let rights = match see_owner {
            true => CLIENT_RIGHTS | READ_CONTROL,
            false => CLIENT_RIGHTS,
        };
        // SAFETY: `address` ends in NUL and lives through the call.
        let handle = unsafe {
            CreateFileW(
                address.as_ptr(),
                rights,
                0,
                ptr::null(),
                OPEN_EXISTING,
                FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION,
                ptr::null_mut(),
            )
        };
        let handle = owned(handle)?;
        let mode = PIPE_READMODE_MESSAGE;
        // SAFETY: the handle is open, and `mode` lives through the call.
        let done = unsafe {
            SetNamedPipeHandleState(handle.as_raw_handle(), &mode, ptr::null(), ptr::null())
        };
        check(done)?;
        Self::new(handle)
    }

    fn new(handle: OwnedHandle) -> io::Result<Self> {
        let raw = handle.as_raw_handle();
        let operations = Arc::new_cyclic(|this: &std::sync::Weak<Operations>| Operations {
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
            return Err(io::Error::last_os_error());
        }
        let modes = FILE_SKIP_COMPLETION_PORT_ON_SUCCESS | FILE_SKIP_SET_EVENT_ON_HANDLE;
        // SAFETY: the handle is open.
        check(unsafe { SetFileCompletionNotificationModes(raw, modes as u8) })?;
        Ok(Self { handle, operations })
    }

    fn start_connect(&self) -> io::Result<()> {
        let connect = &self.operations.connect;
        // SAFETY: as `Operation::start` asks, with no buffer.
        let done = connect.start(&self.operations, (), None, |(), overlapped| unsafe {
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
        let done = match read.poll(cx) {
            Progress::Pending => return Poll::Pending,
            Progress::Done(done) => done,
            Progress::None => {
                let handle = self.handle.as_raw_handle();
                let (buffer, waker) = (mem::take(buffer), Some(cx.waker()));
                let started = read.start(&self.operations, buffer, waker, |buffer, overlapped| {
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
                });
                match started {
                    Some(done) => done,
                    None => return Poll::Pending,
                }
            }
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

    /// How much is left of the message that a read has returned a part of, in bytes.
    pub(crate) fn rest_of_message(&self) -> io::Result<usize> {
        let mut left = 0;
        // SAFETY: the handle is open, and `left` is written on success.
        let done = unsafe {
            PeekNamedPipe(
                self.handle.as_raw_handle(),
                ptr::null_mut(),
                0,
                ptr::null_mut(),
                ptr::null_mut(),
                &mut left,
            )
        };
        check(done)?;
        Ok(left as usize)
    }

    /// Writes one message of less than 4 GiB, in one `WriteFile`. Only called when `poll_write` is ready.
    pub(crate) fn start_write(&self, message: Bytes) -> io::Result<()> {
        let handle = self.handle.as_raw_handle();
        let write = &self.operations.write;
        let started = write.start(&self.operations, message, None, |message, overlapped| {
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

    /// Ready when no write is under way any more, with the result of the one that was.
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
            // SAFETY: the handle is open.
            unsafe { CancelIoEx(self.handle.as_raw_handle(), ptr::null()) };
        }
    }
}

impl AsRawHandle for Pipe {
    fn as_raw_handle(&self) -> RawHandle {
        self.handle.as_raw_handle()
    }
}

/// What can be under way on one handle.
#[derive(Debug)]
struct Operations {
    io: PTP_IO,
    connect: Operation<()>,
    read: Operation<BytesMut>,
    write: Operation<Bytes>,
}

impl Operations {
    fn any_pending(&self) -> bool {
        self.connect.is_pending() || self.read.is_pending() || self.write.is_pending()
    }
}

impl Drop for Operations {
    fn drop(&mut self) {
        if self.io != 0 {
            // SAFETY: the object was created with this value, and no operation is under way: each holds
            // a reference. Inside the last completion's callback the system waits until it returns.
            unsafe { CloseThreadpoolIo(self.io) };
        }
    }
}

/// Called on a thread of the pool when a pending operation is over.
unsafe extern "system" fn completed(
    _instance: PTP_CALLBACK_INSTANCE,
    operations: *mut c_void,
    overlapped: *mut c_void,
    code: u32,
    length: usize,
    _io: PTP_IO,
) {
    // SAFETY: the reference that `Operation::start` let go of, given back exactly once.
    let operations = unsafe { Arc::from_raw(operations.cast_const().cast::<Operations>()) };
    if operations.connect.is_at(overlapped) {
        operations.connect.complete(code, length);
    } else if operations.read.is_at(overlapped) {
        operations.read.complete(code, length);
    } else {
        operations.write.complete(code, length);
    }
}

/// A kind of operation, of which one at a time can be under way. `B` is the buffer that it owns.
#[derive(Debug)]
struct Operation<B> {
    overlapped: UnsafeCell<OVERLAPPED>,
    state: Mutex<State<B>>,
}

// SAFETY: `overlapped` is only touched by the one who may start the operation and, while it is pending,
// by the system; `state` says whose turn it is. The rest is Send.
unsafe impl<B: Send> Send for Operation<B> {}
// SAFETY: as above.
unsafe impl<B: Send> Sync for Operation<B> {}

#[derive(Debug)]
enum State<B> {
    None,
    Pending { buffer: B, waker: Option<Waker> },
    Done(Done<B>),
}

/// An operation that is over, and its buffer.
#[derive(Debug)]
struct Done<B> {
    /// A system error code; `ERROR_SUCCESS` is none.
    code: u32,
    /// How many bytes were transferred.
    length: usize,
    buffer: B,
}

enum Progress<B> {
    /// Nothing was started.
    None,
    Pending,
    Done(Done<B>),
}

impl<B> Default for Operation<B> {
    fn default() -> Self {
        Self {
            overlapped: UnsafeCell::default(),
            state: Mutex::new(State::None),
        }
    }
}

impl<B> Operation<B> {
    /// Starts an operation with `call`, and returns it if it is over at once. Otherwise `waker` is woken
    /// when it is over, or the one of a later `poll`.
    ///
    /// `call` makes one overlapped system call with the `OVERLAPPED` that it gets, on the handle that
    /// `operations` belong to. The system may use this `OVERLAPPED` and the memory that `buffer` refers
    /// to, which moving `buffer` does not move, until the operation is over.
    fn start(
        &self,
        operations: &Arc<Operations>,
        mut buffer: B,
        waker: Option<&Waker>,
        call: impl FnOnce(&mut B, *mut OVERLAPPED) -> BOOL,
    ) -> Option<Done<B>> {
        let mut state = self.lock();
        assert!(
            matches!(*state, State::None),
            "an operation is under way already"
        );
        let overlapped = self.overlapped.get();
        // SAFETY: no operation is under way, and the lock is held: nobody else looks at it.
        unsafe { *overlapped = OVERLAPPED::default() };
        let reference = Arc::into_raw(Arc::clone(operations));
        // SAFETY: `io` is the object of this handle; the call that it announces follows.
        unsafe { StartThreadpoolIo(operations.io) };
        let succeeded = call(&mut buffer, overlapped) != 0;
        let code = if succeeded {
            ERROR_SUCCESS
        } else {
            // SAFETY: always allowed.
            unsafe { GetLastError() }
        };
        if code == ERROR_IO_PENDING {
            // A completion that is there already waits for the lock.
            let waker = waker.cloned();
            *state = State::Pending { buffer, waker };
            return None;
        }
        // SAFETY: the call is over and sends no completion; so the reference is still ours.
        unsafe {
            CancelThreadpoolIo(operations.io);
            drop(Arc::from_raw(reference));
        }
        // SAFETY: the system has finished with it.
        let length = unsafe { (*overlapped).InternalHigh };
        Some(Done {
            code,
            length,
            buffer,
        })
    }

    fn poll(&self, cx: &mut Context<'_>) -> Progress<B> {
        let mut state = self.lock();
        match mem::replace(&mut *state, State::None) {
            State::None => Progress::None,
            State::Done(done) => Progress::Done(done),
            State::Pending { buffer, waker } => {
                let waker = match waker {
                    Some(waker) if waker.will_wake(cx.waker()) => waker,
                    _ => cx.waker().clone(),
                };
                *state = State::Pending {
                    buffer,
                    waker: Some(waker),
                };
                Progress::Pending
            }
        }
    }

    fn complete(&self, code: u32, length: usize) {
        let mut state = self.lock();
        let State::Pending { buffer, waker } = mem::replace(&mut *state, State::None) else {
            unreachable!("only a pending operation completes");
        };
        *state = State::Done(Done {
            code,
            length,
            buffer,
        });
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn is_pending(&self) -> bool {
        matches!(*self.lock(), State::Pending { .. })
    }

    fn is_at(&self, overlapped: *const c_void) -> bool {
        ptr::eq(self.overlapped.get().cast(), overlapped)
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Done<B> {
    fn result(self) -> io::Result<()> {
        match self.code {
            ERROR_SUCCESS => Ok(()),
            _ => Err(self.error()),
        }
    }

    fn error(self) -> io::Error {
        io::Error::from_raw_os_error(self.code as i32)
    }
}

fn owned(handle: HANDLE) -> io::Result<OwnedHandle> {
    if handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system has just opened it for us.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}
