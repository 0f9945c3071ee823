//! What CRIU needs to read processes from files: the mounts of the init that waits as a tree it can take, the streams, the place.
//! In the process that becomes CRIU.
//! Owns a mount namespace: a private copy of the host's with the container's mounts on a tmpfs; CRIU's copies are the container's.
//! Must never follow a symbolic link on the way to a mount, and never pass on another mount than the one whose id was checked.

use std::os::fd::{AsFd as _, OwnedFd};

use keelson_sys::namespace::{self, NamespaceKinds};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use super::{
    CriuError, Job, Mount, PID_FILE, RESTORE_LOG, Restore, common, enter, hand_down, namespaces, open, system,
};

/// Takes CRIU's place; gives its arguments.
pub(super) fn prepare(job: &Job, restore: &Restore) -> Result<Vec<String>, CriuError> {
    let streams = streams(job.init, &restore.stdio)?;
    let (root, sources) = stage(job, restore)?;
    for list in &restore.cgroups {
        let file = open(list, OFlags::WRONLY)?;
        rustix::io::write(&file, b"0").map_err(system("join cgroup", list))?;
    }
    enter(job.init)?;
    let mut words = common(job, "restore", RESTORE_LOG);
    let pid_file = format!("{}/{PID_FILE}", job.work);
    words.extend(["--restore-detached", "--pidfile", &pid_file, "--root", &root].map(str::to_owned));
    for (key, source) in sources {
        words.extend(["--external".to_owned(), format!("mnt[{key}]:{source}")]);
    }
    for (name, fd) in streams {
        words.extend(["--inherit-fd".to_owned(), format!("fd[{fd}]:{name}")]);
    }
    if !restore.lsm_profile.is_empty() {
        words.extend(["--lsm-profile".to_owned(), restore.lsm_profile.clone()]);
    }
    Ok(words)
}

/// The streams of the init that waits, opened for CRIU: once for each name.
fn streams(init: i32, names: &[String]) -> Result<Vec<(String, i32)>, CriuError> {
    let mut found: Vec<(String, i32)> = Vec::new();
    for (number, name) in names.iter().enumerate().take(3) {
        if name.is_empty() || found.iter().any(|(known, _)| known == name) {
            continue;
        }
        let flags = if number == 0 { OFlags::RDONLY } else { OFlags::WRONLY };
        let fd = open(&format!("/proc/{init}/fd/{number}"), flags)?;
        found.push((name.clone(), hand_down(fd)?));
    }
    Ok(found)
}

/// Puts the init's mounts below a tmpfs on `<work>/stage`: the root, and one place for each of the others. Returns the root's path
/// and the place of each key.
fn stage(job: &Job, restore: &Restore) -> Result<(String, Vec<(String, String)>), CriuError> {
    let stage = format!("{}/stage", job.work);
    namespace::unshare(NamespaceKinds::MOUNT).map_err(namespaces("create namespace", "mount"))?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).map_err(system("make private", "/"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", &stage, "tmpfs", flags, c"mode=0700,size=16m")
        .map_err(system("mount tmpfs on", &stage))?;
    let here = open("/proc/self/ns/mnt", OFlags::RDONLY)?;
    let there = open(&format!("/proc/{}/ns/mnt", job.init), OFlags::RDONLY)?;
    namespace::set(there.as_fd(), NamespaceKinds::MOUNT).map_err(namespaces("enter namespace", "mount"))?;
    let taken = restore.mounts.iter().map(|mount| Ok((mount, take(mount)?))).collect::<Result<Vec<_>, CriuError>>();
    namespace::set(here.as_fd(), NamespaceKinds::MOUNT).map_err(namespaces("leave namespace", "mount"))?;
    let mut sources = Vec::new();
    let mut root = String::new();
    for (number, (mount, (tree, directory))) in taken?.into_iter().enumerate() {
        let place = format!("{stage}/{number}");
        if directory {
            rustix::fs::mkdir(&*place, Mode::RWXU).map_err(system("make", &place))?;
        } else {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::open(&*place, flags, Mode::RUSR).map_err(system("make", &place))?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", CWD, &*place, flags).map_err(system("place mount", &mount.mountpoint))?;
        if mount.mountpoint == "/" {
            root = place;
        } else {
            sources.push((mount.key.clone(), place));
        }
    }
    Ok((root, sources))
}

/// A detached copy of one mount, and whether it is a directory. Called inside the container's mount namespace.
fn take(mount: &Mount) -> Result<(OwnedFd, bool), CriuError> {
    let failed = || system("find mount", &mount.mountpoint);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let at = rustix::fs::openat2(CWD, &*mount.mountpoint, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        .map_err(failed())?;
    let wanted = StatxFlags::MNT_ID | StatxFlags::TYPE;
    let found = rustix::fs::statx(&at, "", AtFlags::EMPTY_PATH, wanted).map_err(failed())?;
    if found.stx_mnt_id != mount.id {
        return Err(CriuError::OtherMount { mountpoint: mount.mountpoint.clone() });
    }
    let directory = rustix::fs::FileType::from_raw_mode(found.stx_mode.into()) == rustix::fs::FileType::Directory;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&at, "", flags).map_err(system("copy mount", &mount.mountpoint))?;
    Ok((tree, directory))
}
