//! Replacements for the Windows functions, with the same names and signatures.
//!
//! Each has the safety requirements of the original: pointers have to be valid as its page says,
//! and the memory of an operation is borrowed until the operation completes.
#![allow(missing_docs, non_snake_case, reason = "named as in Windows")]
#![allow(
    clippy::missing_safety_doc,
    clippy::too_many_arguments,
    reason = "as in Windows"
)]

use std::{
    cell::Cell, ffi::c_void, io, os::windows::io::RawHandle, process, ptr, sync::PoisonError,
    time::Duration,
};

use windows_sys::{
    Wdk::Storage::FileSystem::{
        FILE_INFORMATION_CLASS, FILE_PIPE_CLOSING_STATE, FILE_PIPE_CONNECTED_STATE,
        FILE_PIPE_DISCONNECTED_STATE, FILE_PIPE_LISTENING_STATE, FILE_PIPE_LOCAL_INFORMATION,
    },
    Win32::{
        Foundation::{
            ERROR_ACCESS_DENIED, ERROR_BROKEN_PIPE, ERROR_CANNOT_IMPERSONATE,
            ERROR_CANT_OPEN_ANONYMOUS, ERROR_FILE_NOT_FOUND, ERROR_INSUFFICIENT_BUFFER,
            ERROR_INVALID_ACL, ERROR_INVALID_PARAMETER, ERROR_IO_INCOMPLETE, ERROR_IO_PENDING,
            ERROR_NO_SYSTEM_RESOURCES, ERROR_NO_TOKEN, ERROR_NOT_ENOUGH_MEMORY,
            ERROR_NOT_ENOUGH_QUOTA, ERROR_NOT_FOUND, ERROR_NOT_SUPPORTED, ERROR_OPERATION_ABORTED,
            ERROR_PIPE_BUSY, ERROR_PIPE_NOT_CONNECTED, ERROR_SUCCESS, ERROR_WORKING_SET_QUOTA,
            HANDLE, HLOCAL, INVALID_HANDLE_VALUE, NTSTATUS, STATUS_SUCCESS, WAIT_OBJECT_0,
            WAIT_TIMEOUT, WIN32_ERROR,
        },
        Security::{
            ACL, Authorization::SE_OBJECT_TYPE, OBJECT_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR,
            PSID, SECURITY_ATTRIBUTES, SECURITY_IMPERSONATION_LEVEL, SecurityAnonymous,
            TOKEN_ACCESS_MASK, TOKEN_INFORMATION_CLASS, TOKEN_OWNER, TOKEN_USER,
            TokenImpersonationLevel, TokenOwner, TokenUser,
        },
        Storage::FileSystem::{
            FILE_CREATION_DISPOSITION, FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAGS_AND_ATTRIBUTES,
            FILE_READ_DATA, FILE_SHARE_MODE, FILE_WRITE_ATTRIBUTES, FILE_WRITE_DATA, READ_CONTROL,
        },
        System::{
            IO::{IO_STATUS_BLOCK, OVERLAPPED},
            Pipes::{NAMED_PIPE_MODE, PIPE_READMODE_MESSAGE, PIPE_TYPE_MESSAGE},
        },
    },
    core::{BOOL, PCWSTR, PWSTR},
};

use super::{
    security::{Descriptor, Quality, Token, binary_sid, sid_text},
    state::{
        Bound, Completed, Connection, NewInstance, Object, Operation, Outcome, STATUS_PENDING,
        State, code_of,
    },
    world::{World, all_worlds, current, run_hook_before_connect, world_of},
};

/// The errors of a call that ran out of memory or other resources.
const RESOURCES: &[u32] = &[ERROR_NO_SYSTEM_RESOURCES, ERROR_NOT_ENOUGH_MEMORY];

thread_local! {
    static LAST_ERROR: Cell<u32> = const { Cell::new(0xdead) };
    static IMPERSONATED: Cell<Option<Token>> = const { Cell::new(None) };
}

