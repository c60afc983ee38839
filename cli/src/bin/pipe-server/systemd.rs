//! What systemd passes to a service, and what it is told: sd_listen_fds(3), sd_notify(3),
//! sd_watchdog_enabled(3).
//!
//! The messages are written here and not with a crate, because sd-notify's block while the manager
//! does not read, and do not reach an abstract address.

use std::{
    env,
    ffi::OsStr,
    future::Future,
    io,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::Path,
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use pipe_server::Stats;
use pipe_server_cli::{exit::Failure, mutex::Mutex};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tracing::warn;

/// The variables that speak to this process alone, and not to its commands.
pub(crate) const VARIABLES: [&str; 7] = [
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// How often it is logged at most that the manager can't be told the state: it may not be reading,
/// and a watchdog is told often.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The first descriptor that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST_PASSED: u64 = 3;

/// How often the status is updated.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Takes the listening socket that was passed to this process, if there is one. `name` chooses one
/// of several.
///
/// Called once, before this process opens anything: the numbers of the descriptors say whose they
/// are.
pub(crate) fn take_socket(name: Option<&str>) -> Result<Option<OwnedFd>, Failure> {
    let wrong = || {
        Failure::new(
            "LISTEN_FDS and LISTEN_PID are not the numbers that systemd sets: start the server from a .socket \
             unit, or unset them"
                .to_owned(),
        )
    };
    if !are_passed() {
        return Err(wrong());
    }
    let passed = sd_listen_fds::get().map_err(|_| wrong())?;
    let mut passed: Vec<_> = passed
        .into_iter()
        .map(|(name, socket)| (name.unwrap_or_default(), socket.into_std()))
        .collect();
    let names: Vec<_> = passed.iter().map(|(name, _)| name.as_str()).collect();
    let place = match name {
        Some(name) => match names.iter().position(|&other| other == name) {
            Some(place) => place,
            None => {
                return Err(Failure::new(format!(
                    "no socket with --fd-name {name} was passed, but {}: name it with FileDescriptorName= in its \
                     .socket unit",
                    list(&names)
                )));
            }
        },
        None if passed.len() > 1 => {
            return Err(Failure::new(format!(
                "more than one socket was passed, {}: choose one with --fd-name{}",
                list(&names),
                match names.contains(&"") {
                    true => ", and name it with FileDescriptorName= in its .socket unit",
                    false => "",
                }
            )));
        }
        None => 0,
    };
    // The others are closed.
    Ok((place < passed.len()).then(|| passed.swap_remove(place).1))
}

/// Whether the descriptors that `LISTEN_FDS` announces are open: `sd_listen_fds` allocates for all
/// of them and then owns whatever has their numbers.
fn are_passed() -> bool {
    let open = Path::new("/proc/self/fd");
    if number("LISTEN_PID") != Some(process::id().into()) || !open.exists() {
        return true;
    }
    let count = number("LISTEN_FDS").unwrap_or(0);
    let mut announced = FIRST_PASSED..FIRST_PASSED.saturating_add(count);
    announced.all(|descriptor| open.join(descriptor.to_string()).is_symlink())
}

/// The number in a variable.
fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

fn list(names: &[&str]) -> String {
    let mut named = names.to_vec();
    named.retain(|name| !name.is_empty());
    let shown = named.join(", ");
    match (named.len(), names.len() - named.len()) {
        (0, 0) => "none".to_owned(),
        (_, 0) => shown,
        (0, unnamed) => format!("{unnamed} without a name"),
        (_, unnamed) => format!("{shown} and {unnamed} without a name"),
    }
}

/// Where the service manager listens, if this process is to report to it.
#[derive(Clone, Debug)]
pub(crate) struct Manager {
    to: Option<Arc<NotifySocket>>,
}

#[derive(Debug)]
struct NotifySocket {
    socket: UnixDatagram,
    address: SocketAddr,
    /// When it was last logged that nothing can be sent.
    warned: Mutex<Option<Instant>>,
}

impl Manager {
    /// The one that `NOTIFY_SOCKET` names.
    pub(crate) fn from_environment() -> Self {
        let Some(address) = env::var_os("NOTIFY_SOCKET") else {
            return Self { to: None };
        };
        let to = open(&address).inspect_err(
            |error| warn!(%error, ?address, "the service manager can't be told that the server is ready"),
        );
        Self {
            to: to.ok().map(Arc::new),
        }
    }

    /// Reports that clients can connect to `address`. From now on sends the server's figures as its
    /// status and, if the manager asks for it, that the server is alive; and reports when
    /// `stopping` ends. The returned task ends after that: wait for it, or the end of the runtime may
    /// come first.
    pub(crate) fn ready(
        &self,
        address: &str,
        stats: Stats,
        stopping: impl Future<Output = ()> + Send + 'static,
    ) -> Option<JoinHandle<()>> {
        self.to.as_ref()?;
        self.send(&format!("READY=1\nSTATUS=listening on {address}"));
        if let Some(time) = watchdog() {
            tokio::spawn(self.clone().report_life(time));
        }
        let manager = self.clone();
        Some(tokio::spawn(async move {
            tokio::select! {
                () = stopping => {}
                () = manager.report_status(&stats) => {}
            }
            let connected = stats.snapshot().connected;
            manager.send(&format!(
                "STOPPING=1\nSTATUS=stopping; clients: {connected}"
            ));
        }))
    }

    async fn report_status(&self, stats: &Stats) {
        let mut ticks = interval(STATUS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut last = String::new();
        loop {
            ticks.tick().await;
            let now = stats.snapshot();
            let status = format!(
                "STATUS=serving; clients: {}, requests answered: {}",
                now.connected, now.replies
            );
            if status != last {
                self.send(&status);
                last = status;
            }
        }
    }

    /// Twice in each `time`, as sd_watchdog_enabled(3) recommends, also during a shutdown. On the
    /// runtime that serves the clients: if that hangs, so does this.
    async fn report_life(self, time: Duration) {
        let mut ticks = interval((time / 2).max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.send("WATCHDOG=1");
        }
    }

    fn send(&self, state: &str) {
        let Some(to) = &self.to else { return };
        let Err(error) = to.socket.send_to_addr(state.as_bytes(), &to.address) else {
            return;
        };
        let mut warned = to.warned.lock();
        if warned.is_none_or(|time| time.elapsed() >= WARNING_INTERVAL) {
            *warned = Some(Instant::now());
            warn!(%error, state, "the service manager could not be told the state");
        }
    }
}

fn open(address: &OsStr) -> io::Result<NotifySocket> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(address)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "NOTIFY_SOCKET is neither an absolute path nor an abstract address",
            ));
        }
    };
    let socket = UnixDatagram::unbound()?;
    // The manager may not be reading.
    socket.set_nonblocking(true)?;
    Ok(NotifySocket {
        socket,
        address,
        warned: Mutex::new(None),
    })
}

/// Within which time the manager wants to hear from this process, or kills it.
fn watchdog() -> Option<Duration> {
    if number("WATCHDOG_PID").is_some_and(|id| id != u64::from(process::id())) {
        return None;
    }
    let time = number("WATCHDOG_USEC").filter(|&time| time > 0)?;
    Some(Duration::from_micros(time))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let mut lines = self.0.lock();
            lines.write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_manager_that_does_not_read_does_not_fill_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let reader = UnixDatagram::bind(&path).unwrap();
        let manager = Manager {
            to: open(path.as_os_str()).ok().map(Arc::new),
        };
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone());
        tracing::subscriber::with_default(log.finish(), || {
            for _ in 0..1000 {
                manager.send("WATCHDOG=1");
            }
            // One that reads too slowly is no other case.
            for _ in 0..1000 {
                reader.recv(&mut [0; 100]).unwrap();
                manager.send("WATCHDOG=1");
                manager.send("WATCHDOG=1");
            }
        });
        let lines = String::from_utf8(lines.0.lock().clone()).unwrap();
        assert_eq!(lines.lines().count(), 1, "{lines}");
    }
}
