//! The engine: everything a face (CRI, later others) can ask of sandboxes and containers, in domain words.
//! Its methods run on tokio workers and hand kernel work to the blocking pool; a vanished caller never cancels work begun.
//! Owns the sandboxes' tasks, the store, the network and the image service. Must never speak an outer protocol.

pub mod config;
pub mod error;
mod open;
pub(crate) mod shared;
pub(crate) mod table;

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use keelson_api::{ContainerId, SandboxId, shim::ExecSync};
use keelson_imageservice::ImageService;
use tokio::sync::oneshot;

pub use config::{CgroupDriver, EngineConfig, Rlimit};
pub use error::{ErrorKind, OpenError};

use self::{
    shared::{Shared, blocking},
    table::{Claim, ContainerEntry},
};
use crate::{
    container::{self, ContainerError, ContainerSpec, ContainerState, ContainerView},
    reconcile, recover,
    resources::Resources,
    sandbox::{
        self, SandboxError, SandboxSpec, SandboxView,
        spec::NetworkMode,
        task::{Command, Reply, Task},
    },
    shim_client::{ShimClient, ShimError},
    stats::{self, ContainerStats},
    store::record::{Record as _, SandboxRecord},
};

/// How often a name that is given back while it is asked for is asked for again.
const NAME_TRIES: usize = 8;
/// How long `drain` waits for what is under way.
const DRAIN: Duration = Duration::from_secs(20);
/// From the end of a shim's connection until its container's exit is on record, at most, and how often to look.
const EXIT_SEEN: Duration = Duration::from_secs(5);
const EXIT_LOOK: Duration = Duration::from_millis(5);

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
pub struct Engine {
    shared: Arc<Shared>,
    reconciler: Arc<tokio::task::AbortHandle>,
}

impl Engine {
    /// Takes the folders, recovers what is there, and is ready.
    ///
    /// # Errors
    /// Another daemon has the folders, or a part cannot be opened.
    pub async fn open(config: EngineConfig) -> Result<Self, OpenError> {
        let shared = blocking(move || open::open(config)).await?;
        recover::recover(&shared).await?;
        let reconciler = tokio::spawn(reconcile::run(Arc::downgrade(&shared))).abort_handle();
        Ok(Self { shared, reconciler: Arc::new(reconciler) })
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> &Arc<ImageService> {
        &self.shared.images
    }

    /// Makes a sandbox ready, or joins the making of one with the same key, or returns the ready one with the same key.
    ///
    /// # Errors
    /// See [`SandboxError`]; nothing is left of a failed one.
    pub async fn run_sandbox(&self, spec: SandboxSpec) -> Result<SandboxId, SandboxError> {
        let draining = || SandboxError::Draining { act: "run sandbox" };
        if self.shared.is_draining() {
            return Err(draining());
        }
        sandbox::check::check(&spec)?;
        if spec.namespaces.network == NetworkMode::Sandbox && self.shared.network.is_none() {
            let reason = "this daemon has no network configured: use the host's network, or configure one";
            return Err(sandbox::check::invalid("namespace_options.network", reason));
        }
        // The task that has the name may end at this very moment: a failed creation, a removal. Then the name is free.
        for _ in 0..NAME_TRIES {
            let id = self
                .shared
                .sandbox_id()
                .map_err(|error| sandbox::check::invalid("id", format!("no random bytes: {error}")))?;
            let (reply, answer) = oneshot::channel();
            match self.shared.table.claim(&spec.key, id.clone()) {
                Claim::Taken(entry) => {
                    if entry.view().is_some_and(|view| *view.spec != spec) {
                        tracing::warn!(sandbox = %entry.id,
                            "asked to run a sandbox of the same name with another configuration: the first stays");
                    }
                    if entry.commands.send(Command::Run(reply)).await.is_err() {
                        tokio::task::yield_now().await;
                        continue;
                    }
                }
                Claim::New(entry, commands) => {
                    let record = SandboxRecord {
                        version: SandboxRecord::VERSION,
                        id,
                        created_at: self.shared.created_now(),
                        state: sandbox::state::State::Creating,
                        made_cgroup: false,
                        spec: spec.clone(),
                    };
                    let mut task = Task::new(Arc::clone(&self.shared), entry, commands, record);
                    task.answer_to(reply);
                    self.shared.spawn(task.run());
                }
            }
            match answer.await {
                Ok(result) => return result,
                Err(_) if self.shared.is_draining() => break,
                Err(_) => {}
            }
        }
        Err(draining())
    }

    /// Kills what runs in it and takes its network and namespaces; repeatable, an unknown id is done.
    ///
    /// # Errors
    /// What could not be taken down; a repeat goes on.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.ask_sandbox(id, "stop sandbox", Command::Stop).await
    }

