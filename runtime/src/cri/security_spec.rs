//! A container's identity and confinement as CRI asks for them, deprecated fields included, made into the engine's words.
//! Pure, in any task of the daemon. Owns nothing.
//! Must never weaken what it cannot read: an unknown profile, policy or mode is refused, not taken for a default.

use keelson_cri::v1;

use super::{
    sandbox_spec::{mode, user_namespace},
    status::{Failure, invalid},
};
use crate::container::spec::{
    AppArmor, Capabilities, CgroupMount, ContainerPid, GroupsPolicy, RunAs, Seccomp, Security, SelinuxLabel,
};

const FIELD: &str = "config.linux.security_context";

fn field(name: &str) -> String {
    format!("{FIELD}.{name}")
}

pub(super) fn decode(context: Option<v1::LinuxContainerSecurityContext>) -> Result<Security, Failure> {
    // Nothing said: the default lists of hidden paths. A context with empty lists asks for none (procMount Unmasked).
    let Some(context) = context else { return Ok(Security::default()) };
    let options = context.namespace_options.unwrap_or_default();
    let user_namespace = user_namespace(&field("namespace_options"), options.userns_options)?;
    let capabilities = context.capabilities.unwrap_or_default();
    Ok(Security {
        privileged: context.privileged,
        run_as: run_as(context.run_as_user, context.run_as_username)?,
        run_as_group: context.run_as_group.map(|group| group.value),
        supplementary_groups: context.supplemental_groups,
        groups_policy: match v1::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy) {
            Ok(v1::SupplementalGroupsPolicy::Merge) => GroupsPolicy::Merge,
            Ok(v1::SupplementalGroupsPolicy::Strict) => GroupsPolicy::Strict,
            Err(_) => {
                let reason = format!("policy {} is not one of CRI v1", context.supplemental_groups_policy);
                return Err(invalid(&field("supplemental_groups_policy"), reason));
            }
        },
        capabilities: Capabilities {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
            ambient: capabilities.add_ambient_capabilities,
        },
        readonly_rootfs: context.readonly_rootfs,
        no_new_privileges: context.no_new_privs,
        masked_paths: Some(context.masked_paths),
        readonly_paths: Some(context.readonly_paths),
        seccomp: seccomp(context.seccomp, &context.seccomp_profile_path)?,
        apparmor: apparmor(context.apparmor, &context.apparmor_profile)?,
        selinux: context.selinux_options.map(selinux),
        cgroup: match v1::CgroupMountMode::try_from(context.cgroup_mount_mode) {
            Ok(v1::CgroupMountMode::Unspecified) => CgroupMount::Unspecified,
            Ok(v1::CgroupMountMode::ReadOnly) => CgroupMount::ReadOnly,
            Ok(v1::CgroupMountMode::Writable) => CgroupMount::Writable,
            Err(_) => {
                let reason = format!("mode {} is not one of CRI v1", context.cgroup_mount_mode);
                return Err(invalid(&field("cgroup_mount_mode"), reason));
            }
        },
        pid: pid(options.pid, &options.target_id)?,
        user_namespace,
    })
}

fn run_as(user: Option<v1::Int64Value>, name: String) -> Result<RunAs, Failure> {
    match (user, name.is_empty()) {
        (Some(_), false) => Err(invalid(&field("run_as_username"), "is set beside run_as_user: give one of the two")),
        (Some(user), true) => Ok(RunAs::Uid(user.value)),
        (None, false) => Ok(RunAs::Name(name)),
        (None, true) => Ok(RunAs::Image),
    }
}

fn pid(value: i32, target: &str) -> Result<ContainerPid, Failure> {
    Ok(match mode(&field("namespace_options.pid"), value)? {
        v1::NamespaceMode::Pod => ContainerPid::Sandbox,
        v1::NamespaceMode::Container => ContainerPid::Own,
        v1::NamespaceMode::Node => ContainerPid::Host,
        v1::NamespaceMode::Target => ContainerPid::Target(target.parse().map_err(|_| {
            let reason = format!("`{}` is not a container id", target.escape_debug());
            invalid(&field("namespace_options.target_id"), reason)
        })?),
    })
}

/// The profile message, else the deprecated text; neither is "no filter", as CRI has it.
pub(super) fn seccomp(profile: Option<v1::SecurityProfile>, deprecated: &str) -> Result<Seccomp, Failure> {
    let localhost = |path: &str| {
        if path.starts_with('/') {
            return Ok(Seccomp::Localhost(path.into()));
        }
        let reason = format!("localhost profile `{}`: want an absolute path", path.escape_debug());
        Err(invalid(&field("seccomp"), reason))
    };
    match (profile, deprecated) {
        (Some(profile), _) => match profile_type("seccomp", profile.profile_type)? {
            v1::security_profile::ProfileType::RuntimeDefault => Ok(Seccomp::RuntimeDefault),
            v1::security_profile::ProfileType::Unconfined => Ok(Seccomp::Unconfined),
            v1::security_profile::ProfileType::Localhost => localhost(&profile.localhost_ref),
        },
        (None, "" | "unconfined") => Ok(Seccomp::Unconfined),
        (None, "runtime/default" | "docker/default") => Ok(Seccomp::RuntimeDefault),
        (None, text) => match text.strip_prefix("localhost/") {
            Some(path) => localhost(path),
            None => Err(invalid(&field("seccomp_profile_path"), format!("`{}` is no profile", text.escape_debug()))),
        },
    }
}

pub(super) fn apparmor(profile: Option<v1::SecurityProfile>, deprecated: &str) -> Result<AppArmor, Failure> {
    match (profile, deprecated) {
        (Some(profile), _) => Ok(match profile_type("apparmor", profile.profile_type)? {
            v1::security_profile::ProfileType::RuntimeDefault => AppArmor::RuntimeDefault,
            v1::security_profile::ProfileType::Unconfined => AppArmor::Unconfined,
            v1::security_profile::ProfileType::Localhost => {
                // Callers write the name in both ways; in the deprecated field the prefix is what says that it is one.
                let name = profile.localhost_ref;
                AppArmor::Localhost(name.strip_prefix("localhost/").unwrap_or(&name).to_owned())
            }
        }),
        (None, "") => Ok(AppArmor::Unspecified),
        (None, "unconfined") => Ok(AppArmor::Unconfined),
        (None, "runtime/default") => Ok(AppArmor::RuntimeDefault),
        (None, text) => match text.strip_prefix("localhost/") {
            Some(name) => Ok(AppArmor::Localhost(name.to_owned())),
            None => Err(invalid(&field("apparmor_profile"), format!("`{}` is no profile", text.escape_debug()))),
        },
    }
}

pub(super) fn selinux(label: v1::SeLinuxOption) -> SelinuxLabel {
    SelinuxLabel { user: label.user, role: label.role, kind: label.r#type, level: label.level }
}

fn profile_type(name: &str, value: i32) -> Result<v1::security_profile::ProfileType, Failure> {
    v1::security_profile::ProfileType::try_from(value)
        .map_err(|_| invalid(&field(name), format!("profile type {value} is not one of CRI v1")))
}

#[cfg(test)]
mod tests;
