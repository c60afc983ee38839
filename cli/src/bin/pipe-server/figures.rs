//! Logs the server's figures: at intervals, and on request.

use std::{future::pending, io, time::Duration};

use pipe_server::Stats;
use tokio::time::{Instant, interval_at};
use tracing::info;

/// Logs `stats` every `time`, if it is set, and at each SIGUSR1 (Linux) or, as a Windows service, at
/// each control 128, until the runtime shuts down.
pub(crate) fn log(stats: Stats, time: Option<Duration>) -> io::Result<()> {
    let mut signal = FiguresSignal::new()?;
    tokio::spawn(async move {
        let mut ticks = time.map(|time| interval_at(Instant::now() + time, time));
        loop {
            tokio::select! {
                () = signal.next() => {}
                () = async {
                    match &mut ticks {
                        Some(ticks) => _ = ticks.tick().await,
                        None => pending().await,
                    }
                } => {}
            }
            write(&stats);
        }
    });
    Ok(())
}

fn write(stats: &Stats) {
    let now = stats.snapshot();
    info!(
        accepted = now.accepted,
        refused = now.refused,
        connected = now.connected,
        waiting = now.waiting,
        requests = now.requests,
        replies = now.replies,
        bytes_received = now.bytes_received,
        bytes_sent = now.bytes_sent,
        timeouts = now.timeouts,
        panics = now.panics,
        errors = now.errors.to_string(),
        handler_time_p99 = ?now.handler_time_p99,
        handler_time_longest = ?now.handler_time_longest,
        "figures"
    );
}

#[cfg(unix)]
struct FiguresSignal(tokio::signal::unix::Signal);

#[cfg(unix)]
impl FiguresSignal {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        signal(SignalKind::user_defined1()).map(Self)
    }

    async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// Not Ctrl-Break, with which supervisors stop a program.
#[cfg(windows)]
struct FiguresSignal(Option<&'static crate::service::Service>);

#[cfg(windows)]
impl FiguresSignal {
    fn new() -> io::Result<Self> {
        Ok(Self(crate::service::current()))
    }

    async fn next(&mut self) {
        match self.0 {
            Some(service) => service.figures().await,
            None => pending().await,
        }
    }
}
