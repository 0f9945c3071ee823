//! The cgroup under which a sandbox's containers live: the caller's, or one of our own, which then is ours to take away.
//! Blocks for a few directory operations; on the blocking pool while a sandbox is made or released.
//! Owns the set of parents that were not there before. Must never remove, limit or change a cgroup that somebody else made.

use std::{
    fs, io,
    path::PathBuf,
    sync::PoisonError,
    time::{Duration, Instant},
};

use keelson_shim::mountinfo;
use rustix::io::Errno;

use crate::{engine::shared::Shared, oci::cgroup_path, store::record::SandboxRecord};

/// A shim removes its container's cgroup before it ends, and its last act is not far.
const EMPTIED: Duration = Duration::from_secs(1);

/// The parent as a path below the hierarchies; empty: systemd makes and removes it.
pub(crate) fn path(shared: &Shared, record: &SandboxRecord) -> String {
    if shared.host.systemd {
        String::new()
    } else {
        cgroup_path::parent(&record.spec.cgroup_parent, short(record.id.as_str()))
    }
}

/// The part of a sandbox's id that names its own cgroup when the caller gave none.
pub(crate) fn short(id: &str) -> &str {
    id.get(..16).unwrap_or_default()
}

/// Whether the sandbox has to take its parent away: nobody had made it before one of our sandboxes needed it.
pub(crate) fn claim(shared: &Shared, record: &SandboxRecord) -> bool {
    let path = path(shared, record);
    let mut made = shared.made_parents.lock().unwrap_or_else(PoisonError::into_inner);
    if path.is_empty() || (!made.contains_key(&path) && exists(&path)) {
        return false;
    }
    made.entry(path).or_default().insert(record.id.clone());
    true
}

/// Whether some hierarchy has this cgroup.
pub(crate) fn exists(path: &str) -> bool {
    hierarchies().iter().any(|root| root.join(path.trim_start_matches('/')).exists())
}

/// A recorded sandbox claimed its parent under an earlier daemon.
pub(crate) fn remember(shared: &Shared, record: &SandboxRecord) {
    if record.made_cgroup {
        let path = path(shared, record);
        let mut made = shared.made_parents.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry(path).or_default().insert(record.id.clone());
    }
}

/// Removes a parent that is ours, with the last sandbox that used it. The cgroup of a container that has just ended may need a
/// moment to be gone; what is still there after that is somebody else's, and stays.
pub(crate) fn give_back(shared: &Shared, record: &SandboxRecord) -> io::Result<()> {
    let path = path(shared, record);
    if !record.made_cgroup || path.trim_matches('/').is_empty() {
        return Ok(());
    }
    let end = Instant::now() + EMPTIED;
    loop {
        // Under the lock, so that a sandbox which needs it now claims it anew.
        let mut made = shared.made_parents.lock().unwrap_or_else(PoisonError::into_inner);
        let users = made.entry(path.clone()).or_default();
        users.remove(&record.id);
        if !users.is_empty() {
            return Ok(());
        }
        if remove(&path)? {
            made.remove(&path);
            return Ok(());
        }
        drop(made);
        if Instant::now() > end {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Removes the cgroup where it is empty, in every hierarchy; whether it is gone from all.
fn remove(path: &str) -> io::Result<bool> {
    let mut gone = true;
    for root in hierarchies() {
        match fs::remove_dir(root.join(path.trim_start_matches('/')))
            .map_err(|error| (Errno::from_io_error(&error), error))
        {
            Ok(()) | Err((Some(Errno::NOENT), _)) => {}
            Err((Some(Errno::BUSY | Errno::NOTEMPTY), _)) => gone = false,
            Err((_, error)) => return Err(error),
        }
    }
    Ok(gone)
}

/// Where cgroup hierarchies are mounted.
fn hierarchies() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroups = mountinfo::parse(&text).filter(|mount| matches!(mount.fstype, "cgroup" | "cgroup2"));
    cgroups.map(|mount| PathBuf::from(&*mount.point)).collect()
}
