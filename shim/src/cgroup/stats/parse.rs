//! The text of cgroup statistics files as numbers.
//! Pure; whoever reads statistics.
//! Owns nothing.
//! Must never stop at a key it does not know: kernels add some with each version.

use super::{DeviceIo, HugepageStats, Source, Stats, SwapStats};

/// How long processes waited for a resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some of them at a time.
    pub some: Average,
    /// All of them at a time.
    pub full: Average,
}

/// Shares of time in percent over the last 10, 60 and 300 seconds, and all of it in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Average {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total_ns: u64,
}

/// None when `text` is not what the file should hold.
pub(super) fn add(stats: &mut Stats, source: &Source, text: &str) -> Option<()> {
    match source {
        Source::CpuStat => cpu(stats, text),
        Source::CpuStatV1 => cpu_v1(stats, text),
        Source::CpuUsageV1 => stats.cpu_usage_ns = number(text)?,
        Source::CpuUserV1 => stats.cpu_user_ns = number(text)?,
        Source::CpuSystemV1 => stats.cpu_system_ns = number(text)?,
        Source::MemoryUsage => {
            stats.memory.usage = number(text)?;
            stats.memory.working_set = stats.memory.usage;
        }
        Source::MemoryStat => memory(stats, text),
        Source::MemoryStatV1 => memory_v1(stats, text),
        Source::MemoryLimit => stats.memory.limit = limit(text)?,
        Source::MemoryPeak => stats.memory.peak = Some(number(text)?),
        Source::MemoryKernelV1 => stats.memory.kernel = number(text)?,
        Source::LimitHitsV1 => stats.memory.limit_hits = number(text)?,
        Source::OomV1 => stats.memory.oom_kills = find(text, "oom_kill").unwrap_or(0),
        Source::MemoryEvents => {
            stats.memory.limit_hits = find(text, "max").unwrap_or(0);
            // With memory.oom.group the whole cgroup counts once in the second.
            stats.memory.oom_kills = find(text, "oom_kill").unwrap_or(0).max(find(text, "oom_group_kill").unwrap_or(0));
        }
        Source::SwapUsage => swap(stats).usage = number(text)?,
        Source::SwapLimit => swap(stats).limit = limit(text)?,
        Source::SwapUsageV1 => swap(stats).usage = number(text)?.saturating_sub(stats.memory.usage),
        Source::SwapLimitV1 => {
            let memory = stats.memory.limit.unwrap_or(0);
            swap(stats).limit = limit(text)?.map(|both| both.saturating_sub(memory));
        }
        Source::Processes => stats.processes = number(text)?,
        Source::ProcessesLimit => stats.processes_limit = limit(text)?,
        Source::CpuPressure => stats.cpu_pressure = Some(pressure(text)?),
        Source::MemoryPressure => stats.memory_pressure = Some(pressure(text)?),
        Source::IoPressure => stats.io_pressure = Some(pressure(text)?),
        Source::IoStat => io(stats, text),
        Source::IoBytesV1 => io_v1(stats, text, |device| (&mut device.read_bytes, &mut device.write_bytes)),
        Source::IoCountV1 => io_v1(stats, text, |device| (&mut device.reads, &mut device.writes)),
        Source::HugepageUsage(size) => {
            let usage = number(text)?;
            stats.hugepages.push(HugepageStats { size: size.clone(), usage, peak: None });
        }
        Source::HugepagePeak(size) => {
            let peak = Some(number(text)?);
            stats.hugepages.iter_mut().filter(|page| page.size == *size).for_each(|page| page.peak = peak);
        }
    }
    Some(())
}

fn number(text: &str) -> Option<u64> {
    text.trim_end().parse().ok()
}

/// None inside for no limit: `max`, or v1's largest multiple of a page.
fn limit(text: &str) -> Option<Option<u64>> {
    match text.trim_end() {
        "max" => Some(None),
        number => number.parse::<u64>().ok().map(|limit| Some(limit).filter(|limit| *limit < (1 << 63) - (1 << 20))),
    }
}

fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| line.split_once(' ')).filter_map(|(key, value)| Some((key, value.parse().ok()?)))
}

fn swap(stats: &mut Stats) -> &mut SwapStats {
    stats.swap.get_or_insert_default()
}

fn find(text: &str, wanted: &str) -> Option<u64> {
    pairs(text).find(|(key, _)| *key == wanted).map(|(_, value)| value)
}

