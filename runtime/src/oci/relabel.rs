//! Giving a volume's files the container's label of mandatory access control, where the request asks for it.
//! Blocks for as long as the tree is large; on the blocking pool, while a container is created on a host with SELinux.
//! Owns nothing. Must never touch a folder of the system (CVE-2021-43816), nor follow a link: the tree is the pod's, and may change
//! while it is walked.

use std::{
    ffi::CString,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags},
    io::Errno,
};

use crate::{
    container::{ContainerError, spec::Volume},
    selinux::ATTRIBUTE,
};

/// The system's, with all below them.
const WHOLE: [&str; 10] = ["/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr"];
/// The system's themselves; folders of others lie in them.
const THEMSELVES: [&str; 14] = [
    "/", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var", "/var/lib", "/var/log",
    "/var/run", "/var/tmp",
];
/// A tree deeper than this is not one that people made.
const DEPTH_MAX: usize = 256;

/// Labels what of the volumes asks for it. Their host paths are resolved.
pub(crate) fn relabel(volumes: &[Volume], label: &str) -> Result<(), ContainerError> {
    for volume in volumes.iter().filter(|volume| volume.relabel && volume.image.is_none()) {
        let path = &volume.host_path;
        let refuse = |reason: String| ContainerError::Invalid {
            field: format!("mounts[{}].selinux_relabel", path.display()),
            reason,
        };
        if is_system(path) {
            return Err(refuse("is a folder of the system, which would not work with a container's label".into()));
        }
        let open = || rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        open()
            .and_then(|place| tree(&place, label, 0))
            .map_err(|errno| refuse(format!("cannot be labelled: {errno}")))?;
    }
    Ok(())
}

fn is_system(path: &Path) -> bool {
    let clean = !path.components().any(|part| part == Component::ParentDir);
    !clean || THEMSELVES.iter().any(|own| path == Path::new(own)) || WHOLE.iter().any(|own| path.starts_with(own))
}

/// The place itself, then what is in it. What goes away meanwhile needs no label.
fn tree(place: &OwnedFd, label: &str, depth: usize) -> Result<(), Errno> {
    set(place.as_fd(), label)?;
    if FileType::from_raw_mode(rustix::fs::fstat(place)?.st_mode) != FileType::Directory {
        return Ok(());
    }
    if depth >= DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(place, ".", flags, Mode::empty())?;
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name: CString = entry.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::openat(place, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(inner) => tree(&inner, label, depth + 1)?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Of exactly the file that is held, link or not. A filesystem that keeps no labels has its own for all its files.
fn set(place: BorrowedFd<'_>, label: &str) -> Result<(), Errno> {
    let file = rustix::fs::fstat(place)?;
    if FileType::from_raw_mode(file.st_mode) == FileType::Symlink {
        // Nothing is read through a link's own label but its target's name.
        return Ok(());
    }
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    match rustix::fs::setxattr(path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn volume(path: &Path) -> Volume {
        Volume { host_path: path.to_owned(), relabel: true, ..Default::default() }
    }

    fn of(path: &Path) -> Option<String> {
        let mut buffer = [0; 256];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).trim_end_matches('\0').to_owned())
    }

    #[test]
    fn folders_of_the_system_are_refused() {
        for path in
            ["/", "/etc", "/etc/app", "/usr/share/x", "/proc/1", "/var", "/var/lib", "/run", "/tmp", "/a/../etc"]
        {
            assert!(relabel(&[volume(Path::new(path))], LABEL).is_err(), "{path}");
        }
        assert!(!is_system(Path::new("/var/lib/kubelet/pods/x/volumes/y")));
    }

    #[test]
    fn privileged_a_tree_is_labelled_and_no_link_is_followed() {
        let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
        let outside = scratch.path().join("outside");
        fs::create_dir_all(scratch.path().join("volume/deep")).unwrap();
        for file in ["outside", "volume/deep/file"] {
            fs::File::create(scratch.path().join(file)).unwrap();
        }
        std::os::unix::fs::symlink(&outside, scratch.path().join("volume/link")).unwrap();
        let before = of(&outside);
        relabel(&[volume(&scratch.path().join("volume"))], LABEL).unwrap();
        if of(&scratch.path().join("volume")).is_none() {
            println!("SKIP privileged_a_tree_is_labelled_and_no_link_is_followed: this filesystem keeps no labels");
            return;
        }
        for path in ["volume", "volume/deep", "volume/deep/file"] {
            assert_eq!(of(&scratch.path().join(path)).as_deref(), Some(LABEL), "{path}");
        }
        assert_eq!(of(&outside), before);
        let unasked = Volume { relabel: false, ..volume(Path::new("/etc")) };
        relabel(&[unasked], LABEL).unwrap();
    }
}
