//! Both ends of a pipe in plain overlapped Windows calls, completed by events or through a port,
//! without the library. Asserts that each operation ends exactly once.
#![allow(unsafe_code, reason = "tests the system calls directly")]
#![allow(missing_debug_implementations, reason = "never printed")]

use std::{
    ffi::c_void,
    mem, process, ptr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use windows_sys::{
    Win32::{
        Foundation::{
            ERROR_IO_PENDING, ERROR_MORE_DATA, ERROR_SUCCESS, GENERIC_READ, GENERIC_WRITE, HANDLE,
            INVALID_HANDLE_VALUE, WAIT_OBJECT_0, WAIT_TIMEOUT,
        },
        Security::{Authorization::SDDL_REVISION_1, SECURITY_ATTRIBUTES},
        Storage::FileSystem::{FILE_FLAG_OVERLAPPED, OPEN_EXISTING, PIPE_ACCESS_DUPLEX},
        System::{
            IO::OVERLAPPED,
            Pipes::{PIPE_READMODE_MESSAGE, PIPE_TYPE_MESSAGE, PIPE_UNLIMITED_INSTANCES},
            WindowsProgramming::FILE_SKIP_COMPLETION_PORT_ON_SUCCESS,
        },
    },
    core::BOOL,
};

/// Every Windows function called here, or its replacement in the model.
pub mod system {
    #[cfg(pipe_model)]
    pub use pipe_server::model::functions::*;
    #[cfg(not(pipe_model))]
    pub use windows_sys::Win32::{
        Foundation::{CloseHandle, GetLastError, LocalFree},
        Security::{
            Authorization::{
                ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW,
            },
            GetTokenInformation, RevertToSelf,
        },
        Storage::FileSystem::{
            CreateFileW, ReadFile, SetFileCompletionNotificationModes, WriteFile,
        },
        System::{
            IO::{
                CancelIoEx, CreateIoCompletionPort, GetOverlappedResult, GetQueuedCompletionStatus,
            },
            Pipes::{
                ConnectNamedPipe, CreateNamedPipeW, DisconnectNamedPipe,
                ImpersonateNamedPipeClient, SetNamedPipeHandleState,
            },
            Threading::{
                CreateEventW, GetCurrentProcess, GetCurrentThread, OpenProcessToken,
                OpenThreadToken, WaitForSingleObject,
            },
        },
    };
}

/// Starts the model, if the test is to run on it. The model is strict, that is, it does exactly
/// what the facts say, in the form that `PIPE_MODEL_FORM` names (`Windows7`, `Windows8` or
/// `Wine8`). Dropping this ends it.
#[must_use]
pub fn on_the_model() -> Option<OnTheModel> {
    on_the_model_that(false)
}

/// Like [`on_the_model`]: a model whose `ConnectNamedPipe` makes the server forget a client that
/// opened before it, or not.
#[must_use]
pub fn on_the_model_that(forgets: bool) -> Option<OnTheModel> {
    #[cfg(pipe_model)]
    return Some(OnTheModel::start(forgets));
    #[cfg(not(pipe_model))]
    {
        _ = forgets;
        None
    }
}

/// See [`on_the_model`].
#[derive(Debug)]
pub struct OnTheModel {
    #[cfg(pipe_model)]
    model: Option<pipe_server::model::Model>,
}

#[cfg(pipe_model)]
impl OnTheModel {
    fn start(listen_forgets_client: bool) -> Self {
        use pipe_server::model::{Delivery, Form, Model, Options};
        let form = std::env::var("PIPE_MODEL_FORM");
        let model = Model::new(Options {
            seed: 0,
            form: form.map_or(Form::Windows8, |form| form.parse().unwrap()),
            delivery: Delivery::Stepped,
            listen_forgets_client,
            strict: true,
            faults: 0,
        });
        model.enter();
        Self { model: Some(model) }
    }
}

#[cfg(pipe_model)]
impl Drop for OnTheModel {
    fn drop(&mut self) {
        if let (Some(model), false) = (self.model.take(), thread::panicking()) {
            model.finish();
        }
    }
}

/// Longer than any operation takes, even on a busy machine. After this, a packet or an event is
/// missing.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The quota of a pipe created here, in bytes per direction. Writes over it pend.
pub const QUOTA: u32 = 4096;

/// More than the quota.
pub const LONG: usize = 10_000;

pub const READ_WRITE: u32 = GENERIC_READ | GENERIC_WRITE;

/// A pipe's name that no other test uses.
pub struct Name(Vec<u16>);

impl Name {
    #[expect(clippy::new_without_default, reason = "each name is unique")]
    pub fn new() -> Self {
        Self::with_prefix("")
    }

    /// One that begins with `prefix`.
    pub fn with_prefix(prefix: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = process::id();
        Self(wide(&format!(
            r"\\.\pipe\{prefix}pipe-server-facts-{id}-{count}"
        )))
    }

    /// Creates an instance.
    pub fn create(&self) -> End {
        self.try_create(Instance::default()).unwrap()
    }

    pub fn try_create(&self, instance: Instance<'_>) -> Result<End, u32> {
        let descriptor = instance.access_list.map(Descriptor::parse);
        let attributes = SECURITY_ATTRIBUTES {
            nLength: mem::size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: descriptor
                .as_ref()
                .map_or(ptr::null_mut(), |descriptor| descriptor.0),
            bInheritHandle: 0,
        };
        // SAFETY: the name ends in NUL; it, `attributes` and the descriptor outlive the call.
        let handle = unsafe {
            system::CreateNamedPipeW(
                self.0.as_ptr(),
                PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | instance.flags,
                instance.mode,
                instance.limit,
                QUOTA,
                QUOTA,
                0,
                &attributes,
            )
        };
        End::new(handle)
    }

    /// Opens a client's end and sets message read mode.
    pub fn open(&self) -> End {
        let client = self.try_open(READ_WRITE).unwrap();
        assert_eq!(client.set_message_mode(), ERROR_SUCCESS);
        client
    }

    /// Opens a client's end. A new one is in byte read mode.
    pub fn try_open(&self, access: u32) -> Result<End, u32> {
        self.open_with(access, 0)
    }

    pub fn open_with(&self, access: u32, flags: u32) -> Result<End, u32> {
        // SAFETY: the name ends in NUL and outlives the call.
        let handle = unsafe {
            system::CreateFileW(
                self.0.as_ptr(),
                access,
                0,
                ptr::null(),
                OPEN_EXISTING,
                FILE_FLAG_OVERLAPPED | flags,
                ptr::null_mut(),
            )
        };
        End::new(handle)
    }
}

/// How an instance is created.
pub struct Instance<'a> {
    pub flags: u32,
    pub mode: u32,
    pub limit: u32,
    pub access_list: Option<&'a str>,
}