fn cpu(stats: &mut Stats, text: &str) {
    for (key, value) in pairs(text) {
        match key {
            "usage_usec" => stats.cpu_usage_ns = value.saturating_mul(1000),
            "user_usec" => stats.cpu_user_ns = value.saturating_mul(1000),
            "system_usec" => stats.cpu_system_ns = value.saturating_mul(1000),
            "nr_periods" => stats.periods = value,
            "nr_throttled" => stats.throttled_periods = value,
            "throttled_usec" => stats.throttled_ns = value.saturating_mul(1000),
            _ => {}
        }
    }
}

fn cpu_v1(stats: &mut Stats, text: &str) {
    for (key, value) in pairs(text) {
        match key {
            "nr_periods" => stats.periods = value,
            "nr_throttled" => stats.throttled_periods = value,
            "throttled_time" => stats.throttled_ns = value,
            _ => {}
        }
    }
}

fn memory(stats: &mut Stats, text: &str) {
    let memory = &mut stats.memory;
    // `kernel` is their sum and more, since Linux 5.18.
    let (mut kernel, mut parts) = (None, 0u64);
    for (key, value) in pairs(text) {
        match key {
            "inactive_file" => memory.working_set = memory.usage.saturating_sub(value),
            "anon" => memory.rss = value,
            "file" => memory.cache = value,
            "file_mapped" => memory.mapped_file = value,
            "kernel" => kernel = Some(value),
            "kernel_stack" | "pagetables" | "percpu" | "sock" | "slab" => parts = parts.saturating_add(value),
            "pgfault" => (memory.page_faults, memory.own_page_faults) = (value, value),
            "pgmajfault" => (memory.major_page_faults, memory.own_major_page_faults) = (value, value),
            _ => {}
        }
    }
    memory.kernel = kernel.unwrap_or(parts);
}

fn memory_v1(stats: &mut Stats, text: &str) {
    let memory = &mut stats.memory;
    for (key, value) in pairs(text) {
        match key {
            "total_inactive_file" => memory.working_set = memory.usage.saturating_sub(value),
            "total_rss" => memory.rss = value,
            "total_cache" => memory.cache = value,
            "total_mapped_file" => memory.mapped_file = value,
            "total_pgfault" => memory.page_faults = value,
            "total_pgmajfault" => memory.major_page_faults = value,
            "pgfault" => memory.own_page_faults = value,
            "pgmajfault" => memory.own_major_page_faults = value,
            _ => {}
        }
    }
}

fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let average = match words.next()? {
            "some" => &mut pressure.some,
            "full" => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => average.avg10 = value.parse().ok()?,
                "avg60" => average.avg60 = value.parse().ok()?,
                "avg300" => average.avg300 = value.parse().ok()?,
                "total" => average.total_ns = value.parse::<u64>().ok()?.saturating_mul(1000),
                _ => {}
            }
        }
    }
    Some(pressure)
}

fn device<'a>(stats: &'a mut Stats, name: &str) -> Option<&'a mut DeviceIo> {
    let (major, minor) = name.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let known = stats.io.iter().position(|device| (device.major, device.minor) == (major, minor));
    let at = known.unwrap_or_else(|| {
        stats.io.push(DeviceIo { major, minor, ..DeviceIo::default() });
        stats.io.len() - 1
    });
    stats.io.get_mut(at)
}

fn io(stats: &mut Stats, text: &str) {
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some(device) = words.next().and_then(|name| device(stats, name)) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => device.read_bytes = value,
                "wbytes" => device.write_bytes = value,
                "rios" => device.reads = value,
                "wios" => device.writes = value,
                _ => {}
            }
        }
    }
}

