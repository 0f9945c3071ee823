//! How layers are stacked for overlayfs, decided once per image when it is committed.
//! Runs on the committing thread; looks into layers by fd only. Owns three rules: a layer that comes twice shows once; an opaque
//! root hides all below; and a directory that an upper layer only implies keeps the attributes that a lower one gave it.
//! Must never change a layer: what has to be added is a layer itself, of directories alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    os::fd::OwnedFd,
};

use keelson_api::Digest;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::record::RootAttributes;
use crate::layer::{LayerHold, LayerRecord, Layers};

/// Names looked up for one image, for each entry that a layer may have: every implied folder is looked for in every layer, name by
/// name, so a hostile image could otherwise keep a thread busy for hours.
const STEPS: u64 = 16;

/// The layers of an image as overlayfs will see them.
#[derive(Debug)]
pub(super) struct Stack {
    /// Top first, nothing twice.
    pub(super) lower: Vec<Digest>,
    /// What `/` itself gets.
    pub(super) root: RootAttributes,
    /// The tar of a layer to put on top, if directories need their attributes back.
    pub(super) cover: Option<Vec<u8>>,
}

/// Decides the stack of these layers, given bottom first.
pub(super) fn stack(layers: &Layers, diff_ids: &[Digest], holds: &[LayerHold]) -> io::Result<Stack> {
    let records: HashMap<&Digest, &LayerRecord> = holds.iter().map(|hold| (hold.diff_id(), hold.record())).collect();
    let order = order(diff_ids, |id| records.get(id).is_some_and(|record| record.opaque_root));
    let mut opened = Vec::with_capacity(order.len());
    for id in &order {
        if let Some(record) = records.get(id) {
            opened.push(Layer { record, implied: record.implied.iter().map(String::as_str).collect(), fs: None });
        }
    }
    let root = opened.iter().find_map(|layer| layer.record.root);
    let root = root.map_or_else(RootAttributes::default, |(mode, uid, gid)| RootAttributes { mode, uid, gid });
    let steps = layers.limits().entries.saturating_mul(STEPS);
    let mut plan = Plan { layers, stack: opened, steps };
    let cover = plan.cover()?;
    Ok(Stack { lower: order, root, cover })
}

/// Top first. Of a layer that comes twice only the upper one counts, since whatever the lower one adds or hides, the upper one adds
/// or hides again; overlayfs refuses a folder twice.
fn order(diff_ids: &[Digest], opaque: impl Fn(&Digest) -> bool) -> Vec<Digest> {
    let mut seen = HashSet::new();
    let mut order = Vec::with_capacity(diff_ids.len());
    for id in diff_ids.iter().rev().filter(|id| seen.insert(**id)) {
        order.push(*id);
        if opaque(id) {
            break;
        }
    }
    order
}

struct Layer<'a> {
    record: &'a LayerRecord,
    implied: HashSet<&'a str>,
    fs: Option<OwnedFd>,
}

/// A directory's looks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Looks {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Looks {
    fn differ(&self, other: &Self) -> bool {
        (self.mode, self.uid, self.gid, &self.xattrs) != (other.mode, other.uid, other.gid, &other.xattrs)
    }
}

/// What one layer has at a path.
enum Here {
    /// Nothing, and the layers below show.
    Nothing,
    /// A directory; `last` when it or one above it is opaque.
    Directory { fd: OwnedFd, last: bool },
    /// Something that hides the layers below.
    End,
}

struct Plan<'a> {
    layers: &'a Layers,
    stack: Vec<Layer<'a>>,
    /// Names that may still be looked up.
    steps: u64,
}

