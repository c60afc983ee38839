//! `pipe-server`: answers the messages of a pipe's clients.

use std::{
    future::{IntoFuture as _, ready},
    panic,
    process::ExitCode,
};

#[cfg(windows)]
use pipe_server::os::windows::ServeExt as _;
use pipe_server::{BindError, Peer, Serve, Summary, serve};
use pipe_server_cli::{
    command_line::{self, Parsed},
    exit::{Failure, chain},
    runtime,
};
use tokio::runtime::Builder;
use tracing::info;

#[cfg(feature = "nats")]
use crate::forward::{Forward, ForwardUrl};
use crate::{
    answer::Answer, capacity::Capacity, options::Options, pipe_source::PipeSource, signals::Signals,
};
mod answer;
mod capacity;
mod exec;
mod figures;
#[cfg(feature = "nats")]
mod forward;
mod logging;
mod options;
mod pipe_source;
#[cfg(windows)]
mod service;
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
    #[cfg(windows)]
    if let Some(service) = service::given() {
        let ended = service::run(service);
        return ended.map_or_else(
            |failure| failure.report("pipe-server"),
            |()| ExitCode::SUCCESS,
        );
    }
    let ended = command_line::parse_with_file().and_then(start);
    ended.unwrap_or_else(|failure| failure.report("pipe-server"))
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
    let serving = serve_until_signal(options, source, capacity);
    let ended = runtime::run_on_threads(builder, io_driver, serving)?;
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
) -> Result<Option<Summary>, Failure> {
    #[cfg(feature = "nats")]
    let target = options.answer.forward.as_ref();
    #[cfg(feature = "nats")]
    let target = target.map(ForwardUrl::target).transpose()?;
    #[cfg(target_os = "linux")]
    let obstacle = source.obstacle(&options);
    let listener = options.listener().max_instances(capacity.max_instances);
    let listener = source.listen(&listener).map_err(bind_failure)?;
    let path = listener.path().to_owned();
    let address = path.display().to_string();
    #[cfg(target_os = "linux")]
    if let Some(obstacle) = obstacle {
        tracing::warn!(address, "{obstacle}");
    }
    let answer = Answer::new(&options, &capacity, listener.max_message_size());
    #[cfg(feature = "nats")]
    let answer = match target {
        Some(target) => {
            let limit = options.answer.forward_limit;
            Answer::Forward(Forward::start(target, limit, listener.max_message_size()))
        }
        None => answer,
    };

    // Before the address is printed: whoever reads it may send a signal.
    let signals = Signals::install()
        .map_err(|error| Failure::new(format!("can't handle signals: {error}")))?;
    let serving = serve(listener, answer)
        .concurrency(options.answer.concurrency)
        .drain_timeout(options.limits.drain_timeout.0)
        .shutdown_when_idle(options.limits.exit_when_idle.0)
        .idle_timeout(options.limits.idle_timeout.0)
        .handler_timeout(options.handler_timeout())
        .write_timeout(options.limits.write_timeout.0)
        .max_buffered_bytes(options.max_buffered_bytes())
        // The result is useless once the client has disconnected.
        .cancel_on_disconnect(options.answer.waits())
        .with_graceful_shutdown(signals.first());
    // The other answers never block.
    #[cfg(windows)]
    let serving = serving.inline_completions(!options.answer.waits());
    let serving = admitting(serving, &options);

    // Before the address is printed, as above: SIGUSR1 would end the program.
    figures::log(serving.stats(), options.logging.stats.0)
        .map_err(|error| Failure::new(format!("can't handle signals: {error}")))?;

    capacity.log();
    // Dropped when the server has ended without a signal.
    #[cfg(target_os = "linux")]
    let (running, ended) = tokio::sync::oneshot::channel::<()>();
    #[cfg(target_os = "linux")]
    let stopping = {
        let first = signals.first();
        async move {
            tokio::select! {
                () = first => {}
                _ = ended => {}
            }
        }
    };
    #[cfg(target_os = "linux")]
    let manager_told =
        systemd::Manager::from_environment().ready(&address, serving.stats(), stopping);
    #[cfg(windows)]
    service::ready();
    logging::announce(path, address)?;
    // Spawned, so that a worker accepts and serves without waking another thread.
    let serving = tokio::spawn(serving.into_future());
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

/// Sets whom the server admits.
fn admitting<H, T>(mut serving: Serve<H, T>, options: &Options) -> Serve<H, T> {
    if let Some(limit) = options.max_connections_per_user() {
        serving = serving.max_connections_per_user(limit);
    }
    let allowed = options.pipe.allow_user.clone();
    if allowed.is_empty() {
        return serving;
    }
    serving.authorize(move |peer: Peer| {
        ready(match allowed.contains(peer.user()) {
            true => Ok(()),
            false => Err("add --allow-user to serve this user"),
        })
    })
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
