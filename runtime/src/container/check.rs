//! Everything about a container request that can be wrong without looking at the host, found before anything is touched.
//! Pure functions over the spec, in any task.
//! Owns the bounds. Must never repair a value: it is right, or the caller is told what is wrong and what would be right.

use std::path::{Component, Path};

use super::{
    ContainerError,
    spec::{
        Access, AppArmor, CgroupMount, ContainerSpec, ContainerUsers, Propagation, RunAs, Seccomp, Security, Volume,
    },
};
use crate::{
    oci::{capabilities, cdi},
    sandbox::{SandboxError, check as sandbox_check, check::cut},
    user_namespace::check_range,
};

/// Kernel: `MAX_ARG_STRLEN`.
const ARG_MAX: usize = 131_071;
/// Arguments and environment together; the kernel's own bound depends on the stack limit (2 MiB by default).
const ARGS_MAX: usize = 6 * 1024 * 1024;
const PATH_MAX: usize = 4095;
const LIST_MAX: usize = 4096;

/// Refuses what cannot be created.
pub(crate) fn check(spec: &ContainerSpec) -> Result<(), ContainerError> {
    if spec.key.name.is_empty() || spec.key.name.len() > 1024 || spec.key.name.chars().any(char::is_control) {
        return Err(invalid("metadata.name", "want 1 to 1024 characters, no control characters"));
    }
    if spec.image.is_empty() || spec.image.len() > 4096 {
        return Err(invalid("image", "is empty or longer than any reference: name the image to run"));
    }
    process(spec)?;
    spec.volumes.iter().try_for_each(volume)?;
    image_places(&spec.volumes)?;
    lists(spec)?;
    for device in &spec.devices {
        path("devices.host_path", &device.host_path)?;
        if !device.container_path.as_os_str().is_empty() {
            path("devices.container_path", &device.container_path)?;
        }
        if device.permissions.bytes().any(|byte| !b"rwm".contains(&byte)) {
            return Err(invalid(
                "devices.permissions",
                format!("`{}`: want letters of `rwm`", cut(&device.permissions)),
            ));
        }
    }
    spec.cdi_devices.iter().try_for_each(|name| cdi::check(name))?;
    sandbox_check::map("labels", &spec.labels).map_err(from_sandbox)?;
    sandbox_check::map("annotations", &spec.annotations).map_err(from_sandbox)?;
    if spec.log_path.is_absolute() || spec.log_path.components().any(|part| !matches!(part, Component::Normal(_))) {
        let reason = format!(
            "`{}`: want a path below the sandbox's log directory, without `..`",
            cut(&spec.log_path.to_string_lossy())
        );
        return Err(invalid("log_path", reason));
    }
    if spec.log_path.to_str().is_none_or(|text| text.len() > PATH_MAX || text.chars().any(char::is_control)) {
        return Err(invalid("log_path", "too long, or not printable"));
    }
    if spec.stop_signal.is_some_and(|signal| !(1..=64).contains(&signal)) {
        return Err(invalid("stop_signal", "want 1 to 64"));
    }
    spec.resources.check().map_err(|(field, reason)| invalid(field, reason))?;
    security(&spec.security)
}

/// An error about one field of the request.
pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> ContainerError {
    ContainerError::Invalid { field: field.into(), reason: reason.into() }
}

fn from_sandbox(error: SandboxError) -> ContainerError {
    match error {
        SandboxError::Invalid { field, reason } => ContainerError::Invalid { field, reason },
        other => invalid("spec", other.to_string()),
    }
}

