//! The plan of a container's init: what a spec asks for, as operations in the order in which the kernel allows them.
//! In the shim, before the clone; resolves every path of the host and opens what the child will need.
//! Owns the descriptors in the plan until the parent drops it, when the child has its own.
//! Must never depend on what the container's own files say.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use keelson_sys::child::{Attributes, Op, Propagation, Shared};
use keelson_sys::namespace::NamespaceKinds;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::mounts::Mounts;
use super::place::{self, cgroup_failed};
use super::process::{self, Filter, Wanted};
use super::{
    ChildStdio, CreateRequest, Gate, LaunchError, Namespaces, c_string, devices, hooks, idmap, lsm, options, rootfs,
    sysctl,
};
use crate::cgroup;
use crate::spec::{Linux, NamespaceKind, Process, Spec};

/// What is to be launched.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) request: &'a CreateRequest<'a>,
    pub(super) linux: &'a Linux,
    pub(super) process: &'a Process,
    pub(super) namespaces: &'a Namespaces,
}

pub(super) struct Plan {
    pub(super) ops: Vec<Op>,
    /// The cgroup to be born in.
    pub(super) unified: Option<OwnedFd>,
    /// One for each Sync, in order.
    pub(super) errands: VecDeque<Errand>,
    /// Index of the first operation after the gate.
    pub(super) after_gate: usize,
    /// Whether it is the creator that lets the init go.
    pub(super) ours: bool,
}

/// What the parent does while the child waits at a Sync.
pub(super) enum Errand {
    MapUsers,
    Scope,
    Hooks,
}

/// Builds the plan; `handle` is absent with the systemd driver, which needs the process first.
pub(super) fn build(
    subject: &Subject<'_>,
    (stdio, gate): (ChildStdio, Gate),
    handle: Option<&cgroup::Handle>,
) -> Result<Plan, LaunchError> {
    let Subject { request, linux, process, namespaces } = *subject;
    let hooks = request.spec.hooks.as_ref().filter(|hooks| hooks::any_before_start(hooks));
    let mut errands = VecDeque::new();
    let mut ops = vec![Op::Undumpable];
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
    let terminal = matches!(stdio, ChildStdio::Terminal);
    let wanted = Wanted {
        process,
        env: request.env,
        seccomp: filter(request, linux)?,
        program: request.builtin_init.then(init_program).transpose()?,
        create_cwd: true,
        proc: proc.as_ref(),
        console: terminal && namespaces.makes(NamespaceKind::Mount),
    };
    let own_mounts = namespaces.makes(NamespaceKind::Mount);
    if own_mounts {
        build_root(&mut ops, subject, handle)?;
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
    Ok(Plan { ops, unified, errands, after_gate: at_gate + 1, ours })
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

fn build_root(ops: &mut Vec<Op>, subject: &Subject<'_>, handle: Option<&cgroup::Handle>) -> Result<(), LaunchError> {
    let Subject { request, linux, namespaces, .. } = *subject;
    ops.push(Op::Propagation(Propagation::Private));
    let in_user_namespace = namespaces.separates(NamespaceKind::User);
    let mappings = (linux.uid_mappings.as_slice(), linux.gid_mappings.as_slice());
    let shifted = request.overlay.is_some_and(|overlay| overlay.idmapped) && in_user_namespace;
    let namespace = shifted.then(|| idmap::namespace(mappings.0, mappings.1)).transpose()?;
    let shift = namespace.as_ref().map(|namespace| {
        let root = (idmap::outside(mappings.0, 0), idmap::outside(mappings.1, 0));
        rootfs::Shift { namespace, root }
    });
    let root = match (request.overlay, &request.spec.root) {
        (Some(overlay), _) => rootfs::overlay(overlay, shift.as_ref(), &linux.mount_label, request.bundle)?,
        (None, Some(root)) => rootfs::Root::Tree(rootfs::bind(&request.bundle.join(&root.path))?),
        (None, None) => return Err(LaunchError::invalid("read spec", "root", "it is missing")),
    };
    ops.push(match root {
        rootfs::Root::Tree(tree) => Op::AttachRoot { tree, over: place_of_root(request)? },
        rootfs::Root::Legacy(op) => op,
    });
    let mut mounts = Mounts::new(request.bundle, &linux.mount_label, mappings);
    (mounts.images, mounts.shift, mounts.resolved) = (request.image_volumes, shift, request.resolved_sources);
    mounts.cgroup = handle;
    if handle.is_none() {
        mounts.expected = Some(place::expected(request, linux)?);
    }
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
        .map_err(|error| LaunchError::invalid("load seccomp filter", "", keelson_api::chain(&error)))?;
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
        Err(Errno::PERM) => open_host_proc().map(Rc::new),
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
