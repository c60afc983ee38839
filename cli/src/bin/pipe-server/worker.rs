//! `--exec-mode lines` and `frames`: one process per client.

use std::{mem, sync::Arc, time::Duration};

use pipe_server::Request;
use pipe_server_cli::process_group::ProcessGroup;
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    process::{ChildStderr, ChildStdin, ChildStdout},
    sync::{Mutex, OwnedSemaphorePermit},
    time::timeout,
};

use crate::exec::{Exec, ExecError, NEWLINE, STDERR_KEPT, trim_newline};

/// How long a command that has closed its stdout may take to end, before its exit status is given
/// up.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// How messages are told apart in the command's stdin and stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Lines,
    /// The length comes first: 4 bytes, little endian.
    Frames,
}

/// The command of one client, from its first request on.
#[derive(Debug)]
pub(crate) struct ClientCommand {
    exec: Arc<Exec>,
    framing: Framing,
    state: Mutex<WorkerState>,
}

#[derive(Debug)]
enum WorkerState {
    NotStarted,
    Running(Box<Worker>),
    /// Killed: a request was dropped or failed in the middle, and what comes next on its stdout is
    /// unknown.
    Lost,
}

impl ClientCommand {
    pub(crate) fn new(exec: Arc<Exec>, framing: Framing) -> Self {
        Self {
            exec,
            framing,
            state: Mutex::new(WorkerState::NotStarted),
        }
    }

    /// The same for another client.
    pub(crate) fn for_another(&self) -> Self {
        Self::new(Arc::clone(&self.exec), self.framing)
    }

    /// Passes the request to the command, which is started if it is the first one, and returns the
    /// reply.
    ///
    /// If the future is dropped, the command is killed with what it has started.
    pub(crate) async fn run(&self, request: &Request) -> Result<Vec<u8>, ExecError> {
        if self.framing == Framing::Lines && request.bytes().contains(&b'\n') {
            return Err(ExecError::NotALine);
        }
        let mut state = self.state.lock().await;
        let mut worker = match mem::replace(&mut *state, WorkerState::Lost) {
            WorkerState::NotStarted => Box::new(Worker::start(&self.exec, request).await?),
            WorkerState::Running(worker) => worker,
            WorkerState::Lost => return Err(ExecError::Lost),
        };
        let limit = self.exec.limit;
        let reply = worker
            .exchange(request.bytes(), self.framing, limit)
            .await?;
        *state = WorkerState::Running(worker);
        Ok(reply)
    }
}

/// A command that runs.
#[derive(Debug)]
struct Worker {
    // Killed before the permit is dropped.
    group: ProcessGroup,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: Option<ChildStderr>,
    _permit: OwnedSemaphorePermit,
}

impl Worker {
    async fn start(exec: &Exec, request: &Request) -> Result<Self, ExecError> {
        let (permit, mut group) = exec.start(request).await?;
        let (stdin, stdout, stderr) = group.take_pipes();
        Ok(Self {
            group,
            stdin,
            stdout: stdout.map(BufReader::new),
            stderr,
            _permit: permit,
        })
    }

    async fn exchange(
        &mut self,
        request: &[u8],
        framing: Framing,
        limit: usize,
    ) -> Result<Vec<u8>, ExecError> {
        let mut complaint = Vec::new();
        let (Some(stdin), Some(stdout)) = (&mut self.stdin, &mut self.stdout) else {
            return Err(ExecError::Lost);
        };
        // Concurrently: a command may reply before it has read everything.
        let exchange = async {
            let writing = write(stdin, request, framing);
            let (written, reply) = tokio::join!(writing, read(stdout, framing, limit));
            let reply = reply?;
            // A command that ends without reading is reported as such.
            if reply.is_some() {
                written?;
            }
            Ok::<_, ExecError>(reply)
        };
        let reply = {
            tokio::pin!(exchange);
            loop {
                tokio::select! {
                    reply = &mut exchange => break reply,
                    // It would block if nobody read it.
                    () = read_some(&mut self.stderr, &mut complaint) => {}
                }
            }
        };
        match reply? {
            Some(reply) if reply.is_empty() => Err(ExecError::Empty),
            Some(reply) => Ok(reply),
            None => Err(self.ended(complaint).await),
        }
    }

    /// Why the command has closed its stdout.
    async fn ended(&mut self, mut complaint: Vec<u8>) -> ExecError {
        self.stdin = None;
        let group = &mut self.group;
        let end = async {
            while self.stderr.is_some() {
                read_some(&mut self.stderr, &mut complaint).await;
            }
            group.wait().await
        };
        let status = match timeout(END_TIMEOUT, end).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it closed its stdout".to_owned(),
        };
        let stderr = String::from_utf8_lossy(&complaint).trim().to_owned();
        ExecError::Ended { status, stderr }
    }
}

