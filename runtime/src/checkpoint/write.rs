//! Writing archives: members in the order and under the names that other runtimes' tools expect, into a file without a name that gets
//! its place when it is whole.
//! Blocks; a container is held meanwhile.
//! Owns the nameless file: a daemon that is killed leaves nothing of it.
//! Must never let anybody but root read an archive: it holds memory.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Write},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};
use tar::{Builder, Header};

use super::{CheckpointError, diff, metadata};

/// An archive that has no name yet.
pub(crate) struct Destination {
    directory: OwnedFd,
    name: OsString,
    path: PathBuf,
    file: File,
    /// The name it has where the file system knows no nameless files.
    temporary: Option<OsString>,
}

impl Destination {
    /// Looks at the place and opens a file for it.
    ///
    /// # Errors
    /// The folder is not there, or something else than a file is in the place.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let place = |reason| CheckpointError::Place { path: path.to_owned(), reason };
        let (Some(parent), Some(name)) = (path.parent().filter(|_| path.is_absolute()), path.file_name()) else {
            return Err(place("want an absolute path of a file"));
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, parent, flags, Mode::empty())
            .map_err(|errno| CheckpointError::io("open folder", parent)(errno.into()))?;
        match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
                return Err(place("something else than a file is there"));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(CheckpointError::io("look at", path)(errno.into())),
        }
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let (file, temporary) = match rustix::fs::openat(&directory, ".", flags | OFlags::TMPFILE, mode) {
            Ok(file) => (file, None),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
                let temporary = temporary(name);
                let flags = flags | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
                let file = rustix::fs::openat(&directory, &temporary, flags, mode)
                    .map_err(|errno| CheckpointError::io("make a file beside", path)(errno.into()))?;
                (file, Some(temporary))
            }
            Err(errno) => return Err(CheckpointError::io("make a file beside", path)(errno.into())),
        };
        Ok(Self { directory, name: name.to_owned(), path: path.to_owned(), file: file.into(), temporary })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the written file its name, over what was there.
    ///
    /// # Errors
    /// Those of the file system; nothing is left then.
    pub(crate) fn finish(mut self) -> Result<(), CheckpointError> {
        let path = self.path.clone();
        let io = |errno: Errno| CheckpointError::io("put in place", &path)(errno.into());
        self.file.sync_all().map_err(CheckpointError::io("write out", &self.path))?;
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None => {
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let link =
                    |name: &OsString| rustix::fs::linkat(CWD, &*own, &self.directory, name, AtFlags::SYMLINK_FOLLOW);
                match link(&self.name) {
                    Ok(()) => return Ok(()),
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(io(errno)),
                }
                let temporary = temporary(&self.name);
                let _ = rustix::fs::unlinkat(&self.directory, &temporary, AtFlags::empty());
                link(&temporary).map_err(io)?;
                temporary
            }
        };
        rustix::fs::renameat(&self.directory, &temporary, &self.directory, &self.name).map_err(|errno| {
            let _ = rustix::fs::unlinkat(&self.directory, &temporary, AtFlags::empty());
            io(errno)
        })
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = rustix::fs::unlinkat(&self.directory, temporary, AtFlags::empty());
        }
    }
}

fn temporary(name: &std::ffi::OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    temporary
}

/// What goes into the archive of one container.
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a metadata::Config,
    /// As text of JSON.
    pub(crate) spec: &'a [u8],
    /// CRIU's images are in `images` below, its log and statistics in it.
    pub(crate) work: &'a Path,
    /// Upper folder of the container's overlay.
    pub(crate) upper: &'a Path,
    pub(crate) streams: &'a [String],
}

/// Writes one container's archive.
///
/// # Errors
/// Those of the file system, or the time is over.
pub(crate) fn container<W: Write>(out: W, parts: &Parts<'_>, deadline: Option<Instant>) -> Result<(), CheckpointError> {
    let io = CheckpointError::io("write archive from", parts.work);
    let mut tar = Builder::new(out);
    let json = |value: Result<Vec<u8>, serde_json::Error>| value.map_err(io::Error::from);
    let mut begun = || -> io::Result<()> {
        text(&mut tar, metadata::CONFIG, &json(serde_json::to_vec_pretty(parts.config))?)?;
        text(&mut tar, metadata::SPEC, parts.spec)?;
        let mut folder = Header::new_gnu();
        folder.set_entry_type(tar::EntryType::Directory);
        folder.set_mode(0o700);
        folder.set_size(0);
        tar.append_data(&mut folder, metadata::IMAGES, io::empty())?;
        let images = parts.work.join("images");
        let mut names = fs::read_dir(&images)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            // Counted from the outside: nothing here has an own answer to the time.
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            file(&mut tar, &images.join(&name), &Path::new(metadata::IMAGES).join(&name))?;
        }
        let streams = Path::new(metadata::IMAGES).join(metadata::STREAMS);
        text(&mut tar, &streams.to_string_lossy(), &json(serde_json::to_vec(parts.streams))?)?;
        for name in [metadata::LOG, metadata::STATS] {
            let path = parts.work.join(name);
            if path.exists() {
                file(&mut tar, &path, Path::new(name))?;
            }
        }
        Ok(())
    };
    begun().map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => CheckpointError::Timeout,
        _ => io(error),
    })?;
    // A tar in a tar: its length must be known before it.
    let changes = parts.work.join(metadata::CHANGES);
    let io = |act| CheckpointError::io(act, &changes);
    let written = File::create_new(&changes).map_err(io("make"))?;
    let deleted = diff::write(parts.upper, io::BufWriter::new(&written), deadline)?;
    file(&mut tar, &changes, Path::new(metadata::CHANGES)).map_err(io("write archive from"))?;
    let deleted = serde_json::to_vec(&deleted).unwrap_or_default();
    text(&mut tar, metadata::DELETED, &deleted).map_err(io("write archive from"))?;
    tar.finish().map_err(io("write archive from"))
}

/// Adds a text.
pub(crate) fn text<W: Write>(tar: &mut Builder<W>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    tar.append_data(&mut header, name, bytes)
}

/// Adds a file of our own folder.
pub(crate) fn file<W: Write>(tar: &mut Builder<W>, path: &Path, name: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut header = Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(metadata.len());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    tar.append_data(&mut header, name, file.chain(io::repeat(0)).take(metadata.len()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_archive_has_its_place_when_it_is_whole_and_not_before() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("c.tar");
        let names = || fs::read_dir(scratch.path()).unwrap().count();
        let destination = Destination::open(&path).unwrap();
        destination.file().write_all(b"half").unwrap();
        drop(destination);
        assert_eq!(names(), 0);
        for content in [b"first", b"other"] {
            let destination = Destination::open(&path).unwrap();
            destination.file().write_all(content).unwrap();
            destination.finish().unwrap();
            assert_eq!((fs::read(&path).unwrap().as_slice(), names()), (content.as_slice(), 1));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_place_that_is_none_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", scratch.path().join("link")).unwrap();
        for name in ["folder", "link", "absent/c.tar", ""] {
            assert!(Destination::open(&scratch.path().join(name)).is_err(), "{name}");
        }
        assert!(Destination::open(Path::new("c.tar")).is_err());
    }
}
