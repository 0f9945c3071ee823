//! Ending everything in a cgroup and below it, and removing the emptied directories.
//! Blocking, bounded: about two seconds at worst each; shim loop, daemon's teardown workers, OCI command line.
//! Owns nothing.
//! Must never signal a process that has left the cgroup, nor give up on one that forks.

use std::collections::HashSet;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::dir::Dir;
use super::error::CgroupError;

/// Waits between tries, together about two seconds.
const BACKOFF_MS: [u64; 14] = [1, 1, 2, 4, 8, 16, 32, 64, 100, 150, 250, 350, 450, 600];

/// Every process in `dir` and below it, once.
pub(super) fn processes(dir: &Dir) -> Result<Vec<i32>, CgroupError> {
    let mut found = Vec::new();
    let mut open = vec![dir.clone()];
    while let Some(dir) = open.pop() {
        match dir.try_read_list("cgroup.procs") {
            Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0)),
            Err(Errno::NOENT | Errno::NODEV) => continue,
            // A threaded cgroup: its processes are listed by its domain, above.
            Err(Errno::OPNOTSUPP) => {}
            Err(source) => return Err(CgroupError::Read { path: dir.file("cgroup.procs"), source }),
        }
        open.extend(dir.children().iter().map(|child| dir.child(child)));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// How a hierarchy stops processes while they are counted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Freezer {
    V1,
    V2,
}

impl Freezer {
    pub(super) fn set(self, dir: &Dir, frozen: bool) -> Result<(), Errno> {
        let (file, value) = match (self, frozen) {
            (Freezer::V1, true) => ("freezer.state", "FROZEN"),
            (Freezer::V1, false) => ("freezer.state", "THAWED"),
            (Freezer::V2, true) => ("cgroup.freeze", "1"),
            (Freezer::V2, false) => ("cgroup.freeze", "0"),
        };
        dir.try_write(file, value)
    }

    fn is_frozen(self, dir: &Dir) -> bool {
        match self {
            Freezer::V1 => dir.try_read("freezer.state").is_ok_and(|state| state.trim() == "FROZEN"),
            Freezer::V2 => dir.try_read("cgroup.events").is_ok_and(|events| events.lines().any(|l| l == "frozen 1")),
        }
    }
}

/// Kills by cgroup.kill; Ok(false) when the kernel (before 5.14) has no such file. A cgroup that is gone has nothing in it.
pub(super) fn kill_at_once(dir: &Dir) -> Result<bool, CgroupError> {
    match dir.try_write("cgroup.kill", "1") {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::NODEV) => Ok(!dir.exists("cgroup.procs")),
        Err(source) => Err(dir.write_error("cgroup.kill", "1", source)),
    }
}

/// Kills by signals: frozen, so that nothing forks away between being listed and being killed; then thawed, so that it dies.
pub(super) fn kill_by_signals(dir: &Dir, freezer: Option<Freezer>) -> Result<(), CgroupError> {
    let mut remaining = 0;
    for wait in BACKOFF_MS {
        if let Some(freezer) = freezer {
            // Without a freezer file the rounds alone have to do.
            if freezer.set(dir, true).is_ok() {
                await_frozen(dir, freezer, 20);
            }
        }
        let killed = signal_all(dir);
        if let Some(freezer) = freezer {
            let _ = freezer.set(dir, false);
        }
        killed?;
        std::thread::sleep(Duration::from_millis(wait));
        remaining = processes(dir)?.into_iter().filter(|pid| !is_dead(*pid)).count();
        if remaining == 0 {
            return Ok(());
        }
    }
    Err(CgroupError::Kill { path: dir.path().to_owned(), remaining })
}

/// Rounds of half a millisecond after which a pause is given up: a process may be in the kernel for a while.
pub(super) const PAUSE_ROUNDS: u32 = 4000;

pub(super) fn await_frozen(dir: &Dir, freezer: Freezer, rounds: u32) -> bool {
    for _ in 0..rounds {
        if freezer.is_frozen(dir) {
            return true;
        }
        // v1 freezes by rounds: asking again catches what was forking.
        if matches!(freezer, Freezer::V1) {
            let _ = freezer.set(dir, true);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    false
}

fn signal_all(dir: &Dir) -> Result<(), CgroupError> {
    let held: Vec<(i32, _)> = processes(dir)?
        .into_iter()
        .filter_map(|pid| Some((pid, rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?)))
        .collect();
    // A number that is still listed now belonged to the cgroup when its pidfd was opened: it cannot have been reused.
    let still: HashSet<i32> = processes(dir)?.into_iter().collect();
    for (_, pidfd) in held.iter().filter(|(pid, _)| still.contains(pid)) {
        // It may just have died.
        let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    }
    Ok(())
}

/// A zombie stays listed in v1 until its parent waits for it.
fn is_dead(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']));
    state.unwrap_or(true)
}

/// Removes `dir` and everything below it; gone already is fine. Processes that have just died keep it busy for a moment.
pub(super) fn remove(dir: &Dir) -> Result<(), CgroupError> {
    let mut source = Errno::BUSY;
    for wait in std::iter::once(0).chain(BACKOFF_MS) {
        if wait > 0 {
            std::thread::sleep(Duration::from_millis(wait));
        }
        match remove_once(dir) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY | Errno::INTR) => source = Errno::BUSY,
            Err(other) => {
                source = other;
                break;
            }
        }
    }
    Err(CgroupError::Remove { path: dir.path().to_owned(), source })
}

fn remove_once(dir: &Dir) -> Result<(), Errno> {
    match rustix::fs::rmdir(dir.path()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(other) => return Err(other),
    }
    // A list, not recursion: a container that may write cgroups chooses how deep they go.
    let mut all = vec![dir.clone()];
    let mut next = 0;
    while let Some(dir) = all.get(next).cloned() {
        all.extend(dir.children().iter().map(|child| dir.child(child)));
        next += 1;
    }
    for dir in all.iter().rev() {
        match rustix::fs::rmdir(dir.path()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(())
}