impl Default for Instance<'_> {
    fn default() -> Self {
        Self {
            flags: 0,
            mode: PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE,
            limit: PIPE_UNLIMITED_INSTANCES,
            access_list: None,
        }
    }
}

impl<'a> Instance<'a> {
    pub fn with_access_list(access_list: &'a str) -> Self {
        Self {
            access_list: Some(access_list),
            ..Self::default()
        }
    }
}

struct Descriptor(*mut c_void);

impl Descriptor {
    fn parse(text: &str) -> Self {
        let text = wide(text);
        let mut descriptor = ptr::null_mut();
        // SAFETY: `text` ends in NUL and outlives the call; `descriptor` is written on success.
        let done = unsafe {
            system::ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text.as_ptr(),
                SDDL_REVISION_1,
                &mut descriptor,
                ptr::null_mut(),
            )
        };
        assert_eq!(code(done), ERROR_SUCCESS);
        Self(descriptor)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the system allocated it with LocalAlloc, and `self` owns it.
        unsafe { system::LocalFree(self.0) };
    }
}

/// How operations on a handle are completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By the event in their `OVERLAPPED`.
    Event,
    /// By a packet at a port, even if the call succeeds at once.
    Port,
    /// By a packet at a port, unless the call ends at once (skip mode), as in the library.
    Skip,
}

/// One end of a pipe. Dropping it asserts that every packet was expected.
pub struct End {
    pub handle: HANDLE,
    mode: Mode,
    port: Option<Port>,
}

impl End {
    fn new(handle: HANDLE) -> Result<Self, u32> {
        if handle == INVALID_HANDLE_VALUE {
            return Err(code(0));
        }
        Ok(Self {
            handle,
            mode: Mode::Event,
            port: None,
        })
    }

    /// Binds the handle to a port in skip mode, as the library does.
    #[must_use]
    pub fn on_a_port(self) -> Self {
        self.with(Mode::Skip)
    }

    #[must_use]
    pub fn with(mut self, mode: Mode) -> Self {
        if mode != Mode::Event {
            self.port = Some(Port::new(self.handle));
        }
        if mode == Mode::Skip {
            let modes = FILE_SKIP_COMPLETION_PORT_ON_SUCCESS;
            // SAFETY: the handle is open.
            let done =
                unsafe { system::SetFileCompletionNotificationModes(self.handle, modes as u8) };
            assert_eq!(code(done), ERROR_SUCCESS);
        }
        self.mode = mode;
        self
    }

    pub fn set_message_mode(&self) -> u32 {
        let mode = PIPE_READMODE_MESSAGE;
        // SAFETY: the handle is open, and `mode` outlives the call.
        code(unsafe {
            system::SetNamedPipeHandleState(self.handle, &mode, ptr::null(), ptr::null())
        })
    }

