//! Requests about containers, as the sandbox's task answers them: decide on the state, begin work or join it.
//! Part of the sandbox's task; nothing here waits.
//! Owns nothing of its own. Must never begin work whose intent is not recorded.

use std::sync::Arc;

use keelson_api::ContainerId;
use tracing::Instrument as _;

use super::{Done, Reply, Task, answer, tell::reached};
use crate::{
    checkpoint,
    container::{
        self, ContainerError,
        state::{Denied, Event, Request, State, Step, decide},
    },
    engine::shared::{Shared, blocking},
    observe::{Stage, counters},
    resources::Resources,
    sandbox::state as sandbox_state,
    shim_client::{ShimClient, ShimError, record},
};

impl Task {
    pub(super) fn start_container(&mut self, id: &ContainerId, reply: Reply<(), ContainerError>) {
        let Some(member) = self.members.get_mut(id) else { return answer(reply, Err(not_found(id))) };
        match decide(&member.record.state, &Request::Start) {
            Ok(Step::Begin) => {
                let Some(shim) = member.shim.clone() else {
                    return answer(reply, Err(denied("start", id, "without its shim")));
                };
                let restored = member.spec.checkpoint.clone().zip(member.record.state.pid());
                member.started.push(reply);
                member.starting = true;
                self.apply(id, &Event::StartSent);
                let id = id.clone();
                let shared = Arc::clone(&self.shared);
                self.work.spawn(async move {
                    let started = match restored {
                        None => Stage::Start.wait(&id, shim.start()).await,
                        Some((folder, init)) => restore(shared, &id, &shim, folder, init).await,
                    };
                    Done::Started(id, started)
                });
            }
            Ok(Step::Join | Step::After | Step::Hasten { .. } | Step::KillFirst) => member.started.push(reply),
            Ok(Step::Done) => answer(reply, Ok(())),
            Err(Denied { state }) => answer(reply, Err(denied("start", id, state))),
        }
    }

    pub(super) fn stop_container(&mut self, id: &ContainerId, grace_ms: u64, reply: Reply<(), ContainerError>) {
        // CRI: stopping an unknown container is no error.
        let Some(member) = self.members.get_mut(id) else { return answer(reply, Ok(())) };
        if decide(&member.record.state, &Request::Stop { grace_ms }) == Ok(Step::Done) {
            return answer(reply, Ok(()));
        }
        member.stopped.push(reply);
        self.begin_stop(id, grace_ms);
    }

    /// Brings a container's end about, if it is not on its way faster already.
    pub(super) fn begin_stop(&mut self, id: &ContainerId, grace_ms: u64) {
        let Some(member) = self.members.get_mut(id) else { return };
        let grace_ms = match decide(&member.record.state, &Request::Stop { grace_ms }) {
            Ok(Step::Begin) => grace_ms,
            Ok(Step::Hasten { grace_ms }) => grace_ms,
            // Under way, or to come when the creation is done.
            Ok(Step::Join | Step::After | Step::KillFirst | Step::Done) | Err(_) => return,
        };
        let signal = member.record.stop_signal;
        let shim = member.shim.clone();
        // The intent: after a restart of the daemon the shim is told again.
        self.apply(id, &Event::StopSent { grace_ms });
        match shim {
            Some(shim) => {
                let id = id.clone();
                self.work_or_watch(grace_ms, async move { Done::StopAnswered(id, shim.stop(signal, grace_ms).await) });
            }
            None => self.kill(id),
        }
    }

    /// Kills what is left in a container's cgroup, without its shim.
    pub(super) fn kill(&mut self, id: &ContainerId) {
        let Some(member) = self.members.get(id) else { return };
        let (shared, record, id) = (Arc::clone(&self.shared), member.record.clone(), id.clone());
        self.work.spawn(async move {
            Done::Killed(id, blocking(move || container::release::leftovers(&shared, &record)).await)
        });
    }

    /// Kills every container, at once.
    pub(super) fn kill_all(&mut self) {
        let ids: Vec<ContainerId> = self.members.keys().cloned().collect();
        ids.iter().for_each(|id| self.begin_stop(id, 0));
    }

