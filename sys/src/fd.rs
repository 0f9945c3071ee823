//! File descriptors as numbers: those inherited from whoever started this process.
//! Any process; `cloexec_from` concerns every thread of it.
//! Owns nothing.
//! Must never close a descriptor it was not given.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io;

/// Marks every descriptor from `first` up close-on-exec. <https://man7.org/linux/man-pages/man2/close_range.2.html>
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC changes flags only; no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Takes a descriptor that this process was started with, such as one named in its environment; close-on-exec from now on.
/// The original is duplicated, so that a wrong number can never close a descriptor that somebody else owns.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes integers and fails with EBADF on a number that is not open.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(last_errno());
    }
    // SAFETY: `copy` was made by the line above and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The calling thread's errno, for the libc calls of this crate.
pub(crate) fn last_errno() -> io::Errno {
    let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    io::Errno::from_raw_os_error(raw)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn adopting_a_closed_number_is_refused() {
        assert_eq!(adopt(1 << 20).unwrap_err(), io::Errno::BADF);
    }

    #[test]
    fn an_adopted_descriptor_is_a_close_on_exec_copy() {
        let copy = adopt(0).unwrap();
        assert!(copy.as_raw_fd() >= 3);
        assert!(rustix::io::fcntl_getfd(&copy).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
}
