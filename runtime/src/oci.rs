//! From a checked request, an image's config and facts of the host to the OCI runtime spec that a shim launches.
//! Pure but for host devices and mounts, which are read; runs on the blocking pool of the daemon while a container is created.
//! Owns the defaults that make a container a container. Must never read a value of the image as anything but what the OCI image
//! specification says it is, nor hide a request that cannot be granted.

pub(crate) mod capabilities;
pub(crate) mod cdi;
pub(crate) mod cgroup_path;
pub(crate) mod devices;
pub(crate) mod holder;
pub(crate) mod mounts;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod relabel;
pub(crate) mod volumes;

use std::path::{Path, PathBuf};

use keelson_imageservice::ImageConfig;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Root, Spec};

use crate::{
    container::{
        ContainerError,
        spec::{CgroupMount, ContainerPid, ContainerSpec, Volume},
    },
    dirs::SandboxDir,
    engine::Rlimit,
    sandbox::spec::{IpcMode, NetworkMode, PidMode, SandboxSpec},
    selinux::Labels,
    user_namespace::UserNamespace,
    users::Identity,
};

/// Paths that tell too much or do too much, hidden unless the request says otherwise: the list all runtimes have.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Paths that may be read and not written unless the request says otherwise.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What of the host decides how a container can be made. Read once, when the engine opens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    /// Cgroups are v2 alone.
    pub(crate) unified: bool,
    /// Cgroups are made by systemd.
    pub(crate) systemd: bool,
    /// Capabilities this daemon can hand out, without `CAP_`.
    pub(crate) capabilities: Vec<String>,
    /// A tree of mounts can be given attributes at once: read-only, `noexec` and the like.
    pub(crate) recursive_attributes: bool,
    /// Why no container can be given its own cgroup to write to; none: it can.
    pub(crate) no_writable_cgroup: Option<String>,
    /// Why containers cannot have a user namespace of their own here; `None`: they can.
    pub(crate) no_user_namespaces: Option<String>,
    /// Why those that do cannot have the host's network with it; `None`: they can.
    pub(crate) no_user_namespaces_host_network: Option<String>,
}

/// Everything a spec is made of.
pub(crate) struct Inputs<'a> {
    pub(crate) spec: &'a ContainerSpec,
    pub(crate) sandbox: &'a SandboxSpec,
    pub(crate) sandbox_dir: &'a SandboxDir,
    pub(crate) image: &'a ImageConfig,
    pub(crate) identity: &'a Identity,
    /// Those of the request, host paths resolved.
    pub(crate) volumes: &'a [Volume],
    /// What the CDI devices of the request change.
    pub(crate) cdi: &'a cdi::Edits,
    /// Layers of the images among the volumes.
    pub(crate) images: &'a [mounts::ImageLayers],
    pub(crate) cgroups_path: &'a str,
    /// As in the sandbox's UTS namespace.
    pub(crate) hostname: &'a str,
    /// Init of the container whose PID namespace is joined.
    pub(crate) target_pid: Option<i32>,
    pub(crate) rlimits: &'a [Rlimit],
    /// 0: unlimited.
    pub(crate) pids_limit: i64,
    /// AppArmor profile; `None`: none.
    pub(crate) profile: Option<String>,
    /// SELinux labels; `None`: none.
    pub(crate) labels: Option<&'a Labels>,
    pub(crate) host: &'a Host,
}

/// A spec and what its JSON form cannot carry.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) spec: Spec,
    /// The environment, when it is not UTF-8; empty otherwise.
    pub(crate) env: Vec<Vec<u8>>,
    /// The image's volumes that the request does not replace.
    pub(crate) image_volumes: Vec<String>,
}

