//! One end of a pipe as a program without this library uses it: plain, blocking Windows calls.
#![allow(unsafe_code, reason = "tests the system calls directly")]

use std::{
    ffi::{CStr, c_char},
    io, mem,
    os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle},
    process, ptr,
};

use windows_sys::{
    Win32::{
        Foundation::{
            ERROR_IO_PENDING, ERROR_MORE_DATA, ERROR_PIPE_BUSY, ERROR_PIPE_CONNECTED, GENERIC_READ,
            GENERIC_WRITE, HANDLE, INVALID_HANDLE_VALUE, LocalFree,
        },
        Security::{
            Authorization::{
                ConvertSecurityDescriptorToStringSecurityDescriptorW,
                ConvertStringSecurityDescriptorToSecurityDescriptorW, GetSecurityInfo,
                SDDL_REVISION_1, SE_KERNEL_OBJECT,
            },
            CreateRestrictedToken, DACL_SECURITY_INFORMATION, GetTokenInformation,
            ImpersonateLoggedOnUser, PSECURITY_DESCRIPTOR, RevertToSelf, SID_AND_ATTRIBUTES,
            TOKEN_DUPLICATE, TOKEN_IMPERSONATE, TOKEN_QUERY, TOKEN_USER, TokenUser,
        },
        Storage::FileSystem::{
            CreateFileW, FILE_FLAG_OVERLAPPED, OPEN_EXISTING, ReadFile, SECURITY_ANONYMOUS,
            SECURITY_SQOS_PRESENT, WriteFile,
        },
        System::{
            IO::{GetOverlappedResult, OVERLAPPED},
            LibraryLoader::{GetModuleHandleA, GetProcAddress},
            Pipes::{
                ConnectNamedPipe, CreateNamedPipeW, DisconnectNamedPipe, PIPE_READMODE_MESSAGE,
                PIPE_UNLIMITED_INSTANCES, PeekNamedPipe, SetNamedPipeHandleState, WaitNamedPipeW,
            },
            Threading::{CreateEventW, GetCurrentProcess, OpenProcessToken},
        },
    },
    core::{BOOL, s},
};

/// The buffer size of pipes created here, in bytes per direction.
const BUFFER_SIZE: u32 = 65_536;

/// How long the sample's client waits for a busy pipe, in milliseconds (*Named Pipe Client*).
const BUSY_WAIT: u32 = 20_000;

/// One end of a pipe, closed when it is dropped.
#[derive(Debug)]
pub struct PlainPipe {
    handle: OwnedHandle,
    overlapped: bool,
}

impl PlainPipe {
    /// Opens a client's end (`CreateFileW`). A new one is in byte read mode.
    pub fn open(address: &str, access: u32) -> io::Result<Self> {
        Self::open_with(address, access, 0)
    }

    /// Like `open`, for use by two threads. On a synchronous handle, a pending read blocks writes.
    pub fn open_for_two(address: &str, access: u32) -> io::Result<Self> {
        Self::open_with(address, access, FILE_FLAG_OVERLAPPED)
    }

    /// Like `open`, with `SECURITY_ANONYMOUS`: the server can't identify the client.
    pub fn open_anonymously(address: &str, access: u32) -> io::Result<Self> {
        Self::open_with(address, access, SECURITY_SQOS_PRESENT | SECURITY_ANONYMOUS)
    }

    fn open_with(address: &str, access: u32, flags: u32) -> io::Result<Self> {
        let address = wide(address);
        // SAFETY: `address` ends in NUL and outlives the call.
        let handle = unsafe {
            CreateFileW(
                address.as_ptr(),
                access,
                0,
                ptr::null(),
                OPEN_EXISTING,
                flags,
                ptr::null_mut(),
            )
        };
        Self::own(handle, flags)
    }

    /// Creates a server's end (`CreateNamedPipeW`).
    pub fn create(address: &str, open_mode: u32, pipe_mode: u32) -> io::Result<Self> {
        let address = wide(address);
        // SAFETY: `address` ends in NUL and outlives the call.
        let handle = unsafe {
            CreateNamedPipeW(
                address.as_ptr(),
                open_mode,
                pipe_mode,
                PIPE_UNLIMITED_INSTANCES,
                BUFFER_SIZE,
                BUFFER_SIZE,
                0,
                ptr::null(),
            )
        };
        Self::own(handle, open_mode)
    }

