//! `create`: from a spec to an init that waits just before exec, and its start.
//! In the shim or the OCI command line; blocks until the child is at its gate.
//! Owns the cgroup and the child while they are being made: a failure kills, reaps and removes them.
//! Must never return an error and leave a process, a mount or a cgroup.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use keelson_sys::child::{self, Attributes, Channel, Child, CloneOptions, Message, Op, Propagation, Shared};
use keelson_sys::namespace::NamespaceKinds;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::hooks::{self, ContainerState, Point};
use super::mounts::Mounts;
use super::namespaces::ForChildren;
use super::process::{self, Filter, Wanted};
use super::{CreateRequest, Gate, LaunchError, Namespaces, c_string, devices, idmap, lsm, options, rootfs, sysctl};
use crate::cgroup::{self, Location};
use crate::spec::{Linux, NamespaceKind, Process, Resources, Spec};

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
    hooks: Option<(Vec<crate::spec::Hook>, ContainerState)>,
}

/// What the parent does while the child waits at a Sync.
enum Errand {
    MapUsers,
    Scope,
    Hooks,
}

/// Makes the container; its init waits just before exec.
pub fn create(request: CreateRequest<'_>) -> Result<Created, LaunchError> {
    let default_linux = Linux::default();
    let linux = request.spec.linux.as_ref().unwrap_or(&default_linux);
    refuse_unsupported(linux)?;
    let namespaces = Namespaces::open(linux)?;
    let cgroup = Cgroup::make(&request, linux)?;
    match assemble(request, linux, &namespaces, &cgroup) {
        Ok(created) => Ok(created),
        Err(error) => {
            cgroup.discard();
            Err(error)
        }
    }
}

fn refuse_unsupported(linux: &Linux) -> Result<(), LaunchError> {
    if linux.intel_rdt.is_some() {
        return Err(LaunchError::unsupported("use linux.intelRdt", "", "not offered"));
    }
    lsm::check_mount_label(&linux.mount_label)
}

