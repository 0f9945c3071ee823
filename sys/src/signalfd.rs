//! Signals as readable events.
//! For programs with one thread: blocking concerns the calling thread only.
//! Owns the descriptor; the signals stay blocked when it is closed.
//! Must never read more than one record at a time: the caller's loop asks again.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{self, Errno};

use crate::fd::last_errno;

/// A signalfd, non-blocking and close-on-exec.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks `signals` in this thread and opens a descriptor that tells them.
    /// <https://man7.org/linux/man-pages/man2/signalfd.2.html>
    pub fn block(signals: &[i32]) -> io::Result<SignalFd> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: sigemptyset writes the whole set it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for signal in signals {
            // SAFETY: the set was initialised above; a number that is no signal is answered by EINVAL.
            if unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) } < 0 {
                return Err(Errno::INVAL);
            }
        }
        // SAFETY: initialised by sigemptyset.
        let set = unsafe { set.assume_init() };
        // SAFETY: the set is valid and the old one is not wanted.
        if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } < 0 {
            return Err(last_errno());
        }
        // SAFETY: -1 asks for a new descriptor; the set is valid.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: `fd` was just made and nobody else knows it.
        Ok(SignalFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal's number; none when there is none now.
    pub fn read(&self) -> io::Result<Option<i32>> {
        let mut record = std::mem::MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer has exactly `size` writable bytes.
        let got = unsafe { libc::read(self.0.as_raw_fd(), record.as_mut_ptr().cast(), size) };
        if got < 0 {
            return match last_errno() {
                Errno::AGAIN | Errno::INTR => Ok(None),
                errno => Err(errno),
            };
        }
        // SAFETY: every bit pattern is a valid signalfd_siginfo, and it was zeroed.
        let record = unsafe { record.assume_init() };
        Ok(i32::try_from(record.ssi_signo).ok().filter(|signal| *signal != 0))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_once() {
        let fd = SignalFd::block(&[libc::SIGUSR2]).unwrap();
        assert_eq!(fd.read().unwrap(), None);
        // SAFETY: raise sends to the calling thread, where the signal is blocked.
        unsafe { libc::raise(libc::SIGUSR2) };
        assert_eq!(fd.read().unwrap(), Some(libc::SIGUSR2));
        assert_eq!(fd.read().unwrap(), None);
    }
}
