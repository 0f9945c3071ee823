//! The reader of one cgroup: open files kept while somebody asks, the last reading, and what the CPU rate is counted from.
//! Used from the blocking pool; nobody waits for a reading that another thread is at: the last one is given instead.
//! Owns the open files, within the budget of the whole daemon. Must never be locked by anything that answers a list of views.

use std::{
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use keelson_shim::cgroup::{self, CgroupError, Depth, Handle, StatsReader};
use rustix::{io::Errno, process::Resource};

use super::Usage;
use crate::engine::shared::now;

/// Readings closer together than this give no rate of their own.
const RATE_OVER: Duration = Duration::from_millis(100);
/// Files that nobody asked for so long are closed: each costs the kernel about 5 KiB.
const IDLE: Duration = Duration::from_secs(60);
/// The part of the daemon's descriptors that statistics may hold, and the most of it.
const SHARE: u64 = 4;
const MOST: usize = 16_384;

/// How many descriptors all slots together may keep open.
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    held: AtomicUsize,
}

impl Budget {
    /// From the limit of this process.
    pub(crate) fn of_this_process() -> Self {
        let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self::new(usize::try_from(limit / SHARE).unwrap_or(MOST).min(MOST))
    }

    pub(crate) fn new(most: usize) -> Self {
        Self { most, held: AtomicUsize::new(0) }
    }

    fn take(&self, count: usize) -> bool {
        let within = |held: usize| held.checked_add(count).filter(|held| *held <= self.most);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok()
    }

    fn give(&self, count: usize) {
        self.held.fetch_sub(count, Ordering::Relaxed);
    }

    /// Descriptors kept open now.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// Open files, counted as long as they are.
#[derive(Debug)]
struct Kept {
    reader: StatsReader,
    budget: Arc<Budget>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.budget.give(self.reader.held());
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Slot(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    kept: Option<Kept>,
    asked: Option<Instant>,
    cpu: Option<Rate>,
    last: Option<Usage>,
}

/// CPU time at an instant, and the last rate.
#[derive(Debug, Clone, Copy)]
struct Rate {
    at: Instant,
    cpu_ns: u64,
    nano_cores: Option<u64>,
}

impl Slot {
    /// What the cgroup uses now; none when it is not there. `open` finds it where no files are open.
    pub(crate) fn read(
        &self,
        budget: &Arc<Budget>,
        buffer: &mut Vec<u8>,
        open: impl Fn() -> Result<Handle, CgroupError>,
    ) -> Option<Usage> {
        let mut inner = match self.0.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(inner)) => inner.into_inner(),
            // Another thread reads it at this moment, or is stuck at it.
            Err(TryLockError::WouldBlock) => return None,
        };
        inner.asked = Some(Instant::now());
        if let Some(stats) = inner.kept.as_ref().and_then(|kept| kept.reader.read(buffer).ok()) {
            return Some(inner.take(&stats));
        }
        // Never open, or gone, or made anew under the same name.
        inner.kept = None;
        let reader = open().and_then(|handle| handle.stats_reader(Depth::Usage)).ok()?;
        let stats = match reader.read(buffer) {
            Ok(stats) => stats,
            Err(error) => {
                if !is_gone(&error) {
                    tracing::debug!(%error, "read cgroup");
                }
                return None;
            }
        };
        if budget.take(reader.held()) {
            inner.kept = Some(Kept { reader, budget: Arc::clone(budget) });
        }
        Some(inner.take(&stats))
    }

    /// What somebody else than a cgroup tells is used now; none when nobody does, or another thread asks at this moment.
    pub(crate) fn told(&self, ask: impl FnOnce() -> Option<cgroup::Stats>) -> Option<Usage> {
        let mut inner = self.0.try_lock().ok()?;
        ask().map(|stats| inner.take(&stats))
    }

    /// The last reading, whenever that was.
    pub(crate) fn last(&self) -> Option<Usage> {
        self.0.try_lock().ok()?.last
    }

    /// Closes the files where nobody has asked lately.
    pub(crate) fn rest(&self) {
        let Ok(mut inner) = self.0.try_lock() else { return };
        if inner.asked.is_none_or(|asked| asked.elapsed() > IDLE) {
            inner.kept = None;
        }
    }

    /// Closes the files: the cgroup ends.
    pub(crate) fn close(&self) {
        if let Ok(mut inner) = self.0.try_lock() {
            inner.kept = None;
        }
    }
}

fn is_gone(error: &CgroupError) -> bool {
    matches!(error, CgroupError::Read { source: Errno::NODEV | Errno::NOENT, .. })
}

impl Inner {
    fn take(&mut self, stats: &cgroup::Stats) -> Usage {
        let usage = Usage { cpu_nano_cores: self.rate(stats.cpu_usage_ns), ..usage_of(stats) };
        self.last = Some(usage);
        usage
    }

