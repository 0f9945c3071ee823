//! A request for a new container, as the sandbox's task answers it: one of the same name is joined or returned, else it is checked
//! against the sandbox and its making begins.
//! Part of the sandbox's task; nothing here waits.
//! Owns nothing of its own. Must never begin a container that its sandbox does not allow.

use std::sync::Arc;

use keelson_api::ContainerId;
use keelson_imageservice::Image;

use super::{Done, Member, Reply, Task, answer, containers::denied};
use crate::{
    container::{
        self, ContainerError, ContainerSpec,
        spec::{ContainerPid, ContainerUsers},
        state::State,
    },
    engine::table::ContainerEntry,
    oci::cgroup_path,
    sandbox::{parent, state as sandbox_state},
    store::record::{ContainerRecord, Record as _},
};

impl Task {
    pub(super) fn create_container(
        &mut self,
        spec: ContainerSpec,
        image: &Arc<Image>,
        reply: Reply<ContainerId, ContainerError>,
    ) {
        if let Some(member) = self.members.values_mut().find(|member| member.spec.key == spec.key) {
            match member.record.state {
                State::Creating => member.created.push(reply),
                State::Removing(_) => answer(reply, Err(denied("create", &member.record.id, "being removed"))),
                // The same name and attempt again: the caller lost the answer.
                State::Created { .. }
                | State::Starting { .. }
                | State::Running { .. }
                | State::Stopping { .. }
                | State::Exited(_)
                | State::Unknown { .. } => answer(reply, Ok(member.record.id.clone())),
            }
            return;
        }
        match self.order(spec, image) {
            Ok(order) => {
                let id = order.record.id.clone();
                let entry = ContainerEntry::new(Arc::clone(&self.entry));
                let mut member = Member::new(order.record.clone(), Arc::clone(&entry));
                member.created.push(reply);
                self.members.insert(id.clone(), Box::new(member));
                self.shared.table.add_container(id.clone(), entry);
                let made = container::create::create(Arc::clone(&self.shared), order);
                self.work.spawn(async move { Done::ContainerMade(id, Box::new(made.await)) });
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// What is to be made, when the sandbox allows it.
    fn order(&self, spec: ContainerSpec, image: &Arc<Image>) -> Result<container::create::Order, ContainerError> {
        if let Err(denied) = sandbox_state::decide(&self.record.state, sandbox_state::Request::CreateContainer) {
            return Err(ContainerError::SandboxState { sandbox: self.record.id.to_string(), state: denied.state });
        }
        let invalid =
            |field: &str, reason: &str| ContainerError::Invalid { field: field.into(), reason: reason.into() };
        if spec.security.privileged && !self.spec.privileged {
            return Err(invalid("privileged", "the sandbox is not privileged: run it so, or the container without"));
        }
        let same = match (&spec.security.user_namespace, &self.spec.user_namespace) {
            (ContainerUsers::Sandbox, _) | (ContainerUsers::Host, None) => true,
            (ContainerUsers::Mapped(asked), Some(has)) => asked == has,
            (ContainerUsers::Host, Some(_)) | (ContainerUsers::Mapped(_), None) => false,
        };
        if !same {
            let reason =
                "not the user namespace of the sandbox: give the container the mode and the mappings of its sandbox";
            return Err(invalid("namespace_options.userns_options", reason));
        }
        if self.spec.user_namespace.is_some() && spec.security.pid == ContainerPid::Host {
            let reason = "the host's PID namespace with a user namespace: use the host's for neither or for both";
            return Err(invalid("namespace_options.pid", reason));
        }
        let target_pid = match &spec.security.pid {
            ContainerPid::Target(target) => {
                let pid = self.members.get(target).and_then(|member| member.record.state.pid());
                Some(pid.ok_or_else(|| invalid("namespace_options.target_id", "no running container of this sandbox"))?)
            }
            ContainerPid::Sandbox | ContainerPid::Own | ContainerPid::Host => None,
        };
        let id = self.shared.container_id().map_err(|error| invalid("id", &format!("no random bytes: {error}")))?;
        let log_path = match &self.spec.log_directory {
            Some(directory) if !spec.log_path.as_os_str().is_empty() => directory.join(&spec.log_path),
            Some(_) | None => std::path::PathBuf::new(),
        };
        let above = &self.spec.cgroup_parent;
        let record = ContainerRecord {
            version: ContainerRecord::VERSION,
            sandbox: self.record.id.clone(),
            created_at: self.shared.created_now(),
            state: State::Creating,
            image_id: image.id.to_string(),
            image_ref: image.digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
            log_path,
            volumes: Vec::new(),
            resources: spec.resources.clone(),
            stop_signal: container::signal::effective(spec.stop_signal, image.config.stop_signal.as_deref()),
            user: Default::default(),
            cgroups_path: cgroup_path::of(
                self.shared.host.systemd,
                above,
                parent::short(self.record.id.as_str()),
                id.as_str(),
            ),
            id,
            spec: Arc::new(spec),
        };
        Ok(container::create::Order { record, sandbox: self.record.clone(), image: Arc::clone(image), target_pid })
    }
}
