//! Delays between retries.

use std::time::Duration;

/// A delay that doubles with each consecutive failure, from `shortest` to `longest`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    shortest: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) const fn new(shortest: Duration, longest: Duration) -> Self {
        Self {
            shortest,
            longest,
            failures: 0,
        }
    }

    /// Returns the delay after one more failure.
    pub(crate) fn next_delay(&mut self) -> Duration {
        // Larger shifts could overflow, and no caller needs them: the delay is at `longest` by
        // then.
        let delay = self.shortest.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        delay.min(self.longest)
    }

    /// Like [`next_delay`](Self::next_delay), but shortened by up to half at random, so that the
    /// clients of a restarted server do not all return at the same time.
    pub(crate) fn next_jittered_delay(&mut self) -> Duration {
        self.next_delay().mul_f64(1.0 - fastrand::f64() / 2.0)
    }

    /// Resets the delay after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A backoff from 5 ms to 1 s.
impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(5), Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_the_longest_until_a_success() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..40).map(|_| backoff.next_delay().as_millis()).collect();
        assert_eq!(delays[..9], [5, 10, 20, 40, 80, 160, 320, 640, 1000]);
        assert!(delays[9..].iter().all(|&delay| delay == 1000));
        backoff.reset();
        assert_eq!(backoff.next_delay().as_millis(), 5);
    }

    #[test]
    fn jitter_shortens_a_delay_by_half_at_most() {
        for _ in 0..1000 {
            let delay = Backoff::default().next_jittered_delay().as_secs_f64();
            assert!((0.0025..=0.005).contains(&delay), "{delay}");
        }
    }
}
