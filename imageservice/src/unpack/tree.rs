//! The directories of the layer under way: found by fd, made when an entry needs them, finished at the end.
//! Runs on the extracting thread. Owns every directory fd and the attributes that directories get last.
//! Must never resolve a name outside the layer's root: the kernel holds every open beneath it and refuses links; links inside the
//! layer are followed by hand, as if the layer were the whole filesystem, and within a budget.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::{
    UnpackError,
    path::{join, shown, split},
};
use crate::{config::Limits, disk, usage::FsUsage};

/// Directories kept open. Archives are written depth first, so a few levels are nearly always enough.
const OPEN: usize = 24;

/// Links followed for one name, as the kernel does.
const LINKS: u32 = 40;

/// Steps that following links may cost one layer: chains of long links would otherwise take more than linear time.
const LINK_STEPS: u64 = 1_000_000;

/// Mode of a directory until it gets its own.
const MODE: u32 = 0o755;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A directory of the layer: an `O_PATH` fd, and where it really is.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    /// Free of links.
    pub(super) path: Vec<u8>,
}

/// What a directory gets once nothing more goes into it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
}

#[derive(Debug, Default)]
struct Pending {
    /// `None` for a directory that only paths of other entries imply.
    attributes: Option<Attributes>,
    opaque: bool,
}

pub(super) struct Tree<'a> {
    root: &'a OwnedFd,
    /// Where a directory goes that a later entry replaces: beside the root, removed by whoever owns both.
    aside: &'a OwnedFd,
    limits: &'a Limits,
    /// By the path that was asked for; most recently used last.
    open: Vec<(Vec<u8>, Rc<Directory>)>,
    /// Every directory of the layer but the root.
    pending: BTreeMap<Vec<u8>, Pending>,
    root_pending: Pending,
    whiteouts: HashSet<Vec<u8>>,
    link_steps: u64,
    made: u64,
    /// Bytes of the names in `pending` and `whiteouts`, replaced ones included.
    named: u64,
    replaced: u64,
    usage: FsUsage,
    /// This thread's umask.
    umask: u32,
}

