//! What can be asked about checkpoints: write one of a container or of a sandbox's containers; open one for a new container (`open`).
//! Methods of the engine, on tokio workers; the work is a task of its own that a vanished caller does not stop.
//! Owns the folders of checkpoints being written, and the claim that a container is written once at a time.
//! Must never leave a container held: whatever fails, all are let go; a daemon that is killed lets go by its closed connections.

mod capture;
mod open;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use keelson_api::ContainerId;

use super::{Engine, shared::Shared};
use crate::{
    checkpoint::{CheckpointError, read::Folder},
    container::{self, ContainerError, ContainerSpec, ContainerState, ContainerView, spec::ContainerPid},
    sandbox::{SandboxSpec, SandboxView, spec::PidMode},
    shim_client::ShimClient,
};

/// When the caller names no time.
const LONGEST: Duration = Duration::from_secs(3600);

/// A container to be written.
struct Target {
    view: Arc<ContainerView>,
    shim: Arc<ShimClient>,
    work: Folder,
    /// Names of its streams, when CRIU has written it.
    streams: Vec<String>,
}

/// Where to.
enum Into {
    Container,
    Pod(Arc<SandboxView>),
}

impl Engine {
    /// Writes the memory and the changed files of a running container to an archive at `location`; it goes on running.
    ///
    /// # Errors
    /// See [`ContainerError`]; nothing is left of a failed one.
    pub async fn checkpoint_container(
        &self,
        id: &ContainerId,
        location: PathBuf,
        timeout: Option<Duration>,
    ) -> Result<(), ContainerError> {
        let target = self.target(id)?;
        self.write(vec![target], Into::Container, location, timeout).await
    }

    /// Writes the running containers of a sandbox, or those named, to one archive. All are held before the first is written, until
    /// the last is.
    ///
    /// # Errors
    /// See [`ContainerError`]; nothing is left of a failed one.
    pub async fn checkpoint_sandbox(
        &self,
        sandbox: &Arc<SandboxView>,
        ids: &[ContainerId],
        location: PathBuf,
    ) -> Result<(), ContainerError> {
        let mut targets = Vec::new();
        let mut views = self.containers();
        views.retain(|view| view.sandbox == sandbox.id);
        for id in ids {
            if !views.iter().any(|view| view.id == *id) {
                let reason = format!("container {id} is not one of sandbox {}", sandbox.id);
                return Err(container::check::invalid("container_ids", reason));
            }
        }
        for view in views {
            let running = matches!(view.state, ContainerState::Running { .. });
            if ids.contains(&view.id) || (ids.is_empty() && running) {
                targets.push(self.target(&view.id)?);
            }
        }
        if targets.is_empty() {
            return Err(container::check::invalid("container_ids", "no container of the sandbox is running"));
        }
        self.write(targets, Into::Pod(Arc::clone(sandbox)), location, None).await
    }

    fn target(&self, id: &ContainerId) -> Result<Target, ContainerError> {
        const ACT: &str = "checkpoint";
        let shim = self.running(id, ACT)?;
        let view = self.find_container(id.as_str()).ok_or_else(|| ContainerError::NotFound { id: id.to_string() })?;
        let sandbox = self.find_sandbox(view.sandbox.as_str());
        let sandbox = sandbox.ok_or_else(|| ContainerError::SandboxNotFound { id: view.sandbox.to_string() })?;
        possible(&view.spec, &sandbox.spec)?;
        let work = folder_name(&self.shared, "write").map(|name| self.shared.checkpoint(&name));
        let work = work.map_err(|source| ContainerError::Checkpoint { act: ACT, id: Some(id.clone()), source })?;
        Ok(Target { view, shim, work, streams: Vec::new() })
    }