fn assemble(
    mut request: CreateRequest<'_>,
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
    let stdio = std::mem::replace(&mut request.stdio, super::ChildStdio::Terminal);
    let gate = std::mem::replace(&mut request.gate, Gate::Creator);
    let hooks = request.spec.hooks.as_ref().filter(|hooks| hooks::any_before_start(hooks));
    let mut errands = VecDeque::new();
    let mut ops = vec![Op::Undumpable];
    let handle = cgroup.handle();
    let join =
        handle.map(cgroup::Handle::join_fds).transpose().map_err(|error| cgroup_failed("open cgroup", &error))?;
    let (unified, tasks) = join.map_or((None, Vec::new()), |join| (join.unified, join.tasks));
    ops.extend(tasks.into_iter().map(|fd| Op::JoinTasks(Rc::new(fd))));
    if namespaces.makes(NamespaceKind::User) {
        errands.push_back(Errand::MapUsers);
        ops.push(Op::Sync);
    }
    if handle.is_none() {
        errands.push_back(Errand::Scope);
        ops.push(Op::Sync);
    }
    enter_namespaces(&mut ops, namespaces);
    ops.push(Op::Session);
    let proc = (!linux.sysctl.is_empty() || lsm::needs_proc(process)).then(private_proc).transpose()?;
    let terminal = matches!(stdio, super::ChildStdio::Terminal);
    let wanted = Wanted {
        process,
        env: request.env,
        seccomp: filter(&request, linux)?,
        program: request.builtin_init.then(init_program).transpose()?,
        create_cwd: true,
        keep_groups: false,
        proc: proc.as_ref(),
        console: terminal && namespaces.makes(NamespaceKind::Mount),
    };
    let own_mounts = namespaces.makes(NamespaceKind::Mount);
    if own_mounts {
        build_root(&mut ops, &request, linux, namespaces, handle)?;
    } else if namespaces.joins(NamespaceKind::Mount).is_none() {
        let hint = "a container needs a mount namespace of its own";
        return Err(LaunchError::invalid("read namespaces", "mount", hint));
    }
    name_host(&mut ops, request.spec, namespaces)?;
    if let Some(proc) = &proc {
        ops.extend(sysctl::operations(&linux.sysctl, namespaces, proc)?);
    }
    // Terminal first: its console lies under a root that may become read-only, and its devpts is still at hand.
    process::prepare(&mut ops, stdio, &wanted)?;
    if own_mounts {
        hide_paths(&mut ops, linux)?;
        if hooks.is_some() {
            errands.push_back(Errand::Hooks);
            ops.push(Op::Sync);
        }
        ops.push(Op::EnterRoot { pivot: !request.no_pivot });
        finish_root(&mut ops, request.spec, linux);
    }
    if let Some(personality) = &linux.personality {
        ops.push(Op::Personality(match personality.domain.as_str() {
            "LINUX" => 0,
            "LINUX32" => 8,
            other => return Err(LaunchError::invalid("set personality", other, "not LINUX or LINUX32")),
        }));
    }
    process::settle(&mut ops, &wanted)?;
    let listener = match gate {
        Gate::Creator => None,
        Gate::Listener(listener) => Some(Rc::new(listener)),
    };
    // While it waits the init holds nothing of this process's.
    ops.push(Op::CloseAllBut(wanted.program.iter().chain(&listener).cloned().collect()));
    let at_gate = ops.len();
    process::finish(&mut ops, wanted, keelson_sys::process::ignored_signals())?;
    let ours = listener.is_none();
    let gate_op = match listener {
        None => Op::Gate,
        Some(listener) => Op::GateListener { listener, words: words(&ops, at_gate) },
    };
    ops.insert(at_gate, gate_op);
    let child = clone(&ops, namespaces, linux, unified.as_ref())?;
    let launched = Launched { request: &request, linux, process, ops, at_gate: at_gate + 1, errands, ours };
    launched.await_gate(child, cgroup)
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

fn enter_namespaces(ops: &mut Vec<Op>, namespaces: &Namespaces) {
    for (kind, fd) in &namespaces.joined {
        // Both are entered by the clone itself.
        if !matches!(kind, NamespaceKind::User | NamespaceKind::Pid) {
            let (kinds, what) = (super::namespaces::kinds(*kind), super::namespaces::name(*kind));
            ops.push(Op::SetNamespaces { fd: fd.clone(), kinds, what });
        }
    }
    if namespaces.makes(NamespaceKind::User) || namespaces.joins(NamespaceKind::User).is_some() {
        ops.push(Op::BecomeRoot);
    }
    if namespaces.makes(NamespaceKind::Cgroup) {
        ops.push(Op::Unshare(NamespaceKinds::CGROUP));
    }
}

fn build_root(
    ops: &mut Vec<Op>,
    request: &CreateRequest<'_>,
    linux: &Linux,
    namespaces: &Namespaces,
    handle: Option<&cgroup::Handle>,
) -> Result<(), LaunchError> {
    ops.push(Op::Propagation(Propagation::Private));
    let in_user_namespace = namespaces.separates(NamespaceKind::User);
    let mappings = (linux.uid_mappings.as_slice(), linux.gid_mappings.as_slice());
    let root = match (request.overlay, &request.spec.root) {
        (Some(overlay), _) => {
            let shift = overlay.idmapped && in_user_namespace;
            let namespace = shift.then(|| idmap::namespace(mappings.0, mappings.1)).transpose()?;
            let root = (idmap::outside(mappings.0, 0), idmap::outside(mappings.1, 0));
            let shift = namespace.as_ref().map(|namespace| rootfs::Shift { namespace, root });
            rootfs::overlay(overlay, shift.as_ref(), request.bundle)?
        }
        (None, Some(root)) => rootfs::Root::Tree(rootfs::bind(&request.bundle.join(&root.path))?),
        (None, None) => return Err(LaunchError::invalid("read spec", "root", "it is missing")),
    };
    ops.push(match root {
        rootfs::Root::Tree(tree) => Op::AttachRoot { tree, over: place_of_root(request)? },
        rootfs::Root::Legacy(op) => op,
    });
    let mut mounts = Mounts::new(request.bundle, &linux.mount_label, mappings);
    mounts.cgroup = handle;
    if !request.volumes.is_empty() {
        let paths =
            request.volumes.iter().map(|path| c_string("create volume folder", path)).collect::<Result<_, _>>()?;
        let writable = request.spec.root.as_ref().is_some_and(|root| root.readonly);
        ops.push(Op::Folders { paths, writable });
    }
    ops.extend(mounts.operations(&request.spec.mounts)?);
    let dev_is_bound = request.spec.mounts.iter().any(|mount| {
        mount.destination.trim_end_matches('/') == "/dev" && matches!(mount.kind.as_str(), "" | "bind" | "none")
    });
    if !dev_is_bound && !request.builtin_init {
        ops.extend(devices::operations(&linux.devices, in_user_namespace)?);
    }
    Ok(())
}

/// Over `/`, where nothing has to exist; but a createContainer hook looks for it where the spec says it is.
fn place_of_root(request: &CreateRequest<'_>) -> Result<CString, LaunchError> {
    let hooks = request.spec.hooks.as_ref().is_some_and(|hooks| !hooks.create_container.is_empty());
    match &request.spec.root {
        Some(root) if hooks => {
            let path = request.bundle.join(&root.path);
            c_string("attach root filesystem", &path.display().to_string())
        }
        _ => Ok(c"/".into()),
    }
}

fn name_host(ops: &mut Vec<Op>, spec: &Spec, namespaces: &Namespaces) -> Result<(), LaunchError> {
    for (step, name, op) in [
        ("set hostname", &spec.hostname, Op::Hostname as fn(_) -> _),
        ("set domain name", &spec.domainname, Op::Domainname as fn(_) -> _),
    ] {
        if name.is_empty() {
            continue;
        }
        if !namespaces.separates(NamespaceKind::Uts) {
            return Err(LaunchError::invalid(step, name, "the container shares the node's uts namespace"));
        }
        ops.push(op(c_string(step, name)?));
    }
    Ok(())
}

fn hide_paths(ops: &mut Vec<Op>, linux: &Linux) -> Result<(), LaunchError> {
    let paths = |step: &'static str, paths: &[String]| {
        paths.iter().map(|path| c_string(step, path)).collect::<Result<Vec<_>, LaunchError>>()
    };
    if !linux.readonly_paths.is_empty() {
        ops.push(Op::ReadOnly(paths("make path read-only", &linux.readonly_paths)?));
    }
    if !linux.masked_paths.is_empty() {
        ops.push(Op::Mask { null: devices::null()?, paths: paths("mask path", &linux.masked_paths)? });
    }
    Ok(())
}

