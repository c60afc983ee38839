//! `--exec`: starting commands, and one process per request. `worker.rs` has one per client.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pipe_server::{Peer, Request, UserId};
use pipe_server_cli::process_group::{ProcessGroup, is_shortage, shell};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    process::Command,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::yield_now,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

#[cfg(target_os = "linux")]
use crate::systemd;

/// How much of a failing command's stderr is logged, in bytes: enough for a message, not for a
/// dump.
pub(crate) const STDERR_KEPT: usize = 1024;

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
    pub(crate) limit: usize,
    /// Whether the last newline of a reply is removed.
    trim_newline: bool,
    /// One permit per command that may run, in FIFO order.
    permits: Arc<Semaphore>,
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
    #[error("the command of --exec failed ({status}): {stderr}")]
    Failed {
        status: std::process::ExitStatus,
        stderr: String,
    },
    #[error("the command of --exec printed nothing, and an empty message can't be sent")]
    Empty,
    #[error("the command of --exec ended ({status}) instead of replying: {stderr}")]
    Ended { status: String, stderr: String },
    #[error("the command of --exec was killed during an earlier request of this client")]
    Lost,
    #[error(
        "the request contains a newline, so it can't be a line for the command of --exec: use --exec-mode frames"
    )]
    NotALine,
}

impl Exec {
    /// Runs up to `commands` of them at the same time.
    pub(crate) fn new(command: String, commands: usize, limit: usize, trim_newline: bool) -> Self {
        Self {
            command,
            limit,
            trim_newline,
            permits: Arc::new(Semaphore::new(commands.min(Semaphore::MAX_PERMITS))),
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
            let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
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
    pub(crate) async fn start(
        &self,
        request: &Request,
    ) -> Result<(OwnedSemaphorePermit, ProcessGroup), ExecError> {
        // Asked first: the system may not know it later.
        let environment = environment(request);
        // While this waits, the server checks whether the client is still connected.
        yield_now().await;
        let permit = self.permit().await;
        let mut group = self.start_in(request, &environment).await?;
        debug!(command.pid = group.id(), "command started");
        Ok((permit, group))
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return permit;
        }
        debug!("as many commands are running as --exec-limit allows; waiting for one to end");
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    /// Starts the command, with retries while the system is short of resources.
    async fn start_in(
        &self,
        request: &Request,
        environment: &[Variable],
    ) -> Result<ProcessGroup, ExecError> {
        let mut pause = FIRST_START_PAUSE;
        loop {
            match ProcessGroup::start(self.shell(environment)) {
                Err(error) if is_shortage(&error) => {
                    self.log_shortage(request, &error);
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_START_PAUSE);
                }
                started => return started.map_err(ExecError::Start),
            }
        }
    }

    fn shell(&self, environment: &[Variable]) -> Command {
        let mut shell = shell(&self.command);
        for (name, value) in environment {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        #[cfg(target_os = "linux")]
        for name in systemd::VARIABLES {
            shell.env_remove(name);
        }
        shell
    }

    fn log_shortage(&self, request: &Request, error: &io::Error) {
        let now = Instant::now();
        let mut logged = self
            .shortage_logged
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|logged| now - logged >= SHORTAGE_LOGGED_EVERY) {
            *logged = Some(now);
            warn!(
                connection.id = request.connection_id(),
                %error,
                "the command of --exec can't be started; trying again: raise the limit it names, or lower \
                 --exec-limit"
            );
        }
    }
}

/// The longest newline, in bytes.
pub(crate) const NEWLINE: usize = 2;

/// Removes one newline, `\n` or `\r\n`, from the end of `text`.
pub(crate) fn trim_newline(text: &mut Vec<u8>) {
    if text.ends_with(b"\n") {
        text.pop();
        if text.ends_with(b"\r") {
            text.pop();
        }
    }
}

/// A variable of a command's environment. `None` unsets it, because an inherited value would
/// describe another client.
type Variable = (&'static str, Option<String>);

/// The variables that describe the client.
fn environment(request: &Request) -> [Variable; 4] {
    let peer = request
        .peer()
        .inspect_err(|error| debug!(%error, "the command is not told who the client is"))
        .ok();
    let (uid, sid) = match peer.as_ref().map(Peer::user) {
        #[cfg(unix)]
        Some(UserId::Uid(uid)) => (Some(uid.to_string()), None),
        #[cfg(windows)]
        Some(UserId::Sid(sid)) => (None, Some(sid.clone())),
        _ => (None, None),
    };
    // 0 means a process outside this PID namespace.
    let process_id = peer.map(|peer| peer.process_id()).filter(|&id| id != 0);
    let connection_id = request.connection_id();
    [
        ("PIPE_PEER_UID", uid),
        ("PIPE_PEER_SID", sid),
        ("PIPE_PEER_PID", process_id.map(|id| id.to_string())),
        ("PIPE_CONNECTION_ID", Some(connection_id.to_string())),
    ]
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
