//! The limits of `linux.resources` as writes to control files, in the order the kernel takes them.
//! Blocking for microseconds; run by the launcher before the container is cloned and by a live update.
//! Owns nothing: it works on the directories it is given.
//! Must never drop a limit silently: what the machine cannot do is an error, unless it asks for no limit.

mod cpu;
mod io;
mod memory;

use super::dir::Dir;
use super::error::CgroupError;
use super::hierarchy::{Controller, Hierarchies};
use crate::spec::Resources;

pub(super) use cpu::weight_of_shares;
pub(super) use memory::swap_beyond_memory;

/// Whether anything runs in the cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Just made: every value is the kernel's default.
    Fresh,
    /// Processes may be running, values may be set.
    Live,
}

/// A controller's directory, in the version it has there.
pub(super) enum Place {
    V1(Dir),
    V2(Dir),
    Absent,
}

/// One cgroup in all hierarchies.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) hierarchies: &'a Hierarchies,
    pub(super) path: &'a str,
}

impl Group<'_> {
    pub(super) fn place(&self, controller: Controller) -> Place {
        match (self.hierarchies.v1(controller), self.hierarchies.unified()) {
            (Some(mount), _) => Place::V1(Dir::new(mount, self.path)),
            (None, Some(mount)) if self.hierarchies.offers(controller) => Place::V2(Dir::new(mount, self.path)),
            (None, _) => Place::Absent,
        }
    }

    /// As [`Group::place`], when a limit needs the controller.
    fn need(&self, controller: Controller, setting: &str) -> Result<Place, CgroupError> {
        match self.place(controller) {
            Place::Absent => {
                Err(CgroupError::NoController { controller: controller.name(), setting: setting.to_owned() })
            }
            place => Ok(place),
        }
    }

    pub(super) fn unified(&self) -> Option<Dir> {
        self.hierarchies.unified().map(|mount| Dir::new(mount, self.path))
    }
}

/// The controllers that these limits cannot do without, each with the setting that needs it.
pub(super) fn needed(resources: &Resources) -> Vec<(Controller, &'static str)> {
    let mut needed = Vec::new();
    let mut need = |holds: bool, controller, setting| {
        if holds {
            needed.push((controller, setting));
        }
    };
    if let Some(memory) = &resources.memory {
        need(limits(memory.limit) || limits(memory.swap), Controller::Memory, "the memory limit");
        need(limits(memory.reservation), Controller::Memory, "the memory reservation");
    }
    if let Some(cpu) = &resources.cpu {
        need(cpu.shares.is_some_and(|shares| shares > 0), Controller::Cpu, "cpu shares");
        need(limits(cpu.quota), Controller::Cpu, "the cpu quota");
        need(cpu.idle.is_some_and(|idle| idle != 0), Controller::Cpu, "cpu idle");
        need(!cpu.cpus.is_empty() || !cpu.mems.is_empty(), Controller::Cpuset, "the cpuset");
    }
    need(resources.pids.as_ref().is_some_and(|pids| limits(pids.limit)), Controller::Pids, "the limit of processes");
    need(resources.hugepage_limits.iter().any(is_hugepage_limit), Controller::Hugetlb, "the huge page limit");
    need(resources.block_io.is_some(), Controller::Io, "block i/o limits");
    need(!resources.rdma.is_empty(), Controller::Rdma, "rdma limits");
    needed
}

/// Zero is "not set" to the writers of specs, negative is "no limit".
fn limits(value: Option<i64>) -> bool {
    value.is_some_and(|value| value > 0)
}

/// Writes every limit but the devices. What can be known to be wrong is refused before the first write, and memory, which may not
/// fit what is in use, comes first: an update that is refused has changed nothing then.
pub(super) fn apply(group: Group<'_>, resources: &Resources, when: When) -> Result<(), CgroupError> {
    if let Some(cpu) = &resources.cpu {
        cpu::check(cpu)?;
    }
    check_unified(group, resources)?;
    if let Some(memory) = &resources.memory {
        memory::apply(group, memory, when)?;
    }
    if let Some(cpu) = &resources.cpu {
        cpu::apply(group, cpu)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        pids(group, limit, when)?;
    }
    for limit in &resources.hugepage_limits {
        hugepages(group, limit)?;
    }
    if let Some(block_io) = &resources.block_io {
        io::apply(group, block_io)?;
    }
    for (device, limit) in &resources.rdma {
        let (Place::V1(dir) | Place::V2(dir)) = group.need(Controller::Rdma, "rdma limits")? else { continue };
        let mut value = device.clone();
        for (key, number) in [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)] {
            if let Some(number) = number {
                value.push_str(&format!(" {key}={number}"));
            }
        }
        dir.write("rdma.max", &value)?;
    }
    if let Some(network) = &resources.network {
        classes(group, network)?;
    }
    unified(group, resources)
}

