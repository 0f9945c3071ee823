//! `create`: from a spec to an init that waits just before exec, and its start.
//! In the shim or the OCI command line; blocks until the child is at its gate.
//! Owns the cgroup and the child while they are being made: a failure kills, reaps and removes them.
//! Must never return an error and leave a process, a mount or a cgroup.

use std::os::fd::{AsFd, OwnedFd};

use keelson_sys::child::{self, Channel, Child, CloneOptions, Message, Op};
use keelson_sys::namespace::NamespaceKinds;
use rustix::io::Errno;

use super::hooks::{self, ContainerState, Point};
use super::namespaces::ForChildren;
use super::place::{self, Cgroup};
use super::plan::{self, Errand, Plan, Subject};
use super::{ChildStdio, CreateRequest, Gate, LaunchError, Namespaces, idmap, lsm};
use crate::cgroup;
use crate::spec::{Hooks, Linux, NamespaceKind, Process};

/// A container whose init waits just before exec. With [`Gate::Creator`], dropping it before [`Created::start`] ends the init.
pub struct Created {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub cgroup: cgroup::Handle,
    /// The terminal's master.
    pub terminal: Option<OwnedFd>,
    start: Option<PendingStart>,
}

struct PendingStart {
    channel: Channel,
    /// What is left to do, for the words of a failure, and the index of its first.
    ops: Vec<Op>,
    first: u32,
    hooks: Option<(Hooks, ContainerState)>,
}

/// Makes the container; its init waits just before exec.
pub fn create(mut request: CreateRequest<'_>) -> Result<Created, LaunchError> {
    let default_linux = Linux::default();
    let linux = request.spec.linux.as_ref().unwrap_or(&default_linux);
    refuse_unsupported(linux)?;
    let namespaces = Namespaces::open(linux)?;
    let cgroup = Cgroup::make(&request, linux)?;
    let streams = (
        std::mem::replace(&mut request.stdio, ChildStdio::Terminal),
        std::mem::replace(&mut request.gate, Gate::Creator),
    );
    let launched = launch(&request, streams, linux, &namespaces, &cgroup);
    launched.inspect_err(|_| cgroup.discard())
}

fn launch(
    request: &CreateRequest<'_>,
    streams: (ChildStdio, Gate),
    linux: &Linux,
    namespaces: &Namespaces,
    cgroup: &Cgroup,
) -> Result<Created, LaunchError> {
    let default_process = Process::default();
    let process = match &request.spec.process {
        Some(process) => process,
        None if request.builtin_init => &default_process,
        None => return Err(LaunchError::invalid("read spec", "process", "it is missing")),
    };
    let subject = Subject { request, linux, process, namespaces };
    let plan = plan::build(&subject, streams, cgroup.handle())?;
    let (child, channel) = clone(&plan.ops, namespaces, linux, plan.unified.as_ref())?;
    Launched { subject, plan }.await_gate((child, channel), cgroup)
}

fn refuse_unsupported(linux: &Linux) -> Result<(), LaunchError> {
    if linux.intel_rdt.is_some() {
        return Err(LaunchError::unsupported("use linux.intelRdt", "", "not offered"));
    }
    lsm::check_mount_label(&linux.mount_label)
}

/// Clones the init with all its new namespaces; those that cannot be had by flags are joined or made around it.
fn clone(
    ops: &[Op],
    namespaces: &Namespaces,
    linux: &Linux,
    unified: Option<&OwnedFd>,
) -> Result<(Child, Channel), LaunchError> {
    let failed = |errno: Errno| {
        let error = LaunchError::system("clone container process", "", errno);
        if errno == Errno::NOSPC {
            error.with_hint("a limit on namespaces is reached (user.max_*_namespaces)")
        } else {
            error
        }
    };
    let (channel, theirs) = Channel::pair().map_err(failed)?;
    let _pid = namespaces.joins(NamespaceKind::Pid).map(|fd| ForChildren::pid(fd)).transpose()?;
    let _time = if namespaces.makes(NamespaceKind::Time) {
        let offsets: Vec<_> = linux.time_offsets.iter().map(|(clock, offset)| (clock.clone(), *offset)).collect();
        Some(ForChildren::new_time(&offsets)?)
    } else if !linux.time_offsets.is_empty() {
        return Err(LaunchError::invalid("set time offset", "", "the container has no time namespace of its own"));
    } else {
        None
    };
    // A cgroup namespace is rooted where its maker is, which must be the child in its cgroup; time is inherited (above).
    let flags = namespaces.new.without(NamespaceKinds::CGROUP | NamespaceKinds::TIME);
    let options = CloneOptions {
        namespaces: flags,
        cgroup: unified.map(AsFd::as_fd),
        user: namespaces.joins(NamespaceKind::User).map(|fd| fd.as_fd()),
    };
    let child = child::fork(ops, (&channel, theirs), options).map_err(failed)?;
    Ok((child, channel))
}

