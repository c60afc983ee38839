//! The socket file of a server, which others can remove or replace while the pipe is served.

use std::{io, mem, sync::Arc, time::Duration};

use rustix::{
    fd::OwnedFd,
    io::{Errno, read},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::AbortHandle,
};

use super::{
    Binding,
    claim::{Claim, SocketFile},
    directory,
    listening::Listening,
};
use crate::{
    sync::Mutex,
    telemetry::{Details, Reason},
};

/// The time between two looks at the socket file. A look is one or two stat(2); inotify(7) was
/// rejected, because its instances are few, and it reports neither a file that comes back nor a
/// directory that is renamed above.
const INTERVAL: Duration = Duration::from_secs(5);

/// Looks at the socket file of a server from time to time. Dropping it closes the listening socket
/// and then releases the name.
pub(super) struct Watch {
    served: Arc<Mutex<Option<Served>>>,
    task: AbortHandle,
}

/// A pipe whose name is ours.
pub(super) struct Served {
    // Dropped before the name is released.
    pub(super) listening: Arc<Listening>,
    pub(super) claim: Claim,
    pub(super) binding: Binding,
    /// Whether it was logged that clients can't reach the pipe.
    pub(super) is_reported: bool,
}

impl Watch {
    pub(super) fn start(served: Served) -> io::Result<Self> {
        let timer = timer()?;
        let served = Arc::new(Mutex::new(Some(served)));
        let task = tokio::spawn(watch(timer, Arc::clone(&served))).abort_handle();
        Ok(Self { served, task })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
        let served = self.served.lock().take();
        drop(served);
    }
}

async fn watch(timer: AsyncFd<OwnedFd>, served: Arc<Mutex<Option<Served>>>) {
    while wait(&timer).await.is_ok() {
        let (event, telemetry) = match &mut *served.lock() {
            Some(served) => (served.check(), served.binding.telemetry.clone()),
            None => return,
        };
        // A log subscriber is user code, which may drop the listener.
        if let Err(error) = event {
            telemetry.report(Reason::SocketFile, &error, Details::default());
        }
    }
}

/// A timer of the system, because the runtime need not have one.
#[allow(
    deprecated,
    reason = "as in `Socket::register`: the descriptor stays the same until it is deregistered"
)]
fn timer() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    let interval = Timespec::try_from(INTERVAL).map_err(io::Error::other)?;
    let every = Itimerspec {
        it_interval: interval,
        it_value: interval,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
    AsyncFd::with_interest(timer, Interest::READABLE)
}

/// Waits until the timer expires.
async fn wait(timer: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut guard = timer.readable().await?;
        match read(timer, &mut [0; 8]) {
            Ok(_) => return Ok(()),
            Err(Errno::AGAIN) => guard.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Served {
    /// Creates the socket file again if it was removed.
    ///
    /// # Errors
    ///
    /// Says, once, what happened to it.
    fn check(&mut self) -> io::Result<()> {
        let path = self.claim.path.display().to_string();
        let state = self.claim.socket_file();
        let problem = match state {
            SocketFile::InPlace => {
                self.is_reported = false;
                // If it can't be renewed now, then the next time.
                _ = self.claim.renew();
                return Ok(());
            }
            SocketFile::Removed => match self.restore() {
                Ok(()) => {
                    self.is_reported = false;
                    return Err(io::Error::other(format!(
                        "the socket {path} was removed while it was served, and was created again"
                    )));
                }
                Err(error) => format!(
                    "the socket {path} was removed while it was served, and can't be created again: {error}; \
                     until it can, nobody can connect"
                ),
            },
            SocketFile::Replaced => format!(
                "the socket {path} was replaced while it was served, and nobody can connect: remove the file that \
                 is there now, so that the socket is created again, or stop this server"
            ),
        };
        match mem::replace(&mut self.is_reported, true) {
            true => Ok(()),
            false => Err(io::Error::other(problem)),
        }
    }

    /// Listens at the path again. Nobody else may have claimed it, and nothing may be there.
    fn restore(&mut self) -> io::Result<()> {
        directory::prepare(&self.binding.name, &self.claim.path)?;
        self.claim.renew()?;
        let restored = self
            .binding
            .bind(&mut self.claim)
            .and_then(|socket| self.listening.replace(socket));
        if restored.is_err() {
            self.claim.remove_socket_file();
        }
        restored
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{engine::EngineOptions, name::PipeName, telemetry::Telemetry};

    fn serve(path: &Path) -> Served {
        let name = PipeName::try_from(path).unwrap();
        let options = EngineOptions {
            buffer_size: 1,
            ..EngineOptions::default()
        };
        let binding = Binding {
            mode: 0o600,
            group: None,
            sizes: options.sizes("this system", usize::MAX).unwrap(),
            telemetry: Telemetry::new(name.clone()),
            name,
        };
        let mut claim = Claim::new(path.to_owned(), false).unwrap();
        let socket = binding.bind(&mut claim).unwrap();
        Served {
            listening: Arc::new(Listening::new(socket, true).unwrap()),
            claim,
            binding,
            is_reported: false,
        }
    }

    /// Expects one report with `part` in it, however often the file is looked at.
    fn expect_report(served: &mut Served, part: &str) {
        let error = served.check().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        served.check().unwrap();
        served.check().unwrap();
    }

    #[tokio::test]
    async fn a_socket_file_that_is_in_place_is_not_reported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let mut served = serve(&path);
        served.check().unwrap();
        let lock = directory.path().join("pipe.lock");
        fs::remove_file(&lock).unwrap();
        served.check().unwrap();
        assert!(lock.exists());
    }

    #[tokio::test]
    async fn what_is_in_the_place_of_a_socket_is_left_alone_and_reported_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let lock = directory.path().join("pipe.lock");
        let other = directory.path().join("other");
        let mut served = serve(&path);
        for _ in 0..2 {
            fs::write(&other, "other").unwrap();
            fs::rename(&other, &path).unwrap();
            expect_report(&mut served, "was replaced");
            // Once it is gone, the name is ours.
            fs::remove_file(&path).unwrap();
            expect_report(&mut served, "created again");
        }
        for file in [&path, &lock] {
            fs::remove_file(file).unwrap();
            fs::write(file, "other").unwrap();
        }
        drop(served);
        for file in [&path, &lock] {
            assert_eq!(fs::read_to_string(file).unwrap(), "other");
        }
    }

    #[tokio::test]
    async fn a_name_that_another_server_has_claimed_is_left_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let mut served = serve(&path);
        fs::remove_file(&path).unwrap();
        fs::remove_file(directory.path().join("pipe.lock")).unwrap();
        let other = Claim::new(path.clone(), false).unwrap();
        expect_report(&mut served, "can't be created again");
        assert!(!path.exists());
        drop(other);
        expect_report(&mut served, "created again");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_directory_that_others_can_write_to_by_now_gets_no_socket() {
        use std::os::unix::fs::PermissionsExt as _;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let mut served = serve(&path);
        fs::remove_file(&path).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        expect_report(&mut served, "everyone can replace files");
        assert!(!path.exists());
    }
}
