//! What is mounted in a container besides its root: the kernel's file systems, the sandbox's files, the request's volumes.
//! Pure functions. Owns the default list.
//! Must never mount over the root, and never give an unprivileged container a writable view of the host's kernel settings.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::Inputs;
use crate::{
    container::spec::{Access, Propagation, Volume},
    sandbox::spec::IpcMode,
};

/// All mounts, in the order in which they are made: parents before children.
pub(crate) fn build(inputs: &Inputs<'_>) -> Vec<Mount> {
    let privileged = inputs.spec.security.privileged;
    let kernel = if privileged { "rw" } else { "ro" };
    let files = if inputs.spec.security.readonly_rootfs { "ro" } else { "rw" };
    let dir = inputs.sandbox_dir;
    let shm = if inputs.sandbox.namespaces.ipc == IpcMode::Host { PathBuf::from("/dev/shm") } else { dir.shm() };
    let mut mounts = vec![
        mount("/proc", "proc", Path::new("proc"), &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", Path::new("tmpfs"), &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            Path::new("devpts"),
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", Path::new("mqueue"), &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", Path::new("sysfs"), &["nosuid", "noexec", "nodev", kernel]),
        mount("/sys/fs/cgroup", "cgroup", Path::new("cgroup"), &["nosuid", "noexec", "nodev", "relatime", kernel]),
        mount("/dev/shm", "bind", &shm, &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"]),
        mount("/etc/hostname", "bind", &dir.hostname(), &["rbind", "rprivate", files]),
        mount("/etc/hosts", "bind", &dir.hosts(), &["rbind", "rprivate", files]),
        mount("/etc/resolv.conf", "bind", &dir.resolv_conf(), &["rbind", "rprivate", files]),
    ];
    mounts.retain(|mount| !inputs.volumes.iter().any(|volume| same(&volume.container_path, mount.destination())));
    let mut volumes: Vec<&Volume> = inputs.volumes.iter().collect();
    // Stable: volumes of one depth keep the caller's order, a later one covers an earlier one.
    volumes.sort_by_key(|volume| volume.container_path.components().count());
    mounts.extend(volumes.into_iter().map(bind));
    mounts
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
    let target: PathBuf = volume.container_path.components().collect();
    mount(&target.to_string_lossy(), "bind", &volume.host_path, &["rbind", propagation, access])
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
