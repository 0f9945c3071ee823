//! Reading the records, and finding out which of them are still true.
//! Blocks: on the blocking pool, before any task runs.
//! Owns the decision whether the machine was started anew. Must never believe a state folder of another boot.

use std::{collections::HashSet, fs};

use keelson_shim::cgroup::{Handle, Location, Paths};

use super::{boot_id, names, recorded_boot};
use crate::{
    container::{state::State as ContainerMachine, view::Exit},
    dirs::{ContainerDir, SandboxDir},
    engine::{
        OpenError,
        shared::{Shared, now},
    },
    sandbox::{
        release,
        spec::{IpcMode, NetworkMode, SandboxSpec},
    },
    store::{Records, record::ContainerRecord, replace},
};

/// `NSFS_MAGIC` of <linux/magic.h>.
const NSFS: rustix::fs::FsWord = 0x6e73_6673;

/// All records that are to be taken over, as they are to be taken over.
pub(super) fn load(shared: &Shared) -> Result<Records, OpenError> {
    let path = shared.state.boot_id();
    let io = |act| {
        let path = path.clone();
        move |source| OpenError::Io { act, path, source }
    };
    let boot = boot_id().map_err(io("read the boot id for"))?;
    let same = recorded_boot(&shared.state).is_some_and(|recorded| recorded == boot);
    if !same {
        // Assumption 1: whatever is in the folder is from before.
        empty(shared);
    }
    let mut records = shared.store.present()?;
    let here: HashSet<_> = records.sandboxes.iter().map(|record| record.id.clone()).collect();
    let there: HashSet<_> = records.containers.iter().map(|record| record.id.clone()).collect();
    let durable = shared.store.durable()?;
    // Assumptions 2 and 3.
    for mut record in durable.sandboxes.into_iter().filter(|record| !here.contains(&record.id)) {
        if same {
            shared.store.forget_sandbox(&record.id);
            continue;
        }
        match record.state.after_reboot() {
            Some(state) => {
                record.state = state;
                records.sandboxes.push(record);
            }
            None => shared.store.forget_sandbox(&record.id),
        }
    }
    for record in durable.containers.into_iter().filter(|record| !there.contains(&record.id)) {
        if same {
            shared.store.forget_container(&record.id);
        } else {
            records.containers.push(after_reboot(record));
        }
    }
    // From here on files and rows agree again, also when the database was begun anew.
    for record in &records.sandboxes {
        let dir = shared.state.sandbox(&record.id);
        dir.make().map_err(io("make folder of a sandbox beside"))?;
        put(&shared.store.put_sandbox(record));
    }
    for record in &records.containers {
        let dir = shared.state.container(&record.id);
        dir.make().map_err(io("make folder of a container beside"))?;
        put(&shared.store.put_container(record));
    }
    replace(&path, format!("{boot}\n").as_bytes()).map_err(io("write"))?;
    Ok(records)
}

fn put<E: std::error::Error>(result: &Result<(), E>) {
    if let Err(error) = result {
        tracing::warn!(%error, "record at recovery");
    }
}

/// A container of another boot: it has ended, and nobody saw how.
pub(super) fn after_reboot(mut record: ContainerRecord) -> ContainerRecord {
    if record.state.alive() && record.state != ContainerMachine::Creating {
        let message = "the machine was started anew";
        record.state = ContainerMachine::Exited(Exit::unseen(record.state.started_at(), now(), message));
    }
    record
}

/// Takes away everything in the state folder that was made under another boot.
fn empty(shared: &Shared) {
    for name in names(&shared.state.sandboxes()) {
        if let Ok(id) = name.parse() {
            // Without a reboot (the folder was copied, the kernel's id changed) mounts may still be there.
            if let Err(failures) = release::unknown(&shared.state.sandbox(&id)) {
                tracing::warn!(sandbox = %id, %failures, "take away what is left of another boot");
            }
        }
    }
    for name in names(&shared.state.containers()) {
        if let Err(error) = release::remove_tree(&shared.state.containers().join(&name)) {
            tracing::warn!(container = name, %error, "take away what is left of another boot");
        }
    }
}

/// Whether the namespaces that the sandbox should have are where it has them.
pub(super) fn namespaces_are_pinned(dir: &SandboxDir, spec: &SandboxSpec) -> bool {
    let pinned = |path: std::path::PathBuf| rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NSFS);
    let network = spec.namespaces.network == NetworkMode::Host || (pinned(dir.net()) && pinned(dir.uts()));
    let ipc = spec.namespaces.ipc == IpcMode::Host || pinned(dir.ipc());
    network && ipc
}

/// Kills what runs in the cgroup that a container's spec names, when no record speaks of it.
pub(super) fn kill_unknown(dir: &ContainerDir) {
    let Ok(text) = fs::read(dir.config()) else { return };
    let spec: Option<keelson_shim::spec::Spec> = serde_json::from_slice(&text).ok();
    let Some(path) = spec.and_then(|spec| spec.linux).map(|linux| linux.cgroups_path) else { return };
    let Ok(location) = Location::parse(&path, false) else { return };
    let Ok(path) = location.path() else { return };
    if let Ok(handle) = Handle::open(&Paths { path, scope: None })
        && !handle.is_empty().unwrap_or(true)
        && let Err(error) = handle.kill()
    {
        tracing::warn!(%error, "kill leftover");
    }
}
