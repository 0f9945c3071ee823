//! What can be asked of sandboxes: run, stop, remove, list, find.
//! Methods of the engine, on tokio workers: each puts a request on the queue of the sandbox's task and waits for its answer.
//! Owns nothing. Must never decide on a state: that is the task's.

use std::sync::Arc;

use keelson_api::SandboxId;
use tokio::sync::oneshot;

use super::{
    Engine,
    shared::blocking,
    table::{Claim, SandboxEntry},
};
use crate::{
    resources::Resources,
    sandbox::{
        self, SandboxError, SandboxSpec, SandboxView,
        spec::{NetworkMode, Whole},
        task::{Command, Reply, Task},
    },
    selinux::Refusal,
    store::record::{Record as _, SandboxRecord},
};

/// How often a name that is given back while it is asked for is asked for again.
const NAME_TRIES: usize = 8;

impl Engine {
    /// Makes a sandbox ready, or joins the making of one with the same key, or returns the ready one with the same key.
    ///
    /// # Errors
    /// See [`SandboxError`]; nothing is left of a failed one.
    pub async fn run_sandbox(&self, spec: SandboxSpec) -> Result<SandboxId, SandboxError> {
        let draining = || SandboxError::Draining { act: "run sandbox" };
        if self.shared.is_draining() {
            return Err(draining());
        }
        sandbox::check::check(&spec)?;
        sandbox::handler::check(&self.shared.config.handlers, &spec)?;
        if spec.namespaces.network == NetworkMode::Sandbox && self.shared.network.is_none() {
            let reason = "this daemon has no network configured: use the host's network, or configure one";
            return Err(sandbox::check::invalid("namespace_options.network", reason));
        }
        let host = &self.shared.host;
        let missing = match spec.namespaces.network {
            NetworkMode::Sandbox => &host.no_user_namespaces,
            NetworkMode::Host => &host.no_user_namespaces_host_network,
        };
        if spec.user_namespace.is_some()
            && let Some(config) = self.shared.config.handlers.get(&spec.handler).cloned()
        {
            let (shared, name) = (Arc::clone(&self.shared), spec.handler.clone());
            let said = blocking(move || shared.features.of(&name, &config)).await;
            if said.is_some_and(|said| !said.user_namespaces) {
                let reason =
                    format!("the runtime of the handler `{}` says that it makes no user namespaces", spec.handler);
                return Err(SandboxError::Unsupported { field: "namespace_options.userns_options".into(), reason });
            }
        }
        if spec.user_namespace.is_some()
            && let Some(reason) = missing
        {
            return Err(SandboxError::Unsupported {
                field: "namespace_options.userns_options".into(),
                reason: format!("user namespaces cannot be had on this host: {reason}"),
            });
        }
        let level = self.shared.selinux.wants_level(spec.selinux.as_ref()).map_err(Refusal::of_sandbox)?;
        let spec = Arc::new(spec);
        // The task that has the name may end at this very moment: a failed creation, a removal. Then the name is free.
        for _ in 0..NAME_TRIES {
            let id = self
                .shared
                .sandbox_id()
                .map_err(|error| sandbox::check::invalid("id", format!("no random bytes: {error}")))?;
            let (reply, answer) = oneshot::channel();
            match self.shared.table.claim(&spec.key, id.clone()) {
                Claim::Taken(entry) => {
                    if entry.view().is_some_and(|view| view.spec != spec) {
                        tracing::warn!(sandbox = %entry.id,
                            "asked to run a sandbox of the same name with another configuration: the first stays");
                    }
                    if entry.commands.send(Command::Run(reply)).await.is_err() {
                        tokio::task::yield_now().await;
                        continue;
                    }
                }
                Claim::New(entry, commands) => {
                    let level = level.then(|| self.level(&entry, &spec)).flatten();
                    let record = SandboxRecord {
                        version: SandboxRecord::VERSION,
                        id,
                        created_at: self.shared.created_now(),
                        stopped_at: None,
                        state: sandbox::state::State::Creating,
                        made_cgroup: false,
                        level,
                        spec: Arc::clone(&spec),
                    };
                    let mut task = Task::new(Arc::clone(&self.shared), entry, commands, record);
                    task.answer_to(reply);
                    self.shared.spawn(task.run());
                }
            }
            match answer.await {
                Ok(result) => return result,
                Err(_) if self.shared.is_draining() => break,
                Err(_) => {}
            }
        }
        Err(draining())
    }

