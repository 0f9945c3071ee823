//! What containers and sandboxes use: read from their cgroups, network namespaces and writable layers when asked, never collected
//! on a clock.
//! Plain data here; the reading, in the files below, runs on the blocking pool of the daemon.
//! Owns nothing; the open files of a cgroup belong to its entry in the table. Must never touch a path of a container's own filesystem.

pub(crate) mod detail;
pub(crate) mod layers;
mod process;
pub(crate) mod read;
pub(crate) mod slot;
mod traffic;

use std::{path::PathBuf, sync::Arc};

pub use detail::{ContainerDetail, Counted, Device, Filesystem, SandboxDetail};
use keelson_imageservice::FsUsage;
pub use keelson_network::Traffic;
pub use keelson_shim::cgroup::{Average, DeviceIo, HugepageStats, MemoryStats, Pressure, Stats as Counts, SwapStats};
pub use process::Processes;

use crate::{container::ContainerView, sandbox::SandboxView};

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

impl FsUse {
    /// As it was at this moment.
    pub(crate) fn of(usage: FsUsage, timestamp: i64) -> Self {
        let FsUsage { mountpoint, used_bytes, inodes_used } = usage;
        Self { mountpoint, used_bytes, inodes_used, timestamp }
    }
}

/// What a cgroup uses at one moment; an absent value is one the host's cgroups do not tell.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// When it was read, nanoseconds since the epoch.
    pub timestamp: i64,
    /// CPU time since the cgroup was made, nanoseconds.
    pub cpu_ns: u64,
    /// Rate of the above between the last two readings at least 100 ms apart, nanoseconds per second.
    pub cpu_nano_cores: Option<u64>,
    /// Memory in use, page cache included, bytes.
    pub memory_usage: u64,
    /// The same without page cache that nobody used lately.
    pub memory_working_set: u64,
    /// Limit minus working set, where there is a limit.
    pub memory_available: Option<u64>,
    /// Anonymous memory.
    pub memory_rss: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that waited for I/O.
    pub major_page_faults: u64,
    /// Swap in use, bytes; none where swap is not counted.
    pub swap_usage: Option<u64>,
    /// Swap limit minus use, where there is a limit.
    pub swap_available: Option<u64>,
    /// Tasks: processes and their threads.
    pub tasks: u64,
    /// CPU pressure.
    pub cpu_pressure: Option<Pressure>,
    /// Memory pressure.
    pub memory_pressure: Option<Pressure>,
    /// I/O pressure.
    pub io_pressure: Option<Pressure>,
}

/// What a container uses now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ContainerStats {
    /// When it was asked for, nanoseconds since the epoch.
    pub timestamp: i64,
    /// Its cgroup; none when it has no process.
    pub usage: Option<Usage>,
    /// The writable layer; none until it was measured for the first time.
    pub writable_layer: Option<FsUse>,
}

/// Traffic of one interface as the pod counts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name in the pod.
    pub name: String,
    /// Counters since it was made.
    pub traffic: Traffic,
}

/// Traffic of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// When it was read, nanoseconds since the epoch.
    pub timestamp: i64,
    /// The one that leads out.
    pub default: Option<Interface>,
    /// All others but loopback.
    pub others: Vec<Interface>,
}

/// What a sandbox uses now.
#[derive(Debug, Clone)]
pub struct SandboxStats {
    /// The sandbox as it was then.
    pub view: Arc<SandboxView>,
    /// When it was asked for, nanoseconds since the epoch.
    pub timestamp: i64,
    /// Its cgroup with everything in it, or the sum of its containers where several sandboxes share one.
    pub usage: Option<Usage>,
    /// None with the host's network.
    pub network: Option<Network>,
    /// Those that run.
    pub containers: Vec<(Arc<ContainerView>, ContainerStats)>,
}
