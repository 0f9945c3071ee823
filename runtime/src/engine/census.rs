//! How much the engine has, from memory, and whether it answers: for whoever watches the node.
//! Methods of the engine, on tokio workers or the blocking pool; nothing is asked of the kernel. Owns nothing.
//! Must never wait for one sandbox's work.

use std::sync::atomic::Ordering;

use keelson_imageservice::PullCounts;
use tokio::sync::oneshot;

use super::{Engine, shared::blocking};
use crate::{
    container::ContainerState,
    sandbox::{task::Command, view::SandboxPhase},
};

/// What there is, by state.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Census {
    pub(crate) sandboxes_ready: usize,
    pub(crate) sandboxes_not_ready: usize,
    pub(crate) containers_created: usize,
    pub(crate) containers_running: usize,
    pub(crate) containers_exited: usize,
    pub(crate) containers_unknown: usize,
    pub(crate) images: usize,
    /// Teardown work begun and not done.
    pub(crate) teardown_pending: usize,
    pub(crate) pulls: PullCounts,
}

impl Engine {
    /// What there is.
    pub(crate) fn census(&self) -> Census {
        let mut census = Census {
            images: self.shared.images.list().len(),
            teardown_pending: self.shared.pending.load(Ordering::Relaxed),
            pulls: self.shared.images.pull_counts(),
            ..Census::default()
        };
        for sandbox in self.shared.table.sandboxes() {
            match sandbox.phase {
                SandboxPhase::Ready => census.sandboxes_ready += 1,
                SandboxPhase::NotReady => census.sandboxes_not_ready += 1,
            }
        }
        for container in self.shared.table.containers() {
            match container.state {
                ContainerState::Created => census.containers_created += 1,
                ContainerState::Running { .. } => census.containers_running += 1,
                ContainerState::Exited(_) => census.containers_exited += 1,
                ContainerState::Unknown => census.containers_unknown += 1,
            }
        }
        census
    }

    /// Goes the way of a request without changing anything: through every sandbox's queue, the table and the blocking pool.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub(crate) async fn probe(&self) -> Result<(), &'static str> {
        if self.shared.is_draining() {
            return Err("stopping");
        }
        let mut answers = Vec::new();
        for entry in self.shared.table.all_sandboxes() {
            let (reply, answer) = oneshot::channel();
            // One that has ended meanwhile needs not answer.
            if entry.commands.send(Command::Probe(reply)).await.is_ok() {
                answers.push(answer);
            }
        }
        for answer in answers {
            let _ = answer.await;
        }
        let engine = self.clone();
        blocking(move || engine.census()).await;
        Ok(())
    }
}
