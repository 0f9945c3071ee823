//! Cgroups of this machine, whatever its hierarchies: made, limited, watched, killed, removed; as root, on real processes.
//! Every cgroup is named keelson-test-*, and every test ends by looking that none of its own is left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keelson_shim::cgroup::{CgroupError, Depth, Handle, Location, Mode, detect, systemd_is_running};
use keelson_shim::spec::{Cpu, DeviceRule, Memory, Pids, Resources};

const MIB: i64 = 1 << 20;

/// A cgroup that is gone at the end of the test, however that comes.
struct Own {
    handle: Handle,
    parent: Option<String>,
}

impl Own {
    fn new(name: &str, resources: &Resources) -> Own {
        let path = format!("/keelson-test-{name}-{}", std::process::id());
        Own { handle: Handle::create(&Location::Path(&path), resources).unwrap(), parent: None }
    }

    fn plain(name: &str) -> Own {
        Own::new(name, &Resources::default())
    }

    /// The container's directory in every hierarchy.
    fn dirs(&self) -> Vec<PathBuf> {
        dirs(&self.handle)
    }

    fn file(&self, controller: &str, file: &str) -> PathBuf {
        file_of(&self.handle, controller, file)
    }

    fn read(&self, controller: &str, file: &str) -> String {
        std::fs::read_to_string(self.file(controller, file)).unwrap().trim().to_owned()
    }

    /// Runs a shell command as a member.
    fn run(&self, script: &str) -> Child {
        run_in(&self.dirs(), script)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.handle.kill();
        let removed = self.handle.remove();
        for dir in self.parent.iter().flat_map(|parent| roots().into_iter().map(move |root| root.join(parent))) {
            let _ = std::fs::remove_dir(dir);
        }
        if !std::thread::panicking() {
            removed.unwrap();
            assert!(self.dirs().iter().all(|dir| !dir.exists()), "a directory is left");
        }
    }
}

fn dirs(handle: &Handle) -> Vec<PathBuf> {
    match handle.controller_dirs() {
        dirs if dirs.is_empty() => vec![Path::new("/sys/fs/cgroup").join(handle.paths().path.trim_start_matches('/'))],
        dirs => dirs.into_iter().map(|(_, dir)| dir).collect(),
    }
}

fn roots() -> Vec<PathBuf> {
    let own = Handle::at(&Location::Path("/x")).unwrap();
    dirs(&own).into_iter().map(|dir| dir.parent().unwrap().to_owned()).collect()
}

fn file_of(handle: &Handle, controller: &str, file: &str) -> PathBuf {
    let dirs = dirs(handle);
    let has = |dir: &&PathBuf| dir.to_str().unwrap().split(['/', ',']).any(|part| part == controller);
    dirs.iter().find(has).or(dirs.last()).unwrap().join(file)
}

