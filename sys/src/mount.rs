//! mount_setattr(2), which rustix does not know.
//! Any process, any thread; never blocks for long.
//! Owns nothing.
//! Must never take a path: only mounts that are held by descriptor.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io;

pub use crate::child::{Attributes, Propagation};
use crate::raw::{self, MountAttr};

/// Sets and clears attributes of a mount (or of every mount of a tree), and its propagation, at once.
/// <https://man7.org/linux/man-pages/man2/mount_setattr.2.html>
pub fn set_attributes(
    tree: BorrowedFd<'_>,
    attributes: Attributes,
    propagation: Option<Propagation>,
    recursive: bool,
) -> io::Result<()> {
    let propagation = propagation.map_or(0, Propagation::bits);
    let attr = MountAttr { set: attributes.set, clear: attributes.clear, propagation, userns: 0 };
    raw::mount_setattr(tree.as_raw_fd(), c"", flags(recursive), &attr)
}

/// Shifts the ids of a detached mount (or of every mount of a detached tree) by the mappings of a user namespace.
pub fn set_idmap(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let userns = user_namespace.as_raw_fd() as u64;
    let attr = MountAttr { set: Attributes::IDMAP, userns, ..MountAttr::default() };
    raw::mount_setattr(tree.as_raw_fd(), c"", flags(recursive), &attr)
}

fn flags(recursive: bool) -> i32 {
    libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 }
}
