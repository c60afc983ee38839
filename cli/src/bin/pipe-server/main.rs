//! `pipe-server`: answers the messages of a pipe's clients.

use std::{panic, process::ExitCode};

use pipe_server::{BindError, PipeListener, Summary};
use pipe_server_cli::{
    command_line::{self, Parsed},
    exit::{Failure, chain, program},
    runtime,
};
use tokio::runtime::Builder;
use tracing::info;

use crate::{
    capacity::Capacity, dump::Dump, forward::ForwardUrl, options::Options, pipe_source::PipeSource,
    serving::Serving, signals::Signals,
};
mod answer;
mod capacity;
mod dump;
mod exec;
mod figures;
mod forward;
mod logging;
mod options;
mod pipe_source;
#[cfg(windows)]
mod service;
mod serving;
mod signals;
#[cfg(target_os = "linux")]
mod systemd;

/// Gives freed memory back to the system within seconds. glibc would keep most of what the clients
/// of an attack held.
#[cfg(all(target_os = "linux", feature = "jemalloc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The exit code that a shell reports for a program ended by SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    program("pipe-server", || {
        #[cfg(windows)]
        if let Some(service) = service::given() {
            service::run(service)?;
            return Ok(ExitCode::SUCCESS);
        }
        command_line::parse_with_file().and_then(start)
    })
}

fn start(parsed: Parsed<Options>) -> Result<ExitCode, Failure> {
    #[cfg(windows)]
    if let Some(action) = parsed.options.service.action {
        return service::perform(action, parsed);
    }
    let options = parsed.options;
    let source = PipeSource::find(&options)?;
    // Dropped after the last line, and before a failure is reported.
    let _log = logging::start(&options.logging)?;
    run(options, source)
}

fn run(options: Options, source: PipeSource) -> Result<ExitCode, Failure> {
    let io_driver = options.need_io_driver();
    let capacity = Capacity::new(&options, &source)?;
    let mut builder = Builder::new_multi_thread();
    #[cfg(windows)]
    builder.max_blocking_threads(capacity.blocking_threads());
    if !options.engine_needs_io_driver() {
        // The overlapped engine wakes tasks from other threads, through the queue that all workers
        // share. A busy worker would look there only once in tens of polls, and clients
        // that were idle would wait for the others.
        builder.global_queue_interval(1);
    }
    let dump = Dump::start(&options.dump)?;
    let serving = serve_until_signal(options, source, capacity, dump.clone());
    let ended = runtime::run_on_threads(builder, io_driver, serving);
    if let Some(dump) = dump {
        dump.flush();
    }
    let ended = ended?;
    let Some(summary) = ended? else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    info!(
        served = summary.served,
        refused = summary.stats.refused,
        aborted = summary.aborted,
        requests = summary.stats.requests,
        replies = summary.stats.replies,
        "stopped"
    );
    Ok(ExitCode::SUCCESS)
}

/// Serves until a signal; `None` if a second one cut the drain short.
async fn serve_until_signal(
    options: Options,
    source: PipeSource,
    capacity: Capacity,
    dump: Option<Dump>,
) -> Result<Option<Summary>, Failure> {
    let forward = options.answer.forward.as_ref();
    let destination = forward.map(ForwardUrl::destination).transpose()?;
    let listener = listen(&options, source, &capacity)?;
    let path = listener.path().to_owned();
    let address = path.display().to_string();

    // Before the address is printed: whoever reads it may send a signal.
    let signals = Signals::install()
        .map_err(|error| Failure::new(format!("can't handle signals: {error}")))?;
    let stats = listener.stats();
    let dumped = dump.clone();
    let serving = Serving {
        options: &options,
        capacity: &capacity,
        dump,
    };
    let serving = serving.start(listener, destination, signals.first())?;

    // Before the address is printed, as above: SIGUSR1 would end the program.
    figures::log(stats.clone(), options.logging.stats.0)
        .map_err(|error| Failure::new(format!("can't handle signals: {error}")))?;

    capacity.log();
    // Dropped when the server has ended without a signal.
    #[cfg(target_os = "linux")]
    let (running, ended) = tokio::sync::oneshot::channel::<()>();
    #[cfg(target_os = "linux")]
    let manager_told = {
        let stopping = either(signals.first(), ended);
        systemd::Manager::from_environment().ready(&address, stats, stopping)
    };
    #[cfg(windows)]
    service::ready();
    // Before anything is served: a dump on stdout comes after that line.
    logging::announce(path, address, dumped.as_ref().and_then(Dump::stdout))?;
    // Spawned, so that a worker accepts and serves without waking another thread.
    let serving = tokio::spawn(serving);
    tokio::select! {
        ended = serving => {
            let summary = ended.unwrap_or_else(|error| panic::resume_unwind(error.into_panic()));
            #[cfg(target_os = "linux")]
            drop(running);
            #[cfg(target_os = "linux")]
            if let Some(told) = manager_told {
                _ = told.await;
            }
            Ok(Some(summary))
        }
        // Shutting down the runtime drops the server, which also kills the `--exec` commands.
        () = signals.second() => Ok(None),
    }
}

/// Binds the pipe, and warns of what keeps its clients out.
fn listen(
    options: &Options,
    source: PipeSource,
    capacity: &Capacity,
) -> Result<PipeListener, Failure> {
    #[cfg(target_os = "linux")]
    let obstacle = source.obstacle(options);
    let listener = options.listener().max_instances(capacity.max_instances);
    let listener = source.listen(&listener).map_err(bind_failure)?;
    #[cfg(target_os = "linux")]
    if let Some(obstacle) = obstacle {
        tracing::warn!(address = %listener.path().display(), "{obstacle}");
    }
    Ok(listener)
}

/// Completes with the first of two futures.
#[cfg(target_os = "linux")]
async fn either(one: impl Future, other: impl Future) {
    tokio::select! {
        _ = one => {}
        _ = other => {}
    }
}

fn bind_failure(error: BindError) -> Failure {
    match error {
        BindError::Option {
            option, problem, ..
        } => Failure::usage(format!("--{} {problem}", option.replace('_', "-"))),
        BindError::Name(error) => Failure::usage(error.to_string()),
        other => Failure::new(chain(&other)),
    }
}
