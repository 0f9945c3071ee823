//! Checkpoint and restore by a real CRIU where one works here, and by programs that fail in its place.
//! Tests that need one print SKIP with CRIU's own reason where it does not. `KEELSON_TEST_CRIU` names another program than the system's.
//! Owns what `Container` owns, and folders for images. Must never leave a container held.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keelson_api::shim::{Call, Checkpoint, Checkpointed, ExternalMount, FailureKind, Outcome, Pause, Phase, Restore};

use crate::harness::{Container, LaunchOptions, kept_within};
use crate::{failed, started};

const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo count $i; sleep 0.05; done";

/// A CRIU that works here.
#[expect(clippy::print_stdout, reason = "a test that cannot run says so")]
fn criu(test: &str) -> Option<String> {
    let program = std::env::var("KEELSON_TEST_CRIU").unwrap_or_else(|_| "/usr/sbin/criu".to_owned());
    let reason = match Command::new(&program).arg("check").output() {
        Ok(output) if output.status.success() => return Some(program),
        Ok(output) => String::from_utf8_lossy(&output.stderr).lines().next_back().unwrap_or_default().to_owned(),
        Err(error) => error.to_string(),
    };
    println!("SKIP {test}: `{program} check`: {reason}");
    None
}

/// CRIU asks the loopback of the network it finds itself in; pods have theirs up.
fn loopback_up(pid: i32) {
    let up = Command::new("nsenter").args(["-t", &pid.to_string(), "-n", "ip", "link", "set", "lo", "up"]).status();
    assert!(up.unwrap().success());
}

struct Folders {
    images: PathBuf,
    work: PathBuf,
}

fn folders(container: &Container, name: &str) -> Folders {
    let work = container.node.path(name);
    std::fs::create_dir_all(work.join("stage")).unwrap();
    std::fs::create_dir(work.join("images")).unwrap();
    Folders { images: work.join("images"), work }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn dump(criu: &str, folders: &Folders) -> Call {
    let (images, work) = (text(&folders.images), text(&folders.work));
    Call::Checkpoint(Checkpoint { criu: criu.to_owned(), images, work, timeout_ms: 20_000 })
}

fn checkpointed(outcome: Outcome, folders: &Folders) -> Checkpointed {
    match outcome {
        Outcome::Checkpointed(done) => done,
        other => panic!("{other:?}\n{}", std::fs::read_to_string(folders.work.join("dump.log")).unwrap_or_default()),
    }
}

/// Mount ids by mount point.
fn mounts(pid: i32) -> Vec<(String, u64, bool)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[4].to_owned(), words[0].parse().unwrap(), line.contains(" - proc "))
    };
    text.lines().map(line).collect()
}

fn count(container: &Container) -> u64 {
    container.log().lines().rev().find_map(|line| line.rsplit_once("count ")?.1.parse().ok()).unwrap_or(0)
}

fn goes_on(container: &Container) -> bool {
    let before = count(container);
    kept_within(Duration::from_secs(10), || count(container) > before + 2)
}

#[test]
fn a_counter_goes_on_after_its_checkpoint_and_from_it() {
    let Some(criu) = criu("a_counter_goes_on_after_its_checkpoint_and_from_it") else { return };
    let mut first = started(COUNTER);
    let pid = first.state().pid;
    loopback_up(pid);
    first.await_log("count 5");
    let folders = folders(&first, "dump");
    let old: HashMap<String, u64> = mounts(pid).into_iter().map(|(path, id, _)| (path, id)).collect();
    let outcome = first.call(dump(&criu, &folders));
    let done = checkpointed(outcome, &folders);
    assert!(done.stdio[0].starts_with("file[") && done.stdio[1].starts_with("pipe:["), "{:?}", done.stdio);
    assert!(goes_on(&first), "{}", first.log());
    let dumped = count(&first);
    first.stop_now();

    let mut second = Container::launch(&LaunchOptions::shell("echo not this"));
    let pid = second.state().pid;
    loopback_up(pid);
    let work = self::folders(&second, "restore").work;
    let wanted = mounts(pid).into_iter().filter(|(path, _, proc)| path == "/" || !proc);
    let wanted = wanted.map(|(mountpoint, mount_id, _)| ExternalMount {
        key: format!("m{}", old[&mountpoint]),
        mountpoint,
        mount_id,
    });
    let restore = Restore {
        criu,
        images: text(&folders.images),
        work: text(&work),
        timeout_ms: 20_000,
        mounts: wanted.collect(),
        stdio: done.stdio,
        lsm_profile: String::new(),
    };
    match second.call(Call::Restore(restore)) {
        Outcome::State(state) => assert!(state.phase() == Phase::Running && state.pid != pid && state.started_at > 0),
        other => panic!("{other:?}\n{}", std::fs::read_to_string(work.join("restore.log")).unwrap_or_default()),
    }
    assert!(goes_on(&second), "{}", second.log());
    let first_line = second.log();
    let first_count = first_line.lines().next().and_then(|line| line.rsplit_once("count ")).unwrap().1;
    let begun: u64 = first_count.parse().unwrap();
    assert!((5..=dumped + 1).contains(&begun), "begun at {begun}, dumped at about {dumped}");
    assert!(!kept_within(Duration::ZERO, || second.log().contains("not this")));
    let result = crate::exec_result(second.call(crate::exec("ls /proc | head -1", 0)));
    assert_eq!(result.stdout, b"1\n", "{result:?}");
    second.stop_now();
    second.assert_gone();
}

