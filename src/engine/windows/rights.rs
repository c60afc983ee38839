//! A client's rights to a pipe: what it requests, and what a server grants to other users.
//!
//! | right | requested | granted | needed for |
//! |---|---|---|---|
//! | `FILE_READ_DATA`, `FILE_WRITE_DATA` | yes | yes | messages |
//! | `FILE_WRITE_ATTRIBUTES` | yes | yes | message read mode (`SetNamedPipeHandleState`) |
//! | `FILE_READ_ATTRIBUTES`, `SYNCHRONIZE` | yes | yes | `CreateFile`, which adds both (Wine and ReactOS `CreateFileW`) |
//! | `READ_CONTROL` | to look up the owner | yes | the pipe's owner (`GetSecurityInfo`) |
//! | `FILE_READ_EA`, `FILE_WRITE_EA` | no | yes | clients that request `FILE_GENERIC_READ`, and `FILE_GENERIC_WRITE` without the next right |
//! | `FILE_CREATE_PIPE_INSTANCE` | no | no | servers: with it any user could impersonate this one |
//!
//! `GENERIC_WRITE` contains the last one, so it is neither requested nor granted.

use windows_sys::Win32::Storage::FileSystem::{
    FILE_CREATE_PIPE_INSTANCE, FILE_GENERIC_READ, FILE_GENERIC_WRITE, FILE_READ_ATTRIBUTES,
    FILE_READ_DATA, FILE_WRITE_ATTRIBUTES, FILE_WRITE_DATA, READ_CONTROL, SYNCHRONIZE,
};

/// What a client of this library requests. Nothing more, because a server may grant nothing more.
pub(super) const REQUESTED: u32 =
    FILE_READ_DATA | FILE_WRITE_DATA | FILE_READ_ATTRIBUTES | FILE_WRITE_ATTRIBUTES | SYNCHRONIZE;

/// What it requests in order to look up the pipe's owner.
pub(super) const REQUESTED_WITH_OWNER: u32 = REQUESTED | READ_CONTROL;

/// What [`Access::Everyone`](crate::Access::Everyone) grants to other users, 0x12019b: all that any
/// client needs.
pub(super) const GRANTED: u32 =
    (FILE_GENERIC_READ | FILE_GENERIC_WRITE) & !FILE_CREATE_PIPE_INSTANCE;

const _: () = {
    // As documented on `Access`, and checked on the system by tests/windows_facts.rs.
    assert!(GRANTED == 0x12019b);
    assert!(REQUESTED_WITH_OWNER & !GRANTED == 0);
};