fn pids(group: Group<'_>, limit: i64, when: When) -> Result<(), CgroupError> {
    let limited = limit > 0;
    if !limited && when == When::Fresh {
        return Ok(());
    }
    let place =
        if limited { group.need(Controller::Pids, "the limit of processes")? } else { group.place(Controller::Pids) };
    match place {
        Place::V1(dir) | Place::V2(dir) if limited => dir.write("pids.max", &limit.to_string()),
        Place::V1(dir) | Place::V2(dir) => dir.write("pids.max", "max"),
        Place::Absent => Ok(()),
    }
}

/// Callers list every page size with 0, and some write "no limit" as the largest multiple of a page that fits.
fn is_hugepage_limit(limit: &crate::spec::HugepageLimit) -> bool {
    limit.limit != 0 && limit.limit < (1 << 63) - (1 << 31)
}

fn hugepages(group: Group<'_>, limit: &crate::spec::HugepageLimit) -> Result<(), CgroupError> {
    let setting = || format!("the limit of {} pages", limit.page_size);
    let digits = limit.page_size.trim_end_matches(|c: char| c.is_ascii_uppercase());
    let unit = limit.page_size.get(digits.len()..).unwrap_or_default();
    let well_formed =
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && ["KB", "MB", "GB"].contains(&unit);
    if !well_formed {
        return Err(CgroupError::BadValue {
            setting: "a huge page limit".to_owned(),
            value: limit.page_size.clone(),
            reason: "the page size is not written like 2MB or 1GB",
        });
    }
    let (dir, suffix) = match group.place(Controller::Hugetlb) {
        Place::V1(dir) => (dir, "limit_in_bytes"),
        Place::V2(dir) => (dir, "max"),
        Place::Absent if is_hugepage_limit(limit) => {
            return Err(CgroupError::NoController { controller: "hugetlb", setting: setting() });
        }
        Place::Absent => return Ok(()),
    };
    let file = format!("hugetlb.{}.{suffix}", limit.page_size);
    let value = limit.limit.to_string();
    match dir.try_write(&file, &value) {
        Ok(()) => {}
        Err(rustix::io::Errno::NOENT) if is_hugepage_limit(limit) => {
            return Err(CgroupError::NoFile {
                setting: setting(),
                file,
                hint: ": the machine has no pages of that size",
            });
        }
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(source) => return Err(dir.write_error(&file, &value, source)),
    }
    // Reservations are counted apart since Linux 5.7: without this a process maps more than it may touch and dies by SIGBUS.
    let file = format!("hugetlb.{}.rsvd.{suffix}", limit.page_size);
    match dir.try_write(&file, &value) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(source) => Err(dir.write_error(&file, &value, source)),
    }
}

fn classes(group: Group<'_>, network: &crate::spec::Network) -> Result<(), CgroupError> {
    let only_v1 = |setting: &str| CgroupError::Unsupported {
        setting: setting.to_owned(),
        reason: "cgroup v2 has no network classes; use the pod's bandwidth annotations",
    };
    if let Some(class) = network.class_id.filter(|class| *class != 0) {
        match group.need(Controller::NetCls, "the network class").map_err(|_| only_v1("the network class"))? {
            Place::V1(dir) => dir.write("net_cls.classid", &class.to_string())?,
            Place::V2(_) | Place::Absent => return Err(only_v1("the network class")),
        }
    }
    for priority in &network.priorities {
        match group.need(Controller::NetPrio, "network priorities").map_err(|_| only_v1("network priorities"))? {
            Place::V1(dir) => dir.write("net_prio.ifpriomap", &format!("{} {}", priority.name, priority.priority))?,
            Place::V2(_) | Place::Absent => return Err(only_v1("network priorities")),
        }
    }
    Ok(())
}

/// Files of the cgroup core that a limit may name; the others move or kill processes or change what the cgroup is.
const CORE_LIMITS: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

/// Whether every file of the map is a limit that this cgroup has.
fn check_unified(group: Group<'_>, resources: &Resources) -> Result<(), CgroupError> {
    for (file, value) in &resources.unified {
        let setting = || format!("`{file}`");
        if group.hierarchies.mode() != super::Mode::V2 {
            return Err(CgroupError::Unsupported {
                setting: setting(),
                reason: "it is a cgroup v2 file and this machine has its controllers in cgroup v1",
            });
        }
        let bad = |reason| CgroupError::BadValue { setting: setting(), value: value.clone(), reason };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_' || c == '-';
        if file.is_empty() || file.starts_with('.') || !file.contains('.') || !file.chars().all(plain) {
            return Err(bad("that is no name of a cgroup file"));
        }
        if file.starts_with("cgroup.") && !CORE_LIMITS.contains(&file.as_str()) {
            return Err(bad("that file is no limit"));
        }
        if group.unified().is_some_and(|dir| !dir.exists(file)) {
            let hint = ", or its controller is not enabled for this cgroup";
            return Err(CgroupError::NoFile { setting: setting(), file: file.clone(), hint });
        }
    }
    Ok(())
}

fn unified(group: Group<'_>, resources: &Resources) -> Result<(), CgroupError> {
    let Some(dir) = group.unified() else { return Ok(()) };
    for (file, value) in &resources.unified {
        value.lines().try_for_each(|line| dir.write(file, line))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
