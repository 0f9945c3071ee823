//! The three kinds of number: what only grows, what goes up and down, and how long things take.
//! Written from any thread with relaxed atomics, read by the page. Made in `const`, so they are plain statics without registration.
//! Owns its own cells. Must never lock or allocate.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Only grows; starts at nought with the daemon.
#[derive(Debug)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub(crate) fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Goes up and down.
#[derive(Debug)]
pub(crate) struct Gauge(AtomicI64);

impl Gauge {
    pub(crate) const fn new() -> Self {
        Self(AtomicI64::new(0))
    }

    /// One more until the value that this returns is dropped.
    #[must_use = "the gauge goes down again when this is dropped"]
    pub(crate) fn hold(&'static self) -> Held {
        self.0.fetch_add(1, Relaxed);
        Held(self)
    }

    pub(crate) fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// One unit of a gauge.
#[derive(Debug)]
pub(crate) struct Held(&'static Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// Upper bounds of a histogram's buckets, microseconds: from a list out of memory to a pull of minutes.
pub(super) const BOUNDS_US: [u64; 18] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

/// How long things take, in buckets.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    nanos: AtomicU64,
}

/// A histogram as it was at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// Not cumulative; the last one is above every bound.
    pub(super) buckets: [u64; BOUNDS_US.len() + 1],
    pub(super) sum: Duration,
}

impl Histogram {
    pub(crate) const fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BOUNDS_US.len() + 1], nanos: AtomicU64::new(0) }
    }

    /// One took so long.
    pub(crate) fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // A bound belongs to its own bucket: `le` is "at most". Nanoseconds below a microsecond are above a whole bound.
        let above = u64::from(!took.subsec_nanos().is_multiple_of(1000));
        let at = BOUNDS_US.partition_point(|bound| *bound < micros.saturating_add(above));
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Relaxed);
        }
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// As long as has passed since then.
    pub(crate) fn since(&self, begun: Instant) {
        self.observe(begun.elapsed());
    }

    pub(super) fn read(&self) -> Reading {
        Reading {
            buckets: std::array::from_fn(|at| self.buckets.get(at).map_or(0, |bucket| bucket.load(Relaxed))),
            sum: Duration::from_nanos(self.nanos.load(Relaxed)),
        }
    }
}

impl Reading {
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::new();
        histogram.observe(Duration::ZERO);
        histogram.observe(Duration::from_micros(100));
        histogram.observe(Duration::from_nanos(100_001));
        histogram.observe(Duration::from_secs(301));
        let reading = histogram.read();
        assert_eq!((reading.buckets[0], reading.buckets[1], reading.buckets[BOUNDS_US.len()]), (2, 1, 1));
        assert_eq!(reading.count(), 4);
        assert_eq!(reading.sum, Duration::from_nanos(301_000_200_001));
    }

    #[test]
    fn a_gauge_goes_down_with_its_holder() {
        static GAUGE: Gauge = Gauge::new();
        let held = (GAUGE.hold(), GAUGE.hold());
        assert_eq!(GAUGE.get(), 2);
        drop(held.0);
        assert_eq!(GAUGE.get(), 1);
        drop(held.1);
        assert_eq!(GAUGE.get(), 0);
    }
}
