//! The root filesystem as a detached mount: an overlay of an image's layers, or a bind of a folder.
//! In the shim, before the clone; nothing of it is in any mount table until the child attaches it in its own namespace.
//! Owns the mount until it is handed over.
//! Must never make it visible outside, nor follow what an image says about other layers (redirects, metadata-only copies).

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use keelson_sys::child::{Attributes, Op, Propagation};
use keelson_sys::namespace::{self, NamespaceKinds};
use keelson_sys::{inside, mount};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::{LaunchError, OverlayRootfs};

const STEP: &str = "mount overlay root filesystem";

/// What the kernel must not do whatever its defaults are: renamed folders are copied, layers cannot point elsewhere.
const PLAIN: [(&str, &str); 3] = [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")];

/// A folder as root, with all that is mounted in it.
pub(super) fn bind(path: &Path) -> Result<OwnedFd, LaunchError> {
    let failed = |errno| LaunchError::system("open root filesystem", path.display().to_string(), errno);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, path, flags).map_err(failed)?;
    mount::set_attributes(tree.as_fd(), Attributes::default(), Some(Propagation::Private), true).map_err(failed)?;
    if !is_folder(&tree) {
        return Err(failed(Errno::NOTDIR));
    }
    Ok(tree)
}

/// A root filesystem, ready for the plan.
pub(super) enum Root {
    Tree(OwnedFd),
    /// Mounted by the child.
    Legacy(Op),
}

/// An overlay; with a user namespace, its layers' ids are shifted by that namespace's mappings.
/// `label`: of security modules, for every file in it; empty: none.
pub(super) fn overlay(
    overlay: &OverlayRootfs,
    shift: Option<&Shift<'_>>,
    label: &str,
    bundle: &Path,
) -> Result<Root, LaunchError> {
    if overlay.lower.is_empty() {
        return Err(LaunchError::invalid(STEP, "", "no lower directory"));
    }
    let layers = Layers { label, ..Layers::open(overlay, shift)? };
    match layers.mount()? {
        Some(tree) => Ok(Root::Tree(tree)),
        None => legacy(overlay, layers, bundle).map(Root::Legacy),
    }
}

/// An overlay on `target` in the calling process's own mount namespace, with these folders in it: for another runtime, which takes
/// its root filesystem by a path. `label` as for an overlay of ours.
pub fn mount_root(overlay: &OverlayRootfs, label: &str, target: &Path, folders: &[String]) -> Result<(), LaunchError> {
    mount_shifted(overlay, None, label, target, folders)
}

/// The same with its layers' ids shifted, where there is a user namespace.
pub(super) fn mount_shifted(
    overlay: &OverlayRootfs,
    shift: Option<&Shift<'_>>,
    label: &str,
    target: &Path,
    folders: &[String],
) -> Result<(), LaunchError> {
    super::lsm::check_mount_label(label)?;
    if overlay.lower.is_empty() {
        return Err(LaunchError::invalid(STEP, "", "no lower directory"));
    }
    let layers = Layers { label, ..Layers::open(overlay, shift)? };
    let tree = layers.mount()?.ok_or_else(too_many)?;
    for folder in folders {
        make_folder(&tree, Path::new(folder), shift.map(|shift| shift.root))
            .map_err(|errno| LaunchError::system("make volume folder", folder.as_str(), errno))?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, "", CWD, target, flags)
        .map_err(|errno| LaunchError::system("mount root filesystem", target.display().to_string(), errno))
}

/// Makes a folder and those above it, of this user and group; links on the way lead nowhere outside of `root`.
fn make_folder(root: &OwnedFd, path: &Path, owner: Option<(u32, u32)>) -> rustix::io::Result<()> {
    let open = |path: &Path| inside::folder(root, path, ResolveFlags::empty());
    let mut above = open(Path::new("/"))?;
    let mut whole = PathBuf::from("/");
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        whole.push(name);
        above = match open(&whole) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755))?;
                let made = open(&whole)?;
                if let Some((uid, gid)) = owner {
                    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                    rustix::fs::chownat(&made, "", uid, gid, AtFlags::EMPTY_PATH)?;
                }
                made
            }
            other => other?,
        };
    }
    Ok(())
}

