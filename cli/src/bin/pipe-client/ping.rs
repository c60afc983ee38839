//! The exit codes of `--ping`, by which a health check tells one failure from another.

use pipe_server::ConnectError;

const NOT_THERE: u8 = 3;
const BUSY: u8 = 4;
const REFUSED: u8 = 5;
pub(crate) const NOT_ANSWERING: u8 = 6;

/// The code of a failure to connect that has one of its own.
pub(crate) fn connect_code(error: &ConnectError) -> Option<u8> {
    match error {
        ConnectError::NotFound { .. } => Some(NOT_THERE),
        ConnectError::Busy { .. } => Some(BUSY),
        ConnectError::Denied { .. } | ConnectError::Untrusted { .. } => Some(REFUSED),
        _ => None,
    }
}
