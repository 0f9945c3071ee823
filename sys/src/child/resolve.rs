//! Finding a path below a root, and making what is missing of it, so that no link and no race ever leads outside.
//! Runs in the child before exec: fixed buffers on the stack, raw system calls.
//! Owns the descriptors it returns, as numbers: the caller closes them.
//! Must never join a path with anything outside the root, nor follow a magic link.

use core::ffi::CStr;

use rustix::io::{self, Errno};

use super::op::Node;
use crate::raw;

pub(super) const IN_ROOT: u64 = 0x10;
pub(super) const BENEATH: u64 = 0x08;
pub(super) const NO_SYMLINKS: u64 = 0x04;
pub(super) const NO_MAGICLINKS: u64 = 0x02;
pub(super) const NO_XDEV: u64 = 0x01;

const MAX_LINKS: u32 = 40;
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
const PATH_MAX: usize = 4096;

/// Opens `path` below `root` as a place (O_PATH), links followed inside the root.
pub(super) fn open(root: i32, path: &CStr) -> io::Result<i32> {
    raw::openat2(root, path, libc::O_PATH, 0, IN_ROOT | NO_MAGICLINKS)
}

/// As [`open`]; what is missing is made: folders on the way (0755), at the end `node` (a file is 0644 and empty).
pub(super) fn open_or_create(root: i32, path: &CStr, node: Node, resolve: u64) -> io::Result<i32> {
    match raw::openat2(root, path, libc::O_PATH, 0, IN_ROOT | NO_MAGICLINKS | resolve) {
        Err(Errno::NOENT) if resolve & NO_SYMLINKS == 0 => match create_last(root, path, node) {
            Err(Errno::NOENT | Errno::EXIST) => Walk::new(root, path)?.create(node),
            other => other,
        },
        Err(Errno::NOENT) => {
            // Every existing part is no link: then the walk meets none, or one that was put there just now, which it refuses.
            let mut walk = Walk::new(root, path)?;
            walk.links = MAX_LINKS;
            walk.create(node)
        }
        other => other,
    }
}

/// The common case: only the last component is missing, and is no dangling link.
fn create_last(root: i32, path: &CStr, node: Node) -> io::Result<i32> {
    let mut parent = [0_u8; PATH_MAX];
    let (length, name) = split(path, &mut parent)?;
    let parent = CStr::from_bytes_until_nul(parent.get(..=length).unwrap_or_default()).map_err(|_| Errno::INVAL)?;
    let folder = raw::openat2(root, parent, libc::O_PATH | libc::O_DIRECTORY, 0, IN_ROOT | NO_MAGICLINKS)?;
    let made = make(folder, name, node)
        .and_then(|()| raw::openat2(folder, name, libc::O_PATH | libc::O_NOFOLLOW, 0, BENEATH | NO_SYMLINKS));
    raw::close(folder);
    made
}

/// EEXIST when there is something of this name, be it a dangling link.
fn make(folder: i32, name: &CStr, node: Node) -> io::Result<()> {
    match node {
        Node::Folder => raw::mkdirat(folder, name, 0o755),
        Node::File => {
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW;
            raw::openat2(folder, name, flags, 0o644, BENEATH).map(raw::close)
        }
    }
}

/// Copies the parent's path to `parent` (its length is returned) and gives the last component.
fn split<'p>(path: &'p CStr, parent: &mut [u8; PATH_MAX]) -> io::Result<(usize, &'p CStr)> {
    let bytes = path.to_bytes_with_nul();
    let split = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let name = bytes.get(split..).and_then(|rest| CStr::from_bytes_with_nul(rest).ok()).ok_or(Errno::INVAL)?;
    if matches!(name.to_bytes(), b"" | b"." | b"..") {
        // The walk knows what to do with these.
        return Err(Errno::NOENT);
    }
    if split == 0 {
        parent[0] = b'/';
        return Ok((1, name));
    }
    if split >= PATH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    parent[..split].copy_from_slice(&bytes[..split]);
    Ok((split, name))
}

/// Splits a path into its parent folder, made when missing and opened, and its last component.
pub(super) fn parent_of(root: i32, path: &CStr) -> io::Result<(i32, &CStr)> {
    let mut parent = [0_u8; PATH_MAX];
    let (length, name) =
        split(path, &mut parent).map_err(|errno| if errno == Errno::NOENT { Errno::INVAL } else { errno })?;
    let folder = CStr::from_bytes_until_nul(parent.get(..=length).unwrap_or_default()).map_err(|_| Errno::INVAL)?;
    Ok((open_or_create(root, folder, Node::Folder, 0)?, name))
}