/// Makes the spec.
///
/// # Errors
/// A request that this host or this image cannot grant.
pub(crate) fn build(inputs: &Inputs<'_>) -> Result<Built, ContainerError> {
    let (mut process, env) = process::build(inputs)?;
    process.set_apparmor_profile(inputs.profile.clone());
    process.set_selinux_label(inputs.labels.map(|labels| labels.process.clone()));
    let identity = &inputs.identity.user;
    if let Some(namespace) = &inputs.sandbox.user_namespace
        && let Some(reason) = namespace.refuses(identity.uid, &identity.additional_gids)
    {
        return Err(ContainerError::Invalid { field: "user".into(), reason });
    }
    let image_volumes = volumes::of_image(&inputs.image.volumes, inputs.volumes)?;
    let devices::Devices { nodes, bound, rules } = devices::build(inputs)?;

    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(inputs.spec.security.readonly_rootfs));

    if let (CgroupMount::Writable, Some(reason)) = (inputs.spec.security.cgroup, &inputs.host.no_writable_cgroup) {
        return Err(ContainerError::Unsupported { field: "cgroup_mount_mode".into(), reason: reason.clone() });
    }
    let mut limits = inputs.spec.resources.clone();
    if limits.pids_limit.is_none() && inputs.pids_limit > 0 {
        limits.pids_limit = Some(inputs.pids_limit);
    }
    if !limits.unified.is_empty() && !inputs.host.unified {
        let reason = "this host has cgroup v1 controllers: unified settings need cgroup v2".to_owned();
        return Err(ContainerError::Unsupported { field: "resources.unified".into(), reason });
    }
    let mut resources = limits.to_oci();
    resources.set_devices(Some(rules));

    let mut linux = Linux::default();
    linux
        .set_resources(Some(resources))
        .set_cgroups_path(Some(inputs.cgroups_path.into()))
        .set_namespaces(Some(namespaces(inputs)))
        .set_devices(Some(nodes).filter(|nodes| !nodes.is_empty()))
        .set_rootfs_propagation(mounts::root_propagation(inputs.volumes).map(str::to_owned))
        .set_masked_paths(Some(paths(inputs, inputs.spec.security.masked_paths.as_ref(), &MASKED)))
        .set_readonly_paths(Some(paths(inputs, inputs.spec.security.readonly_paths.as_ref(), &READONLY)))
        .set_mount_label(inputs.labels.map(|labels| labels.file.clone()))
        .set_seccomp(None)
        .set_sysctl(None);

    if let Some(users) = &inputs.sandbox.user_namespace {
        own_users(&mut linux, users, inputs.sandbox_dir.user());
    }

    let mut spec = Spec::default();
    spec.set_version("1.2.0".into())
        .set_root(Some(root))
        .set_mounts(Some(mounts::build(inputs, &bound)))
        .set_process(Some(process))
        .set_hostname(None)
        .set_hooks(inputs.cdi.hooks())
        .set_linux(Some(linux));
    Ok(Built { spec, env, image_volumes })
}

/// Which namespaces are new, joined, or the host's.
fn namespaces(inputs: &Inputs<'_>) -> Vec<LinuxNamespace> {
    let modes = inputs.sandbox.namespaces;
    let mut namespaces = Vec::new();
    let mut add = |kind, path: Option<PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path);
        namespaces.push(namespace);
    };
    add(LinuxNamespaceType::Mount, None);
    match &inputs.spec.security.pid {
        ContainerPid::Own => add(LinuxNamespaceType::Pid, None),
        ContainerPid::Host => {}
        ContainerPid::Target(_) => {
            add(LinuxNamespaceType::Pid, inputs.target_pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/pid"))));
        }
        ContainerPid::Sandbox => match modes.pid {
            PidMode::Container => add(LinuxNamespaceType::Pid, None),
            PidMode::Sandbox => add(LinuxNamespaceType::Pid, Some(inputs.sandbox_dir.pid())),
            PidMode::Host => {}
        },
    }
    if modes.network == NetworkMode::Sandbox {
        add(LinuxNamespaceType::Network, Some(inputs.sandbox_dir.net()));
        add(LinuxNamespaceType::Uts, Some(inputs.sandbox_dir.uts()));
    }
    if modes.ipc == IpcMode::Sandbox {
        add(LinuxNamespaceType::Ipc, Some(inputs.sandbox_dir.ipc()));
    }
    // The root of a user namespace can mount the cgroups of a cgroup namespace that is its own alone.
    if !inputs.spec.security.privileged || inputs.sandbox.user_namespace.is_some() {
        add(LinuxNamespaceType::Cgroup, None);
    }
    namespaces
}

/// Puts a container into the user namespace pinned at `path`; its image's layers are shifted by the mappings.
fn own_users(linux: &mut Linux, users: &UserNamespace, path: PathBuf) {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(LinuxNamespaceType::User).set_path(Some(path));
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    namespaces.push(namespace);
    linux.set_uid_mappings(Some(mounts::ranges(&users.uids))).set_gid_mappings(Some(mounts::ranges(&users.gids)));
}

/// The request's list, or the default one; none for the privileged.
fn paths(inputs: &Inputs<'_>, asked: Option<&Vec<String>>, default: &[&str]) -> Vec<String> {
    match asked {
        _ if inputs.spec.security.privileged => Vec::new(),
        Some(list) => list.clone(),
        None => default.iter().map(|path| (*path).to_owned()).collect(),
    }
}

impl Host {
    /// Looks around. `scratch` is a folder to be made and taken away again, on the filesystem of image layers.
    pub(crate) fn detect(unified: bool, systemd: bool, scratch: &Path) -> Self {
        let no_user_namespaces = probe::no_user_namespaces(scratch);
        Self {
            unified,
            systemd,
            capabilities: capabilities::of_this_process(),
            recursive_attributes: probe::recursive_attributes(),
            no_writable_cgroup: probe::no_writable_cgroup(unified),
            no_user_namespaces_host_network: no_user_namespaces.clone().or_else(probe::no_host_sysfs),
            no_user_namespaces,
        }
    }
}

#[cfg(test)]
mod tests;
