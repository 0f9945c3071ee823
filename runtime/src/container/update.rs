//! Changing the limits of a container that runs or waits to: written to its cgroup, whole or not at all.
//! Blocks for microseconds, longer while the kernel reclaims memory: on the blocking pool.
//! Owns nothing. Must never touch a cgroup above the container's, nor leave half of a refused change behind.

use std::sync::Arc;

use keelson_shim::cgroup::CgroupError;

use super::{ContainerError, release};
use crate::{engine::shared::Shared, resources::Resources, store::record::ContainerRecord};

/// Applies `change` to the live cgroup of the container whose limits the record holds.
pub(crate) fn apply(shared: &Shared, record: &ContainerRecord, change: &Resources) -> Result<(), ContainerError> {
    if !change.unified.is_empty() && !shared.host.unified {
        let reason = "this host has cgroup v1 controllers: unified settings need cgroup v2".to_owned();
        return Err(ContainerError::Unsupported { field: "resources.unified".into(), reason });
    }
    write(shared, record, change).inspect_err(|_| {
        // The first error is the one to tell. Most refusals come before the first write, and then this changes nothing.
        if let Err(error) = write(shared, record, &record.resources.undoing(change)) {
            tracing::warn!(container = %record.id, %error, "take back a refused change of limits");
        }
    })
}

fn write(shared: &Shared, record: &ContainerRecord, change: &Resources) -> Result<(), ContainerError> {
    let failed = |source: Arc<dyn std::error::Error + Send + Sync>| ContainerError::Failed {
        act: "update",
        id: record.id.clone(),
        stage: "write limits",
        source,
    };
    let limits = change.to_shim().map_err(|error| failed(Arc::new(error)))?;
    let written: Result<(), CgroupError> =
        release::handle(shared, &record.cgroups_path).and_then(|handle| handle.update(&limits));
    written.map_err(|error| failed(Arc::new(error)))
}
