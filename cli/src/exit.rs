//! Exit codes: 0 for success, 1 for a failure, 2 for bad usage, as in clap. `pipe-client` has more.

use std::{
    any::Any,
    env,
    error::Error,
    io::{self, Write as _},
    process::{ExitCode, Termination},
};

use pipe_server::{ConnectError, PipeName};

use crate::{escape::escape, streams};

/// Runs the program `name`, which is all of its `main`, and reports its failure.
pub fn program<T: Termination>(name: &str, run: impl FnOnce() -> Result<T, Failure>) -> ExitCode {
    streams::survive_the_limit_of_files();
    match run() {
        Ok(ended) => ended.report(),
        Err(failure) => failure.report(name),
    }
}

/// An error followed by its sources.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The text of a panic.
pub fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
}

/// Why the program can't do what it was asked to, in one line.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// What failed, on what, and what to do.
    pub fn new(message: String) -> Self {
        Self { message, code: 1 }
    }

    /// An option that proved invalid only when it was used.
    pub fn usage(message: String) -> Self {
        Self { message, code: 2 }
    }

    /// The same with another exit code, so that scripts can tell failures apart.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// What failed, on what, and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Prints the line. Failing to print it is no reason to panic: the exit code still reports the
    /// failure.
    pub fn report(self, program: &str) -> ExitCode {
        let line = escape(&self.message);
        // In one piece: another thread, or another program, may write to stderr at this moment.
        _ = io::stderr().write_all(format!("{program}: {line}\n").as_bytes());
        ExitCode::from(self.code)
    }
}

/// Describes a client's failure to connect to `name` that was not caused by its options.
pub fn connect_failure(error: &ConnectError, name: &PipeName) -> Failure {
    Failure::new(match error {
        ConnectError::NotFound { .. } => format!("{error}{}", origin_of_directory(name)),
        // Such a number would be any user's.
        ConnectError::Untrusted { owner, .. } if owner.is_unmapped() => {
            error.to_string().replace("(trust)", "(--trust anyone)")
        }
        ConnectError::Untrusted { address, owner, .. } => format!(
            "{address} belongs to user {owner}, who is not trusted and could read what is sent there: if this \
             is the right server, use --trust {owner}"
        ),
        ConnectError::Remote { address, .. } => format!(
            "{address} is on another machine, which would be sent this user's credentials: if that is meant, use \
             --allow-remote"
        ),
        other => chain(other),
    })
}

/// Where the directory of a short name comes from: the server may have another one. To follow an
/// error.
pub fn origin_of_directory(name: &PipeName) -> &'static str {
    match name.short() {
        Some(_) if cfg!(windows) => "",
        Some(_) if env::var_os("XDG_RUNTIME_DIR").is_some_and(|path| !path.is_empty()) => {
            "; the directory is what XDG_RUNTIME_DIR says, which must say the same for the server"
        }
        Some(_) => {
            "; the directory is this one because XDG_RUNTIME_DIR is not set, as it may be for the server"
        }
        None => "",
    }
}
