//! Standard streams that block, whatever mode they were inherited in.

use std::io::{self, Read, Write};
#[cfg(unix)]
use std::os::fd::AsFd;

use crate::exit::Failure;

/// A stream whose reads and writes block.
///
/// A parent such as Node.js may leave stdin and stdout in nonblocking mode (`O_NONBLOCK`), which
/// belongs to the open file, so that it holds for every process that has inherited it. For the
/// same reason it is not turned off here: others rely on it.
#[derive(Debug)]
pub struct Blocking<T>(pub T);

#[cfg(unix)]
impl<T: AsFd> Blocking<T> {
    /// Calls `operation` until it no longer fails because it would block.
    fn until_ready<R>(
        &mut self,
        readiness: rustix::event::PollFlags,
        mut operation: impl FnMut(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        use rustix::{
            event::{PollFd, poll},
            io::Errno,
        };

        loop {
            match operation(&mut self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            match poll(&mut [PollFd::new(&self.0, readiness)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(unix)]
impl<T: Read + AsFd> Read for Blocking<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.until_ready(rustix::event::PollFlags::IN, |stream| stream.read(buffer))
    }
}

#[cfg(unix)]
impl<T: Write + AsFd> Write for Blocking<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_ready(rustix::event::PollFlags::OUT, |stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.until_ready(rustix::event::PollFlags::OUT, Write::flush)
    }
}

/// Windows has no such mode for the handles of a process.
#[cfg(windows)]
impl<T: Read> Read for Blocking<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

#[cfg(windows)]
impl<T: Write> Write for Blocking<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes to stdout and flushes: a program may be waiting for it.
pub fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = Blocking(io::stdout().lock());
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Prints all that a program prints. A reader that has left, as `head` does, has seen enough.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    match write(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(write_failure(error)),
        _ => Ok(()),
    }
}

/// Describes why stdout can't be written to.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
pub fn write_failure(error: io::Error) -> Failure {
    Failure::new(format!("can't write to stdout: {error}"))
}

/// Lets a write beyond the limit of a file's size (`ulimit -f`) fail, as on a full disk. By
/// default SIGXFSZ ends the process.
///
/// It is caught and not ignored, so that commands start with the default. Tokio never removes a
/// handler, even after the runtime of this call is gone. If it can't be caught, the program goes on
/// without.
#[cfg(unix)]
pub(crate) fn survive_the_limit_of_files() {
    use rustix::process::Signal;
    use tokio::{
        runtime::Builder,
        signal::unix::{SignalKind, signal},
    };

    let signal = async { signal(SignalKind::from_raw(Signal::XFSZ.as_raw())) };
    if let Ok(runtime) = Builder::new_current_thread().enable_io().build() {
        _ = runtime.block_on(signal);
    }
}

/// Windows has no such limit.
#[cfg(windows)]
pub(crate) fn survive_the_limit_of_files() {}
