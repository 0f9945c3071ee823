//! The mounts of a plan: filesystems, devices, hidden and read-only paths, and the change of root.
//! Runs in the child, in its own mount namespace, before exec.
//! Owns three places for later operations: the root, `/dev` and its `pts`.
//! Must never mount through a path: only on descriptors resolved below the root.

use core::ffi::CStr;
use std::ffi::CString;
use std::os::fd::AsRawFd;

use rustix::io::{self, Errno};

use super::describe::part;
use super::op::{Attributes, Device, Mount, MountSource, Node, Parameter, Propagation};
use super::resolve;
use crate::raw::{self, MountAttr};

const PROC_SUPER_MAGIC: i64 = 0x9fa0;
const STATX_TYPE: u32 = 0x01;
const STATX_MNT_ID: u32 = 0x1000;

/// Descriptors of places, -1 until there is one. The root is first the working directory: after clone by our parent's will or
/// after setns it is the root of the namespace.
pub(super) struct Places {
    pub(super) root: i32,
    dev: i32,
    pub(super) pts: i32,
}

impl Places {
    pub(super) const fn new() -> Places {
        Places { root: libc::AT_FDCWD, dev: -1, pts: -1 }
    }

    pub(super) fn attach_root(&mut self, tree: i32, over: &CStr) -> io::Result<()> {
        raw::attach_mount_at(tree, over)?;
        self.root = tree;
        Ok(())
    }

    pub(super) fn legacy_root(&mut self, kind: &CStr, target: &CStr, data: &CStr) -> io::Result<()> {
        raw::mount(kind, target, kind, 0, data)?;
        self.root = raw::openat2(libc::AT_FDCWD, target, libc::O_PATH | libc::O_DIRECTORY, 0, 0)?;
        Ok(())
    }

    /// An error names the part of the mount that failed.
    pub(super) fn mount(&mut self, mount: &Mount) -> Result<(), (u32, Errno)> {
        let tree = self.attach(mount)?;
        match mount.target.to_bytes() {
            b"/dev" if matches!(mount.source, MountSource::New { .. }) => self.dev = tree,
            b"/dev/pts" => self.pts = tree,
            _ => raw::close(tree),
        }
        Ok(())
    }

    /// Returns the attached tree's descriptor.
    fn attach(&self, mount: &Mount) -> Result<i32, (u32, Errno)> {
        let at = |part: u32| move |errno: Errno| (part, errno);
        if let Some(name) = self.name_in_dev(&mount.target)
            && mount.node == Node::Folder
            && !matches!(mount.source, MountSource::Part { .. })
        {
            let tree = tree_of(&mount.source)?;
            make_and_attach(tree, self.dev, name).map_err(at(part::ATTACH))?;
            return Ok(tree);
        }
        let resolve = if mount.no_symlinks { resolve::NO_SYMLINKS } else { 0 };
        let target =
            resolve::open_or_create(self.root, &mount.target, mount.node, resolve).map_err(at(part::TARGET))?;
        // A new filesystem cannot be anybody's trick; a bind could replace what later reads of /proc trust.
        if !mount.on_proc
            && !matches!(mount.source, MountSource::New { .. })
            && raw::filesystem(target).map_err(at(part::TARGET))? == PROC_SUPER_MAGIC
        {
            return Err((part::ON_PROC, Errno::PERM));
        }
        let tree = match &mount.source {
            MountSource::Part { tree, part } => {
                self.cut_out(tree.as_raw_fd(), part.as_raw_fd(), target).map_err(at(part::CUT))?
            }
            MountSource::Tree(_) | MountSource::New { .. } => tree_of(&mount.source)?,
        };
        raw::attach_mount(tree, target).map_err(at(part::ATTACH))?;
        raw::close(target);
        self.verify(&mount.target, tree).map_err(at(part::VERIFY))?;
        Ok(tree)
    }

    /// A mount of `part` of `tree` alone, detached. The whole is on `target` only meanwhile, before anything of the container runs.
    fn cut_out(&self, tree: i32, part: i32, target: i32) -> io::Result<i32> {
        raw::attach_mount(tree, target)?;
        let cut = raw::clone_mount(part, false);
        raw::fchdir(tree)?;
        raw::umount_here()?;
        raw::fchdir(self.root)?;
        cut
    }

