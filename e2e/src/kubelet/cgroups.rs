//! A cgroup root of the kubelet's own, in every hierarchy of the machine.
//! Runs in a test process as root. Owns nothing; must touch only the folder it is given.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Where cgroups can be made: each v1 controller and the unified hierarchy, or the one of cgroup v2.
pub(super) fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let folders =
        fs::read_dir(root).into_iter().flatten().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    folders.map(|e| e.path()).filter(|dir| dir.join("cgroup.procs").exists()).collect()
}

/// Makes a cgroup in one hierarchy. On v1 nothing runs in a cpuset before it has CPUs and memory of its own.
pub(super) fn make(dir: &Path) -> Result<()> {
    fs::create_dir(dir).with_context(|| format!("make the kubelet's cgroup root `{}`", dir.display()))?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let parent = dir.parent().context("a hierarchy")?.join(file);
        if dir.join("cgroup.clone_children").exists() && parent.exists() {
            fs::write(dir.join(file), fs::read(parent)?)?;
        }
    }
    Ok(())
}

/// Removes the cgroup and all below it; whether it is gone.
pub(super) fn remove_tree(dir: &Path) -> bool {
    for below in children(dir) {
        remove_tree(&below);
    }
    fs::remove_dir(dir).is_ok() || !dir.exists()
}

/// Ends every process in it and below it.
pub(super) fn kill_tree(dir: &Path) {
    for below in children(dir) {
        kill_tree(&below);
    }
    let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}