/// A path that is walked one component at a time.
struct Walk {
    root: i32,
    /// The folder reached; `root` itself is not closed.
    here: i32,
    links: u32,
    /// What was walked, free of links and dots, relative to the root.
    done: [u8; PATH_MAX],
    done_length: usize,
    /// What is left, at the end of the buffer.
    rest: [u8; PATH_MAX],
    rest_start: usize,
}

impl Walk {
    fn new(root: i32, path: &CStr) -> io::Result<Walk> {
        let mut walk = Walk {
            root,
            here: root,
            links: 0,
            done: [0; PATH_MAX],
            done_length: 0,
            rest: [0; PATH_MAX],
            rest_start: PATH_MAX,
        };
        walk.push_rest(path.to_bytes())?;
        Ok(walk)
    }

    fn create(mut self, node: Node) -> io::Result<i32> {
        let result = self.walk(node);
        match result {
            Ok(()) if self.here == self.root => open(self.root, c"/"),
            Ok(()) => Ok(self.here),
            Err(errno) => {
                self.leave();
                Err(errno)
            }
        }
    }

    fn walk(&mut self, node: Node) -> io::Result<()> {
        let mut name = [0_u8; 256];
        while self.next_component(&mut name)? {
            let component = CStr::from_bytes_until_nul(&name).map_err(|_| Errno::NAMETOOLONG)?;
            match component.to_bytes() {
                b"." => {}
                b".." => self.up()?,
                _ => self.step(component, node)?,
            }
        }
        Ok(())
    }

