//! Recovery: what a daemon finds when it starts, and what it makes of it. Runs once, before the first request is served.
//! File work on the blocking pool; shims are asked all at once, each with a deadline.
//! Owns nothing afterwards: every sandbox goes to a task of its own. Must never kill what a living shim holds.
//!
//! Assumptions, each with a test of its number (`assumption_N_..`):
//! 1. Records in the state folder belong to this boot exactly when its `boot_id` is the kernel's. Else nothing in it is true.
//! 2. In the same boot a file is newer than its row, and a row without a file was removed: rows are written and deleted behind.
//!    After a reboot the files of what is kept are written first, then the boot's id, so that this holds from the first moment.
//! 3. After a reboot no process, mount or namespace of ours is left: sandboxes are not ready, containers ended unseen (255), and
//!    what lives on disk or in the network's records is given back.
//! 4. A sandbox or container recorded as being created was never told to anybody: it is undone, and a retry makes another.
//! 5. A shim outlives the daemon. One that answers tells the state; one that does not has left an exit record; one that left none
//!    is lost, and what runs in its container's cgroup is killed.
//! 6. A recorded stop or removal was promised: it is finished.
//! 7. What no record speaks of is a leftover of an effect before its record, or after its end: it is taken away.
//! 8. A record that cannot be read stands for nothing that is worth keeping the daemon from starting.

mod load;
mod probe;

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::Path,
    sync::Arc,
};

use keelson_api::{ContainerId, ExitRecord, SandboxId};
use keelson_imageservice::SnapshotKey;
use tokio::task::JoinSet;

use crate::{
    container::{self, state::State as ContainerMachine},
    dirs::StateDir,
    engine::{
        OpenError,
        shared::{Shared, blocking},
        table::{Claim, ContainerEntry},
    },
    sandbox::{
        parent, release,
        state::State as SandboxMachine,
        task::{Task, member::Member},
    },
    store::{
        Records, read_bounded,
        record::{ContainerRecord, SandboxRecord},
    },
};

/// An exit record is some hundred bytes.
const EXIT_MAX: u64 = 64 * 1024;

/// Takes over what is there.
pub(crate) async fn recover(shared: &Arc<Shared>) -> Result<(), OpenError> {
    let records = {
        let shared = Arc::clone(shared);
        blocking(move || load::load(&shared)).await?
    };
    let (sandboxes, orphans) = sort(records);
    let snapshots: HashSet<SnapshotKey> = sandboxes
        .values()
        .flat_map(|(_, containers)| containers.iter().flat_map(container::release::snapshots))
        .collect();
    let ids: HashSet<SandboxId> = sandboxes.values().map(|(record, _)| record.id.clone()).collect();
    let keys: HashSet<ContainerId> =
        sandboxes.values().flat_map(|(_, containers)| containers.iter().map(|record| record.id.clone())).collect();

    let checkpoints: HashSet<String> = sandboxes
        .values()
        .flat_map(|(_, containers)| containers.iter().filter_map(|record| record.spec.checkpoint.clone()))
        .collect();

    // Assumption 4, and containers whose sandbox is gone.
    let mut undo = JoinSet::new();
    for record in orphans.containers {
        let shared = Arc::clone(shared);
        undo.spawn(async move { undo_container(shared, record).await });
    }
    for record in orphans.sandboxes {
        let shared = Arc::clone(shared);
        undo.spawn(async move { undo_sandbox(shared, record).await });
    }
    undo.join_all().await;

    let mut tasks = JoinSet::new();
    for (record, containers) in sandboxes.into_values() {
        let shared = Arc::clone(shared);
        tasks.spawn(async move { resume(&shared, record, containers).await });
    }
    for task in tasks.join_all().await.into_iter().flatten() {
        shared.spawn(task.run());
    }

    let shared = Arc::clone(shared);
    let of_checkpoints = Arc::clone(&shared);
    blocking(move || crate::engine::checkpoint::sweep(&of_checkpoints, &checkpoints)).await;
    blocking(move || sweep(&shared, &ids, &keys, &snapshots)).await;
    Ok(())
}

/// Sandboxes with their containers, and what is to be undone.
fn sort(records: Records) -> (BTreeMap<SandboxId, (SandboxRecord, Vec<ContainerRecord>)>, Records) {
    let mut orphans = Records::default();
    let mut sandboxes = BTreeMap::new();
    for record in records.sandboxes {
        if record.state == SandboxMachine::Creating {
            orphans.sandboxes.push(record);
        } else {
            sandboxes.insert(record.id.clone(), (record, Vec::new()));
        }
    }
    for record in records.containers {
        match sandboxes.get_mut(&record.sandbox) {
            Some((_, containers)) if record.state != ContainerMachine::Creating => containers.push(record),
            Some(_) | None => orphans.containers.push(record),
        }
    }
    (sandboxes, orphans)
}

