//! The progress of the clients, for a bar on the terminal and for detecting a server that no longer
//! answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{latencies::nanoseconds, options::Limit, report::grouped};

/// What one client has done so far. It has cache lines of its own, so that counting does not slow
/// down its neighbours.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Counts one more. Called only by its own client.
    pub(crate) fn add(&self) {
        let count = self.0.load(Ordering::Relaxed);
        self.0.store(count + 1, Ordering::Relaxed);
    }

    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// The counts of all clients, and a bar on stderr if that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    counts: Vec<Arc<Count>>,
    limit: Limit,
    /// What is counted, in the plural.
    unit: &'static str,
    /// When counting began, and again when the warm-up ended.
    begun: Instant,
    /// The sum that was shown last.
    shown: u64,
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new(limit: Limit, unit: &'static str, clients: usize) -> Self {
        let (length, template) = match limit {
            Limit::Requests(requests) => (requests, "{wide_bar} {msg} {eta:>4}"),
            Limit::Time(time) => (nanoseconds(time), "{wide_bar} {msg} {elapsed:>4}"),
        };
        let bar = ProgressBar::new(length);
        bar.set_style(ProgressStyle::with_template(template).expect("the template is right"));
        Self {
            counts: (0..clients).map(|_| Arc::default()).collect(),
            limit,
            unit,
            begun: Instant::now(),
            shown: 0,
            bar,
        }
    }

    pub(crate) fn count(&self, client: usize) -> Arc<Count> {
        Arc::clone(&self.counts[client])
    }

    /// Draws the bar and returns the sum.
    pub(crate) fn show(&mut self) -> u64 {
        let sum: u64 = self
            .counts
            .iter()
            .map(|count| count.0.load(Ordering::Relaxed))
            .sum();
        if sum < self.shown {
            self.begun = Instant::now();
        }
        self.shown = sum;
        let elapsed = self.begun.elapsed();
        self.bar.set_message(self.message(sum, elapsed));
        self.bar.set_position(match self.limit {
            Limit::Requests(_) => sum,
            Limit::Time(time) => nanoseconds(elapsed.min(time)),
        });
        sum
    }

    fn message(&self, sum: u64, elapsed: Duration) -> String {
        let unit = self.unit;
        let of = match self.limit {
            Limit::Requests(requests) => format!("/{}", grouped(requests)),
            Limit::Time(_) => String::new(),
        };
        // At the very beginning, a few messages would make a huge rate.
        let rate = sum as f64 / elapsed.as_secs_f64().max(0.1);
        let rate = grouped(rate.round() as u64);
        format!("{}{of} {unit}, {rate} {unit}/s", grouped(sum))
    }
}

impl Drop for Progress {
    /// Clears the bar, so that only the result remains.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
