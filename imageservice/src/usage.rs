//! Bytes and inodes, counted as the filesystem charges them: whole blocks, one inode each.
//! Plain arithmetic plus one bounded walk for writable layers; the walk runs on the caller's blocking thread.
//! Owns nothing. Must never walk an image layer: those carry their figures from the moment they were unpacked.

use std::{cell::Cell, collections::HashSet, ffi::CString, os::fd::OwnedFd, path::PathBuf, rc::Rc};

use rustix::fs::{AtFlags, Dir, FileType, Mode};
use serde::{Deserialize, Serialize};

use crate::disk;

/// Disk use of something, and the mount it is on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsUsage {
    /// The folder whose filesystem is meant; empty while summing.
    #[serde(default, skip)]
    pub mountpoint: PathBuf,
    /// Bytes in whole blocks.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
}

/// Block size assumed where nothing was measured.
const BLOCK: u64 = 4096;

impl FsUsage {
    /// A file with `size` bytes of data.
    #[must_use]
    pub(crate) fn file(size: u64) -> Self {
        let used_bytes = size.div_ceil(BLOCK).saturating_mul(BLOCK);
        Self { mountpoint: PathBuf::new(), used_bytes, inodes_used: 1 }
    }

    /// The sum; keeps the mount of `self`.
    #[must_use]
    pub(crate) fn plus(mut self, other: &Self) -> Self {
        self.used_bytes = self.used_bytes.saturating_add(other.used_bytes);
        self.inodes_used = self.inodes_used.saturating_add(other.inodes_used);
        self
    }
}

/// Directories held open at once by a walk; what lies beyond is not counted.
const OPEN_DIRS: usize = 256;

/// Entries after which a walk ends: a figure that is too low beats a daemon that never answers.
const ENTRIES: u64 = 4_000_000;

/// A directory held open for as long as children of it wait to be visited.
struct Anchor {
    dir: OwnedFd,
    live: Rc<Cell<usize>>,
}

impl Anchor {
    fn new(dir: OwnedFd, live: &Rc<Cell<usize>>) -> Rc<Self> {
        live.set(live.get() + 1);
        Rc::new(Self { dir, live: live.clone() })
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        self.live.set(self.live.get() - 1);
    }
}

/// What the tree below `root` occupies, the root itself left out. The tree may change and be hostile meanwhile: links are not
/// followed, a file with several names is counted once, errors skip their entry.
pub(crate) fn measure(root: OwnedFd) -> FsUsage {
    let mut total = FsUsage::default();
    let mut linked = HashSet::new();
    let live = Rc::new(Cell::new(0));
    let Ok(device) = rustix::fs::fstat(&root).map(|stat| stat.st_dev) else { return total };
    let mut pending: Vec<(Rc<Anchor>, CString)> = Vec::new();
    let mut next = Some(Anchor::new(root, &live));
    while let Some(anchor) = next.take() {
        for entry in Dir::read_from(&anchor.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(&anchor.dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if stat.st_dev != device || (!directory && stat.st_nlink > 1 && !linked.insert(stat.st_ino)) {
                continue;
            }
            total.used_bytes = total.used_bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
            total.inodes_used += 1;
            if directory && live.get() <= OPEN_DIRS {
                pending.push((anchor.clone(), name.to_owned()));
            }
        }
        drop(anchor);
        if total.inodes_used > ENTRIES {
            break;
        }
        while next.is_none()
            && let Some((parent, name)) = pending.pop()
        {
            let child = rustix::fs::openat(&parent.dir, &name, disk::DIR, Mode::empty());
            next = child.ok().map(|dir| Anchor::new(dir, &live));
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_counts_wide_and_deep_trees_and_each_inode_once() {
        let temp = tempfile::tempdir().unwrap();
        let root = disk::ensure_root(temp.path(), Mode::RWXU).unwrap();
        for wide in 0..600 {
            let dir = disk::ensure_dir(&root, &format!("w{wide}"), Mode::RWXU).unwrap();
            disk::ensure_dir(&dir, "in", Mode::RWXU).unwrap();
        }
        let mut dir = disk::ensure_dir(&root, "deep", Mode::RWXU).unwrap();
        for _ in 0..2999 {
            dir = disk::ensure_dir(&dir, "d", Mode::RWXU).unwrap();
        }
        std::fs::write(temp.path().join("file"), vec![7; 10_000]).unwrap();
        std::fs::hard_link(temp.path().join("file"), temp.path().join("again")).unwrap();
        rustix::fs::symlinkat("/", &root, "out").unwrap();
        let usage = measure(root);
        assert_eq!(usage.inodes_used, 1200 + 3000 + 1 + 1);
        let trash = disk::ensure_root(temp.path(), Mode::RWXU).unwrap();
        rustix::fs::unlinkat(&trash, "out", AtFlags::empty()).unwrap();
        crate::gc::remove_tree(&trash, "deep").unwrap();
    }
}