fn finish_root(ops: &mut Vec<Op>, spec: &Spec, linux: &Linux) {
    let readonly = spec.root.as_ref().is_some_and(|root| root.readonly);
    let propagation = options::propagation(&linux.rootfs_propagation).map(|(propagation, _)| propagation);
    let propagation = propagation.filter(|propagation| *propagation != Propagation::Private);
    if readonly || propagation.is_some() {
        let attributes = Attributes { set: if readonly { Attributes::RDONLY } else { 0 }, clear: 0 };
        ops.push(Op::RootAttributes { attributes, propagation });
    }
}

fn filter(request: &CreateRequest<'_>, linux: &Linux) -> Result<Option<Filter>, LaunchError> {
    let profile = linux.seccomp.as_ref();
    if let Some(program) = request.seccomp {
        return Filter::new(program, profile).map(Some);
    }
    let Some(profile) = profile.filter(|_| !request.builtin_init) else {
        return Ok(None);
    };
    let program = crate::seccomp::compile(profile)
        .map_err(|error| LaunchError::invalid("load seccomp filter", "", super::chain(&error)))?;
    if program.notifies() {
        return Err(LaunchError::unsupported("load seccomp filter", "SCMP_ACT_NOTIFY", "not offered"));
    }
    Filter::new(program.as_bytes(), Some(profile)).map(Some)
}

fn init_program() -> Result<Shared, LaunchError> {
    keelson_sys::init::program().map(Rc::new).map_err(|errno| LaunchError::system("create init program", "", errno))
}

