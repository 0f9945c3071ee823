//! Which cgroup hierarchies the machine has: one cgroup2 mount, or cgroup v1 mounts by controller, or both.
//! Read once per process, from mountinfo; any thread.
//! Owns the cached answer, for the life of the process.
//! Must never assume a mount point: distributions co-mount controllers and put them anywhere.

use std::sync::OnceLock;

use super::dir::Dir;
use super::error::CgroupError;
use crate::mountinfo;

/// How cgroups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Only version 1.
    V1,
    /// Controllers in version 1, and a cgroup2 mount for grouping processes.
    Hybrid,
    /// Only version 2.
    V2,
}

/// A resource controller, by what it does; `io` is v1's blkio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Cpu,
    Cpuacct,
    Cpuset,
    Memory,
    Devices,
    Freezer,
    Io,
    Pids,
    Hugetlb,
    Rdma,
    NetCls,
    NetPrio,
}

impl Controller {
    /// Its name in version 2, and where that has none in version 1.
    pub(super) fn name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Cpuacct => "cpuacct",
            Controller::Cpuset => "cpuset",
            Controller::Memory => "memory",
            Controller::Devices => "devices",
            Controller::Freezer => "freezer",
            Controller::Io => "io",
            Controller::Pids => "pids",
            Controller::Hugetlb => "hugetlb",
            Controller::Rdma => "rdma",
            Controller::NetCls => "net_cls",
            Controller::NetPrio => "net_prio",
        }
    }

    fn name_v1(self) -> &'static str {
        if self == Controller::Io { "blkio" } else { self.name() }
    }
}

/// The mounted hierarchies.
#[derive(Debug)]
pub struct Hierarchies {
    /// Version 1, each with its mount point and what is in its mount options.
    v1: Vec<(String, Vec<String>)>,
    unified: Option<String>,
    /// What the root of the cgroup2 mount offers; read when first asked for.
    offered: OnceLock<Vec<String>>,
}

/// The machine's hierarchies.
pub fn detect() -> Result<&'static Hierarchies, CgroupError> {
    static DETECTED: OnceLock<Hierarchies> = OnceLock::new();
    if let Some(hierarchies) = DETECTED.get() {
        return Ok(hierarchies);
    }
    let hierarchies = Hierarchies::read()?;
    Ok(DETECTED.get_or_init(|| hierarchies))
}

const CGROUP2_MAGIC: u64 = 0x6367_7270;
const USUAL_MOUNT: &str = "/sys/fs/cgroup";