    /// Nobody else can reach into the new filesystem yet, so names in it are taken as they are.
    pub(super) fn shelf(
        &self,
        folder: &Mount,
        trees: &[(CString, MountSource)],
        links: &[(CString, CString)],
        read_only: bool,
    ) -> Result<(), (u32, Errno)> {
        let shelf = self.attach(folder)?;
        let whole = |errno| (part::ATTACH, errno);
        for (name, source) in trees {
            let tree = tree_of(source)?;
            make_and_attach(tree, shelf, name).map_err(whole)?;
            raw::close(tree);
        }
        for (name, target) in links {
            raw::symlinkat(target, shelf, name).map_err(whole)?;
        }
        if read_only {
            let attr = MountAttr { set: Attributes::RDONLY, ..MountAttr::default() };
            raw::mount_setattr(shelf, c"", libc::AT_EMPTY_PATH, &attr).map_err(|errno| (part::ATTRIBUTES, errno))?;
        }
        raw::close(shelf);
        Ok(())
    }

    /// The name of something directly in the `/dev` that this plan has mounted: new, so nobody's trick can be in it.
    fn name_in_dev<'p>(&self, path: &'p CStr) -> Option<&'p CStr> {
        let name = path.to_bytes_with_nul().strip_prefix(b"/dev/").filter(|_| self.dev >= 0)?;
        let plain = !name.contains(&b'/') && !matches!(name, b"\0" | b".\0" | b"..\0");
        CStr::from_bytes_with_nul(name).ok().filter(|_| plain)
    }

    /// The target could have been moved (a shared volume) between its opening and the attaching: then the mount is nowhere
    /// the container looks, and what it should cover lies open.
    fn verify(&self, target: &CStr, tree: i32) -> io::Result<()> {
        let seen = resolve::open(self.root, target)?;
        let result = raw::statx(seen, c"", libc::AT_EMPTY_PATH, STATX_MNT_ID);
        raw::close(seen);
        let wanted = raw::statx(tree, c"", libc::AT_EMPTY_PATH, STATX_MNT_ID)?;
        if result?.stx_mnt_id == wanted.stx_mnt_id { Ok(()) } else { Err(Errno::XDEV) }
    }

    /// A name directly in `/dev` is made in the mount that was put there, anything else by its parent.
    fn place_of<'p>(&self, path: &'p CStr) -> io::Result<(i32, &'p CStr, bool)> {
        if let Some(name) = self.name_in_dev(path) {
            return Ok((self.dev, name, false));
        }
        let (folder, name) = resolve::parent_of(self.root, path)?;
        Ok((folder, name, true))
    }

    pub(super) fn device(&self, device: &Device) -> io::Result<()> {
        let (folder, name, ours) = self.place_of(&device.path)?;
        let result = make_device(folder, name, device);
        if ours {
            raw::close(folder);
        }
        result
    }

    pub(super) fn link(&self, path: &CStr, target: &CStr) -> io::Result<()> {
        let (folder, name, ours) = self.place_of(path)?;
        let result = match raw::symlinkat(target, folder, name) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        };
        if ours {
            raw::close(folder);
        }
        result
    }

    /// Attaches a clone of the mount in `source` (a file of it, or a folder) on `path`.
    pub(super) fn bind(&self, source: i32, path: &CStr, node: Node) -> io::Result<()> {
        let target = resolve::open_or_create(self.root, path, node, 0)?;
        let tree = raw::clone_mount(source, false)?;
        let result = raw::attach_mount(tree, target);
        raw::close(tree);
        raw::close(target);
        result
    }

    pub(super) fn folder(&self, path: &CStr, writable: bool) -> io::Result<()> {
        let target = resolve::open_or_create(self.root, path, Node::Folder, 0)?;
        if writable {
            let tree = raw::clone_mount(target, false)?;
            raw::attach_mount(tree, target)?;
            raw::close(tree);
        }
        raw::close(target);
        Ok(())
    }

    /// `empty` is the one read-only filesystem for folders, made at the first need.
    pub(super) fn mask(&self, null: i32, null_used: &mut bool, empty: &mut i32, path: &CStr) -> io::Result<()> {
        let target = match resolve::open(self.root, path) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let kind = raw::statx(target, c"", libc::AT_EMPTY_PATH, STATX_TYPE)?.stx_mode;
        let folder = u32::from(kind) & libc::S_IFMT == libc::S_IFDIR;
        // Only a mount that is attached here may be cloned on older kernels: the first use attaches the original.
        if folder && *empty < 0 {
            let attributes = Attributes { set: Attributes::RDONLY, clear: 0 };
            *empty = new_filesystem(c"tmpfs", &[], attributes).map_err(|(_, errno)| errno)?;
            raw::attach_mount(*empty, target)?;
        } else if !folder && !*null_used {
            raw::attach_mount(null, target)?;
            *null_used = true;
        } else {
            let tree = raw::clone_mount(if folder { *empty } else { null }, false)?;
            raw::attach_mount(tree, target)?;
            raw::close(tree);
        }
        raw::close(target);
        Ok(())
    }

    pub(super) fn read_only(&self, path: &CStr) -> io::Result<()> {
        let target = match resolve::open(self.root, path) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let tree = raw::clone_mount(target, true)?;
        let attr = MountAttr { set: Attributes::RDONLY, ..MountAttr::default() };
        raw::mount_setattr(tree, c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, &attr)?;
        raw::attach_mount(tree, target)?;
        raw::close(tree);
        raw::close(target);
        Ok(())
    }

    pub(super) fn root_attributes(&self, attributes: Attributes, propagation: Option<Propagation>) -> io::Result<()> {
        let attr = MountAttr { set: attributes.set, clear: attributes.clear, ..MountAttr::default() };
        if attr != MountAttr::default() {
            raw::mount_setattr(self.root, c"", libc::AT_EMPTY_PATH, &attr)?;
        }
        let Some(propagation) = propagation else {
            return Ok(());
        };
        // Of the root alone: each mount below has its own, as it was asked for.
        let attr = MountAttr { propagation: propagation.bits(), ..MountAttr::default() };
        raw::mount_setattr(self.root, c"", libc::AT_EMPTY_PATH, &attr)
    }

    pub(super) fn enter_root(&self, pivot: bool) -> io::Result<()> {
        raw::fchdir(self.root)?;
        if !pivot {
            return raw::chroot(c".");
        }
        // The old root lands on top of the new one, and is taken off there.
        raw::pivot_root_here()?;
        raw::umount_here()?;
        raw::fchdir(self.root)
    }
}

