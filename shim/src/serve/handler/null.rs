//! A null device that is nobody else's: a runtime may give the standard streams of a container to another user (runsc does), and the
//! host's `/dev/null` would be given away with them.
//! In the shim's only thread. Owns nothing: the device goes with the last descriptor of it.
//! Must never hand the host's own file to a runtime.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fstat, major, makedev, minor};
use rustix::io;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The device number of `/dev/null`.
const NULL: (u32, u32) = (1, 3);

/// A device of its own, on a filesystem that nobody else has.
pub(super) fn own() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let place = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(&place, "null", FileType::CharacterDevice, mode, makedev(NULL.0, NULL.1))?;
    rustix::fs::openat(&place, "null", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

/// The stream, or a device of its own where it is the host's.
pub(super) fn instead(stream: OwnedFd) -> io::Result<OwnedFd> {
    let stat = fstat(&stream)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if is_device && (major(stat.st_rdev), minor(stat.st_rdev)) == NULL { own() } else { Ok(stream) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_a_null_device_of_its_own_is_no_file_of_the_hosts() {
        let open = || rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let (hosts, own) = (fstat(open()).unwrap(), instead(open()).unwrap());
        let stat = fstat(&own).unwrap();
        assert_eq!((stat.st_rdev, hosts.st_dev == stat.st_dev), (hosts.st_rdev, false));
        assert_eq!(io::write(&own, b"gone").unwrap(), 4);
        assert_eq!(io::read(&own, &mut [0_u8; 4]).unwrap(), 0);
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let inode = fstat(&reader).unwrap().st_ino;
        assert_eq!(fstat(instead(reader).unwrap()).unwrap().st_ino, inode, "other streams stay what they are");
    }
}