pub unsafe fn GetLastError() -> u32 {
    LAST_ERROR.get()
}

fn succeed_if(code: u32) -> BOOL {
    if code == ERROR_SUCCESS {
        return 1;
    }
    LAST_ERROR.set(code);
    0
}

fn handle(number: Result<usize, u32>) -> HANDLE {
    match number {
        Ok(number) => ptr::without_provenance_mut(number),
        Err(code) => {
            LAST_ERROR.set(code);
            INVALID_HANDLE_VALUE
        }
    }
}

/// The text before the first NUL.
///
/// # Safety
///
/// `text` has to end in NUL.
unsafe fn text(text: *const u16) -> String {
    // SAFETY: the caller guarantees that the text is valid up to its NUL.
    let units = unsafe {
        let length = (0..).take_while(|&index| *text.add(index) != 0).count();
        std::slice::from_raw_parts(text, length)
    };
    String::from_utf16_lossy(units)
}

pub unsafe fn CreateNamedPipeW(
    name: PCWSTR,
    open_mode: FILE_FLAGS_AND_ATTRIBUTES,
    pipe_mode: NAMED_PIPE_MODE,
    max_instances: u32,
    out_buffer_size: u32,
    in_buffer_size: u32,
    _default_timeout: u32,
    attributes: *const SECURITY_ATTRIBUTES,
) -> HANDLE {
    let world = current();
    let mut state = world.lock();
    if let Some(code) = state.fault(&[ERROR_NO_SYSTEM_RESOURCES, ERROR_PIPE_BUSY]) {
        return handle(Err(code));
    }
    let keeps_messages = pipe_mode & PIPE_TYPE_MESSAGE != 0;
    let reads_messages = pipe_mode & PIPE_READMODE_MESSAGE != 0;
    if !(1..=255).contains(&max_instances) || reads_messages && !keeps_messages {
        return handle(Err(ERROR_INVALID_PARAMETER));
    }
    // SAFETY: the page of CreateNamedPipe requires null, or a structure with a valid descriptor or
    // none.
    let descriptor = unsafe { attributes.as_ref() }
        .map(|attributes| attributes.lpSecurityDescriptor)
        .filter(|descriptor| !descriptor.is_null())
        .map(|descriptor| state.blocks.descriptor(descriptor).clone());
    let created = state.create(NewInstance {
        // SAFETY: the name ends in NUL.
        name: unsafe { text(name) },
        first: open_mode & FILE_FLAG_FIRST_PIPE_INSTANCE != 0,
        keeps_messages,
        reads_messages,
        limit: max_instances,
        in_quota: in_buffer_size as usize,
        out_quota: out_buffer_size as usize,
        descriptor,
    });
    handle(created)
}

pub unsafe fn CreateFileW(
    name: PCWSTR,
    rights: u32,
    _share_mode: FILE_SHARE_MODE,
    _attributes: *const SECURITY_ATTRIBUTES,
    _disposition: FILE_CREATION_DISPOSITION,
    flags: FILE_FLAGS_AND_ATTRIBUTES,
    _template: HANDLE,
) -> HANDLE {
    let world = current();
    let opened = {
        let mut state = world.lock();
        let faults = [
            ERROR_FILE_NOT_FOUND,
            ERROR_PIPE_BUSY,
            ERROR_NO_SYSTEM_RESOURCES,
        ];
        if let Some(code) = state.fault(&faults) {
            return handle(Err(code));
        }
        // SAFETY: the name ends in NUL.
        let name = unsafe { text(name) };
        state.open(&name, rights, Quality::requested(flags))
    };
    world.changed.notify_all();
    handle(opened)
}

pub unsafe fn CloseHandle(object: HANDLE) -> BOOL {
    let world = world_of(object.addr());
    world.lock().close(object.addr());
    world.changed.notify_all();
    1
}

