//! What a container uses: CPU, memory, swap, processes, pressure, block I/O, in the same words for both versions.
//! Blocking: about a microsecond for each file that is open already, seven for one that is not; daemon blocking pool.
//! Owns the open control files of one cgroup, so that a caller can read again without opening again.
//! Must never fail a whole reading for a file that the kernel was built without.

mod parse;

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::dir::{Dir, read_once};
use super::error::CgroupError;
use super::hierarchy::Controller;
use super::limits::{Group, Place};

pub use parse::{Average, Pressure};

/// How much a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What is asked for every few seconds: CPU time, memory, swap, number of tasks, pressure.
    Usage,
    /// Everything: also CPU time by kind, throttling, peaks, limits, block I/O, huge pages, OOM kills.
    All,
}

/// One reading. What only [`Depth::All`] reads is marked so, and empty or 0 otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// CPU time since the cgroup was made, nanoseconds.
    pub cpu_usage_ns: u64,
    /// The parts of it in user and in kernel mode, nanoseconds; all on v1.
    pub cpu_user_ns: u64,
    pub cpu_system_ns: u64,
    /// Quota periods that have passed while something wanted to run; all on v1.
    pub periods: u64,
    /// Time that processes waited because the quota was used up, nanoseconds, and how often; all on v1.
    pub throttled_ns: u64,
    pub throttled_periods: u64,
    pub memory: MemoryStats,
    /// None where swap is not counted.
    pub swap: Option<SwapStats>,
    /// Tasks: processes and their threads.
    pub processes: u64,
    /// All; None: no limit.
    pub processes_limit: Option<u64>,
    /// None where the kernel does not measure pressure.
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
    /// By device; all.
    pub io: Vec<DeviceIo>,
    /// By page size, for the sizes that this cgroup counts; all.
    pub hugepages: Vec<HugepageStats>,
}

/// Bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// With page cache.
    pub usage: u64,
    /// Without page cache that nobody used lately: what the kubelet evicts by.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// The part of the page cache that processes have mapped.
    pub mapped_file: u64,
    /// What the kernel uses on its behalf: stacks, page tables, sockets, slab; all on v1.
    pub kernel: u64,
    /// With those of cgroups below.
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// Of this cgroup alone, where v1 counts them apart; else as above.
    pub own_page_faults: u64,
    pub own_major_page_faults: u64,
    pub limit: Option<u64>,
    /// The most that was ever in use; all. None before Linux 5.19 on v2.
    pub peak: Option<u64>,
    /// How often the limit was hit; all.
    pub limit_hits: u64,
    /// Processes the kernel killed for want of memory; all.
    pub oom_kills: u64,
}

impl MemoryStats {
    /// What is left below the limit; None without a limit.
    pub fn available(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.working_set))
    }
}

/// Bytes of swap, without memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwapStats {
    pub usage: u64,
    pub limit: Option<u64>,
}

/// Bytes in huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugepageStats {
    /// `2MB`, `1GB`, ..
    pub size: String,
    pub usage: u64,
    /// None on v2, which does not keep it.
    pub peak: Option<u64>,
}

/// What went through one block device since the cgroup was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceIo {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// What one file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    CpuStat,
    CpuUsageV1,
    CpuUserV1,
    CpuSystemV1,
    CpuStatV1,
    MemoryUsage,
    MemoryStat,
    MemoryStatV1,
    MemoryLimit,
    MemoryPeak,
    MemoryKernelV1,
    LimitHitsV1,
    OomV1,
    MemoryEvents,
    SwapUsage,
    SwapLimit,
    SwapUsageV1,
    SwapLimitV1,
    Processes,
    ProcessesLimit,
    CpuPressure,
    MemoryPressure,
    IoPressure,
    IoStat,
    IoBytesV1,
    IoCountV1,
    HugepageUsage(String),
    HugepagePeak(String),
}

/// Files of one controller: those of [`Depth::Usage`], and those that [`Depth::All`] adds.
struct Files {
    usage: &'static [(&'static str, Source)],
    more: &'static [(&'static str, Source)],
}

const CPU_V2: Files = Files { usage: &[("cpu.stat", Source::CpuStat)], more: &[] };
const CPU_V1: Files = Files { usage: &[], more: &[("cpu.stat", Source::CpuStatV1)] };
const CPUACCT_V1: Files = Files {
    usage: &[("cpuacct.usage", Source::CpuUsageV1)],
    more: &[("cpuacct.usage_user", Source::CpuUserV1), ("cpuacct.usage_sys", Source::CpuSystemV1)],
};
const MEMORY_V2: Files = Files {
    usage: &[
        ("memory.current", Source::MemoryUsage),
        ("memory.stat", Source::MemoryStat),
        ("memory.max", Source::MemoryLimit),
        ("memory.swap.current", Source::SwapUsage),
        ("memory.swap.max", Source::SwapLimit),
    ],
    more: &[("memory.peak", Source::MemoryPeak), ("memory.events", Source::MemoryEvents)],
};
/// Swap after memory: v1 counts both together.
const MEMORY_V1: Files = Files {
    usage: &[
        ("memory.usage_in_bytes", Source::MemoryUsage),
        ("memory.stat", Source::MemoryStatV1),
        ("memory.limit_in_bytes", Source::MemoryLimit),
        ("memory.memsw.usage_in_bytes", Source::SwapUsageV1),
        ("memory.memsw.limit_in_bytes", Source::SwapLimitV1),
    ],
    more: &[
        ("memory.max_usage_in_bytes", Source::MemoryPeak),
        ("memory.kmem.usage_in_bytes", Source::MemoryKernelV1),
        ("memory.failcnt", Source::LimitHitsV1),
        ("memory.oom_control", Source::OomV1),
    ],
};
const PIDS: Files =
    Files { usage: &[("pids.current", Source::Processes)], more: &[("pids.max", Source::ProcessesLimit)] };