fn io_v1(stats: &mut Stats, text: &str, fields: impl Fn(&mut DeviceIo) -> (&mut u64, &mut u64)) {
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(name), Some(key), Some(value)) = (words.next(), words.next(), words.next()) else { continue };
        let (Some(device), Ok(value)) = (device(stats, name), value.parse()) else { continue };
        let (read, write) = fields(device);
        match key {
            "Read" => *read = value,
            "Write" => *write = value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(Source, &str)]) -> Stats {
        let mut stats = Stats::default();
        for (source, text) in files {
            add(&mut stats, source, text).unwrap();
        }
        stats
    }

    #[test]
    fn version_two_is_read() {
        let stats = of(&[
            (
                Source::CpuStat,
                "usage_usec 1234\nuser_usec 1000\nsystem_usec 234\nnr_periods 9\nnr_throttled 3\nthrottled_usec 44\n",
            ),
            (Source::MemoryUsage, "1000000\n"),
            (
                Source::MemoryStat,
                "anon 600000\nfile 300000\nkernel 5000\nkernel_stack 1\nfile_mapped 4096\ninactive_file 250000\npgfault 77\npgmajfault 7\nnew_key 1\n",
            ),
            (Source::MemoryPeak, "1900000\n"),
            (Source::MemoryEvents, "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"),
            (Source::MemoryLimit, "2000000\n"),
            (Source::SwapUsage, "4096\n"),
            (Source::SwapLimit, "max\n"),
            (Source::Processes, "5\n"),
            (Source::ProcessesLimit, "max\n"),
            (
                Source::CpuPressure,
                "some avg10=1.50 avg60=0.25 avg300=0.01 total=5000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=17\n",
            ),
            (Source::IoStat, "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:1 \n"),
        ]);
        assert_eq!(stats.cpu_usage_ns, 1_234_000);
        assert_eq!((stats.cpu_user_ns, stats.cpu_system_ns, stats.periods), (1_000_000, 234_000, 9));
        assert_eq!((stats.throttled_periods, stats.throttled_ns), (3, 44_000));
        assert_eq!((stats.memory.cache, stats.memory.mapped_file, stats.memory.kernel), (300_000, 4096, 5000));
        assert_eq!((stats.memory.peak, stats.memory.limit_hits, stats.memory.oom_kills), (Some(1_900_000), 12, 2));
        assert_eq!((stats.memory.usage, stats.memory.working_set, stats.memory.rss), (1_000_000, 750_000, 600_000));
        assert_eq!(stats.memory.available(), Some(1_250_000));
        assert_eq!((stats.memory.page_faults, stats.memory.major_page_faults), (77, 7));
        assert_eq!(stats.swap, Some(SwapStats { usage: 4096, limit: None }));
        assert_eq!((stats.processes, stats.processes_limit), (5, None));
        let pressure = stats.cpu_pressure.unwrap();
        assert_eq!((pressure.some.avg10, pressure.some.total_ns, pressure.full.total_ns), (1.5, 5_000_000, 17_000));
        let disk = DeviceIo { major: 254, minor: 0, read_bytes: 4096, write_bytes: 8192, reads: 1, writes: 2 };
        assert_eq!(stats.io, [disk, DeviceIo { major: 7, minor: 1, ..DeviceIo::default() }]);
    }

    #[test]
    fn version_one_is_read() {
        let stats = of(&[
            (Source::CpuUsageV1, "987654321\n"),
            (Source::CpuStatV1, "nr_periods 0\nnr_throttled 2\nthrottled_time 500\n"),
            (Source::MemoryUsage, "100\n"),
            (
                Source::MemoryStatV1,
                "inactive_file 1\nrss 2\npgfault 1\ntotal_inactive_file 150\ntotal_rss 20\ntotal_pgfault 3\ntotal_cache 9\n",
            ),
            (Source::CpuUserV1, "7\n"),
            (Source::CpuSystemV1, "8\n"),
            (Source::MemoryPeak, "140\n"),
            (Source::MemoryKernelV1, "4\n"),
            (Source::LimitHitsV1, "6\n"),
            (Source::OomV1, "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            (Source::HugepageUsage("2MB".into()), "2097152\n"),
            (Source::HugepagePeak("2MB".into()), "4194304\n"),
            (Source::MemoryLimit, "9223372036854771712\n"),
            (Source::SwapUsageV1, "130\n"),
            (Source::SwapLimitV1, "9223372036854771712\n"),
            (Source::IoBytesV1, "254:0 Read 4096\n254:0 Write 1\n254:0 Total 4097\nTotal 4097\n"),
            (Source::IoCountV1, "254:0 Read 2\nTotal 2\n"),
        ]);
        assert_eq!((stats.cpu_usage_ns, stats.throttled_ns), (987_654_321, 500));
        assert_eq!((stats.memory.working_set, stats.memory.rss, stats.memory.limit), (0, 20, None));
        assert_eq!((stats.cpu_user_ns, stats.cpu_system_ns), (7, 8));
        assert_eq!((stats.memory.own_page_faults, stats.memory.page_faults, stats.memory.cache), (1, 3, 9));
        let memory = &stats.memory;
        assert_eq!((memory.peak, memory.kernel, memory.limit_hits, memory.oom_kills), (Some(140), 4, 6, 1));
        assert_eq!(stats.hugepages, [HugepageStats { size: "2MB".into(), usage: 2 << 20, peak: Some(4 << 20) }]);
        assert_eq!(stats.memory.available(), None);
        assert_eq!(stats.swap, Some(SwapStats { usage: 30, limit: None }));
        assert_eq!(stats.io[0].read_bytes, 4096);
        assert_eq!((stats.io[0].write_bytes, stats.io[0].reads), (1, 2));
    }

    #[test]
    fn nonsense_is_told() {
        assert_eq!(add(&mut Stats::default(), &Source::MemoryUsage, "many\n"), None);
        assert_eq!(add(&mut Stats::default(), &Source::CpuPressure, "some avg10=x total=1\n"), None);
    }
}
