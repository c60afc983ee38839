//! A rate limit for the log. Clients cause most of the lines that a server logs, and must not be
//! able to flood the log.

use std::{convert::Infallible, mem, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::{Level, error, warn};

use super::reason::Reason;
use crate::{name::PipeName, sync::Mutex};

/// The maximum number of lines per [`WINDOW`] and reason. This is enough to show what happens, and
/// to which clients.
const LINES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(1);

/// The log limit of one listener, separate for each [`Reason`].
#[derive(Debug)]
pub(super) struct LogLimit {
    pipe: PipeName,
    /// Indexed by [`Reason::index`].
    lines: Mutex<[ReasonLines; Reason::COUNT]>,
    has_suppressed: Notify,
}

/// The state of the limit for one reason.
#[derive(Clone, Copy, Debug)]
struct ReasonLines {
    window: Instant,
    logged: u32,
    /// The number of lines suppressed since the last logged one.
    suppressed: u64,
}

impl ReasonLines {
    /// Returns when to log the number of suppressed lines on a separate line: once a whole window
    /// has passed without a line.
    fn quiet_at(&self) -> Option<Instant> {
        (self.suppressed > 0).then(|| self.window + 2 * WINDOW)
    }

    fn permit(&mut self, now: Instant) -> Option<u64> {
        if now - self.window >= WINDOW {
            self.window = now;
            self.logged = 0;
        }
        if self.logged == LINES {
            self.suppressed += 1;
            return None;
        }
        self.logged += 1;
        Some(mem::take(&mut self.suppressed))
    }
}

impl LogLimit {
    pub(super) fn new(pipe: PipeName) -> Self {
        let lines = ReasonLines {
            window: Instant::now(),
            logged: 0,
            suppressed: 0,
        };
        Self {
            pipe,
            lines: Mutex::new([lines; Reason::COUNT]),
            has_suppressed: Notify::new(),
        }
    }

    /// The name of the pipe that is logged.
    pub(super) fn pipe(&self) -> &PipeName {
        &self.pipe
    }

    /// Returns the number of lines that were suppressed before this one, if it may be logged now.
    /// If not, counts it as suppressed.
    pub(super) fn permit(&self, reason: Reason) -> Option<u64> {
        let now = Instant::now();
        let permit = self.lines.lock()[reason.index()].permit(now);
        if permit.is_none() {
            // Outside the lock: a waker is user code.
            self.has_suppressed.notify_one();
        }
        permit
    }

    /// Logs the number of suppressed lines of each reason once it has been quiet. Never returns.
    pub(super) async fn run(&self) -> Infallible {
        loop {
            let next = self.next_quiet();
            match next {
                Some(next) => {
                    sleep_until(next).await;
                    let now = Instant::now();
                    self.flush_where(|lines| lines.quiet_at().is_some_and(|quiet| quiet <= now));
                }
                None => self.has_suppressed.notified().await,
            }
        }
    }

    /// Returns when the next reason becomes quiet.
    fn next_quiet(&self) -> Option<Instant> {
        let lines = self.lines.lock();
        lines.iter().filter_map(ReasonLines::quiet_at).min()
    }

    /// Logs the number of suppressed lines of each reason now.
    pub(super) fn flush(&self) {
        self.flush_where(|_| true);
    }

    fn flush_where(&self, chosen: impl Fn(&ReasonLines) -> bool) {
        let pipe = &self.pipe;
        for &reason in Reason::ALL {
            let suppressed = match &mut self.lines.lock()[reason.index()] {
                lines if chosen(lines) => mem::take(&mut lines.suppressed),
                _ => 0,
            };
            // Outside the lock: a log subscriber is user code.
            let word = reason.as_str();
            match suppressed {
                0 => {}
                _ if reason.level() == Level::ERROR => {
                    error!(pipe.name = %pipe, reason = word, suppressed, "more of the same was not logged");
                }
                _ => {
                    warn!(pipe.name = %pipe, reason = word, suppressed, "more of the same was not logged");
                }
            }
        }
    }
}

impl Drop for LogLimit {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn limit() -> LogLimit {
        LogLimit::new("limit".parse().unwrap())
    }

    /// Asks for `times` permits. Returns the number granted, and the number of suppressed lines
    /// that they report.
    fn pass(limit: &LogLimit, reason: Reason, times: u32) -> (usize, u64) {
        let passed: Vec<_> = (0..times).filter_map(|_| limit.permit(reason)).collect();
        let suppressed = passed.iter().sum();
        (passed.len(), suppressed)
    }

    #[tokio::test(start_paused = true)]
    async fn each_reason_has_its_own_lines_each_second() {
        let limit = limit();
        for _ in 0..3 {
            let (first, _) = pass(&limit, Reason::Accept, 100);
            let (second, _) = pass(&limit, Reason::Handler, 3);
            assert_eq!((first, second), (5, 3));
            advance(WINDOW).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_left_out_is_counted_once() {
        let limit = limit();
        assert_eq!(pass(&limit, Reason::Accept, 100), (5, 0));
        advance(WINDOW / 2).await;
        assert_eq!(pass(&limit, Reason::Accept, 100), (0, 0));
        advance(WINDOW / 2).await;
        assert_eq!(pass(&limit, Reason::Accept, 6), (5, 195));
        advance(WINDOW).await;
        assert_eq!(pass(&limit, Reason::Accept, 1), (1, 1));
        limit.flush();
        advance(WINDOW).await;
        assert_eq!(pass(&limit, Reason::Accept, 1), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_of_its_own_comes_only_once_it_is_quiet() {
        let limit = limit();
        assert_eq!(pass(&limit, Reason::Accept, 7), (5, 0));
        tokio::select! {
            never = limit.run() => match never {},
            () = sleep_until(Instant::now() + WINDOW) => {}
        }
        assert_eq!(pass(&limit, Reason::Accept, 7), (5, 2));
        tokio::select! {
            never = limit.run() => match never {},
            () = sleep_until(Instant::now() + 3 * WINDOW) => {}
        }
        assert_eq!(pass(&limit, Reason::Accept, 1), (1, 0));
    }
}
