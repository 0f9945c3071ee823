//! Work inside other namespaces, and namespaces that outlive their makers.
//! `in_new` and `in_existing` run their closure on a thread of their own that then ends, so no other thread ever changes place.
//! Owns nothing afterwards: a pinned namespace belongs to the file it is bound on.
//! Must never be given a mount namespace by callers that share a filesystem context; the thread unshares its own first.

use std::ffi::CStr;
use std::io;
use std::ops::BitOr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::fd::last_errno;

/// A set of namespace kinds, as CLONE_NEW* bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NamespaceKinds(pub(crate) u32);

impl NamespaceKinds {
    /// None.
    pub const EMPTY: NamespaceKinds = NamespaceKinds(0);
    /// Mounts.
    pub const MOUNT: NamespaceKinds = NamespaceKinds(libc::CLONE_NEWNS.cast_unsigned());
    /// Hostname and domain name.
    pub const UTS: NamespaceKinds = NamespaceKinds(libc::CLONE_NEWUTS.cast_unsigned());
    /// System V IPC and POSIX message queues.
    pub const IPC: NamespaceKinds = NamespaceKinds(libc::CLONE_NEWIPC.cast_unsigned());
    /// User and group ids, capabilities.
    pub const USER: NamespaceKinds = NamespaceKinds(libc::CLONE_NEWUSER.cast_unsigned());
    /// Process ids.
    pub const PID: NamespaceKinds = NamespaceKinds(libc::CLONE_NEWPID.cast_unsigned());
    /// Network.
    pub const NET: NamespaceKinds = NamespaceKinds(libc::CLONE_NEWNET.cast_unsigned());
    /// View of the cgroup tree.
    pub const CGROUP: NamespaceKinds = NamespaceKinds(libc::CLONE_NEWCGROUP.cast_unsigned());
    /// Clocks.
    pub const TIME: NamespaceKinds = NamespaceKinds(0x80);

    /// The CLONE_NEW* bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are in it.
    pub const fn contains(self, other: NamespaceKinds) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those of `self` that are not in `other`.
    #[must_use]
    pub const fn without(self, other: NamespaceKinds) -> NamespaceKinds {
        NamespaceKinds(self.0 & !other.0)
    }

    fn file(self) -> Option<&'static CStr> {
        Some(match self {
            NamespaceKinds::MOUNT => c"/proc/thread-self/ns/mnt",
            NamespaceKinds::UTS => c"/proc/thread-self/ns/uts",
            NamespaceKinds::IPC => c"/proc/thread-self/ns/ipc",
            NamespaceKinds::USER => c"/proc/thread-self/ns/user",
            NamespaceKinds::PID => c"/proc/thread-self/ns/pid",
            NamespaceKinds::NET => c"/proc/thread-self/ns/net",
            NamespaceKinds::CGROUP => c"/proc/thread-self/ns/cgroup",
            NamespaceKinds::TIME => c"/proc/thread-self/ns/time",
            _ => return None,
        })
    }
}

impl BitOr for NamespaceKinds {
    type Output = NamespaceKinds;

    fn bitor(self, other: NamespaceKinds) -> NamespaceKinds {
        NamespaceKinds(self.0 | other.0)
    }
}

/// Runs `f` on a new thread inside new namespaces of these kinds. They vanish with the thread unless `f` pins them.
/// A user or pid namespace cannot be entered by a thread of a larger process: EINVAL from the kernel.
pub fn in_new<T: Send>(kinds: NamespaceKinds, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(move || {
        unshare(kinds)?;
        Ok(f())
    })
}

/// Runs `f` on a new thread inside the namespaces that these descriptors (nsfs files or pidfds' namespaces) name.
pub fn in_existing<T: Send>(namespaces: &[BorrowedFd<'_>], f: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(move || {
        // A thread that shares its filesystem context may not enter a mount namespace.
        unshare(NamespaceKinds(libc::CLONE_FS.cast_unsigned()))?;
        for namespace in namespaces {
            set(*namespace, NamespaceKinds::EMPTY)?;
        }
        Ok(f())
    })
}

/// Moves the calling thread (for PID: its later children) into a namespace: an nsfs file with the kind or none given, or a
/// pidfd with any kinds of that process. <https://man7.org/linux/man-pages/man2/setns.2.html>
///
/// Only for threads that were made for it, and for single-threaded processes.
pub fn set(namespace: BorrowedFd<'_>, kinds: NamespaceKinds) -> io::Result<()> {
    // SAFETY: setns takes integers; it changes what later calls of this thread mean, as the caller asks.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), kinds.0.cast_signed()) };
    if result < 0 { Err(last_errno().into()) } else { Ok(()) }
}

/// Gives the calling thread (for PID and TIME: its later children) new namespaces. As [`set`], only for threads made for it.
/// <https://man7.org/linux/man-pages/man2/unshare.2.html>
pub fn unshare(kinds: NamespaceKinds) -> io::Result<()> {
    // SAFETY: unshare takes an integer; CLONE_FILES and CLONE_VM are never among the bits of this type.
    let result = unsafe { libc::unshare(kinds.0.cast_signed()) };
    if result < 0 { Err(last_errno().into()) } else { Ok(()) }
}

/// Binds the calling thread's own namespace of one kind on the file `path`, made when missing: it lives until [`unpin`].
/// Called inside [`in_new`]: the bind lands in the mount namespace that the thread is in.
pub fn pin(kind: NamespaceKinds, path: &Path) -> io::Result<()> {
    let source = kind.file().ok_or(Errno::INVAL)?;
    pin_file(source, path)
}

/// Binds `/proc/<pid>/ns/<kind>` on the file `path`, as [`pin`] does for the caller's own.
pub fn pin_of(pid: i32, kind: NamespaceKinds, path: &Path) -> io::Result<()> {
    let own = kind.file().ok_or(Errno::INVAL)?.to_string_lossy();
    let name = own.rsplit('/').next().unwrap_or_default();
    let source = std::ffi::CString::new(format!("/proc/{pid}/ns/{name}")).map_err(|_| Errno::INVAL)?;
    pin_file(&source, path)
}

fn pin_file(source: &CStr, path: &Path) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    drop(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?);
    rustix::mount::mount_bind(source, path)?;
    Ok(())
}

/// Undoes [`pin`]: unmounts and removes the file. What is already gone is no error.
pub fn unpin(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn on_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("namespace".to_owned()).stack_size(256 * 1024).spawn_scoped(scope, f)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn own(kind: &str) -> std::path::PathBuf {
        std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap()
    }

    #[test]
    fn privileged_a_new_namespace_is_the_threads_alone() {
        let here = own("uts");
        let there = in_new(NamespaceKinds::UTS, || own("uts")).unwrap();
        assert_ne!(here, there);
        assert_eq!(here, own("uts"));
    }

    #[test]
    fn privileged_a_pinned_namespace_can_be_entered_again_and_unpinned_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net");
        let made =
            in_new(NamespaceKinds::NET, || pin(NamespaceKinds::NET, &path).map(|()| own("net"))).unwrap().unwrap();
        let file = std::fs::File::open(&path).unwrap();
        assert_eq!(in_existing(&[file.as_fd()], || own("net")).unwrap(), made);
        drop(file);
        unpin(&path).unwrap();
        unpin(&path).unwrap();
        assert!(!path.exists());
        assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(path.to_str().unwrap()));
    }
}
