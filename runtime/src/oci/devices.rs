//! Device nodes of a container and who may use which device: the few every container has, those asked for, all for the privileged.
//! Reads `/dev` of the host; on the blocking pool, while a container is created.
//! Owns the default rules. Must never open a device: some act when opened.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::Inputs;
use crate::container::{ContainerError, spec::Device};

/// Nodes below one directory that is asked for.
const DEVICES_MAX: usize = 4096;
const DEPTH_MAX: usize = 8;
/// null, zero, full, random, urandom, tty, console, ptmx; the launcher makes their nodes.
const COMMON: [(i64, i64); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
/// Not devices of the host's hardware, or made anew in each container.
const SKIPPED: [&str; 8] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"];

/// Devices of a container.
#[derive(Default)]
pub(crate) struct Devices {
    /// Nodes to make.
    pub(crate) nodes: Vec<LinuxDevice>,
    /// Nodes of the host to bind instead, in a user namespace, where none can be made: `(host, container)` paths.
    pub(crate) bound: Vec<(PathBuf, PathBuf)>,
    /// Who may use what, last word last.
    pub(crate) rules: Vec<LinuxDeviceCgroup>,
}

/// A node of the host under its name in the container.
struct Found {
    host: PathBuf,
    node: LinuxDevice,
}

/// Nodes to make and rules to apply.
pub(crate) fn build(inputs: &Inputs<'_>) -> Result<Devices, ContainerError> {
    let mut found: Vec<Found> = Vec::new();
    let mut rules = Vec::new();
    if inputs.spec.security.privileged {
        walk(Path::new("/dev"), Path::new("/dev"), 0, &mut found);
        rules.push(rule(true, LinuxDeviceType::A, None, "rwm"));
    } else {
        rules.push(rule(false, LinuxDeviceType::A, None, "rwm"));
        // Nodes may be made (CAP_MKNOD is in the default set), not used.
        rules.push(rule(true, LinuxDeviceType::C, None, "m"));
        rules.push(rule(true, LinuxDeviceType::B, None, "m"));
        rules.extend(
            COMMON.iter().map(|numbers| rule(true, LinuxDeviceType::C, Some((numbers.0, Some(numbers.1))), "rwm")),
        );
        // Terminals of the container's own devpts.
        rules.push(rule(true, LinuxDeviceType::C, Some((136, None)), "rwm"));
    }
    for device in &inputs.spec.devices {
        let more = find(device)?;
        if !inputs.spec.security.privileged {
            let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
            rules
                .extend(more.iter().map(|Found { node, .. }| {
                    rule(true, node.typ(), Some((node.major(), Some(node.minor()))), access)
                }));
        }
        found.retain(|old| !more.iter().any(|new| new.node.path() == old.node.path()));
        found.extend(more);
    }
    let user = &inputs.identity.user;
    let of_cdi = inputs.cdi.nodes(user.uid, user.gid);
    found.retain(|old| !of_cdi.iter().any(|new| new.path() == old.node.path()));
    if !inputs.spec.security.privileged {
        rules.extend(inputs.cdi.rules());
    }
    if inputs.sandbox.user_namespace.is_some() {
        let mut bound: Vec<_> = found.into_iter().map(|Found { host, node }| (host, node.path().clone())).collect();
        bound.extend(inputs.cdi.elsewhere());
        // The launcher binds the rest from where they have the same name and the same numbers on the host.
        let nodes = of_cdi.into_iter().filter(|node| !bound.iter().any(|(_, path)| path == node.path())).collect();
        return Ok(Devices { nodes, bound, rules });
    }
    let nodes = found.into_iter().map(|found| found.node).chain(of_cdi).collect();
    Ok(Devices { nodes, bound: Vec::new(), rules })
}

/// The device, or all below the directory.
fn find(device: &Device) -> Result<Vec<Found>, ContainerError> {
    let host = &device.host_path;
    let target = if device.container_path.as_os_str().is_empty() { host } else { &device.container_path };
    let refuse = |reason: String| ContainerError::Invalid { field: format!("devices[{}]", host.display()), reason };
    let metadata = fs::metadata(host).map_err(|error| refuse(format!("cannot be read on the host: {error}")))?;
    if metadata.is_dir() {
        let mut nodes = Vec::new();
        walk(host, target, 0, &mut nodes);
        return if nodes.is_empty() { Err(refuse("is a directory without devices".into())) } else { Ok(nodes) };
    }
    let node = node(target.clone(), &metadata).ok_or_else(|| refuse("is not a device".into()))?;
    Ok(vec![Found { host: host.clone(), node }])
}

/// Device nodes below `host`, as they would be below `target`; links are left alone.
fn walk(host: &Path, target: &Path, depth: usize, nodes: &mut Vec<Found>) {
    let Ok(entries) = fs::read_dir(host) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let Ok(metadata) = entry.metadata() else { continue };
        if nodes.len() >= DEVICES_MAX || SKIPPED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        let (host, target) = (host.join(&name), target.join(&name));
        if metadata.is_dir() && depth < DEPTH_MAX {
            walk(&host, &target, depth + 1, nodes);
        } else if let Some(node) = node(target, &metadata) {
            nodes.push(Found { host, node });
        }
    }
}

fn node(path: PathBuf, metadata: &fs::Metadata) -> Option<LinuxDevice> {
    let kind = metadata.file_type();
    let typ = if kind.is_char_device() {
        LinuxDeviceType::C
    } else if kind.is_block_device() {
        LinuxDeviceType::B
    } else {
        return None;
    };
    let number = metadata.rdev();
    let mut node = LinuxDevice::default();
    node.set_path(path)
        .set_typ(typ)
        .set_major(i64::from(rustix::fs::major(number)))
        .set_minor(i64::from(rustix::fs::minor(number)))
        .set_file_mode(Some(metadata.mode() & 0o7777))
        .set_uid(Some(metadata.uid()))
        .set_gid(Some(metadata.gid()));
    Some(node)
}

fn rule(allow: bool, typ: LinuxDeviceType, numbers: Option<(i64, Option<i64>)>, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(typ))
        .set_major(numbers.map(|(major, _)| major))
        .set_minor(numbers.and_then(|(_, minor)| minor))
        .set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_keeps_its_numbers_under_its_new_name() {
        let device =
            Device { host_path: "/dev/null".into(), container_path: "/dev/nothing".into(), permissions: "r".into() };
        let nodes = find(&device).unwrap();
        let node = &nodes[0].node;
        assert_eq!((node.path().as_path(), node.major(), node.minor()), (Path::new("/dev/nothing"), 1, 3));
        assert_eq!(nodes[0].host, Path::new("/dev/null"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for path in ["/etc/passwd", "/dev/not-there", "/etc"] {
            assert!(find(&Device { host_path: path.into(), ..Default::default() }).is_err(), "{path}");
        }
    }
}