pub unsafe fn SetNamedPipeHandleState(
    pipe: HANDLE,
    mode: *const NAMED_PIPE_MODE,
    _max_collection_count: *const u32,
    _collect_data_timeout: *const u32,
) -> BOOL {
    let world = world_of(pipe.addr());
    let mut state = world.lock();
    if let Some(code) = state.fault(&[ERROR_PIPE_NOT_CONNECTED, ERROR_BROKEN_PIPE]) {
        return succeed_if(code);
    }
    if state.file(pipe.addr()).rights & FILE_WRITE_ATTRIBUTES == 0 {
        return succeed_if(ERROR_ACCESS_DENIED);
    }
    // SAFETY: null, or a mode.
    let code = match unsafe { mode.as_ref() } {
        Some(mode) => state.set_read_mode(pipe.addr(), mode & PIPE_READMODE_MESSAGE != 0),
        None => ERROR_SUCCESS,
    };
    succeed_if(code)
}

pub unsafe fn SetFileCompletionNotificationModes(file: HANDLE, modes: u8) -> BOOL {
    let world = world_of(file.addr());
    let mut state = world.lock();
    if let Some(code) = state.fault(&[ERROR_INVALID_PARAMETER]) {
        return succeed_if(code);
    }
    // A mode can't be cleared (its page).
    state.file(file.addr()).modes |= u32::from(modes);
    1
}

/// Starts an overlapped operation, or runs a synchronous one to its end.
///
/// # Safety
///
/// `buffer` has `length` bytes; it and `overlapped` are borrowed until the operation completes.
unsafe fn operate(
    file: HANDLE,
    buffer: *mut u8,
    length: u32,
    transferred: *mut u32,
    overlapped: *mut OVERLAPPED,
    faults: &[u32],
    run: impl FnOnce(&mut State, Operation) -> Outcome,
) -> BOOL {
    let world = world_of(file.addr());
    let mut own = OVERLAPPED::default();
    let waits = overlapped.is_null();
    let overlapped = if waits { &raw mut own } else { overlapped };
    let outcome = {
        let mut state = world.lock();
        if let Some(code) = state.fault(faults) {
            Outcome::Over { code, length: 0 }
        } else {
            let operation = state.operation(file.addr(), overlapped, buffer, length as usize);
            let outcome = run(&mut state, operation);
            state.settle(operation, outcome)
        }
    };
    world.changed.notify_all();
    let (code, length) = match outcome {
        Outcome::Over { code, length } => (code, length),
        // SAFETY: `own` outlives the operation, since this call waits for it.
        Outcome::Pending if waits => unsafe { wait_for(&world, overlapped) },
        Outcome::Pending => (ERROR_IO_PENDING, 0),
    };
    if !transferred.is_null() {
        // SAFETY: not null, so valid.
        unsafe { *transferred = length as u32 };
    }
    succeed_if(code)
}

/// Waits until an operation completes, and returns its code and length.
///
/// # Safety
///
/// `overlapped` has to belong to an operation that was started.
unsafe fn wait_for(world: &World, overlapped: *const OVERLAPPED) -> (u32, usize) {
    let mut state = world.lock();
    // SAFETY: the system writes to it only under the lock.
    while unsafe { (&raw const (*overlapped).Internal).read_volatile() } == STATUS_PENDING {
        state = world
            .changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner);
    }
    // SAFETY: as above.
    unsafe { (code_of((*overlapped).Internal), (*overlapped).InternalHigh) }
}

pub unsafe fn ConnectNamedPipe(pipe: HANDLE, overlapped: *mut OVERLAPPED) -> BOOL {
    run_hook_before_connect();
    // SAFETY: there is no buffer; the rest is guaranteed by the caller.
    unsafe {
        operate(
            pipe,
            ptr::dangling_mut(),
            0,
            ptr::null_mut(),
            overlapped,
            RESOURCES,
            State::connect,
        )
    }
}

