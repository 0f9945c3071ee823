//! The metrics of one container: name, meaning and source of each, in the order of their names.
//! A table of pure functions. Owns the names and units; seconds are whole ones, because the protocol has integers.
//! Must never stand a made-up number in for one that the kernel does not count: what takes its place is said where it is done.

use keelson_cri::v1::MetricType::{Counter, Gauge};

use super::{Metric, Needs, Samples};
use crate::stats::{ContainerDetail, Counts, Device, DeviceIo, HugepageStats, Pressure};

type Container = ContainerDetail;
type Read = fn(&Container, &mut Samples);

pub(super) fn all() -> impl Iterator<Item = &'static Metric<Container>> {
    ALL.iter()
}

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// The kernel's own, where nobody has said otherwise.
const CPU_PERIOD: u64 = 100_000;
const CPU_SHARES: u64 = 1024;
/// cAdvisor shows "no limit" as 0, and dashboards divide by what is above it.
const UNLIMITED: u64 = 0;

const fn counter(name: &'static str, help: &'static str, read: Read) -> Metric<Container> {
    Metric::new(Counter, name, help, read)
}

const fn gauge(name: &'static str, help: &'static str, read: Read) -> Metric<Container> {
    Metric::new(Gauge, name, help, read)
}

const fn pressure(name: &'static str, help: &'static str, read: Read) -> Metric<Container> {
    counter(name, help, read).needs(Needs::Pressure)
}

const fn disk(name: &'static str, help: &'static str, read: Read) -> Metric<Container> {
    counter(name, help, read).labels(&["device"])
}

const fn filesystem(name: &'static str, help: &'static str, read: Read) -> Metric<Container> {
    gauge(name, help, read).labels(&["device"])
}

/// Every disk the container has touched, and the one its writable layer is on, touched or not.
fn disks(container: &Container) -> impl Iterator<Item = (Device, DeviceIo)> {
    let home = &container.filesystem.disk;
    let io = &container.counts.io;
    let untouched = io.iter().all(|one| (one.major, one.minor) != (home.major, home.minor));
    let home = untouched.then(|| DeviceIo { major: home.major, minor: home.minor, ..DeviceIo::default() });
    io.iter().cloned().chain(home).map(|one| (Device::of(one.major, one.minor), one))
}

fn each_disk(container: &Container, samples: &mut Samples, value: fn(&DeviceIo) -> u64) {
    disks(container).for_each(|(device, io)| samples.labelled([&device.name], value(&io)));
}

fn blkio(container: &Container, samples: &mut Samples) {
    for (device, io) in disks(container) {
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.write_bytes)] {
            samples.labelled([&device.name, &major, &minor, operation], bytes);
        }
    }
}

fn of_filesystem(container: &Container, samples: &mut Samples, value: u64) {
    samples.labelled([&container.filesystem.device.name], value);
}

/// Seconds lost: by some task, or by all of them.
fn lost(samples: &mut Samples, pressure: Option<&Pressure>, all: bool) {
    if let Some(pressure) = pressure {
        samples.one(if all { pressure.full.total_ns } else { pressure.some.total_ns } / SECOND);
    }
}

fn pages(container: &Container, samples: &mut Samples, value: fn(&HugepageStats) -> Option<u64>) {
    for page in &container.counts.hugepages {
        if let Some(value) = value(page) {
            samples.labelled([&page.size], value);
        }
    }
}

fn failures(counts: &Counts, samples: &mut Samples) {
    let memory = &counts.memory;
    for (kind, own, all) in [
        ("pgfault", memory.own_page_faults, memory.page_faults),
        ("pgmajfault", memory.own_major_page_faults, memory.major_page_faults),
    ] {
        samples.labelled([kind, "container"], own);
        samples.labelled([kind, "hierarchy"], all);
    }
}

fn seconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0) / SECOND
}

/// A limit as it was asked for; none and -1 alike are no limit.
fn limit(limit: Option<i64>) -> u64 {
    limit.and_then(|limit| u64::try_from(limit).ok()).unwrap_or(UNLIMITED)
}

fn reservation(container: &Container) -> u64 {
    let text = container.view.resources.unified.get("memory.min");
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(UNLIMITED)
}