/// What the tree came to.
pub(super) struct Finished {
    pub(super) usage: FsUsage,
    pub(super) implied: Vec<String>,
    /// Owner and mode of the root, where the archive says so.
    pub(super) root: Option<(u32, u32, u32)>,
    pub(super) opaque_root: bool,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a OwnedFd, aside: &'a OwnedFd, limits: &'a Limits) -> Result<Self, UnpackError> {
        let umask = probe_umask(aside).map_err(|errno| UnpackError::io("make folder", "layer", errno.into()))?;
        Ok(Self {
            root,
            aside,
            limits,
            open: Vec::with_capacity(OPEN),
            pending: BTreeMap::new(),
            root_pending: Pending::default(),
            whiteouts: HashSet::new(),
            link_steps: 0,
            made: 0,
            named: 0,
            replaced: 0,
            usage: FsUsage::default(),
            umask,
        })
    }

    /// Whether something created with `mode` has exactly that mode.
    pub(super) fn keeps(&self, mode: u32) -> bool {
        mode & !0o777 == 0 && mode & self.umask == 0
    }

    /// Counts something that was made, against the limit and for the figures.
    pub(super) fn count(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.made += 1;
        self.usage = std::mem::take(&mut self.usage).plus(&FsUsage::file(bytes));
        if self.made > self.limits.entries {
            return Err(UnpackError::Limit { what: "entries in one layer", limit: self.limits.entries });
        }
        Ok(())
    }

    /// Counts a name that is remembered: a short entry may imply a thousand folders with a path of kilobytes each.
    fn remember(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        self.named = self.named.saturating_add(u64::try_from(path.len()).unwrap_or(u64::MAX));
        if self.named > self.limits.name_bytes {
            let what = "bytes in the names of one layer's folders and whiteouts";
            return Err(UnpackError::Limit { what, limit: self.limits.name_bytes });
        }
        Ok(())
    }

    /// The directory at a plain path, made with all above it when missing.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Rc<Directory>, UnpackError> {
        if let Some(at) = self.open.iter().rposition(|(known, _)| known == path) {
            let hit = self.open.remove(at);
            let directory = hit.1.clone();
            self.open.push(hit);
            return Ok(directory);
        }
        let directory = match self.try_open(path) {
            Ok(directory) => directory,
            Err(Errno::LOOP | Errno::NOENT | Errno::NOTDIR) => self.open_slowly(path)?,
            Err(errno) => return Err(UnpackError::io("open folder", &shown(path), errno.into())),
        };
        if self.open.len() >= OPEN {
            self.open.remove(0);
        }
        self.open.push((path.to_vec(), directory.clone()));
        Ok(directory)
    }

    fn try_open(&self, path: &[u8]) -> Result<Rc<Directory>, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let name = if path.is_empty() { b".".as_slice() } else { path };
        let fd = rustix::fs::openat2(self.root, name, flags, Mode::empty(), RESOLVE)?;
        Ok(Rc::new(Directory { fd, path: path.to_vec() }))
    }

    /// Walks a path that is not all there, or has a link in it: a link is followed within the layer, what is missing is made.
    fn open_slowly(&mut self, path: &[u8]) -> Result<Rc<Directory>, UnpackError> {
        let failed = |errno: Errno| UnpackError::io("open folder", &shown(path), errno.into());
        let mut todo: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        let mut trail = vec![self.try_open(b"").map_err(failed)?];
        while let Some(name) = todo.pop() {
            self.link_steps += 1;
            if self.link_steps > LINK_STEPS.max(self.made.saturating_mul(8)) {
                return Err(UnpackError::Refused {
                    path: shown(path),
                    reason: "following the links in names takes too many steps",
                });
            }
            match name.as_slice() {
                b"" | b"." => continue,
                // Above the root is the root.
                b".." => {
                    if trail.len() > 1 {
                        trail.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(parent) = trail.last().cloned() else { return Err(failed(Errno::NOENT)) };
            match enter(&parent, &name) {
                Ok(next) => trail.push(next),
                Err(Errno::NOENT) => trail.push(self.make(&parent, &name)?),
                Err(Errno::LOOP | Errno::NOTDIR) => match rustix::fs::readlinkat(&parent.fd, &*name, Vec::new()) {
                    Ok(target) => {
                        links += 1;
                        if links > LINKS {
                            return Err(failed(Errno::LOOP));
                        }
                        let target = target.as_bytes();
                        if target.starts_with(b"/") {
                            trail.truncate(1);
                        }
                        todo.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                    }
                    Err(Errno::INVAL) if self.is_own_whiteout(&parent, &name) => {
                        trail.push(self.make(&parent, &name)?);
                    }
                    Err(Errno::INVAL) => {
                        return Err(UnpackError::Refused {
                            path: shown(path),
                            reason: "something above it in the same layer is not a directory",
                        });
                    }
                    Err(errno) => return Err(failed(errno)),
                },
                Err(errno) => return Err(failed(errno)),
            }
        }
        trail.pop().ok_or_else(|| failed(Errno::NOENT))
    }

    /// A whiteout of this layer that nothing has replaced.
    fn is_own_whiteout(&self, parent: &Directory, name: &[u8]) -> bool {
        let device = |stat: rustix::fs::Stat| (FileType::from_raw_mode(stat.st_mode), stat.st_rdev);
        self.whiteouts.contains(&join(&parent.path, name))
            && rustix::fs::statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| device(stat) == (FileType::CharacterDevice, 0))
    }

    fn make(&mut self, parent: &Rc<Directory>, name: &[u8]) -> Result<Rc<Directory>, UnpackError> {
        self.make_directory(parent, name, None)?;
        let path = join(&parent.path, name);
        enter(parent, name).map_err(|errno| UnpackError::io("open folder", &shown(&path), errno.into()))
    }

    /// Makes `name` a directory, whatever it was; `attributes` come when all is in it.
    pub(super) fn make_directory(
        &mut self,
        parent: &Directory,
        name: &[u8],
        attributes: Option<Attributes>,
    ) -> Result<(), UnpackError> {
        let path = join(&parent.path, name);
        let failed = |errno: Errno| UnpackError::io("make folder", &shown(&path), errno.into());
        loop {
            match rustix::fs::mkdirat(&parent.fd, name, Mode::from_raw_mode(MODE)) {
                Ok(()) => {
                    self.count(4096)?;
                    self.remember(&path)?;
                    break;
                }
                Err(Errno::EXIST) if self.pending.contains_key(&path) => break,
                Err(Errno::EXIST) => self.clear(parent, name)?,
                Err(errno) => return Err(failed(errno)),
            }
        }
        let opaque = !self.whiteouts.is_empty() && self.whiteouts.contains(&path);
        let pending = self.pending.entry(path).or_default();
        pending.attributes = attributes.or(pending.attributes);
        pending.opaque |= opaque;
        Ok(())
    }

    /// Describes the root.
    pub(super) fn describe_root(&mut self, attributes: Attributes) {
        self.root_pending.attributes = Some(attributes);
    }

    /// Takes `name` out of the way of a later entry of the same name.
    pub(super) fn clear(&mut self, parent: &Directory, name: &[u8]) -> Result<(), UnpackError> {
        let path = join(&parent.path, name);
        let failed = |errno: Errno| UnpackError::io("replace", &shown(&path), errno.into());
        self.usage.inodes_used = self.usage.inodes_used.saturating_sub(1);
        // Any fd we keep may have been reached through it.
        self.open.clear();
        if self.pending.remove(&path).is_none() {
            return match rustix::fs::unlinkat(&parent.fd, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(errno) => Err(failed(errno)),
            };
        }
        self.replaced += 1;
        rustix::fs::renameat(&parent.fd, name, self.aside, format!("replaced.{}", self.replaced)).map_err(failed)?;
        let mut below = path;
        below.push(b'/');
        let mut kept = self.pending.split_off(&below);
        // `0` follows `/`.
        if let Some(last) = below.last_mut() {
            *last = b'0';
        }
        let mut rest = kept.split_off(&below);
        self.pending.append(&mut rest);
        Ok(())
    }

    /// Notes that `.wh.<name>` hides `name` of the layers below, wherever in the archive it stands.
    pub(super) fn whiteout(&mut self, parent: &Directory, name: &[u8]) -> Result<(), UnpackError> {
        let path = join(&parent.path, name);
        match rustix::fs::mknodat(&parent.fd, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => self.count(0)?,
            // What this layer puts there hides what is below; but a directory would be merged with it.
            Err(Errno::EXIST) => {
                if let Some(directory) = self.pending.get_mut(&path) {
                    directory.opaque = true;
                }
            }
            Err(errno) => return Err(UnpackError::io("make whiteout", &shown(&path), errno.into())),
        }
        self.remember(&path)?;
        self.whiteouts.insert(path);
        Ok(())
    }

    /// Notes that nothing of the layers below shows in `directory`.
    pub(super) fn opaque(&mut self, directory: &Directory) {
        if directory.path.is_empty() {
            self.root_pending.opaque = true;
        } else {
            self.pending.entry(directory.path.clone()).or_default().opaque = true;
        }
    }

    /// Sets an extended attribute of a directory: that needs a real fd.
    pub(super) fn set_xattr(&self, directory: &Directory, name: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        let set = rustix::fs::openat(&directory.fd, ".", disk::DIR, Mode::empty())
            .and_then(|fd| rustix::fs::fsetxattr(&fd, name, value, XattrFlags::empty()));
        set_xattr_result(set, &directory.path)
    }

    /// Gives every directory its owner, mode, opacity and time.
    pub(super) fn finish(mut self) -> Result<Finished, UnpackError> {
        let pending = std::mem::take(&mut self.pending);
        let mut implied = Vec::new();
        for (path, Pending { attributes, opaque }) in pending {
            let (above, name) = split(&path);
            if opaque {
                let directory = self.directory(&path)?;
                self.set_xattr(&directory, b"trusted.overlay.opaque", b"y")?;
            }
            let Some(attributes) = attributes else {
                implied.extend(String::from_utf8(path));
                continue;
            };
            let parent = self.directory(above)?;
            self.dress(&parent, name, attributes)
                .map_err(|errno| UnpackError::io("set attributes of", &shown(&path), errno.into()))?;
        }
        let root = self.root_pending.attributes;
        let attributes =
            root.unwrap_or(Attributes { mode: MODE, uid: 0, gid: 0, mtime: Timespec { tv_sec: 0, tv_nsec: 0 } });
        let dressed = (|| {
            rustix::fs::fchown(self.root, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))?;
            rustix::fs::fchmod(self.root, Mode::from_raw_mode(attributes.mode))?;
            rustix::fs::futimens(self.root, &times(attributes.mtime))
        })();
        dressed.map_err(|errno| UnpackError::io("set attributes of", "/", errno.into()))?;
        Ok(Finished {
            usage: self.usage,
            implied,
            root: root.map(|root| (root.mode, root.uid, root.gid)),
            opaque_root: self.root_pending.opaque,
        })
    }

    fn dress(&self, parent: &Directory, name: &[u8], attributes: Attributes) -> Result<(), Errno> {
        let Attributes { mode, uid, gid, mtime } = attributes;
        if (uid, gid) != (0, 0) {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(&parent.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if mode != MODE & !self.umask {
            rustix::fs::chmodat(&parent.fd, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        rustix::fs::utimensat(&parent.fd, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
    }
}

fn enter(parent: &Directory, name: &[u8]) -> Result<Rc<Directory>, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(&parent.fd, name, flags, Mode::empty(), RESOLVE)?;
    Ok(Rc::new(Directory { fd, path: join(&parent.path, name) }))
}

/// Access and modification time, both the archive's.
pub(super) fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

/// A filesystem that has no such attributes is no reason to refuse an image; one that has no room for them is.
pub(super) fn set_xattr_result(set: Result<(), Errno>, path: &[u8]) -> Result<(), UnpackError> {
    match set {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => Err(UnpackError::Refused {
            path: shown(path),
            reason: "its extended attributes do not fit on the filesystem",
        }),
        Err(errno) => Err(UnpackError::io("set extended attribute of", &shown(path), errno.into())),
    }
}

/// The umask can only be read by changing it, for every thread: make something and look instead.
fn probe_umask(dir: impl AsFd) -> Result<u32, Errno> {
    let name = disk::temp_name("umask");
    rustix::fs::mkdirat(&dir, &*name, Mode::from_raw_mode(0o777))?;
    let stat = rustix::fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW);
    rustix::fs::unlinkat(&dir, &*name, AtFlags::REMOVEDIR)?;
    Ok(0o777 & !stat?.st_mode)
}