fn process(spec: &ContainerSpec) -> Result<(), ContainerError> {
    let mut total = 0;
    for (field, word) in
        spec.command.iter().map(|word| ("command", word)).chain(spec.args.iter().map(|word| ("args", word)))
    {
        if word.contains('\0') || word.len() > ARG_MAX {
            return Err(invalid(field, format!("`{}`: has a NUL or more than {ARG_MAX} bytes", cut(word))));
        }
        total += word.len() + 1;
    }
    for variable in &spec.env {
        let name = &variable.name;
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(invalid("envs", format!("name `{}`: want a name without `=` and NUL", cut(name))));
        }
        if variable.value.contains(&0) || name.len() + variable.value.len() >= ARG_MAX {
            return Err(invalid("envs", format!("value of `{}`: has a NUL or more than {ARG_MAX} bytes", cut(name))));
        }
        total += name.len() + variable.value.len() + 2;
    }
    if total > ARGS_MAX {
        return Err(invalid(
            "command",
            format!("{total} bytes of arguments and environment: more than the kernel takes"),
        ));
    }
    if !spec.working_dir.as_os_str().is_empty() {
        path("working_dir", &spec.working_dir)?;
    }
    Ok(())
}

fn volume(volume: &Volume) -> Result<(), ContainerError> {
    path("mounts.container_path", &volume.container_path)?;
    let target = &volume.container_path;
    if target.components().any(|part| part == Component::ParentDir) {
        return Err(invalid("mounts.container_path", format!("`{}` has a `..`", cut(&target.to_string_lossy()))));
    }
    if target.components().count() < 2 {
        return Err(invalid("mounts.container_path", "is `/`: the root comes from the image"));
    }
    if volume.access == Access::RecursiveReadOnly && volume.propagation != Propagation::Private {
        return Err(invalid("mounts.recursive_read_only", "needs private propagation"));
    }
    if let Some(image) = &volume.image {
        return image_volume(volume, image);
    }
    path("mounts.host_path", &volume.host_path)?;
    for (field, ranges) in
        [("mounts.uid_mappings", &volume.uid_mappings), ("mounts.gid_mappings", &volume.gid_mappings)]
    {
        ranges.iter().try_for_each(|range| check_range("ids", range)).map_err(|reason| invalid(field, reason))?;
    }
    if volume.uid_mappings.is_empty() != volume.gid_mappings.is_empty() {
        return Err(invalid(
            "mounts.uid_mappings",
            "mappings of users without mappings of groups, or the other way round",
        ));
    }
    Ok(())
}

fn image_volume(volume: &Volume, image: &str) -> Result<(), ContainerError> {
    let about = |reason: &str| Err(invalid(format!("mounts[{}].image", volume.container_path.display()), reason));
    if !volume.uid_mappings.is_empty() || !volume.gid_mappings.is_empty() {
        return about("has the ids of the pod's user namespace: leave its mappings out");
    }
    if image.is_empty() || image.len() > 4096 {
        return about("is empty or longer than any reference: name the image to mount");
    }
    if volume.access == Access::ReadWrite {
        return about("is mounted read-only: ask for that");
    }
    if volume.propagation != Propagation::Private {
        return about("has no mounts of the host: its propagation must be private");
    }
    if !volume.host_path.as_os_str().is_empty() {
        return about("is given beside a host path: give one of the two");
    }
    let sub_path = &volume.image_sub_path;
    if sub_path.contains('\0') || sub_path.len() > PATH_MAX {
        return about("sub path has a NUL or is too long");
    }
    if Path::new(sub_path).components().any(|part| part == Component::ParentDir) {
        return about("sub path has a `..`: name a folder of the image");
    }
    Ok(())
}

/// A container path may have one mount, where an image is one of them: of two the launcher could not tell which is meant.
fn image_places(volumes: &[Volume]) -> Result<(), ContainerError> {
    for image in volumes.iter().filter(|volume| volume.image.is_some()) {
        let here = |other: &&Volume| other.container_path.components().eq(image.container_path.components());
        if volumes.iter().filter(here).count() > 1 {
            let place = image.container_path.display();
            return Err(invalid(
                "mounts.container_path",
                format!("`{place}` is the place of an image and another mount"),
            ));
        }
    }
    Ok(())
}

