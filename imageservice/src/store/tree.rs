//! Files of an image, read from its layers without a mount: what somebody put into an image that is no root filesystem.
//! Blocks: on a blocking thread. Owns holds on the layers while it is looked into.
//! Must never follow a link, cross a mount, or open anything but a regular file or a folder by a name of one component.

use std::{collections::BTreeMap, fs::File, io, os::fd::OwnedFd};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{ImageService, stack::is_opaque};
use crate::{disk, image::Image, layer::LayerHold};

/// An image's layers, opened.
#[derive(Debug)]
pub struct Tree {
    /// Top first.
    layers: Vec<OwnedFd>,
    /// They stay while this is looked into.
    _holds: Vec<LayerHold>,
}

/// What a folder of a layer has under a name.
enum Here {
    Nothing,
    /// A file that hides those of the layers below; removed there: without a file.
    File(Option<OwnedFd>),
    Folder(OwnedFd),
}

impl ImageService {
    /// Opens the image's layers.
    ///
    /// # Errors
    /// The image is gone, or a layer cannot be opened.
    pub fn tree(&self, image: &Image) -> io::Result<Tree> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let lower =
            self.state().records.get(&image.id).filter(|record| !record.removed).map(|record| record.lower.clone());
        let lower = lower.ok_or_else(gone)?;
        let holds = lower.iter().map(|id| self.layers.hold(id).ok_or_else(gone)).collect::<io::Result<_>>()?;
        let layers = lower.iter().map(|id| self.layers.fs_dir(id)).collect::<io::Result<_>>()?;
        Ok(Tree { layers, _holds: holds })
    }
}

impl Tree {
    /// The regular file `name` in the root, or in a folder of the root; `None`: there is none.
    ///
    /// # Errors
    /// It is something else, `name` is more than a name, or the filesystem refused.
    pub fn open(&self, folder: Option<&str>, name: &str) -> io::Result<Option<File>> {
        let within = match folder {
            Some(folder) => &self.folders(folder)?,
            None => &self.layers,
        };
        for dir in within {
            match look(dir, name)? {
                Here::Nothing => {}
                Here::File(None) => return Ok(None),
                Here::File(Some(file)) => return readable(&file).map(Some),
                Here::Folder(_) => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            }
        }
        Ok(None)
    }

    /// What is in a folder of the root, sorted; a name that is not UTF-8 is left out.
    ///
    /// # Errors
    /// The filesystem refused.
    pub fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut found: BTreeMap<String, bool> = BTreeMap::new();
        for dir in self.folders(folder)? {
            for name in disk::names(&dir)? {
                let here = look(&dir, &name)?;
                // The topmost layer that has the name decides.
                found.entry(name).or_insert(!matches!(here, Here::Nothing | Here::File(None)));
            }
        }
        Ok(found.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect())
    }

    /// The folder as each layer has it, top first, down to where a layer hides those below.
    fn folders(&self, name: &str) -> io::Result<Vec<OwnedFd>> {
        let mut folders = Vec::new();
        for layer in &self.layers {
            match look(layer, name)? {
                Here::Nothing => {}
                Here::File(_) => break,
                Here::Folder(folder) => {
                    let last = is_opaque(&folder)?;
                    folders.push(rustix::fs::openat(&folder, ".", disk::DIR, Mode::empty())?);
                    if last {
                        break;
                    }
                }
            }
        }
        Ok(folders)
    }
}

fn look(dir: &OwnedFd, name: &str) -> io::Result<Here> {
    if name.is_empty() || name.contains('/') || matches!(name, "." | "..") {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let fd = match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(Here::Nothing),
        Err(errno) => return Err(errno.into()),
    };
    let stat = rustix::fs::fstat(&fd)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Here::File(Some(fd))),
        FileType::Directory => Ok(Here::Folder(fd)),
        // overlayfs's sign for what is removed.
        FileType::CharacterDevice if stat.st_rdev == 0 => Ok(Here::File(None)),
        _ => Err(io::Error::other("it is neither a regular file nor a folder")),
    }
}

/// Opens for reading what was looked at, and nothing that came into its place.
fn readable(file: &OwnedFd) -> io::Result<File> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _, path::Path};

    use rustix::fs::{CWD, XattrFlags};

    use super::*;

    fn tree(layers: &[&Path]) -> Tree {
        let open = |path: &&Path| rustix::fs::openat(CWD, *path, disk::DIR, Mode::empty()).unwrap();
        Tree { layers: layers.iter().map(open).collect(), _holds: Vec::new() }
    }

    fn text(file: Option<File>) -> Option<String> {
        let mut text = String::new();
        file.map(|mut file| file.read_to_string(&mut text).unwrap())?;
        Some(text)
    }

    #[test]
    fn the_topmost_file_shows_and_what_is_removed_does_not() {
        let scratch = tempfile::tempdir().unwrap();
        let (top, below) = (scratch.path().join("top"), scratch.path().join("below"));
        for (dir, word) in [(&top, "new"), (&below, "old")] {
            fs::create_dir_all(dir.join("checkpoint")).unwrap();
            fs::write(dir.join("config.dump"), word).unwrap();
            fs::write(dir.join("checkpoint").join(word), word).unwrap();
        }
        fs::write(below.join("spec.dump"), "old").unwrap();
        fs::write(below.join("checkpoint/gone"), "old").unwrap();
        let removed = rustix::fs::mknodat(CWD, top.join("checkpoint/gone"), FileType::CharacterDevice, Mode::RUSR, 0);
        if removed.is_err() {
            println!("SKIP the_topmost_file_shows_and_what_is_removed_does_not: {removed:?}");
            return;
        }
        let both = tree(&[&top, &below]);
        assert_eq!(text(both.open(None, "config.dump").unwrap()).as_deref(), Some("new"));
        assert_eq!(text(both.open(None, "spec.dump").unwrap()).as_deref(), Some("old"));
        assert_eq!(text(both.open(Some("checkpoint"), "old").unwrap()).as_deref(), Some("old"));
        assert!(both.open(Some("checkpoint"), "gone").unwrap().is_none());
        assert!(both.open(None, "absent").unwrap().is_none());
        assert_eq!(both.names("checkpoint").unwrap(), ["new", "old"]);
        assert!(both.names("absent").unwrap().is_empty());
        rustix::fs::setxattr(top.join("checkpoint"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        assert_eq!(both.names("checkpoint").unwrap(), ["new"]);
    }

    #[test]
    fn links_and_names_of_more_than_one_component_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("checkpoint")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", scratch.path().join("config.dump")).unwrap();
        std::os::unix::fs::symlink("/etc", scratch.path().join("etc")).unwrap();
        let one = tree(&[scratch.path()]);
        assert!(one.open(None, "config.dump").is_err());
        assert!(one.open(Some("etc"), "passwd").is_err());
        assert!(one.names("etc").is_err());
        for name in ["", ".", "..", "checkpoint/x", "/etc/passwd"] {
            assert!(one.open(None, name).is_err(), "{name}");
        }
        assert!(one.open(None, "checkpoint").is_err());
    }
}