    fn own(handle: HANDLE, flags: u32) -> io::Result<Self> {
        if handle == INVALID_HANDLE_VALUE {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system has just opened it for us.
        let handle = unsafe { OwnedHandle::from_raw_handle(handle) };
        let overlapped = flags & FILE_FLAG_OVERLAPPED != 0;
        Ok(Self { handle, overlapped })
    }

    /// Waits for a client (`ConnectNamedPipe`). The handle has to be synchronous.
    pub fn connect(&self) -> io::Result<()> {
        // SAFETY: the handle is open and synchronous.
        match check(unsafe { ConnectNamedPipe(self.raw(), ptr::null_mut()) }) {
            Err(error) if is(&error, ERROR_PIPE_CONNECTED) => Ok(()),
            connected => connected,
        }
    }

    /// Disconnects the client and discards what it has not read (`DisconnectNamedPipe`).
    pub fn disconnect(&self) -> io::Result<()> {
        // SAFETY: the handle is open.
        check(unsafe { DisconnectNamedPipe(self.raw()) })
    }

    /// Sets message read mode, so that reads end at message boundaries.
    pub fn set_message_mode(&self) -> io::Result<()> {
        let mode = PIPE_READMODE_MESSAGE;
        // SAFETY: the handle is open, and `mode` outlives the call.
        check(unsafe { SetNamedPipeHandleState(self.raw(), &mode, ptr::null(), ptr::null()) })
    }

    /// One `ReadFile`. Returns the number of bytes, and whether the message continues.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let length = u32::try_from(buffer.len()).unwrap();
        self.transfer(|transferred, overlapped| {
            // SAFETY: the handle is open, and `transfer` returns when the system is done with
            // `buffer`.
            unsafe {
                ReadFile(
                    self.raw(),
                    buffer.as_mut_ptr(),
                    length,
                    transferred,
                    overlapped,
                )
            }
        })
    }

    /// Reads a message with as many reads of `buffer_size` bytes as it takes.
    pub fn read_message(&self, buffer_size: usize) -> io::Result<Vec<u8>> {
        let mut message = Vec::new();
        let mut buffer = vec![0; buffer_size];
        loop {
            let (length, more) = self.read(&mut buffer)?;
            message.extend_from_slice(&buffer[..length]);
            if !more {
                return Ok(message);
            }
        }
    }

    /// How many bytes of the message being read are left (`PeekNamedPipe`).
    pub fn left_of_message(&self) -> io::Result<usize> {
        let mut left = 0;
        let none = ptr::null_mut();
        // SAFETY: the handle is open, and `left` outlives the call.
        check(unsafe {
            PeekNamedPipe(
                self.raw(),
                none,
                0,
                ptr::null_mut(),
                ptr::null_mut(),
                &mut left,
            )
        })?;
        Ok(left as usize)
    }

    /// One `WriteFile`.
    pub fn write(&self, message: &[u8]) -> io::Result<()> {
        let length = u32::try_from(message.len()).unwrap();
        let (written, _) = self.transfer(|transferred, overlapped| {
            // SAFETY: the handle is open, and `transfer` returns when the system is done with
            // `message`.
            unsafe {
                WriteFile(
                    self.raw(),
                    message.as_ptr(),
                    length,
                    transferred,
                    overlapped,
                )
            }
        })?;
        assert_eq!(written, message.len(), "a message is written whole");
        Ok(())
    }

    /// Makes a call and waits until its operation completes.
    fn transfer(
        &self,
        call: impl FnOnce(*mut u32, *mut OVERLAPPED) -> BOOL,
    ) -> io::Result<(usize, bool)> {
        let mut transferred = 0;
        let result = if self.overlapped {
            let event = event()?;
            let mut overlapped = OVERLAPPED {
                hEvent: event.as_raw_handle(),
                ..OVERLAPPED::default()
            };
            let started = check(call(ptr::null_mut(), &mut overlapped));
            match started {
                Err(error) if !is(&error, ERROR_IO_PENDING) && !is(&error, ERROR_MORE_DATA) => {
                    return Err(error);
                }
                // SAFETY: the operation was started on this handle with this structure and its
                // event.
                _ => check(unsafe {
                    GetOverlappedResult(self.raw(), &overlapped, &mut transferred, 1)
                }),
            }
        } else {
            check(call(&mut transferred, ptr::null_mut()))
        };
        match result {
            Ok(()) => Ok((transferred as usize, false)),
            Err(error) if is(&error, ERROR_MORE_DATA) => Ok((transferred as usize, true)),
            Err(error) => Err(error),
        }
    }

