//! Limits against control files in a plain folder, and the conversions against known pairs; runs anywhere.
use super::*;
use crate::cgroup::hierarchy::Hierarchies;
use crate::spec::{BlockIo, Cpu, HugepageLimit, Memory, Pids, Resources, ThrottleDevice};

/// A folder that looks like a mounted hierarchy with one cgroup `/c`.
struct Fake {
    folder: tempfile::TempDir,
    hierarchies: Hierarchies,
}

impl Fake {
    fn v2(controllers: &str, files: &[&str]) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let line = format!("1 1 0:1 / {} rw - cgroup2 cgroup2 rw\n", folder.path().display());
        let fake = Fake { hierarchies: Hierarchies::parse(&line).unwrap(), folder };
        std::fs::create_dir(fake.folder.path().join("c")).unwrap();
        std::fs::File::create(fake.folder.path().join("cgroup.controllers")).unwrap();
        Dir::new(&fake.folder.path().display().to_string(), "").write("cgroup.controllers", controllers).unwrap();
        fake.with(files)
    }

    fn v1(controllers: &str, files: &[&str]) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let line = format!("1 1 0:1 / {} rw - cgroup cgroup rw,{controllers}\n", folder.path().display());
        let fake = Fake { hierarchies: Hierarchies::parse(&line).unwrap(), folder };
        std::fs::create_dir(fake.folder.path().join("c")).unwrap();
        fake.with(files)
    }

    fn with(self, files: &[&str]) -> Fake {
        for file in files {
            std::fs::File::create(self.folder.path().join("c").join(file)).unwrap();
        }
        self
    }

    fn apply(&self, resources: &Resources, when: When) -> Result<(), String> {
        apply(Group { hierarchies: &self.hierarchies, path: "/c" }, resources, when).map_err(|error| error.to_string())
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.path().join("c").join(file)).unwrap()
    }

    fn set(&self, file: &str, value: &str) {
        Dir::new(&self.folder.path().display().to_string(), "/c").write(file, value).unwrap();
    }
}

fn cpu(cpu: Cpu) -> Resources {
    Resources { cpu: Some(cpu), ..Resources::default() }
}

fn memory(memory: Memory) -> Resources {
    Resources { memory: Some(memory), ..Resources::default() }
}

#[test]
fn shares_become_weights_on_the_agreed_curve() {
    for (shares, weight) in [
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
        (8, 3),
        (16, 5),
        (100, 17),
        (102, 17),
        (512, 59),
        (1023, 100),
        (1024, 100),
        (1025, 101),
        (2048, 174),
        (10240, 639),
        (262143, 10000),
        (262_144, 10_000),
        (u64::MAX, 10_000),
    ] {
        assert_eq!(weight_of_shares(shares), weight, "{shares}");
    }
    let weights: Vec<u64> = (2..262_144).step_by(7).map(weight_of_shares).collect();
    assert!(weights.is_sorted());
}

#[test]
fn v2_cpu_is_written_and_what_is_left_out_stays() {
    let fake =
        Fake::v2("cpu cpuset", &["cpu.weight", "cpu.max", "cpu.max.burst", "cpu.idle", "cpuset.cpus", "cpuset.mems"]);
    let all = Cpu {
        shares: Some(1024),
        quota: Some(50_000),
        period: Some(200_000),
        burst: Some(10),
        cpus: "0-1".into(),
        mems: "0".into(),
        ..Cpu::default()
    };
    fake.apply(&cpu(all), When::Fresh).unwrap();
    assert_eq!((fake.read("cpu.weight").as_str(), fake.read("cpu.max").as_str()), ("100", "50000 200000"));
    assert_eq!(
        (fake.read("cpu.max.burst"), fake.read("cpuset.cpus"), fake.read("cpuset.mems")),
        ("10".into(), "0-1".into(), "0".into())
    );
    fake.apply(&cpu(Cpu { period: Some(100_000), ..Cpu::default() }), When::Live).unwrap();
    assert_eq!(fake.read("cpu.max"), "50000 100000");
    fake.apply(&cpu(Cpu { quota: Some(-1), ..Cpu::default() }), When::Live).unwrap();
    assert_eq!(fake.read("cpu.max"), "max");
    fake.apply(&cpu(Cpu { shares: Some(2048), idle: Some(1), ..Cpu::default() }), When::Live).unwrap();
    assert_eq!((fake.read("cpu.idle"), fake.read("cpu.weight")), ("1".into(), "100".into()));
}