fn too_many() -> LaunchError {
    LaunchError::unsupported(STEP, "", "more layers than this kernel's mount call takes; use Linux 6.7 or newer")
}

/// An overlay that nobody can write to: of two layers or more.
pub(super) fn read_only(lower: &[PathBuf], shift: Option<&Shift<'_>>, label: &str) -> Result<OwnedFd, LaunchError> {
    let layers = Layers { label, ..Layers::open_lower(lower, shift)? };
    layers.mount()?.ok_or_else(too_many)
}

#[derive(Clone, Copy)]
enum Lower {
    /// `lowerdir+`, one call each.
    Each,
    /// `lowerdir`, names joined by colons.
    Joined,
}

/// The layers' folders. Their descriptors give names without colons, commas, or length, and shifted ones have no other name.
struct Layers<'a> {
    lower: Vec<(&'a Path, OwnedFd)>,
    /// Upper and work folder.
    writable: Option<[(&'a Path, OwnedFd); 2]>,
    volatile: bool,
    /// Of security modules.
    label: &'a str,
    shifted: bool,
    /// What the lower ones are called in the working directory, where that is all they are known by.
    names: Option<Vec<String>>,
}

impl<'a> Layers<'a> {
    fn open_lower(lower: &'a [PathBuf], shift: Option<&Shift<'_>>) -> Result<Layers<'a>, LaunchError> {
        let lower = lower.iter().map(|path| Ok((path.as_path(), folder(path, shift)?))).collect::<Result<_, _>>()?;
        Ok(Layers { lower, writable: None, volatile: false, label: "", shifted: shift.is_some(), names: None })
    }

    /// None: this kernel's fsconfig cannot take so many.
    fn mount(&self) -> Result<Option<OwnedFd>, LaunchError> {
        if !self.shifted {
            return self.mount_named();
        }
        match mount_overlay(self, Lower::Each) {
            Err(failure) if [Errno::INVAL, Errno::BADF].iter().any(|errno| failure.errno == errno.raw_os_error()) => {}
            other => return other.map(Some),
        }
        // Detached layers are taken since Linux 6.15. Before, a layer must be a mount of the caller's own namespace: the overlay is
        // made on a thread that has one to itself for that moment, and is a detached mount afterwards.
        namespace::in_new(NamespaceKinds::MOUNT, || self.attached()?.mount_named()).map_err(|error| {
            LaunchError::system("create namespace", "mount", Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })?
    }

    /// On a thread in a mount namespace of its own: the lower layers attached on a small filesystem, which becomes the working
    /// directory, and the writable folders as this namespace has them.
    fn attached(&self) -> Result<Layers<'a>, LaunchError> {
        // Any folder that every host has and that holds no layers.
        const PLACE: &str = "/sys";
        let failed = |errno| LaunchError::system("attach layer", PLACE, errno);
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).map_err(failed)?;
        rustix::mount::mount("tmpfs", PLACE, "tmpfs", MountFlags::empty(), None).map_err(failed)?;
        rustix::process::chdir(PLACE).map_err(failed)?;
        let mut names = Vec::with_capacity(self.lower.len());
        for (number, (_, tree)) in self.lower.iter().enumerate() {
            let name = number.to_string();
            rustix::fs::mkdir(&name, Mode::RWXU).map_err(failed)?;
            move_mount(tree, "", CWD, &name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed)?;
            names.push(name);
        }
        let writable = match &self.writable {
            Some([(upper, _), (work, _)]) => Some([(*upper, folder(upper, None)?), (*work, folder(work, None)?)]),
            None => None,
        };
        let (volatile, label) = (self.volatile, self.label);
        Ok(Layers { lower: Vec::new(), writable, volatile, label, shifted: true, names: Some(names) })
    }

    fn mount_named(&self) -> Result<Option<OwnedFd>, LaunchError> {
        match mount_overlay(self, Lower::Each) {
            Err(failure) if failure.errno == Errno::INVAL.raw_os_error() && failure.object == "lowerdir+" => {}
            other => return other.map(Some),
        }
        // Before Linux 6.7 layers are one string, and fsconfig takes 255 bytes of it; short names make that about fifteen layers.
        match mount_overlay(self, Lower::Joined) {
            Err(failure) if failure.errno == Errno::INVAL.raw_os_error() && failure.object == "lowerdir" => Ok(None),
            other => other.map(Some),
        }
    }

    /// Lower layers are shared by containers of other mappings and shifted; the upper one is this container's alone and holds the
    /// ids of the node, because the overlay works in it as the node's root. Its folder is the container's `/`.
    fn open(overlay: &'a OverlayRootfs, shift: Option<&Shift<'_>>) -> Result<Layers<'a>, LaunchError> {
        let layers = Layers::open_lower(&overlay.lower, shift)?;
        let (upper, work) = (folder(&overlay.upper, None)?, folder(&overlay.work, None)?);
        if let Some(shift) = shift {
            let (uid, gid) = (Uid::from_raw(shift.root.0), Gid::from_raw(shift.root.1));
            let flags = AtFlags::EMPTY_PATH;
            rustix::fs::chownat(&upper, "", Some(uid), Some(gid), flags)
                .map_err(|errno| LaunchError::system("own upper layer", overlay.upper.display().to_string(), errno))?;
        }
        let writable = Some([(overlay.upper.as_path(), upper), (overlay.work.as_path(), work)]);
        Ok(Layers { writable, volatile: overlay.volatile, ..layers })
    }

    /// Takes the kernel's mark off that a volatile upper layer may be torn. An earlier container on the same layer left it, after
    /// whose mere end the layer is whole (and after a power failure nobody reads it); or an attempt of ours a moment ago: the
    /// kernel sets it before it looks at the lower layers.
    fn unmark(&self) {
        if let (true, Some([_, (_, work)])) = (self.volatile, &self.writable) {
            let _ = rustix::fs::unlinkat(work, "work/incompat/volatile/dirty", AtFlags::empty());
            let _ = rustix::fs::unlinkat(work, "work/incompat/volatile", AtFlags::REMOVEDIR);
        }
    }
}