async fn undo_container(shared: Arc<Shared>, record: ContainerRecord) {
    let id = record.id.clone();
    probe::end(&shared.state.container(&id), id.as_str()).await;
    if let Err(error) = blocking(move || container::release::everything(&shared, &record)).await {
        tracing::warn!(container = %id, %error, "undo half-made container");
    }
}

async fn undo_sandbox(shared: Arc<Shared>, record: SandboxRecord) {
    let id = record.id.clone();
    probe::end(&shared.state.sandbox(&id).holder(), id.as_str()).await;
    if let Err(error) = blocking(move || release::everything(&shared, &record)).await {
        tracing::warn!(sandbox = %id, %error, "undo half-made sandbox");
    }
}

/// The sandbox's task, with the shims that still run.
async fn resume(shared: &Arc<Shared>, mut record: SandboxRecord, containers: Vec<ContainerRecord>) -> Option<Task> {
    shared.not_before(record.created_at);
    parent::remember(shared, &record);
    let (entry, commands) = match shared.table.claim(&record.spec.key, record.id.clone()) {
        Claim::New(entry, commands) => (entry, commands),
        Claim::Taken(other) => {
            // Cannot come from us; two sandboxes with one name cannot be told apart, so the second goes.
            tracing::error!(sandbox = %record.id, other = %other.id, "two sandboxes have the same name: removing one");
            undo_sandbox(Arc::clone(shared), record).await;
            for record in containers {
                undo_container(Arc::clone(shared), record).await;
            }
            return None;
        }
    };
    if let Some(level) = &record.level {
        entry.hold_level(level);
    }
    let mut holder = None;
    if let SandboxMachine::Ready { holder_pid, .. } = record.state {
        let ready = load::namespaces_are_pinned(&shared.state.sandbox(&record.id), &record.spec);
        if ready && holder_pid.is_some() {
            holder = probe::connect(&shared.state.sandbox(&record.id).holder(), record.id.as_str()).await;
        }
        if !ready || (holder_pid.is_some() && holder.is_none()) {
            tracing::warn!(sandbox = %record.id, "its namespaces or its holder are gone: stopping it");
            record.state = SandboxMachine::Stopping;
        }
    }
    let mut probes = JoinSet::new();
    for container in containers {
        shared.not_before(container.created_at);
        let shared = Arc::clone(shared);
        probes.spawn(async move { probe::probe(&shared, container).await });
    }
    let found = probes.join_all().await;
    let mut task = Task::new(Arc::clone(shared), Arc::clone(&entry), commands, record);
    for probe::Found { record, shim, watch } in found {
        let mut member = Member::new(record, ContainerEntry::new(Arc::clone(&entry)));
        member.set_shim(shim);
        task.adopt(member, watch);
    }
    if let Some((shim, watch)) = holder {
        task.adopt_holder(shim, watch);
    }
    // Before any request: a sandbox that is not seen after a restart would be made a second time.
    task.publish();
    Some(task)
}

/// Assumption 7. Failures are told, and left to the next start.
fn sweep(
    shared: &Shared,
    sandboxes: &HashSet<SandboxId>,
    containers: &HashSet<ContainerId>,
    snapshots: &HashSet<SnapshotKey>,
) {
    let state = &shared.state;
    for name in names(&state.sandboxes()) {
        let Ok(id) = name.parse::<SandboxId>() else { continue };
        if !sandboxes.contains(&id) && shared.table.sandbox(&id).is_none() {
            tracing::info!(sandbox = %id, "taking away a leftover that no record speaks of");
            if let Err(failures) = release::unknown(&state.sandbox(&id)) {
                tracing::warn!(sandbox = %id, %failures, "take away leftover");
            }
        }
    }
    for name in names(&state.containers()) {
        let Ok(id) = name.parse::<ContainerId>() else { continue };
        if !containers.contains(&id) {
            tracing::info!(container = %id, "taking away a leftover that no record speaks of");
            load::kill_unknown(&state.container(&id));
            if let Err(error) = release::remove_tree(state.container(&id).path()) {
                tracing::warn!(container = %id, %error, "take away leftover");
            }
        }
    }
    if let Some(network) = &shared.network
        && let Err(error) = network.retain(sandboxes)
    {
        tracing::warn!(%error, "give back leftover network attachments");
    }
    shared.images.retain(snapshots);
}

/// Names in a folder of ours.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// How a container ended, as its shim wrote it; none where it did not.
pub(crate) fn read_exit(path: &Path) -> Option<ExitRecord> {
    let bytes = match read_bounded(path, EXIT_MAX) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "read exit record");
            }
            return None;
        }
    };
    serde_json::from_slice(&bytes)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "decode exit record"))
        .ok()
}

/// The kernel's name for this boot.
pub(crate) fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

/// The boot under which the state folder was filled; none: an empty folder.
pub(crate) fn recorded_boot(state: &StateDir) -> Option<String> {
    fs::read_to_string(state.boot_id()).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests;
