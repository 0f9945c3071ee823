//! Running from a form of this program that nobody can write to, so that `/proc/self/exe` in a container is no way to the
//! host's file (CVE-2019-5736). At the start of every command that puts a process into a container; the process replaces
//! itself once: by its own file seen through a detached read-only mount (0.1 ms), or by a sealed copy in memory (0.9 ms).
//! Owns nothing afterwards: mount and memory live as long as a process runs from them.
//! Must never go on from an exposed program file, and never loop.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;

use keelson_sys::mount::Attributes;
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::mount::OpenTreeFlags;

use super::error::{OciError, file, system};

const OWN: &str = "/proc/self/exe";
/// Set in the second life. It only tells a mount of ours from a filesystem that happens to be read-only now; without such a
/// mount or sealed memory it makes this fail instead of looping.
const MARK: &str = "KEELSON_SEALED";

/// Returns only in a process whose program file cannot be written to.
pub(super) fn ensure() -> Result<(), OciError> {
    let second = std::env::var_os(MARK).is_some();
    if !keelson_sys::process::executable_is_exposed() || (second && is_read_only()) {
        // No process of a container may look into this one while it enters the container (CVE-2016-9962).
        return keelson_sys::process::set_undumpable().map_err(system("become undumpable"));
    }
    if second {
        let text =
            "this program does not run from its protected form although it was started from it; is /proc mounted?";
        return Err(OciError::Invalid(text.to_owned()));
    }
    let program = match read_only() {
        Ok(program) => program,
        // An older kernel, or nobody who may mount.
        Err(_) => sealed()?,
    };
    let strings = |list: Vec<OsString>| list.into_iter().filter_map(|text| CString::new(text.into_vec()).ok());
    let argv: Vec<CString> = strings(std::env::args_os().collect()).collect();
    let pairs = std::env::vars_os().chain([(MARK.into(), "1".into())]).map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let env: Vec<CString> = strings(pairs.collect()).collect();
    Err(system("execute this program's protected form")(keelson_sys::process::exec_fd(&program, &argv, &env)))
}

/// This program's file in a mount of its own that is read-only and in no namespace: nobody can find it there, and once its
/// descriptor is closed by the exec nobody can change its attributes.
fn read_only() -> rustix::io::Result<OwnedFd> {
    let own = rustix::fs::open(OWN, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(&own, "", flags)?;
    let attributes = Attributes { set: Attributes::RDONLY | Attributes::NOSUID | Attributes::NODEV, clear: 0 };
    keelson_sys::mount::set_attributes(mount.as_fd(), attributes, None, false)?;
    Ok(mount)
}

fn sealed() -> Result<OwnedFd, OciError> {
    let program = std::fs::File::open(OWN).map_err(file("open", OWN))?;
    keelson_sys::memfd::sealed_copy(&program).map_err(system("copy this program to sealed memory"))
}

fn is_read_only() -> bool {
    let own = rustix::fs::open(OWN, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let flags = own.and_then(rustix::fs::fstatvfs).map(|status| status.f_flag);
    flags.is_ok_and(|flags| flags.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn privileged_the_protected_form_cannot_be_written_or_made_writable() {
        let mount = read_only().unwrap();
        let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
        let file = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        // As after the exec: the descriptor that keeps the mount together is closed, a process still refers to the file.
        drop(mount);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let error = std::fs::File::options().write(true).open(&path).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::ExecutableFileBusy), "{error}");
        let writable = Attributes { set: 0, clear: Attributes::RDONLY };
        assert!(keelson_sys::mount::set_attributes(file.as_fd(), writable, None, false).is_err());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        assert!(rustix::mount::open_tree(&file, "", flags).is_err(), "it can be mounted again");
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        std::fs::write(&target, "").unwrap();
        assert!(rustix::mount::mount_bind(&path, &target).is_err(), "it can be mounted again");
    }

    #[test]
    fn a_sealed_copy_is_sealed() {
        assert!(keelson_sys::memfd::is_sealed(sealed().unwrap()));
    }
}
