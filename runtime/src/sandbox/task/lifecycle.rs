//! The sandbox itself, as its task takes it on: made, stopped when all in it are dead, given back, removed, shown.
//! Part of the sandbox's task; nothing here waits. Teardown is kernel work on a bounded queue of the blocking pool.
//! Owns the order in which a sandbox goes. Must never answer a stop whose published ports are still taken.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Done, Reply, Task, answer};
use crate::{
    engine::{
        events::EventKind,
        shared::{BACKLOG, Shared, blocking},
    },
    sandbox::{
        SandboxError, create, holder,
        release::{self, Failures},
        spec::{NetworkMode, SandboxSpec, Whole},
        state::State,
        view::SandboxView,
    },
    store::record::SandboxRecord,
};

/// Between two tries to give back what the kernel holds.
const RETRY: Duration = Duration::from_secs(5);

impl Task {
    pub(super) fn made(&mut self, result: Result<create::Made, SandboxError>) {
        match result {
            Ok(made) => {
                let holder_pid = made.holder.as_ref().map(|holder| holder.pid);
                if let Some(holder) = made.holder {
                    self.adopt_holder(holder.shim, holder.watch);
                }
                self.record.made_cgroup = made.made_cgroup;
                self.become_state(State::Ready { addresses: made.addresses, holder_pid });
                self.tell(EventKind::Created);
                self.tell(EventKind::Started);
                for reply in std::mem::take(&mut self.waiting.run) {
                    answer(reply, Ok(self.record.id.clone()));
                }
                if self.removing || !self.waiting.stop.is_empty() {
                    self.stop();
                }
            }
            Err(error) => {
                self.forget();
                self.gone = true;
                for reply in std::mem::take(&mut self.waiting.run) {
                    answer(reply, Err(error.clone()));
                }
                // What was never made is stopped and removed.
                self.answer_stop(|| Ok(()));
                self.answer_remove(|| Ok(()));
            }
        }
    }

    /// Kills everything in it; its network goes when all are dead.
    pub(super) fn stop(&mut self) {
        self.become_state(State::Stopping);
        self.kill_all();
    }

    /// Whatever the last event has made possible.
    pub(super) fn advance(&mut self) {
        if self.gone {
            return;
        }
        self.advance_members();
        let quiet = self.members.values().all(|member| !member.record.state.alive());
        if self.record.state == State::Stopping && quiet {
            self.become_state(State::NotReady { released: false });
            self.tell(EventKind::Stopped);
            self.release(Duration::ZERO);
        }
        if let State::NotReady { released } = self.record.state {
            // A published port must be free when the caller goes on to its next sandbox; the rest may take its time.
            let in_time = self.spec.port_mappings.is_empty() && self.shared.pending.load(Ordering::Relaxed) <= BACKLOG;
            if released || in_time {
                self.answer_stop(|| Ok(()));
            }
            if self.removing && quiet && (released || in_time) {
                self.become_state(State::Removing);
                self.advance_members();
            }
        }
        if self.record.state == State::Removing && self.members.is_empty() {
            // From here on nobody can ask for it, and the recorded intent finishes it even after a crash.
            if self.shared.table.sandbox(&self.record.id).is_some() {
                self.forget();
                self.tell(EventKind::Deleted);
            }
            self.answer_remove(|| Ok(()));
            if !self.releasing {
                self.remove_rest(Duration::ZERO);
            }
        }
    }

    /// Gives back what the kernel holds, after a pause.
    pub(super) fn release(&mut self, pause: Duration) {
        self.releasing = true;
        let holder = self.holder.take();
        let (shared, record) = (Arc::clone(&self.shared), self.record.clone());
        let work = async move {
            if let Some(holder) = holder {
                // What it leaves, were it lost, is taken away next.
                holder::stop(&holder).await;
            }
            Done::Released(teardown(&shared, record, pause, release::kernel).await)
        };
        if pause.is_zero() {
            self.work.spawn_behind(behind(&self.record), work);
        } else {
            self.watches.spawn(work);
        }
    }

    pub(super) fn released(&mut self, result: Result<(), Failures>) {
        self.releasing = false;
        match result {
            Ok(()) => {
                if matches!(self.record.state, State::NotReady { .. }) {
                    self.become_state(State::NotReady { released: true });
                }
            }
            Err(failures) => {
                tracing::warn!(sandbox = %self.record.id, %failures, "give back what a sandbox holds: trying again");
                let id = self.record.id.clone();
                let text = failures.to_string();
                self.answer_stop(|| {
                    Err(SandboxError::Teardown { act: "stop", id: id.clone(), failures: text.clone() })
                });
                if self.record.state != State::Removing {
                    self.answer_remove(|| {
                        Err(SandboxError::Teardown { act: "remove", id: id.clone(), failures: text.clone() })
                    });
                    self.release(RETRY);
                }
            }
        }
    }