    /// The SELinux level of a new sandbox: the one it asks for, else one that no other sandbox has.
    fn level(&self, entry: &SandboxEntry, spec: &SandboxSpec) -> Option<String> {
        let asked = spec.selinux.as_ref().map(|label| label.level.as_str()).filter(|level| !level.is_empty());
        if let Some(level) = asked {
            entry.hold_level(level);
            return Some(level.to_owned());
        }
        // Which one it begins with is nobody's secret; random, so that a sandbox's files are not the next one's at once.
        let random = self.shared.random().map_or(0, u32::from_ne_bytes);
        let level = self.shared.table.level(entry, random);
        if level.is_none() {
            tracing::warn!(sandbox = %entry.id, "every SELinux level is taken: its containers are not kept apart from others by one");
        }
        level
    }

    /// Kills what runs in it and takes its network and namespaces; repeatable, an unknown id is done.
    ///
    /// # Errors
    /// What could not be taken down; a repeat goes on.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.ask_sandbox(id, "stop sandbox", Command::Stop).await
    }

    /// Stops it and removes it with its containers; repeatable, an unknown id is done.
    ///
    /// # Errors
    /// What could not be taken down; a repeat goes on.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.ask_sandbox(id, "remove sandbox", Command::Remove).await
    }

    /// Takes note of what the workload may use as a whole, and of what running it costs. Both are told, not applied: the cgroup
    /// of the workload is the caller's.
    ///
    /// # Errors
    /// It is not there or not ready, or a value makes no sense.
    pub async fn update_sandbox(&self, id: &SandboxId, whole: Whole) -> Result<(), SandboxError> {
        for (part, resources) in [("resources", &whole.resources), ("overhead", &whole.overhead)] {
            if let Some(Err((field, reason))) = resources.as_ref().map(Resources::check) {
                return Err(sandbox::check::invalid(format!("{part}.{field}"), reason));
            }
        }
        let absent = || SandboxError::NotFound { id: id.to_string() };
        let entry = self.shared.table.sandbox(id).ok_or_else(absent)?;
        let (reply, answer) = oneshot::channel();
        entry.commands.send(Command::UpdateSandbox(Box::new(whole), reply)).await.map_err(|_| absent())?;
        answer.await.map_err(|_| absent())?
    }

    /// All sandboxes, oldest first, from memory.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Arc<SandboxView>> {
        self.shared.table.sandboxes()
    }

    /// The sandbox with this id or unique id prefix.
    #[must_use]
    pub fn find_sandbox(&self, id: &str) -> Option<Arc<SandboxView>> {
        self.shared.table.find_sandbox(id)
    }

    async fn ask_sandbox(
        &self,
        id: &SandboxId,
        act: &'static str,
        command: impl FnOnce(Reply<(), SandboxError>) -> Command,
    ) -> Result<(), SandboxError> {
        // CRI: stopping and removing an unknown sandbox is no error.
        let Some(entry) = self.shared.table.sandbox(id) else { return Ok(()) };
        let (reply, answer) = oneshot::channel();
        let answered = match entry.commands.send(command(reply)).await {
            Ok(()) => answer.await.ok(),
            Err(_) => None,
        };
        match answered {
            Some(result) => result,
            // Its task has ended: removed meanwhile, or the daemon ends.
            None if self.shared.table.sandbox(id).is_none() => Ok(()),
            None => Err(SandboxError::Draining { act }),
        }
    }
}
