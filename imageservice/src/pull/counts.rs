//! What pulls have come to: results, bytes, time by stage, for whoever watches the node.
//! Written with relaxed atomics by the pulls' tasks and the unpackers, read from any thread. Owns the numbers.
//! Must never have a number for each image or registry: there are too many.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{PullError, PullFailure};

/// What the page calls a pull that went well, and one that failed, in the order of [`PullFailure`].
const OK: &str = "ok";
const FAILURES: [&str; 7] = ["not_found", "unauthorized", "unavailable", "timeout", "invalid", "exhausted", "internal"];

/// What takes time in a pull.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    /// The reference to a digest.
    Resolve,
    /// Manifests and configuration.
    Documents,
    /// All layers, fetched and unpacked at once.
    Layers,
    /// Into the store.
    Commit,
}

const STAGES: [&str; 4] = ["resolve", "documents", "layers", "commit"];

/// The pulls of this process.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(super) bytes: AtomicU64,
    under_way: AtomicUsize,
    ok: AtomicU64,
    failed: [AtomicU64; FAILURES.len()],
    /// Count, nanoseconds.
    stages: [(AtomicU64, AtomicU64); STAGES.len()],
}

/// The numbers of one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PullCounts {
    /// Compressed bytes of layers that came from registries.
    pub bytes: u64,
    /// Pulls that have not ended.
    pub under_way: usize,
    /// Pulls that ended, by result: `ok`, or a word for each [`PullFailure`].
    pub results: Vec<(&'static str, u64)>,
    /// Time by stage.
    pub stages: Vec<StageTime>,
}

/// What one stage of all pulls took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageTime {
    /// `resolve`, `documents`, `layers` or `commit`.
    pub name: &'static str,
    /// How many pulls went through it.
    pub count: u64,
    /// How long all of them took.
    pub sum: Duration,
}

impl Counts {
    /// Counts one pull from its beginning to its end.
    pub(super) async fn pull<T>(&self, work: impl Future<Output = Result<T, PullError>>) -> Result<T, PullError> {
        let _under_way = UnderWay::new(&self.under_way);
        let result = work.await;
        let count = match &result {
            Ok(_) => Some(&self.ok),
            Err(error) => self.failed.get(place(error.kind())),
        };
        if let Some(count) = count {
            count.fetch_add(1, Relaxed);
        }
        result
    }

    /// Counts one stage, however it ends.
    pub(super) async fn stage<T>(&self, stage: Stage, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let done = work.await;
        if let Some((count, nanos)) = self.stages.get(stage as usize) {
            count.fetch_add(1, Relaxed);
            nanos.fetch_add(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX), Relaxed);
        }
        done
    }

    pub(crate) fn read(&self) -> PullCounts {
        let failed = FAILURES.iter().zip(&self.failed).map(|(name, count)| (*name, count.load(Relaxed)));
        let stages = STAGES.iter().zip(&self.stages).map(|(name, (count, nanos))| StageTime {
            name,
            count: count.load(Relaxed),
            sum: Duration::from_nanos(nanos.load(Relaxed)),
        });
        PullCounts {
            bytes: self.bytes.load(Relaxed),
            under_way: self.under_way.load(Relaxed),
            results: [(OK, self.ok.load(Relaxed))].into_iter().chain(failed).collect(),
            stages: stages.collect(),
        }
    }
}

/// In [`FAILURES`].
fn place(failure: PullFailure) -> usize {
    match failure {
        PullFailure::NotFound => 0,
        PullFailure::Unauthorized => 1,
        PullFailure::Unavailable => 2,
        PullFailure::Timeout => 3,
        PullFailure::Invalid => 4,
        PullFailure::Exhausted => 5,
        PullFailure::Internal => 6,
    }
}

/// One pull; also when its task is ended from outside.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