    pub fn start_connect(&self) -> Operation {
        self.start(Vec::new(), |_, _, overlapped| {
            // SAFETY: the operation's memory outlives it.
            unsafe { system::ConnectNamedPipe(self.handle, overlapped) }
        })
    }

    pub fn start_read(&self, room: usize) -> Operation {
        self.start(vec![0; room], |buffer, length, overlapped| {
            // SAFETY: the operation's memory, in which `buffer` lies, outlives it.
            unsafe { system::ReadFile(self.handle, buffer, length, ptr::null_mut(), overlapped) }
        })
    }

    pub fn start_write(&self, message: &[u8]) -> Operation {
        self.start(message.to_vec(), |buffer, length, overlapped| {
            // SAFETY: the operation's memory, in which `buffer` lies, outlives it.
            unsafe { system::WriteFile(self.handle, buffer, length, ptr::null_mut(), overlapped) }
        })
    }

    fn start(
        &self,
        buffer: Vec<u8>,
        call: impl FnOnce(*mut u8, u32, *mut OVERLAPPED) -> BOOL,
    ) -> Operation {
        let mut operation = Operation::new(buffer, self.mode == Mode::Event);
        let memory = operation.memory;
        // SAFETY: nothing else uses the memory yet.
        let (buffer, length) = unsafe {
            let buffer = &mut (*memory).buffer;
            (buffer.as_mut_ptr(), buffer.len() as u32)
        };
        // SAFETY: the address of a field of memory that we own.
        let done = call(buffer, length, unsafe { &raw mut (*memory).overlapped });
        operation.returned = code(done);
        operation.pending = operation.returned == ERROR_IO_PENDING || self.sends_packet(&operation);
        operation
    }

    /// Whether a packet follows a call that ended at once.
    fn sends_packet(&self, operation: &Operation) -> bool {
        self.mode == Mode::Port && matches!(operation.returned, ERROR_SUCCESS | ERROR_MORE_DATA)
    }

    /// Waits until an operation ends, with exactly one event or, if one follows, exactly one
    /// packet.
    pub fn end(&self, mut operation: Operation) -> Ended {
        let started = matches!(
            operation.returned,
            ERROR_SUCCESS | ERROR_IO_PENDING | ERROR_MORE_DATA
        );
        let (code, length) = match &self.port {
            Some(port) if operation.pending => {
                let packet = port.wait();
                assert_eq!(
                    packet.overlapped, operation.memory as usize,
                    "a packet for another operation"
                );
                (packet.code, packet.length)
            }
            _ if started => self.result(&operation),
            _ => (operation.returned, 0),
        };
        operation.pending = false;
        // SAFETY: the operation is over, so nothing else uses the memory.
        let buffer = unsafe { &(*operation.memory).buffer };
        Ended {
            code,
            data: buffer[..length].to_vec(),
        }
    }

    /// Waits for one packet per operation, in any order.
    pub fn end_all<const N: usize>(&self, mut operations: [Operation; N]) -> [u32; N] {
        let mut codes = [ERROR_SUCCESS; N];
        for _ in 0..N {
            let packet = self.port.as_ref().unwrap().wait();
            let index = operations
                .iter()
                .position(|operation| operation.memory as usize == packet.overlapped)
                .expect("a packet for another operation");
            assert!(operations[index].pending, "two packets for one operation");
            operations[index].pending = false;
            codes[index] = packet.code;
        }
        codes
    }

    fn result(&self, operation: &Operation) -> (u32, usize) {
        // SAFETY: the operation was started on this handle, and its memory is still there.
        unsafe {
            let overlapped = &raw mut (*operation.memory).overlapped;
            if self.mode == Mode::Event {
                let deadline = DEADLINE.as_millis() as u32;
                let waited = system::WaitForSingleObject((*overlapped).hEvent, deadline);
                assert_eq!(waited, WAIT_OBJECT_0, "the event is never set");
            }
            let mut length = 0;
            let done = system::GetOverlappedResult(self.handle, overlapped, &mut length, 0);
            (code(done), length as usize)
        }
    }

    pub fn connect(&self) -> u32 {
        self.end(self.start_connect()).code
    }

    pub fn read(&self, room: usize) -> Ended {
        self.end(self.start_read(room))
    }

    pub fn write(&self, message: &[u8]) -> u32 {
        self.end(self.start_write(message)).code
    }

    /// Cancels one operation.
    pub fn cancel(&self, operation: &Operation) -> u32 {
        // SAFETY: the handle is open, and the operation's memory still there.
        code(unsafe { system::CancelIoEx(self.handle, &raw const (*operation.memory).overlapped) })
    }

    pub fn cancel_all(&self) -> u32 {
        // SAFETY: the handle is open.
        code(unsafe { system::CancelIoEx(self.handle, ptr::null()) })
    }

