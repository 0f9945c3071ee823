//! Giving back what a container holds: processes and cgroup that a lost shim left, writable layer, files, record.
//! Everything is found by name, so that it works after a crash at any line, and a second time. Blocks: on the blocking pool.
//! Owns nothing. Must never be called while a shim still works for the container.

use std::{sync::Arc, time::Duration};

use keelson_imageservice::SnapshotKey;
use keelson_shim::cgroup::{CgroupError, Handle, Location};

use super::{ContainerError, aftermath, foreign};
use crate::{
    engine::shared::Shared,
    sandbox::{parent, release::remove_tree},
    store::record::ContainerRecord,
};

/// A killed cgroup is empty when its last process has been reaped by its parent.
const EMPTY: Duration = Duration::from_secs(10);

/// All of it.
pub(crate) fn everything(shared: &Shared, record: &ContainerRecord) -> Result<(), ContainerError> {
    leftovers(shared, record)?;
    let failed = |stage| failed(record, stage);
    aftermath::settle(&shared.state.container(&record.id), record.id.as_str())
        .map_err(|error| failed("run what its devices ask for at its end")(Arc::new(error)))?;
    if let Some(folder) = &record.spec.checkpoint {
        shared.checkpoint(folder).remove().map_err(|error| failed("remove checkpoint")(Arc::new(error)))?;
    }
    for key in snapshots(record) {
        shared.images.discard(&key).map_err(|error| failed("discard writable layer")(Arc::new(error)))?;
    }
    remove_tree(shared.state.container(&record.id).path())
        .map_err(|error| failed("remove run directory")(Arc::new(error)))?;
    shared.store.forget_container(&record.id);
    Ok(())
}

/// The holds that a container has on images: its writable layer, and one for each image it has mounted.
pub(crate) fn snapshots(record: &ContainerRecord) -> impl Iterator<Item = SnapshotKey> {
    let images = record.spec.volumes.iter().enumerate().filter(|(_, volume)| volume.image.is_some());
    std::iter::once(SnapshotKey::from(&record.id))
        .chain(images.map(|(index, _)| SnapshotKey::of_volume(&record.id, index)))
}

/// Kills what is in its cgroup and removes it; where there is none, there is nothing to do.
pub(crate) fn leftovers(shared: &Shared, record: &ContainerRecord) -> Result<(), ContainerError> {
    let failed = |stage| failed(record, stage);
    foreign::forget(shared, record.id.as_str()).map_err(|error| failed("forget runtime's state")(Arc::new(error)))?;
    cgroup(shared, &record.cgroups_path).map_err(|error| failed("remove cgroup")(Arc::new(error)))
}

/// Kills what is in a cgroup and removes it; none, and an empty path: nothing to do.
pub(crate) fn cgroup(shared: &Shared, path: &str) -> Result<(), CgroupError> {
    if path.is_empty() {
        return Ok(());
    }
    let handle = handle(shared, path)?;
    if !parent::exists(&handle.paths().path) {
        return Ok(());
    }
    if !handle.is_empty().unwrap_or(false) {
        handle.kill()?;
        let end = std::time::Instant::now() + EMPTY;
        while !handle.is_empty().unwrap_or(true) && std::time::Instant::now() < end {
            // The kernel tells of an empty v1 cgroup only by looking.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    handle.remove()
}

/// The cgroup of a container, which may not exist.
pub(crate) fn handle(shared: &Shared, cgroups_path: &str) -> Result<Handle, keelson_shim::cgroup::CgroupError> {
    Handle::at(&Location::parse(cgroups_path, shared.host.systemd)?)
}

fn failed(
    record: &ContainerRecord,
    stage: &'static str,
) -> impl FnOnce(Arc<dyn std::error::Error + Send + Sync>) -> ContainerError + use<> {
    let id = record.id.clone();
    move |source| ContainerError::Failed { act: "remove", id, stage, source }
}
