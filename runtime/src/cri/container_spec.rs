//! A container as CRI asks for it, made into the engine's checked words.
//! Pure, in any task of the daemon. Owns nothing.
//! Must never ignore a value it does not know: an unknown enum or a field that cannot be honoured is refused by name.

use std::{collections::HashMap, path::PathBuf};

use keelson_cri::v1;

use super::{
    resource,
    sandbox_spec::plain,
    security_spec,
    status::{Failure, invalid, unsupported},
};
use crate::container::spec::{
    Access, ContainerKey, ContainerSpec, Device, EnvVar, IdMapping, MountOption, Propagation, Stdin, Volume,
};

pub(super) fn decode(config: Option<v1::ContainerConfig>) -> Result<ContainerSpec, Failure> {
    let config = config.ok_or_else(|| invalid("config", "missing: a container needs a configuration"))?;
    if config.windows.is_some() {
        return Err(unsupported("config.windows", "this runtime runs Linux containers only"));
    }
    let metadata = config.metadata.ok_or_else(|| invalid("config.metadata", "missing: a name is needed"))?;
    plain("config.metadata.name", &metadata.name)?;
    let image = config.image.filter(|image| !image.image.is_empty());
    let image = image.ok_or_else(|| invalid("config.image.image", "missing: name an image that was pulled"))?;
    let linux = config.linux.unwrap_or_default();
    let cdi_devices = cdi_devices(config.cdi_devices, &config.annotations);
    let stop_signal = v1::Signal::try_from(config.stop_signal)
        .map_err(|_| invalid("config.stop_signal", format!("signal {} is not one of CRI v1", config.stop_signal)))?;
    Ok(ContainerSpec {
        key: ContainerKey { name: metadata.name, attempt: metadata.attempt },
        image: image.image,
        image_as_written: image.user_specified_image,
        command: config.command,
        args: config.args,
        working_dir: PathBuf::from(config.working_dir),
        // Bytes all the way: a value need not be UTF-8.
        env: config.envs.into_iter().map(|env| EnvVar { name: env.key, value: env.value }).collect(),
        volumes: config.mounts.into_iter().map(volume).collect::<Result<_, _>>()?,
        devices: config.devices.into_iter().map(device).collect::<Result<_, _>>()?,
        cdi_devices,
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        log_path: PathBuf::from(config.log_path),
        stdin: match (config.stdin, config.stdin_once) {
            (false, _) => Stdin::Closed,
            (true, false) => Stdin::Open,
            (true, true) => Stdin::OpenOnce,
        },
        terminal: config.tty,
        resources: resource::for_create(linux.resources)?,
        security: security_spec::decode(linux.security_context)?,
        stop_signal: super::signal::number(stop_signal),
        checkpoint: None,
    })
}

/// Those of the request, and those that a device plugin of older kind asked for in an annotation of the container:
/// `cdi.k8s.io/..: vendor.com/class=a,vendor.com/class=b`.
fn cdi_devices(asked: Vec<v1::CdiDevice>, annotations: &HashMap<String, String>) -> Vec<String> {
    let mut names: Vec<String> = asked.into_iter().map(|device| device.name).collect();
    let mut annotated: Vec<_> = annotations.iter().filter(|(key, _)| key.starts_with("cdi.k8s.io/")).collect();
    annotated.sort();
    for name in annotated.into_iter().flat_map(|(_, value)| value.split(',')) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

fn volume(mount: v1::Mount) -> Result<Volume, Failure> {
    let place = mount.container_path.escape_debug().to_string();
    let refuse = |reason: &str| Err(invalid("config.mounts", format!("`{place}`: {reason}")));
    if !mount.container_path.starts_with('/') {
        return refuse("container_path must be an absolute path");
    }
    let options = mount_options(&place, &mount.mount_options)?;
    let image = mount.image.map(|image| image.image).filter(|image| !image.is_empty());
    match (&image, mount.host_path.is_empty()) {
        (Some(_), false) => return refuse("give either host_path or image, not both"),
        (None, true) => return refuse("give host_path or image"),
        (Some(_), true) if !mount.readonly => return refuse("an image is mounted read-only: set readonly"),
        (None, false) if !mount.host_path.starts_with('/') => return refuse("host_path must be an absolute path"),
        (None, false) if !mount.image_sub_path.is_empty() => return refuse("image_sub_path needs an image"),
        (Some(_), true) | (None, false) => {}
    }
    let propagation = match v1::MountPropagation::try_from(mount.propagation) {
        Ok(v1::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => return refuse(&format!("propagation {} is not one of CRI v1", mount.propagation)),
    };
    let access = match (mount.recursive_read_only, mount.readonly) {
        (false, false) => Access::ReadWrite,
        (false, true) => Access::ReadOnly,
        (true, false) => return refuse("recursive_read_only needs readonly"),
        (true, true) if propagation != Propagation::Private => {
            return refuse("recursive_read_only needs private propagation");
        }
        (true, true) => Access::RecursiveReadOnly,
    };
    Ok(Volume {
        container_path: mount.container_path.into(),
        host_path: mount.host_path.into(),
        access,
        propagation,
        relabel: mount.selinux_relabel,
        uid_mappings: id_mappings(mount.uid_mappings),
        gid_mappings: id_mappings(mount.gid_mappings),
        image,
        image_sub_path: mount.image_sub_path,
        image_id: String::new(),
        options,
    })
}

/// Those that take something away: all that CRI allows.
fn mount_options(place: &str, names: &[String]) -> Result<Vec<MountOption>, Failure> {
    let mut options = Vec::new();
    for name in names {
        let known = [MountOption::NoExec, MountOption::NoDev, MountOption::NoSuid];
        let Some(option) = known.into_iter().find(|option| option.name() == name) else {
            let reason = format!(
                "`{place}`: mount option `{}`: want noexec, nodev or nosuid",
                name.chars().take(80).collect::<String>().escape_debug()
            );
            return Err(invalid("config.mounts", reason));
        };
        if !options.contains(&option) {
            options.push(option);
        }
    }
    Ok(options)
}

pub(super) fn id_mappings(mappings: Vec<v1::IdMapping>) -> Vec<IdMapping> {
    mappings
        .into_iter()
        .map(|range| IdMapping { host_id: range.host_id, container_id: range.container_id, length: range.length })
        .collect()
}

fn device(device: v1::Device) -> Result<Device, Failure> {
    let place = device.host_path.escape_debug().to_string();
    if !device.host_path.starts_with('/') {
        return Err(invalid("config.devices", format!("host_path `{place}`: want an absolute path")));
    }
    let known = |c: char| "rwm".contains(c);
    if !device.permissions.chars().all(known) {
        return Err(invalid("config.devices", format!("`{place}`: permissions are letters of `rwm`")));
    }
    Ok(Device {
        container_path: device.container_path.into(),
        host_path: device.host_path.into(),
        permissions: device.permissions,
    })
}

#[cfg(test)]
mod tests;
