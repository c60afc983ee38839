//! Systems other than Windows and Linux, which have no engine: only memory pipes work there.

use std::{env::consts::OS, io, path::Path};

use super::{Channel, Endpoint, EngineOptions, Sizes};
use crate::{name::PipeName, telemetry::Telemetry};

/// Fails, after it has checked the options.
pub(crate) fn bind(
    _name: &PipeName,
    _path: &Path,
    options: &EngineOptions,
    _telemetry: &Telemetry,
) -> io::Result<Box<dyn Endpoint>> {
    options.sizes("this system", usize::MAX)?;
    Err(unsupported("bind_memory"))
}

/// Fails.
pub(crate) fn connect(
    _name: &PipeName,
    _path: &Path,
    _sizes: Sizes,
    _identify: bool,
) -> io::Result<Channel> {
    Err(unsupported("connect_memory"))
}

/// Nothing is served, so nothing is started.
pub(crate) type StartLock = ();

/// Fails.
pub(crate) fn start_lock(_name: &PipeName, _path: &Path) -> io::Result<Option<StartLock>> {
    Err(unsupported("connect_memory"))
}

/// The error of serving and of connecting. `memory` is the method that works instead.
fn unsupported(memory: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!(
            "pipes are supported on Windows and Linux, but not on {OS}: run this program there, or use a pipe \
             in memory ({memory}, feature test-util)"
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::io;

    use crate::{BindError, Client, ConnectError, PipeListener};

    fn assert_unsupported(error: io::Error, instead: &str) {
        assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
        let error = error.into_inner().unwrap();
        assert!(error.to_string().contains("mynamedpipe"), "{error}");
        let source = error.source().unwrap().to_string();
        assert!(source.contains(instead), "{source}");
    }

    #[tokio::test]
    async fn a_name_is_neither_served_nor_connected_to_and_the_error_says_what_to_do() {
        let error = PipeListener::bind("mynamedpipe").unwrap_err();
        assert!(matches!(error, BindError::Create { .. }), "{error:?}");
        assert_unsupported(error.into(), "bind_memory");
        let error = Client::connect("mynamedpipe").await.unwrap_err();
        assert!(matches!(error, ConnectError::Io { .. }), "{error:?}");
        assert_unsupported(error.into(), "connect_memory");
    }
}