    pub fn disconnect(&self) -> u32 {
        // SAFETY: the handle is open.
        code(unsafe { system::DisconnectNamedPipe(self.handle) })
    }

    pub fn close(&mut self) {
        let handle = mem::replace(&mut self.handle, INVALID_HANDLE_VALUE);
        if handle != INVALID_HANDLE_VALUE {
            // SAFETY: the handle is open, and not used after this.
            unsafe { system::CloseHandle(handle) };
        }
    }
}

impl Drop for End {
    // The handle goes first, and then the port, which checks that closing it sent no packet.
    fn drop(&mut self) {
        self.close();
    }
}

/// A started operation. Its memory is freed when it is over; a failing test leaks that of a pending
/// one.
pub struct Operation {
    pub memory: *mut Memory,
    /// The error code of the call, or `ERROR_SUCCESS`.
    pub returned: u32,
    /// The system still uses the memory, or a packet is still to come.
    pub pending: bool,
}

/// `repr(C)`, so that its address is that of its `OVERLAPPED`.
#[repr(C)]
pub struct Memory {
    pub overlapped: OVERLAPPED,
    buffer: Vec<u8>,
}

/// The result of an operation, and the data that it read or wrote.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: u32,
    pub data: Vec<u8>,
}

impl Operation {
    pub fn new(buffer: Vec<u8>, event: bool) -> Self {
        let mut overlapped = OVERLAPPED::default();
        if event {
            // SAFETY: creates an unnamed manual-reset event.
            overlapped.hEvent = unsafe { system::CreateEventW(ptr::null(), 1, 0, ptr::null()) };
            assert!(!overlapped.hEvent.is_null());
        }
        Self {
            memory: Box::into_raw(Box::new(Memory { overlapped, buffer })),
            returned: ERROR_SUCCESS,
            pending: false,
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.pending {
            assert!(
                thread::panicking(),
                "the test did not end an operation that it started"
            );
            return;
        }
        // SAFETY: `new` allocated it, and the operation is over.
        let memory = unsafe { Box::from_raw(self.memory) };
        if !memory.overlapped.hEvent.is_null() {
            // SAFETY: we own the event.
            unsafe { system::CloseHandle(memory.overlapped.hEvent) };
        }
    }
}

pub fn ended(code: u32, data: &[u8]) -> Ended {
    Ended {
        code,
        data: data.to_vec(),
    }
}

/// The completion port of one handle.
struct Port {
    handle: HANDLE,
    key: usize,
}

/// What the port says of an operation that has ended.
#[derive(Debug)]
struct Packet {
    overlapped: usize,
    code: u32,
    length: usize,
}

impl Port {
    fn new(bound: HANDLE) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(1);
        let key = COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the handle is open and overlapped; without another port, the call creates one.
        let handle = unsafe { system::CreateIoCompletionPort(bound, ptr::null_mut(), key, 1) };
        assert!(!handle.is_null(), "{}", code(0));
        Self { handle, key }
    }

    fn wait(&self) -> Packet {
        self.take(DEADLINE).expect("the packet never comes")
    }

    /// The next packet, if one arrives in time.
    fn take(&self, time: Duration) -> Option<Packet> {
        let (mut length, mut key, mut overlapped) = (0, 0, ptr::null_mut());
        // SAFETY: the port is open, and the variables outlive the call.
        let taken = code(unsafe {
            system::GetQueuedCompletionStatus(
                self.handle,
                &mut length,
                &mut key,
                &mut overlapped,
                time.as_millis() as u32,
            )
        });
        if overlapped.is_null() {
            assert_eq!(taken, WAIT_TIMEOUT);
            return None;
        }
        assert_eq!(key, self.key, "a packet of another handle");
        Some(Packet {
            overlapped: overlapped.addr(),
            code: taken,
            length: length as usize,
        })
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let unexpected = self.take(Duration::ZERO);
        // SAFETY: the port is open, and not used after this.
        unsafe { system::CloseHandle(self.handle) };
        if !thread::panicking() {
            assert!(unexpected.is_none(), "an unexpected packet: {unexpected:?}");
        }
    }
}

fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// The error of the call that returned `done`, or `ERROR_SUCCESS`.
pub fn code(done: BOOL) -> u32 {
    match done {
        // SAFETY: has no preconditions.
        0 => unsafe { system::GetLastError() },
        _ => ERROR_SUCCESS,
    }
}

/// A server's end in the library's mode, and its client's end.
pub fn pair() -> (End, End) {
    pair_with(Mode::Skip)
}

pub fn pair_with(mode: Mode) -> (End, End) {
    let name = Name::new();
    let server = name.create().with(mode);
    (server, name.open())
}

/// A message that exceeds the pipe's quota.
pub fn long_message() -> Vec<u8> {
    (0..LONG).map(|index| (index % 251) as u8).collect()
}