async fn write(
    stdin: &mut (impl AsyncWrite + Unpin),
    request: &[u8],
    framing: Framing,
) -> Result<(), ExecError> {
    let mut frame = Vec::with_capacity(request.len() + 4);
    match framing {
        Framing::Lines => {
            frame.extend_from_slice(request);
            frame.push(b'\n');
        }
        Framing::Frames => {
            // A message is shorter than 4 GiB on every system.
            let length = u32::try_from(request.len()).unwrap_or(u32::MAX);
            frame.extend_from_slice(&length.to_le_bytes());
            frame.extend_from_slice(request);
        }
    }
    let written = async {
        stdin.write_all(&frame).await?;
        stdin.flush().await
    };
    written.await.map_err(ExecError::Io)
}

/// Reads one reply of up to `limit` bytes; `None` if the command closes its stdout instead.
async fn read(
    stdout: &mut BufReader<impl AsyncRead + Unpin>,
    framing: Framing,
    limit: usize,
) -> Result<Option<Vec<u8>>, ExecError> {
    let most = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
    let mut reply = Vec::new();
    match framing {
        Framing::Lines => {
            let mut stdout = stdout.take(most(limit.saturating_add(NEWLINE)));
            let read = stdout.read_until(b'\n', &mut reply).await;
            read.map_err(ExecError::Io)?;
            let complete = reply.ends_with(b"\n");
            trim_newline(&mut reply);
            if reply.len() > limit {
                return Err(ExecError::TooLong(limit));
            }
            Ok(complete.then_some(reply))
        }
        Framing::Frames => {
            let mut prefix = Vec::new();
            let read = (&mut *stdout).take(4).read_to_end(&mut prefix).await;
            read.map_err(ExecError::Io)?;
            let Ok(prefix) = <[u8; 4]>::try_from(prefix) else {
                return Ok(None);
            };
            let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
            if length > limit {
                return Err(ExecError::TooLong(limit));
            }
            let read = stdout.take(most(length)).read_to_end(&mut reply).await;
            read.map_err(ExecError::Io)?;
            Ok((reply.len() == length).then_some(reply))
        }
    }
}

/// Reads from stderr and keeps the beginning; waits forever once it is closed.
async fn read_some(stderr: &mut Option<ChildStderr>, kept: &mut Vec<u8>) {
    let Some(open) = stderr else {
        return std::future::pending().await;
    };
    let mut buffer = [0; STDERR_KEPT];
    match open.read(&mut buffer).await {
        Ok(length @ 1..) => {
            let room = STDERR_KEPT - kept.len();
            kept.extend_from_slice(&buffer[..length.min(room)]);
        }
        // The command may go on without it.
        _ => *stderr = None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(stdout: &[u8], framing: Framing) -> Vec<Result<Option<Vec<u8>>, ExecError>> {
        let mut stdout = BufReader::new(stdout);
        let mut replies = Vec::new();
        loop {
            let reply = read(&mut stdout, framing, 3).await;
            let last = !matches!(reply, Ok(Some(_)));
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    #[tokio::test]
    async fn lines_are_replies() {
        let replies = read_all(b"abc\nd\r\n\nabc\r\nincomplete", Framing::Lines).await;
        let [
            Ok(Some(first)),
            Ok(Some(second)),
            Ok(Some(empty)),
            Ok(Some(longest)),
            Err(error),
        ] = &replies[..]
        else {
            panic!("{replies:?}");
        };
        assert_eq!(
            [first, second, empty, longest],
            [&b"abc"[..], b"d", b"", b"abc"]
        );
        assert!(matches!(error, ExecError::TooLong(3)));
        let replies = read_all(b"ab", Framing::Lines).await;
        assert!(matches!(&replies[..], [Ok(None)]), "{replies:?}");
    }

    #[tokio::test]
    async fn frames_are_replies() {
        let replies = read_all(b"\x03\0\0\0a\nb\x01\0\0\0c\x04\0\0\0", Framing::Frames).await;
        let [
            Ok(Some(first)),
            Ok(Some(second)),
            Err(ExecError::TooLong(3)),
        ] = &replies[..]
        else {
            panic!("{replies:?}");
        };
        assert_eq!([first, second], [&b"a\nb"[..], b"c"]);
        for incomplete in [&b"\x03"[..], b"\x03\0\0\0ab"] {
            let replies = read_all(incomplete, Framing::Frames).await;
            assert!(matches!(&replies[..], [Ok(None)]), "{replies:?}");
        }
    }
}
