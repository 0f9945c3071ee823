//! How the engine is: what it can make now, and how much it has.
//! Methods of the engine. The network is asked by netlink on the blocking pool, about a millisecond, longer while others hold the
//! kernel's network lock; one look at a time, and nobody waits long for it. Owns what was last found.
//! Must never answer from memory what can be looked at in time.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use keelson_network::Network;

use super::{CgroupDriver, Engine, HandlerConfig, shared::blocking};
use crate::{apparmor::AppArmorStatus, container::foreign::features::Said, selinux::SelinuxStatus};

/// How long a look at the network may take before the last finding is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// The network as it was last found; none: nobody has looked.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Held by the one who looks, on its thread: a look that is stuck in the kernel is not joined by more.
    turn: Arc<tokio::sync::Mutex<()>>,
    found: Mutex<Option<Result<(), String>>>,
}

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
    /// AppArmor of this host.
    pub apparmor: AppArmorStatus,
    /// SELinux of this host.
    pub selinux: SelinuxStatus,
    /// What this host can do, found by trying.
    pub features: Features,
    /// The runtime handlers beside the built-in one, by name, with what their runtimes say they can do; nothing, where they do not say.
    pub handlers: Vec<(String, Features)>,
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
    /// The same, with the host's network.
    pub user_namespaces_host_network: bool,
}

impl Engine {
    /// What this host and the runtime of each handler can do, both.
    async fn handlers(&self) -> Vec<(String, Features)> {
        if self.shared.config.handlers.is_empty() {
            return Vec::new();
        }
        let (shared, host) = (Arc::clone(&self.shared), self.features());
        blocking(move || {
            let of = |(name, config): (&String, &HandlerConfig)| {
                let said = shared.features.of(name, config);
                let can = |which: fn(Said) -> bool| said.is_some_and(which);
                let features = Features {
                    recursive_read_only: host.recursive_read_only && can(|said| said.recursive_read_only),
                    user_namespaces: host.user_namespaces && !config.sandboxed && can(|said| said.user_namespaces),
                    ..Features::default()
                };
                (name.clone(), features)
            };
            shared.config.handlers.iter().map(of).collect()
        })
        .await
    }

    /// What this host can do; memory only.
    #[must_use]
    pub fn features(&self) -> Features {
        let host = &self.shared.host;
        Features {
            recursive_read_only: host.recursive_attributes,
            mount_options: host.recursive_attributes,
            writable_cgroup: host.no_writable_cgroup.is_none(),
            user_namespaces: host.no_user_namespaces.is_none(),
            user_namespaces_host_network: host.no_user_namespaces_host_network.is_none(),
        }
    }

    /// Who makes cgroups; never [`CgroupDriver::Auto`].
    #[must_use]
    pub fn cgroup_driver(&self) -> CgroupDriver {
        if self.shared.host.systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs }
    }

    /// Why no sandbox with a network of its own can be made now; none: it can.
    async fn network_down(&self) -> Option<String> {
        if self.shared.network.is_none() {
            return Some("no network is configured: only sandboxes with the host's network can run".to_owned());
        }
        let looked = tokio::time::timeout(PATIENCE, async {
            let turn = Arc::clone(&self.shared.health.turn).lock_owned().await;
            let shared = Arc::clone(&self.shared);
            blocking(move || {
                let found = shared.network.as_ref().map_or(Ok(()), look);
                *shared.health.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.clone());
                drop(turn);
                found
            })
            .await
        });
        let found = match looked.await {
            Ok(found) => found,
            Err(_) => {
                let last = self.shared.health.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
                last.unwrap_or_else(|| Err(format!("the kernel's network does not answer within {PATIENCE:?}")))
            }
        };
        found.err()
    }

    /// How the engine is.
    pub async fn status(&self) -> EngineStatus {
        let (network_down, handlers) = tokio::join!(self.network_down(), self.handlers());
        let shared = &self.shared;
        EngineStatus {
            network_down,
            cgroup_driver: self.cgroup_driver(),
            cgroup_mode: match shared.cgroup_mode {
                keelson_shim::cgroup::Mode::V1 => "v1",
                keelson_shim::cgroup::Mode::Hybrid => "hybrid",
                keelson_shim::cgroup::Mode::V2 => "v2",
            },
            seccomp: std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            apparmor: shared.apparmor.status(),
            selinux: shared.selinux.status(),
            features: self.features(),
            handlers,
            sandboxes: shared.table.sandboxes().len(),
            containers: shared.table.containers().len(),
            teardown_pending: shared.pending.load(Ordering::Relaxed),
        }
    }
}

fn look(network: &Network) -> Result<(), String> {
    network.status().map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{error}{cause}")
    })
}
