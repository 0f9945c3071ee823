//! Reading a file of an image before its root filesystem is mounted: the layers are walked as overlayfs would show them.
//! Runs on the blocking pool of the daemon. Every step is an `openat` of one name without following links; links of the image
//! are resolved here, against the image's root. Owns nothing. Must never block on a file of the image, leave the layers, or read
//! more than it was allowed.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::File,
    io::Read as _,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
};

/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;

/// Directories of an image, top layer first.
#[derive(Debug)]
pub(crate) struct RootView {
    layers: Vec<OwnedFd>,
}

/// Why a file of an image could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FileError {
    /// Not there, or a directory on the way is not one.
    #[error("not there")]
    Missing,
    /// A directory, a device, a pipe or a socket.
    #[error("is {kind}, not a regular file")]
    NotRegular {
        /// What it is.
        kind: &'static str,
    },
    /// Too long.
    #[error("has {size} bytes, more than the {max} that are read")]
    TooLong {
        /// Its size, or what was read of it.
        size: u64,
        /// The bound.
        max: u64,
    },
    /// Links in a circle.
    #[error("more than 40 symbolic links on the way")]
    Links,
    /// The host refused.
    #[error("{errno}")]
    System {
        /// With this.
        errno: Errno,
    },
}

/// What a name in a merged directory is.
enum Node {
    /// The directories that are merged, top first.
    Directory(Vec<OwnedFd>),
    Link(OsString),
    /// In this directory, with this type.
    Other(FileType),
    Missing,
}

impl RootView {
    /// Of these folders, top first.
    ///
    /// # Errors
    /// A folder cannot be opened.
    pub(crate) fn open(lower: &[PathBuf]) -> Result<Self, FileError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let layers = lower.iter().map(|path| rustix::fs::openat(CWD, path, flags, Mode::empty()));
        Ok(Self { layers: layers.collect::<Result<_, _>>().map_err(|errno| FileError::System { errno })? })
    }

    /// The bytes of the regular file at `path`, at most `max`.
    ///
    /// # Errors
    /// See [`FileError`].
    pub(crate) fn read(&self, path: &Path, max: u64) -> Result<Vec<u8>, FileError> {
        let mut todo: VecDeque<OsString> = names(path).collect();
        // The merged directories from the root down to where the walk is.
        let mut stack: Vec<Vec<OwnedFd>> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name.as_bytes() == b".." {
                stack.pop();
                continue;
            }
            let here = stack.last().unwrap_or(&self.layers);
            match look_up(here, &name)? {
                Node::Missing => return Err(FileError::Missing),
                Node::Directory(_) if todo.is_empty() => return Err(FileError::NotRegular { kind: "a directory" }),
                Node::Directory(merged) => stack.push(merged),
                Node::Link(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(FileError::Links);
                    }
                    if target.as_bytes().first() == Some(&b'/') {
                        stack.clear();
                    }
                    for part in names(Path::new(&target)).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(part);
                    }
                }
                Node::Other(_) if !todo.is_empty() => return Err(FileError::Missing),
                Node::Other(FileType::RegularFile) => return read_top(here, &name, max),
                Node::Other(kind) => return Err(FileError::NotRegular { kind: describe(kind) }),
            }
        }
        Err(FileError::NotRegular { kind: "a directory" })
    }
}

/// The parts that mean something: names and `..`.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// What overlayfs would show under this name in these merged directories.
fn look_up(directories: &[OwnedFd], name: &OsString) -> Result<Node, FileError> {
    let mut merged = Vec::new();
    for directory in directories {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => return Err(FileError::System { errno }),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|errno| FileError::System { errno })?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let opaque = is_opaque(directory.as_fd(), name);
                merged.push(fd);
                if opaque {
                    break;
                }
            }
            // A whiteout, or something that hides the directories below it.
            _ if !merged.is_empty() => break,
            FileType::CharacterDevice if stat.st_rdev == 0 => break,
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(|errno| FileError::System { errno })?;
                return Ok(Node::Link(OsString::from_vec(target.into_bytes())));
            }
            kind => return Ok(Node::Other(kind)),
        }
    }
    Ok(if merged.is_empty() { Node::Missing } else { Node::Directory(merged) })
}

/// Whether what lies below this directory in lower layers is hidden.
fn is_opaque(parent: BorrowedFd<'_>, name: &OsString) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::openat(parent, name, flags, Mode::empty()) else { return false };
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|attribute| {
        let mut value = [0u8; 4];
        rustix::fs::fgetxattr(&directory, *attribute, &mut value).is_ok_and(|length| value.get(..length) == Some(b"y"))
    })
}

