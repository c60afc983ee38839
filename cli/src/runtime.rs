//! The Tokio runtime of a program.

use std::{
    env,
    future::Future,
    io,
    panic::{self, PanicHookInfo},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

use crate::exit::{Failure, panic_text};

/// The variable from which Tokio takes the number of worker threads, if the program does not set it.
const WORKERS: &str = "TOKIO_WORKER_THREADS";

/// The thread that starts the others.
const STARTER: &str = "starter";

/// Awaits `future` within `limit`; `None` if it takes longer.
pub async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => timeout(limit, future).await.ok(),
        None => Some(future.await),
    }
}

/// Runs `program` to completion on this thread, with Tokio's I/O driver only if it is needed.
///
/// The overlapped engine does not need it: it has a completion port of its own. Without the
/// driver an idle worker waits only for its wake-up and not for I/O that never comes, which saves
/// system calls on every message (docs/performance.md).
pub fn run<F: Future>(
    mut builder: Builder,
    io_driver: bool,
    program: F,
) -> Result<F::Output, Failure> {
    enable(&mut builder, io_driver);
    let runtime = builder.build().map_err(|error| no_threads(&error))?;
    Ok(runtime.block_on(program))
}

/// The same on worker threads.
pub fn run_on_threads<F: Future>(
    mut builder: Builder,
    io_driver: bool,
    program: F,
) -> Result<F::Output, Failure> {
    check_workers()?;
    enable(&mut builder, io_driver);
    let runtime = start(builder).map_err(|error| no_threads(&error))?;
    Ok(runtime.block_on(program))
}

fn enable(builder: &mut Builder, io_driver: bool) {
    builder.enable_time();
    if io_driver {
        builder.enable_io();
    }
}

/// Fails if [`WORKERS`] is out of range: Tokio panics, or runs out of memory. It counts workers in 16
/// bits.
fn check_workers() -> Result<(), Failure> {
    let Some(number) = env::var_os(WORKERS) else {
        return Ok(());
    };
    match number.to_str().map(str::parse::<u16>) {
        Some(Ok(1..)) => Ok(()),
        _ => Err(Failure::usage(format!(
            "{WORKERS} must be a number from 1 to {}, and is {number:?}",
            u16::MAX
        ))),
    }
}

fn no_threads(error: &io::Error) -> Failure {
    Failure::new(format!(
        "can't start the threads: {error}: raise the limit of processes and threads (ulimit -u), or start fewer \
         ({WORKERS}, or --threads of pipe-bench)"
    ))
}

/// Starts the workers from a thread of its own.
///
/// When the system refuses a thread, Tokio panics, and then waits forever for the workers that did
/// start. The panic hook runs in between, so it reports the failure, and the thread that waits is
/// left behind.
fn start(mut builder: Builder) -> io::Result<Runtime> {
    let (started, result) = mpsc::channel();
    let failed = started.clone();
    let hook: Arc<dyn Fn(&PanicHookInfo<'_>) + Send + Sync> = panic::take_hook().into();
    let others = Arc::clone(&hook);
    panic::set_hook(Box::new(move |panic| {
        if thread::current().name() == Some(STARTER) {
            let text = panic_text(panic.payload()).to_owned();
            _ = failed.send(Err(io::Error::other(text)));
        } else {
            others(panic);
        }
    }));
    let starter = thread::Builder::new().name(STARTER.to_owned());
    let result = starter
        .spawn(move || _ = started.send(builder.build()))
        .and_then(|starter| {
            let runtime = result.recv().expect("it sends a result or panics")?;
            // Its place is free for another thread.
            _ = starter.join();
            Ok(runtime)
        });
    panic::set_hook(Box::new(move |panic| hook(panic)));
    result
}
