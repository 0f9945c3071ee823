//! A container's cgroup in every hierarchy of the machine: made, limited, read, killed and removed.
//! Blocking for micro- to milliseconds; used by the launcher and the shim's loop, the OCI command line and the daemon's blocking pool.
//! Owns the directories it makes for a container and the leaves for its execs; parents belong to the kubelet or to systemd.
//! Must never keep state of its own: the kernel is the truth, and any later process can open the same cgroup again.

mod create;
mod delegate;
mod devices;
mod dir;
mod error;
mod hierarchy;
mod kill;
mod leaf;
mod limits;
mod location;
mod oom;
mod stats;
mod systemd;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub use error::CgroupError;
pub use hierarchy::{Hierarchies, Mode, detect};
pub use leaf::Leaf;
pub use location::{Location, container_path, default_path};
pub use stats::{Average, Depth, DeviceIo, HugepageStats, MemoryStats, Pressure, Stats, StatsReader, SwapStats};
pub use systemd::{BusError, systemd_is_running};

use self::create::Parents;
use self::dir::Dir;
use self::hierarchy::Controller;
use self::kill::Freezer;
use self::limits::{Group, When};
use crate::spec::Resources;

/// A container's cgroup.
#[derive(Debug, Clone)]
pub struct Handle {
    hierarchies: &'static Hierarchies,
    /// Below the root of each hierarchy, with a slash in front.
    path: String,
    /// The unit that holds it.
    scope: Option<String>,
}

/// What a record needs to open the cgroup again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// Below the root of each hierarchy.
    pub path: String,
    /// The systemd unit, when systemd made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// How a process gets in: born into `unified` by CLONE_INTO_CGROUP, then writing `0` to each of `tasks`.
#[derive(Debug)]
pub struct JoinFds {
    pub unified: Option<OwnedFd>,
    pub tasks: Vec<OwnedFd>,
}

impl Handle {
    /// Makes the cgroup by directories and sets its limits. An empty one that is left over is made anew.
    pub fn create(location: &Location<'_>, resources: &Resources) -> Result<Handle, CgroupError> {
        Handle::create_in(detect()?, location, resources)
    }

    fn create_in(
        hierarchies: &'static Hierarchies,
        location: &Location<'_>,
        resources: &Resources,
    ) -> Result<Handle, CgroupError> {
        let handle = Handle { hierarchies, path: location.path()?, scope: None };
        let made = create::make(hierarchies, &handle.path, false)?;
        create::enable(hierarchies, &handle.path, resources, Parents::Ours)?;
        limits::apply(handle.group(), resources, When::Fresh)?;
        devices::apply(handle.group(), &resources.devices, When::Fresh)?;
        made.keep();
        Ok(handle)
    }

    /// Has systemd make a scope around `pid`, which waits and has done nothing yet, and sets the limits: as properties, so
    /// that a daemon-reload keeps them, and by files, which are exact and know more.
    pub fn create_scope(location: &Location<'_>, pid: i32, resources: &Resources) -> Result<Handle, CgroupError> {
        let hierarchies = detect()?;
        location.path()?;
        let unit = location.unit()?;
        let Location::Systemd { slice, .. } = location else {
            return Err(CgroupError::BadPath { path: unit, reason: "it is no scope" });
        };
        systemd::start_scope(&unit, slice, pid, resources, hierarchies.mode())?;
        let finish = || {
            let path = scope_path(hierarchies.mode(), pid, &unit)?;
            let handle = Handle { hierarchies, path, scope: Some(unit.clone()) };
            let made = create::make(hierarchies, &handle.path, true)?;
            if hierarchies.mode() != Mode::V2 {
                for mount in hierarchies.v1_mounts().chain(hierarchies.unified()) {
                    Dir::new(mount, &handle.path).write("cgroup.procs", &pid.to_string())?;
                }
            }
            create::enable(hierarchies, &handle.path, resources, Parents::Systemds)?;
            limits::apply(handle.group(), resources, When::Live)?;
            let devices = if hierarchies.mode() == Mode::V2 { When::Fresh } else { When::Live };
            devices::apply(handle.group(), &resources.devices, devices)?;
            made.keep();
            Ok(handle)
        };
        finish().inspect_err(|_| {
            // The process is killed by whoever cloned it; the unit goes with it, or now.
            let _ = systemd::stop(&unit);
        })
    }