#[test]
fn zeros_are_not_set_and_nothing_is_written_for_them() {
    let fake = Fake::v2("", &[]);
    let zeros = Resources {
        cpu: Some(Cpu { shares: Some(0), quota: Some(0), period: Some(0), ..Cpu::default() }),
        memory: Some(Memory { limit: Some(0), swap: Some(0), reservation: Some(0), ..Memory::default() }),
        pids: Some(Pids { limit: Some(0) }),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        ..Resources::default()
    };
    fake.apply(&zeros, When::Fresh).unwrap();
    assert!(needed(&zeros).is_empty());
}

#[test]
fn v2_memory_takes_swap_alone() {
    let fake = Fake::v2("memory", &["memory.max", "memory.swap.max", "memory.low"]);
    fake.apply(
        &memory(Memory { limit: Some(100), swap: Some(150), reservation: Some(10), ..Memory::default() }),
        When::Fresh,
    )
    .unwrap();
    assert_eq!(
        (fake.read("memory.max"), fake.read("memory.swap.max"), fake.read("memory.low")),
        ("100".into(), "50".into(), "10".into())
    );
    fake.apply(&memory(Memory { limit: Some(100), swap: Some(100), ..Memory::default() }), When::Fresh).unwrap();
    assert_eq!(fake.read("memory.swap.max"), "0");
    fake.apply(&memory(Memory { limit: Some(-1), ..Memory::default() }), When::Fresh).unwrap();
    assert_eq!((fake.read("memory.max"), fake.read("memory.swap.max")), ("max".into(), "max".into()));
    let error =
        fake.apply(&memory(Memory { limit: Some(100), swap: Some(99), ..Memory::default() }), When::Fresh).unwrap_err();
    assert!(error.contains("below the memory limit"), "{error}");
    let error = fake.apply(&memory(Memory { swap: Some(99), ..Memory::default() }), When::Fresh).unwrap_err();
    assert!(error.contains("needs a memory limit"), "{error}");
}

#[test]
fn v2_swap_without_swap_support_is_refused_only_when_it_is_wanted() {
    let fake = Fake::v2("memory", &["memory.max"]);
    fake.apply(&memory(Memory { limit: Some(100), swap: Some(100), ..Memory::default() }), When::Fresh).unwrap();
    fake.apply(&memory(Memory { limit: Some(100), swap: Some(-1), ..Memory::default() }), When::Fresh).unwrap();
    let error = fake
        .apply(&memory(Memory { limit: Some(100), swap: Some(101), ..Memory::default() }), When::Fresh)
        .unwrap_err();
    assert!(error.contains("swapaccount=1"), "{error}");
}

#[test]
fn v2_a_limit_below_what_cannot_be_given_up_is_refused() {
    let fake = Fake::v2("memory", &["memory.max", "memory.current", "memory.stat"]);
    fake.set("memory.current", "1000\n");
    fake.set("memory.stat", "anon 500\ninactive_file 300\nactive_file 200\n");
    let limit =
        |limit, check_before_update| memory(Memory { limit: Some(limit), check_before_update, ..Memory::default() });
    fake.apply(&limit(600, false), When::Live).unwrap();
    assert_eq!(fake.read("memory.max"), "600");
    let error = fake.apply(&limit(499, false), When::Live).unwrap_err();
    assert!(error.contains("499") && error.contains("500 bytes are in use"), "{error}");
    let error = fake.apply(&limit(600, true), When::Live).unwrap_err();
    assert!(error.contains("1000 bytes"), "{error}");
    assert_eq!(fake.read("memory.max"), "600");
}

