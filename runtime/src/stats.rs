//! What a container uses: read from its cgroup and its writable layer when asked, never collected on a clock.
//! Runs on the blocking pool of the daemon.
//! Owns nothing. Must never touch a path of the container's own filesystem.

use std::{path::PathBuf, time::Duration};

use keelson_api::ContainerId;
use keelson_imageservice::SnapshotKey;
use keelson_shim::cgroup;

use crate::{
    container::release::handle,
    engine::{
        shared::{Shared, now},
        table::ContainerEntry,
    },
    oci::cgroup_path,
    sandbox::parent,
};

/// Readings closer together than this give no rate of their own.
const RATE_OVER: Duration = Duration::from_millis(100);

/// Use of a filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FsUse {
    /// Directory on the filesystem in question.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
    /// When it was read, nanoseconds since the epoch.
    pub timestamp: i64,
}

/// Pressure of one kind: share of time lost, percent over three windows, and total.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PressureLine {
    /// Over 10 s.
    pub avg10: f64,
    /// Over 60 s.
    pub avg60: f64,
    /// Over 300 s.
    pub avg300: f64,
    /// Nanoseconds in all.
    pub total: u64,
}

/// Pressure stall information of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pressure {
    /// Some task waited.
    pub some: PressureLine,
    /// All tasks waited.
    pub full: PressureLine,
}

/// What a container uses now; an absent value is one the host's cgroups do not tell.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ContainerStats {
    /// When it was read, nanoseconds since the epoch.
    pub timestamp: i64,
    /// CPU time since the start, nanoseconds.
    pub cpu_usage_ns: Option<u64>,
    /// Rate of the above between the last two readings at least 100 ms apart, nanoseconds per second.
    pub cpu_nano_cores: Option<u64>,
    /// Memory in use, page cache included, bytes.
    pub memory_usage: Option<u64>,
    /// The same without what could be dropped at once.
    pub memory_working_set: Option<u64>,
    /// Limit minus working set, where there is a limit.
    pub memory_available: Option<u64>,
    /// Anonymous memory.
    pub memory_rss: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that waited for I/O.
    pub major_page_faults: Option<u64>,
    /// Swap in use, bytes.
    pub swap_usage: Option<u64>,
    /// Swap limit minus use.
    pub swap_available: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
    /// CPU pressure.
    pub cpu_pressure: Option<Pressure>,
    /// Memory pressure.
    pub memory_pressure: Option<Pressure>,
    /// I/O pressure.
    pub io_pressure: Option<Pressure>,
    /// The writable layer.
    pub writable_layer: Option<FsUse>,
}

/// What each of these containers uses now, in their order; those that are not there are left out.
pub(crate) fn read_all(shared: &Shared, ids: Vec<ContainerId>) -> Vec<(ContainerId, ContainerStats)> {
    ids.into_iter().filter_map(|id| read(shared, &id).map(|stats| (id, stats))).collect()
}

fn read(shared: &Shared, id: &ContainerId) -> Option<ContainerStats> {
    let entry = shared.table.container(id)?;
    let view = entry.view()?;
    let mut stats = ContainerStats { timestamp: now(), ..Default::default() };
    if view.pid.is_some() {
        let sandbox = entry.sandbox.view()?;
        let own = parent::short(view.sandbox.as_str());
        let path = cgroup_path::of(shared.host.systemd, &sandbox.spec.cgroup_parent, own, id.as_str());
        match handle(shared, &path).and_then(|handle| handle.stats()) {
            Ok(read) => fill(&mut stats, &read, &entry),
            // It may have ended between the look at the view and this one.
            Err(error) => tracing::debug!(container = %id, %error, "read cgroup"),
        }
    }
    let usage = shared.images.snapshot_usage(&SnapshotKey::from(id));
    stats.writable_layer = Some(FsUse {
        mountpoint: usage.mountpoint,
        used_bytes: usage.used_bytes,
        inodes_used: usage.inodes_used,
        timestamp: now(),
    });
    Some(stats)
}

fn fill(stats: &mut ContainerStats, read: &cgroup::Stats, entry: &ContainerEntry) {
    stats.cpu_usage_ns = Some(read.cpu_usage_ns);
    stats.cpu_nano_cores = rate(entry, read.cpu_usage_ns);
    stats.memory_usage = Some(read.memory.usage);
    stats.memory_working_set = Some(read.memory.working_set);
    stats.memory_available = read.memory.available();
    stats.memory_rss = Some(read.memory.rss);
    stats.page_faults = Some(read.memory.page_faults);
    stats.major_page_faults = Some(read.memory.major_page_faults);
    stats.swap_usage = read.swap.as_ref().map(|swap| swap.usage);
    stats.swap_available = read.swap.as_ref().and_then(|swap| Some(swap.limit?.saturating_sub(swap.usage)));
    stats.pids = Some(read.processes);
    stats.cpu_pressure = read.cpu_pressure.as_ref().map(pressure);
    stats.memory_pressure = read.memory_pressure.as_ref().map(pressure);
    stats.io_pressure = read.io_pressure.as_ref().map(pressure);
}

/// CPU time per second since the last reading that lies long enough back; the last rate until then.
fn rate(entry: &ContainerEntry, usage: u64) -> Option<u64> {
    let mut last = entry.cpu();
    let at = std::time::Instant::now();
    match *last {
        Some((then, before, rate)) => {
            let elapsed = at.duration_since(then);
            if elapsed < RATE_OVER {
                return Some(rate);
            }
            let nanos = elapsed.as_nanos().max(1);
            let rate = u128::from(usage.saturating_sub(before)) * 1_000_000_000 / nanos;
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            *last = Some((at, usage, rate));
            Some(rate)
        }
        None => {
            *last = Some((at, usage, 0));
            None
        }
    }
}

fn pressure(read: &cgroup::Pressure) -> Pressure {
    let line = |average: &cgroup::Average| PressureLine {
        avg10: average.avg10,
        avg60: average.avg60,
        avg300: average.avg300,
        total: average.total_ns,
    };
    Pressure { some: line(&read.some), full: line(&read.full) }
}
