//! The exit codes of `--ping`, which let a health check distinguish failures.

use pipe_server::ConnectError;

const NOT_THERE: u8 = 3;
const BUSY: u8 = 4;
const REFUSED: u8 = 5;
pub(crate) const NOT_ANSWERING: u8 = 6;

/// The exit code of a failure to connect, if it has its own.
pub(crate) fn connect_code(error: &ConnectError) -> Option<u8> {
    match error {
        ConnectError::NotFound { .. } => Some(NOT_THERE),
        ConnectError::Busy { .. } => Some(BUSY),
        ConnectError::Denied { .. } | ConnectError::Untrusted { .. } => Some(REFUSED),
        _ => None,
    }
}
