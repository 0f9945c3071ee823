//! What a container uses: CPU, memory, swap, processes, pressure, block I/O, in the same words for both versions.
//! Blocking for some ten microseconds for each file; daemon blocking pool.
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

/// One reading.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// CPU time since the cgroup was made, nanoseconds.
    pub cpu_usage_ns: u64,
    /// Time that processes waited because the quota was used up, nanoseconds, and how often.
    pub throttled_ns: u64,
    pub throttled_periods: u64,
    pub memory: MemoryStats,
    /// None where swap is not counted.
    pub swap: Option<SwapStats>,
    pub processes: u64,
    pub processes_limit: Option<u64>,
    /// None where the kernel does not measure pressure.
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
    /// By device.
    pub io: Vec<DeviceIo>,
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
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub limit: Option<u64>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    CpuStat,
    CpuUsageV1,
    CpuStatV1,
    MemoryUsage,
    MemoryStat,
    MemoryStatV1,
    MemoryLimit,
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
}

const CPU_V2: &[(&str, Source)] = &[("cpu.stat", Source::CpuStat)];
const CPU_V1: &[(&str, Source)] = &[("cpu.stat", Source::CpuStatV1)];
const CPUACCT_V1: &[(&str, Source)] = &[("cpuacct.usage", Source::CpuUsageV1)];
const MEMORY_V2: &[(&str, Source)] = &[
    ("memory.current", Source::MemoryUsage),
    ("memory.stat", Source::MemoryStat),
    ("memory.max", Source::MemoryLimit),
    ("memory.swap.current", Source::SwapUsage),
    ("memory.swap.max", Source::SwapLimit),
];
/// Swap after memory: v1 counts both together.
const MEMORY_V1: &[(&str, Source)] = &[
    ("memory.usage_in_bytes", Source::MemoryUsage),
    ("memory.stat", Source::MemoryStatV1),
    ("memory.limit_in_bytes", Source::MemoryLimit),
    ("memory.memsw.usage_in_bytes", Source::SwapUsageV1),
    ("memory.memsw.limit_in_bytes", Source::SwapLimitV1),
];
const PIDS: &[(&str, Source)] = &[("pids.current", Source::Processes), ("pids.max", Source::ProcessesLimit)];
const IO_V2: &[(&str, Source)] = &[("io.stat", Source::IoStat)];
const IO_V1: &[(&str, Source)] = &[
    ("blkio.throttle.io_service_bytes_recursive", Source::IoBytesV1),
    ("blkio.throttle.io_serviced_recursive", Source::IoCountV1),
];
const PRESSURE: &[(&str, Source)] = &[
    ("cpu.pressure", Source::CpuPressure),
    ("memory.pressure", Source::MemoryPressure),
    ("io.pressure", Source::IoPressure),
];

/// The control files of one cgroup, open.
#[derive(Debug)]
pub struct StatsReader {
    files: Vec<(Source, String, OwnedFd)>,
}

impl StatsReader {
    pub(super) fn open(group: Group<'_>) -> Result<StatsReader, CgroupError> {
        let mut reader = StatsReader { files: Vec::with_capacity(16) };
        match group.place(Controller::Cpuacct) {
            Place::V1(dir) => reader.add(&dir, CPUACCT_V1)?,
            Place::V2(_) | Place::Absent => {}
        }
        match group.place(Controller::Cpu) {
            Place::V1(dir) => reader.add(&dir, CPU_V1)?,
            // cpu.stat has the time used even where the controller is not enabled.
            Place::V2(_) | Place::Absent => group.unified().map_or(Ok(()), |dir| reader.add(&dir, CPU_V2))?,
        }
        for (controller, v1, v2) in
            [(Controller::Memory, MEMORY_V1, MEMORY_V2), (Controller::Pids, PIDS, PIDS), (Controller::Io, IO_V1, IO_V2)]
        {
            match group.place(controller) {
                Place::V1(dir) => reader.add(&dir, v1)?,
                Place::V2(dir) => reader.add(&dir, v2)?,
                Place::Absent => {}
            }
        }
        if let Some(dir) = group.unified() {
            reader.add(&dir, PRESSURE)?;
        }
        if reader.files.is_empty() {
            let path = group.path.to_owned();
            return Err(CgroupError::Open { path, source: Errno::NOENT });
        }
        Ok(reader)
    }

    fn add(&mut self, dir: &Dir, files: &[(&str, Source)]) -> Result<(), CgroupError> {
        for (file, source) in files {
            let path = dir.file(file);
            match rustix::fs::open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(open) => self.files.push((*source, path, open)),
                Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
                Err(source) => return Err(CgroupError::Open { path, source }),
            }
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
                    parse::add(&mut stats, *source, text).ok_or_else(|| CgroupError::Content {
                        path: path.clone(),
                        found: text.lines().next().unwrap_or_default().to_owned(),
                    })?;
                }
                // Pressure is switched off at boot.
                Err(Errno::OPNOTSUPP) => {}
                Err(source) => return Err(CgroupError::Read { path: path.clone(), source }),
            }
        }
        Ok(stats)
    }
}
