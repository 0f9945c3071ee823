//! Entries to inodes: files with their data, links, nodes, whiteouts; each made new under its own name, never written through one.
//! Runs on the thread that called for the unpacking. Owns the policy: what an image may and may not put into a layer.
//! Must never sync, never follow a link in a last component, and never let an image speak to overlayfs by attributes.

use std::{
    fs::File,
    io::{BufRead, Write as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags},
    io::Errno,
};

use super::{
    Contents, UnpackError,
    archive::{Archive, Entry, Kind},
    path::{clean, shown, split},
    sparse::Map,
    tree::{Attributes, Directory, Finished, Tree, set_xattr_result, times},
};
use crate::config::Limits;

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks a tar into the empty folder `root`; `aside` is an empty place beside it for what gets replaced.
pub(super) fn extract<R: BufRead>(
    archive: &mut Archive<'_, R>,
    (root, aside): (&OwnedFd, &OwnedFd),
    (limits, contents): (&Limits, Contents),
) -> Result<Finished, UnpackError> {
    let mut tree = Tree::new(root, aside, limits)?;
    while let Some(mut entry) = archive.next()? {
        contents.admit(&mut entry, limits).map_err(|reason| refused(&entry.path, reason))?;
        let path = clean(&entry.path, limits).map_err(|reason| refused(&entry.path, reason))?;
        place(archive, &mut tree, &entry, &path, limits)?;
    }
    tree.finish()
}

impl Contents {
    /// Whether such an archive may hold the entry; takes from it what it may not have.
    fn admit(self, entry: &mut Entry, limits: &Limits) -> Result<(), &'static str> {
        if self == Contents::Layer {
            return Ok(());
        }
        if entry.sparse.as_ref().is_some_and(|map| map.size > limits.layer_bytes) {
            return Err("it is a file of holes larger than this node accepts");
        }
        match (self, entry.kind) {
            (_, Kind::Character | Kind::Block) => return Err("it is a device"),
            (Contents::Files, Kind::HardLink | Kind::SymbolicLink | Kind::Fifo) => {
                return Err("it is neither a file nor a folder");
            }
            (Contents::Files, Kind::File) if entry.sparse.is_some() => return Err("it is a file of holes"),
            (_, Kind::File | Kind::HardLink | Kind::SymbolicLink | Kind::Directory | Kind::Fifo) => {}
        }
        if entry.kind != Kind::Directory {
            entry.mode &= 0o1777;
        }
        entry.xattrs.retain(|(name, _)| name != b"security.capability");
        Ok(())
    }
}

fn refused(path: &[u8], reason: &'static str) -> UnpackError {
    UnpackError::Refused { path: shown(path), reason }
}

/// What a name's `.wh.` parts make of it.
enum Marked<'a> {
    No,
    Ignore,
    Opaque,
    Whiteout(&'a [u8]),
}

fn marked<'a>(above: &[u8], name: &'a [u8]) -> Result<Marked<'a>, &'static str> {
    for part in above.split(|byte| *byte == b'/') {
        if part.starts_with(AUFS) {
            return Ok(Marked::Ignore);
        }
        if part.starts_with(WHITEOUT) {
            return Err("a whiteout is used as a directory");
        }
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Marked::No),
        Some(_) if name == OPAQUE => Ok(Marked::Opaque),
        Some(_) if name.starts_with(AUFS) => Ok(Marked::Ignore),
        Some(b"" | b"." | b"..") => Err("a whiteout of nothing, of its directory or of the one above"),
        Some(hidden) => Ok(Marked::Whiteout(hidden)),
    }
}

