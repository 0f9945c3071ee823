//! Sealed in-memory copies of files: programs that nobody can change any more, not even root in a container.
//! Any process, any thread; blocks for the copy.
//! Owns the memory file it returns.
//! Must never return a copy that is not sealed or not whole.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{self, Errno};

const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// A sealed, executable copy of `file` from its beginning, close-on-exec.
pub fn sealed_copy(file: &File) -> io::Result<OwnedFd> {
    let length = rustix::fs::fstat(file)?.st_size.cast_unsigned();
    let copy = create(c"keelson-sealed")?;
    let mut offset = 0;
    while offset < length {
        let wanted = usize::try_from(length - offset).unwrap_or(usize::MAX);
        match rustix::fs::sendfile(&copy, file, Some(&mut offset), wanted) {
            Ok(0) => return Err(Errno::IO),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    seal(&copy)?;
    Ok(copy)
}

/// A sealed, executable memory file holding `bytes`, close-on-exec.
pub fn sealed_bytes(name: &std::ffi::CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let copy = create(name)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(&copy, rest) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    seal(&copy)?;
    Ok(copy)
}

/// Whether `file` is a memory file that nobody can write to any more.
pub fn is_sealed(file: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS))
}

fn create(name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know MFD_EXEC; there every memory file is executable.
    match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        other => other,
    }
}

fn seal(file: &OwnedFd) -> io::Result<()> {
    rustix::fs::fcntl_add_seals(file, SEALS)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_copy_is_whole_and_cannot_be_written() {
        let source = File::open("/proc/self/exe").unwrap();
        let copy = sealed_copy(&source).unwrap();
        assert!(is_sealed(&copy) && !is_sealed(&source));
        assert_eq!(rustix::io::write(&copy, b"x").unwrap_err(), Errno::PERM);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        File::open("/proc/self/exe").unwrap().read_to_end(&mut a).unwrap();
        let mut file = File::from(copy);
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut b).unwrap();
        assert!(a == b);
    }
}
