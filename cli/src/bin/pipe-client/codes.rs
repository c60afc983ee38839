//! The exit codes, which let scripts and health checks distinguish failures. 1 and 2 are in
//! `exit.rs`.

use pipe_server::ConnectError;

const NOT_THERE: u8 = 3;
const BUSY: u8 = 4;
const REFUSED: u8 = 5;
pub(crate) const NO_REPLY: u8 = 6;
/// The messages of the server differ from those of a recording.
pub(crate) const DIFFERENT: u8 = 7;
pub(crate) const RPC_ERROR: u8 = 8;

/// The exit code of a failure to connect, if it has its own.
pub(crate) fn of_connecting(error: &ConnectError) -> Option<u8> {
    match error {
        ConnectError::NotFound { .. } | ConnectError::Start(_) => Some(NOT_THERE),
        ConnectError::Busy { .. } => Some(BUSY),
        ConnectError::Denied { .. } | ConnectError::Untrusted { .. } => Some(REFUSED),
        _ => None,
    }
}
