//! The spec of a sandbox's holder: the process of keelson's own that keeps a shared PID namespace alive and reaps its orphans.
//! Pure functions. Owns the choice of how little it may do.
//! Must never run anything of an image.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxNamespace, LinuxNamespaceType, LinuxResources, Process, Root, Spec, User,
};

use super::{mounts, own_users};
use crate::user_namespace::UserNamespace;

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
