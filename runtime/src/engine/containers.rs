//! What can be asked of containers: create, start, stop, remove, list, find, update, reopen the log.
//! Methods of the engine, on tokio workers: each puts a request on the queue of the sandbox's task and waits for its answer, or
//! asks the container's shim.
//! Owns nothing. Must never decide on a state: that is the task's.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use keelson_api::{ContainerId, SandboxId};
use keelson_imageservice::Image;
use tokio::sync::oneshot;

use super::{
    Engine, ErrorKind,
    table::{ContainerEntry, SandboxEntry},
};
use crate::{
    container::{self, ContainerError, ContainerSpec, ContainerState, ContainerView},
    resources::Resources,
    sandbox::task::{Command, Reply},
    shim_client::{ShimClient, ShimError},
};

/// From the end of a shim's connection until its container's exit is on record, at most, and how often to look.
const EXIT_SEEN: Duration = Duration::from_secs(5);
/// The same when the shim is still there to say so.
const EXIT_SAID: Duration = Duration::from_secs(1);
const EXIT_LOOK: Duration = Duration::from_millis(5);

impl Engine {
    /// Makes a container with its process waiting to be started, or joins or returns the one with the same key.
    ///
    /// # Errors
    /// See [`ContainerError`]; nothing is left of a failed one.
    pub async fn create_container(
        &self,
        sandbox: &SandboxId,
        mut spec: ContainerSpec,
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
        let source = match self.source(&spec).await? {
            Err(image) => return self.create_from(sandbox, entry, spec, image).await,
            Ok(source) => source,
        };
        let image = self.open_checkpoint(sandbox, &mut spec, source).await?;
        let folder = spec.checkpoint.clone().unwrap_or_default();
        let made = self.create_from(sandbox, entry, spec, image).await;
        self.close_checkpoint(folder, made.as_ref().ok()).await;
        made
    }

    async fn create_from(
        &self,
        sandbox: &SandboxId,
        entry: Arc<SandboxEntry>,
        spec: ContainerSpec,
        image: Arc<Image>,
    ) -> Result<ContainerId, ContainerError> {
        let draining = || ContainerError::Draining { act: "create container" };
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

    /// The containers of one sandbox, oldest first, from memory.
    #[must_use]
    pub fn containers_of(&self, sandbox: &SandboxId) -> Vec<Arc<ContainerView>> {
        self.shared.table.containers_of(sandbox)
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
    pub(super) fn running(&self, id: &ContainerId, act: &'static str) -> Result<Arc<ShimClient>, ContainerError> {
        let entry = self.container(id)?;
        let view = entry.view().ok_or_else(|| ContainerError::NotFound { id: id.to_string() })?;
        let denied = |state| ContainerError::State { act, id: id.clone(), state };
        if let Some(state) = not_running(&view.state) {
            return Err(denied(state));
        }
        entry.shim().ok_or_else(|| denied("exiting"))
    }

    /// Why a shim did not do it. One that is gone had nothing more to do, and one that says that the state is another mostly means
    /// the same: its container has ended, and the answer is the one that a caller gets who asks after the exit is recorded.
    pub(super) async fn shim_failed(&self, id: &ContainerId, act: &'static str, error: ShimError) -> ContainerError {
        let patience = match &error {
            ShimError::Gone { .. } => Some(EXIT_SEEN),
            error if error.kind() == ErrorKind::State => Some(EXIT_SAID),
            ShimError::Refused { .. }
            | ShimError::Deadline { .. }
            | ShimError::Unexpected { .. }
            | ShimError::TooLong { .. } => None,
        };
        if let Some(patience) = patience {
            let deadline = Instant::now() + patience;
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
