//! What another runtime mounts by paths, made ready where a path leads to it: the root filesystem, volumes with shifted ids, images, and
//! folders of the root that stay writable.
//! In the shim of that container, in a mount namespace of its own; nothing of it is in any other, and all of it goes with the process.
//! Owns nothing: the mounts are the namespace's.
//! Must never follow a link of an image to a place outside of it, nor leave to the runtime what would have to be joined to a path.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use keelson_sys::child::MountSource;
use keelson_sys::{inside, mount};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::options::Options;
use super::rootfs::{self, Shift};
use super::{ImageVolume, LaunchError, OverlayRootfs, idmap, image};
use crate::spec::{Linux, Mount, Spec};

const STEP: &str = "prepare mounts for the runtime";
/// Names in the folder: the root, mounts of the spec by their index, image folders that stay writable by theirs.
pub const ROOT: &str = "root";

/// What to make ready.
pub struct Staging<'a> {
    /// An empty folder that every user of the host can traverse the parents of.
    pub place: &'a Path,
    /// Relative sources start here.
    pub bundle: &'a Path,
    pub spec: &'a Spec,
    pub overlay: Option<&'a OverlayRootfs>,
    pub image_volumes: &'a [ImageVolume],
    /// Folders of the root, made when missing; mounts of their own when the root is read-only.
    pub volumes: &'a [String],
    pub resolved_sources: &'a [String],
}

/// Makes it ready in the calling process's own mount namespace.
pub fn stage(staging: &Staging<'_>) -> Result<(), LaunchError> {
    let failed = |errno| LaunchError::system(STEP, staging.place.display().to_string(), errno);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", staging.place, "tmpfs", flags, c"mode=0711,size=1m").map_err(failed)?;
    let default = Linux::default();
    let linux = staging.spec.linux.as_ref().unwrap_or(&default);
    let mappings = (linux.uid_mappings.as_slice(), linux.gid_mappings.as_slice());
    let namespace = (!mappings.0.is_empty()).then(|| idmap::namespace(mappings.0, mappings.1)).transpose()?;
    let shift = namespace
        .as_ref()
        .map(|namespace| Shift { namespace, root: (idmap::outside(mappings.0, 0), idmap::outside(mappings.1, 0)) });
    let shift = shift.as_ref();
    if let Some(overlay) = staging.overlay {
        let root = staging.place.join(ROOT);
        rustix::fs::mkdir(&root, Mode::from_raw_mode(0o755)).map_err(failed)?;
        rootfs::mount_shifted(overlay, shift, &linux.mount_label, &root, staging.volumes)?;
        if staging.spec.root.as_ref().is_some_and(|root| root.readonly) {
            writable(staging, &root)?;
        }
    }
    for (index, mount) in staging.spec.mounts.iter().enumerate() {
        let target = staging.place.join(index.to_string());
        if let Some(volume) = staging.image_volumes.iter().find(|volume| volume.destination == mount.destination) {
            image_volume(volume, shift, &linux.mount_label, &target)?;
        } else if !mount.uid_mappings.is_empty() {
            attach(&shifted(staging, mount)?, &target).map_err(|errno| at(mount, errno))?;
        }
    }
    Ok(())
}

fn at(mount: &Mount, errno: Errno) -> LaunchError {
    LaunchError::system(STEP, mount.destination.as_str(), errno)
}

/// The image's own folders, found inside the root whatever links it has.
fn writable(staging: &Staging<'_>, root: &Path) -> Result<(), LaunchError> {
    let failed = |folder: &str, errno| LaunchError::system("mount volume folder", folder, errno);
    let opened = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = opened.map_err(|errno| failed("", errno))?;
    for (index, folder) in staging.volumes.iter().enumerate() {
        let made = inside::folder(&root, folder.as_str(), ResolveFlags::empty())
            .and_then(|found| clone_of(&found))
            .and_then(|tree| attach(&tree, &staging.place.join(format!("v{index}"))));
        made.map_err(|errno| failed(folder, errno))?;
    }
    Ok(())
}

fn image_volume(
    volume: &ImageVolume,
    shift: Option<&Shift<'_>>,
    label: &str,
    target: &Path,
) -> Result<(), LaunchError> {
    let failed = |errno| LaunchError::system(image::STEP, volume.destination.as_str(), errno);
    match image::source(volume, &Options::default(), shift, label)? {
        MountSource::Tree(tree) => attach(&tree, target).map_err(failed),
        MountSource::Part { tree, part } => {
            // Only what is attached can be cloned from.
            attach(&tree, target).map_err(failed)?;
            let part = clone_of(&part).map_err(failed)?;
            mount_over(&part, target).map_err(failed)
        }
        MountSource::New { .. } => Err(failed(Errno::INVAL)),
    }
}

/// The mount's source with its ids shifted.
fn shifted(staging: &Staging<'_>, mount: &Mount) -> Result<OwnedFd, LaunchError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let source = staging.bundle.join(&mount.source);
    let failed = |errno| LaunchError::system("open mount source", source.display().to_string(), errno);
    let tree = if staging.resolved_sources.contains(&mount.source) {
        let place = rootfs::place_without_links(&source).map_err(failed)?;
        open_tree(&place, "", flags | OpenTreeFlags::AT_EMPTY_PATH).map_err(failed)?
    } else {
        open_tree(CWD, &source, flags).map_err(failed)?
    };
    let namespace = idmap::namespace(&mount.uid_mappings, &mount.gid_mappings)?;
    mount::set_idmap(tree.as_fd(), namespace.as_fd(), false).map_err(|errno| {
        LaunchError::system("shift ids of mount", source.display().to_string(), errno)
            .with_hint("its filesystem may not support id-mapped mounts")
    })?;
    Ok(tree)
}

fn clone_of(place: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(place, "", flags)
}

/// Attaches a detached mount at a path of ours, which is made.
fn attach(tree: &OwnedFd, target: &Path) -> rustix::io::Result<()> {
    if rootfs::is_folder(tree) {
        rustix::fs::mkdir(target, Mode::from_raw_mode(0o755))?;
    } else {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(target, flags, Mode::from_raw_mode(0o644))?;
    }
    mount_over(tree, target)
}

fn mount_over(tree: &OwnedFd, target: &Path) -> rustix::io::Result<()> {
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}
