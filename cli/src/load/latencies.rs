//! How latencies are kept.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies are kept with a resolution of 16 ns and three digits, up to one minute. 32-bit counts
/// halve the memory of a client, which shares the processor's cache with its messages.
pub(crate) type Latencies = Histogram<u32>;

pub(crate) fn latencies() -> Latencies {
    let longest = Duration::from_secs(60);
    Histogram::new_with_bounds(16, nanoseconds(longest), 3).expect("the bounds make sense")
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
