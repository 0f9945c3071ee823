//! The engine: everything a face (CRI, later others) can ask of sandboxes and containers, in domain words.
//! Its methods run on tokio workers and hand kernel work to the blocking pool; a vanished caller never cancels work begun.
//! Owns the sandboxes' tasks, the store, the network and the image service. Must never speak an outer protocol.

pub mod config;
pub mod error;

use std::{sync::Arc, time::Duration};

use keelson_api::{ContainerId, SandboxId};

pub use config::{CgroupDriver, EngineConfig, Rlimit};
pub use error::{ErrorKind, OpenError};

use crate::{
    container::{ContainerError, ContainerSpec, ContainerView},
    resources::Resources,
    sandbox::{SandboxError, SandboxSpec, SandboxView},
    stats::ContainerStats,
};

/// What an exec gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// At most 16 MiB.
    pub stdout: Vec<u8>,
    /// At most 16 MiB.
    pub stderr: Vec<u8>,
    /// Exit code, 128 + signal.
    pub exit_code: i32,
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
    /// Sandboxes known.
    pub sandboxes: usize,
    /// Containers known.
    pub containers: usize,
    /// Teardown work not finished yet.
    pub teardown_pending: usize,
}

/// A handle on the engine; clones are the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    config: EngineConfig,
}

impl Engine {
    /// Takes the folders, recovers what is there, and is ready.
    ///
    /// # Errors
    /// Another daemon has the folders, or a part cannot be opened.
    pub async fn open(config: EngineConfig) -> Result<Self, OpenError> {
        Ok(Self(Arc::new(Inner { config })))
    }

    /// Makes a sandbox ready, or joins the making of one with the same key, or returns the ready one with the same key.
    ///
    /// # Errors
    /// See [`SandboxError`]; nothing is left of a failed one.
    pub async fn run_sandbox(&self, spec: SandboxSpec) -> Result<SandboxId, SandboxError> {
        let _ = spec;
        Err(SandboxError::Draining { act: "run sandbox" })
    }

    /// Kills what runs in it and takes its network and namespaces; repeatable, an unknown id is done.
    ///
    /// # Errors
    /// What could not be taken down; a repeat goes on.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), SandboxError> {
        let _ = id;
        Err(SandboxError::Draining { act: "stop sandbox" })
    }

    /// Stops it and removes it with its containers; repeatable, an unknown id is done.
    ///
    /// # Errors
    /// What could not be taken down; a repeat goes on.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), SandboxError> {
        let _ = id;
        Err(SandboxError::Draining { act: "remove sandbox" })
    }

    /// All sandboxes, oldest first, from memory.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Arc<SandboxView>> {
        Vec::new()
    }

    /// The sandbox with this id or unique id prefix.
    #[must_use]
    pub fn find_sandbox(&self, id: &str) -> Option<Arc<SandboxView>> {
        let _ = id;
        None
    }

    /// Makes a container with its process waiting to be started, or joins or returns the one with the same key.
    ///
    /// # Errors
    /// See [`ContainerError`]; nothing is left of a failed one.
    pub async fn create_container(
        &self,
        sandbox: &SandboxId,
        spec: ContainerSpec,
    ) -> Result<ContainerId, ContainerError> {
        let _ = (sandbox, spec);
        Err(ContainerError::Draining { act: "create container" })
    }

    /// Lets its process run; starting a running container is an error of state, joining a running start is not.
    ///
    /// # Errors
    /// [`ContainerError::Start`] when the program cannot be run; the container has exited then.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let _ = id;
        Err(ContainerError::Draining { act: "start container" })
    }

    /// Signal, grace, kill; returns when it has exited. A repeat with a shorter grace shortens the wait; an unknown id is done.
    ///
    /// # Errors
    /// See [`ContainerError`].
    pub async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), ContainerError> {
        let _ = (id, grace);
        Err(ContainerError::Draining { act: "stop container" })
    }

    /// Kills it if it runs, and removes it; an unknown id is done.
    ///
    /// # Errors
    /// See [`ContainerError`].
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let _ = id;
        Err(ContainerError::Draining { act: "remove container" })
    }

    /// All containers, oldest first, from memory.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<ContainerView>> {
        Vec::new()
    }

    /// The container with this id or unique id prefix.
    #[must_use]
    pub fn find_container(&self, id: &str) -> Option<Arc<ContainerView>> {
        let _ = id;
        None
    }

    /// Applies limits live; absent ones stay as they are. A container that is not running keeps them for its start.
    ///
    /// # Errors
    /// See [`ContainerError`].
    pub async fn update_container(&self, id: &ContainerId, resources: Resources) -> Result<(), ContainerError> {
        let _ = (id, resources);
        Err(ContainerError::Draining { act: "update container" })
    }

    /// Opens the log file anew, on a record boundary; only of a running container.
    ///
    /// # Errors
    /// See [`ContainerError`].
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let _ = id;
        Err(ContainerError::Draining { act: "reopen log of container" })
    }

    /// Runs a program in a running container to its end. `None`: no time limit.
    ///
    /// # Errors
    /// [`ContainerError::ExecTimeout`], or why it could not run.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        args: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, ContainerError> {
        let _ = (id, args, timeout);
        Err(ContainerError::Draining { act: "exec in container" })
    }

    /// What a container uses now.
    ///
    /// # Errors
    /// See [`ContainerError`].
    pub async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, ContainerError> {
        let _ = id;
        Err(ContainerError::Draining { act: "read stats of container" })
    }

    /// What each of these containers uses now; one that is gone meanwhile is left out.
    pub async fn stats_of(&self, ids: Vec<ContainerId>) -> Vec<(ContainerId, ContainerStats)> {
        let _ = ids;
        Vec::new()
    }

    /// How the engine is.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        EngineStatus {
            network_down: None,
            cgroup_driver: self.0.config.cgroup_driver,
            cgroup_mode: "v2",
            seccomp: true,
            sandboxes: 0,
            containers: 0,
            teardown_pending: 0,
        }
    }

    /// Takes no more requests, ends what is under way, writes every record. Containers go on.
    pub async fn drain(&self) {}
}