    /// The cgroup that an earlier process made.
    pub fn open(paths: &Paths) -> Result<Handle, CgroupError> {
        let path = Location::Path(&paths.path).path()?;
        Ok(Handle { hierarchies: detect()?, path, scope: paths.scope.clone() })
    }

    /// Where the cgroup of a container is, or would be; it may not exist, which every method but the readings takes for
    /// empty or removed.
    pub fn at(location: &Location<'_>) -> Result<Handle, CgroupError> {
        let scope = match location {
            Location::Systemd { .. } if systemd_is_running() => Some(location.unit()?),
            Location::Systemd { .. } | Location::Path(_) => None,
        };
        Ok(Handle { hierarchies: detect()?, path: location.path()?, scope })
    }

    /// Puts a process that waits, and that somebody else has put into the cgroup of this path, into it in the hierarchies where it is
    /// not yet: not every runtime knows all that a machine has.
    pub fn adopt(&self, pid: i32) -> Result<(), CgroupError> {
        let mounts = || self.hierarchies.v1_mounts().chain(self.hierarchies.unified());
        let missing = mounts().map(|mount| Dir::new(mount, &self.path)).filter(|dir| !dir.exists("cgroup.procs"));
        let missing: Vec<Dir> = missing.collect();
        let made = create::make(self.hierarchies, &self.path, true)?;
        for dir in missing {
            dir.write("cgroup.procs", &pid.to_string())?;
        }
        made.keep();
        Ok(())
    }

    /// For a record.
    pub fn paths(&self) -> Paths {
        Paths { path: self.path.clone(), scope: self.scope.clone() }
    }

    /// For mounts inside the container, where cgroup v1 is a folder of hierarchies: the name of each below /sys/fs/cgroup and
    /// the container's directory in it. Empty on a machine with v2 only.
    pub fn controller_dirs(&self) -> Vec<(String, PathBuf)> {
        if self.hierarchies.mode() == Mode::V2 {
            return Vec::new();
        }
        let mounts = self.hierarchies.v1_mounts().chain(self.hierarchies.unified());
        let name = |mount: &str| mount.rsplit('/').next().unwrap_or_default().to_owned();
        mounts.map(|mount| (name(mount), PathBuf::from(format!("{mount}{}", self.path)))).collect()
    }

    /// What a process needs to get in; good for any number of them.
    pub fn join_fds(&self) -> Result<JoinFds, CgroupError> {
        let tasks = self.hierarchies.v1_mounts().map(|mount| open_tasks(&Dir::new(mount, &self.path)));
        let tasks = tasks.collect::<Result<Vec<_>, _>>()?;
        Ok(JoinFds { unified: self.unified_dir().as_ref().map(open_directory).transpose()?, tasks })
    }

    /// Changes limits while the container runs; what `resources` leaves out stays as it is.
    pub fn update(&self, resources: &Resources) -> Result<(), CgroupError> {
        let parents = if self.scope.is_some() { Parents::Systemds } else { Parents::Ours };
        create::enable(self.hierarchies, &self.path, resources, parents)?;
        limits::apply(self.group(), resources, When::Live)?;
        if let Some(unit) = &self.scope {
            systemd::set_limits(unit, resources, self.hierarchies.mode())?;
            // systemd rounds what it writes.
            limits::apply(self.group(), resources, When::Live)?;
        }
        devices::apply(self.group(), &resources.devices, When::Live)
    }