pub unsafe fn ReadFile(
    file: HANDLE,
    buffer: *mut u8,
    length: u32,
    read: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> BOOL {
    let may = has_right(file, FILE_READ_DATA);
    // SAFETY: guaranteed by the caller.
    unsafe {
        operate(
            file,
            buffer,
            length,
            read,
            overlapped,
            &[
                ERROR_NO_SYSTEM_RESOURCES,
                ERROR_NOT_ENOUGH_QUOTA,
                ERROR_BROKEN_PIPE,
            ],
            |state, operation| match may {
                true => state.read(operation),
                false => denied(),
            },
        )
    }
}

pub unsafe fn WriteFile(
    file: HANDLE,
    buffer: *const u8,
    length: u32,
    written: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> BOOL {
    let may = has_right(file, FILE_WRITE_DATA);
    // SAFETY: guaranteed by the caller. A write only reads from its buffer.
    unsafe {
        operate(
            file,
            buffer.cast_mut(),
            length,
            written,
            overlapped,
            &[
                ERROR_NO_SYSTEM_RESOURCES,
                ERROR_NOT_ENOUGH_QUOTA,
                ERROR_WORKING_SET_QUOTA,
                ERROR_PIPE_NOT_CONNECTED,
            ],
            |state, operation| match state.next_write_fails.take() {
                Some(code) => Outcome::Over { code, length: 0 },
                None if may => state.write(operation),
                None => denied(),
            },
        )
    }
}

fn has_right(file: HANDLE, right: u32) -> bool {
    world_of(file.addr()).lock().file(file.addr()).rights & right != 0
}

fn denied() -> Outcome {
    Outcome::Over {
        code: ERROR_ACCESS_DENIED,
        length: 0,
    }
}

pub unsafe fn CancelIoEx(file: HANDLE, overlapped: *const OVERLAPPED) -> BOOL {
    let world = world_of(file.addr());
    // No faults: callers may rely on ERROR_NOT_FOUND meaning that there was nothing to cancel.
    let code = world.lock().cancel(file.addr(), overlapped);
    world.changed.notify_all();
    succeed_if(code)
}

pub unsafe fn DisconnectNamedPipe(pipe: HANDLE) -> BOOL {
    let world = world_of(pipe.addr());
    let code = world.lock().disconnect(pipe.addr());
    world.changed.notify_all();
    succeed_if(code)
}

pub unsafe fn GetOverlappedResult(
    file: HANDLE,
    overlapped: *const OVERLAPPED,
    transferred: *mut u32,
    wait: BOOL,
) -> BOOL {
    let world = world_of(file.addr());
    if wait == 0 {
        let _state = world.lock();
        // SAFETY: the system writes to it only under the lock.
        if unsafe { (*overlapped).Internal } == STATUS_PENDING {
            return succeed_if(ERROR_IO_INCOMPLETE);
        }
    }
    // SAFETY: guaranteed by the caller.
    let (code, length) = unsafe { wait_for(&world, overlapped) };
    // SAFETY: never null (its page).
    unsafe { *transferred = length as u32 };
    succeed_if(code)
}

pub unsafe fn CreateEventW(
    _attributes: *const SECURITY_ATTRIBUTES,
    _manual_reset: BOOL,
    initial_state: BOOL,
    _name: PCWSTR,
) -> HANDLE {
    let signaled = initial_state != 0;
    handle(Ok(current().lock().add(Object::Event { signaled })))
}

pub unsafe fn WaitForSingleObject(object: HANDLE, milliseconds: u32) -> u32 {
    let world = world_of(object.addr());
    let time = Duration::from_millis(milliseconds.into());
    let (_state, result) = world
        .changed
        .wait_timeout_while(
            world.lock(),
            time,
            |state| !match state.objects.get(&object.addr()) {
                Some(Object::Event { signaled }) => *signaled,
                other => panic!("not an object to wait for: {other:?}"),
            },
        )
        .unwrap_or_else(PoisonError::into_inner);
    if result.timed_out() {
        WAIT_TIMEOUT
    } else {
        WAIT_OBJECT_0
    }
}

/// Binds a file to a port, or creates one, or both.
pub unsafe fn CreateIoCompletionPort(
    file: HANDLE,
    existing: HANDLE,
    key: usize,
    _threads: u32,
) -> HANDLE {
    let world = match file {
        INVALID_HANDLE_VALUE => current(),
        _ => world_of(file.addr()),
    };
    let mut state = world.lock();
    if let Some(code) = state.fault(RESOURCES) {
        LAST_ERROR.set(code);
        return ptr::null_mut();
    }
    let port = match existing.is_null() {
        true => state.add(Object::Port),
        false => existing.addr(),
    };
    if file != INVALID_HANDLE_VALUE {
        state.bind(file.addr(), Bound::Port { port, key });
    }
    handle(Ok(port))
}

pub unsafe fn GetQueuedCompletionStatus(
    port: HANDLE,
    length: *mut u32,
    key: *mut usize,
    overlapped: *mut *mut OVERLAPPED,
    milliseconds: u32,
) -> BOOL {
    let world = world_of(port.addr());
    let time = Duration::from_millis(milliseconds.into());
    let mut packet = None;
    let _state = world
        .changed
        .wait_timeout_while(world.lock(), time, |state| {
            packet = state.take_packet_of(port.addr());
            packet.is_none()
        })
        .unwrap_or_else(PoisonError::into_inner);
    let Some(packet) = packet else {
        // SAFETY: the caller's pointer is valid.
        unsafe { *overlapped = ptr::null_mut() };
        return succeed_if(WAIT_TIMEOUT);
    };
    let Bound::Port { key: of_file, .. } = packet.bound else {
        unreachable!("a packet of the library");
    };
    // SAFETY: the caller's pointers are valid.
    unsafe {
        *length = packet.length as u32;
        *key = of_file;
        *overlapped = packet.overlapped;
    }
    succeed_if(packet.code)
}

/// Takes the place of the library's port, which is one for all systems: `completed` is called with
/// `key` for each packet of `file`.
pub(crate) unsafe fn bind_to_port(
    file: RawHandle,
    key: *const c_void,
    completed: Completed,
) -> io::Result<()> {
    let world = world_of(file.addr());
    let mut state = world.lock();
    if let Some(code) = state.fault(RESOURCES) {
        return Err(io::Error::from_raw_os_error(code as i32));
    }
    state.bind(file.addr(), Bound::Library { key, completed });
    Ok(())
}

pub unsafe fn NtQueryInformationFile(
    file: HANDLE,
    _status_block: *mut IO_STATUS_BLOCK,
    information: *mut c_void,
    _length: u32,
    _class: FILE_INFORMATION_CLASS,
) -> NTSTATUS {
    let world = world_of(file.addr());
    let mut state = world.lock();
    let (connection, unread) = (state.connection(file.addr()), state.unread(file.addr()));
    let information: *mut FILE_PIPE_LOCAL_INFORMATION = information.cast();
    // SAFETY: the caller passes this structure.
    unsafe {
        (*information).NamedPipeState = match connection {
            Connection::Listening => FILE_PIPE_LISTENING_STATE,
            Connection::Connected => FILE_PIPE_CONNECTED_STATE,
            Connection::Closing => FILE_PIPE_CLOSING_STATE,
            Connection::Disconnected => FILE_PIPE_DISCONNECTED_STATE,
        };
        (*information).ReadDataAvailable = unread as u32;
    }
    STATUS_SUCCESS
}

/// Writes the process or session at the other end. All processes of a model are this one.
unsafe fn identify(pipe: HANDLE, number: *mut u32, value: u32) -> BOOL {
    let world = world_of(pipe.addr());
    let mut state = world.lock();
    if let Some(code) = state.fault(&[ERROR_NOT_FOUND]) {
        return succeed_if(code);
    }
    if state.connection(pipe.addr()) == Connection::Disconnected {
        return succeed_if(ERROR_NOT_FOUND);
    }
    // SAFETY: the caller's pointer is valid.
    unsafe { *number = value };
    1
}

pub unsafe fn GetNamedPipeClientProcessId(pipe: HANDLE, process: *mut u32) -> BOOL {
    // SAFETY: guaranteed by the caller.
    unsafe { identify(pipe, process, process::id()) }
}

pub unsafe fn GetNamedPipeServerProcessId(pipe: HANDLE, process: *mut u32) -> BOOL {
    // SAFETY: guaranteed by the caller.
    unsafe { identify(pipe, process, process::id()) }
}

pub unsafe fn GetNamedPipeClientSessionId(pipe: HANDLE, session: *mut u32) -> BOOL {
    // SAFETY: guaranteed by the caller.
    unsafe { identify(pipe, session, 1) }
}

pub unsafe fn GetNamedPipeServerSessionId(pipe: HANDLE, session: *mut u32) -> BOOL {
    // SAFETY: guaranteed by the caller.
    unsafe { identify(pipe, session, 1) }
}

pub unsafe fn ImpersonateNamedPipeClient(pipe: HANDLE) -> BOOL {
    let world = world_of(pipe.addr());
    let mut state = world.lock();
    if let Some(code) = state.fault(&[ERROR_CANNOT_IMPERSONATE, ERROR_NOT_SUPPORTED]) {
        return succeed_if(code);
    }
    match state.client_token(pipe.addr()) {
        Some(token) => {
            IMPERSONATED.set(Some(token));
            1
        }
        None => succeed_if(ERROR_CANNOT_IMPERSONATE),
    }
}

pub unsafe fn RevertToSelf() -> BOOL {
    IMPERSONATED.set(None);
    1
}

pub unsafe fn GetCurrentProcess() -> HANDLE {
    ptr::without_provenance_mut(usize::MAX)
}

pub unsafe fn GetCurrentThread() -> HANDLE {
    ptr::without_provenance_mut(usize::MAX - 1)
}

pub unsafe fn OpenProcessToken(
    _process: HANDLE,
    _access: TOKEN_ACCESS_MASK,
    token: *mut HANDLE,
) -> BOOL {
    let world = current();
    let mut state = world.lock();
    if let Some(code) = state.fault(RESOURCES) {
        return succeed_if(code);
    }
    let number = {
        let own = state.token.clone();
        state.add(Object::Token(own))
    };
    // SAFETY: the caller's pointer is valid.
    unsafe { *token = handle(Ok(number)) };
    1
}

pub unsafe fn OpenThreadToken(
    _thread: HANDLE,
    _access: TOKEN_ACCESS_MASK,
    _as_self: BOOL,
    token: *mut HANDLE,
) -> BOOL {
    let impersonated = IMPERSONATED.take();
    IMPERSONATED.set(impersonated.clone());
    let Some(impersonated) = impersonated else {
        return succeed_if(ERROR_NO_TOKEN);
    };
    if impersonated.level == Some(SecurityAnonymous) {
        return succeed_if(ERROR_CANT_OPEN_ANONYMOUS);
    }
    let number = current().lock().add(Object::Token(impersonated));
    // SAFETY: the caller's pointer is valid.
    unsafe { *token = handle(Ok(number)) };
    1
}

pub unsafe fn GetTokenInformation(
    token: HANDLE,
    class: TOKEN_INFORMATION_CLASS,
    information: *mut c_void,
    length: u32,
    needed: *mut u32,
) -> BOOL {
    let world = world_of(token.addr());
    let state = world.lock();
    let Some(Object::Token(token)) = state.objects.get(&token.addr()) else {
        panic!("{token:?} is not an open token");
    };
    #[allow(non_upper_case_globals)]
    let (sid, head) = match (class, token.level) {
        (TokenUser, _) => (token.user.sid, size_of::<TOKEN_USER>()),
        (TokenOwner, _) => (token.user.owner, size_of::<TOKEN_OWNER>()),
        (TokenImpersonationLevel, Some(level)) => {
            assert!(length as usize >= size_of_val(&level));
            // SAFETY: the buffer is aligned and long enough.
            unsafe {
                information
                    .cast::<SECURITY_IMPERSONATION_LEVEL>()
                    .write(level);
            };
            return 1;
        }
        _ => return succeed_if(ERROR_INVALID_PARAMETER),
    };
    let sid = binary_sid(sid).expect("a SID");
    let total = head + sid.len();
    // SAFETY: the caller's pointer is valid.
    unsafe { *needed = total as u32 };
    if (length as usize) < total {
        return succeed_if(ERROR_INSUFFICIENT_BUFFER);
    }
    // SAFETY: the buffer is aligned and has room for the structure, which starts with the pointer
    // to the SID, and for the SID after it.
    unsafe {
        ptr::write_bytes(information.cast::<u8>(), 0, head);
        let target = information.cast::<u8>().add(head);
        target.copy_from_nonoverlapping(sid.as_ptr(), sid.len());
        information.cast::<*mut u8>().write(target);
    }
    1
}

pub unsafe fn ConvertSidToStringSidW(sid: PSID, string: *mut PWSTR) -> BOOL {
    // SAFETY: the caller guarantees a valid SID.
    let text = unsafe { sid_text(sid.cast()) };
    let bytes: Vec<u8> = text
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_ne_bytes)
        .collect();
    // SAFETY: the caller's pointer is valid.
    unsafe { *string = current().lock().blocks.lend(&bytes).cast() };
    1
}

pub unsafe fn ConvertStringSecurityDescriptorToSecurityDescriptorW(
    string: PCWSTR,
    _revision: u32,
    descriptor: *mut PSECURITY_DESCRIPTOR,
    _size: *mut u32,
) -> BOOL {
    // SAFETY: the text ends in NUL.
    let string = unsafe { text(string) };
    let Some(parsed) = Descriptor::parse(&string) else {
        return succeed_if(ERROR_INVALID_ACL);
    };
    // SAFETY: the caller's pointer is valid.
    unsafe { *descriptor = current().lock().blocks.lend_descriptor(parsed) };
    1
}

pub unsafe fn GetSecurityInfo(
    object: HANDLE,
    _kind: SE_OBJECT_TYPE,
    _wanted: OBJECT_SECURITY_INFORMATION,
    owner: *mut PSID,
    _group: *mut PSID,
    _dacl: *mut *mut ACL,
    _sacl: *mut *mut ACL,
    descriptor: *mut PSECURITY_DESCRIPTOR,
) -> WIN32_ERROR {
    let world = world_of(object.addr());
    let mut state = world.lock();
    if let Some(code) = state.fault(&[ERROR_NOT_ENOUGH_MEMORY, ERROR_OPERATION_ABORTED]) {
        return code;
    }
    if state.file(object.addr()).rights & READ_CONTROL == 0 {
        return ERROR_ACCESS_DENIED;
    }
    let sid = state
        .owner(object.addr())
        .and_then(|owner| binary_sid(&owner));
    let block = state.blocks.lend(sid.as_deref().unwrap_or_default());
    // SAFETY: both of the caller's pointers are valid.
    unsafe {
        *descriptor = block;
        *owner = sid.map_or(ptr::null_mut(), |_| block);
    }
    ERROR_SUCCESS
}

pub unsafe fn LocalFree(memory: HLOCAL) -> HLOCAL {
    if !memory.is_null() {
        // Any thread may free it, even one that has entered no model.
        let freed = all_worlds().any(|world| world.lock().blocks.free(memory));
        assert!(freed, "LocalFree of memory that is not allocated");
    }
    ptr::null_mut()
}
