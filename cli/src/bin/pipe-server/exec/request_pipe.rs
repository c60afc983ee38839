//! The stdin of a command that gets several requests.
//!
//! What a command has printed before it reads a request can't be the reply to it. So the first byte
//! of a request is written alone, and the rest once the command has read it. A command that prints
//! a greeting, or one line too many, does so before it reads on, and what it has printed by then is
//! in the pipe of its stdout.
//!
//! The whole request at once would not do: the reply may be there by the time that the command is
//! seen to read.

#[cfg(unix)]
use std::os::fd::{AsFd, OwnedFd};
#[cfg(windows)]
use std::{fs::File, os::windows::io::AsHandle as _, time::Duration};
use std::{future::poll_fn, io, pin::Pin, task::Poll};

#[cfg(unix)]
use tokio::io::{Interest, unix::AsyncFd};
#[cfg(windows)]
use tokio::{io::AsyncWriteExt as _, task::spawn_blocking, time::timeout};
use tokio::{
    io::{AsyncBufRead as _, AsyncBufReadExt as _, BufReader},
    process::{ChildStdin, ChildStdout},
};

/// How much a command may print when it has read one byte of a request. A filter such as cat passes
/// it on.
const OF_ONE_BYTE: u64 = 1;

/// Whether the command has printed something that was not read yet.
pub(super) async fn has_output(stdout: &mut BufReader<ChildStdout>) -> bool {
    let is_read = poll_fn(|cx| {
        let output = Pin::new(&mut *stdout).poll_fill_buf(cx);
        Poll::Ready(matches!(output, Poll::Ready(Ok(output)) if !output.is_empty()))
    });
    let is_read = is_read.await;
    // The runtime may not have heard of it yet.
    #[cfg(unix)]
    return is_read || unread(stdout.get_ref()) > 0;
    #[cfg(not(unix))]
    is_read
}

/// How many bytes are in a pipe. Either end may ask.
#[cfg(unix)]
pub(super) fn unread(pipe: &impl AsFd) -> u64 {
    rustix::io::ioctl_fionread(pipe).unwrap_or(0)
}

/// A pipe of one page holds one write at a time, so the system reports room only once everything
/// was read. For longer requests it is as large as by default.
#[cfg(unix)]
#[derive(Debug)]
pub(super) struct RequestPipe {
    pipe: AsyncFd<OwnedFd>,
    is_one_page: bool,
}

#[cfg(unix)]
impl RequestPipe {
    const PAGE: usize = 4096;
    const DEFAULT: usize = 64 * 1024;

    #[allow(
        deprecated,
        reason = "the replacement is unsafe. Its requirement holds here: the descriptor stays the same \
                  until it was deregistered"
    )]
    pub(super) fn new(stdin: ChildStdin) -> io::Result<Self> {
        let pipe = AsyncFd::with_interest(stdin.into_owned_fd()?, Interest::WRITABLE)?;
        let is_one_page = false;
        Ok(Self { pipe, is_one_page })
    }

    /// Writes the first byte of `request`, and waits until the command reads. Returns the rest, or
    /// `None` if the command has printed something before.
    pub(super) async fn begin<'a>(
        &mut self,
        request: &'a [u8],
        stdout: &mut BufReader<ChildStdout>,
    ) -> io::Result<Option<&'a [u8]>> {
        if !self.is_one_page {
            self.is_one_page = self.resize(Self::PAGE);
        }
        let (first, rest) = request.split_at(1);
        self.write_all(first).await?;
        // Without one page nothing would tell that the command reads.
        while self.is_one_page && self.is_unread() {
            let printed = tokio::select! {
                room = self.pipe.writable() => {
                    let mut room = room?;
                    if self.is_unread() {
                        room.clear_ready();
                    }
                    continue;
                }
                output = stdout.fill_buf() => output?.len(),
            };
            if printed == 0 {
                // It is about to end.
                break;
            }
            if self.is_unread() {
                return Ok(None);
            }
        }
        let printed = stdout.buffer().len() as u64 + unread(stdout.get_ref());
        if rest.len() > Self::PAGE && self.is_one_page {
            self.is_one_page = !self.resize(Self::DEFAULT);
        }
        Ok((printed <= OF_ONE_BYTE).then_some(rest))
    }

    pub(super) async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |pipe: &OwnedFd| Ok(rustix::io::write(pipe, bytes)?);
            let written = self.pipe.async_io(Interest::WRITABLE, write).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    fn resize(&self, bytes: usize) -> bool {
        rustix::pipe::fcntl_setpipe_size(&self.pipe, bytes).is_ok()
    }

    /// Whether the command has not read everything yet, and still may.
    fn is_unread(&self) -> bool {
        unread(&self.pipe) > 0 && self.has_reader()
    }

    fn has_reader(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};

        let mut pipe = [PollFd::new(&self.pipe, PollFlags::empty())];
        // It reports errors unasked.
        let looked = poll(&mut pipe, Some(&Timespec::default()));
        looked.is_err() || !pipe[0].revents().contains(PollFlags::ERR)
    }
}

/// On Windows only FlushFileBuffers tells that a pipe was read, which takes a thread, and its other
/// end can't be looked at while a thread reads from it. So this is done for the first request.
#[cfg(windows)]
#[derive(Debug)]
pub(super) struct RequestPipe {
    stdin: ChildStdin,
    is_new: bool,
}

#[cfg(windows)]
impl RequestPipe {
    /// How long it may take until what is in the pipe of a command's stdout was passed on by the
    /// thread that reads from it.
    const OUTPUT_TIMEOUT: Duration = Duration::from_millis(20);

    #[allow(clippy::unnecessary_wraps, reason = "it fails on Linux")]
    pub(super) fn new(stdin: ChildStdin) -> io::Result<Self> {
        let is_new = true;
        Ok(Self { stdin, is_new })
    }

    /// The same as on Linux, for the first request.
    pub(super) async fn begin<'a>(
        &mut self,
        request: &'a [u8],
        stdout: &mut BufReader<ChildStdout>,
    ) -> io::Result<Option<&'a [u8]>> {
        if !std::mem::take(&mut self.is_new) {
            return Ok(Some(request));
        }
        let (first, rest) = request.split_at(1);
        self.write_all(first).await?;
        let pipe = File::from(self.stdin.as_handle().try_clone_to_owned()?);
        // It ends with the command at the latest.
        let mut reading = spawn_blocking(move || pipe.sync_all());
        let printed = tokio::select! {
            output = stdout.fill_buf() => output?.len(),
            _ = &mut reading => match timeout(Self::OUTPUT_TIMEOUT, stdout.fill_buf()).await {
                Ok(output) => output?.len(),
                Err(_) => 0,
            },
        };
        Ok((printed as u64 <= OF_ONE_BYTE).then_some(rest))
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stdin.write_all(bytes).await?;
        self.stdin.flush().await
    }
}
