//! The few ways in which this room touches its own folders: open or make one, replace a file whole, list names.
//! Runs on blocking threads. Owns nothing; every function takes the directory as an fd and a name of one component.
//! Must never be handed a name from an image or a registry: those go through `unpack`.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, RenameFlags},
    io::Errno,
    path::Arg,
};

/// Flags that open a directory for use as an anchor.
pub(crate) const DIR: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Opens `name` below `parent`, making it first when missing, and holds it to exactly `mode` (an upgrade may find it wider).
pub(crate) fn ensure_dir(parent: impl AsFd, name: &str, mode: Mode) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(&parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let dir = rustix::fs::openat(&parent, name, DIR, Mode::empty())?;
    if Mode::from_raw_mode(rustix::fs::fstat(&dir)?.st_mode) != mode {
        rustix::fs::fchmod(&dir, mode)?;
    }
    Ok(dir)
}

/// Opens the folder at an absolute path chosen by the operator, making it and its parents first when missing.
pub(crate) fn ensure_root(path: &Path, mode: Mode) -> io::Result<OwnedFd> {
    std::fs::create_dir_all(path)?;
    let dir = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fchmod(&dir, mode)?;
    Ok(dir)
}

/// A name that no other call of this process has had, for temporary files.
pub(crate) fn temp_name(stem: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{stem}.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Moves `name` of `from` into `to` under a name that nothing there has, which is returned.
pub(crate) fn move_in(from: &OwnedFd, name: impl Arg + Copy, to: &OwnedFd, stem: &str) -> Result<String, Errno> {
    loop {
        let target = temp_name(stem);
        match rustix::fs::renameat_with(from, name, to, &*target, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(target),
            // Left by an earlier process that had our pid.
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Whether a replaced file must be on the platter before the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// File and directory are synced.
    Synced,
    /// Atomic against a crash of this process; a later `syncfs` makes it durable.
    Cached,
}

/// Replaces `name` in `dir` by `bytes`, whole or not at all; `tmp` is on the same filesystem and swept at open.
pub(crate) fn replace_file(
    dir: &OwnedFd,
    tmp: &OwnedFd,
    name: &str,
    (bytes, durability): (&[u8], Durability),
) -> io::Result<()> {
    let temp = temp_name(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let written = (|| {
        let mut file = File::from(rustix::fs::openat(tmp, &*temp, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(bytes)?;
        if durability == Durability::Synced {
            file.sync_all()?;
        }
        rustix::fs::renameat(tmp, &*temp, dir, name)?;
        if durability == Durability::Synced {
            rustix::fs::fsync(dir)?;
        }
        Ok(())
    })();
    if written.is_err() {
        // Best effort: what stays is swept at the next open.
        let _ = rustix::fs::unlinkat(tmp, &*temp, AtFlags::empty());
    }
    written
}

/// Reads a regular file of at most `max` bytes; a larger one is `FileTooLarge`.
pub(crate) fn read_file(dir: &OwnedFd, name: &str, max: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut bytes = Vec::new();
    let got = file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(got).unwrap_or(u64::MAX) > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {max} bytes")));
    }
    Ok(bytes)
}

/// The names in a directory, without `.` and `..`; a name that is not UTF-8 is not ours and is left out.
pub(crate) fn names(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, OwnedFd) {
        let temp = tempfile::tempdir().unwrap();
        let dir = ensure_root(temp.path(), Mode::RWXU).unwrap();
        (temp, dir)
    }

    #[test]
    fn a_directory_found_wider_is_narrowed() {
        let (_temp, root) = folder();
        ensure_dir(&root, "a", Mode::from_raw_mode(0o755)).unwrap();
        let dir = ensure_dir(&root, "a", Mode::RWXU).unwrap();
        assert_eq!(rustix::fs::fstat(&dir).unwrap().st_mode & 0o7777, 0o700);
    }

    #[test]
    fn a_file_is_replaced_whole_and_leaves_no_temporary() {
        let (_temp, root) = folder();
        let tmp = ensure_dir(&root, "tmp", Mode::RWXU).unwrap();
        for text in [b"one".as_slice(), b"two"] {
            replace_file(&root, &tmp, "f", (text, Durability::Synced)).unwrap();
            assert_eq!(read_file(&root, "f", 3).unwrap(), text);
        }
        assert!(names(&tmp).unwrap().is_empty());
        assert_eq!(read_file(&root, "f", 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn reading_never_follows_a_link_or_waits_on_a_fifo() {
        let (_temp, root) = folder();
        rustix::fs::symlinkat("/etc/passwd", &root, "l").unwrap();
        rustix::fs::mknodat(&root, "p", rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(read_file(&root, "l", 10).is_err());
        assert!(read_file(&root, "p", 10).is_err());
    }
}