impl Hierarchies {
    fn read() -> Result<Hierarchies, CgroupError> {
        // The production case costs one system call: nothing but cgroup2 can be mounted there then.
        if rustix::fs::statfs(USUAL_MOUNT).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(CGROUP2_MAGIC)) {
            return Ok(Hierarchies { v1: Vec::new(), unified: Some(USUAL_MOUNT.to_owned()), offered: OnceLock::new() });
        }
        let mountinfo = Dir::new("/proc/self", "").try_read_list("mountinfo");
        Hierarchies::parse(&mountinfo.map_err(|source| CgroupError::ReadMounts { source })?)
    }

    /// From the text of mountinfo; a hierarchy that is mounted twice counts where it is under /sys/fs/cgroup.
    pub(super) fn parse(table: &str) -> Result<Hierarchies, CgroupError> {
        let mut v1: Vec<(String, Vec<String>)> = Vec::new();
        let mut unified: Option<String> = None;
        for mount in mountinfo::parse(table) {
            let usual = mount.point.starts_with(USUAL_MOUNT);
            match mount.fstype {
                "cgroup2" if unified.is_none() || usual => unified = Some(mount.point.into_owned()),
                "cgroup" => {
                    let ignored = ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"];
                    let known = |option: &&str| !ignored.contains(option) && !option.starts_with("release_agent=");
                    let subsystems: Vec<String> =
                        mount.super_options.split(',').filter(known).map(str::to_owned).collect();
                    match v1.iter_mut().find(|(_, other)| *other == subsystems) {
                        Some(first) if usual && !first.0.starts_with(USUAL_MOUNT) => first.0 = mount.point.into_owned(),
                        Some(_) => {}
                        None => v1.push((mount.point.into_owned(), subsystems)),
                    }
                }
                _ => {}
            }
        }
        if v1.is_empty() && unified.is_none() {
            return Err(CgroupError::NoHierarchies);
        }
        Ok(Hierarchies { v1, unified, offered: OnceLock::new() })
    }

    /// How they are mounted.
    pub fn mode(&self) -> Mode {
        let named = |subsystems: &[String]| subsystems.iter().all(|subsystem| subsystem.starts_with("name="));
        match (self.v1.iter().all(|(_, subsystems)| named(subsystems)), &self.unified) {
            // A hierarchy that is only a name, such as systemd's, limits nothing.
            (true, Some(_)) => Mode::V2,
            (false, Some(_)) => Mode::Hybrid,
            (_, None) => Mode::V1,
        }
    }

    /// Whether a container's time lost to pressure is counted: in the cgroup2 mount, by a kernel that has not been told not to.
    pub fn counts_pressure(&self) -> bool {
        self.unified.is_some() && rustix::fs::access("/proc/pressure/cpu", rustix::fs::Access::EXISTS).is_ok()
    }

    /// Whether every container's huge pages are counted. Beside v1 controllers the cgroup2 mount is for grouping processes, and
    /// has the controller only where a limit needed it.
    pub fn counts_hugepages(&self) -> bool {
        let here =
            self.v1(Controller::Hugetlb).is_some() || (self.mode() == Mode::V2 && self.offers(Controller::Hugetlb));
        here && !super::hugepage_sizes().is_empty()
    }

    /// Whether the most that was in use of them is kept: by v1 only.
    pub fn keeps_hugepage_peaks(&self) -> bool {
        self.counts_hugepages() && self.v1(Controller::Hugetlb).is_some()
    }

    /// The cgroup2 mount point.
    pub(super) fn unified(&self) -> Option<&str> {
        self.unified.as_deref()
    }

    /// Every version 1 mount point.
    pub(super) fn v1_mounts(&self) -> impl Iterator<Item = &str> {
        self.v1.iter().map(|(mount, _)| mount.as_str())
    }

    /// The version 1 mount point of one controller.
    pub(super) fn v1(&self, controller: Controller) -> Option<&str> {
        let has = |subsystems: &[String]| subsystems.iter().any(|name| name == controller.name_v1());
        self.v1.iter().find(|(_, subsystems)| has(subsystems)).map(|(mount, _)| mount.as_str())
    }

    /// True when the controller is in the cgroup2 mount.
    pub(super) fn offers(&self, controller: Controller) -> bool {
        let read = || {
            let names = self.unified().and_then(|mount| Dir::new(mount, "").read("cgroup.controllers").ok());
            names.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
        };
        self.offered.get_or_init(read).iter().any(|name| name == controller.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/systemd rw shared:6 - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
35 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
36 31 0:33 / /sys/fs/cgroup/my\\040blkio rw - cgroup cgroup rw,blkio
";

    #[test]
    fn controllers_are_found_where_they_are_mounted_together() {
        let hierarchies = Hierarchies::parse(HYBRID).unwrap();
        assert_eq!(hierarchies.mode(), Mode::Hybrid);
        assert_eq!(hierarchies.v1(Controller::Cpu), Some("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(hierarchies.v1(Controller::Cpuacct), Some("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(hierarchies.v1(Controller::Io), Some("/sys/fs/cgroup/my blkio"));
        assert_eq!(hierarchies.v1(Controller::Pids), None);
        assert_eq!(hierarchies.unified(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(hierarchies.v1_mounts().count(), 4);
    }

    #[test]
    fn a_hierarchy_mounted_twice_counts_once_and_in_its_usual_place() {
        let twice = "1 1 0:1 / /mnt/memory rw - cgroup cgroup rw,memory\n\
                     2 1 0:2 / /mnt/two rw - cgroup2 none rw\n\
                     3 1 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     4 1 0:2 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n\
                     5 1 0:2 / /srv/two rw - cgroup2 none rw\n";
        let hierarchies = Hierarchies::parse(twice).unwrap();
        assert_eq!(hierarchies.v1_mounts().collect::<Vec<_>>(), ["/sys/fs/cgroup/memory"]);
        assert_eq!(hierarchies.unified(), Some("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn modes_follow_the_mounts() {
        let only_two = "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(Hierarchies::parse(only_two).unwrap().mode(), Mode::V2);
        let named = "1 1 0:1 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        assert_eq!(Hierarchies::parse(&format!("{named}{only_two}")).unwrap().mode(), Mode::V2);
        let only_one = "1 1 0:1 / /cg rw - cgroup cgroup rw,memory\n";
        assert_eq!(Hierarchies::parse(only_one).unwrap().mode(), Mode::V1);
        assert!(matches!(Hierarchies::parse("1 1 0:1 / / rw - ext4 /dev/vda rw\n"), Err(CgroupError::NoHierarchies)));
    }
}
