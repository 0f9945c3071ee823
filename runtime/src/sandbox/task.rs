//! The task that owns one sandbox and its containers: requests come in on a queue, ends of work come back, views go out.
//! One tokio task per sandbox; nothing in it blocks but record files in memory. Kernel work and waits are operations of its own
//! set, so a container that takes long to stop holds up nobody else.
//! Owns the machines, the records and the shims' clients of its sandbox. Must never await while it decides.

mod containers;
mod exits;
pub(crate) mod member;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use keelson_api::{ContainerId, ExitRecord, SandboxId, shim};
use keelson_imageservice::Image;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
};

use self::member::Member;
use super::{
    SandboxError, create, holder,
    release::{self, Failures},
    spec::SandboxSpec,
    state::{Request, State, Step, decide},
    view::SandboxView,
};
use crate::{
    container::{self, ContainerError, ContainerSpec},
    engine::{
        shared::{BACKLOG, Shared, blocking},
        table::SandboxEntry,
    },
    resources::Resources,
    shim_client::{ShimClient, ShimError},
    store::record::SandboxRecord,
};

/// Between two tries to give back what the kernel holds.
const RETRY: Duration = Duration::from_secs(5);

/// Where an answer goes. The caller may be gone.
pub(crate) type Reply<T, E> = oneshot::Sender<Result<T, E>>;

/// What may be asked of a sandbox's task.
pub(crate) enum Command {
    /// A repeated run: joins, or returns the id.
    Run(Reply<SandboxId, SandboxError>),
    Stop(Reply<(), SandboxError>),
    Remove(Reply<(), SandboxError>),
    Create(Box<ContainerSpec>, Arc<Image>, Reply<ContainerId, ContainerError>),
    Start(ContainerId, Reply<(), ContainerError>),
    /// With milliseconds of grace.
    StopContainer(ContainerId, u64, Reply<(), ContainerError>),
    RemoveContainer(ContainerId, Reply<(), ContainerError>),
    Update(ContainerId, Box<Resources>, Reply<(), ContainerError>),
    /// Compare with the kernel.
    Reconcile,
    /// End when what is under way is done.
    Drain,
}

/// What has ended.
pub(crate) enum Done {
    Made(Result<create::Made, SandboxError>),
    Released(Result<(), Failures>),
    Removed(Result<(), Failures>),
    HolderGone,
    ContainerMade(ContainerId, Box<Result<container::create::Made, ContainerError>>),
    Started(ContainerId, Result<shim::State, ShimError>),
    StopAnswered(ContainerId, Result<shim::Exit, ShimError>),
    ShimGone(ContainerId, Option<ExitRecord>),
    Killed(ContainerId, Result<(), ContainerError>),
    ContainerRemoved(ContainerId, Result<(), ContainerError>),
    Updated(ContainerId, Box<Resources>, Result<(), ContainerError>, Reply<(), ContainerError>),
    Probed(ContainerId, Result<Result<shim::State, shim::Exit>, ShimError>),
}

/// Who waits for the sandbox itself.
#[derive(Default)]
struct Waiting {
    run: Vec<Reply<SandboxId, SandboxError>>,
    stop: Vec<Reply<(), SandboxError>>,
    remove: Vec<Reply<(), SandboxError>>,
}

/// See the module.
pub(crate) struct Task {
    shared: Arc<Shared>,
    entry: Arc<SandboxEntry>,
    commands: mpsc::Receiver<Command>,
    record: SandboxRecord,
    spec: Arc<SandboxSpec>,
    members: BTreeMap<ContainerId, Member>,
    holder: Option<Arc<ShimClient>>,
    waiting: Waiting,
    /// Ends by itself; awaited when the daemon drains.
    work: JoinSet<Done>,
    /// May last for ever; dropped when the daemon drains.
    watches: JoinSet<Done>,
    /// A release of what the kernel holds is under way.
    releasing: bool,
    /// The sandbox is to go as soon as it may.
    removing: bool,
    draining: bool,
    gone: bool,
}

impl Task {
    pub(crate) fn new(
        shared: Arc<Shared>,
        entry: Arc<SandboxEntry>,
        commands: mpsc::Receiver<Command>,
        record: SandboxRecord,
    ) -> Self {
        let spec = Arc::new(record.spec.clone());
        Self {
            shared,
            entry,
            commands,
            record,
            spec,
            members: BTreeMap::new(),
            holder: None,
            waiting: Waiting::default(),
            work: JoinSet::new(),
            watches: JoinSet::new(),
            releasing: false,
            removing: false,
            draining: false,
            gone: false,
        }
    }

