//! Giving back what a sandbox holds: network, namespaces, mounts, cgroup, files. Everything is found by name, so that it works after
//! a crash at any line, and a second time. Blocks: on the blocking pool.
//! Owns nothing. Must never stop at the first failure, nor take what another sandbox uses.

use std::{fmt, fs, io, path::Path};

use keelson_sys::namespace::unpin;
use rustix::{io::Errno, mount::UnmountFlags};

use super::{holder, interfaces, parent};
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
    steps.run("give interfaces back to the host", interfaces::give_back(&dir));
    if !steps.0.is_empty() {
        // The namespace would take them with it.
        return steps.end();
    }
    if let Some(network) = &shared.network {
        steps.run("detach from network", network.detach_soon(&record.id));
    }
    steps.run("end holder", holder::leftovers(shared, record));
    let_go(&dir, &mut steps);
    steps.run("remove cgroup", parent::give_back(shared, record));
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
    steps.run("give interfaces back to the host", interfaces::give_back(dir));
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
        // It owns the others.
        ("unpin user namespace", dir.user()),
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
