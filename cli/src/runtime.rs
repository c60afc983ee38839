//! The Tokio runtime of a program.

use std::future::Future;

use tokio::runtime::Builder;

use crate::exit::Failure;

/// Runs `program` to completion, with Tokio's I/O driver only if it is needed.
///
/// The overlapped engine does not need it: it has a completion port of its own. Without the
/// driver an idle worker waits only for its wake-up and not for I/O that never comes, which saves
/// system calls on every message (docs/performance.md).
pub fn run<F: Future>(
    mut builder: Builder,
    io_driver: bool,
    program: F,
) -> Result<F::Output, Failure> {
    builder.enable_time();
    if io_driver {
        builder.enable_io();
    }
    let runtime = builder
        .build()
        .map_err(|error| Failure::new(format!("can't start the threads: {error}")))?;
    Ok(runtime.block_on(program))
}