const IO_V2: Files = Files { usage: &[], more: &[("io.stat", Source::IoStat)] };
const IO_V1: Files = Files {
    usage: &[],
    more: &[
        ("blkio.throttle.io_service_bytes_recursive", Source::IoBytesV1),
        ("blkio.throttle.io_serviced_recursive", Source::IoCountV1),
    ],
};
const PRESSURE: Files = Files {
    usage: &[
        ("cpu.pressure", Source::CpuPressure),
        ("memory.pressure", Source::MemoryPressure),
        ("io.pressure", Source::IoPressure),
    ],
    more: &[],
};

/// The control files of one cgroup, open.
#[derive(Debug)]
pub struct StatsReader {
    files: Vec<(Source, Box<str>, OwnedFd)>,
}

impl StatsReader {
    pub(super) fn open(group: Group<'_>, depth: Depth) -> Result<StatsReader, CgroupError> {
        let mut reader = StatsReader { files: Vec::with_capacity(10) };
        match group.place(Controller::Cpuacct) {
            Place::V1(dir) => reader.add(&dir, &CPUACCT_V1, depth)?,
            Place::V2(_) | Place::Absent => {}
        }
        match group.place(Controller::Cpu) {
            Place::V1(dir) => reader.add(&dir, &CPU_V1, depth)?,
            // cpu.stat has the time used even where the controller is not enabled.
            Place::V2(_) | Place::Absent => group.unified().map_or(Ok(()), |dir| reader.add(&dir, &CPU_V2, depth))?,
        }
        for (controller, v1, v2) in [
            (Controller::Memory, &MEMORY_V1, &MEMORY_V2),
            (Controller::Pids, &PIDS, &PIDS),
            (Controller::Io, &IO_V1, &IO_V2),
        ] {
            match group.place(controller) {
                Place::V1(dir) => reader.add(&dir, v1, depth)?,
                Place::V2(dir) => reader.add(&dir, v2, depth)?,
                Place::Absent => {}
            }
        }
        if let Some(dir) = group.unified() {
            reader.add(&dir, &PRESSURE, depth)?;
        }
        if depth == Depth::All {
            for size in super::hugepage_sizes() {
                let files = match group.place(Controller::Hugetlb) {
                    Place::V1(dir) => (dir, "usage_in_bytes"),
                    Place::V2(dir) => (dir, "current"),
                    Place::Absent => break,
                };
                let (dir, usage) = files;
                reader.add_file(&dir, &format!("hugetlb.{size}.{usage}"), Source::HugepageUsage(size.clone()))?;
                reader.add_file(&dir, &format!("hugetlb.{size}.max_usage_in_bytes"), Source::HugepagePeak(size))?;
            }
        }
        if reader.files.is_empty() {
            let path = group.path.to_owned();
            return Err(CgroupError::Open { path, source: Errno::NOENT });
        }
        Ok(reader)
    }

    /// How many descriptors it holds.
    pub fn held(&self) -> usize {
        self.files.len()
    }

    fn add(&mut self, dir: &Dir, files: &Files, depth: Depth) -> Result<(), CgroupError> {
        let more = if depth == Depth::All { files.more } else { &[] };
        files.usage.iter().chain(more).try_for_each(|(file, source)| self.add_file(dir, file, source.clone()))
    }

    fn add_file(&mut self, dir: &Dir, file: &str, source: Source) -> Result<(), CgroupError> {
        let path = dir.file(file);
        match rustix::fs::open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(open) => self.files.push((source, path.into_boxed_str(), open)),
            Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
            Err(source) => return Err(CgroupError::Open { path, source }),
        }
        Ok(())
    }

    /// Reads everything; `buffer` is only for keeping its memory between calls. ENODEV: the cgroup has been removed.
    pub fn read(&self, buffer: &mut Vec<u8>) -> Result<Stats, CgroupError> {
        let mut stats = Stats::default();
        for (source, path, file) in &self.files {
            match read_once(file, buffer) {
                Ok(read) => {
                    let bytes = buffer.get(..read).unwrap_or_default();
                    let text = std::str::from_utf8(bytes).unwrap_or_default();
                    parse::add(&mut stats, source, text).ok_or_else(|| CgroupError::Content {
                        path: path.to_string(),
                        found: text.lines().next().unwrap_or_default().to_owned(),
                    })?;
                }
                // Pressure is switched off at boot.
                Err(Errno::OPNOTSUPP) => {}
                Err(source) => return Err(CgroupError::Read { path: path.to_string(), source }),
            }
        }
        Ok(stats)
    }
}

#[cfg(test)]
mod tests;
