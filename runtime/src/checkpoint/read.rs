//! Reading checkpoints, from archives and out of images: unpacked into a folder of root's alone, its few texts read, its images checked, its changed files put over an
//! image. What is not named here is not looked at.
//! Blocks: on the blocking pool of the daemon. Limits are those of an image's layer.
//! Owns nothing: the folder belongs to the container, or to who called.
//! Must never read the spec or any other word of the archive about what the container shall be.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use keelson_imageservice::{Contents, Limits, Tree, unpack_tree};
use rustix::fs::{CWD, Mode, OFlags};

use super::{CheckpointError, metadata};

/// A text of the archive.
const TEXT_MAX: u64 = 1 << 20;

/// An unpacked checkpoint's folder, by its parts. All made by us; what is in `archive` is the archive's.
#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Makes it and its parts.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn make(&self) -> Result<(), CheckpointError> {
        let parent = self.0.parent().unwrap_or(&self.0).to_owned();
        let mut parts = vec![self.0.clone(), self.archive(), self.aside(), self.images(), self.0.join("stage")];
        if !parent.exists() {
            parts.insert(0, parent);
        }
        parts.iter().try_for_each(|path| {
            fs::DirBuilder::new().mode(0o700).create(path).map_err(CheckpointError::io("make folder", path))
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The archive's members.
    pub(crate) fn archive(&self) -> PathBuf {
        self.0.join("archive")
    }

    /// Checked images.
    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    fn aside(&self) -> PathBuf {
        self.0.join("aside")
    }

    /// Takes everything away.
    ///
    /// # Errors
    /// Those of the file system; gone already is fine.
    pub(crate) fn remove(&self) -> io::Result<()> {
        crate::sandbox::release::remove_tree(&self.0)
    }
}

/// Unpacks an archive from a file into its folder, which is made.
///
/// # Errors
/// It is no archive of files and folders, or larger than the limits.
pub(crate) fn unpack(from: File, folder: &Folder, limits: &Limits) -> Result<(), CheckpointError> {
    folder.make()?;
    let (root, aside) = (open(&folder.archive())?, open(&folder.aside())?);
    let unpacked = unpack_tree(from, (&root, &aside), limits, Contents::Files);
    unpacked.map(drop).map_err(|source| CheckpointError::Unpack { what: "checkpoint archive", source: source.into() })
}

/// Opens an archive: a regular file, whoever may exchange it meanwhile.
///
/// # Errors
/// It is not there, or something else.
pub(crate) fn archive(path: &Path) -> Result<File, CheckpointError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|errno| CheckpointError::io("open checkpoint archive", path)(errno.into()))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(CheckpointError::io("look at", path))?;
    if !metadata.is_file() {
        return Err(CheckpointError::io("open checkpoint archive", path)(io::Error::other("it is no regular file")));
    }
    Ok(file)
}

/// Whether an image's files are those of a checkpoint.
///
/// # Errors
/// Those of the file system; a checkpoint's name that is no file.
pub(crate) fn is_checkpoint(tree: &Tree) -> io::Result<bool> {
    Ok(tree.open(None, metadata::CONFIG)?.is_some() && tree.open(Some(metadata::IMAGES), "inventory.img")?.is_some())
}

/// Copies a checkpoint out of an image into its folder, which is made: what an archive is unpacked to, and nothing else of it.
///
/// # Errors
/// One of its files is no regular file, or those of the file system.
pub(crate) fn copy(tree: &Tree, folder: &Folder) -> Result<(), CheckpointError> {
    folder.make()?;
    let images = folder.archive().join(metadata::IMAGES);
    fs::DirBuilder::new().mode(0o700).create(&images).map_err(CheckpointError::io("make folder", &images))?;
    let failed = |name: &str| CheckpointError::io("copy out of the image", Path::new(name));
    let listed = tree.names(metadata::IMAGES).map_err(failed(metadata::IMAGES))?;
    let texts = [metadata::CONFIG, metadata::CHANGES].map(|name| (None, name));
    for (within, name) in texts.into_iter().chain(listed.iter().map(|name| (Some(metadata::IMAGES), name.as_str()))) {
        let Some(mut from) = tree.open(within, name).map_err(failed(name))? else { continue };
        let path = if within.is_some() { images.join(name) } else { folder.archive().join(name) };
        let copied = new_file(&path).and_then(|mut to| io::copy(&mut from, &mut to));
        copied.map_err(CheckpointError::io("write", &path))?;
    }
    Ok(())
}