/// A cloned init and what is known of it.
struct Launched<'a> {
    subject: Subject<'a>,
    plan: Plan,
}

impl Launched<'_> {
    fn await_gate(mut self, (child, channel): (Child, Channel), cgroup: &Cgroup) -> Result<Created, LaunchError> {
        match self.talk(&child, &channel, cgroup) {
            Ok((terminal, handle)) => {
                // Until now the init has not run a line of the container's.
                if let Err(error) = place::delegate(&handle, self.subject.process, self.subject.request.spec) {
                    child.end();
                    return Err(error);
                }
                let late = |hooks: &&Hooks| !hooks.start_container.is_empty() || !hooks.poststart.is_empty();
                let hooks = self.subject.request.spec.hooks.as_ref().filter(late);
                let hooks = hooks.map(|hooks| (hooks.clone(), self.state("created", child.pid)));
                let first = u32::try_from(self.plan.after_gate).unwrap_or(u32::MAX);
                let ops = self.plan.ops.split_off(self.plan.after_gate);
                let start = self.plan.ours.then_some(PendingStart { channel, ops, first, hooks });
                Ok(Created { pid: child.pid, pidfd: child.pidfd, cgroup: handle, terminal, start })
            }
            Err(error) => {
                child.end();
                Err(error)
            }
        }
    }

    fn talk(
        &mut self,
        child: &Child,
        channel: &Channel,
        cgroup: &Cgroup,
    ) -> Result<(Option<OwnedFd>, cgroup::Handle), LaunchError> {
        set_oom_score(child.pid, self.subject.process, self.subject.request.clamp_oom_score)?;
        let mut terminal = None;
        let mut handle = cgroup.handle().cloned();
        loop {
            match channel.receive() {
                Ok(Message::Ready) => {
                    let handle = handle.ok_or_else(|| LaunchError::invalid("create cgroup", "", "there is none"))?;
                    return Ok((terminal, handle));
                }
                Ok(Message::Sync) => {
                    match self.plan.errands.pop_front() {
                        Some(Errand::MapUsers) => {
                            idmap::write_maps(
                                child.pid,
                                &self.subject.linux.uid_mappings,
                                &self.subject.linux.gid_mappings,
                            )?;
                        }
                        Some(Errand::Scope) => handle = Some(cgroup.make_scope(child.pid, self.subject.linux)?),
                        Some(Errand::Hooks) => self.run_hooks(child)?,
                        None => return Err(LaunchError::system("start container process", "", Errno::PROTO)),
                    }
                    channel.go_on().map_err(|errno| LaunchError::system("start container process", "", errno))?;
                }
                Ok(Message::Terminal(master)) => terminal = Some(master),
                Ok(Message::Failed(report, _)) => return Err(LaunchError::reported(&self.plan.ops, report)),
                Ok(Message::End) => {
                    let hint = "it died before it was ready; out of memory or pids in its cgroup?";
                    return Err(LaunchError::system("start container process", "", Errno::CHILD).with_hint(hint));
                }
                Err(errno) => return Err(LaunchError::system("start container process", "", errno)),
            }
        }
    }

    fn run_hooks(&self, child: &Child) -> Result<(), LaunchError> {
        let Some(wanted) = &self.subject.request.spec.hooks else {
            return Ok(());
        };
        let state = self.state("creating", child.pid);
        hooks::run_hooks(Point::Prestart, &wanted.prestart, &state)?;
        hooks::run_hooks(Point::CreateRuntime, &wanted.create_runtime, &state)?;
        hooks::run_hooks_inside(Point::CreateContainer, &wanted.create_container, &state, &child.pidfd)
    }

    fn state(&self, status: &str, pid: i32) -> ContainerState {
        ContainerState::new(
            self.subject.request.id,
            status,
            pid,
            self.subject.request.bundle,
            &self.subject.request.spec.annotations,
        )
    }
}