#[test]
fn v1_swap_without_accounting_is_clear() {
    let fake = Fake::v1("memory", &["memory.limit_in_bytes"]);
    let error = fake
        .apply(&memory(Memory { limit: Some(100), swap: Some(200), ..Memory::default() }), When::Fresh)
        .unwrap_err();
    assert!(error.contains("memory.memsw.limit_in_bytes") && error.contains("swapaccount=1"), "{error}");
    fake.apply(&memory(Memory { limit: Some(100), swap: Some(-1), ..Memory::default() }), When::Fresh).unwrap();
    assert_eq!(fake.read("memory.limit_in_bytes"), "100");
}

#[test]
fn an_update_that_is_refused_has_written_nothing() {
    let fake = Fake::v2("memory cpu", &["memory.max", "memory.current", "memory.stat", "cpu.weight", "cpu.max"]);
    fake.set("memory.current", "1000\n");
    fake.set("memory.stat", "anon 1000\n");
    let cpu = Some(Cpu { shares: Some(2048), ..Cpu::default() });
    let update = Resources { cpu: cpu.clone(), ..memory(Memory { limit: Some(10), ..Memory::default() }) };
    fake.apply(&update, When::Live).unwrap_err();
    let unified = [("memory.nonsense".to_owned(), "1".to_owned())].into();
    let update = Resources { cpu, unified, ..memory(Memory { limit: Some(4000), ..Memory::default() }) };
    let error = fake.apply(&update, When::Live).unwrap_err();
    assert!(error.contains("memory.nonsense"), "{error}");
    let idle = Some(Cpu { period: Some(1), ..Cpu::default() });
    let update = Resources { cpu: idle, ..memory(Memory { limit: Some(4000), ..Memory::default() }) };
    fake.apply(&update, When::Live).unwrap_err();
    assert_eq!((fake.read("cpu.weight"), fake.read("memory.max")), (String::new(), String::new()));
}

#[test]
fn v1_a_raised_limit_keeps_its_allowance_of_swap() {
    let fake = Fake::v1("memory", &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]);
    fake.set("memory.limit_in_bytes", "100\n");
    fake.set("memory.memsw.limit_in_bytes", "150\n");
    fake.apply(&memory(Memory { limit: Some(400), ..Memory::default() }), When::Live).unwrap();
    assert_eq!(
        (fake.read("memory.limit_in_bytes"), fake.read("memory.memsw.limit_in_bytes")),
        ("400".into(), "450".into())
    );
    fake.apply(&memory(Memory { limit: Some(-1), ..Memory::default() }), When::Live).unwrap();
    assert_eq!(
        (fake.read("memory.limit_in_bytes"), fake.read("memory.memsw.limit_in_bytes")),
        ("-1".into(), "-1".into())
    );
}

#[test]
fn a_limit_without_its_controller_names_it() {
    let fake = Fake::v2("cpu", &[]);
    for (resources, controller) in [
        (memory(Memory { limit: Some(1), ..Memory::default() }), "`memory`"),
        (Resources { pids: Some(Pids { limit: Some(1) }), ..Resources::default() }, "`pids`"),
        (cpu(Cpu { cpus: "0".into(), ..Cpu::default() }), "`cpuset`"),
        (
            Resources {
                hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 1 }],
                ..Resources::default()
            },
            "`hugetlb`",
        ),
        (Resources { block_io: Some(BlockIo::default()), ..Resources::default() }, "`io`"),
    ] {
        let error = fake.apply(&resources, When::Fresh).unwrap_err();
        assert!(error.contains(controller) && error.contains("no"), "{error}");
    }
    for resources in [
        memory(Memory { limit: Some(-1), ..Memory::default() }),
        Resources { pids: Some(Pids { limit: Some(-1) }), ..Resources::default() },
        Resources {
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: u64::MAX }],
            ..Resources::default()
        },
    ] {
        fake.apply(&resources, When::Live).unwrap();
    }
}

