//! What this kernel can do for mounts, found by trying: a version number says nothing about a kernel that a distribution patched.
//! Read once, when the engine opens; a few system calls on mounts that are nowhere.
//! Owns one scratch folder for a moment. Must never touch a mount of the host.

use std::{fs, os::fd::AsFd as _, path::Path};

use keelson_shim::mountinfo;
use keelson_sys::mount::{Attributes, set_attributes};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen, open_tree,
};

/// mount_setattr(2) on a tree.
pub(crate) fn recursive_attributes() -> bool {
    let tried = || -> rustix::io::Result<()> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let attributes = Attributes { set: Attributes::RDONLY | Attributes::NOEXEC, clear: 0 };
        set_attributes(mount.as_fd(), attributes, None, true)
    };
    tried().is_ok()
}

/// A container that may write to its cgroup must not reach its own limits: cgroup v2 guards them when its mount says so.
pub(crate) fn no_writable_cgroup(unified: bool) -> Option<String> {
    if !unified {
        return Some("this host has cgroup v1 controllers: a writable cgroup needs cgroup v2".to_owned());
    }
    delegation(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// A user namespace with an image's layers shifted into it: the kernel may lack a part of that, a filesystem another, and a setting
/// may forbid it. `scratch` is made and taken away again, on the filesystem of the layers.
pub(crate) fn no_user_namespaces(scratch: &Path) -> Option<String> {
    let _ = fs::remove_dir_all(scratch);
    if let Err(error) = fs::create_dir(scratch) {
        return Some(format!("make `{}`: {error}", scratch.display()));
    }
    let found = keelson_shim::launch::probe::user_namespaces(scratch);
    // Empty, and found again at the next start.
    let _ = fs::remove_dir_all(scratch);
    let reason = found.err()?.to_string();
    tracing::info!(reason, "sandboxes cannot have a user namespace of their own on this host");
    Some(reason)
}

/// The host's sysfs without what is mounted in it, for a container that can mount none of its own.
pub(crate) fn no_host_sysfs() -> Option<String> {
    const SYSFS_MAGIC: u64 = 0x6265_6572;
    let tried = || -> rustix::io::Result<bool> {
        let tree = open_tree(CWD, "/sys", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        let attributes = Attributes { set: Attributes::RDONLY | Attributes::NOSUID, clear: 0 };
        set_attributes(tree.as_fd(), attributes, None, false)?;
        Ok(u64::try_from(rustix::fs::fstatfs(&tree)?.f_type) == Ok(SYSFS_MAGIC))
    };
    let reason = match tried() {
        Ok(true) => return None,
        Ok(false) => "/sys of the host is no sysfs".to_owned(),
        Err(errno) => format!("clone the host's /sys: {errno}"),
    };
    tracing::info!(reason, "sandboxes with a user namespace of their own cannot have the host's network");
    Some(reason)
}

/// From the text of mountinfo. The option is the hierarchy's: every mount of it shows it.
fn delegation(table: &str) -> Option<String> {
    let unified = mountinfo::parse(table).find(|mount| mount.fstype == "cgroup2");
    if unified.is_some_and(|mount| mount.super_options.split(',').any(|option| option == "nsdelegate")) {
        return None;
    }
    let reason = "the host has cgroup2 mounted without `nsdelegate`, so a container could raise its own limits: \
                  mount -o remount,nsdelegate /sys/fs/cgroup, then restart keelson";
    Some(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delegation_is_read_off_the_mount() {
        let line = |options: &str| format!("31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 {options}\n");
        assert_eq!(delegation(&line("rw,nsdelegate,memory_recursiveprot")), None);
        assert!(delegation(&line("rw")).unwrap().contains("nsdelegate"));
        assert!(delegation("").is_some());
        assert!(no_writable_cgroup(false).unwrap().contains("cgroup v2"));
    }

    #[test]
    fn privileged_a_kernel_of_this_decade_sets_attributes_of_trees() {
        assert!(recursive_attributes(), "as root on Linux 5.12 or newer");
        assert_eq!(no_host_sysfs(), None);
    }
}
