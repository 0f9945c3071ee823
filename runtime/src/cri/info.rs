//! The verbose half of statuses: JSON under fixed names, as crictl prints it and people's scripts read it.
//! Made from memory in the task of the RPC; only a container's bundle is read from disk, on the blocking pool.
//! Owns the names. Must never hold a secret, and never be what another part of keelson relies on.

use std::{collections::HashMap, path::PathBuf};

use keelson_imageservice::Image;
use serde_json::{Value, json};

use super::{About, container_view, resource, signal};
use crate::{
    container::{ContainerView, spec::Access},
    engine::{CgroupDriver, EngineStatus},
    resources::Resources,
    sandbox::SandboxView,
};

type Info = HashMap<String, String>;

fn under(name: &str, value: &Value) -> Info {
    HashMap::from([(name.to_owned(), value.to_string())])
}

/// `config`: where things are and how they are made. `stateDir` is what critest looks for.
pub(super) fn of_status(about: &About, status: &EngineStatus) -> Info {
    let driver = match status.cgroup_driver {
        CgroupDriver::Systemd => "systemd",
        CgroupDriver::Cgroupfs | CgroupDriver::Auto => "cgroupfs",
    };
    let config = &about.config;
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "rootDir": config.root,
        "stateDir": config.state,
        "socket": config.socket,
        "cgroup": { "driver": driver, "mode": status.cgroup_mode },
        "seccomp": status.seccomp,
        "apparmor": { "enabled": status.apparmor.enabled, "problem": status.apparmor.problem },
        "selinux": { "enabled": status.selinux.enabled, "problem": status.selinux.problem },
        "userNamespaces": status.features.user_namespaces,
        "kernel": about.kernel,
        "network": { "enabled": config.network.enabled, "bridge": config.network.bridge },
        "images": { "hostsDir": config.images.hosts_dir },
        "containers": { "nofile": [config.containers.nofile.soft, config.containers.nofile.hard] },
        "counts": {
            "sandboxes": status.sandboxes,
            "containers": status.containers,
            "teardownPending": status.teardown_pending,
        },
    });
    under("config", &value)
}

pub(super) fn of_sandbox(view: &SandboxView) -> Info {
    let spec = &view.spec;
    let value = json!({
        "pid": view.holder_pid.unwrap_or(0),
        "runDir": view.run_dir,
        "networkNamespace": view.netns,
        "addresses": view.addresses,
        "runtimeHandler": spec.handler,
        "config": {
            "metadata": {
                "name": spec.key.name,
                "namespace": spec.key.namespace,
                "uid": spec.key.uid,
                "attempt": spec.key.attempt,
            },
            "hostname": spec.hostname,
            "log_directory": spec.log_directory,
            "labels": spec.labels,
            "annotations": spec.annotations,
            "linux": {
                "cgroup_parent": spec.cgroup_parent,
                "sysctls": spec.sysctls,
                "resources": spec.resources.as_ref().map(limits),
                "overhead": spec.overhead.as_ref().map(limits),
            },
        },
    });
    under("info", &value)
}

/// Limits in CRI's names.
fn limits(resources: &Resources) -> Value {
    let limits = resource::encode(resources);
    json!({
        "cpu_period": limits.cpu_period,
        "cpu_quota": limits.cpu_quota,
        "cpu_shares": limits.cpu_shares,
        "memory_limit_in_bytes": limits.memory_limit_in_bytes,
        "memory_swap_limit_in_bytes": limits.memory_swap_limit_in_bytes,
        "cpuset_cpus": limits.cpuset_cpus,
        "cpuset_mems": limits.cpuset_mems,
        "unified": resources.unified,
    })
}

/// `pid` and `runtimeSpec` are what people's scripts ask for most.
pub(super) async fn of_container(view: &ContainerView) -> Info {
    let bundle = view.run_dir.join("config.json");
    let spec = super::blocking("read the bundle", move || read_json(&bundle)).await;
    container(view, &spec.ok().flatten().unwrap_or(Value::Null))
}

fn read_json(path: &PathBuf) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn container(view: &ContainerView, runtime_spec: &Value) -> Info {
    let spec = &view.spec;
    let env: Vec<Value> = spec
        .env
        .iter()
        .map(|variable| json!({ "key": variable.name, "value": String::from_utf8_lossy(&variable.value) }))
        .collect();
    let mounts: Vec<Value> = view
        .volumes
        .iter()
        .map(|volume| {
            json!({
                "container_path": volume.container_path,
                "host_path": volume.host_path,
                "readonly": volume.access != Access::ReadWrite,
                "image": volume.image,
            })
        })
        .collect();
    let metadata = container_view::metadata(spec);
    let value = json!({
        "sandboxID": view.sandbox,
        "pid": view.pid.unwrap_or(0),
        "runDir": view.run_dir,
        "image": { "id": view.image_id, "ref": view.image_ref },
        "stopSignal": signal::name(view.stop_signal).as_str_name().trim_start_matches("SIGNAL_"),
        "resources": limits(&view.resources),
        "config": {
            "metadata": { "name": metadata.name, "attempt": metadata.attempt },
            "image": { "image": spec.image, "user_specified_image": spec.image_as_written },
            "command": spec.command,
            "args": spec.args,
            "working_dir": spec.working_dir,
            "envs": env,
            "mounts": mounts,
            "labels": spec.labels,
            "annotations": spec.annotations,
            "log_path": spec.log_path,
            "tty": spec.terminal,
        },
        "runtimeSpec": runtime_spec,
    });
    under("info", &value)
}

/// `imageSpec.config` in the names the image format has.
pub(super) fn of_image(image: &Image) -> Info {
    let set = |words: &[String]| words.iter().map(|word| (word.clone(), json!({}))).collect::<serde_json::Map<_, _>>();
    let config = &image.config;
    let value = json!({
        "chainID": image.chain.last().map(ToString::to_string),
        "imageSpec": {
            "created": config.created,
            "config": {
                "User": config.user,
                "Env": config.env,
                "Entrypoint": config.entrypoint,
                "Cmd": config.cmd,
                "WorkingDir": config.working_dir,
                "Volumes": set(&config.volumes),
                "ExposedPorts": set(&config.exposed_ports),
                "Labels": config.labels,
                "StopSignal": config.stop_signal,
            },
            "rootfs": { "type": "layers", "diff_ids": image.diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>() },
        },
    });
    under("info", &value)
}

#[cfg(test)]
mod tests;