impl Plan<'_> {
    fn cover(&mut self) -> io::Result<Option<Vec<u8>>> {
        // The lowest layer has nothing below it to hide.
        let above = self.stack.len().saturating_sub(1);
        let implied: BTreeSet<String> =
            self.stack.iter().take(above).flat_map(|layer| &layer.implied).map(|path| (*path).to_owned()).collect();
        let mut wanted: BTreeMap<String, Looks> = BTreeMap::new();
        for path in implied {
            if let (Some(shown), Some(meant)) = self.looks(&path)?
                && shown.differ(&meant)
            {
                wanted.insert(path, meant);
            }
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        for path in wanted.keys().cloned().collect::<Vec<_>>() {
            for (slash, _) in path.match_indices('/') {
                let ancestor = path.get(..slash).unwrap_or_default();
                if !wanted.contains_key(ancestor)
                    && let (shown, meant) = self.looks(ancestor)?
                    && let Some(looks) = meant.or(shown)
                {
                    wanted.insert(ancestor.to_owned(), looks);
                }
            }
        }
        write_tar(&wanted).map(Some)
    }

    /// How the directory would show in the plain stack, and how the topmost layer that describes it meant it. Both `None` unless it
    /// shows as a directory.
    fn looks(&mut self, path: &str) -> io::Result<(Option<Looks>, Option<Looks>)> {
        let mut shown = None;
        for at in 0..self.stack.len() {
            match self.look(at, path)? {
                Here::Nothing => {}
                Here::End => break,
                Here::Directory { fd, last } => {
                    let looks = looks_of(&fd)?;
                    shown.get_or_insert_with(|| looks.clone());
                    if !self.stack.get(at).is_some_and(|layer| layer.implied.contains(path)) {
                        return Ok((shown, Some(looks)));
                    }
                    if last {
                        break;
                    }
                }
            }
        }
        Ok((shown, None))
    }

    fn look(&mut self, at: usize, path: &str) -> io::Result<Here> {
        let Some(layer) = self.stack.get_mut(at) else { return Ok(Here::End) };
        let fs = match &mut layer.fs {
            Some(fs) => fs,
            none => none.insert(self.layers.fs_dir(&layer.record.diff_id)?),
        };
        let mut current =
            rustix::fs::openat(&*fs, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut last = false;
        for name in path.split('/') {
            self.steps = self.steps.checked_sub(1).ok_or_else(too_tangled)?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            current = match rustix::fs::openat2(&current, name, flags, Mode::empty(), resolve) {
                Ok(fd) if file_type(&rustix::fs::fstat(&fd)?) == FileType::Directory => fd,
                Ok(_) | Err(Errno::LOOP) => return Ok(Here::End),
                // Within an opaque directory, what is absent is absent.
                Err(Errno::NOENT) => return Ok(if last { Here::End } else { Here::Nothing }),
                Err(errno) => return Err(errno.into()),
            };
            last |= is_opaque(&current)?;
        }
        Ok(Here::Directory { fd: current, last })
    }
}

fn too_tangled() -> io::Error {
    io::Error::other("its layers imply so many folders that finding what they should look like takes too long")
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn readable(path_fd: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(path_fd, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

pub(super) fn is_opaque(path_fd: &OwnedFd) -> io::Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::fgetxattr(&readable(path_fd)?, "trusted.overlay.opaque", &mut value) {
        Ok(_) => Ok(value == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn looks_of(path_fd: &OwnedFd) -> io::Result<Looks> {
    let stat = rustix::fs::statat(path_fd, "", AtFlags::EMPTY_PATH)?;
    let fd = readable(path_fd)?;
    let mut xattrs = Vec::new();
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        let mut value = vec![0; 64 << 10];
        match rustix::fs::fgetxattr(&fd, name, &mut value) {
            Ok(length) => {
                value.truncate(length);
                xattrs.push((name.to_owned(), value));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let mtime = u64::try_from(stat.st_mtime).unwrap_or(0);
    Ok(Looks { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime, xattrs })
}

/// A layer like any other, so that it is verified, counted, shared and collected like any other.
fn write_tar(directories: &BTreeMap<String, Looks>) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, looks) in directories {
        let xattrs: Vec<_> =
            looks.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice())).collect();
        if !xattrs.is_empty() {
            tar.append_pax_extensions(xattrs.iter().map(|(name, value)| (name.as_str(), *value)))?;
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(looks.mode);
        header.set_uid(u64::from(looks.uid));
        header.set_gid(u64::from(looks.gid));
        header.set_mtime(looks.mtime);
        header.set_size(0);
        tar.append_data(&mut header, path, io::empty())?;
    }
    tar.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_top_first_and_keeps_the_upper_of_two() {
        let [a, b, c] = [1, 2, 3].map(|byte| Digest::from_sha256([byte; 32]));
        assert_eq!(order(&[a, b, a], |_| false), [a, b]);
        assert_eq!(order(&[a, a, b], |_| false), [b, a]);
        assert_eq!(order(&[a, b, c], |id| *id == b), [c, b]);
        assert!(order(&[], |_| false).is_empty());
    }
}