fn new_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// Which container an unpacked archive was made from.
///
/// # Errors
/// The text is missing or is none.
pub(crate) fn config(folder: &Folder) -> Result<metadata::Config, CheckpointError> {
    json(folder, metadata::CONFIG)
}

/// As [`config`], of a pod's archive.
///
/// # Errors
/// As [`config`], or of a newer layout.
pub(crate) fn pod(folder: &Folder) -> Result<metadata::PodConfig, CheckpointError> {
    let pod: metadata::PodConfig = json(folder, metadata::POD)?;
    if pod.version != 1 {
        let reason = format!("layout version {} is not one of this program", pod.version);
        return Err(CheckpointError::File { name: metadata::POD, reason });
    }
    Ok(pod)
}

/// The names of the standard streams in the images: only of forms that name nothing but a pipe or a file by numbers.
///
/// # Errors
/// The text is none.
pub(crate) fn streams(folder: &Folder) -> Result<Vec<String>, CheckpointError> {
    let path = folder.archive().join(metadata::IMAGES);
    let names: Vec<String> = match text(&path.join(metadata::STREAMS)) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| CheckpointError::File { name: metadata::STREAMS, reason: error.to_string() })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(CheckpointError::io("read", &path)(error)),
    };
    Ok(names.into_iter().take(3).map(|name| if is_stream(&name) { name } else { String::new() }).collect())
}

fn is_stream(name: &str) -> bool {
    let inside = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(']'));
    let number = |text: &str, radix| !text.is_empty() && text.len() <= 16 && text.chars().all(|c| c.is_digit(radix));
    match (inside("pipe:["), inside("file[")) {
        (Some(inode), _) => number(inode, 10),
        (_, Some(file)) => file.split_once(':').is_some_and(|(mount, inode)| number(mount, 16) && number(inode, 16)),
        (None, None) => false,
    }
}

/// Puts the files that the container had changed into the empty upper folder of a new container's overlay.
///
/// # Errors
/// The changes hold a device, or are no tar.
pub(crate) fn changes(folder: &Folder, upper: &Path, limits: &Limits) -> Result<(), CheckpointError> {
    let path = folder.archive().join(metadata::CHANGES);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(CheckpointError::io("open", &path)(error)),
    };
    // Beside the upper folder, on its file system: the overlay's work folder is empty before the first mount, and after.
    let work = upper.with_file_name("work");
    let (root, aside) = (open(upper)?, open(&work)?);
    let unpacked = unpack_tree(file, (&root, &aside), limits, Contents::Changes);
    unpacked
        .map_err(|source| CheckpointError::Unpack { what: "changed files of the checkpoint", source: source.into() })?;
    for entry in fs::read_dir(&work).map_err(CheckpointError::io("list", &work))? {
        let path = entry.map_err(CheckpointError::io("list", &work))?.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(CheckpointError::io("remove", &path))?;
    }
    Ok(())
}

fn json<T: serde::de::DeserializeOwned>(folder: &Folder, name: &'static str) -> Result<T, CheckpointError> {
    let bad = |reason: String| CheckpointError::File { name, reason };
    let bytes = text(&folder.archive().join(name)).map_err(|error| bad(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))
}

fn text(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Only regular files and folders are unpacked.
    File::open(path)?.take(TEXT_MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > TEXT_MAX {
        return Err(io::Error::other("it is longer than any such text"));
    }
    Ok(bytes)
}

fn open(path: &Path) -> Result<OwnedFd, CheckpointError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|errno| CheckpointError::io("open folder", path)(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_have_names_of_numbers_alone() {
        for name in ["pipe:[123]", "file[1a:3]"] {
            assert!(is_stream(name), "{name}");
        }
        for name in [
            "",
            "/dev/null",
            "pipe:[]",
            "pipe:[1];x",
            "file[1a]",
            "file[1a:/etc]",
            "file[1:2]:/",
            "tty[1:2]",
            "net[1]:x",
        ] {
            assert!(!is_stream(name), "{name}");
        }
    }
}
