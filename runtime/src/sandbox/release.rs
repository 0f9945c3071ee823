//! Giving back what a sandbox holds: network, namespaces, mounts, cgroup, files. Everything is found by name, so that it works after
//! a crash at any line, and a second time. Blocks: on the blocking pool.
//! Owns nothing. Must never stop at the first failure, nor take what another sandbox uses.

use std::{fmt, fs, io, path::Path};

use keelson_sys::namespace::unpin;
use rustix::{io::Errno, mount::UnmountFlags};

use super::create;
use crate::{dirs::SandboxDir, engine::shared::Shared, store::record::SandboxRecord};

/// Every step that failed.
#[derive(Debug)]
pub(crate) struct Failures(Vec<String>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Failures {}

/// Gathers failures of steps that go on.
#[derive(Default)]
struct Steps(Vec<String>);

impl Steps {
    fn run<E: std::error::Error>(&mut self, act: &str, result: Result<(), E>) {
        if let Err(error) = result {
            let mut text = format!("{act}: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            self.0.push(text);
        }
    }

    fn end(self) -> Result<(), Failures> {
        if self.0.is_empty() { Ok(()) } else { Err(Failures(self.0)) }
    }
}

/// What the kernel holds for it: network, pinned namespaces, /dev/shm, the holder's leftovers, its own cgroup. Files and record stay.
pub(crate) fn kernel(shared: &Shared, record: &SandboxRecord) -> Result<(), Failures> {
    let dir = shared.state.sandbox(&record.id);
    let mut steps = Steps::default();
    if let Some(network) = &shared.network {
        steps.run("detach from network", network.detach(&record.id));
    }
    let_go(&dir, &mut steps);
    if record.made_cgroup && !shared.host.systemd {
        steps.run("remove cgroup", remove_empty_cgroup(&create::parent(shared, record)));
    }
    steps.end()
}

/// All of it, files and record too: of a sandbox that failed, or is being removed.
pub(crate) fn everything(shared: &Shared, record: &SandboxRecord) -> Result<(), Failures> {
    kernel(shared, record)?;
    let mut steps = Steps::default();
    steps.run("remove run directory", remove_tree(shared.state.sandbox(&record.id).path()));
    steps.end()?;
    shared.store.forget_sandbox(&record.id);
    Ok(())
}

/// A directory of a sandbox that no record speaks of.
pub(crate) fn unknown(dir: &SandboxDir) -> Result<(), Failures> {
    let mut steps = Steps::default();
    let_go(dir, &mut steps);
    steps.run("remove run directory", remove_tree(dir.path()));
    steps.end()
}

fn let_go(dir: &SandboxDir, steps: &mut Steps) {
    for (act, pin) in [
        ("unpin PID namespace", dir.pid()),
        ("unpin network namespace", dir.net()),
        ("unpin IPC namespace", dir.ipc()),
        ("unpin UTS namespace", dir.uts()),
    ] {
        steps.run(act, unpin(&pin));
    }
    let unmounted = match rustix::mount::unmount(dir.shm(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    };
    steps.run("unmount /dev/shm", unmounted);
}

/// The directory and all below it; gone already is well. Our own directories hold no foreign links that are followed.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether some hierarchy has this cgroup; an empty path is none of ours to make.
pub(crate) fn cgroup_exists(path: &str) -> bool {
    path.is_empty() || hierarchies().iter().any(|root| root.join(path.trim_start_matches('/')).exists())
}

/// Removes the cgroup where it is empty, in every hierarchy: one that others use stays.
fn remove_empty_cgroup(path: &str) -> io::Result<()> {
    if path.trim_matches('/').is_empty() {
        return Ok(());
    }
    for root in hierarchies() {
        match fs::remove_dir(root.join(path.trim_start_matches('/'))) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.raw_os_error().map(Errno::from_raw_os_error),
                    Some(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY)
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Where cgroup hierarchies are mounted.
fn hierarchies() -> Vec<std::path::PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroup = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let kind = after.split(' ').next()?;
        matches!(kind, "cgroup" | "cgroup2").then(|| before.split(' ').nth(4).map(Into::into)).flatten()
    };
    text.lines().filter_map(cgroup).collect()
}
