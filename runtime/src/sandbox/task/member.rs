//! One container as its sandbox's task holds it: record, shim, and who waits for what.
//! Plain data of the sandbox's task. Owns the client of the container's shim.
//! Must never be shown to others but through its view.

use std::sync::Arc;

use keelson_api::{ContainerId, ExitRecord};

use super::Reply;
use crate::{
    container::{ContainerError, ContainerSpec, ContainerView},
    dirs::StateDir,
    engine::table::ContainerEntry,
    shim_client::ShimClient,
    store::record::ContainerRecord,
};

/// See the module.
pub(crate) struct Member {
    pub(crate) record: ContainerRecord,
    pub(crate) spec: Arc<ContainerSpec>,
    pub(crate) entry: Arc<ContainerEntry>,
    pub(crate) shim: Option<Arc<ShimClient>>,
    pub(super) created: Vec<Reply<ContainerId, ContainerError>>,
    pub(super) started: Vec<Reply<(), ContainerError>>,
    pub(super) stopped: Vec<Reply<(), ContainerError>>,
    pub(super) removed: Vec<Reply<(), ContainerError>>,
    /// The answer to a start has not come yet.
    pub(super) starting: bool,
    /// The shim was gone before the answer to the start was looked at; what it left.
    pub(super) held: Option<Option<ExitRecord>>,
    /// It goes as soon as it is dead.
    pub(super) removing: bool,
    /// A removal is under way.
    pub(super) taking: bool,
    /// Its init was not there when the reconciler last looked.
    pub(super) missed: bool,
}

impl Member {
    pub(crate) fn new(record: ContainerRecord, entry: Arc<ContainerEntry>) -> Self {
        let spec = Arc::clone(&record.spec);
        Self {
            record,
            spec,
            entry,
            shim: None,
            created: Vec::new(),
            started: Vec::new(),
            stopped: Vec::new(),
            removed: Vec::new(),
            starting: false,
            held: None,
            removing: false,
            taking: false,
            missed: false,
        }
    }

    /// Its shim is this one, or none any more.
    pub(crate) fn set_shim(&mut self, shim: Option<Arc<ShimClient>>) {
        self.entry.set_shim(shim.clone());
        self.shim = shim;
    }

    /// Shows it as it is now.
    pub(crate) fn publish(&self, state: &StateDir) {
        let record = &self.record;
        self.entry.show(Some(Arc::new(ContainerView {
            id: record.id.clone(),
            sandbox: record.sandbox.clone(),
            spec: Arc::clone(&self.spec),
            state: record.state.outside(),
            created_at: record.created_at,
            image_id: record.image_id.clone(),
            image_ref: record.image_ref.clone(),
            log_path: record.log_path.clone(),
            volumes: record.volumes.clone(),
            resources: record.resources.clone(),
            stop_signal: record.stop_signal,
            user: record.user.clone(),
            pid: record.state.pid(),
            run_dir: state.container(&record.id).path().to_owned(),
        })));
    }
}
