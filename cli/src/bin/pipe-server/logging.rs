//! What the program prints: one line on stdout, the log on stderr.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
};

use pipe_server_cli::exit::Failure;
use tracing::{info, level_filters::LevelFilter, warn};
use tracing_subscriber::EnvFilter;

use crate::options::{LogFormat, LoggingOptions};

/// Starts the log.
pub(crate) fn start(options: &LoggingOptions) -> Result<(), Failure> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(options)?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none())
        // They are printed with `eprintln!`, which panics when nobody reads stderr any more.
        .log_internal_errors(false);
    match options.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

fn filter(options: &LoggingOptions) -> Result<EnvFilter, Failure> {
    if env::var_os("RUST_LOG").is_some_and(|directives| !directives.is_empty()) {
        return EnvFilter::try_from_default_env().map_err(|error| {
            Failure::new(format!(
                "RUST_LOG can't be understood: {error}; give a level, as in debug, or unset it"
            ))
        });
    }
    let level = match (options.quiet, options.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::INFO,
        (false, 1) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    // The level is for this server; what lies below it is logged only if it fails.
    let below = level.min(LevelFilter::WARN);
    Ok(EnvFilter::new(format!("{below},pipe_server={level}")))
}

/// Says on stdout that clients can connect, for people and for programs that wait for it. Nothing else
/// is ever printed there.
pub(crate) fn announce(address: &str) {
    let mut stdout = io::stdout();
    match writeln!(stdout, "listening on {address}").and_then(|()| stdout.flush()) {
        Ok(()) => info!(address, "listening"),
        Err(error) => warn!(address, %error, "listening, but stdout can't be written to"),
    }
}
