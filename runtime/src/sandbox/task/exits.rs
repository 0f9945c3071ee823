//! Ends of work on containers, as the sandbox's task takes them: made, started, stopped, exited, lost, removed.
//! Part of the sandbox's task; nothing here waits.
//! Owns the order of events: an exit is applied after the answer to the start it belongs to.
//! Must never let one container's failure touch another.

use keelson_api::{ContainerId, ExitRecord, shim};

use super::{
    Done, Task, answer,
    containers::{denied, not_found},
};
use crate::{
    container::{
        self, ContainerError,
        state::{Event, State},
        view::{Exit, ExitReason},
    },
    engine::{ErrorKind, events::EventKind, shared::now},
    sandbox::{SandboxError, state as sandbox_state},
    shim_client::{ShimError, record},
};

impl Task {
    pub(super) fn container_made(&mut self, id: &ContainerId, result: Result<container::create::Made, ContainerError>) {
        let Some(member) = self.members.get_mut(id) else { return };
        match result {
            Ok(made) => {
                member.set_shim(Some(made.shim));
                member.record.volumes = made.volumes;
                member.record.user = made.user;
                let replies = std::mem::take(&mut member.created);
                self.watch(id.clone(), made.watch);
                self.apply(id, &Event::Launched { pid: made.pid });
                replies.into_iter().for_each(|reply| answer(reply, Ok(id.clone())));
            }
            Err(error) => {
                let Some(member) = self.members.remove(id) else { return };
                self.shared.table.forget_container(id);
                member.created.into_iter().for_each(|reply| answer(reply, Err(error.clone())));
                // What was never made is stopped and removed.
                member.stopped.into_iter().chain(member.removed).for_each(|reply| answer(reply, Ok(())));
            }
        }
    }

    /// Waits for the shim's end, then reads what it left.
    pub(crate) fn watch(&mut self, id: ContainerId, watch: container::create::Watch) {
        let exit = self.shared.state.container(&id).exit();
        self.watches.spawn(async move {
            watch.await;
            let record = tokio::task::spawn_blocking(move || crate::recover::read_exit(&exit)).await;
            Done::ShimGone(id, record.ok().flatten())
        });
    }

    pub(super) fn started(&mut self, id: &ContainerId, result: Result<shim::State, ShimError>) {
        let Some(member) = self.members.get_mut(id) else { return };
        member.starting = false;
        match result {
            Ok(state) => {
                let started_at = if state.started_at == 0 { now() } else { state.started_at };
                self.start_ok(id, started_at);
                self.apply_held(id);
            }
            Err(ShimError::Gone { .. }) => {
                // Whether it ever ran, the exit record tells; it is here, or on its way.
                if let Some(held) = member.held.take() {
                    self.settle_start(id, held.as_ref());
                }
            }
            Err(error @ (ShimError::Refused { .. } | ShimError::TooLong { .. } | ShimError::Unexpected { .. })) => {
                self.start_failed(id, &error.to_string(), error.kind() == ErrorKind::Invalid);
                // Nothing of it runs; the shim has ended, or does so now.
                if let Some(shim) = self.members.get(id).and_then(|member| member.shim.clone()) {
                    self.watches.spawn(async move {
                        if let Err(error) = shim.delete().await {
                            tracing::warn!(%error, "end shim after failed start");
                        }
                        std::future::pending().await
                    });
                }
            }
            Err(error @ ShimError::Deadline { .. }) => {
                let replies = std::mem::take(&mut member.started);
                let error = std::sync::Arc::new(error);
                for reply in replies {
                    let failed = ContainerError::Failed {
                        act: "start",
                        id: id.clone(),
                        stage: "wait for its shim",
                        source: error.clone(),
                    };
                    answer(reply, Err(failed));
                }
                // It may run or not: it must not, since the caller was told that it failed.
                self.begin_stop(id, 0);
            }
        }
    }

    fn start_ok(&mut self, id: &ContainerId, started_at: i64) {
        self.apply(id, &Event::Started { started_at });
        let Some(member) = self.members.get_mut(id) else { return };
        std::mem::take(&mut member.started).into_iter().for_each(|reply| answer(reply, Ok(())));
    }

    fn start_failed(&mut self, id: &ContainerId, message: &str, invalid: bool) {
        self.apply(id, &Event::StartFailed(Exit::not_started(now(), message.to_owned())));
        let Some(member) = self.members.get_mut(id) else { return };
        member.held = None;
        for reply in std::mem::take(&mut member.started) {
            answer(reply, Err(ContainerError::Start { id: id.clone(), message: message.to_owned(), invalid }));
        }
        std::mem::take(&mut member.stopped).into_iter().for_each(|reply| answer(reply, Ok(())));
    }