    /// The pipe's access list as text. The handle has to be opened with `READ_CONTROL`.
    pub fn access_list(&self) -> io::Result<String> {
        let mut descriptor = ptr::null_mut();
        let null = ptr::null_mut();
        // SAFETY: the handle is open; `descriptor` is ours to free on success.
        let code = unsafe {
            GetSecurityInfo(
                self.raw(),
                SE_KERNEL_OBJECT,
                DACL_SECURITY_INFORMATION,
                null,
                null,
                ptr::null_mut(),
                ptr::null_mut(),
                &mut descriptor,
            )
        };
        match code {
            // SAFETY: the system allocated it with LocalAlloc, and we own it.
            0 => unsafe { text_of(descriptor) },
            _ => Err(io::Error::from_raw_os_error(code as i32)),
        }
    }

    fn raw(&self) -> HANDLE {
        self.handle.as_raw_handle()
    }
}

/// While this exists, the thread acts without the access granted to this user's SID, as another
/// user with the same groups would. Not for a thread that other tests use.
#[derive(Debug)]
pub struct WithoutThisUser(());

impl WithoutThisUser {
    pub fn new() -> io::Result<Self> {
        let access = TOKEN_DUPLICATE | TOKEN_IMPERSONATE | TOKEN_QUERY;
        let mut token = ptr::null_mut();
        // SAFETY: the process's pseudo handle is always valid; `token` is written on success.
        check(unsafe { OpenProcessToken(GetCurrentProcess(), access, &mut token) })?;
        // SAFETY: the system has just opened it for us.
        let token = unsafe { OwnedHandle::from_raw_handle(token) };
        // As u64 values, so that the structure in it is aligned; long enough for any SID.
        let mut buffer = [0_u64; 32];
        let mut length = 0;
        // SAFETY: the token is open, and `buffer` has the given length.
        check(unsafe {
            GetTokenInformation(
                token.as_raw_handle(),
                TokenUser,
                buffer.as_mut_ptr().cast(),
                mem::size_of_val(&buffer) as u32,
                &mut length,
            )
        })?;
        // SAFETY: the call succeeded, so the buffer starts with a TOKEN_USER, whose SID lies in it.
        let user = unsafe { (*buffer.as_ptr().cast::<TOKEN_USER>()).User };
        let deny_only = SID_AND_ATTRIBUTES {
            Sid: user.Sid,
            Attributes: 0,
        };
        let mut restricted = ptr::null_mut();
        // SAFETY: the token is open; `deny_only` and the SID in `buffer` outlive the call.
        check(unsafe {
            CreateRestrictedToken(
                token.as_raw_handle(),
                0,
                1,
                &deny_only,
                0,
                ptr::null(),
                0,
                ptr::null(),
                &mut restricted,
            )
        })?;
        // SAFETY: the system has just opened it for us.
        let restricted = unsafe { OwnedHandle::from_raw_handle(restricted) };
        // SAFETY: the token is open, and the call copies it.
        check(unsafe { ImpersonateLoggedOnUser(restricted.as_raw_handle()) })?;
        Ok(Self(()))
    }
}

impl Drop for WithoutThisUser {
    fn drop(&mut self) {
        // SAFETY: ends the impersonation that `new` began.
        if unsafe { RevertToSelf() } == 0 {
            // The thread must not continue with the restricted token (*RevertToSelf function*).
            process::abort();
        }
    }
}

/// Opens a pipe as the sample's client does.
pub fn open_as_the_sample_does(address: &str) -> PlainPipe {
    let pipe = loop {
        match PlainPipe::open(address, GENERIC_READ | GENERIC_WRITE) {
            Ok(pipe) => break pipe,
            Err(error) if is(&error, ERROR_PIPE_BUSY) => wait(address, BUSY_WAIT).unwrap(),
            Err(error) => panic!("{address}: {error}"),
        }
    };
    pipe.set_message_mode().unwrap();
    pipe
}

