//! Giving a container its own cgroup to divide: ownership of the files that the kernel means for that, and a bound on the depth.
//! In the launcher, while the init waits; cgroup v2 only.
//! Owns nothing.
//! Must never give away a file that holds a limit: which are safe is the kernel's own list.

use rustix::fs::{AtFlags, CWD, Uid};
use rustix::io::Errno;

use super::dir::Dir;
use super::error::CgroupError;

/// Levels below the container's cgroup: enough for a service manager with a runtime below it, and names of 255 bytes that deep
/// still make a path that can be removed again.
const DEPTH: &str = "12";
/// Where older kernels have no list of their own.
const USUAL: &str = "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n";

/// `uid` as the host knows it.
pub(super) fn delegate(dir: &Dir, uid: u32) -> Result<(), CgroupError> {
    dir.write("cgroup.max.depth", DEPTH)?;
    if uid == 0 {
        return Ok(());
    }
    let files = Dir::new("/sys/kernel/cgroup", "").try_read("delegate").unwrap_or_else(|_| USUAL.to_owned());
    let own =
        |path: &str| match rustix::fs::chownat(CWD, path, Some(Uid::from_raw(uid)), None, AtFlags::SYMLINK_NOFOLLOW) {
            // The list is the kernel's, whatever controllers there are here.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(source) => Err(CgroupError::Write { path: path.to_owned(), value: format!("owner {uid}"), source }),
        };
    own(dir.path())?;
    let plain = |name: &&str| !name.is_empty() && !name.contains('/');
    files.lines().filter(plain).try_for_each(|name| own(&dir.file(name)))
}