fn lists(spec: &ContainerSpec) -> Result<(), ContainerError> {
    let lengths = [
        ("mounts", spec.volumes.len()),
        ("devices", spec.devices.len()),
        ("masked_paths", spec.security.masked_paths.as_ref().map_or(0, Vec::len)),
        ("readonly_paths", spec.security.readonly_paths.as_ref().map_or(0, Vec::len)),
        ("cdi_devices", spec.cdi_devices.len()),
        ("capabilities", spec.security.capabilities.add.len() + spec.security.capabilities.drop.len()),
    ];
    match lengths.into_iter().find(|(_, length)| *length > LIST_MAX) {
        Some((field, length)) => Err(invalid(field, format!("{length} entries, at most {LIST_MAX} are allowed"))),
        None => Ok(()),
    }
}

fn security(security: &Security) -> Result<(), ContainerError> {
    if security.run_as_group.is_some() && security.run_as == RunAs::Image {
        return Err(invalid("run_as_group", "without run_as_user or run_as_username: say whom the group is for"));
    }
    if security.privileged && security.cgroup == CgroupMount::ReadOnly {
        return Err(invalid("cgroup_mount_mode", "READ_ONLY means nothing to a privileged container: leave it out"));
    }
    for name in
        security.capabilities.add.iter().chain(&security.capabilities.drop).chain(&security.capabilities.ambient)
    {
        if !capabilities::is_all(name) && capabilities::canonical(name).is_none() {
            return Err(invalid(
                "capabilities",
                format!("`{}` is not a capability: want names as `NET_ADMIN`, or `ALL`", cut(name)),
            ));
        }
    }
    let paths = security.masked_paths.iter().flatten().map(|text| ("masked_paths", text));
    for (field, text) in paths.chain(security.readonly_paths.iter().flatten().map(|text| ("readonly_paths", text))) {
        path(field, Path::new(text))?;
    }
    if let Seccomp::Localhost(profile) = &security.seccomp {
        path("seccomp.localhost_ref", profile)?;
    }
    if let AppArmor::Localhost(profile) = &security.apparmor
        && (profile.is_empty() || profile.len() > 255 || profile.chars().any(|c| c.is_control() || c.is_whitespace()))
    {
        return Err(invalid("apparmor.localhost_ref", format!("`{}`: not a profile's name", cut(profile))));
    }
    if let Some(label) = &security.selinux {
        label.check().map_err(|reason| invalid("selinux_options", reason))?;
    }
    if let ContainerUsers::Mapped(namespace) = &security.user_namespace {
        namespace.check().map_err(|reason| invalid("namespace_options.userns_options", reason))?;
    }
    Ok(())
}