#[test]
fn a_pause_ends_with_its_connection() {
    let mut container = started(COUNTER);
    container.await_log("count 2");
    assert!(matches!(container.call(Call::Pause(Pause { on: true })), Outcome::Done(_)));
    let held = count(&container);
    std::thread::sleep(Duration::from_millis(300));
    assert!(count(&container) <= held + 1, "it runs while it is held");
    container.node.hang_up();
    assert!(goes_on(&container), "{}", container.log());
    container.node.reconnect();
    assert!(matches!(container.call(Call::Pause(Pause { on: true })), Outcome::Done(_)));
    container.stop_now();
    container.assert_gone();
}

/// A program in CRIU's place.
fn fake(container: &Container, script: &str) -> String {
    let (source, path) = (container.node.path("criu.source"), container.node.path("criu"));
    std::fs::write(&source, format!("#!/bin/sh\n{script}\n")).unwrap();
    // Never open for writing in this process: a child that another test has just forked would hold it, and nobody could execute it.
    assert!(
        std::process::Command::new("install").args(["-m", "755"]).args([&source, &path]).status().unwrap().success()
    );
    text(&path)
}

#[test]
fn failures_are_told_in_words_of_criu_and_leave_the_container_running() {
    let mut container = started(COUNTER);
    let folders = folders(&container, "dump");
    let absent = failed(container.call(dump("/nonexistent/criu", &folders)));
    assert_eq!(absent.kind(), FailureKind::Unsupported);
    assert!(absent.message.contains("/nonexistent/criu") && absent.message.contains("install"), "{}", absent.message);

    let script = "while [ $# -gt 0 ]; do [ \"$1\" = --work-dir ] && w=$2; shift; done\n\
                  echo '(00.1) Warn  (x.c:1): fine' > $w/dump.log\n\
                  echo '(00.2) Error (y.c:2): the disk is made of cheese' >> $w/dump.log; exit 1";
    let criu = fake(&container, script);
    let told = failed(container.call(dump(&criu, &folders)));
    assert!(told.message.contains("the disk is made of cheese") && !told.message.contains("fine"), "{}", told.message);

    std::fs::remove_file(folders.work.join("dump.log")).unwrap();
    let criu = fake(&container, "echo 'unknown option' >&2; exit 2");
    let told = failed(container.call(dump(&criu, &folders)));
    assert!(told.message.contains("unknown option"), "{}", told.message);

    let criu = fake(&container, "exec sleep 1000");
    let (images, work) = (text(&folders.images), text(&folders.work));
    let slow = Call::Checkpoint(Checkpoint { criu: criu.clone(), images, work, timeout_ms: 200 });
    assert!(matches!(container.call(Call::Pause(Pause { on: true })), Outcome::Done(_)));
    let told = failed(container.call(slow));
    assert!(told.message.contains("time"), "{}", told.message);
    assert!(matches!(container.call(Call::Pause(Pause { on: false })), Outcome::Done(_)));
    assert!(goes_on(&container));

    // One at a time, and a stop comes through.
    let first = container.send(dump(&criu, &folders));
    let busy = failed(container.call(dump(&criu, &folders)));
    assert_eq!(busy.kind(), FailureKind::State);
    let stop = container.send(Call::Stop(keelson_api::shim::Stop { signal: 9, grace_ms: 0 }));
    let mut answers = container.collect(2);
    answers.sort_by_key(|(seq, _)| *seq);
    assert!(answers[0].0 == first && matches!(answers[0].1, Outcome::Failed(_)), "{answers:?}");
    assert!(answers[1].0 == stop && matches!(answers[1].1, Outcome::Exited(_)), "{answers:?}");
    container.wait();
    container.assert_gone();
}

#[test]
fn a_restore_that_fails_ends_the_container_as_a_start_that_fails() {
    let mut container = Container::launch(&LaunchOptions::shell("echo not this"));
    let folders = folders(&container, "restore");
    let criu = fake(&container, "exit 1");
    let pid = container.state().pid;
    let mounts = mounts(pid).into_iter().filter(|(path, ..)| path == "/");
    let mounts = mounts.map(|(mountpoint, mount_id, _)| ExternalMount { mountpoint, key: "root".into(), mount_id });
    let restore = Restore {
        criu,
        images: text(&folders.images),
        work: text(&folders.work),
        mounts: mounts.collect(),
        ..Restore::default()
    };
    let told = failed(container.call(Call::Restore(restore)));
    assert!(told.message.contains("CRIU"), "{}", told.message);
    assert_eq!(container.wait().code, 128);
    assert_eq!(container.log(), "");
    container.assert_gone();
}

#[test]
fn another_mount_than_the_checked_one_is_not_given_to_criu() {
    let mut container = Container::launch(&LaunchOptions::shell("true"));
    let folders = folders(&container, "restore");
    let criu = fake(&container, "exit 0");
    let mount = |mountpoint: &str, mount_id| ExternalMount { mountpoint: mountpoint.into(), key: "m".into(), mount_id };
    let restore = Restore {
        criu,
        images: text(&folders.images),
        work: text(&folders.work),
        mounts: vec![mount("/dev", 1)],
        ..Restore::default()
    };
    let told = failed(container.call(Call::Restore(restore)));
    assert!(told.message.contains("/dev") && told.message.contains("another"), "{}", told.message);
    container.wait();
    container.assert_gone();
}
