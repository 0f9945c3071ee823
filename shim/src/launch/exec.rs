//! `exec`: one clone whose child enters a container's namespaces and executes there.
//! In the shim, many times, or once in the OCI command line; blocks until the child has exec'd.
//! Owns in [`ExecTarget`] what every exec of one container shares, so that each costs only its own.
//! Must never run anything of the container with this process's memory when a process of it could look into it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use keelson_sys::child::{self, Channel, Child, CloneOptions, Message, Op, Report, Shared};
use keelson_sys::namespace::{self, NamespaceKinds};
use rustix::io::Errno;

use super::place::cgroup_failed;
use super::plan::open_host_proc;
use super::process::{self, Filter, Wanted};
use super::{ChildStdio, Created, LaunchError, c_string, capability, lsm, namespaces};
use crate::cgroup::{self, Leaf};
use crate::spec::{Linux, NamespaceKind, Process, Spec};

/// A running container that processes can be added to.
pub struct ExecTarget {
    init: Shared,
    cgroup: cgroup::Handle,
    tasks: Vec<Shared>,
    proc: Shared,
    kinds: NamespaceKinds,
    /// Share memory with the child until it execs.
    borrow: bool,
    ignored: u64,
}

/// What to execute.
pub struct ExecRequest<'a> {
    pub target: &'a ExecTarget,
    pub process: &'a Process,
    /// Replaces `process.env`: entries as `NAME=value` that need not be UTF-8.
    pub env: Option<&'a [Vec<u8>]>,
    /// Names the leaf cgroup.
    pub exec_id: &'a str,
    /// Compiled seccomp program, or none.
    pub seccomp: Option<&'a [u8]>,
    pub clamp_oom_score: bool,
    pub stdio: ChildStdio,
}

/// A process that has been executed.
pub struct Execed {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub leaf: Leaf,
    pub terminal: Option<OwnedFd>,
}

impl Created {
    /// What [`exec`] needs; to be made once, after `create`. From here on every child of this process is born in the container's
    /// pid namespace.
    pub fn exec_target(&self, spec: &Spec) -> Result<ExecTarget, LaunchError> {
        let init = rustix::io::fcntl_dupfd_cloexec(&self.pidfd, 3)
            .map_err(|errno| LaunchError::system("open container process", self.pid.to_string(), errno))?;
        ExecTarget::of(self.pid, init, &self.cgroup, spec)
    }
}

impl ExecTarget {
    /// The container whose init is `pid`, for a process that did not create it. `started` is what [`start_time`] told at
    /// creation: it tells a pid that is used again. As with [`Created::exec_target`], later children are born in its pid namespace.
    pub fn open(pid: i32, started: u64, cgroup: &cgroup::Handle, spec: &Spec) -> Result<ExecTarget, LaunchError> {
        let failed = |errno| LaunchError::system("open container process", pid.to_string(), errno);
        let init = keelson_sys::pidfd::open(pid).map_err(failed)?;
        // In this order: a process that is the right one now is the one that the pidfd holds.
        if start_time(pid)? != started {
            return Err(failed(Errno::SRCH).with_hint("the container has ended"));
        }
        ExecTarget::of(pid, init, cgroup, spec)
    }

    fn of(pid: i32, init: OwnedFd, cgroup: &cgroup::Handle, spec: &Spec) -> Result<ExecTarget, LaunchError> {
        let default_linux = Linux::default();
        let linux = spec.linux.as_ref().unwrap_or(&default_linux);
        let has = |kind| linux.namespaces.iter().any(|namespace| namespace.kind == kind);
        let mut kinds = NamespaceKinds::EMPTY;
        for kind in [
            NamespaceKind::Mount,
            NamespaceKind::Network,
            NamespaceKind::Ipc,
            NamespaceKind::Uts,
            NamespaceKind::Cgroup,
            NamespaceKind::Time,
        ] {
            if has(kind) {
                kinds = kinds | namespaces::kinds(kind);
            }
        }
        // Entering one's own user namespace again is refused by the kernel.
        let user = has(NamespaceKind::User) && namespaces::differs(pid, NamespaceKind::User)?;
        if user {
            kinds = kinds | NamespaceKinds::USER;
        }
        if has(NamespaceKind::Pid) {
            namespace::set(init.as_fd(), NamespaceKinds::PID).map_err(|error| {
                LaunchError::system("join namespace", "pid", Errno::from_io_error(&error).unwrap_or(Errno::IO))
            })?;
        }
        let tasks = cgroup.join_fds().map_err(|error| cgroup_failed("open cgroup", &error))?.tasks;
        // A container that may ptrace processes of this user namespace could reach into a child before its exec: then the
        // child has a copy of our memory, not the memory. The kernel lets no process that shares memory change its clock.
        let traces = capability::may_trace(spec.process.as_ref().and_then(|process| process.capabilities.as_ref()));
        Ok(ExecTarget {
            init: Rc::new(init),
            cgroup: cgroup.clone(),
            tasks: tasks.into_iter().map(Rc::new).collect(),
            proc: Rc::new(open_host_proc()?),
            kinds,
            borrow: !has(NamespaceKind::Time) && (user || !traces),
            ignored: keelson_sys::process::ignored_signals(),
        })
    }
}

/// Runs a process in a container; returns when execve succeeded, or with the step that failed.
pub fn exec(request: ExecRequest<'_>) -> Result<Execed, LaunchError> {
    let target = request.target;
    let leaf = target.cgroup.leaf(request.exec_id).map_err(|error| cgroup_failed("create cgroup", &error))?;
    match run(request, &leaf) {
        Ok((child, terminal)) => Ok(Execed { pid: child.pid, pidfd: child.pidfd, leaf, terminal }),
        Err(error) => {
            let _ = leaf.remove();
            Err(error)
        }
    }
}

