//! How the engine is: what it can make now, and how much it has.
//! A method of the engine; asks the network by netlink, about a millisecond: call it on the blocking pool. Owns nothing.
//! Must never answer from an assumption what can be looked at.

use std::sync::atomic::Ordering;

use super::{CgroupDriver, Engine};

/// How the engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineStatus {
    /// Why no sandbox with a network of its own can be made now; `None`: it can.
    pub network_down: Option<String>,
    /// Who makes cgroups; never [`CgroupDriver::Auto`].
    pub cgroup_driver: CgroupDriver,
    /// `v1`, `hybrid` or `v2`.
    pub cgroup_mode: &'static str,
    /// The kernel can filter system calls.
    pub seccomp: bool,
    /// What this host can do, found by trying.
    pub features: Features,
    /// Sandboxes known.
    pub sandboxes: usize,
    /// Containers known.
    pub containers: usize,
    /// Teardown work not finished yet.
    pub teardown_pending: usize,
}

/// What containers on this host can ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Volumes that are read-only with all that is mounted below them.
    pub recursive_read_only: bool,
    /// Volumes that are barred from more ([`MountOption`](crate::container::spec::MountOption)).
    pub mount_options: bool,
    /// A cgroup that the container may divide.
    pub writable_cgroup: bool,
    /// A user namespace of the sandbox's own.
    pub user_namespaces: bool,
}

impl Engine {
    /// What this host can do; memory only.
    #[must_use]
    pub fn features(&self) -> Features {
        let host = &self.shared.host;
        Features {
            recursive_read_only: host.recursive_attributes,
            mount_options: host.recursive_attributes,
            writable_cgroup: host.no_writable_cgroup.is_none(),
            user_namespaces: host.no_user_namespaces.is_none(),
        }
    }

    /// How the engine is.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        let shared = &self.shared;
        let network_down = match &shared.network {
            Some(network) => network.status().err().map(|error| {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                format!("{error}{cause}")
            }),
            None => Some("no network is configured: only sandboxes with the host's network can run".to_owned()),
        };
        EngineStatus {
            network_down,
            cgroup_driver: if shared.host.systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs },
            cgroup_mode: match shared.cgroup_mode {
                keelson_shim::cgroup::Mode::V1 => "v1",
                keelson_shim::cgroup::Mode::Hybrid => "hybrid",
                keelson_shim::cgroup::Mode::V2 => "v2",
            },
            seccomp: std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            features: self.features(),
            sandboxes: shared.table.sandboxes().len(),
            containers: shared.table.containers().len(),
            teardown_pending: shared.pending.load(Ordering::Relaxed),
        }
    }
}
