//! Removal of a tree that a stranger built: any depth, any width, entries that change while we look.
//! Runs on the trash thread only. Owns nothing; holds at most `DEPTH` directory fds.
//! Must never follow a symbolic link or leave the trash folder.

use std::{
    ffi::CString,
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode},
    io::Errno,
};

use crate::disk;

/// Directories nested deeper than this are first moved up into the trash folder itself, so that neither our stack nor our fds grow
/// with the depth of the tree.
const DEPTH: usize = 48;

struct Level {
    dir: OwnedFd,
    name: CString,
    left: Vec<(CString, FileType)>,
}

/// Removes `name` in `trash`, file or tree. `Interrupted` when `stop` was set.
pub(super) fn remove(trash: &OwnedFd, name: &str, stop: &AtomicBool) -> io::Result<()> {
    let mut pending = vec![CString::new(name)?];
    while let Some(name) = pending.pop() {
        remove_one(trash, name, &mut pending, stop)?;
    }
    Ok(())
}

fn remove_one(trash: &OwnedFd, name: CString, pending: &mut Vec<CString>, stop: &AtomicBool) -> io::Result<()> {
    let mut levels: Vec<Level> = Vec::new();
    match rustix::fs::unlinkat(trash, &name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => levels.push(open_level(trash, name)?),
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    }
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { return Ok(()) };
        let Some((child, kind)) = level.left.pop() else {
            let Some(done) = levels.pop() else { return Ok(()) };
            let parent = levels.last().map_or(trash, |level| &level.dir);
            match rustix::fs::unlinkat(parent, &done.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                // The listing missed entries that came or moved meanwhile.
                Err(Errno::NOTEMPTY) => levels.push(Level { left: list(&done.dir)?, ..done }),
                Err(errno) => return Err(errno.into()),
            }
            continue;
        };
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(&level.dir, &child, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if depth < DEPTH {
            let next = open_level(&level.dir, child)?;
            levels.push(next);
        } else {
            let up = disk::move_in(&level.dir, &*child, trash, "deep")?;
            pending.push(CString::new(up)?);
        }
    }
}

fn open_level(parent: &OwnedFd, name: CString) -> io::Result<Level> {
    let dir = rustix::fs::openat(parent, &name, disk::DIR, Mode::empty())?;
    let left = list(&dir)?;
    Ok(Level { dir, name, left })
}

fn list(dir: &OwnedFd) -> io::Result<Vec<(CString, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            entries.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_and_links_out_of_it_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        let root = disk::ensure_root(temp.path(), Mode::RWXU).unwrap();
        let canary = disk::ensure_dir(&root, "canary", Mode::RWXU).unwrap();
        std::fs::write(temp.path().join("canary/file"), b"kept").unwrap();
        let trash = disk::ensure_dir(&root, "trash", Mode::RWXU).unwrap();
        let mut dir = disk::ensure_dir(&trash, "x", Mode::RWXU).unwrap();
        for level in 0..3000 {
            if level % 100 == 0 {
                rustix::fs::symlinkat("/", &dir, "root").unwrap();
                rustix::fs::symlinkat(temp.path().join("canary"), &dir, "canary").unwrap();
            }
            dir = disk::ensure_dir(&dir, "d", Mode::RWXU).unwrap();
        }
        drop(dir);
        remove(&trash, "x", &AtomicBool::new(false)).unwrap();
        assert!(disk::names(&trash).unwrap().is_empty());
        assert_eq!(disk::names(&canary).unwrap(), ["file"]);
        remove(&trash, "x", &AtomicBool::new(false)).unwrap();
    }
}