    pub(super) fn remove_container(&mut self, id: &ContainerId, reply: Reply<(), ContainerError>) {
        // CRI: removing an unknown container is no error.
        let Some(member) = self.members.get_mut(id) else { return answer(reply, Ok(())) };
        member.removed.push(reply);
        member.removing = true;
        if decide(&member.record.state, &Request::Remove) == Ok(Step::KillFirst) {
            self.begin_stop(id, 0);
        }
    }

    /// Begins what an event has made possible for single containers.
    pub(super) fn advance_members(&mut self) {
        let all = self.record.state == sandbox_state::State::Removing;
        let stopping = self.record.state == sandbox_state::State::Stopping;
        let ready: Vec<(ContainerId, bool)> = self
            .members
            .iter()
            .filter(|(_, member)| !member.taking)
            .filter_map(|(id, member)| match &member.record.state {
                State::Exited(_) | State::Removing(_) => (all || member.removing).then(|| (id.clone(), true)),
                // Made while its end was asked for.
                State::Created { .. } | State::Running { .. } | State::Starting { .. } => {
                    (stopping || member.removing || !member.stopped.is_empty()).then(|| (id.clone(), false))
                }
                State::Creating | State::Stopping { .. } | State::Unknown { .. } => None,
            })
            .collect();
        for (id, dead) in ready {
            if dead { self.take_away(&id) } else { self.begin_stop(&id, 0) }
        }
    }

    fn take_away(&mut self, id: &ContainerId) {
        self.apply(id, &Event::RemoveBegun);
        let Some(member) = self.members.get_mut(id) else { return };
        member.taking = true;
        let (shared, record, id) = (Arc::clone(&self.shared), member.record.clone(), id.clone());
        self.work.spawn(async move {
            let removed = blocking(move || container::release::everything(&shared, &record)).await;
            Done::ContainerRemoved(id, removed)
        });
    }

    pub(super) fn update_container(&mut self, id: &ContainerId, change: &Resources, reply: Reply<(), ContainerError>) {
        let Some(member) = self.members.get_mut(id) else { return answer(reply, Err(not_found(id))) };
        if let Err(Denied { state }) = decide(&member.record.state, &Request::Update) {
            return answer(reply, Err(denied("update", id, state)));
        }
        if let sandbox_state::State::Ready { holder_pid: Some(holder), .. } = self.record.state
            && member.record.state.pid() == Some(holder)
        {
            return answer(reply, Err(container::foreign::no_limits(&self.record.spec.handler)));
        }
        let change = member.record.resources.completed(change.clone());
        if let Err((field, reason)) = member.record.resources.merged(&change).check() {
            return answer(reply, Err(ContainerError::Invalid { field: field.into(), reason }));
        }
        let (shared, record, id) = (Arc::clone(&self.shared), member.record.clone(), id.clone());
        self.work.spawn(async move {
            let (applied, change) = (change.clone(), change);
            let result = blocking(move || container::update::apply(&shared, &record, &applied)).await;
            Done::Updated(id, Box::new(change), result, reply)
        });
    }

    /// Compares with the kernel: a container whose init is gone twice in a row is asked for; a lost shim is seen at once anyway.
    pub(super) fn reconcile(&mut self) {
        let mut ask = Vec::new();
        for (id, member) in &mut self.members {
            let Some(pid) = member.record.state.pid() else { continue };
            let there = keelson_sys::pidfd::open(pid).is_ok();
            if !there && member.missed {
                ask.push((id.clone(), member.shim.clone()));
            }
            member.missed = !there;
        }
        for (id, shim) in ask {
            match shim {
                Some(shim) => self.work.spawn(async move { Done::Probed(id, shim.state().await) }),
                None => self.kill(&id),
            }
        }
    }

    /// The container is so after the event, on record and for others.
    pub(super) fn apply(&mut self, id: &ContainerId, event: &Event) {
        let Some(member) = self.members.get_mut(id) else { return };
        let next = member.record.state.after(event);
        if next == member.record.state {
            return;
        }
        if let State::Exited(exit) = &next
            && member.record.state.alive()
        {
            counters().exited(exit.reason);
        }
        let (before, after) = (reached(&member.record.state), reached(&next));
        member.record.state = next;
        if let Err(error) = self.shared.store.put_container(&member.record) {
            // The shim and its exit record are the truth; recovery looks there.
            tracing::warn!(container = %id, %error, "record container");
        }
        member.publish(&self.shared.state);
        if let Some(kind) = after
            && before < after
        {
            self.tell_of(id, kind);
        }
    }