/// A procfs of our own, that nobody can have mounted anything in; where that is not permitted (inside a container), the present one.
fn private_proc() -> Result<Shared, LaunchError> {
    let fresh = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|context| {
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    });
    match fresh {
        Err(Errno::PERM) => super::exec::host_proc(),
        other => other.map(Rc::new).map_err(|errno| LaunchError::system("mount private procfs", "", errno)),
    }
}

/// How the child shall call its failures after the gate to a starter that does not know this plan.
fn words(ops: &[Op], at_gate: usize) -> Vec<Vec<u8>> {
    ops.iter()
        .skip(at_gate)
        .map(|op| {
            let (step, object) = op.describe(0);
            [step.as_bytes(), b"\0", object.as_bytes()].concat()
        })
        .collect()
}

struct Launched<'a> {
    request: &'a CreateRequest<'a>,
    linux: &'a Linux,
    process: &'a Process,
    ops: Vec<Op>,
    /// Index of the first operation after the gate.
    at_gate: usize,
    errands: VecDeque<Errand>,
    /// Whether it is [`Created`] that lets the init go.
    ours: bool,
}

impl Launched<'_> {
    fn await_gate(mut self, (child, channel): (Child, Channel), cgroup: &Cgroup) -> Result<Created, LaunchError> {
        match self.talk(&child, &channel, cgroup) {
            Ok((terminal, handle)) => {
                let hooks = self.request.spec.hooks.as_ref().filter(|hooks| !hooks.start_container.is_empty());
                let hooks = hooks.map(|hooks| (hooks.start_container.clone(), self.state("created", child.pid)));
                let first = u32::try_from(self.at_gate).unwrap_or(u32::MAX);
                let ops = self.ops.split_off(self.at_gate);
                let start = self.ours.then_some(PendingStart { channel, ops, first, hooks });
                Ok(Created { pid: child.pid, pidfd: child.pidfd, cgroup: handle, terminal, start })
            }
            Err(error) => {
                let _ = keelson_sys::pidfd::send_signal(&child.pidfd, libc::SIGKILL);
                let _ = keelson_sys::pidfd::wait(&child.pidfd);
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
        set_oom_score(child.pid, self.process, self.request.clamp_oom_score)?;
        let mut terminal = None;
        let mut handle = cgroup.handle().cloned();
        loop {
            match channel.receive() {
                Ok(Message::Ready) => {
                    let handle = handle.ok_or_else(|| LaunchError::invalid("create cgroup", "", "there is none"))?;
                    return Ok((terminal, handle));
                }
                Ok(Message::Sync) => {
                    match self.errands.pop_front() {
                        Some(Errand::MapUsers) => {
                            idmap::write_maps(child.pid, &self.linux.uid_mappings, &self.linux.gid_mappings)?;
                        }
                        Some(Errand::Scope) => handle = Some(cgroup.make_scope(child.pid, self.linux)?),
                        Some(Errand::Hooks) => self.run_hooks(child)?,
                        None => return Err(LaunchError::system("start container process", "", Errno::PROTO)),
                    }
                    channel.go_on().map_err(|errno| LaunchError::system("start container process", "", errno))?;
                }
                Ok(Message::Terminal(master)) => terminal = Some(master),
                Ok(Message::Failed(report, _)) => return Err(LaunchError::reported(&self.ops, report)),
                Ok(Message::End) => {
                    let hint = "it died before it was ready; out of memory or pids in its cgroup?";
                    return Err(LaunchError::system("start container process", "", Errno::CHILD).with_hint(hint));
                }
                Err(errno) => return Err(LaunchError::system("start container process", "", errno)),
            }
        }
    }

    fn run_hooks(&self, child: &Child) -> Result<(), LaunchError> {
        let Some(wanted) = &self.request.spec.hooks else {
            return Ok(());
        };
        let state = self.state("creating", child.pid);
        hooks::run_hooks(Point::Prestart, &wanted.prestart, &state)?;
        hooks::run_hooks(Point::CreateRuntime, &wanted.create_runtime, &state)?;
        hooks::run_hooks_inside(Point::CreateContainer, &wanted.create_container, &state, &child.pidfd)
    }

    fn state(&self, status: &str, pid: i32) -> ContainerState {
        ContainerState::new(self.request.id, status, pid, self.request.bundle, &self.request.spec.annotations)
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
    /// Lets the init exec; returns when execve succeeded, or with the step that failed (the init is gone then, to be reaped).
    pub fn start(&mut self) -> Result<(), LaunchError> {
        let Some(start) = self.start.take() else {
            return Err(LaunchError::invalid("start", "", "already started, or left to another process"));
        };
        if let Some((wanted, state)) = &start.hooks {
            hooks::run_hooks_inside(Point::StartContainer, wanted, state, &self.pidfd)?;
        }
        let failed = |errno| LaunchError::system("start", "", errno);
        start.channel.go_on().map_err(failed)?;
        match start.channel.receive().map_err(failed)? {
            Message::End => Ok(()),
            Message::Failed(report, _) => {
                let report = child::Report { op: report.op.saturating_sub(start.first), ..report };
                Err(LaunchError::reported(&start.ops, report))
            }
            Message::Sync | Message::Ready | Message::Terminal(_) => Err(failed(Errno::PROTO)),
        }
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

/// The container's cgroup while the container is being made.
enum Cgroup {
    Ready(cgroup::Handle),
    /// Systemd makes it around the process.
    Later(String),
}

impl Cgroup {
    fn make(request: &CreateRequest<'_>, linux: &Linux) -> Result<Cgroup, LaunchError> {
        let path = if linux.cgroups_path.is_empty() {
            cgroup::default_path(request.id, request.systemd_cgroup)
        } else {
            linux.cgroups_path.clone()
        };
        if request.systemd_cgroup {
            return Ok(Cgroup::Later(path));
        }
        let none = Resources::default();
        let made = Location::parse(&path, false)
            .and_then(|location| cgroup::Handle::create(&location, linux.resources.as_ref().unwrap_or(&none)));
        made.map(Cgroup::Ready).map_err(|error| cgroup_failed("create cgroup", &error))
    }

    fn handle(&self) -> Option<&cgroup::Handle> {
        match self {
            Cgroup::Ready(handle) => Some(handle),
            Cgroup::Later(_) => None,
        }
    }

    fn make_scope(&self, pid: i32, linux: &Linux) -> Result<cgroup::Handle, LaunchError> {
        let Cgroup::Later(path) = self else {
            return Err(LaunchError::invalid("create cgroup", "", "it exists already"));
        };
        let none = Resources::default();
        let resources = linux.resources.as_ref().unwrap_or(&none);
        Location::parse(path, true)
            .and_then(|location| cgroup::Handle::create_scope(&location, pid, resources))
            .map_err(|error| cgroup_failed("create cgroup", &error))
    }

    /// Empty by now; a failure to remove it must not hide why the launch failed.
    fn discard(&self) {
        if let Cgroup::Ready(handle) = self {
            let _ = handle.kill();
            let _ = handle.remove();
        }
    }
}

pub(super) fn cgroup_failed(step: &'static str, error: &cgroup::CgroupError) -> LaunchError {
    LaunchError::invalid(step, "", super::chain(error))
}

/// The present `/proc`, made sure of.
pub(super) fn open_host_proc() -> Result<OwnedFd, LaunchError> {
    const PROC_SUPER_MAGIC: u64 = 0x9fa0;
    const PROC_ROOT_INODE: u64 = 1;
    let failed = |errno| LaunchError::system("open procfs", "/proc", errno);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let proc = rustix::fs::openat(CWD, "/proc", flags, Mode::empty()).map_err(failed)?;
    let filesystem = rustix::fs::fstatfs(&proc).map_err(failed)?;
    let inode = rustix::fs::fstat(&proc).map_err(failed)?.st_ino;
    if u64::try_from(filesystem.f_type).ok() != Some(PROC_SUPER_MAGIC) || inode != PROC_ROOT_INODE {
        return Err(LaunchError::invalid("open procfs", "/proc", "it is not one"));
    }
    Ok(proc)
}
