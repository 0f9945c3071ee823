//! What containers use now.
//! Methods of the engine; cgroups are read on the blocking pool. Owns nothing.
//! Must never fail for one container that ended meanwhile.

use std::sync::Arc;

use keelson_api::ContainerId;

use super::{Engine, shared::blocking};
use crate::{
    container::ContainerError,
    stats::{self, ContainerStats},
};

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
        let shared = Arc::clone(&self.shared);
        blocking(move || stats::read_all(&shared, ids)).await
    }
}
