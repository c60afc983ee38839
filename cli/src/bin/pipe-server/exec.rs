//! `--exec`: starting commands, and one process per request. `worker.rs` has one per client.

use std::{ffi::OsString, fmt, io, process::ExitStatus, sync::Arc, time::Duration};

use pipe_server::{Peer, Request};
use pipe_server_cli::{
    mutex::Mutex,
    process_group::{ProcessGroup, is_shortage, shell},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    process::Command,
    task::yield_now,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use self::{
    environment::ClientVariables,
    limiter::{FairLimiter, Permit},
};

pub(crate) use self::{framing::Framing, worker::ClientCommand};

mod environment;
mod framing;
mod limiter;
mod request_pipe;
mod worker;

/// How much of a failing command's stderr is logged, in bytes: enough for a message, not for a
/// dump.
const STDERR_KEPT: usize = 1024;

/// The backoff after a command could not be started, doubled after each further attempt.
const FIRST_START_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_START_PAUSE: Duration = Duration::from_secs(1);

/// The shortest time between two log lines about commands that can't be started, which clients can
/// cause.
const SHORTAGE_LOGGED_EVERY: Duration = Duration::from_secs(1);

/// A shell command that answers requests.
#[derive(Debug)]
pub(crate) struct Exec {
    command: String,
    /// The longest reply, in bytes.
    limit: usize,
    /// Whether the last newline of a reply is removed.
    trim_newline: bool,
    not_inherited: Vec<OsString>,
    limiter: Arc<FairLimiter>,
    shortage_logged: Mutex<Option<Instant>>,
}

/// Why a command gave no reply. It is logged, and the connection is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error("the command of --exec can't be started")]
    Start(#[source] io::Error),
    #[error("talking to the command of --exec failed")]
    Io(#[source] io::Error),
    #[error("the command of --exec printed more than {0} bytes: see --max-message-size")]
    TooLong(usize),
    #[error("the command of --exec failed ({status}){stderr}")]
    Failed {
        status: ExitStatus,
        stderr: Complaint,
    },
    #[error("the command of --exec printed nothing, and an empty message can't be sent")]
    Empty,
    #[error("the command of --exec ended ({status}) instead of replying{stderr}")]
    Ended { status: String, stderr: Complaint },
    #[error("the command of --exec ended ({status}) while its client was idle{stderr}")]
    EndedIdle { status: String, stderr: Complaint },
    #[error(
        "the command of --exec has ended, or was killed during an earlier request of this client"
    )]
    Lost,
    #[error(
        "the command of --exec was ended because its client was idle and another one waited for a command: \
         raise --exec-limit"
    )]
    MadeRoom,
    #[error(
        "the command of --exec printed {0:?} that no request asked for: it must print one reply to each whole \
         request, nothing before the first one, and log to stderr"
    )]
    Unasked(String),
    #[error(
        "the request contains a newline, so it can't be a line for the command of --exec: use --exec-mode frames"
    )]
    NotALine,
}

/// What a command wrote to stderr, as the end of an error message.
#[derive(Debug)]
pub(crate) struct Complaint(String);

impl Complaint {
    fn new(stderr: &[u8]) -> Self {
        Self(String::from_utf8_lossy(stderr).trim().to_owned())
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_str() {
            "" => Ok(()),
            text => write!(formatter, ": {text}"),
        }
    }
}

impl Exec {
    /// Runs up to `commands` of them at the same time, `commands_per_user` for one user.
    pub(crate) fn new(
        command: String,
        (commands, commands_per_user): (usize, usize),
        limit: usize,
        trim_newline: bool,
    ) -> Self {
        #[cfg(unix)]
        if std::process::id() == 1 {
            warn!(
                "this is process 1, and it does not reap what commands leave running: have a container start it \
                 under an init process (docker run --init)"
            );
        }
        Self {
            command,
            limit,
            trim_newline,
            not_inherited: environment::not_inherited(),
            limiter: Arc::new(FairLimiter::new(commands, commands_per_user)),
            shortage_logged: Mutex::new(None),
        }
    }

    /// Runs the command, once fewer than `commands` are running, and returns its output.
    ///
    /// If the future is dropped, or ends before the command does, the command is killed with what
    /// it has started. After the command's own end that goes on. A command that has not been
    /// started by then never is.
    pub(crate) async fn run(&self, request: &Request) -> Result<Vec<u8>, ExecError> {
        // Dropped after the command.
        let (_permit, mut group) = self.start(request).await?;
        let (stdin, stdout, stderr) = group.take_pipes();

        // Concurrently: a command may print before it has read everything.
        let newline = if self.trim_newline { NEWLINE } else { 0 };
        let limit = self.limit.saturating_add(newline);
        let (mut reply, stderr, ()) = tokio::try_join!(
            read_reply(stdout, limit),
            read_beginning(stderr),
            feed(stdin, request.bytes()),
        )?;
        let status = group.wait().await.map_err(ExecError::Io)?;

        if !status.success() {
            let stderr = Complaint::new(&stderr);
            return Err(ExecError::Failed { status, stderr });
        }
        if self.trim_newline {
            trim_newline(&mut reply);
        }
        match reply.len() {
            0 => Err(ExecError::Empty),
            length if length > self.limit => Err(ExecError::TooLong(self.limit)),
            _ => Ok(reply),
        }
    }