fn started_at(container: &Container) -> i64 {
    match container.view.state {
        crate::container::ContainerState::Running { started_at } => started_at,
        crate::container::ContainerState::Created
        | crate::container::ContainerState::Exited(_)
        | crate::container::ContainerState::Unknown => 0,
    }
}

static ALL: [Metric<Container>; 48] = [
    counter("container_blkio_device_usage_total", "Bytes moved to and from block devices.", blkio).labels(&[
        "device",
        "major",
        "minor",
        "operation",
    ]),
    counter("container_cpu_cfs_periods_total", "Quota periods that have passed.", |c, s| s.one(c.counts.periods)),
    counter("container_cpu_cfs_throttled_periods_total", "Quota periods in which it had to wait.", |c, s| {
        s.one(c.counts.throttled_periods);
    }),
    counter("container_cpu_cfs_throttled_seconds_total", "Time it had to wait for its quota, seconds.", |c, s| {
        s.one(c.counts.throttled_ns / SECOND);
    }),
    counter("container_cpu_system_seconds_total", "CPU time in the kernel, seconds.", |c, s| {
        s.one(c.counts.cpu_system_ns / SECOND);
    }),
    counter("container_cpu_usage_seconds_total", "CPU time, seconds.", |c, s| s.one(c.counts.cpu_usage_ns / SECOND)),
    counter("container_cpu_user_seconds_total", "CPU time outside the kernel, seconds.", |c, s| {
        s.one(c.counts.cpu_user_ns / SECOND);
    }),
    gauge("container_file_descriptors", "Open descriptors of its processes.", |c, s| s.one(c.processes.files)),
    filesystem("container_fs_inodes_free", "Free inodes of the filesystem of its writable layer.", |c, s| {
        of_filesystem(c, s, c.filesystem.inodes_free);
    }),
    filesystem("container_fs_inodes_total", "Inodes of the filesystem of its writable layer.", |c, s| {
        of_filesystem(c, s, c.filesystem.inodes);
    }),
    filesystem("container_fs_limit_bytes", "Size of the filesystem of its writable layer, bytes.", |c, s| {
        of_filesystem(c, s, c.filesystem.size);
    }),
    disk("container_fs_reads_bytes_total", "Bytes read from disks.", |c, s| each_disk(c, s, |io| io.read_bytes)),
    disk("container_fs_reads_total", "Reads from disks.", |c, s| each_disk(c, s, |io| io.reads)),
    filesystem("container_fs_usage_bytes", "What it has written to its writable layer, bytes.", |c, s| {
        if let Some(layer) = &c.writable_layer {
            of_filesystem(c, s, layer.used_bytes);
        }
    }),
    disk("container_fs_writes_bytes_total", "Bytes written to disks.", |c, s| each_disk(c, s, |io| io.write_bytes)),
    disk("container_fs_writes_total", "Writes to disks.", |c, s| each_disk(c, s, |io| io.writes)),
    gauge("container_hugetlb_max_usage_bytes", "The most huge pages it ever used, bytes.", |c, s| {
        pages(c, s, |page| page.peak);
    })
    .labels(&["pagesize"])
    .needs(Needs::HugepagePeaks),
    gauge("container_hugetlb_usage_bytes", "Huge pages in use, bytes.", |c, s| pages(c, s, |page| Some(page.usage)))
        .labels(&["pagesize"])
        .needs(Needs::Hugepages),
    gauge("container_last_seen", "When it was last seen, seconds since the epoch.", |c, s| s.one(seconds(c.timestamp))),
    gauge("container_memory_cache", "Page cache, bytes.", |c, s| s.one(c.counts.memory.cache)),
    counter("container_memory_failcnt", "How often it hit its memory limit.", |c, s| s.one(c.counts.memory.limit_hits)),
    counter("container_memory_failures_total", "Page faults.", |c, s| failures(&c.counts, s))
        .labels(&["failure_type", "scope"]),
    gauge("container_memory_kernel_usage", "Memory the kernel uses for it, bytes.", |c, s| {
        s.one(c.counts.memory.kernel);
    }),
    gauge("container_memory_mapped_file", "Mapped page cache, bytes.", |c, s| s.one(c.counts.memory.mapped_file)),
    // Before Linux 5.19 cgroup v2 kept no peak; what is in use now is the least it can have been.
    gauge("container_memory_max_usage_bytes", "The most memory it ever used, bytes.", |c, s| {
        s.one(c.counts.memory.peak.unwrap_or(c.counts.memory.usage));
    }),
    gauge("container_memory_rss", "Anonymous memory, bytes.", |c, s| s.one(c.counts.memory.rss)),
    // A host that does not count swap gives no container any.
    gauge("container_memory_swap", "Swap in use, bytes.", |c, s| {
        s.one(c.counts.swap.as_ref().map_or(0, |swap| swap.usage));
    }),
    gauge("container_memory_usage_bytes", "Memory in use, page cache included, bytes.", |c, s| {
        s.one(c.counts.memory.usage);
    }),
    gauge("container_memory_working_set_bytes", "Memory in use without idle page cache, bytes.", |c, s| {
        s.one(c.counts.memory.working_set);
    }),
    counter("container_oom_events_total", "Processes killed for want of memory.", |c, s| {
        s.one(c.counts.memory.oom_kills);
    }),
    pressure("container_pressure_cpu_stalled_seconds_total", "Time all tasks waited for CPU, seconds.", |c, s| {
        lost(s, c.counts.cpu_pressure.as_ref(), true);
    }),
    pressure("container_pressure_cpu_waiting_seconds_total", "Time some task waited for CPU, seconds.", |c, s| {
        lost(s, c.counts.cpu_pressure.as_ref(), false);
    }),
    pressure("container_pressure_io_stalled_seconds_total", "Time all tasks waited for I/O, seconds.", |c, s| {
        lost(s, c.counts.io_pressure.as_ref(), true);
    }),
    pressure("container_pressure_io_waiting_seconds_total", "Time some task waited for I/O, seconds.", |c, s| {
        lost(s, c.counts.io_pressure.as_ref(), false);
    }),
    pressure(
        "container_pressure_memory_stalled_seconds_total",
        "Time all tasks waited for memory, seconds.",
        |c, s| {
            lost(s, c.counts.memory_pressure.as_ref(), true);
        },
    ),
    pressure(
        "container_pressure_memory_waiting_seconds_total",
        "Time some task waited for memory, seconds.",
        |c, s| {
            lost(s, c.counts.memory_pressure.as_ref(), false);
        },
    ),
    gauge("container_processes", "Processes.", |c, s| s.one(c.processes.count)),
    gauge("container_sockets", "Open sockets of its processes.", |c, s| s.one(c.processes.sockets)),
    gauge("container_spec_cpu_period", "Length of a quota period, microseconds.", |c, s| {
        s.one(c.view.resources.cpu_period.unwrap_or(CPU_PERIOD));
    }),
    gauge("container_spec_cpu_quota", "CPU time in a quota period, microseconds; 0: no quota.", |c, s| {
        s.one(limit(c.view.resources.cpu_quota));
    }),
    gauge("container_spec_cpu_shares", "CPU weight against neighbours.", |c, s| {
        s.one(c.view.resources.cpu_shares.unwrap_or(CPU_SHARES));
    }),
    gauge("container_spec_memory_limit_bytes", "Memory limit, bytes; 0: no limit.", |c, s| {
        s.one(limit(c.view.resources.memory_limit));
    }),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory kept for it (memory.min), bytes; 0: none.",
        |c, s| {
            s.one(reservation(c));
        },
    ),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        "Limit of memory and swap together, bytes; 0: no limit.",
        |c, s| {
            s.one(limit(c.view.resources.memory_swap_limit));
        },
    ),
    gauge("container_start_time_seconds", "When it was started, seconds since the epoch.", |c, s| {
        s.one(seconds(started_at(c)));
    }),
    gauge("container_threads", "Tasks: processes and their threads.", |c, s| s.one(c.counts.processes)),
    gauge("container_threads_max", "Limit of tasks; 0: no limit.", |c, s| {
        s.one(c.counts.processes_limit.unwrap_or(UNLIMITED));
    }),
    gauge("container_ulimits_soft", "Soft limits of its first process.", |c, s| {
        if let Some(limit) = c.processes.files_limit {
            s.labelled(["max_open_files"], limit);
        }
    })
    .labels(&["ulimit"]),
];
