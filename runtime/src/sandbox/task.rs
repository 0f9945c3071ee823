//! The task that owns one sandbox and its containers: requests come in on a queue, ends of work come back, views go out.
//! One tokio task per sandbox; nothing in it blocks but record files in memory. Kernel work and waits are operations of its own
//! set, so a container that takes long to stop holds up nobody else.
//! Owns the machines, the records and the shims' clients of its sandbox. Must never await while it decides.

mod containers;
mod creation;
mod exits;
mod lifecycle;
pub(crate) mod member;
pub(crate) mod queue;
mod tell;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use keelson_api::{ContainerId, ExitRecord, SandboxId, shim};
use keelson_imageservice::Image;
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinSet},
};
use tracing::Span;

use self::{
    member::Member,
    queue::{Queue, Works},
};
use super::{
    SandboxError, create, holder,
    release::Failures,
    spec::{SandboxSpec, Whole},
    state::{Request, State, Step, decide},
};
use crate::{
    container::{self, ContainerError, ContainerSpec},
    engine::{
        shared::{Shared, now},
        table::SandboxEntry,
    },
    resources::Resources,
    shim_client::{ShimClient, ShimError},
    store::record::SandboxRecord,
};

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
    /// The workload's resources as a whole are these now.
    UpdateSandbox(Box<Whole>, Reply<(), SandboxError>),
    /// Say that the task is there.
    Probe(oneshot::Sender<()>),
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

/// What wakes the task.
enum Event {
    Done(Result<Done, JoinError>),
    Asked(Command),
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
    commands: Queue,
    record: SandboxRecord,
    spec: Arc<SandboxSpec>,
    /// Boxed: a leaf of the map has room for eleven, and most sandboxes hold one or two.
    members: BTreeMap<ContainerId, Box<Member>>,
    holder: Option<Arc<ShimClient>>,
    waiting: Waiting,
    /// Of the call that made it, until it has begun.
    origin: Span,
    /// Ends by itself; awaited when the daemon drains.
    work: Works,
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
    pub(crate) fn new(shared: Arc<Shared>, entry: Arc<SandboxEntry>, commands: Queue, record: SandboxRecord) -> Self {
        let spec = Arc::clone(&record.spec);
        Self {
            shared,
            entry,
            commands,
            record,
            spec,
            members: BTreeMap::new(),
            holder: None,
            waiting: Waiting::default(),
            origin: Span::none(),
            work: Works::default(),
            watches: JoinSet::new(),
            releasing: false,
            removing: false,
            draining: false,
            gone: false,
        }
    }

    /// Somebody waits for the sandbox to be made.
    pub(crate) fn answer_to(&mut self, reply: Reply<SandboxId, SandboxError>) {
        self.origin = Span::current();
        self.waiting.run.push(reply);
    }

    /// A container of a record, with its shim where that still runs.
    pub(crate) fn adopt(&mut self, member: Member, watch: Option<container::create::Watch>) {
        let id = member.record.id.clone();
        self.shared.table.add_container(id.clone(), Arc::clone(&member.entry));
        member.publish(&self.shared.state);
        self.members.insert(id.clone(), Box::new(member));
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
        std::mem::replace(&mut self.origin, Span::none()).in_scope(|| {
            self.begin();
            self.advance();
        });
        while !self.ended() {
            let (span, event) = tokio::select! {
                Some((span, done)) = self.work.join_next() => (span, Event::Done(done)),
                Some(done) = self.watches.join_next() => (Span::none(), Event::Done(done)),
                asked = self.commands.recv(), if !self.draining => match asked.map(|asked| *asked) {
                    Some((span, command)) => (span, Event::Asked(command)),
                    None => (Span::none(), Event::Asked(Command::Drain)),
                },
            };
            // What follows from a call, or from the end of its work, is told in its span.
            span.in_scope(|| {
                match event {
                    Event::Done(done) => self.finish(done),
                    Event::Asked(command) => self.handle(command),
                }
                self.advance();
            });
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
            Command::Stop(reply) => {
                let first = self.record.stopped_at.is_none();
                self.record.stopped_at.get_or_insert_with(now);
                match decide(&self.record.state, Request::Stop) {
                    Ok(Step::Begin) => {
                        self.waiting.stop.push(reply);
                        self.stop();
                    }
                    Ok(Step::Join | Step::After | Step::StopFirst) => self.waiting.stop.push(reply),
                    Ok(Step::Done) => {
                        if first {
                            // A reboot had ended it. Now it is over for its owner, too.
                            self.become_state(self.record.state.clone());
                        }
                        answer(reply, Ok(()));
                    }
                    Err(denied) => answer(reply, Err(self.denied("stop", denied.state))),
                }
            }
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
            Command::UpdateSandbox(whole, reply) => self.update_whole(*whole, reply),
            Command::Probe(reply) => {
                // Who asked may have lost patience.
                let _ = reply.send(());
            }
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
                    tracing::warn!(sandbox = %self.record.id, "its holder has ended: stopping the sandbox");
                    self.stop();
                }
            }
            Done::ContainerMade(id, result) => self.container_made(&id, *result),
            Done::Started(id, result) => self.started(&id, result),
            Done::StopAnswered(id, result) => self.stop_answered(&id, result),
            Done::ShimGone(id, record) => self.shim_gone(&id, record),
            Done::Killed(id, result) => self.killed(&id, result),
            Done::ContainerRemoved(id, result) => self.container_removed(&id, result),
            Done::Updated(id, change, result, reply) => self.updated(&id, &change, result, reply),
            Done::Probed(id, result) => self.probed(&id, result),
        }
    }
}

/// Answers somebody who may be gone.
pub(crate) fn answer<T, E>(reply: Reply<T, E>, result: Result<T, E>) {
    // A vanished caller changes nothing.
    let _ = reply.send(result);
}
