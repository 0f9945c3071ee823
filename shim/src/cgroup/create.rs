//! Making a container's cgroup in every hierarchy, and the controllers it needs above it.
//! Blocking for microseconds to milliseconds; the launcher, before the container is cloned.
//! Owns what it has made until it succeeds: a failure takes away again what was not there before.
//! Must never touch a limit of a parent: the pod's cgroup is the kubelet's.

use rustix::fs::Mode as FileMode;
use rustix::io::Errno;

use super::dir::Dir;
use super::error::CgroupError;
use super::hierarchy::{Controller, Hierarchies, Mode};
use super::limits;
use crate::spec::Resources;

/// Directories made, the innermost last; dropped without [`Made::keep`] they are removed again.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Made(Vec<String>);

impl Made {
    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // Best effort: the failure that led here is the one to tell, and a parent may be in use by now.
            let _ = rustix::fs::rmdir(path.as_str());
        }
    }
}

/// Makes `path` in every hierarchy. With `adopt`, one that is there already is taken as it is: systemd has made it.
pub(super) fn make(hierarchies: &Hierarchies, path: &str, adopt: bool) -> Result<Made, CgroupError> {
    let mut made = Made::default();
    let cpuset = hierarchies.v1(Controller::Cpuset);
    for mount in hierarchies.v1_mounts() {
        let before = made.0.len();
        make_in(mount, path, adopt, &mut made)?;
        if cpuset == Some(mount) {
            for level in made.0.get(before..).unwrap_or_default() {
                inherit_cpuset(mount, level)?;
            }
        }
    }
    if let Some(mount) = hierarchies.unified() {
        make_in(mount, path, adopt, &mut made)?;
    }
    Ok(made)
}

fn make_in(mount: &str, path: &str, adopt: bool, made: &mut Made) -> Result<(), CgroupError> {
    let whole = format!("{mount}{path}");
    let failed = |path: &str, source| CgroupError::Make { path: path.to_owned(), source };
    match mkdir(&whole) {
        Ok(()) => {
            made.0.push(whole);
            return Ok(());
        }
        Err(Errno::NOENT) => {}
        Err(Errno::EXIST) if adopt => return Ok(()),
        Err(Errno::EXIST) => {
            // Left over from a container that is gone, with its limits: a new one starts from the kernel's defaults.
            match rustix::fs::rmdir(whole.as_str()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::BUSY | Errno::NOTEMPTY) => return Err(CgroupError::Occupied { path: whole }),
                Err(source) => return Err(failed(&whole, source)),
            }
        }
        Err(source) => return Err(failed(&whole, source)),
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let mut level = mount.to_owned();
    for (i, part) in parts.iter().enumerate() {
        level.push('/');
        level.push_str(part);
        match mkdir(&level) {
            Ok(()) => made.0.push(level.clone()),
            Err(Errno::EXIST) if i + 1 < parts.len() || adopt => {}
            Err(source) => return Err(failed(&level, source)),
        }
    }
    Ok(())
}

fn mkdir(path: &str) -> Result<(), Errno> {
    rustix::fs::mkdir(path, FileMode::from_raw_mode(0o755))
}

/// v1: no process can enter a cgroup without CPUs and memory nodes, and a new one has none.
fn inherit_cpuset(mount: &str, level: &str) -> Result<(), CgroupError> {
    let below = level.strip_prefix(mount).unwrap_or(level);
    let (parent, _) = below.rsplit_once('/').unwrap_or_default();
    let (parent, child) = (Dir::new(mount, parent), Dir::new(mount, below));
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut value = parent.read(file)?;
        if value.trim().is_empty() && parent.path() != mount {
            // Somebody made the parent and left it so; it cannot hold processes either.
            inherit_cpuset(mount, parent.path())?;
            value = parent.read(file)?;
        }
        child.write(file, value.trim())?;
    }
    Ok(())
}

/// Who decides about the cgroups above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parents {
    Ours,
    Systemds,
}

/// What a container's cgroup should have even without limits: its numbers come from them.
const WANTED: [Controller; 6] =
    [Controller::Cpu, Controller::Cpuset, Controller::Io, Controller::Memory, Controller::Pids, Controller::Hugetlb];

/// v2: enables controllers from the root down, where they are not. A controller that cannot be enabled is an error only when
/// a limit needs it: some ancestors are not ours to change.
///
/// Beside v1 the cgroup2 mount is for grouping processes, and around a scope the slices are systemd's: there, what no limit
/// needs is left as it is, but for huge pages, which systemd neither counts nor takes back.
pub(super) fn enable(
    hierarchies: &Hierarchies,
    path: &str,
    resources: &Resources,
    parents: Parents,
) -> Result<(), CgroupError> {
    let Some(mount) = hierarchies.unified() else { return Ok(()) };
    let needed = limits::needed(resources);
    let enabled = |dir: &Dir, file: &str| -> Vec<String> {
        dir.try_read(file).unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
    };
    let wanted: &[Controller] = match (hierarchies.mode(), parents) {
        (Mode::V2, Parents::Ours) => &WANTED,
        (Mode::V2, Parents::Systemds) => &[Controller::Hugetlb],
        (Mode::V1 | Mode::Hybrid, _) => &[],
    };
    let asked = wanted.iter().copied().chain(needed.iter().map(|(controller, _)| *controller));
    let mut missing: Vec<Controller> =
        asked.filter(|controller| hierarchies.v1(*controller).is_none() && hierarchies.offers(*controller)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let have = enabled(&Dir::new(mount, path), "cgroup.controllers");
    missing.retain(|controller| !have.iter().any(|name| name == controller.name()));
    missing.sort_by_key(|controller| controller.name());
    missing.dedup();
    let mut failures: Vec<(Controller, String, Errno)> = Vec::new();
    let ancestors = path.match_indices('/').map(|(at, _)| path.get(..at).unwrap_or_default());
    for dir in ancestors.map(|ancestor| Dir::new(mount, ancestor)) {
        let below = enabled(&dir, "cgroup.subtree_control");
        let wanted: Vec<Controller> =
            missing.iter().copied().filter(|c| !below.iter().any(|name| name == c.name())).collect();
        if wanted.is_empty() {
            continue;
        }
        let all: Vec<String> = wanted.iter().map(|controller| format!("+{}", controller.name())).collect();
        if dir.try_write("cgroup.subtree_control", &all.join(" ")).is_ok() {
            continue;
        }
        // All or none of one write: find out which.
        for controller in wanted {
            if let Err(errno) = dir.try_write("cgroup.subtree_control", &format!("+{}", controller.name())) {
                missing.retain(|other| *other != controller);
                failures.push((controller, dir.path().to_owned(), errno));
            }
        }
    }
    for (controller, path, source) in failures {
        if let Some((_, setting)) = needed.iter().find(|(other, _)| *other == controller) {
            let (controller, setting) = (controller.name(), (*setting).to_owned());
            return Err(CgroupError::Enable { controller, setting, path, source });
        }
    }
    Ok(())
}
