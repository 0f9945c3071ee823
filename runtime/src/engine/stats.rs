//! What containers and sandboxes use now.
//! Methods of the engine; cgroups are read on the blocking pool, a few lists at a time, and an answer has a deadline. Owns nothing.
//! Must never fail for one container that ended meanwhile, nor keep a caller waiting for one the kernel is stuck at.

use std::{sync::Arc, time::Duration};

use keelson_api::{ContainerId, SandboxId};
use tokio::sync::mpsc;

use super::{
    Engine,
    shared::{Shared, now},
};
use crate::{
    container::ContainerError,
    sandbox::SandboxError,
    stats::{ContainerStats, Counted, FsUse, SandboxDetail, SandboxStats, detail, read},
};

/// What is not read by then is left out: kubelet asks again in ten seconds.
const PATIENCE: Duration = Duration::from_secs(5);

impl Engine {
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
        self.gather(move |shared, tell| read::containers(shared, &ids, |id, stats| tell((id, stats)))).await
    }

    /// What a sandbox uses now.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn sandbox_stats(&self, id: &SandboxId) -> Result<SandboxStats, SandboxError> {
        let not_found = || SandboxError::NotFound { id: id.to_string() };
        self.sandbox_stats_of(vec![id.clone()]).await.pop().ok_or_else(not_found)
    }

    /// What each of these sandboxes uses now, in their order; one that is gone meanwhile is left out.
    pub async fn sandbox_stats_of(&self, ids: Vec<SandboxId>) -> Vec<SandboxStats> {
        self.gather(move |shared, tell| read::sandboxes(shared, &ids, tell)).await
    }

    /// Everything about each of these sandboxes and their running containers, in their order; one that is gone is left out.
    pub async fn details_of(&self, ids: Vec<SandboxId>) -> Vec<SandboxDetail> {
        self.gather(move |shared, tell| detail::sandboxes(shared, &ids, tell)).await
    }

    /// What images occupy, and what writable layers do; from memory, the second as last measured.
    #[must_use]
    pub fn filesystems(&self) -> (FsUse, FsUse) {
        let shared = &self.shared;
        shared.layers.ask();
        (FsUse::of(shared.images.usage(), now()), FsUse::of(shared.images.snapshots_usage(), now()))
    }

    /// What this host counts at all.
    #[must_use]
    pub fn counted(&self) -> Counted {
        detail::counted()
    }

    /// Takes what `work` tells until it ends or patience does. Work that is stuck in the kernel keeps its turn, and its thread,
    /// until the kernel lets go: the turns bound how many threads that can be.
    async fn gather<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared, &mut dyn FnMut(T)) + Send + 'static,
    ) -> Vec<T> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let mut all = Vec::new();
        let shared = Arc::clone(&self.shared);
        let gathered = tokio::time::timeout(PATIENCE, async {
            // Never closed; without a turn it is read all the same.
            let turn = Arc::clone(&shared.stats_turns).acquire_owned().await.ok();
            let reading = Arc::clone(&shared);
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                // Nobody listens any more: the rest is not worth reading, but is short.
                work(&reading, &mut |item| drop(sender.send(item)));
            });
            while let Some(item) = receiver.recv().await {
                all.push(item);
            }
        });
        if gathered.await.is_err() {
            tracing::warn!(read = all.len(), "statistics are not read in time: the rest is left out");
        }
        all
    }
}