    /// Somebody waits for the sandbox to be made.
    pub(crate) fn answer_to(&mut self, reply: Reply<SandboxId, SandboxError>) {
        self.waiting.run.push(reply);
    }

    /// A container of a record, with its shim where that still runs.
    pub(crate) fn adopt(&mut self, member: Member, watch: Option<container::create::Watch>) {
        let id = member.record.id.clone();
        self.shared.table.add_container(id.clone(), Arc::clone(&member.entry));
        member.publish(&self.shared.state);
        self.members.insert(id.clone(), member);
        if let Some(watch) = watch {
            self.watch(id, watch);
        }
    }

    /// Takes over what recovery found.
    pub(crate) fn adopt_holder(&mut self, shim: Arc<ShimClient>, watch: holder::Watch) {
        self.holder = Some(shim);
        self.watch_holder(watch);
    }

    /// Lives until the sandbox is gone or the daemon drains.
    pub(crate) async fn run(mut self) {
        self.begin();
        self.advance();
        while !self.ended() {
            tokio::select! {
                Some(done) = self.work.join_next() => self.finish(done),
                Some(done) = self.watches.join_next() => self.finish(done),
                command = self.commands.recv(), if !self.draining => match command {
                    Some(command) => self.handle(command),
                    None => self.draining = true,
                },
            }
            self.advance();
        }
    }

    fn ended(&self) -> bool {
        self.gone || (self.draining && self.work.is_empty())
    }

