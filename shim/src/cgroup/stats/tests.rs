//! Readers over folders that look like a container's cgroup: what each version gives, and what is left out when a kernel lacks it.
//! The texts are those of Linux 6.12 (v2) and 6.18 (v1). Runs anywhere.

use super::*;
use crate::cgroup::hierarchy::Hierarchies;

/// A folder that looks like a mounted hierarchy with one cgroup `/c`.
struct Fake {
    folder: tempfile::TempDir,
    hierarchies: Hierarchies,
}

impl Fake {
    /// `mount` is what follows the mount point in mountinfo.
    fn new(mount: &str, controllers: &str, files: &[(&str, &str)]) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let line = format!("1 1 0:1 / {} rw - {mount}\n", folder.path().display());
        let hierarchies = Hierarchies::parse(&line).unwrap();
        std::fs::create_dir(folder.path().join("c")).unwrap();
        let put = |path: std::path::PathBuf, text: &str| {
            std::io::Write::write_all(&mut std::fs::File::create(path).unwrap(), text.as_bytes()).unwrap();
        };
        put(folder.path().join("cgroup.controllers"), controllers);
        files.iter().for_each(|(file, text)| put(folder.path().join("c").join(file), text));
        Fake { folder, hierarchies }
    }

    fn read(&self, depth: Depth) -> Result<(usize, Stats), CgroupError> {
        let reader = StatsReader::open(Group { hierarchies: &self.hierarchies, path: "/c" }, depth)?;
        Ok((reader.held(), reader.read(&mut Vec::new())?))
    }
}

const CPU_STAT: (&str, &str) = (
    "cpu.stat",
    "usage_usec 5210\nuser_usec 4000\nsystem_usec 1210\nnice_usec 0\ncore_sched.force_idle_usec 0\nnr_periods 8\n\
     nr_throttled 3\nthrottled_usec 99\nnr_bursts 0\nburst_usec 0\n",
);
const PRESSURE_TEXT: &str =
    "some avg10=0.12 avg60=0.03 avg300=0.00 total=1500\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=700\n";

#[test]
fn a_v2_cgroup_gives_everything() {
    let fake = Fake::new(
        "cgroup2 cgroup2 rw",
        "cpuset cpu io memory hugetlb pids rdma\n",
        &[
            CPU_STAT,
            ("memory.current", "10485760\n"),
            (
                "memory.stat",
                "anon 4194304\nfile 6291456\nkernel 131072\nkernel_stack 16384\npagetables 4096\nsock 0\nfile_mapped 1048576\n\
                 inactive_anon 0\nactive_anon 4194304\ninactive_file 2097152\nactive_file 4194304\nslab 65536\npgfault 700\n\
                 pgmajfault 2\n",
            ),
            ("memory.max", "67108864\n"),
            ("memory.peak", "20971520\n"),
            ("memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 0\noom_group_kill 1\n"),
            ("memory.swap.current", "8192\n"),
            ("memory.swap.max", "16384\n"),
            ("pids.current", "6\n"),
            ("pids.max", "max\n"),
            ("io.stat", "254:0 rbytes=4096 wbytes=12288 rios=1 wios=3 dbytes=0 dios=0\n"),
            ("cpu.pressure", PRESSURE_TEXT),
            ("memory.pressure", PRESSURE_TEXT),
            ("io.pressure", PRESSURE_TEXT),
        ],
    );
    let (held, usage) = fake.read(Depth::Usage).unwrap();
    assert_eq!(held, 10);
    assert_eq!(usage.cpu_usage_ns, 5_210_000);
    let memory = &usage.memory;
    assert_eq!((memory.usage, memory.working_set, memory.available()), (10_485_760, 8_388_608, Some(58_720_256)));
    assert_eq!((memory.rss, memory.page_faults, memory.major_page_faults), (4_194_304, 700, 2));
    assert_eq!(usage.swap, Some(SwapStats { usage: 8192, limit: Some(16_384) }));
    assert_eq!((usage.processes, usage.cpu_pressure.unwrap().some.total_ns), (6, 1_500_000));
    // Not asked for.
    assert_eq!((memory.peak, usage.io.len(), usage.memory.oom_kills), (None, 0, 0));
    let (_, all) = fake.read(Depth::All).unwrap();
    assert_eq!((all.cpu_user_ns, all.cpu_system_ns, all.periods), (4_000_000, 1_210_000, 8));
    assert_eq!((all.throttled_periods, all.throttled_ns), (3, 99_000));
    let memory = &all.memory;
    assert_eq!((memory.cache, memory.mapped_file, memory.kernel), (6_291_456, 1_048_576, 131_072));
    assert_eq!((memory.peak, memory.limit_hits, memory.oom_kills), (Some(20_971_520), 4, 1));
    assert_eq!((all.processes_limit, all.io.len()), (None, 1));
    assert_eq!((all.io[0].write_bytes, all.io[0].writes), (12_288, 3));
}

