//! Opening what lies below a folder that somebody else fills: links in it lead nowhere outside of it.
//! Any process, any thread.
//! Owns nothing.
//! Must never follow a magic link.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::ResolveFlags;
use rustix::io;
use rustix::path::Arg;

use crate::raw;

/// Opens a folder (`O_PATH`) as a process with the root `root` would: absolute links and `..` end there. `more` narrows it further.
/// Close-on-exec. <https://man7.org/linux/man-pages/man2/openat2.2.html>
pub fn folder(root: impl AsFd, path: impl Arg, more: ResolveFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    let root = root.as_fd().as_raw_fd();
    let found =
        path.into_with_c_str(|path| raw::openat2(root, path, libc::O_PATH | libc::O_DIRECTORY, 0, resolve.bits()))?;
    // SAFETY: `found` was made by the line above and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(found) })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn links_end_at_the_root_though_folders_are_renamed_meanwhile() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |path: &str| scratch.path().join(path);
        std::fs::create_dir_all(at("root/a/b/c")).unwrap();
        std::fs::create_dir(at("other")).unwrap();
        std::os::unix::fs::symlink("../../../../../../a/b/../b", at("root/a/b/link")).unwrap();
        let root = std::fs::File::open(at("root")).unwrap();
        let wanted = rustix::fs::stat(at("root/a/b")).unwrap().st_ino;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::fs::rename(at("other"), at("another")).unwrap();
                    std::fs::rename(at("another"), at("other")).unwrap();
                }
            });
            let looks: Vec<_> = (0..2000).map(|_| folder(&root, "a/b/link", ResolveFlags::empty())).collect();
            done.store(true, Ordering::Relaxed);
            for found in looks {
                assert_eq!(rustix::fs::fstat(found.unwrap()).unwrap().st_ino, wanted);
            }
        });
        assert_eq!(folder(&root, "a/none", ResolveFlags::empty()).unwrap_err(), Errno::NOENT);
    }
}
