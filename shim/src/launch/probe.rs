//! What this kernel and these filesystems can do for user namespaces, found out by doing it once.
//! In the daemon, at its start; blocks for some milliseconds.
//! Owns what it mounts until it returns; nothing of it is in any mount table.
//! Must never conclude from a version number.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::rootfs::{self, Root, Shift};
use super::{LaunchError, OverlayRootfs, idmap};
use crate::spec::IdMapping;

/// Whether a container can live in a user namespace: the namespace itself, an overlay over shifted layers on the filesystem of
/// `scratch` (a folder of the caller's alone, left with three folders in it), and shifted volumes of memory, which secrets are.
///
/// # Errors
/// What failed, in the words a person can act on.
pub fn user_namespaces(scratch: &Path) -> Result<(), LaunchError> {
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| scratch.join(name));
    for folder in [&lower, &upper, &work] {
        let made = rustix::fs::mkdir(folder, rustix::fs::Mode::RWXU);
        made.map_err(|errno| LaunchError::system("make folder", folder.display().to_string(), errno))?;
    }
    let mapping = [IdMapping { container_id: 0, host_id: 65_536, size: 65_536 }];
    let namespace = idmap::namespace(&mapping, &mapping)?;
    let shift = Shift { namespace: &namespace, root: (65_536, 65_536) };
    let overlay = OverlayRootfs { lower: vec![lower], upper, work, volatile: true, idmapped: true };
    match rootfs::overlay(&overlay, Some(&shift), "", scratch)? {
        Root::Tree(_) => {}
        Root::Legacy(_) => return Err(LaunchError::unsupported("shift layers", "", "needs Linux 5.19")),
    }
    let failed = |errno| {
        LaunchError::system("shift ids of mount", "tmpfs", errno).with_hint("volumes of memory need Linux 6.3 for that")
    };
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
    fsconfig_create(context.as_fd()).map_err(failed)?;
    let memory = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(failed)?;
    keelson_sys::mount::set_idmap(memory.as_fd(), namespace.as_fd(), false).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_a_scratch_folder_shows_what_can_be_done_and_keeps_no_mount() {
        let scratch = tempfile::tempdir().unwrap();
        let found = user_namespaces(scratch.path());
        // On a kernel without, the words are the test: somebody has to act on them.
        if let Err(error) = &found {
            assert!(!error.step.is_empty() && (error.errno != 0 || !error.hint.is_empty()), "{error}");
            println!("SKIP: this host has no user namespaces for containers: {error}");
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(scratch.path().to_str().unwrap()), "{mounts}");
        let missing = user_namespaces(&scratch.path().join("not-there")).unwrap_err();
        assert_eq!(missing.step, "make folder");
    }
}