fn run_in(dirs: &[PathBuf], script: &str) -> Child {
    let join: String = dirs.iter().map(|dir| format!("echo 0 > {}/cgroup.procs || exit 99; ", dir.display())).collect();
    Command::new("/bin/sh")
        .args(["-c", &format!("{join}{script}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn output(child: Child) -> String {
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn mode() -> Mode {
    detect().unwrap().mode()
}

fn memory(memory: Memory) -> Resources {
    Resources { memory: Some(memory), ..Resources::default() }
}

fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> DeviceRule {
    let number = |n: i64| (n >= 0).then_some(n);
    DeviceRule { allow, kind: kind.into(), major: number(major), minor: number(minor), access: access.into() }
}

#[test]
fn privileged_every_hierarchy_gets_the_cgroup_with_its_limits() {
    let own = Own::new(
        "limits",
        &Resources {
            cpu: Some(Cpu {
                shares: Some(512),
                quota: Some(50_000),
                period: Some(100_000),
                cpus: "0".into(),
                ..Cpu::default()
            }),
            memory: Some(Memory { limit: Some(64 * MIB), reservation: Some(32 * MIB), ..Memory::default() }),
            pids: Some(Pids { limit: Some(77) }),
            ..Resources::default()
        },
    );
    assert!(own.dirs().iter().all(|dir| dir.is_dir()), "{:?}", own.dirs());
    assert_eq!(own.read("pids", "pids.max"), "77");
    assert_eq!(own.read("cpuset", "cpuset.cpus"), "0");
    match mode() {
        Mode::V2 => {
            assert_eq!(
                (own.read("cpu", "cpu.weight"), own.read("cpu", "cpu.max")),
                ("59".into(), "50000 100000".into())
            );
            assert_eq!(own.read("memory", "memory.max"), (64 * MIB).to_string());
            assert_eq!(own.read("memory", "memory.low"), (32 * MIB).to_string());
        }
        Mode::V1 | Mode::Hybrid => {
            assert_eq!(
                (own.read("cpu", "cpu.shares"), own.read("cpu", "cpu.cfs_quota_us")),
                ("512".into(), "50000".into())
            );
            assert_eq!(own.read("memory", "memory.limit_in_bytes"), (64 * MIB).to_string());
            assert_eq!(own.read("memory", "memory.soft_limit_in_bytes"), (32 * MIB).to_string());
            assert_ne!(own.read("cpuset", "cpuset.mems"), "", "inherited");
        }
    }
    let shown = output(own.run("cat /proc/self/cgroup"));
    let path = own.handle.paths().path;
    assert!(shown.lines().all(|line| line.ends_with(&path)), "{shown}");
}

#[test]
fn privileged_missing_parents_are_made_and_stay() {
    let parent = format!("keelson-test-parents-{}", std::process::id());
    let path = format!("{parent}/sub/leaf");
    let handle = Handle::create(&Location::Path(&path), &Resources::default()).unwrap();
    assert!(dirs(&handle).iter().all(|dir| dir.is_dir()));
    assert_eq!(
        output(run_in(&dirs(&handle), "echo in")),
        "in",
        "a process can enter: cpusets are inherited all the way"
    );
    handle.remove().unwrap();
    handle.remove().unwrap();
    assert!(dirs(&handle).iter().all(|dir| !dir.exists() && dir.parent().unwrap().is_dir()));
    for dir in dirs(&handle) {
        let sub = dir.parent().unwrap();
        std::fs::remove_dir(sub).unwrap();
        std::fs::remove_dir(sub.parent().unwrap()).unwrap();
    }
}

#[test]
fn privileged_a_refused_limit_leaves_nothing_behind() {
    let parent = format!("keelson-test-refused-{}", std::process::id());
    let path = format!("/{parent}/leaf");
    let resources = Resources { cpu: Some(Cpu { cpus: "4000".into(), ..Cpu::default() }), ..Resources::default() };
    let error = Handle::create(&Location::Path(&path), &resources).unwrap_err();
    assert!(matches!(error, CgroupError::Write { ref value, .. } if value == "4000"), "{error}");
    assert!(roots().iter().all(|root| !root.join(&parent).exists()), "the parents were ours too");
}

#[test]
fn privileged_an_empty_leftover_is_made_anew_and_a_used_one_refused() {
    let own = Own::new("again", &Resources { pids: Some(Pids { limit: Some(5) }), ..Resources::default() });
    let path = own.handle.paths().path;
    Handle::create(&Location::Path(&path), &Resources::default()).unwrap();
    assert_eq!(own.read("pids", "pids.max"), "max");
    let mut child = own.run("exec sleep 1000");
    eventually("the child is a member", || !own.handle.is_empty().unwrap() && own.handle.pids().unwrap().len() == 1);
    let error = Handle::create(&Location::Path(&path), &Resources::default()).unwrap_err();
    assert!(matches!(error, CgroupError::Occupied { .. }), "{error}");
    assert!(own.dirs().iter().all(|dir| dir.is_dir()), "a refusal removes nothing of the other's");
    own.handle.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn privileged_a_thread_gets_in_by_the_tasks_files_alone() {
    let own = Own::plain("tasks");
    let fds = own.handle.join_fds().unwrap();
    assert_eq!(fds.unified.is_some(), mode() != Mode::V1);
    assert_eq!(fds.tasks.len(), own.handle.controller_dirs().len().saturating_sub(usize::from(mode() == Mode::Hybrid)));
    if mode() == Mode::V2 {
        return;
    }
    let path = own.handle.paths().path;
    std::thread::spawn(move || {
        for task in &fds.tasks {
            rustix::io::write(task, b"0").unwrap();
        }
        let shown = std::fs::read_to_string("/proc/thread-self/cgroup").unwrap();
        assert!(shown.lines().filter(|line| !line.starts_with("0::")).all(|line| line.ends_with(&path)), "{shown}");
    })
    .join()
    .unwrap();
}

#[test]
fn privileged_kill_reaches_everything_also_while_it_forks() {
    let own = Own::plain("kill");
    let mut child = own.run("while :; do (while :; do sleep 0.01 & done) & sleep 0.02; done");
    eventually("it forks", || own.handle.pids().is_ok_and(|pids| pids.len() > 20));
    own.handle.kill().unwrap();
    child.wait().unwrap();
    eventually("all are dead", || own.handle.is_empty().unwrap());
}

#[test]
fn privileged_what_is_frozen_is_killed_too() {
    let own = Own::plain("frozen");
    let mut child = own.run("exec sleep 1000");
    eventually("the child is a member", || own.handle.pids().unwrap().len() == 1);
    own.handle.freeze().unwrap();
    if mode() != Mode::V2 {
        let state = own.file("freezer", "freezer.state");
        rustix::io::write(std::fs::OpenOptions::new().write(true).open(state).unwrap(), b"FROZEN").unwrap();
    }
    own.handle.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    own.handle.thaw().unwrap();
}

#[test]
fn privileged_freeze_stops_and_thaw_resumes() {
    let own = Own::plain("pause");
    let mut child = own.run("while :; do :; done");
    let spent = || own.handle.stats().unwrap().cpu_usage_ns;
    eventually("it runs", || spent() > 20_000_000);
    own.handle.freeze().unwrap();
    let mut before = spent();
    eventually("it stands still", || {
        std::thread::sleep(Duration::from_millis(100));
        let still = spent() == before;
        before = spent();
        still
    });
    own.handle.thaw().unwrap();
    let frozen_at = spent();
    eventually("it runs again", || spent() > frozen_at + 20_000_000);
    own.handle.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn privileged_a_leaf_dies_alone() {
    let own = Own::plain("leaf");
    let mut main = own.run("exec sleep 1000");
    let leaf = own.handle.leaf("exec-1.x").unwrap();
    assert!(matches!(own.handle.leaf("exec-1.x"), Err(CgroupError::Occupied { .. })));
    assert!(own.handle.leaf("../x").is_err() && own.handle.leaf("").is_err());
    assert!(leaf.is_empty().unwrap());
    let mut dirs = own.dirs();
    if let Some(unified) = dirs.last_mut() {
        *unified = unified.join("exec-exec-1.x");
    }
    // A background child outlives what started it and is a member still.
    let started = run_in(&dirs, "sleep 1000 >/dev/null & sleep 1000 > /dev/null & echo started");
    assert_eq!(output(started), "started");
    eventually("three are members", || own.handle.pids().unwrap().len() == 3);
    assert!(!leaf.is_empty().unwrap());
    assert!(leaf.join_fds().unwrap().unified.is_some());
    leaf.kill().unwrap();
    eventually("the leaf is empty", || leaf.is_empty().unwrap());
    leaf.remove().unwrap();
    leaf.remove().unwrap();
    assert_eq!(own.handle.pids().unwrap(), [i32::try_from(main.id()).unwrap()]);
    own.handle.kill().unwrap();
    main.wait().unwrap();
}

#[test]
fn privileged_an_oom_kill_is_counted() {
    let own = Own::new("oom", &memory(Memory { limit: Some(16 * MIB), ..Memory::default() }));
    assert_eq!(own.handle.oom_kills(), 0);
    // tail keeps the last line, and this one has no end.
    let status = own.run("exec tail /dev/zero").wait().unwrap();
    assert!(!status.success());
    assert!(own.handle.oom_kills() >= 1);
}

#[test]
fn privileged_the_limit_of_processes_holds() {
    let own = Own::new("pids", &Resources { pids: Some(Pids { limit: Some(3) }), ..Resources::default() });
    let child = own.run("n=0; for i in 1 2 3 4 5; do sleep 1000 >/dev/null & done 2>/dev/null; echo never");
    eventually("it is at its limit", || own.handle.stats().unwrap().processes == 3);
    assert_eq!(own.handle.stats().unwrap().processes_limit, Some(3));
    own.handle.kill().unwrap();
    assert_ne!(output(child), "never", "the shell could not fork");
}

#[test]
fn privileged_stats_tell_what_was_used_and_are_read_again_by_the_same_files() {
    let own = Own::new("stats", &memory(Memory { limit: Some(128 * MIB), ..Memory::default() }));
    let mut child = own.run("x=$(head -c 8000000 /dev/zero | tr '\\0' x); while :; do :; done");
    let reader = own.handle.stats_reader(Depth::Usage).unwrap();
    let mut buffer = Vec::new();
    eventually("it uses cpu and memory", || {
        let stats = own.handle.stats().unwrap();
        stats.cpu_usage_ns > 10_000_000 && stats.memory.rss > 8_000_000
    });
    let first = reader.read(&mut buffer).unwrap();
    assert!(first.memory.usage >= first.memory.working_set && first.memory.working_set >= first.memory.rss / 2);
    assert_eq!(first.memory.limit, Some(128 << 20));
    assert!(first.memory.available().unwrap() < 128 << 20);
    assert!(first.memory.page_faults > 0);
    assert!(first.processes >= 1);
    if mode() == Mode::V2 {
        assert!(first.cpu_pressure.is_some() && first.memory_pressure.is_some() && first.io_pressure.is_some());
    }
    eventually("a later reading is later", || reader.read(&mut Vec::new()).unwrap().cpu_usage_ns > first.cpu_usage_ns);
    own.handle.kill().unwrap();
    child.wait().unwrap();
    own.handle.remove().unwrap();
    assert!(reader.read(&mut buffer).is_err(), "the cgroup is gone");
    assert!(own.handle.stats().is_err());
}

#[test]
fn privileged_live_updates_change_what_they_name_only() {
    let own = Own::new("update", &memory(Memory { limit: Some(64 * MIB), ..Memory::default() }));
    let mut child =
        own.run("x=$(head -c 24000000 /dev/zero | tr '\\0' x); echo ready; exec 1>&-; while :; do sleep 1; done");
    let mut ready = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    assert_eq!(ready.trim(), "ready");
    let limit = || own.handle.stats().unwrap().memory.limit;
    own.handle.update(&memory(Memory { limit: Some(256 * MIB), ..Memory::default() })).unwrap();
    assert_eq!(limit(), Some(256 << 20));
    let error = own.handle.update(&memory(Memory { limit: Some(4 * MIB), ..Memory::default() })).unwrap_err();
    assert!(matches!(error, CgroupError::Shrink { limit: 4_194_304, usage } if usage > 20_000_000), "{error}");
    assert_eq!(limit(), Some(256 << 20), "still as before");
    assert!(child.try_wait().unwrap().is_none(), "and nobody was killed for it");
    own.handle
        .update(&Resources {
            cpu: Some(Cpu { quota: Some(20_000), period: Some(50_000), shares: Some(2048), ..Cpu::default() }),
            pids: Some(Pids { limit: Some(50) }),
            ..Resources::default()
        })
        .unwrap();
    own.handle
        .update(&Resources { cpu: Some(Cpu { period: Some(100_000), ..Cpu::default() }), ..Resources::default() })
        .unwrap();
    assert_eq!((limit(), own.handle.stats().unwrap().processes_limit), (Some(256 << 20), Some(50)));
    match mode() {
        Mode::V2 => assert_eq!(own.read("cpu", "cpu.max"), "20000 100000"),
        Mode::V1 | Mode::Hybrid => assert_eq!(own.read("cpu", "cpu.cfs_quota_us"), "20000"),
    }
    own.handle.update(&memory(Memory { limit: Some(-1), ..Memory::default() })).unwrap();
    assert_eq!(limit(), None);
    own.handle.update(&Resources { pids: Some(Pids { limit: Some(-1) }), ..Resources::default() }).unwrap();
    assert_eq!(own.handle.stats().unwrap().processes_limit, None);
    own.handle.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn privileged_memory_and_swap_together_are_lowered_and_raised() {
    let both = |limit: i64, swap: i64| {
        memory(Memory { limit: Some(limit * MIB), swap: Some(swap * MIB), ..Memory::default() })
    };
    let own = Own::new("swap", &both(64, 64));
    for (limit, swap) in [(64, 64), (256, 256), (32, 40), (48, 48), (16, 512), (300, 400)] {
        own.handle.update(&both(limit, swap)).unwrap();
        let stats = own.handle.stats().unwrap();
        assert_eq!(stats.memory.limit, u64::try_from(limit * MIB).ok(), "{limit} {swap}");
        assert_eq!(stats.swap.and_then(|s| s.limit), u64::try_from((swap - limit) * MIB).ok(), "{limit} {swap}");
    }
    own.handle.update(&memory(Memory { limit: Some(-1), swap: Some(-1), ..Memory::default() })).unwrap();
    assert_eq!(own.handle.stats().unwrap().memory.limit, None);
}

#[test]
fn privileged_device_rules_open_what_they_allow_and_nothing_else() {
    let usual = |more: &[DeviceRule]| {
        let mut rules =
            vec![rule(false, "", -1, -1, "rwm"), rule(true, "c", -1, -1, "m"), rule(true, "c", 1, 3, "rwm")];
        rules.extend_from_slice(more);
        Resources { devices: rules, ..Resources::default() }
    };
    let own = Own::new("devices", &usual(&[]));
    // `sh` opens nothing but /dev/null here; each word tells whether one device opens.
    let look = |own: &Own| {
        let probe = |device: &str, how: &str| format!("(: {how} {device}) 2>/dev/null && printf y || printf n; ");
        let script = [("/dev/null", "<>"), ("/dev/zero", "<"), ("/dev/zero", ">"), ("/dev/full", "<")]
            .map(|(d, how)| probe(d, how));
        output(own.run(&script.concat()))
    };
    assert_eq!(look(&own), "ynnn");
    let zero = rule(true, "c", 1, 5, "r");
    own.handle.update(&usual(std::slice::from_ref(&zero))).unwrap();
    assert_eq!(look(&own), "yynn");
    own.handle.update(&usual(&[zero, rule(true, "c", 1, 5, "w"), rule(true, "c", 1, 7, "rw")])).unwrap();
    assert_eq!(look(&own), "yyyy");
    own.handle.update(&usual(&[rule(true, "c", 1, 7, "r")])).unwrap();
    assert_eq!(look(&own), "ynny");
    own.handle.update(&Resources { pids: Some(Pids { limit: Some(100) }), ..Resources::default() }).unwrap();
    assert_eq!(look(&own), "ynny", "an update without devices leaves them");
    own.handle.update(&Resources { devices: vec![rule(true, "a", -1, -1, "rwm")], ..Resources::default() }).unwrap();
    assert_eq!(look(&own), "yyyy");
}

#[test]
fn privileged_a_handle_is_opened_again_from_its_record() {
    let own = Own::plain("record");
    let record = serde_json::to_string(&own.handle.paths()).unwrap();
    let again = Handle::open(&serde_json::from_str(&record).unwrap()).unwrap();
    assert_eq!(again.paths(), own.handle.paths());
    assert!(again.is_empty().unwrap());
    assert!(Handle::open(&serde_json::from_str(r#"{"path":"/../etc"}"#).unwrap()).is_err());
    let missing = Handle::at(&Location::Path("/keelson-test-missing/none")).unwrap();
    assert!(missing.is_empty().unwrap() && missing.pids().unwrap().is_empty());
    missing.kill().unwrap();
    missing.remove().unwrap();
    assert_eq!(missing.oom_kills(), 0);
}

#[test]
fn privileged_cgroups_below_the_containers_are_removed_with_it() {
    let own = Own::plain("nested");
    for dir in own.dirs() {
        std::fs::create_dir_all(dir.join("a/b/c")).unwrap();
        std::fs::create_dir_all(dir.join("a/d")).unwrap();
    }
    own.handle.remove().unwrap();
    assert!(own.dirs().iter().all(|dir| !dir.exists()));
}

#[test]
fn privileged_v2_files_of_the_unified_map_are_written() {
    let unified = |entries: &[(&str, &str)]| Resources {
        unified: entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..Resources::default()
    };
    let resources = unified(&[("memory.oom.group", "1"), ("memory.high", "33554432"), ("pids.max", "9")]);
    if mode() != Mode::V2 {
        let path = format!("/keelson-test-unified-{}", std::process::id());
        let error = Handle::create(&Location::Path(&path), &resources).unwrap_err().to_string();
        assert!(error.contains("cgroup v2"), "{error}");
        return;
    }
    let own = Own::new("unified", &resources);
    for (file, value) in [("memory.oom.group", "1"), ("memory.high", "33554432"), ("pids.max", "9")] {
        assert_eq!(own.read("", file), value);
    }
    let error = own.handle.update(&unified(&[("memory.none", "1")])).unwrap_err().to_string();
    assert!(error.contains("memory.none"), "{error}");
    // One victim, and the kernel takes the whole group: the count knows.
    own.handle
        .update(&unified(&[("memory.high", "max"), ("memory.max", "16777216"), ("memory.swap.max", "0")]))
        .unwrap();
    let mut child = own.run("sleep 1000 > /dev/null & tail /dev/zero; sleep 1000");
    child.wait().unwrap();
    eventually("the group is dead", || own.handle.is_empty().unwrap());
    assert!(own.handle.oom_kills() >= 1);
}

mod scope {
    use super::*;

    /// A scope that is stopped at the end.
    struct Scope {
        handle: Handle,
        child: Child,
        unit: String,
    }

    impl Scope {
        fn start(name: &str, resources: &Resources) -> Result<Scope, CgroupError> {
            let id = format!("{name}{}", std::process::id());
            let location = format!("keelson-test-{name}.slice:kt:{id}");
            let location = Location::parse(&location, true)?;
            let handle = Handle::at(&location)?;
            let child = Command::new("/bin/sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
            let mut scope = Scope { handle, child, unit: format!("kt-{id}.scope") };
            scope.handle = Handle::create_scope(&location, i32::try_from(scope.child.id()).unwrap(), resources)?;
            Ok(scope)
        }

        fn property(&self, name: &str) -> String {
            let out = Command::new("systemctl").args(["show", "--value", "-p", name, &self.unit]).output().unwrap();
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        }

        fn read(&self, file: &str) -> String {
            std::fs::read_to_string(file_of(&self.handle, "unified", file)).unwrap().trim().to_owned()
        }
    }

    impl Drop for Scope {
        fn drop(&mut self) {
            let _ = self.handle.kill();
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = self.handle.remove();
            let path = self.handle.paths().path;
            let slice = path.split('/').rfind(|part| part.ends_with(".slice")).unwrap_or_default();
            let _ = Command::new("systemctl").args(["stop", slice]).status();
        }
    }

    fn ready(test: &str) -> bool {
        if systemd_is_running() && mode() == Mode::V2 {
            return true;
        }
        println!("SKIP {test}: systemd with cgroup v2 is not what this machine runs; e2e/v2vm/run-tests brings one");
        false
    }

    fn limits() -> Resources {
        Resources {
            cpu: Some(Cpu {
                shares: Some(512),
                quota: Some(12_345),
                period: Some(50_000),
                cpus: "0".into(),
                ..Cpu::default()
            }),
            memory: Some(Memory {
                limit: Some(64 * MIB),
                swap: Some(64 * MIB),
                reservation: Some(8 * MIB),
                ..Memory::default()
            }),
            pids: Some(Pids { limit: Some(77) }),
            devices: vec![rule(false, "", -1, -1, "rwm"), rule(true, "c", 1, 3, "rwm")],
            unified: [("memory.oom.group", "1"), ("memory.high", "50331648")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            ..Resources::default()
        }
    }

    /// systemd removes a scope with its last process, and its count with it: whoever looks a moment later has the slice's.
    #[test]
    fn privileged_a_kill_for_memory_is_known_when_systemd_has_taken_the_scope_away() {
        if !ready("privileged_a_kill_for_memory_is_known_when_systemd_has_taken_the_scope_away") {
            return;
        }
        let memory = Memory { limit: Some(16 * MIB), swap: Some(16 * MIB), ..Memory::default() };
        let unified = [("memory.oom.group".to_owned(), "1".to_owned())].into();
        let resources = Resources { memory: Some(memory), unified, ..Resources::default() };
        let mut scope = Scope::start("oom", &resources).unwrap();
        let before = scope.handle.oom_kills_above();
        assert!(before.is_some() && !scope.handle.had_oom_kill(before, true), "its own count says none");
        let list = file_of(&scope.handle, "unified", "cgroup.procs");
        let script = format!("echo $$ > {}; exec tail /dev/zero", list.display());
        let mut hungry = Command::new("/bin/sh").args(["-c", &script]).spawn().unwrap();
        assert!(!hungry.wait().unwrap().success() && !scope.child.wait().unwrap().success());
        eventually("systemd has taken the cgroup away", || !list.exists());
        assert_eq!(scope.handle.oom_kills(), 0);
        assert!(scope.handle.had_oom_kill(before, true));
        assert!(!scope.handle.had_oom_kill(before, false), "the init ended otherwise");
        assert!(!scope.handle.had_oom_kill(scope.handle.oom_kills_above(), true), "nothing was killed since");
    }

    #[test]
    fn privileged_a_scope_holds_its_limits_through_a_reload() {
        if !ready("privileged_a_scope_holds_its_limits_through_a_reload") {
            return;
        }
        let scope = Scope::start("reload", &limits()).unwrap();
        let path = scope.handle.paths();
        assert_eq!(path.path, format!("/keelson.slice/keelson-test.slice/keelson-test-reload.slice/{}", scope.unit));
        assert_eq!(scope.property("ActiveState"), "active");
        assert_eq!((scope.property("Delegate"), scope.property("DefaultDependencies")), ("yes".into(), "no".into()));
        assert_eq!(scope.property("CollectMode"), "inactive-or-failed");
        let expected = [
            ("cpu.weight", "59"),
            ("cpuset.cpus", "0"),
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("memory.low", "8388608"),
            ("memory.high", "50331648"),
            ("memory.oom.group", "1"),
            ("pids.max", "77"),
        ];
        let check = |when: &str| {
            for (file, value) in expected {
                assert_eq!(scope.read(file), value, "{file} {when}");
            }
            let quota = scope.read("cpu.max");
            assert!(["12345 50000", "12500 50000"].contains(&quota.as_str()), "{quota} {when}");
            let script = "(: < /dev/null) 2>/dev/null && printf y; (: < /dev/zero) 2>/dev/null && printf y || printf n";
            assert_eq!(output(run_in(&dirs(&scope.handle), script)), "yn", "devices {when}");
        };
        check("at the start");
        assert_eq!(scope.read("cpu.max"), "12345 50000");
        for _ in 0..3 {
            assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
            check("after a reload");
        }
        // Starting another unit beside it makes systemd walk the same slices.
        assert!(Command::new("systemd-run").args(["--scope", "-q", "true"]).status().unwrap().success());
        check("after another unit");
    }

    #[test]
    fn privileged_an_update_is_kept_through_a_reload() {
        if !ready("privileged_an_update_is_kept_through_a_reload") {
            return;
        }
        let scope = Scope::start("update", &limits()).unwrap();
        let update = Resources {
            cpu: Some(Cpu { quota: Some(30_000), period: Some(100_000), shares: Some(2048), ..Cpu::default() }),
            memory: Some(Memory { limit: Some(128 * MIB), swap: Some(128 * MIB), ..Memory::default() }),
            pids: Some(Pids { limit: Some(99) }),
            ..Resources::default()
        };
        scope.handle.update(&update).unwrap();
        for when in ["at once", "after a reload"] {
            assert_eq!(scope.read("cpu.max"), "30000 100000", "{when}");
            assert_eq!(scope.read("memory.max"), "134217728", "{when}");
            assert_eq!(scope.read("pids.max"), "99", "{when}");
            assert_eq!(scope.read("memory.oom.group"), "1", "{when}");
            assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
        }
    }

    #[test]
    fn privileged_a_removed_scope_is_gone_and_its_name_free() {
        if !ready("privileged_a_removed_scope_is_gone_and_its_name_free") {
            return;
        }
        for round in 0..3 {
            let mut scope = Scope::start("again", &Resources::default()).unwrap();
            let leaf = scope.handle.leaf("probe").unwrap();
            assert!(leaf.unified_fd().unwrap().is_some());
            assert!(dirs(&scope.handle)[0].is_dir(), "{round}");
            assert_eq!(scope.handle.pids().unwrap(), [i32::try_from(scope.child.id()).unwrap()]);
            scope.handle.kill().unwrap();
            scope.child.wait().unwrap();
            scope.handle.remove().unwrap();
            scope.handle.remove().unwrap();
            assert!(!dirs(&scope.handle)[0].exists());
            assert_eq!(scope.property("LoadState"), "not-found");
        }
    }

    #[test]
    fn privileged_a_scope_of_a_dead_process_fails_clearly_and_leaves_nothing() {
        if !ready("privileged_a_scope_of_a_dead_process_fails_clearly_and_leaves_nothing") {
            return;
        }
        let mut dead = Command::new("/bin/true").spawn().unwrap();
        dead.wait().unwrap();
        let location = Location::parse("keelson-test-dead.slice:kt:dead", true).unwrap();
        let error =
            Handle::create_scope(&location, i32::try_from(dead.id()).unwrap(), &Resources::default()).unwrap_err();
        let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(text.contains("start systemd unit `kt-dead.scope`"), "{text}");
        assert!(
            !Path::new("/sys/fs/cgroup/keelson.slice/keelson-test.slice/keelson-test-dead.slice/kt-dead.scope")
                .exists()
        );
    }

    #[test]
    fn privileged_a_hundred_scopes_come_and_go() {
        if !ready("privileged_a_hundred_scopes_come_and_go") {
            return;
        }
        let start = Instant::now();
        let scopes: Vec<Scope> = std::thread::scope(|threads| {
            let starters: Vec<_> = (0..4)
                .map(|i| {
                    threads.spawn(move || {
                        let one = |j| Scope::start(&format!("many{i}x{j}"), &limits()).unwrap();
                        (0..25).map(one).collect::<Vec<_>>()
                    })
                })
                .collect();
            starters.into_iter().flat_map(|starter| starter.join().unwrap()).collect()
        });
        assert!(scopes.iter().all(|scope| !scope.handle.is_empty().unwrap()));
        println!("100 scopes in {:?}", start.elapsed());
    }

    #[test]
    fn privileged_without_systemd_a_scope_says_so() {
        if systemd_is_running() {
            println!("SKIP privileged_without_systemd_a_scope_says_so: systemd runs here");
            return;
        }
        let location = Location::parse("a.slice:b:c", true).unwrap();
        let error = Handle::create_scope(&location, 1, &Resources::default()).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("is systemd running here"), "{source}");
    }
}
