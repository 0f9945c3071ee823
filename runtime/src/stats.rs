//! What a container uses: read from its cgroup and its writable layer when asked, never collected on a clock.
//! Runs on the blocking pool of the daemon.
//! Owns nothing. Must never touch a path of the container's own filesystem.

use std::path::PathBuf;

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
    /// Microseconds in all.
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