    /// CPU time per second since the last reading that lies long enough back; the last rate until then.
    fn rate(&mut self, cpu_ns: u64) -> Option<u64> {
        let at = Instant::now();
        let nano_cores = match self.cpu {
            Some(last) => {
                let elapsed = at.duration_since(last.at);
                if elapsed < RATE_OVER {
                    return last.nano_cores;
                }
                let rate = u128::from(cpu_ns.saturating_sub(last.cpu_ns)) * 1_000_000_000 / elapsed.as_nanos().max(1);
                Some(u64::try_from(rate).unwrap_or(u64::MAX))
            }
            None => None,
        };
        self.cpu = Some(Rate { at, cpu_ns, nano_cores });
        nano_cores
    }
}

/// The same in the engine's words, without a rate.
pub(crate) fn usage_of(read: &cgroup::Stats) -> Usage {
    let swap = read.swap.as_ref();
    Usage {
        timestamp: now(),
        cpu_ns: read.cpu_usage_ns,
        cpu_nano_cores: None,
        memory_usage: read.memory.usage,
        memory_working_set: read.memory.working_set,
        memory_available: read.memory.available(),
        memory_rss: read.memory.rss,
        page_faults: read.memory.page_faults,
        major_page_faults: read.memory.major_page_faults,
        swap_usage: swap.map(|swap| swap.usage),
        swap_available: swap.and_then(|swap| Some(swap.limit?.saturating_sub(swap.usage))),
        tasks: read.processes,
        cpu_pressure: read.cpu_pressure,
        memory_pressure: read.memory_pressure,
        io_pressure: read.io_pressure,
    }
}

#[cfg(test)]
mod tests {
    use keelson_shim::{cgroup::Location, spec::Resources};

    use super::*;

    /// A cgroup that is removed with the test.
    struct Own(Handle);

    impl Own {
        fn new(name: &str) -> Self {
            let path = format!("/kt-slot-{name}-{}", std::process::id());
            Self(Handle::create(&Location::Path(&path), &Resources::default()).unwrap())
        }
    }

    impl Drop for Own {
        fn drop(&mut self) {
            let _ = self.0.remove();
        }
    }

    #[test]
    fn privileged_files_are_kept_within_the_budget_and_given_back() {
        let own = Own::new("budget");
        let (one, two) = (Slot::default(), Slot::default());
        let budget = Arc::new(Budget::new(15));
        let mut buffer = Vec::new();
        let read = |slot: &Slot, buffer: &mut Vec<u8>| slot.read(&budget, buffer, || Ok(own.0.clone()));
        assert!(read(&one, &mut buffer).is_some());
        let held = budget.held();
        assert!((4..=15).contains(&held), "{held}");
        // Beyond the budget it is read all the same.
        assert!(read(&two, &mut buffer).is_some());
        assert_eq!(budget.held(), held);
        // Asked a moment ago: kept.
        one.rest();
        assert_eq!(budget.held(), held);
        drop(one);
        assert_eq!(budget.held(), 0);
        assert!(read(&two, &mut buffer).is_some());
        two.close();
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn privileged_a_cgroup_that_goes_and_comes_again_is_read_anew() {
        let slot = Slot::default();
        let budget = Arc::new(Budget::new(100));
        let mut buffer = Vec::new();
        let own = Own::new("again");
        let handle = own.0.clone();
        let mut read = || slot.read(&budget, &mut buffer, || Ok(handle.clone()));
        assert!(read().is_some());
        drop(own);
        assert_eq!(read(), None);
        assert_eq!(budget.held(), 0);
        assert!(slot.last().is_some());
        let _own = Own::new("again");
        assert!(read().is_some());
    }

    #[test]
    fn a_rate_is_counted_over_a_stretch_that_is_long_enough() {
        let mut inner = Inner::default();
        assert_eq!(inner.rate(1_000), None);
        // At once again: no rate of so short a stretch.
        assert_eq!(inner.rate(900_000_000), None);
        let back = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        inner.cpu = Some(Rate { at: back, cpu_ns: 0, nano_cores: None });
        let rate = inner.rate(1_000_000_000).unwrap();
        assert!((400_000_000..=500_000_000).contains(&rate), "{rate}");
        assert_eq!(inner.rate(2_000_000_000), Some(rate));
    }

    /// Prints what one container costs; says nothing about what is fast enough.
    #[test]
    fn privileged_cost_of_a_reading_is_printed() {
        let own = Own::new("cost");
        let budget = Arc::new(Budget::new(100));
        let mut buffer = Vec::new();
        let turns = 2_000;
        for (what, most) in [("files kept open", 100), ("opened each time", 0)] {
            let (slot, budget) = (Slot::default(), Arc::new(Budget::new(most)));
            let began = Instant::now();
            for _ in 0..turns {
                assert!(slot.read(&budget, &mut buffer, || Ok(own.0.clone())).is_some());
            }
            eprintln!("one cgroup, {what}: {:.1} us", began.elapsed().as_secs_f64() * 1e6 / f64::from(turns));
        }
        let began = Instant::now();
        for _ in 0..turns {
            own.0.stats().unwrap();
        }
        eprintln!("one cgroup, all numbers: {:.1} us", began.elapsed().as_secs_f64() * 1e6 / f64::from(turns));
        drop(budget);
    }
}
