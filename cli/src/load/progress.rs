//! The progress of the clients, for a bar on the terminal and for detecting a server that no longer
//! answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{latencies::nanoseconds, options::Limit};

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
    begun: Instant,
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new(limit: Limit, clients: usize) -> Self {
        let (length, template) = match limit {
            Limit::Requests(requests) => (requests, "{wide_bar} {human_pos}/{human_len} {eta:>4}"),
            Limit::Time(time) => (nanoseconds(time), "{wide_bar} {msg} {elapsed:>4}"),
        };
        let bar = ProgressBar::new(length);
        bar.set_style(ProgressStyle::with_template(template).expect("the template is right"));
        Self {
            counts: (0..clients).map(|_| Arc::default()).collect(),
            limit,
            begun: Instant::now(),
            bar,
        }
    }

    pub(crate) fn count(&self, client: usize) -> Arc<Count> {
        Arc::clone(&self.counts[client])
    }

    /// Draws the bar and returns the sum.
    pub(crate) fn show(&self) -> u64 {
        let sum = self
            .counts
            .iter()
            .map(|count| count.0.load(Ordering::Relaxed))
            .sum();
        match self.limit {
            Limit::Requests(_) => self.bar.set_position(sum),
            Limit::Time(time) => {
                self.bar.set_message(sum.to_string());
                self.bar
                    .set_position(nanoseconds(self.begun.elapsed().min(time)));
            }
        }
        sum
    }
}

impl Drop for Progress {
    /// Clears the bar, so that only the result remains.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
