//! Opening what lies below a folder that somebody else fills: links in it lead nowhere outside of it.
//! Any process, any thread.
//! Owns nothing.
//! Must never follow a magic link.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::{self, Errno};
use rustix::path::Arg;

/// How often the kernel is asked to look again. A rename or a mount anywhere on the machine while it walks `..` makes it give up
/// (EAGAIN); who renames without pause makes a look fail often, but does not hold us for ever.
/// <https://man7.org/linux/man-pages/man2/openat2.2.html>
pub(crate) const LOOKS: u32 = 100_000;

/// Opens a folder (`O_PATH`) as a process with the root `root` would: absolute links and `..` end there. `more` narrows it further.
pub fn folder(root: impl AsFd, path: impl Arg + Copy, more: ResolveFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    for _ in 1..LOOKS {
        match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

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