/// Absolute, UTF-8, no NUL, not too long.
fn path(field: &str, path: &Path) -> Result<(), ContainerError> {
    let Some(text) = path.to_str() else { return Err(invalid(field, "is not UTF-8")) };
    if text.len() > PATH_MAX || text.contains('\0') {
        return Err(invalid(field, format!("`{}`: has a NUL or more than {PATH_MAX} bytes", cut(text))));
    }
    if !path.is_absolute() {
        return Err(invalid(field, format!("`{}` is not an absolute path", cut(text))));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::{Capabilities, ContainerKey, Device, EnvVar};

    fn good() -> ContainerSpec {
        ContainerSpec {
            key: ContainerKey { name: "web".into(), attempt: 0 },
            image: "web:1".into(),
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut ContainerSpec)) -> String {
        let mut spec = good();
        change(&mut spec);
        match check(&spec) {
            Err(ContainerError::Invalid { field, .. } | ContainerError::Unsupported { field, .. }) => field,
            other => format!("not refused: {other:?}"),
        }
    }

    fn mount(container: &str, host: &str) -> Volume {
        Volume { container_path: container.into(), host_path: host.into(), ..Default::default() }
    }

    #[test]
    fn a_plain_spec_passes() {
        check(&good()).unwrap();
        let mut spec = good();
        spec.env = vec![EnvVar { name: "RAW".into(), value: vec![0xff, b'='] }];
        spec.volumes = vec![mount("/data", "/srv/data")];
        spec.devices = vec![Device { host_path: "/dev/null".into(), permissions: "mrw".into(), ..Default::default() }];
        spec.log_path = "web/0.log".into();
        spec.security.capabilities =
            Capabilities { add: vec!["NET_ADMIN".into()], drop: vec!["all".into()], ambient: vec!["CAP_KILL".into()] };
        check(&spec).unwrap();
    }

    #[test]
    fn each_bad_field_is_named() {
        assert_eq!(refused(|spec| spec.key.name.clear()), "metadata.name");
        assert_eq!(refused(|spec| spec.image.clear()), "image");
        assert_eq!(refused(|spec| spec.command = vec!["a\0b".into()]), "command");
        assert_eq!(refused(|spec| spec.args = vec!["x".repeat(200_000)]), "args");
        assert_eq!(refused(|spec| spec.working_dir = "tmp".into()), "working_dir");
        assert_eq!(refused(|spec| spec.log_path = "/etc/passwd".into()), "log_path");
        assert_eq!(refused(|spec| spec.log_path = "../../etc/passwd".into()), "log_path");
        assert_eq!(refused(|spec| spec.volumes = vec![mount("/", "/srv")]), "mounts.container_path");
        assert_eq!(refused(|spec| spec.volumes = vec![mount("/a/../..", "/srv")]), "mounts.container_path");
        assert_eq!(refused(|spec| spec.volumes = vec![mount("data", "/srv")]), "mounts.container_path");
        assert_eq!(refused(|spec| spec.volumes = vec![mount("/data", "srv")]), "mounts.host_path");
        let image = |change: fn(&mut Volume)| {
            let mut volume = Volume { image: Some("a:1".into()), access: Access::ReadOnly, ..mount("/image", "") };
            change(&mut volume);
            refused(|spec| spec.volumes = vec![volume])
        };
        assert_eq!(image(|volume| volume.access = Access::ReadWrite), "mounts[/image].image");
        assert_eq!(image(|volume| volume.host_path = "/srv".into()), "mounts[/image].image");
        assert_eq!(image(|volume| volume.image_sub_path = "etc/../..".into()), "mounts[/image].image");
        assert_eq!(image(|volume| volume.propagation = Propagation::Bidirectional), "mounts[/image].image");
        let two = Volume { image: Some("a:1".into()), access: Access::ReadOnly, ..mount("/data/", "") };
        assert_eq!(refused(|spec| spec.volumes = vec![mount("/data", "/srv"), two]), "mounts.container_path");
        assert_eq!(
            refused(|spec| {
                spec.security.privileged = true;
                spec.security.cgroup = CgroupMount::ReadOnly;
            }),
            "cgroup_mount_mode"
        );
        assert_eq!(refused(|spec| spec.security.run_as_group = Some(1)), "run_as_group");
        assert_eq!(refused(|spec| spec.security.capabilities.add = vec!["CAP_EVERYTHING".into()]), "capabilities");
        assert_eq!(
            refused(|spec| spec.security.seccomp = Seccomp::Localhost("p.json".into())),
            "seccomp.localhost_ref"
        );
        assert_eq!(refused(|spec| spec.stop_signal = Some(65)), "stop_signal");
        assert_eq!(refused(|spec| spec.cdi_devices = vec!["v.com/gpu".into()]), "cdi_devices");
        assert_eq!(refused(|spec| spec.resources.oom_score_adj = Some(1001)), "resources.oom_score_adj");
        assert_eq!(refused(|spec| _ = spec.resources.unified.insert("../x".into(), "1".into())), "resources.unified");
    }

    #[test]
    fn environment_entries_that_could_mean_something_else_are_refused() {
        for name in ["", "*=x", "A=B", "A\0"] {
            assert_eq!(
                refused(|spec| spec.env = vec![EnvVar { name: name.into(), value: vec![] }]),
                "envs",
                "{name:?}"
            );
        }
        assert_eq!(refused(|spec| spec.env = vec![EnvVar { name: "A".into(), value: vec![0] }]), "envs");
    }
}
