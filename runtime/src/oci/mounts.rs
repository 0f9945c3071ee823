//! What is mounted in a container besides its root: the kernel's file systems, the sandbox's files, the request's volumes.
//! Pure functions. Owns the default list.
//! Must never mount over the root, and never give an unprivileged container a writable view of the host's kernel settings.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};

use super::Inputs;
use crate::{
    container::spec::{Access, CgroupMount, IdMapping, Propagation, Volume},
    sandbox::{
        handler,
        spec::{IpcMode, NetworkMode},
    },
};

/// All mounts, in the order in which they are made: parents before children.
///
/// `devices`: nodes of the host as `(host, container)` paths, for a container that cannot make its own.
pub(crate) fn build(inputs: &Inputs<'_>, devices: &[(PathBuf, PathBuf)]) -> Vec<Mount> {
    let privileged = inputs.spec.security.privileged;
    let kernel = if privileged { "rw" } else { "ro" };
    let cgroup = match inputs.spec.security.cgroup {
        CgroupMount::Unspecified => kernel,
        CgroupMount::ReadOnly => "ro",
        CgroupMount::Writable => "rw",
    };
    let files = if inputs.spec.security.readonly_rootfs { "ro" } else { "rw" };
    let dir = inputs.sandbox_dir;
    let shm = if inputs.sandbox.namespaces.ipc == IpcMode::Host { PathBuf::from("/dev/shm") } else { dir.shm() };
    let terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    // The group of terminals, where it has a number.
    let known = inputs.sandbox.user_namespace.as_ref().is_none_or(|users| users.has_group(5));
    let terminals = if known { &terminals[..] } else { terminals.get(..5).unwrap_or_default() };
    let mut mounts = vec![
        mount("/proc", "proc", Path::new("proc"), &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", Path::new("tmpfs"), &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", Path::new("devpts"), terminals),
        mount("/dev/mqueue", "mqueue", Path::new("mqueue"), &["nosuid", "noexec", "nodev"]),
        sysfs(inputs, kernel),
        mount("/sys/fs/cgroup", "cgroup", Path::new("cgroup"), &["nosuid", "noexec", "nodev", "relatime", cgroup]),
        mount("/dev/shm", "bind", &shm, &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"]),
        mount("/etc/hostname", "bind", &dir.hostname(), &["rbind", "rprivate", files]),
        mount("/etc/hosts", "bind", &dir.hosts(), &["rbind", "rprivate", files]),
        mount("/etc/resolv.conf", "bind", &dir.resolv_conf(), &["rbind", "rprivate", files]),
    ];
    mounts.extend(devices.iter().map(|(host, target)| {
        mount(&target.to_string_lossy(), "bind", host, &["bind", "private", "nosuid", "noexec"])
    }));
    mounts.retain(|mount| !inputs.volumes.iter().any(|volume| same(&volume.container_path, mount.destination())));
    let mut volumes: Vec<&Volume> = inputs.volumes.iter().collect();
    // Stable: volumes of one depth keep the caller's order, a later one covers an earlier one.
    volumes.sort_by_key(|volume| volume.container_path.components().count());
    let mut asked: Vec<Mount> = volumes
        .into_iter()
        .map(|volume| match inputs.images.iter().find(|image| image.of(volume)) {
            Some(image) => overlay(volume, image),
            None => bind(volume),
        })
        .collect();
    let devices = inputs.cdi.mounts();
    if !devices.is_empty() {
        let replaced = |mount: &Mount| devices.iter().any(|new| same(new.destination(), mount.destination()));
        mounts.retain(|mount| !replaced(mount));
        asked.retain(|mount| !replaced(mount));
        asked.extend(devices);
        asked.sort_by_key(|mount| mount.destination().components().count());
    }
    mounts.extend(asked);
    mounts
}

/// A sysfs shows a network, and its owner alone may mount it: to a sandbox with a user namespace of its own and the host's network the
/// host's is given, read-only whoever asks.
fn sysfs(inputs: &Inputs<'_>, access: &str) -> Mount {
    let bars = ["nosuid", "noexec", "nodev"];
    if inputs.sandbox.user_namespace.is_none() || inputs.sandbox.namespaces.network == NetworkMode::Sandbox {
        return mount("/sys", "sysfs", Path::new("sysfs"), &[&bars[..], &[access]].concat());
    }
    // Without what the host has mounted in it. Other runtimes open it where the kernel gives it away as a whole alone.
    let own = handler::is_native(&inputs.sandbox.handler);
    let options = if own { ["bind", "private", "ro"] } else { ["rbind", "rprivate", "rro"] };
    mount("/sys", "bind", Path::new("/sys"), &[&options[..], &bars[..]].concat())
}

/// What the root's propagation must be for these volumes; none: private.
pub(crate) fn root_propagation(volumes: &[Volume]) -> Option<&'static str> {
    let any = |wanted| volumes.iter().any(|volume| volume.propagation == wanted);
    if any(Propagation::Bidirectional) {
        Some("rshared")
    } else if any(Propagation::HostToContainer) {
        Some("rslave")
    } else {
        None
    }
}

