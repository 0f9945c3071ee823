//! Device nodes: those every container has, and those of its spec.
//! In the shim, before the clone.
//! Owns detached mounts of host nodes, for user namespaces, where no node can be made.
//! Must never pass a host node on whose numbers it has not checked.

use std::os::fd::{AsFd as _, OwnedFd};

use keelson_sys::child::{Attributes, Device as Made, Mount as Place, MountSource, Node, Op, Propagation};
use keelson_sys::mount::set_attributes;
use rustix::fs::{CWD, FileType, major, makedev, minor};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{LaunchError, c_string};
use crate::spec::Device;

const STEP: &str = "create device";
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

pub(super) fn operations(wanted: &[Device], in_user_namespace: bool) -> Result<Vec<Op>, LaunchError> {
    let mut made = Vec::with_capacity(DEFAULT.len() + wanted.len());
    for (path, major, minor) in DEFAULT {
        if !wanted.iter().any(|device| device.path == path) {
            made.push(node(path, libc_mode('c'), 0o666, (major, minor), (0, 0))?);
        }
    }
    for device in wanted {
        let kind = device.kind.chars().next().filter(|_| device.kind.len() == 1);
        let Some(kind @ ('c' | 'u' | 'b' | 'p')) = kind else {
            return Err(LaunchError::invalid(STEP, &device.path, format!("`{}` is no type of device", device.kind)));
        };
        if !device.path.starts_with('/') {
            return Err(LaunchError::invalid(STEP, &device.path, "not an absolute path"));
        }
        let number = |number: i64| {
            u32::try_from(number).map_err(|_| LaunchError::invalid(STEP, &device.path, "its number is out of range"))
        };
        let numbers = if kind == 'p' { (0, 0) } else { (number(device.major)?, number(device.minor)?) };
        let owner = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
        let permissions = device.file_mode.unwrap_or(0o666) & 0o7777;
        made.push(node(&device.path, libc_mode(kind), permissions, numbers, owner)?);
    }
    let links = LINKS
        .iter()
        .filter(|(path, _)| !wanted.iter().any(|device| device.path == *path))
        .map(|(path, target)| Ok((c_string(STEP, path)?, c_string(STEP, target)?)))
        .collect::<Result<_, LaunchError>>()?;
    let mut ops = if in_user_namespace {
        made.into_iter().map(bound).collect::<Result<Vec<_>, _>>()?
    } else {
        vec![Op::Devices(made)]
    };
    ops.push(Op::Links(links));
    Ok(ops)
}

/// The host's null device as a detached mount: what hides files (CVE-2025-31133).
pub(super) fn null() -> Result<OwnedFd, LaunchError> {
    host_node("/dev/null", FileType::CharacterDevice, makedev(1, 3))
}

fn libc_mode(kind: char) -> u32 {
    let kind = match kind {
        'b' => FileType::BlockDevice,
        'p' => FileType::Fifo,
        _ => FileType::CharacterDevice,
    };
    kind.as_raw_mode()
}

fn node(path: &str, kind: u32, permissions: u32, numbers: (u32, u32), owner: (u32, u32)) -> Result<Made, LaunchError> {
    Ok(Made {
        path: c_string(STEP, path)?,
        mode: kind | permissions,
        device: makedev(numbers.0, numbers.1),
        uid: owner.0,
        gid: owner.1,
    })
}

/// In a user namespace a node is the host's own, bound.
fn bound(device: Made) -> Result<Op, LaunchError> {
    let path = device.path.to_string_lossy();
    let tree = host_node(&path, FileType::from_raw_mode(device.mode), device.device)?;
    Ok(Op::Mount(Box::new(Place {
        source: MountSource::Tree(tree),
        target: device.path,
        node: Node::File,
        no_symlinks: false,
        on_proc: false,
    })))
}

fn host_node(path: &str, kind: FileType, device: u64) -> Result<OwnedFd, LaunchError> {
    let failed = |errno| LaunchError::system("open device of the node", path, errno);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags).map_err(failed)?;
    let found = rustix::fs::fstat(&tree).map_err(failed)?;
    if FileType::from_raw_mode(found.st_mode) != kind || (kind != FileType::Fifo && found.st_rdev != device) {
        let hint = format!("it is not the device {}:{}", major(device), minor(device));
        return Err(LaunchError::invalid("open device of the node", path, hint));
    }
    // A clone of a mount that systemd has made shared would stay its peer.
    set_attributes(tree.as_fd(), Attributes::default(), Some(Propagation::Private), false).map_err(failed)?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str, kind: &str) -> Device {
        Device { path: path.into(), kind: kind.into(), major: 10, minor: 200, ..Device::default() }
    }

    fn nodes(ops: &[Op]) -> usize {
        ops.iter().map(|op| if let Op::Devices(devices) = op { devices.len() } else { 0 }).sum()
    }

    #[test]
    fn a_device_of_the_spec_replaces_a_default_of_its_name() {
        assert_eq!(nodes(&operations(&[], false).unwrap()), 6);
        assert_eq!(nodes(&operations(&[device("/dev/net/tun", "c")], false).unwrap()), 7);
        assert_eq!(nodes(&operations(&[device("/dev/null", "c")], false).unwrap()), 6);
    }

    #[test]
    fn malformed_devices_are_refused() {
        for (path, kind) in [("/dev/x", "q"), ("/dev/x", ""), ("/dev/x", "cc"), ("dev/x", "c")] {
            assert!(operations(&[device(path, kind)], false).is_err(), "{path} {kind}");
        }
        assert!(operations(&[Device { major: -1, ..device("/dev/x", "c") }], false).is_err());
    }

    #[test]
    fn the_null_device_is_checked_by_its_numbers() {
        null().unwrap();
        assert!(host_node("/dev/zero", FileType::CharacterDevice, makedev(1, 3)).is_err());
        assert!(host_node("/etc/passwd", FileType::CharacterDevice, makedev(1, 3)).is_err());
    }
}