    /// What the recorded state asks for.
    fn begin(&mut self) {
        self.publish();
        match &self.record.state {
            State::Creating => {
                let made = create::create(Arc::clone(&self.shared), self.record.clone());
                self.work.spawn(async { Done::Made(made.await) });
            }
            State::Ready { .. } => {}
            State::Stopping => self.kill_all(),
            State::NotReady { released } => {
                if !released {
                    self.release(Duration::ZERO);
                }
            }
            State::Removing => {
                // What it was before does not matter: all of it goes.
                self.record.state = State::NotReady { released: false };
                self.removing = true;
                self.kill_all();
            }
        }
        self.resume_members();
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Run(reply) => match decide(&self.record.state, Request::Run) {
                Ok(Step::Join) => self.waiting.run.push(reply),
                Ok(Step::Done | Step::Begin | Step::After | Step::StopFirst) => {
                    answer(reply, Ok(self.record.id.clone()))
                }
                Err(_) => {
                    let key = &self.record.spec.key;
                    let name = format!("{}/{} (uid {}, attempt {})", key.namespace, key.name, key.uid, key.attempt);
                    answer(reply, Err(SandboxError::Exists { name, id: self.record.id.clone() }));
                }
            },
            Command::Stop(reply) => match decide(&self.record.state, Request::Stop) {
                Ok(Step::Begin) => {
                    self.waiting.stop.push(reply);
                    self.stop();
                }
                Ok(Step::Join | Step::After | Step::StopFirst) => self.waiting.stop.push(reply),
                Ok(Step::Done) => answer(reply, Ok(())),
                Err(denied) => answer(reply, Err(self.denied("stop", denied.state))),
            },
            Command::Remove(reply) => {
                self.waiting.remove.push(reply);
                self.removing = true;
                if let Ok(Step::StopFirst) = decide(&self.record.state, Request::Remove)
                    && self.record.state != State::Stopping
                {
                    self.stop();
                }
            }
            Command::Create(spec, image, reply) => self.create_container(*spec, &image, reply),
            Command::Start(id, reply) => self.start_container(&id, reply),
            Command::StopContainer(id, grace_ms, reply) => self.stop_container(&id, grace_ms, reply),
            Command::RemoveContainer(id, reply) => self.remove_container(&id, reply),
            Command::Update(id, resources, reply) => self.update_container(&id, &resources, reply),
            Command::Reconcile => self.reconcile(),
            Command::Drain => self.draining = true,
        }
    }

    fn finish(&mut self, done: Result<Done, JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(sandbox = %self.record.id, %error, "an operation panicked");
                return;
            }
        };
        match done {
            Done::Made(result) => self.made(result),
            Done::Released(result) => self.released(result),
            Done::Removed(result) => self.removed(result),
            Done::HolderGone => {
                self.holder = None;
                if matches!(self.record.state, State::Ready { .. }) {
                    tracing::warn!(sandbox = %self.record.id, "the holder of the shared PID namespace has ended: stopping the sandbox");
                    self.stop();
                }
            }
            Done::ContainerMade(id, result) => self.container_made(&id, *result),
            Done::Started(id, result) => self.started(&id, result),
            Done::StopAnswered(id, result) => self.stop_answered(&id, result),
            Done::ShimGone(id, record) => self.shim_gone(&id, record),
            Done::Killed(id, result) => self.killed(&id, result),
            Done::ContainerRemoved(id, result) => self.container_removed(&id, result),
            Done::Updated(id, resources, result, reply) => self.updated(&id, *resources, result, reply),
            Done::Probed(id, result) => self.probed(&id, result),
        }
    }

    fn made(&mut self, result: Result<create::Made, SandboxError>) {
        match result {
            Ok(made) => {
                let holder_pid = made.holder.as_ref().map(|holder| holder.pid);
                if let Some(holder) = made.holder {
                    self.adopt_holder(holder.shim, holder.watch);
                }
                self.record.made_cgroup = made.made_cgroup;
                self.become_state(State::Ready { addresses: made.addresses, holder_pid });
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
    fn stop(&mut self) {
        self.become_state(State::Stopping);
        self.kill_all();
    }

    /// Whatever the last event has made possible.
    fn advance(&mut self) {
        if self.gone {
            return;
        }
        self.advance_members();
        let quiet = self.members.values().all(|member| !member.record.state.alive());
        if self.record.state == State::Stopping && quiet {
            self.become_state(State::NotReady { released: false });
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
            if !self.waiting.remove.is_empty() || self.shared.table.sandbox(&self.record.id).is_some() {
                self.forget();
                self.answer_remove(|| Ok(()));
            }
            if !self.releasing {
                self.remove_rest(Duration::ZERO);
            }
        }
    }

    /// Gives back what the kernel holds, after a pause.
    fn release(&mut self, pause: Duration) {
        self.releasing = true;
        if let Some(holder) = self.holder.take() {
            self.work.spawn(async move {
                holder::stop(&holder).await;
                Done::HolderGone
            });
        }
        let (shared, record) = (Arc::clone(&self.shared), self.record.clone());
        let work = async move { Done::Released(teardown(&shared, record, pause, release::kernel).await) };
        if pause.is_zero() {
            self.work.spawn(work)
        } else {
            self.watches.spawn(work)
        };
    }

    fn released(&mut self, result: Result<(), Failures>) {
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
    fn remove_rest(&mut self, pause: Duration) {
        self.releasing = true;
        let (shared, record) = (Arc::clone(&self.shared), self.record.clone());
        let work = async move { Done::Removed(teardown(&shared, record, pause, release::everything).await) };
        if pause.is_zero() {
            self.work.spawn(work)
        } else {
            self.watches.spawn(work)
        };
    }

    fn removed(&mut self, result: Result<(), Failures>) {
        match result {
            Ok(()) => self.gone = true,
            Err(failures) => {
                tracing::warn!(sandbox = %self.record.id, %failures, "remove what is left of a sandbox: trying again");
                self.remove_rest(RETRY);
            }
        }
    }

    fn watch_holder(&mut self, watch: holder::Watch) {
        self.watches.spawn(async move {
            watch.await;
            Done::HolderGone
        });
    }

    /// The sandbox is so now, on record and for others.
    fn become_state(&mut self, state: State) {
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
        let own_network = self.spec.namespaces.network == super::spec::NetworkMode::Sandbox;
        self.entry.show(Some(Arc::new(SandboxView {
            id: self.record.id.clone(),
            spec: Arc::clone(&self.spec),
            phase,
            created_at: self.record.created_at,
            addresses: self.record.state.addresses().to_vec(),
            netns: (ready && own_network).then(|| dir.net()),
            holder_pid: match &self.record.state {
                State::Ready { holder_pid, .. } => *holder_pid,
                State::Creating | State::Stopping | State::NotReady { .. } | State::Removing => None,
            },
            run_dir: dir.path().to_owned(),
        })));
    }

    fn forget(&self) {
        self.shared.table.forget_sandbox(&self.record.id, &self.record.spec.key);
    }

    fn denied(&self, act: &'static str, state: &'static str) -> SandboxError {
        SandboxError::State { act, id: self.record.id.clone(), state }
    }

    fn answer_stop(&mut self, result: impl Fn() -> Result<(), SandboxError>) {
        std::mem::take(&mut self.waiting.stop).into_iter().for_each(|reply| answer(reply, result()));
    }

    fn answer_remove(&mut self, result: impl Fn() -> Result<(), SandboxError>) {
        std::mem::take(&mut self.waiting.remove).into_iter().for_each(|reply| answer(reply, result()));
    }
}

/// Answers somebody who may be gone.
pub(crate) fn answer<T, E>(reply: Reply<T, E>, result: Result<T, E>) {
    // A vanished caller changes nothing.
    let _ = reply.send(result);
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