/// Reads the file of the topmost layer that has it, if it is still regular.
fn read_top(directories: &[OwnedFd], name: &OsString, max: u64) -> Result<Vec<u8>, FileError> {
    let system = |errno| FileError::System { errno };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    for directory in directories {
        let fd = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => return Err(system(errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(system)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            return Err(FileError::NotRegular { kind: describe(kind) });
        }
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if size > max {
            return Err(FileError::TooLong { size, max });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        File::from(fd)
            .take(max + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| system(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let read = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        return if read > max { Err(FileError::TooLong { size: read, max }) } else { Ok(bytes) };
    }
    Err(FileError::Missing)
}

fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "of an unknown type",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::store::write_new;

    fn layers(count: usize) -> (tempfile::TempDir, Vec<PathBuf>) {
        let scratch = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..count).map(|layer| scratch.path().join(layer.to_string())).collect();
        for path in &paths {
            std::fs::create_dir_all(path.join("etc")).unwrap();
        }
        (scratch, paths)
    }

    fn read(paths: &[PathBuf], path: &str) -> Result<String, FileError> {
        RootView::open(paths).unwrap().read(Path::new(path), 64).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn the_top_layer_wins_and_links_stay_in_the_image() {
        let (scratch, paths) = layers(2);
        write_new(&paths[0].join("etc/passwd"), b"top", 0o644).unwrap();
        write_new(&paths[1].join("etc/passwd"), b"bottom", 0o644).unwrap();
        write_new(&paths[1].join("etc/group"), b"group", 0o644).unwrap();
        write_new(&scratch.path().join("secret"), b"secret", 0o644).unwrap();
        symlink("../../../secret", paths[0].join("etc/up")).unwrap();
        symlink(scratch.path().join("secret"), paths[0].join("etc/out")).unwrap();
        symlink("/etc/../etc/./group", paths[0].join("etc/in")).unwrap();
        symlink("loop", paths[0].join("etc/loop")).unwrap();
        assert_eq!(read(&paths, "/etc/passwd").unwrap(), "top");
        assert_eq!(read(&paths, "/../../etc/in").unwrap(), "group");
        assert_eq!(read(&paths, "/etc/up"), Err(FileError::Missing));
        assert_eq!(read(&paths, "/etc/out"), Err(FileError::Missing));
        assert_eq!(read(&paths, "/etc/loop"), Err(FileError::Links));
        assert_eq!(read(&paths, "/etc/passwd/x"), Err(FileError::Missing));
        assert_eq!(read(&paths, "/etc"), Err(FileError::NotRegular { kind: "a directory" }));
    }

    #[test]
    fn privileged_whiteouts_and_opaque_directories_hide_what_is_below() {
        let (_scratch, paths) = layers(3);
        write_new(&paths[2].join("etc/passwd"), b"bottom", 0o644).unwrap();
        write_new(&paths[2].join("etc/group"), b"bottom", 0o644).unwrap();
        let device = rustix::fs::makedev(0, 0);
        rustix::fs::mknodat(CWD, paths[1].join("etc/passwd"), FileType::CharacterDevice, Mode::empty(), device)
            .unwrap();
        assert_eq!(read(&paths, "/etc/passwd"), Err(FileError::Missing));
        assert_eq!(read(&paths, "/etc/group").unwrap(), "bottom");
        let etc = File::open(paths[0].join("etc")).unwrap();
        rustix::fs::fsetxattr(&etc, "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        assert_eq!(read(&paths, "/etc/group"), Err(FileError::Missing));
    }

    #[test]
    fn hostile_files_are_refused_at_once() {
        let (_scratch, paths) = layers(1);
        let etc = paths[0].join("etc");
        rustix::fs::mknodat(CWD, etc.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        File::create(etc.join("sparse")).unwrap().set_len(10 << 30).unwrap();
        write_new(&etc.join("long"), &[b'x'; 65], 0o644).unwrap();
        assert_eq!(read(&paths, "/etc/fifo"), Err(FileError::NotRegular { kind: "a pipe" }));
        assert_eq!(read(&paths, "/etc/sparse"), Err(FileError::TooLong { size: 10 << 30, max: 64 }));
        assert_eq!(read(&paths, "/etc/long"), Err(FileError::TooLong { size: 65, max: 64 }));
    }
}