    /// Stops it and removes it with its containers; repeatable, an unknown id is done.
    ///
    /// # Errors
    /// What could not be taken down; a repeat goes on.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.ask_sandbox(id, "remove sandbox", Command::Remove).await
    }

    /// All sandboxes, oldest first, from memory.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Arc<SandboxView>> {
        self.shared.table.sandboxes()
    }

    /// The sandbox with this id or unique id prefix.
    #[must_use]
    pub fn find_sandbox(&self, id: &str) -> Option<Arc<SandboxView>> {
        self.shared.table.find_sandbox(id)
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
        let draining = || ContainerError::Draining { act: "create container" };
        if self.shared.is_draining() {
            return Err(draining());
        }
        container::check::check(&spec)?;
        let entry = self
            .shared
            .table
            .sandbox(sandbox)
            .ok_or_else(|| ContainerError::SandboxNotFound { id: sandbox.to_string() })?;
        let image = self
            .shared
            .images
            .find(&spec.image)
            .ok_or_else(|| ContainerError::ImageMissing { image: spec.image.clone() })?;
        let (reply, answer) = oneshot::channel();
        let gone =
            |_| self.container_gone(draining, ContainerError::SandboxNotFound { id: sandbox.to_string() }, sandbox);
        entry.commands.send(Command::Create(Box::new(spec), image, reply)).await.map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    }

    /// Lets its process run. Running already: done.
    ///
    /// # Errors
    /// [`ContainerError::Start`] when the program cannot be run; the container has exited then.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let entry = self.container(id)?;
        self.ask_container(id, &entry, "start container", |reply| Command::Start(id.clone(), reply)).await
    }

    /// Signal, grace, kill; returns when it has exited. A repeat with a shorter grace shortens the wait; an unknown id is done.
    ///
    /// # Errors
    /// See [`ContainerError`].
    pub async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), ContainerError> {
        let Some(entry) = self.shared.table.container(id) else { return Ok(()) };
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX / 2);
        let stopped = self
            .ask_container(id, &entry, "stop container", |reply| Command::StopContainer(id.clone(), grace, reply))
            .await;
        absent_is_done(stopped)
    }

    /// Kills it if it runs, and removes it; an unknown id is done.
    ///
    /// # Errors
    /// See [`ContainerError`].
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let Some(entry) = self.shared.table.container(id) else { return Ok(()) };
        absent_is_done(
            self.ask_container(id, &entry, "remove container", |reply| Command::RemoveContainer(id.clone(), reply))
                .await,
        )
    }

    /// All containers, oldest first, from memory.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<ContainerView>> {
        self.shared.table.containers()
    }

    /// The container with this id or unique id prefix.
    #[must_use]
    pub fn find_container(&self, id: &str) -> Option<Arc<ContainerView>> {
        self.shared.table.find_container(id)
    }

    /// Applies limits live; absent ones stay as they are.
    ///
    /// # Errors
    /// See [`ContainerError`].
    pub async fn update_container(&self, id: &ContainerId, resources: Resources) -> Result<(), ContainerError> {
        resources.check().map_err(|(field, reason)| ContainerError::Invalid { field: field.into(), reason })?;
        let entry = self.container(id)?;
        let update = |reply| Command::Update(id.clone(), Box::new(resources), reply);
        self.ask_container(id, &entry, "update container", update).await
    }

    /// Opens the log file anew, on a record boundary; only of a running container.
    ///
    /// # Errors
    /// See [`ContainerError`].
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let act = "reopen log of";
        let shim = self.running(id, act)?;
        match shim.reopen_log().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.shim_failed(id, act, error).await),
        }
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
        if args.is_empty() || args.iter().any(|word| word.contains('\0')) {
            return Err(container::check::invalid("cmd", "is empty or has a NUL: say what to run"));
        }
        let act = "exec in";
        let shim = self.running(id, act)?;
        let exec_id = self.shared.random().map(keelson_api::ExecId::from_random);
        let exec_id = exec_id.map_err(|error| container::check::invalid("id", format!("no random bytes: {error}")))?;
        let timeout_ms = timeout.map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX / 2).max(1));
        // On a task of its own: a caller who goes away does not leave the exec without a reader.
        let exec =
            tokio::spawn(async move { shim.exec(ExecSync { exec_id: exec_id.to_string(), args, timeout_ms }).await });
        let result = match exec.await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => return Err(self.shim_failed(id, act, error).await),
            Err(_) => return Err(ContainerError::Draining { act: "exec in container" }),
        };
        match timeout {
            Some(timeout) if result.timed_out => Err(ContainerError::ExecTimeout { id: id.clone(), timeout }),
            Some(_) | None => {
                Ok(ExecOutput { stdout: result.stdout, stderr: result.stderr, exit_code: result.exit_code })
            }
        }
    }

    /// What a container uses now.
    ///
    /// # Errors
    /// See [`ContainerError`].
    pub async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, ContainerError> {
        let not_found = || ContainerError::NotFound { id: id.to_string() };
        self.stats_of(vec![id.clone()]).await.pop().map(|(_, stats)| stats).ok_or_else(not_found)
    }

    /// What each of these containers uses now, in their order; one that is gone meanwhile is left out.
    pub async fn stats_of(&self, ids: Vec<ContainerId>) -> Vec<(ContainerId, ContainerStats)> {
        let shared = Arc::clone(&self.shared);
        blocking(move || stats::read_all(&shared, ids)).await
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
            sandboxes: shared.table.sandboxes().len(),
            containers: shared.table.containers().len(),
            teardown_pending: shared.pending.load(Ordering::Relaxed),
        }
    }

    /// Takes no more requests, ends what is under way, writes every record. Containers go on.
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
        self.reconciler.abort();
        for entry in self.shared.table.all_sandboxes() {
            // A task that has ended needs not be told.
            let _ = entry.commands.send(Command::Drain).await;
        }
        self.shared.images.stop_pulls().await;
        let mut tasks = std::mem::take(&mut *self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let ended = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!("operations under way did not end in time: the next start finishes them");
        }
        tasks.shutdown().await;
        self.shared.drop_reapers();
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            shared.store.flush();
            if let Some(network) = &shared.network
                && let Err(error) = network.close()
            {
                tracing::warn!(%error, "take down the unused network");
            }
        })
        .await;
    }

    async fn ask_sandbox(
        &self,
        id: &SandboxId,
        act: &'static str,
        command: impl FnOnce(Reply<(), SandboxError>) -> Command,
    ) -> Result<(), SandboxError> {
        // CRI: stopping and removing an unknown sandbox is no error.
        let Some(entry) = self.shared.table.sandbox(id) else { return Ok(()) };
        let (reply, answer) = oneshot::channel();
        let answered = match entry.commands.send(command(reply)).await {
            Ok(()) => answer.await.ok(),
            Err(_) => None,
        };
        match answered {
            Some(result) => result,
            // Its task has ended: removed meanwhile, or the daemon ends.
            None if self.shared.table.sandbox(id).is_none() => Ok(()),
            None => Err(SandboxError::Draining { act }),
        }
    }

    async fn ask_container(
        &self,
        id: &ContainerId,
        entry: &ContainerEntry,
        act: &'static str,
        command: impl FnOnce(Reply<(), ContainerError>) -> Command,
    ) -> Result<(), ContainerError> {
        let (reply, answer) = oneshot::channel();
        let gone = || {
            let absent = ContainerError::NotFound { id: id.to_string() };
            self.container_gone(|| ContainerError::Draining { act }, absent, &entry.sandbox.id)
        };
        entry.sandbox.commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Why a sandbox's task did not answer.
    fn container_gone(
        &self,
        draining: impl Fn() -> ContainerError,
        absent: ContainerError,
        sandbox: &SandboxId,
    ) -> ContainerError {
        if self.shared.table.sandbox(sandbox).is_none() { absent } else { draining() }
    }

    fn container(&self, id: &ContainerId) -> Result<Arc<ContainerEntry>, ContainerError> {
        self.shared.table.container(id).ok_or_else(|| ContainerError::NotFound { id: id.to_string() })
    }

    /// The shim of a running container.
    fn running(&self, id: &ContainerId, act: &'static str) -> Result<Arc<ShimClient>, ContainerError> {
        let entry = self.container(id)?;
        let view = entry.view().ok_or_else(|| ContainerError::NotFound { id: id.to_string() })?;
        let denied = |state| ContainerError::State { act, id: id.clone(), state };
        if let Some(state) = not_running(&view.state) {
            return Err(denied(state));
        }
        entry.shim().ok_or_else(|| denied("exiting"))
    }

    /// Why a shim did not do it. One that is gone had nothing more to do: its container has ended, and the answer is the one that
    /// a caller gets who asks after the exit is recorded.
    async fn shim_failed(&self, id: &ContainerId, act: &'static str, error: ShimError) -> ContainerError {
        if matches!(error, ShimError::Gone { .. }) {
            let deadline = Instant::now() + EXIT_SEEN;
            while Instant::now() < deadline {
                match self.running(id, act) {
                    Err(ended) => return ended,
                    Ok(_) => tokio::time::sleep(EXIT_LOOK).await,
                }
            }
        }
        ContainerError::Failed { act, id: id.clone(), stage: "ask its shim", source: Arc::new(error) }
    }
}

/// Why nothing can be asked of its process.
fn not_running(state: &ContainerState) -> Option<&'static str> {
    match state {
        ContainerState::Running { .. } => None,
        ContainerState::Created => Some("created, not started"),
        ContainerState::Exited(_) => Some("exited"),
        ContainerState::Unknown => Some("in an unknown state: its shim is gone"),
    }
}

/// CRI: stopping or removing what is not there is no error.
fn absent_is_done(result: Result<(), ContainerError>) -> Result<(), ContainerError> {
    match result {
        Err(ContainerError::NotFound { .. }) => Ok(()),
        other => other,
    }
}