    /// Kills everything in it and below it, frozen or not. The processes may take a moment to be gone.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if let Some(dir) = self.unified_dir()
            && kill::kill_at_once(&dir)?
        {
            return self.thaw_v1();
        }
        match (self.hierarchies.v1(Controller::Freezer), self.unified_dir()) {
            (Some(mount), _) => kill::kill_by_signals(&Dir::new(mount, &self.path), Some(Freezer::V1)),
            (None, Some(dir)) => kill::kill_by_signals(&dir, Some(Freezer::V2)),
            (None, None) => match self.any_dir() {
                Some(dir) => kill::kill_by_signals(&dir, None),
                None => Ok(()),
            },
        }
    }

    /// Stops everything in it from running.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.set_frozen(true)
    }

    /// Lets everything run again.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let unified = self.unified_dir().map(|dir| (Freezer::V2, dir));
        let v1 = self.hierarchies.v1(Controller::Freezer).map(|mount| (Freezer::V1, Dir::new(mount, &self.path)));
        for (freezer, dir) in unified.into_iter().chain(v1) {
            match freezer.set(&dir, frozen) {
                // One is enough to stop, both have to let go.
                Ok(()) if frozen => return Ok(()),
                Ok(()) | Err(Errno::NOENT) => {}
                Err(source) => {
                    return Err(dir.write_error("the freezer", if frozen { "frozen" } else { "thawed" }, source));
                }
            }
        }
        if frozen {
            Err(CgroupError::NoController { controller: "freezer", setting: "a pause".to_owned() })
        } else {
            Ok(())
        }
    }

    /// v1's directory by which processes are paused, where there is one. v2's is nothing to a tracer: it cannot make what is frozen
    /// there run, nor write the file from inside the cgroup namespace.
    pub fn pause_dir(&self) -> Option<PathBuf> {
        self.hierarchies.v1(Controller::Freezer).map(|mount| PathBuf::from(Dir::new(mount, &self.path).path()))
    }

    /// Holds every process, and waits until they are held or a short time is over; or lets them go on.
    pub fn pause(&self, on: bool) -> Result<(), CgroupError> {
        let Some((freezer, dir)) = self.pausing() else {
            return Err(CgroupError::NoController { controller: "freezer", setting: "a pause".to_owned() });
        };
        let (name, value) = ("the freezer", if on { "frozen" } else { "thawed" });
        freezer.set(&dir, on).map_err(|source| dir.write_error(name, value, source))?;
        if on && !kill::await_frozen(&dir, freezer, kill::PAUSE_ROUNDS) {
            let _ = freezer.set(&dir, false);
            return Err(dir.write_error(name, value, Errno::TIMEDOUT));
        }
        Ok(())
    }

    fn pausing(&self) -> Option<(Freezer, Dir)> {
        let v1 = self.hierarchies.v1(Controller::Freezer).map(|mount| (Freezer::V1, Dir::new(mount, &self.path)));
        v1.or_else(|| self.unified_dir().map(|dir| (Freezer::V2, dir)))
    }

    /// The files that list its processes, one for each hierarchy: a process that writes `0` to all of them is in it.
    pub fn process_lists(&self) -> Vec<PathBuf> {
        let v1 = self.hierarchies.v1_mounts().map(|mount| Dir::new(mount, &self.path));
        v1.chain(self.unified_dir()).map(|dir| PathBuf::from(dir.file("cgroup.procs"))).collect()
    }

    /// v1: what is frozen does not die.
    fn thaw_v1(&self) -> Result<(), CgroupError> {
        let Some(mount) = self.hierarchies.v1(Controller::Freezer) else { return Ok(()) };
        let dir = Dir::new(mount, &self.path);
        match Freezer::V1.set(&dir, false) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            Err(source) => Err(dir.write_error("freezer.state", "THAWED", source)),
        }
    }

    /// Every process in it and below it.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        self.any_dir().map_or(Ok(Vec::new()), |dir| kill::processes(&dir))
    }

    /// Whether no process is left, or the cgroup is gone.
    pub fn is_empty(&self) -> Result<bool, CgroupError> {
        let Some(dir) = self.unified_dir() else { return Ok(self.pids()?.is_empty()) };
        match dir.try_read("cgroup.events") {
            Ok(events) => Ok(events.lines().any(|line| line == "populated 0")),
            Err(Errno::NOENT | Errno::NODEV) => Ok(true),
            Err(source) => Err(CgroupError::Read { path: dir.file("cgroup.events"), source }),
        }
    }

    /// A cgroup below this one for one exec.
    pub fn leaf(&self, name: &str) -> Result<Leaf, CgroupError> {
        Leaf::make(self, name)
    }

    /// One reading of everything it uses.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        self.stats_reader(Depth::All)?.read(&mut Vec::new())
    }

    /// For reading again and again without opening again.
    pub fn stats_reader(&self, depth: Depth) -> Result<StatsReader, CgroupError> {
        StatsReader::open(self.group(), depth)
    }

    /// Removes it, with what is below it; done already is fine. Its processes must be dead or dying.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mounts = self.hierarchies.v1_mounts().chain(self.hierarchies.unified());
        let mut first = Ok(());
        if let Some(unit) = &self.scope {
            if let Some(dir) = self.unified_dir() {
                // systemd removes the scope's own directory, but does not wait for others below it.
                dir.children().iter().try_for_each(|child| kill::remove(&dir.child(child)))?;
            }
            first = systemd::stop(unit);
        }
        for mount in mounts {
            let removed = kill::remove(&Dir::new(mount, &self.path));
            first = first.and(removed);
        }
        first
    }

    /// Lets a user of the host divide the cgroup among cgroups of its own; its limits stay out of reach where the hierarchy is
    /// mounted with `nsdelegate` and the user has a cgroup namespace rooted here. Nothing happens with version 1.
    pub fn delegate(&self, uid: u32) -> Result<(), CgroupError> {
        match self.unified_dir().filter(|_| self.hierarchies.mode() == Mode::V2) {
            Some(dir) => delegate::delegate(&dir, uid),
            None => Ok(()),
        }
    }

    fn group(&self) -> Group<'_> {
        Group { hierarchies: self.hierarchies, path: &self.path }
    }

    fn unified_dir(&self) -> Option<Dir> {
        self.group().unified()
    }

    fn any_dir(&self) -> Option<Dir> {
        let mount = self.hierarchies.unified().or_else(|| self.hierarchies.v1_mounts().next())?;
        Some(Dir::new(mount, &self.path))
    }
}

