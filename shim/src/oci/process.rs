//! What `create`, `run` and `exec` share: the streams that a process inherits from its caller.
//! At the start of a command.
//! Owns the copies it makes.
//! Must never hand a descriptor beyond the three streams to a container.

use std::os::fd::OwnedFd;

use keelson_shim::launch::ChildStdio;
use keelson_shim::spec::{Process, Spec};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::error::{OciError, system};
use crate::owner;

/// This process's own streams for a process of the container; one that is closed becomes `/dev/null`.
/// Pipes and terminals are given to its user, so that it can open `/dev/stdout`.
pub(super) fn own_streams(process: Option<&Process>, spec: &Spec) -> Result<ChildStdio, OciError> {
    let (uid, gid) = owner::on_host(process, spec);
    let stream = |number| -> Result<OwnedFd, OciError> {
        let fd = match keelson_sys::fd::adopt(number) {
            Err(Errno::BADF) => rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()),
            other => other,
        }
        .map_err(system("take over standard streams"))?;
        give(&fd, uid, gid)?;
        Ok(fd)
    };
    Ok(ChildStdio::Fds { stdin: stream(0)?, stdout: stream(1)?, stderr: stream(2)? })
}

/// Descriptors beyond the three streams are not passed into containers.
pub(super) fn refuse_preserved(count: &str) -> Result<(), OciError> {
    match count.parse::<u32>() {
        Ok(0) => Ok(()),
        Ok(_) => {
            Err(OciError::Invalid("--preserve-fds: not offered, only the three standard streams are passed".to_owned()))
        }
        Err(_) => Err(OciError::Usage(format!("--preserve-fds: `{count}` is no number"))),
    }
}

fn give(fd: &OwnedFd, uid: u32, gid: u32) -> Result<(), OciError> {
    let status = rustix::fs::fstat(fd).map_err(system("look at standard streams"))?;
    let kind = FileType::from_raw_mode(status.st_mode);
    // Files and /dev/null stay whose they are.
    let private = kind == FileType::Fifo || kind == FileType::Socket || rustix::termios::isatty(fd);
    if !private || (status.st_uid, status.st_gid) == (uid, gid) {
        return Ok(());
    }
    match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
        // The caller's streams may be on something that knows no owners.
        Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => Ok(()),
        Err(errno) => Err(system("give standard streams to the container's user")(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_no_descriptor_can_be_preserved() {
        assert!(refuse_preserved("0").is_ok() && refuse_preserved("1").is_err() && refuse_preserved("x").is_err());
    }
}
