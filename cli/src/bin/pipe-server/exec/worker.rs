//! `--exec-mode lines` and `frames`: one process per client.

use std::{
    future::{Future as _, poll_fn},
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pipe_server::Request;
use pipe_server_cli::process_group::ProcessGroup;
use tokio::{
    io::{AsyncBufRead as _, AsyncBufReadExt as _, AsyncRead as _, BufReader, ReadBuf},
    process::{ChildStderr, ChildStdout},
    sync::Mutex,
    time::timeout,
};

use super::{
    Complaint, Exec, ExecError, Framing, Permit, STDERR_KEPT,
    request_pipe::{RequestPipe, has_output},
};

/// How long a command that has closed its stdout may take to end, before its exit status is given
/// up.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// How much of an output that no request asked for is logged, in bytes.
const UNASKED_KEPT: usize = 100;

/// The command of one client, from its first request on.
#[derive(Debug)]
pub(crate) struct ClientCommand {
    exec: Arc<Exec>,
    framing: Framing,
    /// Locked while a request is in flight.
    state: Mutex<WorkerState>,
}

#[derive(Debug)]
enum WorkerState {
    NotStarted,
    Running(Box<Worker>),
    /// It has ended, or it was killed: a request was dropped or failed in the middle, and what
    /// comes next on its stdout is unknown.
    Lost,
}

/// Why a command can't go on although no request is in flight.
enum IdleEnd {
    Exited,
    /// It has printed something.
    Unasked,
    /// Another client waits for its permit.
    Wanted,
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

    /// Waits until the command can't go on while its client is idle, and ends it.
    ///
    /// Another client's request may end it because an idle command must not keep others waiting.
    /// Then the connection ends too, instead of a new command being started for the next request:
    /// that one would lack what the client has told the first one, and nobody would notice.
    pub(crate) async fn ended(&self) -> ExecError {
        let (mut worker, end) = poll_fn(|cx| self.poll_idle(cx)).await;
        match end {
            IdleEnd::Wanted => ExecError::MadeRoom,
            IdleEnd::Unasked => worker.unasked().await,
            IdleEnd::Exited => {
                let (status, stderr) = worker.end().await;
                ExecError::EndedIdle { status, stderr }
            }
        }
    }

    fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<(Box<Worker>, IdleEnd)> {
        // Polled only between requests, when nobody else holds the lock.
        let Ok(mut state) = self.state.try_lock() else {
            return Poll::Pending;
        };
        let WorkerState::Running(worker) = &mut *state else {
            return Poll::Pending;
        };
        let end = ready!(worker.poll_idle(cx));
        match mem::replace(&mut *state, WorkerState::Lost) {
            WorkerState::Running(worker) => Poll::Ready((worker, end)),
            _ => Poll::Pending,
        }
    }
}

/// A command that runs.
#[derive(Debug)]
struct Worker {
    // Killed before the permit is dropped.
    group: ProcessGroup,
    stdin: Option<RequestPipe>,
    stdout: BufReader<ChildStdout>,
    stderr: Option<ChildStderr>,
    /// The beginning of what it wrote to stderr since its last reply.
    complaint: Vec<u8>,
    permit: Permit,
}

impl Worker {
    async fn start(exec: &Exec, request: &Request) -> Result<Self, ExecError> {
        let (permit, mut group) = exec.start(request).await?;
        let (stdin, stdout, stderr) = group.take_pipes();
        let stdin = stdin.map(RequestPipe::new).transpose();
        Ok(Self {
            group,
            stdin: stdin.map_err(ExecError::Io)?,
            stdout: BufReader::new(stdout.ok_or(ExecError::Lost)?),
            stderr,
            complaint: Vec::new(),
            permit,
        })
    }

    async fn exchange(
        &mut self,
        request: &[u8],
        framing: Framing,
        limit: usize,
    ) -> Result<Vec<u8>, ExecError> {
        if !self.permit.set_busy() {
            return Err(ExecError::MadeRoom);
        }
        if has_output(&mut self.stdout).await {
            return Err(self.unasked().await);
        }
        let frame = framing.frame(request);
        let (stdin, stdout) = (&mut self.stdin, &mut self.stdout);
        let exchange = async {
            let Some(stdin) = stdin else {
                return Err(ExecError::Lost);
            };
            let rest = match stdin.begin(&frame, stdout).await {
                Ok(Some(rest)) => rest,
                Ok(None) => return Ok(Exchanged::Unasked),
                // It has ended, as the other pipe will tell.
                Err(_) => &[],
            };
            // Concurrently: a command may reply before it has read everything.
            let writing = stdin.write_all(rest);
            let (written, reply) = tokio::join!(writing, framing.read(stdout, limit));
            let Some(reply) = reply? else {
                // A command that ends without reading is reported as such.
                return Ok(Exchanged::Ended);
            };
            written.map_err(ExecError::Io)?;
            Ok(Exchanged::Reply(reply))
        };
        let exchanged = {
            let mut exchange = pin!(exchange);
            poll_fn(|cx| {
                let exchanged = exchange.as_mut().poll(cx);
                if exchanged.is_pending() {
                    poll_stderr(&mut self.stderr, &mut self.complaint, cx);
                }
                exchanged
            })
            .await
        };
        match exchanged? {
            Exchanged::Reply(reply) if reply.is_empty() => Err(ExecError::Empty),
            Exchanged::Reply(reply) => {
                self.complaint.clear();
                Ok(reply)
            }
            Exchanged::Unasked => Err(self.unasked().await),
            Exchanged::Ended => {
                let (status, stderr) = self.end().await;
                Err(ExecError::Ended { status, stderr })
            }
        }
    }

    /// Ready once the command can't go on. Called between requests.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<IdleEnd> {
        poll_stderr(&mut self.stderr, &mut self.complaint, cx);
        // A command that has closed its stdout is about to end.
        let output = Pin::new(&mut self.stdout).poll_fill_buf(cx);
        if matches!(output, Poll::Ready(Ok(output)) if !output.is_empty()) {
            return Poll::Ready(IdleEnd::Unasked);
        }
        if pin!(self.group.wait()).poll(cx).is_ready() {
            return Poll::Ready(IdleEnd::Exited);
        }
        self.permit.poll_wanted(cx).map(|()| IdleEnd::Wanted)
    }

    /// The error for what the command has printed.
    async fn unasked(&mut self) -> ExecError {
        let output = timeout(END_TIMEOUT, self.stdout.fill_buf()).await;
        let output = output.ok().and_then(Result::ok).unwrap_or_default();
        let output = &output[..output.len().min(UNASKED_KEPT)];
        ExecError::Unasked(String::from_utf8_lossy(output).trim_end().to_owned())
    }

    /// Waits for the end of a command that has closed its stdout, and returns its status and what
    /// it wrote to stderr.
    async fn end(&mut self) -> (String, Complaint) {
        self.stdin = None;
        let (group, stderr, complaint) = (&mut self.group, &mut self.stderr, &mut self.complaint);
        let end = async {
            poll_fn(|cx| {
                poll_stderr(stderr, complaint, cx);
                match stderr {
                    Some(_) => Poll::Pending,
                    None => Poll::Ready(()),
                }
            })
            .await;
            group.wait().await
        };
        let status = match timeout(END_TIMEOUT, end).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it closed its stdout".to_owned(),
        };
        (status, Complaint::new(&self.complaint))
    }
}