    async fn write(
        &self,
        targets: Vec<Target>,
        into: Into,
        location: PathBuf,
        timeout: Option<Duration>,
    ) -> Result<(), ContainerError> {
        let act = "checkpoint";
        let claim = Claim::take(&self.shared, &targets)?;
        let deadline = Instant::now() + timeout.unwrap_or(LONGEST).min(LONGEST);
        let shared = Arc::clone(&self.shared);
        let work = tokio::spawn(async move {
            let written = capture::write_all(&shared, targets, into, location, deadline).await;
            drop(claim);
            written
        });
        let (id, error) = match work.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(failed)) => failed,
            Err(_) => return Err(ContainerError::Draining { act }),
        };
        match (error, id) {
            (capture::Failed::Shim(error), Some(id)) => Err(self.shim_failed(&id, act, error).await),
            (capture::Failed::Shim(error), None) => {
                Err(container::check::invalid("checkpoint", format!("its shim: {error}")))
            }
            (capture::Failed::Archive(source), id) => Err(ContainerError::Checkpoint { act, id, source }),
        }
    }
}

/// What cannot be written or restored yet is told before anything is touched: restored processes would not be where the request says.
fn possible(spec: &ContainerSpec, sandbox: &SandboxSpec) -> Result<(), ContainerError> {
    let unsupported = |field: &str, reason: &str| {
        Err(ContainerError::Unsupported { field: field.to_owned(), reason: reason.to_owned() })
    };
    if !matches!(sandbox.handler.as_str(), "" | "native") {
        return unsupported(
            "runtime_handler",
            "only containers of keelson's own launcher can be checkpointed or restored",
        );
    }
    if spec.terminal {
        return unsupported(
            "tty",
            "a container with a terminal cannot be checkpointed or restored: its other end is outside",
        );
    }
    if sandbox.user_namespace.is_some() {
        return unsupported("userns_options", "a container in a user namespace cannot be checkpointed or restored yet");
    }
    let own = match (&spec.security.pid, sandbox.namespaces.pid) {
        (ContainerPid::Own, _) | (ContainerPid::Sandbox, PidMode::Container) => true,
        (ContainerPid::Sandbox, PidMode::Sandbox | PidMode::Host) => false,
        (ContainerPid::Host | ContainerPid::Target(_), _) => false,
    };
    if !own {
        return unsupported(
            "namespace_options.pid",
            "only a container with a PID namespace of its own can be checkpointed or restored",
        );
    }
    Ok(())
}

fn folder_name(shared: &Shared, purpose: &str) -> Result<String, CheckpointError> {
    let random: [u8; 8] =
        shared.random().map_err(CheckpointError::io("read random bytes from", Path::new("/dev/urandom")))?;
    Ok(format!("{purpose}-{:016x}", u64::from_be_bytes(random)))
}

fn discard(folder: &Folder) {
    if let Err(error) = folder.remove() {
        tracing::warn!(path = %folder.path().display(), %error, "remove folder of a checkpoint: the next start tries again");
    }
}

/// Containers that are being written.
struct Claim {
    shared: Arc<Shared>,
    ids: Vec<ContainerId>,
}

impl Claim {
    fn take(shared: &Arc<Shared>, targets: &[Target]) -> Result<Self, ContainerError> {
        let mut taken = shared.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let ids: Vec<ContainerId> = targets.iter().map(|target| target.view.id.clone()).collect();
        if let Some(id) = ids.iter().find(|id| taken.contains(*id)) {
            let state = "being checkpointed already";
            return Err(ContainerError::State { act: "checkpoint", id: id.clone(), state });
        }
        taken.extend(ids.iter().cloned());
        Ok(Self { shared: Arc::clone(shared), ids })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut taken = self.shared.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|id| !self.ids.contains(id));
    }
}

/// Ids of containers that are being written.
pub(crate) type Claims = std::sync::Mutex<BTreeSet<ContainerId>>;

/// Takes away folders of checkpoints that no container needs: an archive that was being written, one that was unpacked for nothing.
pub(crate) fn sweep(shared: &Shared, kept: &std::collections::HashSet<String>) {
    let root = shared.config.root.join(Shared::CHECKPOINTS);
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| !kept.contains(name)) {
        discard(&shared.checkpoint(&name));
    }
}