/// How layers get the ids of a user namespace.
pub(super) struct Shift<'a> {
    /// Carries the mappings.
    pub(super) namespace: &'a OwnedFd,
    /// The container's root, as the node knows it.
    pub(super) root: (u32, u32),
}

fn folder(path: &Path, shift: Option<&Shift<'_>>) -> Result<OwnedFd, LaunchError> {
    let failed = |errno| LaunchError::system("open layer", path.display().to_string(), errno);
    let Some(shift) = shift else {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return rustix::fs::open(path, flags, Mode::empty()).map_err(failed);
    };
    let tree =
        open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).map_err(failed)?;
    mount::set_idmap(tree.as_fd(), shift.namespace.as_fd(), false)
        .map_err(|errno| failed(errno).with_hint("its filesystem may not support id-mapped mounts"))?;
    Ok(tree)
}

fn name(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn mount_overlay(layers: &Layers<'_>, lower: Lower) -> Result<OwnedFd, LaunchError> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| LaunchError::system(STEP, "", errno).with_hint("is the overlay module loaded?"))?;
    let failed = |key: &str, errno| {
        let mut error = LaunchError::system(STEP, key, errno);
        let said = kernel_words(&context);
        error.hint = if said.is_empty() { "the kernel log (dmesg) has its reason".to_owned() } else { said };
        error
    };
    let set = |key: &str, path: &Path, fd: &OwnedFd| {
        // Detached folders have no path; a path is used otherwise, because mountinfo shows it to people.
        let has_path = !layers.shifted || layers.names.is_some();
        let result = if has_path && path.as_os_str().len() < 256 {
            fsconfig_set_string(context.as_fd(), key, path)
        } else {
            match fsconfig_set_fd(context.as_fd(), key, fd.as_fd()) {
                // Descriptors are taken since Linux 6.13; before, these of O_PATH are not even looked at.
                Err(Errno::INVAL | Errno::BADF) => fsconfig_set_string(context.as_fd(), key, name(fd)),
                other => other,
            }
        };
        result.map_err(|errno| failed(key, errno))
    };
    match (lower, &layers.names) {
        (Lower::Each, Some(names)) => {
            for name in names {
                fsconfig_set_string(context.as_fd(), "lowerdir+", name).map_err(|errno| failed("lowerdir+", errno))?;
            }
        }
        (Lower::Each, None) => {
            for (path, fd) in &layers.lower {
                set("lowerdir+", path, fd)?;
            }
        }
        (Lower::Joined, names) => {
            let own = || layers.lower.iter().map(|(_, fd)| name(fd)).collect();
            let names: Vec<String> = names.clone().unwrap_or_else(own);
            fsconfig_set_string(context.as_fd(), "lowerdir", names.join(":"))
                .map_err(|errno| failed("lowerdir", errno))?;
        }
    }
    if let Some([(upper, upper_fd), (work, work_fd)]) = &layers.writable {
        set("upperdir", upper, upper_fd)?;
        set("workdir", work, work_fd)?;
    }
    for (key, value) in PLAIN {
        fsconfig_set_string(context.as_fd(), key, value).map_err(|errno| failed(key, errno))?;
    }
    if !layers.label.is_empty() {
        fsconfig_set_string(context.as_fd(), "context", layers.label).map_err(|errno| failed("context", errno))?;
    }
    if layers.volatile {
        fsconfig_set_flag(context.as_fd(), "volatile").map_err(|errno| failed("volatile", errno))?;
    }
    layers.unmark();
    fsconfig_create(context.as_fd()).map_err(|errno| failed("", errno))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(|errno| failed("", errno))
}

/// For kernels whose fsconfig cannot take the layers: mount(2) by the child on the bundle's folder, seen by nobody else.
fn legacy(overlay: &OverlayRootfs, layers: Layers<'_>, bundle: &Path) -> Result<Op, LaunchError> {
    layers.unmark();
    let names: Vec<String> = layers.lower.iter().map(|(_, fd)| name(fd)).collect();
    let mut data = format!("lowerdir={}", names.join(":"));
    for (key, (_, fd)) in ["upperdir", "workdir"].into_iter().zip(layers.writable.iter().flatten()) {
        data.push_str(&format!(",{key}={}", name(fd)));
    }
    for (key, value) in PLAIN {
        data.push_str(&format!(",{key}={value}"));
    }
    if !layers.label.is_empty() {
        // In quotes, because a label has commas.
        data.push_str(&format!(",context=\"{}\"", layers.label));
    }
    if overlay.volatile {
        data.push_str(",volatile");
    }
    if data.len() >= 4096 {
        return Err(LaunchError::unsupported(
            STEP,
            "",
            "more layers than this kernel's mount call takes; use Linux 6.7 or newer",
        ));
    }
    let target =
        CString::new(bundle.as_os_str().as_bytes()).map_err(|_| LaunchError::system(STEP, "", Errno::INVAL))?;
    let data = super::c_string(STEP, &data)?;
    let keep = layers.lower.into_iter().chain(layers.writable.into_iter().flatten()).map(|(_, fd)| fd).collect();
    Ok(Op::LegacyRoot { kind: c"overlay".into(), target, data, keep })
}

/// What the kernel noted down about a failure: `overlay: workdir and upperdir must reside under the same mount`.
fn kernel_words(context: &OwnedFd) -> String {
    let mut said = Vec::new();
    let mut buffer = [0_u8; 512];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).trim_end().to_owned();
        said.push(line.strip_prefix("e ").map_or(line.clone(), str::to_owned));
    }
    said.join("; ")
}

/// A place on the host whose path has no symbolic link in it.
pub(super) fn place_without_links(path: &Path) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

pub(super) fn is_folder(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}