fn place<R: BufRead>(
    archive: &mut Archive<'_, R>,
    tree: &mut Tree<'_>,
    entry: &Entry,
    path: &[u8],
    limits: &Limits,
) -> Result<(), UnpackError> {
    let attributes = Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime };
    if path.is_empty() {
        if entry.kind != Kind::Directory {
            return Err(refused(&entry.path, "the root of a layer is a directory"));
        }
        tree.describe_root(attributes);
        let root = tree.directory(b"")?;
        return xattrs(entry, limits)
            .try_for_each(|xattr| xattr.and_then(|(name, value)| tree.set_xattr(&root, name, value)));
    }
    let (above, name) = split(path);
    let mark = marked(above, name).map_err(|reason| refused(&entry.path, reason))?;
    if let Marked::Ignore = mark {
        return Ok(());
    }
    let parent = tree.directory(above)?;
    match mark {
        Marked::Ignore => Ok(()),
        Marked::Opaque => {
            tree.opaque(&parent);
            Ok(())
        }
        Marked::Whiteout(hidden) => tree.whiteout(&parent, hidden),
        Marked::No => match entry.kind {
            Kind::Directory => {
                tree.make_directory(&parent, name, Some(attributes))?;
                if !entry.xattrs.is_empty() {
                    let directory = tree.directory(path)?;
                    for xattr in xattrs(entry, limits) {
                        let (name, value) = xattr?;
                        tree.set_xattr(&directory, name, value)?;
                    }
                }
                Ok(())
            }
            Kind::File => file(archive, tree, entry, (&parent, name), limits),
            Kind::HardLink => hard_link(tree, entry, (&parent, name), limits),
            Kind::SymbolicLink | Kind::Character | Kind::Block | Kind::Fifo => {
                node(tree, entry, (&parent, name), limits)
            }
        },
    }
}

/// Runs `make`, once more after what is in its way has been cleared.
fn anew<T>(
    tree: &mut Tree<'_>,
    entry: &Entry,
    (parent, name): (&Directory, &[u8]),
    act: &'static str,
    mut make: impl FnMut() -> Result<T, Errno>,
) -> Result<T, UnpackError> {
    let made = match make() {
        Err(Errno::EXIST) => {
            tree.clear(parent, name)?;
            make()
        }
        made => made,
    };
    made.map_err(|errno| failed(act, entry, errno))
}

fn failed(act: &'static str, entry: &Entry, errno: Errno) -> UnpackError {
    UnpackError::io(act, &shown(&entry.path), errno.into())
}

fn file<R: BufRead>(
    archive: &mut Archive<'_, R>,
    tree: &mut Tree<'_>,
    entry: &Entry,
    (parent, name): (&Directory, &[u8]),
    limits: &Limits,
) -> Result<(), UnpackError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(entry.mode & 0o777);
    let fd = anew(tree, entry, (parent, name), "create", || rustix::fs::openat(&parent.fd, name, flags, mode))?;
    tree.count(archive.left())?;
    let file = File::from(fd);
    match &entry.sparse {
        None => write(archive, &file, entry)?,
        Some(map) => write_sparse(archive, &file, map, entry)?,
    }
    let owned = (entry.uid, entry.gid) == (0, 0);
    if !owned {
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        rustix::fs::fchown(&file, uid, gid).map_err(|errno| failed("change owner of", entry, errno))?;
    }
    // After the owner: changing that clears set-uid bits and capabilities.
    if !tree.keeps(entry.mode) {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))
            .map_err(|errno| failed("change mode of", entry, errno))?;
    }
    for xattr in xattrs(entry, limits) {
        let (name, value) = xattr?;
        set_xattr_result(rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty()), &entry.path)?;
    }
    rustix::fs::futimens(&file, &times(entry.mtime)).map_err(|errno| failed("set times of", entry, errno))
}

fn write<R: BufRead>(archive: &mut Archive<'_, R>, mut file: &File, entry: &Entry) -> Result<(), UnpackError> {
    loop {
        let piece = archive.data()?;
        if piece.is_empty() {
            return Ok(());
        }
        file.write_all(piece).map_err(|source| UnpackError::io("write", &shown(&entry.path), source))?;
        let amount = piece.len();
        archive.consume(amount);
    }
}

fn write_sparse<R: BufRead>(
    archive: &mut Archive<'_, R>,
    file: &File,
    map: &Map,
    entry: &Entry,
) -> Result<(), UnpackError> {
    let io = |source| UnpackError::io("write", &shown(&entry.path), source);
    for segment in &map.segments {
        let (mut at, end) = (segment.offset, segment.offset.saturating_add(segment.length));
        while at < end {
            let piece = archive.data()?;
            let room = usize::try_from(end - at).unwrap_or(usize::MAX);
            let piece = piece.get(..room).unwrap_or(piece);
            if piece.is_empty() {
                return Err(refused(&entry.path, "its sparse map does not match its data"));
            }
            file.write_all_at(piece, at).map_err(io)?;
            let amount = piece.len();
            archive.consume(amount);
            at = at.saturating_add(u64::try_from(amount).unwrap_or(u64::MAX));
        }
    }
    file.set_len(map.size).map_err(io)
}