    /// Takes away the rest, record last.
    pub(super) fn remove_rest(&mut self, pause: Duration) {
        self.releasing = true;
        let (shared, record) = (Arc::clone(&self.shared), self.record.clone());
        let work = async move { Done::Removed(teardown(&shared, record, pause, release::everything).await) };
        if pause.is_zero() {
            self.work.spawn_behind(behind(&self.record), work);
        } else {
            self.watches.spawn(work);
        }
    }

    pub(super) fn removed(&mut self, result: Result<(), Failures>) {
        match result {
            Ok(()) => self.gone = true,
            Err(failures) => {
                tracing::warn!(sandbox = %self.record.id, %failures, "remove what is left of a sandbox: trying again");
                self.remove_rest(RETRY);
            }
        }
    }

    pub(super) fn watch_holder(&mut self, watch: holder::Watch) {
        self.watches.spawn(async move {
            watch.await;
            Done::HolderGone
        });
    }

    /// The sandbox is so now, on record and for others.
    pub(super) fn become_state(&mut self, state: State) {
        self.record.state = state;
        if let Err(error) = self.shared.store.put_sandbox(&self.record) {
            // The kernel is the truth; recovery looks there.
            tracing::warn!(sandbox = %self.record.id, %error, "record sandbox");
        }
        self.publish();
    }

    /// Shows the sandbox as it is now; one being made is not shown.
    pub(crate) fn publish(&self) {
        let Some(phase) = self.record.state.phase() else { return };
        let dir = self.shared.state.sandbox(&self.record.id);
        let ready = matches!(self.record.state, State::Ready { .. });
        let own_network = self.spec.namespaces.network == NetworkMode::Sandbox;
        self.entry.show(Some(Arc::new(SandboxView {
            id: self.record.id.clone(),
            spec: Arc::clone(&self.spec),
            phase,
            created_at: self.record.created_at,
            stopped_at: self.record.stopped_at,
            addresses: self.record.state.addresses().to_vec(),
            netns: (ready && own_network).then(|| dir.net()),
            holder_pid: match &self.record.state {
                State::Ready { holder_pid, .. } => *holder_pid,
                State::Creating | State::Stopping | State::NotReady { .. } | State::Removing => None,
            },
            run_dir: dir.path().to_owned(),
        })));
    }

    /// Takes note of the workload's resources. Its cgroup is the caller's, who has changed it already: nothing is written there.
    pub(super) fn update_whole(&mut self, whole: Whole, reply: Reply<(), SandboxError>) {
        if !matches!(self.record.state, State::Ready { .. }) {
            return answer(reply, Err(self.denied("update resources", self.record.state.name())));
        }
        let mut spec = SandboxSpec::clone(&self.record.spec);
        spec.resources = whole.resources.or(spec.resources);
        spec.overhead = whole.overhead.or(spec.overhead);
        let before = std::mem::replace(&mut self.record.spec, Arc::new(spec));
        if let Err(error) = self.shared.store.put_sandbox(&self.record) {
            self.record.spec = before;
            let (id, source) = (self.record.id.clone(), Arc::new(error));
            return answer(reply, Err(SandboxError::Failed { act: "update", id, stage: "record resources", source }));
        }
        self.spec = Arc::clone(&self.record.spec);
        self.publish();
        answer(reply, Ok(()));
    }

    pub(super) fn forget(&self) {
        self.shared.table.forget_sandbox(&self.record.id, &self.record.spec.key);
    }

    pub(super) fn denied(&self, act: &'static str, state: &'static str) -> SandboxError {
        SandboxError::State { act, id: self.record.id.clone(), state }
    }

    pub(super) fn answer_stop(&mut self, result: impl Fn() -> Result<(), SandboxError>) {
        std::mem::take(&mut self.waiting.stop).into_iter().for_each(|reply| answer(reply, result()));
    }

    pub(super) fn answer_remove(&mut self, result: impl Fn() -> Result<(), SandboxError>) {
        std::mem::take(&mut self.waiting.remove).into_iter().for_each(|reply| answer(reply, result()));
    }
}

/// The span of what goes on when the caller has its answer.
fn behind(record: &SandboxRecord) -> tracing::Span {
    tracing::debug_span!(parent: None, "teardown", sandbox = %record.id)
}

/// One piece of teardown work on the bounded queue.
async fn teardown(
    shared: &Arc<Shared>,
    record: SandboxRecord,
    pause: Duration,
    work: fn(&Shared, &SandboxRecord) -> Result<(), Failures>,
) -> Result<(), Failures> {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    shared.pending.fetch_add(1, Ordering::Relaxed);
    // The semaphore is never closed; without a permit the work is done all the same.
    let permit = shared.teardown.acquire().await.ok();
    let result = {
        let shared = Arc::clone(shared);
        blocking(move || work(&shared, &record)).await
    };
    drop(permit);
    shared.pending.fetch_sub(1, Ordering::Relaxed);
    result
}
