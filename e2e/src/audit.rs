//! The leak audit (security suite T18): what the kernel holds before and after, compared.
//! Runs in a test process. Owns nothing; reads /proc, /sys and the control groups.
//! Must see everything keelson can make: mounts, processes, links, control groups, sockets, firewall tables, files.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    facts: BTreeSet<String>,
}

impl Audit {
    /// What the kernel holds now that a container runtime could have made.
    pub fn take() -> Audit {
        let mut facts = BTreeSet::new();
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            let point = line.split(' ').nth(4).unwrap_or_default();
            // Made by ip(8) for the first network namespace that a scenario names, and kept by it.
            if point != "/run/netns" {
                facts.insert(format!("mount {point}"));
            }
        }
        for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
            facts.insert(format!("link {}", entry.file_name().to_string_lossy()));
        }
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            // The program itself: a build of it, or an editor with it open, is nobody's leftover.
            let program = command.split(' ').next().and_then(|program| program.rsplit('/').next()).unwrap_or_default();
            if program.contains("keelson-shim") || (program == "keelson" && command.contains("keelson serve")) {
                facts.insert(format!("process {pid} {command}"));
            }
        }
        // A runtime that is handed it may give it away.
        if let Ok(null) = fs::metadata("/dev/null") {
            use std::os::unix::fs::MetadataExt as _;
            facts.insert(format!("/dev/null of {}:{} mode {:o}", null.uid(), null.gid(), null.mode()));
        }
        cgroups(Path::new("/sys/fs/cgroup"), &mut facts);
        if let Ok(output) = Command::new("nft").args(["list", "tables"]).output() {
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                facts.insert(format!("nft {line}"));
            }
        }
        Audit { facts }
    }

    /// Waits (background teardown is bounded) until nothing is there that was not before.
    pub fn assert_clean(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let now = Audit::take();
            let left: Vec<_> = now.facts.difference(&self.facts).collect();
            if left.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > crate::node::patience(Duration::from_secs(20)) {
                bail!("left behind: {left:#?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn cgroups(dir: &Path, facts: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // Services are systemd's own and come when somebody asks for them: the bus, with the first OCI runtime that speaks to it.
        let service = entry.path().extension().is_some_and(|extension| extension == "service");
        if entry.file_type().is_ok_and(|t| t.is_dir()) && !service {
            facts.insert(format!("cgroup {}", entry.path().display()));
            cgroups(&entry.path(), facts);
        }
    }
}

/// After a failed test: ends the shims of these folders and unmounts what is below them, so that the next test starts clean.
/// Only what belongs to the given scratch folders is touched.
pub fn sweep(state: &Path, root: &Path) {
    for entry in fs::read_dir(state.join("containers")).into_iter().flatten().flatten() {
        if let Ok(text) = fs::read_to_string(entry.path().join("shim.pid"))
            && let Ok(pid) = text.trim().parse::<i32>()
            && let Ok(command) = fs::read_to_string(format!("/proc/{pid}/cmdline"))
            && command.contains(&*entry.file_name().to_string_lossy())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            // Children first: an init without its shim would go on.
            for child in children(pid.as_raw_nonzero().get()) {
                if let Some(child) = rustix::process::Pid::from_raw(child) {
                    let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
                }
            }
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    unmount_below(state);
    unmount_below(root);
}

/// Detaches every mount below a scratch folder.
pub fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines().rev() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        if Path::new(point).starts_with(folder) {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|p| p.parse().ok()).collect()
}
