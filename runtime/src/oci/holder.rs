//! The spec of a sandbox's holder: the process of keelson's own that keeps a shared PID namespace alive and reaps its orphans, or
//! that a runtime which puts the whole sandbox into one of its own begins with.
//! Pure functions. Owns the choice of how little it may do.
//! Must never run anything of an image.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxNamespace, LinuxNamespaceType, LinuxResources, Process, Root, Spec, User,
};

use super::{mounts, own_users};
use crate::{
    dirs::SandboxDir,
    sandbox::spec::{IpcMode, NetworkMode, PidMode, SandboxSpec},
    user_namespace::UserNamespace,
};

/// What another runtime begins a sandbox with.
pub(crate) struct Pause<'a> {
    /// A directory of ours, empty but for `proc` and the place of the program.
    pub(crate) root: &'a Path,
    /// A copy of the shim that is nobody else's program.
    pub(crate) program: &'a Path,
    pub(crate) cgroups_path: &'a str,
    pub(crate) hostname: &'a str,
    pub(crate) sandbox: &'a SandboxSpec,
    pub(crate) dir: &'a SandboxDir,
}

/// Where the root of [`pause`] has its program.
pub(crate) const PAUSE: &str = "pause";

/// The spec of the container with which a runtime begins the sandbox: in the sandbox's namespaces, with no rights and no image.
pub(crate) fn pause(pause: &Pause<'_>) -> Spec {
    let mut spec = build(pause.root, pause.cgroups_path, None);
    let program = format!("/{PAUSE}");
    if let Some(process) = spec.process_mut() {
        process.set_args(Some(vec![program.clone(), "pause".into()]));
    }
    if let Some(mounts) = spec.mounts_mut() {
        mounts.push(mounts::mount(&program, "bind", pause.program, &["bind", "private", "ro", "nosuid", "nodev"]));
    }
    let mut namespaces = Vec::new();
    let mut add = |kind, path: Option<PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path);
        namespaces.push(namespace);
    };
    let modes = pause.sandbox.namespaces;
    add(LinuxNamespaceType::Mount, None);
    if modes.pid != PidMode::Host {
        add(LinuxNamespaceType::Pid, None);
    }
    if modes.network == NetworkMode::Sandbox {
        add(LinuxNamespaceType::Network, Some(pause.dir.net()));
        add(LinuxNamespaceType::Uts, Some(pause.dir.uts()));
        spec.set_hostname(Some(pause.hostname.to_owned()));
    }
    if modes.ipc == IpcMode::Sandbox {
        add(LinuxNamespaceType::Ipc, Some(pause.dir.ipc()));
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_namespaces(Some(namespaces));
    }
    spec
}

/// The spec; `root` is a directory of ours, empty but for `proc`. The PID namespace belongs to the user namespace pinned at the path, if
/// the sandbox has one: only then can its containers mount a procfs of it.
pub(crate) fn build(root: &Path, cgroups_path: &str, users: Option<(&UserNamespace, PathBuf)>) -> Spec {
    let mut none = LinuxCapabilities::default();
    // KILL: it passes signals on to what it has to reap.
    none.set_bounding(Some([].into())).set_effective(Some([].into())).set_permitted(Some([].into()));
    none.set_inheritable(Some([].into())).set_ambient(Some([].into()));
    let mut process = Process::default();
    process
        .set_terminal(Some(false))
        .set_user(User::default())
        .set_args(Some(vec!["keelson-init".into()]))
        .set_env(Some(Vec::new()))
        .set_cwd("/".into())
        .set_capabilities(Some(none))
        .set_rlimits(None)
        .set_no_new_privileges(Some(true))
        .set_oom_score_adj(Some(-998));
    let mut directory = Root::default();
    directory.set_path(root.to_owned()).set_readonly(Some(true));
    let new = |kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(None);
        namespace
    };
    let mut linux = Linux::default();
    linux
        .set_resources(Some({
            let mut resources = LinuxResources::default();
            resources.set_devices(None);
            resources
        }))
        .set_cgroups_path(Some(cgroups_path.into()))
        .set_namespaces(Some(vec![new(LinuxNamespaceType::Mount), new(LinuxNamespaceType::Pid)]))
        .set_devices(None)
        .set_masked_paths(None)
        .set_readonly_paths(None)
        .set_seccomp(None)
        .set_sysctl(None);
    if let Some((users, path)) = users {
        own_users(&mut linux, users, path);
    }
    let mut spec = Spec::default();
    spec.set_version("1.2.0".into())
        .set_root(Some(directory))
        .set_mounts(Some(vec![mounts::mount("/proc", "proc", Path::new("proc"), &["nosuid", "noexec", "nodev"])]))
        .set_process(Some(process))
        .set_hostname(None)
        .set_linux(Some(linux));
    spec
}