    fn step(&mut self, component: &CStr, node: Node) -> io::Result<()> {
        // Twice: whatever is missing at first is made, by us or by somebody else at the same time.
        for attempt in 0..2 {
            match raw::openat2(self.here, component, libc::O_PATH | libc::O_NOFOLLOW, 0, BENEATH) {
                Ok(fd) => return self.enter(fd, component),
                Err(Errno::NOENT) if attempt == 0 => self.make(component, node)?,
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::NOENT)
    }

    fn make(&self, component: &CStr, node: Node) -> io::Result<()> {
        match make(self.here, component, if self.is_last() { node } else { Node::Folder }) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// Goes into what was opened; a link is replaced by its text.
    fn enter(&mut self, fd: i32, component: &CStr) -> io::Result<()> {
        let mut target = [0_u8; PATH_MAX];
        if let Ok(length) = raw::readlinkat(fd, c"", &mut target) {
            let magic = self.is_magic(fd, component);
            raw::close(fd);
            if magic {
                return Err(Errno::LOOP);
            }
            self.links += 1;
            if self.links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let target = target.get(..length).ok_or(Errno::NAMETOOLONG)?;
            if target.first() == Some(&b'/') {
                self.leave();
                self.done_length = 0;
            }
            self.push_rest(b"/")?;
            return self.push_rest(target);
        }
        self.leave();
        self.here = fd;
        let name = component.to_bytes();
        let end = self.done_length + 1 + name.len();
        let place = self.done.get_mut(self.done_length..end).ok_or(Errno::NAMETOOLONG)?;
        place[0] = b'/';
        place[1..].copy_from_slice(name);
        self.done_length = end;
        Ok(())
    }

    /// The text of a magic link is not where it leads, and its target may be a descriptor of ours: never followed.
    fn is_magic(&self, fd: i32, component: &CStr) -> bool {
        raw::filesystem(fd) == Ok(PROC_SUPER_MAGIC)
            && match raw::openat2(self.here, component, libc::O_PATH, 0, BENEATH | NO_MAGICLINKS) {
                Ok(fd) => {
                    raw::close(fd);
                    false
                }
                Err(errno) => errno == Errno::LOOP,
            }
    }

    fn up(&mut self) -> io::Result<()> {
        let walked = self.done.get(..self.done_length).unwrap_or_default();
        self.done_length = walked.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.leave();
        if self.done_length == 0 {
            return Ok(());
        }
        let mut path = [0_u8; PATH_MAX + 1];
        path[..self.done_length].copy_from_slice(&self.done[..self.done_length]);
        let path = CStr::from_bytes_until_nul(&path).map_err(|_| Errno::INVAL)?;
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        self.here = raw::openat2(self.root, path, flags, 0, IN_ROOT | NO_SYMLINKS | NO_MAGICLINKS)?;
        Ok(())
    }

    fn leave(&mut self) {
        if self.here != self.root {
            raw::close(self.here);
        }
        self.here = self.root;
    }

    fn push_rest(&mut self, text: &[u8]) -> io::Result<()> {
        let start = self.rest_start.checked_sub(text.len()).ok_or(Errno::NAMETOOLONG)?;
        self.rest[start..self.rest_start].copy_from_slice(text);
        self.rest_start = start;
        Ok(())
    }

    fn next_component(&mut self, name: &mut [u8; 256]) -> io::Result<bool> {
        let rest = &self.rest[self.rest_start..];
        let slashes = rest.iter().take_while(|byte| **byte == b'/').count();
        let rest = &rest[slashes..];
        let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        if length >= name.len() {
            return Err(Errno::NAMETOOLONG);
        }
        name[..length].copy_from_slice(&rest[..length]);
        name[length] = 0;
        self.rest_start += slashes + length;
        Ok(length > 0)
    }

    fn is_last(&self) -> bool {
        self.rest[self.rest_start..].iter().all(|byte| *byte == b'/')
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn create(root: &Path, path: &str, node: Node) -> io::Result<std::path::PathBuf> {
        let folder = fs::File::open(root).unwrap();
        let path = CString::new(path).unwrap();
        let fd = open_or_create(folder.as_raw_fd(), &path, node, 0)?;
        let found = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        raw::close(fd);
        Ok(found.strip_prefix(root.canonicalize().unwrap()).expect("inside the root").to_owned())
    }

    #[test]
    fn what_is_missing_is_made_inside() {
        let root = tempfile::tempdir().unwrap();
        for (path, node, made) in [
            ("/a/b/c", Node::Folder, "a/b/c"),
            ("/a/b/d/file", Node::File, "a/b/d/file"),
            ("a//./x/../y/", Node::Folder, "a/y"),
            ("/../../z", Node::File, "z"),
            ("/", Node::Folder, ""),
        ] {
            assert_eq!(create(root.path(), path, node).unwrap(), Path::new(made), "{path}");
        }
        assert!(root.path().join("z").is_file() && root.path().join("a/y").is_dir());
    }

    #[test]
    fn links_never_lead_outside() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("absolute")).unwrap();
        symlink("../../../../../../../../tmp", root.path().join("dots")).unwrap();
        symlink("/run/made/resolv.conf", root.path().join("dangling")).unwrap();
        symlink("loop", root.path().join("loop")).unwrap();
        let inside = outside.path().strip_prefix("/").unwrap();
        assert_eq!(create(root.path(), "/absolute/x", Node::File).unwrap(), inside.join("x"));
        assert_eq!(create(root.path(), "/dots/y", Node::Folder).unwrap(), Path::new("tmp/y"));
        assert_eq!(create(root.path(), "/dangling", Node::File).unwrap(), Path::new("run/made/resolv.conf"));
        assert_eq!(create(root.path(), "/loop/x", Node::File).unwrap_err(), Errno::LOOP);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_on_the_way_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        assert_eq!(create(root.path(), "/file/x", Node::Folder).unwrap_err(), Errno::NOTDIR);
    }

    #[test]
    fn a_target_that_must_be_plain_refuses_links() {
        let root = tempfile::tempdir().unwrap();
        symlink("/", root.path().join("proc")).unwrap();
        let folder = fs::File::open(root.path()).unwrap();
        for path in [c"/proc", c"/proc/sys"] {
            let errno = open_or_create(folder.as_raw_fd(), path, Node::Folder, NO_SYMLINKS).unwrap_err();
            assert_eq!(errno, Errno::LOOP);
        }
        let fd = open_or_create(folder.as_raw_fd(), c"/sys/x", Node::Folder, NO_SYMLINKS).unwrap();
        raw::close(fd);
    }

    #[test]
    fn a_long_path_is_refused() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(create(root.path(), &"x".repeat(300), Node::File).unwrap_err(), Errno::NAMETOOLONG);
        assert_eq!(create(root.path(), &"x/".repeat(3000), Node::File).unwrap_err(), Errno::NAMETOOLONG);
    }

    #[test]
    fn a_parent_is_opened_and_its_child_named() {
        let root = tempfile::tempdir().unwrap();
        let folder = fs::File::open(root.path()).unwrap();
        let (fd, name) = parent_of(folder.as_raw_fd(), c"/dev/net/tun").unwrap();
        raw::close(fd);
        assert_eq!(name, c"tun");
        assert!(root.path().join("dev/net").is_dir());
        assert!(parent_of(folder.as_raw_fd(), c"/dev/..").is_err());
    }
}