/// The container's oom_score_adj, which a process in a user namespace could not lower itself.
fn set_oom_score(pid: i32, process: &Process, clamp: bool) -> Result<(), LaunchError> {
    let Some(score) = process.oom_score_adj else {
        return Ok(());
    };
    match super::write_file(&format!("/proc/{pid}/oom_score_adj"), score.to_string().as_bytes()) {
        Err(Errno::ACCESS | Errno::PERM) if clamp => Ok(()),
        Err(errno) => {
            let hint = "lowering it needs CAP_SYS_RESOURCE";
            Err(LaunchError::system("set oom_score_adj", score.to_string(), errno).with_hint(hint))
        }
        Ok(()) => Ok(()),
    }
}

impl Created {
    /// A container that another runtime has made, and starts.
    pub fn elsewhere(pid: i32, pidfd: OwnedFd, cgroup: cgroup::Handle) -> Created {
        Created { pid, pidfd, cgroup, terminal: None, start: None }
    }

    /// Another process is the init from now on: the one that waited ends.
    pub fn replace_init(&mut self, pid: i32, pidfd: OwnedFd) {
        self.start = None;
        self.pid = pid;
        let old = std::mem::replace(&mut self.pidfd, pidfd);
        // Its gate is closed; this makes it certain.
        let _ = keelson_sys::pidfd::send_signal(&old, libc::SIGKILL);
    }

    /// Lets the init exec; returns when execve succeeded, or with the step that failed (the init is gone then, to be reaped).
    pub fn start(&mut self) -> Result<(), LaunchError> {
        let Some(mut start) = self.start.take() else {
            return Err(LaunchError::invalid("start", "", "already started, or left to another process"));
        };
        if let Some((wanted, state)) = &start.hooks {
            hooks::run_hooks_inside(Point::StartContainer, &wanted.start_container, state, &self.pidfd)?;
        }
        let failed = |errno| LaunchError::system("start", "", errno);
        start.channel.go_on().map_err(failed)?;
        match start.channel.receive().map_err(failed)? {
            Message::End => self.after_start(start.hooks.take()),
            Message::Failed(report, _) => {
                let report = child::Report { op: report.op.saturating_sub(start.first), ..report };
                Err(LaunchError::reported(&start.ops, report))
            }
            Message::Sync | Message::Ready | Message::Terminal(_) => Err(failed(Errno::PROTO)),
        }
    }

    /// The hooks that see the user's program run. One that fails ends the container, as the specification has it.
    fn after_start(&self, hooks: Option<(Hooks, ContainerState)>) -> Result<(), LaunchError> {
        let Some((wanted, state)) = hooks.filter(|(wanted, _)| !wanted.poststart.is_empty()) else { return Ok(()) };
        let state = ContainerState { status: "running".to_owned(), ..state };
        hooks::run_hooks(Point::Poststart, &wanted.poststart, &state).inspect_err(|_| {
            let _ = keelson_sys::pidfd::send_signal(&self.pidfd, libc::SIGKILL);
        })
    }
}

/// Starts an init that waits at a [`Gate::Listener`]: `stream` is connected to its socket.
pub fn start_through(stream: OwnedFd) -> Result<(), LaunchError> {
    let failed = |errno| LaunchError::system("start", "", errno);
    let channel = Channel::from_socket(stream);
    channel.go_on().map_err(failed)?;
    match channel.receive().map_err(failed)? {
        Message::End => Ok(()),
        Message::Failed(report, words) => Err(LaunchError::told(report, &words)),
        Message::Sync | Message::Ready | Message::Terminal(_) => Err(failed(Errno::PROTO)),
    }
}