#[test]
fn huge_pages_count_their_reservations_too() {
    let fake = Fake::v2("hugetlb", &["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"]);
    let limit = |page_size: &str, limit| Resources {
        hugepage_limits: vec![HugepageLimit { page_size: page_size.into(), limit }],
        ..Resources::default()
    };
    fake.apply(&limit("2MB", 4096), When::Fresh).unwrap();
    assert_eq!((fake.read("hugetlb.2MB.max"), fake.read("hugetlb.2MB.rsvd.max")), ("4096".into(), "4096".into()));
    fake.apply(&limit("1GB", 0), When::Fresh).unwrap();
    assert!(fake.apply(&limit("1GB", 1), When::Fresh).unwrap_err().contains("no pages of that size"));
    for bad in ["2", "MB", "../2MB", "2TB", "2MB/x", ""] {
        assert!(fake.apply(&limit(bad, 0), When::Fresh).is_err(), "{bad}");
    }
}

#[test]
fn unified_files_are_names_of_limits_that_exist() {
    let fake = Fake::v2("memory", &["memory.oom.group", "memory.high", "cgroup.procs", "cgroup.max.depth"]);
    let unified = |key: &str, value: &str| Resources {
        unified: [(key.to_owned(), value.to_owned())].into(),
        ..Resources::default()
    };
    fake.apply(&unified("memory.oom.group", "1"), When::Fresh).unwrap();
    assert_eq!(fake.read("memory.oom.group"), "1");
    fake.apply(&unified("cgroup.max.depth", "3"), When::Fresh).unwrap();
    for (bad, expected) in [
        ("../c/memory.high", "no name"),
        ("a/memory.high", "no name"),
        ("", "no name"),
        (".hidden", "no name"),
        ("memory", "no name"),
        ("memory.high\0", "no name"),
        ("memory.none", "this kernel has no `memory.none`"),
        ("cgroup.procs", "no limit"),
    ] {
        let error = fake.apply(&unified(bad, "1"), When::Fresh).unwrap_err();
        assert!(error.contains(expected), "{bad}: {error}");
    }
    let v1 = Fake::v1("memory", &[]);
    assert!(v1.apply(&unified("memory.high", "1"), When::Fresh).unwrap_err().contains("cgroup v1"));
}

#[test]
fn block_io_is_throttled_by_line_and_weighed_where_weights_exist() {
    let fake = Fake::v2("io", &["io.max", "io.weight"]);
    let rate = |rate| vec![ThrottleDevice { major: 8, minor: 0, rate }];
    let io = BlockIo { weight: Some(500), throttle_read_bps_device: rate(1000), ..BlockIo::default() };
    fake.apply(&Resources { block_io: Some(io), ..Resources::default() }, When::Fresh).unwrap();
    assert_eq!((fake.read("io.max"), fake.read("io.weight")), ("8:0 rbps=1000".into(), "default 4950".into()));
    let io = BlockIo { throttle_write_iops_device: rate(0), ..BlockIo::default() };
    fake.set("io.max", "");
    fake.apply(&Resources { block_io: Some(io), ..Resources::default() }, When::Fresh).unwrap();
    assert!(fake.read("io.max").starts_with("8:0 wiops=max"), "{}", fake.read("io.max"));
    let bare = Fake::v2("io", &["io.max"]);
    let io = BlockIo { weight: Some(500), ..BlockIo::default() };
    let error = bare.apply(&Resources { block_io: Some(io), ..Resources::default() }, When::Fresh).unwrap_err();
    assert!(error.contains("scheduler with weights"), "{error}");
}

#[test]
fn values_out_of_the_kernels_range_are_refused_with_the_range() {
    let fake = Fake::v2("cpu", &["cpu.max", "cpu.weight", "cpu.idle"]);
    for (bad, expected) in [
        (Cpu { quota: Some(999), ..Cpu::default() }, "1000"),
        (Cpu { quota: Some(5000), period: Some(10), ..Cpu::default() }, "1000 to 1000000"),
        (Cpu { period: Some(2_000_000), ..Cpu::default() }, "1000 to 1000000"),
        (Cpu { idle: Some(2), ..Cpu::default() }, "0 or 1"),
        (Cpu { realtime_runtime: Some(5), ..Cpu::default() }, "no realtime"),
    ] {
        let error = fake.apply(&cpu(bad), When::Fresh).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