/// The sizes of huge pages that this machine has, as cgroup files name them: `2MB`, `1GB`.
pub fn hugepage_sizes() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let kilobytes = names.filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok());
    let mut sizes: Vec<u64> = kilobytes.collect();
    sizes.sort_unstable();
    let text = |size: u64| match size {
        0..1024 => format!("{size}KB"),
        1024..1_048_576 => format!("{}MB", size >> 10),
        _ => format!("{}GB", size >> 20),
    };
    sizes.into_iter().map(text).collect()
}

/// Where systemd has put the process: the only one who knows is the kernel.
fn scope_path(mode: Mode, pid: i32, unit: &str) -> Result<String, CgroupError> {
    let own = Dir::new("/proc", &format!("/{pid}"));
    let text = own.try_read_list("cgroup").map_err(|source| CgroupError::Read { path: own.file("cgroup"), source })?;
    let prefix = if mode == Mode::V2 { "0::" } else { ":name=systemd:" };
    let found =
        text.lines().find_map(|line| line.split_once(prefix)).map(|(_, path)| path.to_owned()).unwrap_or_default();
    match found.ends_with(&format!("/{unit}")) {
        true => Ok(found),
        false => Err(CgroupError::Misplaced { pid, unit: unit.to_owned(), found }),
    }
}

fn open_directory(dir: &Dir) -> Result<OwnedFd, CgroupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(dir.path(), flags, FileMode::empty())
        .map_err(|source| CgroupError::Open { path: dir.path().to_owned(), source })
}

/// v1: by `tasks` a process moves its own only thread without stopping all others of the machine, as `cgroup.procs` does.
fn open_tasks(dir: &Dir) -> Result<OwnedFd, CgroupError> {
    let path = dir.file("tasks");
    rustix::fs::open(path.as_str(), OFlags::WRONLY | OFlags::CLOEXEC, FileMode::empty())
        .map_err(|source| CgroupError::Open { path, source })
}

#[cfg(test)]
mod tests;
