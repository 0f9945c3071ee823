//! What only a machine without a unified hierarchy does, on this one's v1 mounts alone; and a v1 create counted in system calls.
use std::process::{Command, Stdio};

use super::*;

/// This machine with its cgroup2 mount out of sight.
fn without_unified() -> Option<&'static Hierarchies> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let v1: String =
        mountinfo.lines().filter(|line| line.contains(" - cgroup ")).map(|line| format!("{line}\n")).collect();
    let hierarchies = Hierarchies::parse(&v1).ok()?;
    hierarchies.v1(Controller::Freezer)?;
    Some(Box::leak(Box::new(hierarchies)))
}

fn run_in(handle: &Handle, extra: Option<&Dir>, script: &str) -> std::process::Child {
    let mut files: Vec<String> =
        handle.hierarchies.v1_mounts().map(|mount| Dir::new(mount, &handle.path).file("cgroup.procs")).collect();
    files.extend(extra.map(|dir| dir.file("cgroup.procs")));
    let join: String = files.iter().map(|file| format!("echo 0 > {file} || exit 99; ")).collect();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("{join}{script}")]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    shell.spawn().unwrap()
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("{what}");
}

#[test]
fn privileged_v1_alone_kills_by_freezer_and_signals() {
    let Some(hierarchies) = without_unified() else {
        println!("SKIP privileged_v1_alone_kills_by_freezer_and_signals: no cgroup v1 here");
        return;
    };
    let path = format!("/keelson-test-v1kill-{}", std::process::id());
    let handle = Handle::create_in(hierarchies, &Location::Path(&path), &Resources::default()).unwrap();
    let mut storm = run_in(&handle, None, "while :; do (while :; do sleep 0.01 & done) & sleep 0.02; done");
    eventually("it forks", || handle.pids().unwrap().len() > 20);
    assert!(!handle.is_empty().unwrap());
    handle.kill().unwrap();
    storm.wait().unwrap();
    eventually("all are dead", || handle.is_empty().unwrap());
    assert!(handle.join_fds().unwrap().unified.is_none());
    handle.remove().unwrap();
}

#[test]
fn privileged_v1_alone_has_leaves_in_its_freezer() {
    let Some(hierarchies) = without_unified() else {
        println!("SKIP privileged_v1_alone_has_leaves_in_its_freezer: no cgroup v1 here");
        return;
    };
    let path = format!("/keelson-test-v1leaf-{}", std::process::id());
    let handle = Handle::create_in(hierarchies, &Location::Path(&path), &Resources::default()).unwrap();
    let leaf = handle.leaf("one").unwrap();
    let freezer = Dir::new(hierarchies.v1(Controller::Freezer).unwrap(), &path).child("exec-one");
    assert_eq!(leaf.join_fds().unwrap().tasks.len(), hierarchies.v1_mounts().count());
    assert!(leaf.unified_fd().unwrap().is_none());
    let mut main = run_in(&handle, None, "exec sleep 1000");
    let mut exec = run_in(&handle, Some(&freezer), "sleep 1000 & exec sleep 1000");
    let in_freezer = |dir: &Dir| kill::processes(dir).unwrap().len();
    let container = Dir::new(hierarchies.v1(Controller::Freezer).unwrap(), &path);
    eventually("all run", || {
        in_freezer(&freezer) == 2 && in_freezer(&container) == 3 && handle.pids().unwrap().len() == 3
    });
    assert!(!leaf.is_empty().unwrap());
    leaf.kill().unwrap();
    exec.wait().unwrap();
    leaf.remove().unwrap();
    assert!(main.try_wait().unwrap().is_none());
    handle.kill().unwrap();
    main.wait().unwrap();
    handle.remove().unwrap();
}
