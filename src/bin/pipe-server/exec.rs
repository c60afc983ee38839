//! `--exec`: one process a request.

use std::{io, process::Stdio};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    process::{Child, Command},
};

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
    /// If the future is dropped, the command is killed with its children.
    pub(crate) async fn run(&self, request: &[u8]) -> Result<Vec<u8>, ExecError> {
        let mut child = shell(&self.command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(ExecError::Start)?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        // Declared after the child, so dropped before it: until the child is reaped its id is not
        // another process's.
        let mut family = Family::of(&child);

        // At the same time: a command may print before it has read everything.
        let (reply, stderr, ()) = tokio::try_join!(
            read_reply(stdout, self.limit),
            read_beginning(stderr),
            feed(stdin, request),
        )?;
        let status = child.wait().await.map_err(ExecError::Io)?;
        family.forget();

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

#[cfg(unix)]
fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    // A process group of its own can be killed whole, and Ctrl-C on the terminal is the server's alone.
    shell.arg("-c").arg(command).process_group(0);
    shell
}

#[cfg(windows)]
fn shell(command: &str) -> Command {
    /// A console of its own: no window, and Ctrl-C on the server's console is the server's alone
    /// (*Process Creation Flags*).
    const CREATE_NO_WINDOW: u32 = 0x0800_0000;

    let mut shell = Command::new("cmd");
    // With /S cmd takes off the outer quotes and leaves the rest as it stands.
    shell
        .args(["/D", "/S", "/C"])
        .raw_arg(format!("\"{command}\""))
        .creation_flags(CREATE_NO_WINDOW);
    shell
}

/// The command and what it has started: killed when this is dropped.
struct Family {
    /// The command's process id; on Linux its process group's too.
    leader: Option<u32>,
}

impl Family {
    fn of(child: &Child) -> Self {
        Self { leader: child.id() }
    }

    /// The command is over, and its id may be another process's from here on.
    fn forget(&mut self) {
        self.leader = None;
    }
}

impl Drop for Family {
    #[cfg(unix)]
    fn drop(&mut self) {
        use rustix::process::{Pid, Signal, kill_process_group};

        let group = self
            .leader
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(group) = group {
            // It fails only if there is nothing left to kill.
            _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// A job object would do this better, but it needs unsafe code, which programs don't have.
    /// `taskkill` is waited for: once the command itself is killed its children can't be found.
    #[cfg(windows)]
    fn drop(&mut self) {
        if let Some(id) = self.leader {
            _ = std::process::Command::new("taskkill")
                .args(["/T", "/F", "/PID", &id.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}
