//! The signals that end the server: the first one drains, the second one does not wait.

use std::{
    future::{Future, pending},
    io,
};

use tokio::sync::watch;
use tracing::info;

/// The terminal was closed.
const HANGUP: &str = "SIGHUP";

/// The service manager asks for it, and not for a second time.
const SERVICE_STOP: &str = "the service is stopped";

/// Counts the signals from [`install`](Self::install) on.
#[derive(Debug)]
pub(crate) struct Signals {
    count: watch::Receiver<u32>,
}

impl Signals {
    /// Takes over the signals from the system, whose way is to end the process.
    pub(crate) fn install() -> io::Result<Self> {
        let mut source = Source::new()?;
        let (sender, count) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let signal = source.next().await;
                match *sender.borrow() {
                    // A terminal that is closed may send it twice: the system and the shell each
                    // do.
                    1.. if signal == HANGUP => continue,
                    0 if signal == SERVICE_STOP => {
                        info!(signal, "stopping; running requests may finish");
                    }
                    0 => info!(
                        signal,
                        "stopping; running requests may finish, a second signal cuts them off"
                    ),
                    _ => info!(signal, "stopping at once"),
                }
                sender.send_modify(|count| *count += 1);
            }
        });
        Ok(Self { count })
    }

    /// Ends with the first signal.
    pub(crate) fn first(&self) -> impl Future<Output = ()> + Send + use<> {
        self.reach(1)
    }

    /// Ends with the second signal.
    pub(crate) fn second(&self) -> impl Future<Output = ()> + Send + use<> {
        self.reach(2)
    }

    fn reach(&self, number: u32) -> impl Future<Output = ()> + Send + use<> {
        let mut count = self.count.clone();
        async move {
            // The sender goes only when the runtime does; that is no signal.
            if count.wait_for(|&count| count >= number).await.is_err() {
                pending::<()>().await;
            }
        }
    }
}

#[cfg(unix)]
struct Source {
    /// `None` if it stays ignored, as `hangup`.
    interrupt: Option<tokio::signal::unix::Signal>,
    terminate: tokio::signal::unix::Signal,
    hangup: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Source {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        let unless = |ignored, kind| match ignored {
            true => Ok(None),
            false => signal(kind).map(Some),
        };
        let (interrupt, hangup) = (SignalKind::interrupt(), SignalKind::hangup());
        Ok(Self {
            interrupt: unless(is_ignored(interrupt).unwrap_or(false), interrupt)?,
            terminate: signal(SignalKind::terminate())?,
            hangup: unless(is_ignored(hangup).unwrap_or(true), hangup)?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(_) = async { self.interrupt.as_mut()?.recv().await } => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            Some(_) = async { self.hangup.as_mut()?.recv().await } => HANGUP,
        }
    }
}

/// Whether this program was started with the signal ignored: SIGHUP by nohup, so that it outlives
/// its terminal, and SIGINT by a shell without job control that runs it in the background.
///
/// sigaction(2) has no safe interface, but proc(5) has the same. `None` where that is not mounted.
#[cfg(unix)]
fn is_ignored(signal: tokio::signal::unix::SignalKind) -> Option<bool> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())?;
    // The lowest bit is that of signal 1.
    Some(ignored & (1 << (signal.as_raw_value() - 1)) != 0)
}

#[cfg(windows)]
enum Source {
    Console {
        ctrl_c: tokio::signal::windows::CtrlC,
        /// What a supervisor sends, because it reaches one process group. Ctrl-C does not.
        ctrl_break: tokio::signal::windows::CtrlBreak,
        ctrl_close: tokio::signal::windows::CtrlClose,
        ctrl_shutdown: tokio::signal::windows::CtrlShutdown,
    },
    /// Nothing else: the events of a console reach a service too, when the system shuts down
    /// (*HandlerRoutine callback function*), and would be a second signal.
    Service(&'static crate::service::Service),
}

#[cfg(windows)]
impl Source {
    fn new() -> io::Result<Self> {
        use tokio::signal::windows;

        if let Some(service) = crate::service::current() {
            return Ok(Self::Service(service));
        }
        Ok(Self::Console {
            ctrl_c: windows::ctrl_c()?,
            ctrl_break: windows::ctrl_break()?,
            ctrl_close: windows::ctrl_close()?,
            ctrl_shutdown: windows::ctrl_shutdown()?,
        })
    }

    async fn next(&mut self) -> &'static str {
        match self {
            Self::Console {
                ctrl_c,
                ctrl_break,
                ctrl_close,
                ctrl_shutdown,
            } => tokio::select! {
                _ = ctrl_c.recv() => "Ctrl-C",
                _ = ctrl_break.recv() => "Ctrl-Break",
                _ = ctrl_close.recv() => "the console was closed",
                _ = ctrl_shutdown.recv() => "the system shuts down",
            },
            Self::Service(service) => {
                service.stop().await;
                SERVICE_STOP
            }
        }
    }
}