fn hard_link(
    tree: &mut Tree<'_>,
    entry: &Entry,
    (parent, name): (&Directory, &[u8]),
    limits: &Limits,
) -> Result<(), UnpackError> {
    const ABSENT: &str = "it is a hard link to something that is not in this layer";
    let target = clean(&entry.link, limits).map_err(|_| refused(&entry.path, "it is a hard link out of the layer"))?;
    let (above, target_name) = split(&target);
    if target_name.is_empty() || target_name.starts_with(WHITEOUT) {
        return Err(refused(&entry.path, ABSENT));
    }
    let from = tree.directory(above)?;
    if from.path == parent.path && target_name == name {
        return Err(refused(&entry.path, "it is a hard link to itself"));
    }
    // Looked at before anything is cleared away for it.
    match rustix::fs::statat(&from.fd, target_name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            return Err(refused(&entry.path, "it is a hard link to a directory"));
        }
        Ok(_) => {}
        Err(Errno::NOENT) => return Err(refused(&entry.path, ABSENT)),
        Err(errno) => return Err(failed("find the target of the hard link", entry, errno)),
    }
    anew(tree, entry, (parent, name), "make hard link", || {
        rustix::fs::linkat(&from.fd, target_name, &parent.fd, name, AtFlags::empty())
    })
}

fn node(
    tree: &mut Tree<'_>,
    entry: &Entry,
    (parent, name): (&Directory, &[u8]),
    limits: &Limits,
) -> Result<(), UnpackError> {
    let mode = Mode::from_raw_mode(entry.mode & 0o777);
    let mut bytes = 0;
    match entry.kind {
        Kind::SymbolicLink => {
            if entry.link.is_empty() || entry.link.len() > limits.path_bytes || entry.link.contains(&0) {
                return Err(refused(&entry.path, "it is a symbolic link to nothing, or to more than a path"));
            }
            // A short target lies in the inode.
            bytes = if entry.link.len() < 60 { 0 } else { u64::try_from(entry.link.len()).unwrap_or(0) };
            anew(tree, entry, (parent, name), "make link", || rustix::fs::symlinkat(&*entry.link, &parent.fd, name))?;
        }
        Kind::Character | Kind::Block => {
            let (major, minor) = entry.device;
            if major > 0xfff || minor > 0xf_ffff {
                return Err(refused(&entry.path, "its device number is not one of this kernel"));
            }
            let kind = if entry.kind == Kind::Block { FileType::BlockDevice } else { FileType::CharacterDevice };
            let device = rustix::fs::makedev(major, minor);
            let make = || rustix::fs::mknodat(&parent.fd, name, kind, mode, device);
            anew(tree, entry, (parent, name), "make device node", make)?;
        }
        Kind::Fifo => {
            let make = || rustix::fs::mknodat(&parent.fd, name, FileType::Fifo, mode, 0);
            anew(tree, entry, (parent, name), "make fifo", make)?;
        }
        Kind::File | Kind::HardLink | Kind::Directory => {}
    }
    tree.count(bytes)?;
    if (entry.uid, entry.gid) != (0, 0) {
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        rustix::fs::chownat(&parent.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("change owner of", entry, errno))?;
    }
    if entry.kind != Kind::SymbolicLink && !tree.keeps(entry.mode) {
        // No link: it was made a moment ago in a folder that only this thread changes.
        rustix::fs::chmodat(&parent.fd, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(|errno| failed("change mode of", entry, errno))?;
    }
    rustix::fs::utimensat(&parent.fd, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| failed("set times of", entry, errno))
}

/// The extended attributes that an image may set. The others are dropped without a word, as images that were packed from an overlay
/// or on a labelled host carry them in good faith: overlayfs's own (they would redirect or unhide lower files), and labels and
/// signatures that only the host may give.
fn xattrs<'a>(
    entry: &'a Entry,
    limits: &'a Limits,
) -> impl Iterator<Item = Result<(&'a [u8], &'a [u8]), UnpackError>> + 'a {
    let allowed = |name: &[u8]| match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        name => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    };
    entry.xattrs.iter().filter(move |(name, _)| allowed(name)).map(|(name, value)| {
        if name.len() > 255 || value.len() > limits.xattr_bytes {
            return Err(refused(&entry.path, "an extended attribute is larger than the kernel takes"));
        }
        Ok((name.as_slice(), value.as_slice()))
    })
}
