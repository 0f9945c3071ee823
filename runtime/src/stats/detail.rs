//! Everything there is to tell about running containers, for metrics: asked for by a collector every quarter of a minute at most.
//! Runs on the blocking pool: about 0.2 ms for each container and some microseconds for each of its descriptors.
//! Owns nothing. Must never fail for one that ended meanwhile.

use std::{path::Path, sync::Arc};

use keelson_api::SandboxId;
use keelson_shim::cgroup::{self, Depth};

use super::{FsUse, Network, Processes, process, read, traffic};
use crate::{
    container::{ContainerState, ContainerView},
    engine::{
        shared::{Shared, now},
        table::ContainerEntry,
    },
    sandbox::SandboxView,
};

/// Everything about a running container.
#[derive(Debug, Clone)]
pub struct ContainerDetail {
    /// The container as it was then.
    pub view: Arc<ContainerView>,
    /// When it was read, nanoseconds since the epoch.
    pub timestamp: i64,
    /// Its cgroup, below the root of each hierarchy.
    pub cgroup: String,
    /// What the cgroup counts.
    pub counts: cgroup::Stats,
    /// Its processes.
    pub processes: Processes,
    /// The writable layer; none until it was measured for the first time.
    pub writable_layer: Option<FsUse>,
    /// Where that is.
    pub filesystem: Arc<Filesystem>,
}

/// Everything about a sandbox.
#[derive(Debug, Clone)]
pub struct SandboxDetail {
    /// The sandbox as it was then.
    pub view: Arc<SandboxView>,
    /// When it was read, nanoseconds since the epoch.
    pub timestamp: i64,
    /// The cgroup of all its containers, below the root of each hierarchy.
    pub cgroup: String,
    /// None with the host's network.
    pub network: Option<Network>,
    /// Those that run.
    pub containers: Vec<ContainerDetail>,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `/dev/vda`, or the number where it has no name.
    pub name: String,
    /// Of the number.
    pub major: u32,
    /// Of the number.
    pub minor: u32,
}

/// The filesystem of the writable layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// What it is on.
    pub device: Device,
    /// The whole disk that is on: the kernel counts I/O by disks.
    pub disk: Device,
    /// Size, bytes.
    pub size: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// What this host counts at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Time lost to pressure.
    pub pressure: bool,
    /// Huge pages.
    pub hugepages: bool,
    /// The most that was ever in use of them.
    pub hugepage_peaks: bool,
}

impl Device {
    /// By its number.
    #[must_use]
    pub fn of(major: u32, minor: u32) -> Self {
        let name = block(major, minor).and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        let name = name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"));
        Self { name, major, minor }
    }
}

/// Where the kernel describes a block device.
fn block(major: u32, minor: u32) -> Option<std::path::PathBuf> {
    std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

impl Filesystem {
    fn of(root: &Path) -> Self {
        let number = rustix::fs::stat(root).map_or(0, |stat| stat.st_dev);
        let device = Device::of(rustix::fs::major(number), rustix::fs::minor(number));
        let disk = block(device.major, device.minor)
            .filter(|path| path.join("partition").exists())
            .and_then(|path| std::fs::read_to_string(path.parent()?.join("dev")).ok())
            .and_then(|number| {
                let (major, minor) = number.trim().split_once(':')?;
                Some(Device::of(major.parse().ok()?, minor.parse().ok()?))
            })
            .unwrap_or_else(|| device.clone());
        let (size, inodes, inodes_free) = rustix::fs::statvfs(root)
            .map_or((0, 0, 0), |fs| (fs.f_blocks.saturating_mul(fs.f_frsize), fs.f_files, fs.f_ffree));
        Self { device, disk, size, inodes, inodes_free }
    }
}

/// What this host counts.
pub(crate) fn counted() -> Counted {
    cgroup::detect().map_or(Counted { pressure: false, hugepages: false, hugepage_peaks: false }, |hierarchies| {
        Counted {
            pressure: hierarchies.counts_pressure(),
            hugepages: hierarchies.counts_hugepages(),
            hugepage_peaks: hierarchies.keeps_hugepage_peaks(),
        }
    })
}

/// Each of these sandboxes with its running containers, in their order; one that is not there is left out.
pub(crate) fn sandboxes(shared: &Shared, ids: &[SandboxId], mut tell: impl FnMut(SandboxDetail)) {
    let mut buffer = Vec::new();
    let mut host = traffic::Host::default();
    let mut members = read::members(shared);
    let filesystem = Arc::new(Filesystem::of(&shared.config.root));
    for id in ids {
        let Some(view) = shared.table.sandbox(id).and_then(|entry| entry.view()) else { continue };
        let members = members.remove(id).unwrap_or_default();
        let containers: Vec<_> =
            members.iter().filter_map(|entry| container(shared, entry, &filesystem, &mut buffer)).collect();
        let pids = containers.iter().filter_map(|detail| detail.view.pid);
        let network = traffic::of(shared, &view, pids, &mut host);
        let cgroup = read::sandbox_handle(shared, &view).map(|handle| handle.paths().path).unwrap_or_default();
        tell(SandboxDetail { view, timestamp: now(), cgroup, network, containers });
    }
}

fn container(
    shared: &Shared,
    entry: &ContainerEntry,
    filesystem: &Arc<Filesystem>,
    buffer: &mut Vec<u8>,
) -> Option<ContainerDetail> {
    let view = entry.view().filter(|view| matches!(view.state, ContainerState::Running { .. }))?;
    let handle = read::container_handle(shared, entry, &view).ok()?;
    let counts = handle.stats_reader(Depth::All).and_then(|reader| reader.read(buffer));
    let counts = counts.inspect_err(|error| tracing::debug!(container = %view.id, %error, "read cgroup")).ok()?;
    let processes = process::of(&handle, view.pid);
    let writable_layer = read::writable_layer(shared, &view.id);
    let (cgroup, filesystem) = (handle.paths().path, Arc::clone(filesystem));
    Some(ContainerDetail { timestamp: now(), cgroup, counts, processes, writable_layer, filesystem, view })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filesystem_of_a_folder_has_a_size_and_a_device() {
        let found = Filesystem::of(Path::new("/"));
        assert!(found.size > 0 && found.inodes >= found.inodes_free, "{found:?}");
        assert!(!found.device.name.is_empty() && !found.disk.name.is_empty());
        assert_eq!(Device::of(0, 4711).name, "0:4711");
    }
}