    /// A stop with a long grace must not hold up the end of the daemon: its shim goes on alone.
    fn work_or_watch(&mut self, grace_ms: u64, work: impl Future<Output = Done> + Send + 'static) {
        if grace_ms == 0 {
            self.work.spawn(work);
        } else {
            self.watches.spawn(work.in_current_span());
        }
    }

    /// What recovery left for the task to do.
    pub(super) fn resume_members(&mut self) {
        let members: Vec<(ContainerId, State)> =
            self.members.iter().map(|(id, member)| (id.clone(), member.record.state.clone())).collect();
        for (id, state) in members {
            match state {
                State::Stopping { grace_ms, .. } => {
                    let Some(member) = self.members.get(&id) else { continue };
                    let signal = member.record.stop_signal;
                    match member.shim.clone() {
                        Some(shim) => {
                            self.work_or_watch(grace_ms, async move {
                                Done::StopAnswered(id, shim.stop(signal, grace_ms).await)
                            });
                        }
                        None => self.kill(&id),
                    }
                }
                State::Unknown { .. } => self.kill(&id),
                State::Removing(_) => {
                    if let Some(member) = self.members.get_mut(&id) {
                        member.removing = true;
                    }
                }
                State::Creating
                | State::Created { .. }
                | State::Starting { .. }
                | State::Running { .. }
                | State::Exited(_) => {}
            }
        }
    }

    pub(super) fn updated(
        &mut self,
        id: &ContainerId,
        change: &Resources,
        result: Result<(), ContainerError>,
        reply: Reply<(), ContainerError>,
    ) {
        if let (Ok(()), Some(member)) = (&result, self.members.get_mut(id)) {
            // Of what is on record now: another change may have come through meanwhile.
            member.record.resources = member.record.resources.merged(change);
            if let Err(error) = self.shared.store.put_container(&member.record) {
                tracing::warn!(container = %id, %error, "record container");
            }
            member.publish(&self.shared.state);
        }
        answer(reply, result);
    }

    pub(super) fn probed(
        &mut self,
        id: &ContainerId,
        result: Result<Result<keelson_api::shim::State, keelson_api::shim::Exit>, ShimError>,
    ) {
        match result {
            // Its init is being waited for, or has been replaced meanwhile.
            Ok(Ok(_)) => {}
            Ok(Err(exit)) => self.exited(id, &record(&exit)),
            Err(error) => {
                tracing::warn!(container = %id, %error, "its init is gone and its shim does not answer: killing what is left");
                self.lost(id);
            }
        }
    }
}

/// Starts a container from its checkpoint.
async fn restore(
    shared: Arc<Shared>,
    id: &ContainerId,
    shim: &ShimClient,
    folder: String,
    init: i32,
) -> Result<keelson_api::shim::State, ShimError> {
    let (of_call, config, name) = (Arc::clone(&shared), shared.state.container(id).config(), folder.clone());
    let call = blocking(move || {
        let spec = std::fs::read(config).unwrap_or_default();
        checkpoint::restore::call(&of_call, &name, init, &spec)
    });
    let call = call.await.map_err(|error| ShimError::unasked("restore", id, &keelson_api::chain(&error)))?;
    let started = shim.restore(call).await;
    // CRIU has read it all, or will not: a start that failed is not tried again.
    let removed = blocking(move || shared.checkpoint(&folder).remove()).await;
    if let Err(error) = removed {
        tracing::warn!(container = %id, %error, "remove folder of a checkpoint");
    }
    started
}

pub(super) fn denied(act: &'static str, id: &ContainerId, state: &'static str) -> ContainerError {
    ContainerError::State { act, id: id.clone(), state }
}

pub(super) fn not_found(id: &ContainerId) -> ContainerError {
    ContainerError::NotFound { id: id.to_string() }
}