/// An image's layers, for one volume.
#[derive(Debug)]
pub(crate) struct ImageLayers {
    /// Where in the container, as the spec has it.
    pub(crate) destination: PathBuf,
    /// Folders to stack, top first; two or more.
    pub(crate) lower: Vec<PathBuf>,
}

impl ImageLayers {
    fn of(&self, volume: &Volume) -> bool {
        volume.image.is_some() && self.destination == destination(volume)
    }
}

/// Where a volume is, in the one way the spec has it.
pub(crate) fn destination(volume: &Volume) -> PathBuf {
    volume.container_path.components().collect()
}

/// As an OCI runtime that knows nothing of images would have it. The launcher is told the rest (`api::shim::ImageVolume`).
fn overlay(volume: &Volume, image: &ImageLayers) -> Mount {
    let mut layers = String::from("lowerdir=");
    for (index, path) in image.lower.iter().enumerate() {
        if index > 0 {
            layers.push(':');
        }
        for c in path.to_string_lossy().chars() {
            if matches!(c, ':' | ',' | '\\') {
                layers.push('\\');
            }
            layers.push(c);
        }
    }
    // What is in an image is its author's: it never gives more rights than the container's own files.
    let mut options = vec!["ro", "nosuid", "nodev"];
    options.extend(volume.options.iter().map(|option| option.name()).filter(|name| *name == "noexec"));
    options.push(&layers);
    mount(&destination(volume).to_string_lossy(), "overlay", Path::new("overlay"), &options)
}

fn bind(volume: &Volume) -> Mount {
    let access = match volume.access {
        Access::ReadWrite => "rw",
        Access::ReadOnly => "ro",
        Access::RecursiveReadOnly => "rro",
    };
    let propagation = match volume.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let mut options = vec!["rbind", propagation, access];
    options.extend(volume.options.iter().map(|option| option.recursive_name()));
    let mut mount = mount(&destination(volume).to_string_lossy(), "bind", &volume.host_path, &options);
    if !volume.uid_mappings.is_empty() {
        mount.set_uid_mappings(Some(ranges(&volume.uid_mappings)));
        mount.set_gid_mappings(Some(ranges(&volume.gid_mappings)));
    }
    mount
}

/// In the specification's words.
pub(crate) fn ranges(ranges: &[IdMapping]) -> Vec<LinuxIdMapping> {
    let range = |range: &IdMapping| {
        let mapping = LinuxIdMappingBuilder::default().host_id(range.host_id).container_id(range.container_id);
        // All is set. Were it not, the kernel would refuse a mapping of nothing.
        mapping.size(range.length).build().unwrap_or_default()
    };
    ranges.iter().map(range).collect()
}

pub(crate) fn mount(target: &str, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(target))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

/// Whether two container paths are written differently and mean the same.
fn same(a: &Path, b: &Path) -> bool {
    a.components().eq(b.components())
}