#[test]
fn a_v2_kernel_without_swap_pressure_and_peaks_gives_the_rest() {
    let fake = Fake::new(
        "cgroup2 cgroup2 rw",
        "cpu memory\n",
        &[
            CPU_STAT,
            ("memory.current", "100\n"),
            // Before Linux 5.18 there is no sum of what the kernel uses.
            ("memory.stat", "anon 10\nkernel_stack 3\nslab 4\npercpu 5\nsock 6\npagetables 7\n"),
            ("memory.max", "max\n"),
        ],
    );
    let (_, all) = fake.read(Depth::All).unwrap();
    assert_eq!((all.swap, all.cpu_pressure, all.memory.peak), (None, None, None));
    assert_eq!((all.memory.kernel, all.memory.limit, all.memory.available()), (25, None, None));
}

#[test]
fn a_v1_cgroup_gives_the_same_words() {
    let fake = Fake::new(
        "cgroup cgroup rw,cpu,cpuacct,memory,pids,blkio",
        "",
        &[
            ("cpuacct.usage", "5210000\n"),
            ("cpuacct.usage_user", "4000000\n"),
            ("cpuacct.usage_sys", "1210000\n"),
            ("cpu.stat", "nr_periods 8\nnr_throttled 3\nthrottled_time 99000\nnr_bursts 0\nburst_time 0\n"),
            ("memory.usage_in_bytes", "10485760\n"),
            (
                "memory.stat",
                "cache 1\nrss 2\npgfault 1\ntotal_cache 6291456\ntotal_rss 4194304\ntotal_mapped_file 1048576\n\
                 total_pgfault 700\ntotal_pgmajfault 2\ntotal_inactive_file 2097152\n",
            ),
            ("memory.limit_in_bytes", "67108864\n"),
            ("memory.memsw.usage_in_bytes", "10493952\n"),
            ("memory.memsw.limit_in_bytes", "67125248\n"),
            ("memory.max_usage_in_bytes", "20971520\n"),
            ("memory.kmem.usage_in_bytes", "131072\n"),
            ("memory.failcnt", "4\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ("pids.current", "6\n"),
            ("pids.max", "max\n"),
            ("blkio.throttle.io_service_bytes_recursive", "254:0 Read 4096\n254:0 Write 12288\nTotal 16384\n"),
            ("blkio.throttle.io_serviced_recursive", "254:0 Read 1\n254:0 Write 3\nTotal 4\n"),
        ],
    );
    let (held, usage) = fake.read(Depth::Usage).unwrap();
    assert_eq!(held, 7);
    assert_eq!((usage.cpu_usage_ns, usage.memory.working_set, usage.processes), (5_210_000, 8_388_608, 6));
    assert_eq!(usage.swap, Some(SwapStats { usage: 8192, limit: Some(16_384) }));
    let (_, all) = fake.read(Depth::All).unwrap();
    assert_eq!((all.cpu_user_ns, all.cpu_system_ns, all.throttled_ns), (4_000_000, 1_210_000, 99_000));
    let memory = &all.memory;
    assert_eq!((memory.peak, memory.kernel, memory.limit_hits, memory.oom_kills), (Some(20_971_520), 131_072, 4, 1));
    assert_eq!((memory.own_page_faults, memory.page_faults), (1, 700));
    assert_eq!((all.io[0].read_bytes, all.io[0].writes), (4096, 3));
}

#[test]
fn a_cgroup_that_is_not_there_is_an_error() {
    let fake = Fake::new("cgroup cgroup rw,memory", "", &[]);
    std::fs::remove_dir_all(fake.folder.path().join("c")).unwrap();
    assert!(matches!(fake.read(Depth::Usage), Err(CgroupError::Open { source: Errno::NOENT, .. })));
}
