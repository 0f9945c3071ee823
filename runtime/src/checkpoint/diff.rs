//! What a container has changed in its root filesystem: the upper folder of its overlay as a tar in the form of an image's layer.
//! Blocks; the container is held meanwhile.
//! Owns nothing. The folder is the container's: it is walked by descriptors, no link in it is followed, nothing is opened but what was
//! seen to be a regular file.
//! Must never write a device, nor an attribute by which overlayfs speaks to itself.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{self, Read as _, Write},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};
use tar::{Builder, EntryType, Header};

use super::CheckpointError;

const XATTR_MAX: usize = 64 << 10;

/// Writes the tar; returns what was removed, paths without a leading slash.
///
/// # Errors
/// Those of the file system, or the time is over.
pub(crate) fn write<W: Write>(upper: &Path, out: W, deadline: Option<Instant>) -> Result<Vec<String>, CheckpointError> {
    let io = |source: io::Error| CheckpointError::io("read changed files of", upper)(source);
    let mut walk = Walk { tar: Builder::new(out), links: HashMap::new(), deleted: Vec::new() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, upper, flags, Mode::empty()).map_err(|errno| io(errno.into()))?;
    walk.directory_header(&root, Path::new("./")).map_err(io)?;
    let mut todo = vec![(root, PathBuf::new())];
    while let Some((directory, path)) = todo.pop() {
        let names = Dir::read_from(&directory).and_then(|dir| {
            let names = dir.map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_vec()));
            names.collect::<Result<Vec<_>, Errno>>()
        });
        for name in names.map_err(|errno| io(errno.into()))?.into_iter().filter(|name| name != b"." && name != b"..") {
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(CheckpointError::Timeout);
            }
            if let Some(below) = walk.entry(&directory, &name, &path).map_err(io)? {
                todo.push((below, path.join(OsStr::from_bytes(&name))));
            }
        }
    }
    walk.tar.finish().map_err(io)?;
    Ok(walk.deleted)
}

struct Walk<W: Write> {
    tar: Builder<W>,
    /// Files with several names, by inode.
    links: HashMap<u64, PathBuf>,
    deleted: Vec<String>,
}

impl<W: Write> Walk<W> {
    /// Writes one entry; a folder is returned to be walked.
    fn entry(&mut self, above: &OwnedFd, name: &[u8], at: &Path) -> io::Result<Option<OwnedFd>> {
        let path = at.join(OsStr::from_bytes(name));
        let stat = rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = rustix::fs::openat(above, name, flags, Mode::empty())?;
                self.directory_header(&below, &path)?;
                return Ok(Some(below));
            }
            FileType::RegularFile => self.file(above, name, &path)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(above, name, Vec::new())?;
                let mut header = header(&stat, EntryType::Symlink);
                self.tar.append_link(&mut header, &path, OsStr::from_bytes(target.as_bytes()))?;
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                self.deleted.push(path.to_string_lossy().into_owned());
                let hidden = at.join(OsStr::from_bytes(&[b".wh.", name].concat()));
                self.empty(&hidden)?;
            }
            FileType::Fifo => {
                let mut header = header(&stat, EntryType::Fifo);
                self.tar.append_data(&mut header, &path, io::empty())?;
            }
            // A socket's file is made by who binds it; devices are the request's.
            FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {}
        }
        Ok(None)
    }

    fn directory_header(&mut self, directory: &OwnedFd, path: &Path) -> io::Result<()> {
        let stat = rustix::fs::fstat(directory)?;
        self.xattrs(directory)?;
        self.tar.append_data(&mut header(&stat, EntryType::Directory), path, io::empty())?;
        let mut value = [0; 4];
        let opaque = rustix::fs::fgetxattr(directory, "trusted.overlay.opaque", &mut value);
        if opaque.is_ok_and(|length| length == 1 && value.first() == Some(&b'y')) {
            self.empty(&path.join(".wh..wh..opq"))?;
        }
        Ok(())
    }

    fn file(&mut self, above: &OwnedFd, name: &[u8], path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(above, name, flags, Mode::empty())?);
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("a file was exchanged while it was read"));
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                return self.tar.append_link(&mut header(&stat, EntryType::Link), path, first);
            }
            self.links.insert(stat.st_ino, path.to_owned());
        }
        self.xattrs(&file)?;
        let size = stat.st_size.cast_unsigned();
        let mut header = header(&stat, EntryType::Regular);
        header.set_size(size);
        // Exactly as long as announced, whatever becomes of the file.
        self.tar.append_data(&mut header, path, file.chain(io::repeat(0)).take(size))
    }

    fn empty(&mut self, path: &Path) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(0);
        self.tar.append_data(&mut header, path, io::empty())
    }

    /// The attributes that belong to the content, in front of the entry they belong to.
    fn xattrs(&mut self, file: impl std::os::fd::AsFd) -> io::Result<()> {
        let file = file.as_fd();
        let mut names = vec![0; XATTR_MAX];
        let length = match rustix::fs::flistxattr(file, names.as_mut_slice()) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        names.truncate(length);
        let mut found = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let ours = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
            if !ours && name != b"security.capability" && !name.starts_with(b"system.posix_acl_") {
                continue;
            }
            let Ok(key) = std::str::from_utf8(name) else { continue };
            let mut value = vec![0; XATTR_MAX];
            let length = rustix::fs::fgetxattr(file.as_fd(), key, value.as_mut_slice())?;
            value.truncate(length);
            found.push((format!("SCHILY.xattr.{key}"), value));
        }
        if found.is_empty() {
            return Ok(());
        }
        self.tar.append_pax_extensions(found.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
    }
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn changes_become_a_layer_and_come_back() {
        let scratch = tempfile::tempdir().unwrap();
        let upper = scratch.path().join("upper");
        fs::create_dir_all(upper.join("etc/deep")).unwrap();
        fs::File::create(upper.join("etc/deep/file")).unwrap().write_all(b"content").unwrap();
        fs::hard_link(upper.join("etc/deep/file"), upper.join("etc/again")).unwrap();
        symlink("/etc/shadow", upper.join("etc/link")).unwrap();
        let name = "n".repeat(200);
        fs::File::create(upper.join(&name)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();
        let mut bytes = Vec::new();
        assert_eq!(write(&upper, &mut bytes, None).unwrap(), Vec::<String>::new());

        let back = scratch.path().join("back");
        fs::create_dir_all(&back).unwrap();
        fs::create_dir_all(scratch.path().join("aside")).unwrap();
        let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
        let (root, aside) = (open(&back), open(&scratch.path().join("aside")));
        let limits = keelson_imageservice::Limits::default();
        let contents = keelson_imageservice::Contents::Changes;
        keelson_imageservice::unpack_tree(bytes.as_slice(), (&root, &aside), &limits, contents).unwrap();
        assert_eq!(fs::read(back.join("etc/again")).unwrap(), b"content");
        assert_eq!(fs::read_link(back.join("etc/link")).unwrap(), Path::new("/etc/shadow"));
        assert!(back.join(&name).exists() && !back.join("socket").exists());
        let inode = |path: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(back.join(path)).unwrap());
        assert_eq!(inode("etc/again"), inode("etc/deep/file"));
    }

    #[test]
    fn time_that_is_over_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        fs::File::create(scratch.path().join("file")).unwrap();
        let error = write(scratch.path(), Vec::new(), Some(Instant::now())).unwrap_err();
        assert!(matches!(error, CheckpointError::Timeout), "{error}");
    }
}
