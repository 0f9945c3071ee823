//! Loading a seccomp filter into the calling thread.
//! Any process; the child before exec loads its own by raw calls (`child`), this is for tests and small programs.
//! Owns nothing: the kernel copies the program.
//! Must never interpret the program.

use rustix::io::{self, Errno};

use crate::fd::last_errno;

/// Size of one BPF instruction, bytes.
pub const INSTRUCTION: usize = 8;

/// Loads `program` (an array of `struct sock_filter`) with SECCOMP_FILTER_FLAG_* bits; needs no_new_privs or CAP_SYS_ADMIN.
/// <https://man7.org/linux/man-pages/man2/seccomp.2.html>
pub fn load(program: &[u8], flags: u32) -> io::Result<()> {
    let aligned = aligned(program)?;
    let length = u16::try_from(aligned.len()).map_err(|_| Errno::TOOBIG)?;
    let filter = libc::sock_fprog { len: length, filter: aligned.as_ptr().cast_mut().cast() };
    // SAFETY: `filter` describes `aligned`, which has the layout of sock_filter and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// The program as 64-bit words, which have the size and at least the alignment of an instruction.
pub(crate) fn aligned(program: &[u8]) -> io::Result<Vec<u64>> {
    if program.is_empty() || !program.len().is_multiple_of(INSTRUCTION) {
        return Err(Errno::INVAL);
    }
    Ok(program.as_chunks::<INSTRUCTION>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_program_is_refused() {
        assert_eq!(load(&[0; 9], 0).unwrap_err(), Errno::INVAL);
        assert_eq!(load(&[], 0).unwrap_err(), Errno::INVAL);
    }
}
