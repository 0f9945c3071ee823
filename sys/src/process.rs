//! Attributes of the calling process that only unsafe or missing calls can change.
//! Any process; each concerns the whole process.
//! Owns nothing.
//! Must never be called from a library on its own account: the program decides.

use rustix::io;

use crate::fd::last_errno;

/// Nobody without CAP_SYS_PTRACE over this process's own user namespace may attach to it or read its memory; children made
/// by fork inherit that until they exec.
pub fn set_undumpable() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
}

/// Whether a writer could ever change the file this process runs from: false for a sealed memory file (CVE-2019-5736).
pub fn executable_is_exposed() -> bool {
    std::fs::File::open("/proc/self/exe").map_or(true, |exe| !crate::memfd::is_sealed(&exe))
}

/// The signals that this process ignores, as a mask with bit `n - 1` for signal `n`: ignoring survives exec.
pub fn ignored_signals() -> u64 {
    let mut mask = 0;
    for signal in 1..=64 {
        if crate::raw::is_ignored(signal) {
            mask |= 1 << (signal - 1);
        }
    }
    mask
}

/// Replaces this process's program by the file `program`; returns only on failure.
/// <https://man7.org/linux/man-pages/man2/execveat.2.html>
pub fn exec_fd(program: impl std::os::fd::AsFd, argv: &[std::ffi::CString], env: &[std::ffi::CString]) -> io::Errno {
    use std::os::fd::AsRawFd;
    let argv = crate::spawn::pointers(argv);
    let env = crate::spawn::pointers(env);
    let fd = program.as_fd().as_raw_fd();
    // SAFETY: both arrays end with null and point into the slices, which outlive the call.
    unsafe { libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), argv.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH) };
    last_errno()
}

#[cfg(test)]
mod tests {
    #[test]
    fn rust_programs_ignore_sigpipe_and_we_see_it() {
        assert_ne!(super::ignored_signals() & (1 << (libc::SIGPIPE - 1)), 0);
    }

    #[test]
    fn a_program_on_disk_is_exposed() {
        assert!(super::executable_is_exposed());
    }
}
