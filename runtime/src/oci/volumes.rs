//! Volumes: those of the request, resolved on the host, and those that the image declares.
//! Resolving reads (and for a missing path makes) host directories: on the blocking pool, while a container is created.
//! Owns nothing. Must never follow an image's word to a host path: an image's volumes stay inside its own root filesystem.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Component, Path, PathBuf},
};

use keelson_shim::mountinfo;

use crate::container::{
    ContainerError,
    spec::{Propagation, Volume},
};

/// The request's volumes with host paths as they really are.
pub(crate) fn resolve(volumes: &[Volume]) -> Result<Vec<Volume>, ContainerError> {
    if volumes.is_empty() {
        return Ok(Vec::new());
    }
    let wanted = volumes.iter().any(|volume| volume.propagation != Propagation::Private);
    let mounts = if wanted { fs::read_to_string("/proc/self/mountinfo").unwrap_or_default() } else { String::new() };
    volumes.iter().map(|volume| one(volume, &mounts)).collect()
}

fn one(volume: &Volume, mounts: &str) -> Result<Volume, ContainerError> {
    if volume.image.is_some() {
        return Ok(volume.clone());
    }
    let asked = &volume.host_path;
    let failed =
        |reason: String| ContainerError::Invalid { field: format!("mounts[{}].host_path", asked.display()), reason };
    let host_path = match fs::canonicalize(asked) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // As all runtimes do: a path that is not there yet is a directory to be.
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(asked);
            made.and_then(|()| fs::canonicalize(asked))
                .map_err(|error| failed(format!("not there, and cannot be made: {error}")))?
        }
        other => other.map_err(|error| failed(format!("cannot be resolved: {error}")))?,
    };
    let sharing = Sharing::of(&host_path, mounts);
    let (enough, wanted) = match volume.propagation {
        Propagation::Private => (true, ""),
        Propagation::HostToContainer => (sharing != Sharing::Private, "shared or slave (mount --make-rslave)"),
        Propagation::Bidirectional => (sharing == Sharing::Shared, "shared (mount --make-rshared)"),
    };
    if !enough {
        return Err(failed(format!("the mount it lies on must be {wanted} for this propagation")));
    }
    Ok(Volume { host_path, ..volume.clone() })
}

/// How the mount under a path passes events on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Private,
    Slave,
    Shared,
}

impl Sharing {
    /// Of the topmost mount with the longest mount point above `path`, from a mountinfo text.
    fn of(path: &Path, table: &str) -> Self {
        let mut best = (0, Self::Private);
        for mount in mountinfo::parse(table) {
            let point = Path::new(&*mount.point);
            let depth = point.components().count();
            if path.starts_with(point) && depth >= best.0 {
                let sharing = if mount.is_tagged("shared:") {
                    Self::Shared
                } else if mount.is_tagged("master:") {
                    Self::Slave
                } else {
                    Self::Private
                };
                best = (depth, sharing);
            }
        }
        best.1
    }
}

/// The volumes that the image declares and no volume of the request covers: made inside the root filesystem by the launcher,
/// so nothing of the image is ever copied to the host (CVE-2022-23648).
pub(crate) fn of_image(declared: &[String], asked: &[Volume]) -> Result<Vec<String>, ContainerError> {
    let mut volumes: Vec<String> = Vec::new();
    for text in declared {
        let refuse = |reason: &str| {
            let text: String = text.chars().take(200).collect();
            Err(ContainerError::Invalid {
                field: "image".into(),
                reason: format!("declares volume `{text}`: {reason}"),
            })
        };
        let path = Path::new(text);
        if !path.is_absolute() || text.len() > 4095 || text.contains('\0') {
            return refuse("want an absolute path");
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return refuse("has a `..`");
        }
        let clean: PathBuf = path.components().collect();
        if clean.components().count() < 2 {
            return refuse("is the root");
        }
        if ["/proc", "/sys", "/dev"].iter().any(|kernel| clean.starts_with(kernel)) {
            return refuse("lies in a file system of the kernel (CVE-2019-16884)");
        }
        let covered = asked.iter().any(|volume| volume.container_path.components().eq(clean.components()));
        let text = clean.to_string_lossy().into_owned();
        if !covered && !volumes.contains(&text) {
            volumes.push(text);
        }
    }
    volumes.sort();
    Ok(volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 253:1 / / rw,relatime - ext4 /dev/vda1 rw\n\
        30 22 0:26 / /mnt/a\\040b rw shared:5 - tmpfs tmpfs rw\n\
        31 22 0:27 / /mnt/slave rw master:7 propagate_from:2 - tmpfs tmpfs rw\n\
        32 31 0:28 / /mnt/slave rw - tmpfs over rw\n";

    #[test]
    fn sharing_is_that_of_the_mount_a_path_lies_on() {
        for (path, want) in [
            ("/mnt/a b/c", Sharing::Shared),
            ("/mnt/a", Sharing::Private),
            ("/mnt/slave/x", Sharing::Private),
            ("/", Sharing::Private),
        ] {
            assert_eq!(Sharing::of(Path::new(path), MOUNTS), want, "{path}");
        }
        let under: String = MOUNTS.lines().take(3).collect::<Vec<_>>().join("\n");
        assert_eq!(Sharing::of(Path::new("/mnt/slave/x"), &under), Sharing::Slave);
    }

    #[test]
    fn links_are_resolved_and_missing_directories_made() {
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        let volume =
            |name: &str| Volume { container_path: "/data".into(), host_path: root.join(name), ..Default::default() };
        let resolved = resolve(&[volume("link"), volume("new/deep")]).unwrap();
        assert_eq!(resolved[0].host_path, root.join("real"));
        assert!(root.join("new/deep").is_dir());
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        assert!(resolve(&[volume("loop")]).is_err());
    }

    #[test]
    fn propagation_needs_a_source_that_passes_events_on() {
        let volume = |propagation| Volume { host_path: "/".into(), propagation, ..Default::default() };
        assert!(one(&volume(Propagation::Private), MOUNTS).is_ok());
        assert!(one(&volume(Propagation::HostToContainer), MOUNTS).is_err());
        assert!(one(&volume(Propagation::Bidirectional), MOUNTS).is_err());
        let shared = "22 1 253:1 / / rw shared:1 - ext4 /dev/vda1 rw\n";
        assert!(one(&volume(Propagation::Bidirectional), shared).is_ok());
    }

    #[test]
    fn an_images_volumes_stay_in_the_image() {
        let text = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
        let asked = [Volume { container_path: "/data/".into(), ..Default::default() }];
        assert_eq!(of_image(&text(&["/b/", "/data", "/a/./c", "/a/c"]), &asked).unwrap(), ["/a/c", "/b"]);
        for bad in [
            "",
            "data",
            "/",
            "/..",
            "/a/../../etc",
            "/proc",
            "/proc/self",
            "/sys",
            "/sys/fs",
            "/dev/shm",
            "/x\0y",
            "//",
        ] {
            assert!(of_image(&text(&[bad]), &[]).is_err(), "{bad:?}");
        }
    }
}
