//! A lock-free histogram of fixed size for the times that handlers take.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The number of buckets per power of two. Numbers in one bucket differ by less than one eighth.
const DIVISIONS: usize = 1 << DIVISION_BITS;
const DIVISION_BITS: usize = 3;

/// Enough buckets for every `u64`, of about 4 KB in total.
const BUCKETS: usize = (64 - DIVISION_BITS + 1) * DIVISIONS;

/// A histogram of times in nanoseconds.
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    longest: AtomicU64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            longest: AtomicU64::new(0),
        }
    }

    pub(super) fn record(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanoseconds)].fetch_add(1, Relaxed);
        // A load usually suffices, and does not invalidate other cores' cache lines.
        if nanoseconds > self.longest.load(Relaxed) {
            self.longest.fetch_max(nanoseconds, Relaxed);
        }
    }
}

/// The sum of several histograms.
pub(super) struct Times {
    counts: [u64; BUCKETS],
    longest: u64,
}

impl Times {
    pub(super) fn of<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> Self {
        let mut times = Self {
            counts: [0; BUCKETS],
            longest: 0,
        };
        for histogram in histograms {
            times.longest = times.longest.max(histogram.longest.load(Relaxed));
            for (count, bucket) in times.counts.iter_mut().zip(&histogram.buckets) {
                *count += bucket.load(Relaxed);
            }
        }
        times
    }

    pub(super) fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest)
    }

    /// Returns the upper end of the bucket of this percentile, or the longest time if that is less.
    /// Returns 0 if no times were recorded.
    pub(super) fn percentile(&self, percent: u64) -> Duration {
        let total: u64 = self.counts.iter().sum();
        let rank = (u128::from(total) * u128::from(percent)).div_ceil(100);
        let mut seen = 0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            seen += u128::from(count);
            if count > 0 && seen >= rank {
                return Duration::from_nanos(last_of(bucket)).min(self.longest());
            }
        }
        Duration::ZERO
    }
}

/// Returns the bucket of a number. It is determined by the four leading bits of the number and the
/// count of bits that follow.
fn bucket_of(number: u64) -> usize {
    let Some(exponent) = number.checked_ilog2() else {
        return 0;
    };
    let shift = (exponent as usize).saturating_sub(DIVISION_BITS);
    shift * DIVISIONS + (number >> shift) as usize
}

/// Returns the largest number in a bucket.
fn last_of(bucket: usize) -> u64 {
    let shift = (bucket / DIVISIONS).saturating_sub(1);
    let digits = (bucket - shift * DIVISIONS) as u64;
    (digits << shift) | ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        assert_eq!(bucket_of(0), 0);
        for bucket in 0..BUCKETS {
            let last = last_of(bucket);
            assert_eq!(bucket_of(last), bucket);
            match last.checked_add(1) {
                Some(next) => assert_eq!(bucket_of(next), bucket + 1),
                None => assert_eq!(bucket, BUCKETS - 1),
            }
        }
    }

    #[test]
    fn a_percentile_is_rounded_up_by_less_than_an_eighth() {
        for number in [1, 7, 8, 9, 1000, 12_345, 1 << 40, u64::MAX / 9] {
            let histogram = Histogram::new();
            for _ in 0..99 {
                histogram.record(Duration::from_nanos(number));
            }
            histogram.record(Duration::from_nanos(u64::MAX));
            let times = Times::of([&histogram, &Histogram::new()].into_iter());
            let p99 = times.percentile(99).as_nanos() as u64;
            assert!(
                number <= p99 && p99 - number < number.div_ceil(8),
                "{number}: {p99}"
            );
            assert_eq!(times.longest(), Duration::from_nanos(u64::MAX));
        }
    }

    #[test]
    fn without_times_everything_is_zero() {
        let times = Times::of([].into_iter());
        assert_eq!(times.percentile(99), Duration::ZERO);
        assert_eq!(times.longest(), Duration::ZERO);
    }
}