/// The tree to attach: the one that was prepared, or a new filesystem's.
fn tree_of(source: &MountSource) -> Result<i32, (u32, Errno)> {
    match source {
        MountSource::Tree(fd) | MountSource::Part { tree: fd, .. } => Ok(fd.as_raw_fd()),
        MountSource::New { kind, parameters, attributes, propagation } => {
            let tree = new_filesystem(kind, parameters, *attributes)?;
            if let Some(propagation) = propagation {
                let attr = MountAttr { propagation: propagation.bits(), ..MountAttr::default() };
                raw::mount_setattr(tree, c"", libc::AT_EMPTY_PATH, &attr).map_err(|errno| (part::ATTRIBUTES, errno))?;
            }
            Ok(tree)
        }
    }
}

fn make_and_attach(tree: i32, folder: i32, name: &CStr) -> io::Result<()> {
    match raw::mkdirat(folder, name, 0o755) {
        Ok(()) | Err(Errno::EXIST) => raw::attach_mount_in(tree, folder, name),
        other => other,
    }
}

fn new_filesystem(kind: &CStr, parameters: &[Parameter], attributes: Attributes) -> Result<i32, (u32, Errno)> {
    let context = raw::fsopen(kind).map_err(|errno| (part::OPEN, errno))?;
    for (index, parameter) in (part::PARAMETER..).zip(parameters) {
        match parameter {
            Parameter::Flag(key) => raw::fsconfig_flag(context, key),
            Parameter::Value(key, value) => raw::fsconfig_string(context, key, value),
        }
        .map_err(|errno| (index, errno))?;
    }
    raw::fsconfig_create(context).map_err(|errno| (part::OPEN, errno))?;
    let tree = raw::fsmount(context, attributes.set).map_err(|errno| (part::ATTRIBUTES, errno))?;
    raw::close(context);
    Ok(tree)
}

fn make_device(folder: i32, name: &CStr, device: &Device) -> io::Result<()> {
    match raw::mknodat(folder, name, device.mode, device.device) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            // The image's own node will do when it is the very device.
            let found = raw::statx(folder, name, libc::AT_SYMLINK_NOFOLLOW, STATX_TYPE)?;
            let same = u32::from(found.stx_mode) & libc::S_IFMT == device.mode & libc::S_IFMT
                && libc::makedev(found.stx_rdev_major, found.stx_rdev_minor) == device.device;
            return if same { Ok(()) } else { Err(Errno::EXIST) };
        }
        Err(errno) => return Err(errno),
    }
    if device.uid == 0 && device.gid == 0 {
        return Ok(());
    }
    raw::fchownat(folder, name, device.uid, device.gid, libc::AT_SYMLINK_NOFOLLOW)
}