    /// The shim ended without answering the start: what it left tells how far it came.
    fn settle_start(&mut self, id: &ContainerId, left: Option<&ExitRecord>) {
        match left {
            Some(left) if left.started_at != 0 => {
                self.start_ok(id, left.started_at);
                self.exited(id, left);
            }
            Some(_) | None => self.start_failed(id, "its shim ended while it was started: see shim.log", false),
        }
    }

    fn apply_held(&mut self, id: &ContainerId) {
        let held = self.members.get_mut(id).and_then(|member| member.held.take());
        match held {
            Some(Some(left)) => self.exited(id, &left),
            Some(None) => self.lost(id),
            None => {}
        }
    }

    pub(super) fn stop_answered(&mut self, id: &ContainerId, result: Result<shim::Exit, ShimError>) {
        match result {
            Ok(exit) => self.exited(id, &record(&exit)),
            // Its end is on its way by itself.
            Err(ShimError::Gone { .. }) => {}
            Err(error) => {
                if self.members.get(id).is_some_and(|member| member.record.state.alive()) {
                    tracing::warn!(container = %id, %error, "its shim did not stop it: killing its cgroup");
                    self.kill(id);
                }
            }
        }
    }

    pub(super) fn shim_gone(&mut self, id: &ContainerId, left: Option<ExitRecord>) {
        let Some(member) = self.members.get_mut(id) else { return };
        member.set_shim(None);
        if member.starting {
            member.held = Some(left);
            return;
        }
        match (&member.record.state, left) {
            (State::Starting { .. }, left) => self.settle_start(id, left.as_ref()),
            (_, Some(left)) => self.exited(id, &left),
            (_, None) => self.lost(id),
        }
    }

    /// It ended, and this is how.
    pub(super) fn exited(&mut self, id: &ContainerId, left: &ExitRecord) {
        self.dead(id, Exit::of(left));
    }

    /// Nobody knows how it ended, or whether all of it did.
    pub(super) fn lost(&mut self, id: &ContainerId) {
        let alive = self.members.get(id).is_some_and(|member| member.record.state.alive());
        if alive {
            tracing::warn!(container = %id, "its shim is gone without an exit record: killing what is left");
            self.apply(id, &Event::Lost);
            self.kill(id);
        }
    }

    /// Its cgroup was killed without its shim.
    pub(super) fn killed(&mut self, id: &ContainerId, result: Result<(), ContainerError>) {
        let Some(member) = self.members.get_mut(id) else { return };
        match result {
            Ok(()) => {
                let started_at = member.record.state.started_at();
                self.dead(id, Exit::unseen(started_at, now(), "its shim was lost; what it left running was killed"));
            }
            Err(error) => {
                // The state stays: a repeat tries again.
                tracing::error!(container = %id, error = %keelson_api::chain(&error), "kill what is left of a container");
                let waiting =
                    std::mem::take(&mut member.stopped).into_iter().chain(std::mem::take(&mut member.removed));
                member.removing = false;
                waiting.for_each(|reply| answer(reply, Err(error.clone())));
            }
        }
    }

    fn dead(&mut self, id: &ContainerId, exit: Exit) {
        if exit.reason == ExitReason::OomKilled {
            tracing::info!(container = %id, "killed by the kernel: out of memory");
        }
        self.apply(id, &Event::Exited(exit));
        let Some(member) = self.members.get_mut(id) else { return };
        std::mem::take(&mut member.stopped).into_iter().for_each(|reply| answer(reply, Ok(())));
        for reply in std::mem::take(&mut member.started) {
            answer(reply, Err(denied("start", id, "exited")));
        }
    }

    pub(super) fn container_removed(&mut self, id: &ContainerId, result: Result<(), ContainerError>) {
        match result {
            Ok(()) => {
                self.shared.table.forget_container(id);
                let Some(member) = self.members.remove(id) else { return };
                self.tell_of(id, EventKind::Deleted);
                member.removed.into_iter().chain(member.stopped).for_each(|reply| answer(reply, Ok(())));
                member.started.into_iter().for_each(|reply| answer(reply, Err(not_found(id))));
            }
            Err(error) => {
                tracing::warn!(container = %id, error = %keelson_api::chain(&error), "remove container");
                self.apply(id, &Event::RemoveFailed);
                let Some(member) = self.members.get_mut(id) else { return };
                member.taking = false;
                member.removing = false;
                std::mem::take(&mut member.removed).into_iter().for_each(|reply| answer(reply, Err(error.clone())));
                if self.record.state == sandbox_state::State::Removing {
                    // A repeat goes on from here.
                    self.removing = false;
                    self.become_state(sandbox_state::State::NotReady { released: !self.releasing });
                    let (id, failures) = (self.record.id.clone(), keelson_api::chain(&error));
                    self.answer_remove(|| {
                        Err(SandboxError::Teardown { act: "remove", id: id.clone(), failures: failures.clone() })
                    });
                }
            }
        }
    }
}
