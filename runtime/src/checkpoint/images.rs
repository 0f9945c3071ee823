//! What CRIU's images may ask for, held against the container that was requested: who the processes are and what they may, which
//! namespaces they are in, which files they have open. Memory, registers and positions in files are the archive's own business.
//! Blocks: on the blocking pool of the daemon, over a folder that only root can write.
//! Owns the list of images that are known. Must never pass on an image that it does not know, nor one whose checked part can be
//! read in two ways (CVE-2024-8676, CVE-2026-50195, CVE-2026-53489, CVE-2026-53492).

mod checks;
mod names;

use std::{fs, io::Read as _, path::Path};

use self::{
    checks::Checks,
    names::{Kind, kind},
};
use super::CheckpointError;

/// Images are parsed whole; honest ones have some kilobytes. Pages are not among them.
const IMAGE_MAX: u64 = 64 << 20;
/// Of an image with a file's content behind its first message.
const HEAD: u64 = 64 << 10;

/// What the processes may be at most.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bounds {
    /// Capabilities of the bounding set, as bits.
    pub(crate) capabilities: u64,
    pub(crate) uid: u32,
    /// Primary and supplementary.
    pub(crate) gids: Vec<u32>,
    pub(crate) no_new_privileges: bool,
    /// The filter that every thread must have had first, as loaded.
    pub(crate) seccomp: Option<Vec<u8>>,
    /// A label or profile is given with the restore: theirs does not count.
    pub(crate) labelled: bool,
    /// Hard limits by their number; `None`: unlimited.
    pub(crate) rlimits: Vec<Option<u64>>,
    pub(crate) oom_score_adj: i64,
    /// Names of streams that are given with the restore.
    pub(crate) stdio: Vec<String>,
    pub(crate) host_network: bool,
}

/// Moves the images that are known and allowed from `from` to the empty folder `to`, but for the mounts, which are returned.
///
/// # Errors
/// The first image that is not allowed, with the reason.
pub(crate) fn take(from: &Path, to: &Path, bounds: &Bounds) -> Result<Vec<u8>, CheckpointError> {
    let mut mounts = None;
    let mut present = Vec::new();
    let mut checks = Checks::new(bounds);
    let mut names = fs::read_dir(from)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>())
        .map_err(CheckpointError::io("list images of", from))?;
    // What the others are held against comes first.
    names.sort_by_key(|name| (name != "inventory.img", name != "seccomp.img", name.clone()));
    for name in names {
        let name = name.to_str().ok_or_else(|| CheckpointError::image("?", "its name is not text"))?;
        let path = from.join(name);
        let refused = |reason| CheckpointError::image(name, reason);
        let metadata = fs::symlink_metadata(&path).map_err(CheckpointError::io("look at", &path))?;
        if !metadata.is_file() {
            return Err(refused("it is not a regular file"));
        }
        let kind = kind(name).ok_or_else(|| refused("a container's checkpoint has no such image"))?;
        if kind == Kind::Dropped {
            continue;
        }
        if !matches!(kind, Kind::Numbered("pages-") | Kind::Single("pipes-data" | "fifo-data" | "sk-queues")) {
            let bytes = read(&path, matches!(kind, Kind::Numbered("ghost-file-")))?;
            checks.check(&kind, &bytes).map_err(refused)?;
            if kind == Kind::Numbered("mountpoints-") {
                let number = name.strip_prefix("mountpoints-").and_then(|rest| rest.strip_suffix(".img"));
                let number: Option<u32> = number.and_then(|number| number.parse().ok());
                let number = number.ok_or_else(|| refused("a bad number"))?;
                if mounts.replace((number, name.to_owned(), bytes)).is_some() {
                    return Err(refused("there is more than one mount namespace"));
                }
                continue;
            }
        }
        fs::rename(&path, to.join(name)).map_err(CheckpointError::io("move", &path))?;
        present.push(name.to_owned());
    }
    for needed in ["inventory.img", "pstree.img", "files.img"] {
        if !present.iter().any(|name| name == needed) {
            return Err(CheckpointError::image(needed, "it is missing"));
        }
    }
    let (number, _, bytes) = mounts.ok_or_else(|| CheckpointError::image("mountpoints", "it is missing"))?;
    match checks.mount_ns {
        Some(namespace) if namespace == number => Ok(bytes),
        _ => Err(CheckpointError::image("mountpoints", "it is not of the processes' mount namespace")),
    }
}

fn read(path: &Path, head: bool) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(CheckpointError::io("open", path))?;
    file.take(if head { HEAD } else { IMAGE_MAX + 1 })
        .read_to_end(&mut bytes)
        .map_err(CheckpointError::io("read", path))?;
    if !head && u64::try_from(bytes.len()).unwrap_or(u64::MAX) > IMAGE_MAX {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(CheckpointError::image(&name, "it is larger than any such image"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