fn run(request: ExecRequest<'_>, leaf: &Leaf) -> Result<(Child, Option<OwnedFd>), LaunchError> {
    let ExecRequest { target, process, env, seccomp, clamp_oom_score, stdio, .. } = request;
    let terminal = matches!(stdio, ChildStdio::Terminal);
    let mut ops = Vec::with_capacity(24 + target.tasks.len());
    ops.push(Op::Undumpable);
    // Without a unified hierarchy the leaf is one of v1's, so there is nothing to keep between execs.
    let join = leaf.unified_fd().map_err(|error| cgroup_failed("open cgroup", &error))?;
    match join {
        Some(_) => ops.extend(target.tasks.iter().map(|fd| Op::JoinTasks(fd.clone()))),
        None => {
            let tasks = leaf.join_fds().map_err(|error| cgroup_failed("open cgroup", &error))?.tasks;
            ops.extend(tasks.into_iter().map(|fd| Op::JoinTasks(Rc::new(fd))));
        }
    }
    if let Some(score) = process.oom_score_adj {
        ops.push(Op::WriteProc {
            proc: target.proc.clone(),
            path: c_string("set oom_score_adj", "thread-self/oom_score_adj")?,
            value: score.to_string().into_bytes(),
            what: "set oom_score_adj",
            lenient: clamp_oom_score,
        });
    }
    if !target.kinds.is_empty() {
        ops.push(Op::SetNamespaces { fd: target.init.clone(), kinds: target.kinds, what: "of the container" });
    }
    if target.kinds.contains(NamespaceKinds::USER) {
        ops.push(Op::BecomeRoot);
    }
    ops.push(Op::Session);
    let wanted = Wanted {
        process,
        env,
        seccomp: seccomp.map(|program| Filter::new(program, None)).transpose()?,
        program: None,
        create_cwd: false,
        proc: lsm::needs_proc(process).then_some(&target.proc),
        console: false,
    };
    process::prepare(&mut ops, stdio, &wanted)?;
    process::settle(&mut ops, &wanted)?;
    ops.push(Op::CloseOnExec);
    process::finish(&mut ops, wanted, target.ignored)?;
    let options = CloneOptions { cgroup: join.as_ref().map(AsFd::as_fd), ..CloneOptions::default() };
    if target.borrow { borrowing(&ops, terminal, options) } else { copying(&ops, options) }
}

fn borrowing(ops: &[Op], terminal: bool, options: CloneOptions<'_>) -> Result<(Child, Option<OwnedFd>), LaunchError> {
    let (channel, theirs) = terminal.then(Channel::pair).transpose().map_err(not_cloned)?.unzip();
    let child = match child::run(ops, theirs, options).map_err(not_cloned)? {
        Ok(child) => child,
        Err(report) => return Err(reported(ops, report)),
    };
    let master = match channel.map(|channel| channel.receive()) {
        None => None,
        Some(Ok(Message::Terminal(master))) => Some(master),
        Some(_) => return Err(LaunchError::system("create terminal", "", Errno::PROTO)),
    };
    Ok((child, master))
}

fn copying(ops: &[Op], options: CloneOptions<'_>) -> Result<(Child, Option<OwnedFd>), LaunchError> {
    let (channel, theirs) = Channel::pair().map_err(not_cloned)?;
    let child = child::fork(ops, (&channel, theirs), options).map_err(not_cloned)?;
    let mut master = None;
    loop {
        let error = match channel.receive() {
            Ok(Message::Terminal(fd)) => {
                master = Some(fd);
                continue;
            }
            Ok(Message::End) => return Ok((child, master)),
            Ok(Message::Failed(report, _)) => reported(ops, report),
            Ok(Message::Sync | Message::Ready) => LaunchError::system("exec", "", Errno::PROTO),
            Err(errno) => LaunchError::system("exec", "", errno),
        };
        child.end();
        return Err(error);
    }
}

fn reported(ops: &[Op], report: Report) -> LaunchError {
    LaunchError::reported(ops, report)
}

fn not_cloned(errno: Errno) -> LaunchError {
    let error = LaunchError::system("clone process into container", "", errno);
    match errno {
        // What the kernel says when the pid namespace has lost its init.
        Errno::NOMEM | Errno::SRCH | Errno::NODEV => {
            error.with_hint("the container has ended, or its memory is used up")
        }
        Errno::AGAIN => error.with_hint("the container's limit of processes is reached"),
        _ => error,
    }
}

/// Field 22 of `/proc/<pid>/stat`: when the process started, in clock ticks after boot.
pub fn start_time(pid: i32) -> Result<u64, LaunchError> {
    let path = format!("/proc/{pid}/stat");
    let failed = |errno| LaunchError::system("read start time", &path, errno);
    let text = std::fs::read(&path).map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    let text = String::from_utf8_lossy(&text);
    // The command's name, in brackets, may hold anything; field 3 follows its last bracket.
    let fields = text.rsplit_once(')').map(|(_, fields)| fields.split_ascii_whitespace());
    let field = fields.and_then(|mut fields| fields.nth(22 - 3)).and_then(|field| field.parse().ok());
    field.ok_or_else(|| failed(Errno::PROTO))
}

impl std::fmt::Debug for ExecTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecTarget")
            .field("init", &self.init.as_raw_fd())
            .field("borrow", &self.borrow)
            .finish_non_exhaustive()
    }
}