/// The result of passing a request to a command.
enum Exchanged {
    Reply(Vec<u8>),
    /// It closed its stdout.
    Ended,
    /// It has printed something before it had the request.
    Unasked,
}

/// Reads what the command has written to stderr, and keeps the beginning. It would block if nobody
/// read it.
fn poll_stderr(stderr: &mut Option<ChildStderr>, kept: &mut Vec<u8>, cx: &mut Context<'_>) {
    while let Some(open) = stderr {
        let mut buffer = [0; STDERR_KEPT];
        let mut buffer = ReadBuf::new(&mut buffer);
        match Pin::new(open).poll_read(cx, &mut buffer) {
            Poll::Pending => return,
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                let room = STDERR_KEPT - kept.len();
                let read = buffer.filled();
                kept.extend_from_slice(&read[..read.len().min(room)]);
            }
            // The command may go on without it.
            Poll::Ready(_) => *stderr = None,
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::thread;

    use pipe_server::Peer;

    use super::{super::request_pipe::unread, *};

    /// The runtime has not been told of the line, because this thread does not let it.
    #[tokio::test]
    async fn what_is_in_the_pipe_is_found_before_a_request_is_sent() {
        let command = "while read -r line; do echo reply; sleep 0.1; echo note; done";
        let exec = Exec::new(command.to_owned(), (1, 1), 1000, false);
        let request = Request::new("request", Peer::current().unwrap());
        let mut worker = Worker::start(&exec, &request).await.unwrap();
        let lines = Framing::Lines;
        let reply = worker.exchange(b"request", lines, 1000).await.unwrap();
        assert_eq!(reply, b"reply");
        while unread(worker.stdout.get_ref()) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let error = worker.exchange(b"request", lines, 1000).await.unwrap_err();
        assert!(
            matches!(&error, ExecError::Unasked(output) if output == "note"),
            "{error}"
        );
    }
}