/// Runs the sample's client from start to end, with a buffer that is smaller than the reply.
pub fn call_as_the_sample_does(address: &str, request: &[u8]) -> Vec<u8> {
    let pipe = open_as_the_sample_does(address);
    pipe.write(request).unwrap();
    pipe.read_message(16).unwrap()
}

/// Encodes text as the sample's Unicode build sends it.
pub fn utf16(text: &str) -> Vec<u8> {
    let units = text.encode_utf16().chain([0]);
    units.flat_map(u16::to_le_bytes).collect()
}

/// Waits until an instance of the pipe can be opened (`WaitNamedPipeW`).
pub fn wait(address: &str, milliseconds: u32) -> io::Result<()> {
    let address = wide(address);
    // SAFETY: `address` ends in NUL and outlives the call.
    check(unsafe { WaitNamedPipeW(address.as_ptr(), milliseconds) })
}

/// An access list in the system's canonical form.
pub fn canonical_access_list(text: &str) -> io::Result<String> {
    let text = wide(text);
    let mut descriptor = ptr::null_mut();
    // SAFETY: `text` ends in NUL and outlives the call; `descriptor` is written on success.
    check(unsafe {
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            text.as_ptr(),
            SDDL_REVISION_1,
            &mut descriptor,
            ptr::null_mut(),
        )
    })?;
    // SAFETY: the system allocated it with LocalAlloc, and we own it.
    unsafe { text_of(descriptor) }
}

/// # Safety
///
/// `descriptor` has to be valid and allocated with `LocalAlloc`. It is freed.
unsafe fn text_of(descriptor: PSECURITY_DESCRIPTOR) -> io::Result<String> {
    let mut text = ptr::null_mut();
    let mut length = 0;
    // SAFETY: the descriptor is valid; `text` and `length` are written on success.
    let converted = check(unsafe {
        ConvertSecurityDescriptorToStringSecurityDescriptorW(
            descriptor,
            SDDL_REVISION_1,
            DACL_SECURITY_INFORMATION,
            &mut text,
            &mut length,
        )
    });
    // SAFETY: the caller passes ownership, and the descriptor is no longer used.
    unsafe { LocalFree(descriptor) };
    converted?;
    // SAFETY: the system wrote `length` units.
    let units = unsafe { std::slice::from_raw_parts(text, length as usize) };
    let string = String::from_utf16_lossy(units);
    // SAFETY: the system allocated it with LocalAlloc; `units` is no longer used.
    unsafe { LocalFree(text.cast()) };
    Ok(string.trim_end_matches('\0').to_owned())
}

/// Whether this is Wine, which does not enforce access lists and has no exclusive names.
pub fn is_wine() -> bool {
    wine_version().is_some()
}

/// The version of Wine, such as `8.0 (Debian 8.0~repack-4)`, or `None` on Windows.
pub fn wine_version() -> Option<String> {
    // SAFETY: both names end in NUL, and ntdll is part of every process.
    let function =
        unsafe { GetProcAddress(GetModuleHandleA(s!("ntdll.dll")), s!("wine_get_version")) }?;
    // SAFETY: this is the function's type in Wine (dlls/ntdll/version.c).
    let wine_get_version = unsafe {
        mem::transmute::<unsafe extern "system" fn() -> isize, extern "C" fn() -> *const c_char>(
            function,
        )
    };
    // SAFETY: it returns a constant that ends in NUL.
    let version = unsafe { CStr::from_ptr(wine_get_version()) };
    Some(version.to_string_lossy().into_owned())
}

/// Whether this is Wine. If so, prints that the test is skipped for lack of `what`.
pub fn wine_lacks(what: &str) -> bool {
    let wine = is_wine();
    if wine {
        eprintln!("skipped: Wine has no {what}");
    }
    wine
}

/// Whether `error` is the system's error `code`.
pub fn is(error: &io::Error, code: u32) -> bool {
    error.raw_os_error() == Some(code as i32)
}

fn event() -> io::Result<OwnedHandle> {
    // SAFETY: an event without a name, reset by hand.
    let event = unsafe { CreateEventW(ptr::null(), 1, 0, ptr::null()) };
    if event.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system has just opened it for us.
    Ok(unsafe { OwnedHandle::from_raw_handle(event) })
}

fn check(done: BOOL) -> io::Result<()> {
    match done {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}
