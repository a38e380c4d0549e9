//! How long packets were really held: the receipt of a delay.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Each power of two is cut in this many parts, so that a bucket is at most 1/16 wide.
const PARTS: u64 = 16;
const PARTS_LOG2: u32 = PARTS.ilog2();
/// Up to 2^40 ns, which is 18 minutes.
const BUCKETS: usize = (40 * PARTS) as usize;

/// A histogram that one thread fills and others read.
#[derive(Debug)]
pub(super) struct Recorder {
    /// Made with the first delay: most rules of most hosts hold nothing.
    buckets: OnceLock<Box<[AtomicU64]>>,
    sum_ns: AtomicU64,
    min_ns: AtomicU64,
    max_ns: AtomicU64,
}

/// The delays that were measured, from the program that took the packet to the end of the `write` that sent it on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DelayHistogram {
    buckets: Vec<u64>,
    count: u64,
    sum_ns: u64,
    min_ns: u64,
    max_ns: u64,
}

fn bucket(ns: u64) -> usize {
    if ns < PARTS {
        return ns as usize;
    }
    let log2 = ns.ilog2();
    let part = (ns >> (log2 - PARTS_LOG2)) - PARTS;
    ((u64::from(log2 - PARTS_LOG2 + 1) * PARTS + part) as usize).min(BUCKETS - 1)
}

/// The least value of a bucket.
fn floor_ns(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < PARTS {
        return bucket;
    }
    let shift = bucket / PARTS - 1;
    (PARTS + bucket % PARTS) << shift
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self {
            buckets: OnceLock::new(),
            sum_ns: AtomicU64::new(0),
            min_ns: AtomicU64::new(u64::MAX),
            max_ns: AtomicU64::new(0),
        }
    }

    pub(super) fn record(&self, ns: u64) {
        let buckets = self.buckets.get_or_init(|| (0..BUCKETS).map(|_| AtomicU64::new(0)).collect());
        buckets[bucket(ns)].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(ns, Relaxed);
        self.min_ns.fetch_min(ns, Relaxed);
        self.max_ns.fetch_max(ns, Relaxed);
    }

    pub(super) fn snapshot(&self) -> DelayHistogram {
        let buckets: Vec<u64> = self.buckets.get().into_iter().flatten().map(|bucket| bucket.load(Relaxed)).collect();
        let count = buckets.iter().sum();
        if count == 0 {
            return DelayHistogram::default();
        }
        DelayHistogram {
            buckets,
            count,
            sum_ns: self.sum_ns.load(Relaxed),
            min_ns: self.min_ns.load(Relaxed),
            max_ns: self.max_ns.load(Relaxed),
        }
    }
}

impl DelayHistogram {
    /// Packets measured.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Mean delay.
    pub fn mean(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_nanos(self.sum_ns / self.count))
    }

    /// Shortest delay.
    pub fn min(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_nanos(self.min_ns))
    }

    /// Longest delay.
    pub fn max(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_nanos(self.max_ns))
    }

    /// The quantile `q` (0 to 1), at most 1/32 off.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = ((self.count as f64 * q).ceil() as u64).clamp(1, self.count);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                let middle = floor_ns(index).midpoint(floor_ns(index + 1));
                return Some(Duration::from_nanos(middle.clamp(self.min_ns, self.max_ns)));
            }
        }
        self.max()
    }

    /// Counts by power of two: entry `i` has the delays of at least 2^i and less than 2^(i+1) nanoseconds.
    pub fn by_power_of_two(&self) -> Vec<u64> {
        let mut powers = vec![0; u64::BITS as usize];
        for (index, count) in self.buckets.iter().enumerate() {
            let floor = floor_ns(index).max(1);
            powers[floor.ilog2() as usize] += count;
        }
        powers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_starts_where_the_one_before_ends() {
        for index in 1..BUCKETS - 1 {
            let floor = floor_ns(index);
            assert_eq!(bucket(floor), index);
            assert_eq!(bucket(floor - 1), index - 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_within_a_32nd() {
        let recorder = Recorder::new();
        for ms in 1..=1000u64 {
            recorder.record(ms * 1_000_000);
        }
        let delays = recorder.snapshot();
        assert_eq!(delays.count(), 1000);
        for (q, exact_ms) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0)] {
            let got_ms = delays.quantile(q).unwrap().as_secs_f64() * 1e3;
            assert!((got_ms / exact_ms - 1.0).abs() < 1.0 / 32.0, "{q}: {got_ms} for {exact_ms}");
        }
        assert_eq!(delays.min(), Some(Duration::from_millis(1)));
        assert_eq!(delays.max(), Some(Duration::from_secs(1)));
        assert_eq!(delays.mean(), Some(Duration::from_nanos(500_500_000)));
        assert_eq!(delays.by_power_of_two().iter().sum::<u64>(), 1000);
    }

    #[test]
    fn nothing_measured_has_no_quantile() {
        let recorder = Recorder::new();
        let delays = recorder.snapshot();
        assert_eq!(delays, DelayHistogram::default());
        assert_eq!(delays.quantile(0.5), None);
    }
}
