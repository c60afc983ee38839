//! `--exec`: one process a request.

use std::io;

use pipe_server_cli::family::Family;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// How much of a failing command's stderr is logged, in bytes: enough for a message, not for a dump.
const STDERR_KEPT: usize = 1024;

/// A command of the shell that answers requests.
#[derive(Debug)]
pub(crate) struct Exec {
    command: String,
    /// The longest reply, in bytes.
    limit: usize,
}

/// Why a command gave no reply. The server logs it, and the client loses its connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error("the command of --exec can't be started: {0}")]
    Start(#[source] io::Error),
    #[error("talking to the command of --exec failed: {0}")]
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
}

impl Exec {
    pub(crate) fn new(command: String, limit: usize) -> Self {
        Self { command, limit }
    }

    /// Runs the command and returns what it has printed.
    ///
    /// If the future is dropped, or ends before the command does, the command is killed with what it has
    /// started. After the command's own end that goes on.
    pub(crate) async fn run(&self, request: &[u8]) -> Result<Vec<u8>, ExecError> {
        let mut family = Family::start(&self.command).map_err(ExecError::Start)?;
        let (stdin, stdout, stderr) = family.take_pipes();

        // At the same time: a command may print before it has read everything.
        let (reply, stderr, ()) = tokio::try_join!(
            read_reply(stdout, self.limit),
            read_beginning(stderr),
            feed(stdin, request),
        )?;
        let status = family.wait().await.map_err(ExecError::Io)?;

        if !status.success() {
            let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
            return Err(ExecError::Failed { status, stderr });
        }
        if reply.is_empty() {
            return Err(ExecError::Empty);
        }
        Ok(reply)
    }
}

/// Reads to the end, unless that is beyond `limit` bytes.
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

/// Keeps the beginning and reads on to the end: a command that nobody listens to would wait for ever.
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

/// Writes the request and closes. A command is free not to read it.
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