    /// Starts the command for `request` once fewer than `commands` are running. The permit must be
    /// held for as long as it runs.
    async fn start(&self, request: &Request) -> Result<(Permit, ProcessGroup), ExecError> {
        // Asked first: the system may not know it later.
        let peer = request.peer();
        let peer = peer.as_ref().ok();
        let variables = ClientVariables::new(request, peer);
        // While this waits, the server checks whether the client is still connected.
        yield_now().await;
        let permit = self.permit(peer).await;
        let mut group = self.start_with(&variables).await?;
        debug!(command.pid = group.id(), "command started");
        Ok((permit, group))
    }

    async fn permit(&self, peer: Option<&Peer>) -> Permit {
        match self.limiter.acquire(peer.map(|peer| peer.user().clone())) {
            Ok(permit) => permit,
            Err(waiting) => {
                debug!(
                    "as many commands are running as --exec-limit allows; waiting for one to end"
                );
                waiting
                    .await
                    .expect("it waits as long as the limiter exists")
            }
        }
    }

    /// Starts the command, with retries while the system is short of resources.
    async fn start_with(&self, variables: &ClientVariables) -> Result<ProcessGroup, ExecError> {
        let mut pause = FIRST_START_PAUSE;
        loop {
            match ProcessGroup::start(self.shell(variables)) {
                Err(error) if is_shortage(&error) => {
                    self.log_shortage(&error);
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_START_PAUSE);
                }
                started => return started.map_err(ExecError::Start),
            }
        }
    }

    fn shell(&self, variables: &ClientVariables) -> Command {
        let mut shell = shell(&self.command);
        for name in &self.not_inherited {
            shell.env_remove(name);
        }
        variables.set_on(&mut shell);
        shell
    }

    fn log_shortage(&self, error: &io::Error) {
        let now = Instant::now();
        let mut logged = self.shortage_logged.lock();
        if logged.is_none_or(|logged| now - logged >= SHORTAGE_LOGGED_EVERY) {
            *logged = Some(now);
            warn!(
                %error,
                "the command of --exec can't be started; trying again: raise the limit it names, or lower \
                 --exec-limit"
            );
        }
    }
}

/// The longest newline, in bytes.
const NEWLINE: usize = 2;

/// Removes one newline, `\n` or `\r\n`, from the end of `text`.
fn trim_newline(text: &mut Vec<u8>) {
    if text.ends_with(b"\n") {
        text.pop();
        if text.ends_with(b"\r") {
            text.pop();
        }
    }
}

/// Reads to the end, up to `limit` bytes.
async fn read_reply(
    stdout: Option<impl AsyncRead + Unpin>,
    limit: usize,
) -> Result<Vec<u8>, ExecError> {
    let mut reply = Vec::new();
    if let Some(stdout) = stdout {
        let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        stdout
            .take(one_more)
            .read_to_end(&mut reply)
            .await
            .map_err(ExecError::Io)?;
    }
    match reply.len() > limit {
        true => Err(ExecError::TooLong(limit)),
        false => Ok(reply),
    }
}

/// Keeps the beginning and discards the rest, because a command would block if nobody read it.
async fn read_beginning(stderr: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, ExecError> {
    let mut kept = Vec::new();
    if let Some(mut stderr) = stderr {
        let mut buffer = [0; STDERR_KEPT];
        loop {
            let length = stderr.read(&mut buffer).await.map_err(ExecError::Io)?;
            if length == 0 {
                break;
            }
            let room = STDERR_KEPT - kept.len();
            kept.extend_from_slice(&buffer[..length.min(room)]);
        }
    }
    Ok(kept)
}

/// Writes the request and closes the pipe. A command need not read it.
async fn feed(stdin: Option<impl AsyncWrite + Unpin>, request: &[u8]) -> Result<(), ExecError> {
    let Some(mut stdin) = stdin else {
        return Ok(());
    };
    let written = async {
        stdin.write_all(request).await?;
        stdin.shutdown().await
    };
    match written.await {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ExecError::Io(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_said_nothing_is_reported_without_a_colon() {
        let ended = |stderr: &[u8]| ExecError::Ended {
            status: "exit status: 1".to_owned(),
            stderr: Complaint::new(stderr),
        };
        let silent = "the command of --exec ended (exit status: 1) instead of replying";
        assert_eq!(ended(b" \n").to_string(), silent);
        assert_eq!(ended(b"why\n").to_string(), format!("{silent}: why"));
    }
}
