//! A pod sandbox as CRI asks for it, made into the engine's checked words; and its namespaces back again.
//! Pure, in any task of the daemon. Owns nothing.
//! Must never ignore a value it does not know: an unknown enum or a field that cannot be honoured is refused by name.

use std::{net::IpAddr, path::PathBuf};

use keelson_cri::v1;

use super::{
    resource,
    status::{Failure, invalid, unsupported},
};
use crate::sandbox::spec::{
    Dns, IpcMode, Namespaces, NetworkMode, PidMode, PortMapping, Protocol, Realm, SandboxKey, SandboxSpec,
};

/// The one runtime handler beside the unnamed default; both mean the built-in launcher.
pub(super) const HANDLER: &str = "native";

pub(super) fn decode(config: Option<v1::PodSandboxConfig>, handler: String) -> Result<SandboxSpec, Failure> {
    let config = config.ok_or_else(|| invalid("config", "missing: a sandbox needs a configuration"))?;
    if !handler.is_empty() && handler != HANDLER {
        let known = format!("`{handler}` is not a runtime handler of this node: want \"\" or \"{HANDLER}\"");
        return Err(invalid("runtime_handler", known));
    }
    if config.windows.is_some() {
        return Err(unsupported("config.windows", "this runtime runs Linux containers only"));
    }
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let dns = config.dns_config.unwrap_or_default();
    let dns = Dns { servers: dns.servers, searches: dns.searches, options: dns.options };
    Ok(SandboxSpec {
        key: key(config.metadata)?,
        hostname: config.hostname,
        log_directory: absolute("config.log_directory", config.log_directory)?,
        // An empty configuration is as good as none: the host's file is copied.
        dns: Some(dns).filter(|dns| *dns != Dns::default()),
        port_mappings: config.port_mappings.iter().map(port_mapping).collect::<Result<_, _>>()?,
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        cgroup_parent: linux.cgroup_parent,
        namespaces: namespaces(security.namespace_options)?,
        sysctls: linux.sysctls.into_iter().collect(),
        privileged: security.privileged,
        handler,
        resources: linux.resources.map(resource::for_update).transpose()?,
        overhead: linux.overhead.map(resource::for_update).transpose()?,
    })
}

fn key(metadata: Option<v1::PodSandboxMetadata>) -> Result<SandboxKey, Failure> {
    let metadata = metadata.ok_or_else(|| invalid("config.metadata", "missing: name, namespace and uid are needed"))?;
    for (field, value) in [("name", &metadata.name), ("namespace", &metadata.namespace), ("uid", &metadata.uid)] {
        plain(&format!("config.metadata.{field}"), value)?;
    }
    Ok(SandboxKey {
        realm: Realm::Pods,
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        attempt: metadata.attempt,
    })
}

/// A name: something, not endless, one line.
pub(super) fn plain(field: &str, value: &str) -> Result<(), Failure> {
    const MAX: usize = 253;
    if value.is_empty() {
        return Err(invalid(field, "is empty"));
    }
    if value.len() > MAX {
        return Err(invalid(field, format!("has {} bytes: want at most {MAX}", value.len())));
    }
    if value.chars().any(char::is_control) {
        return Err(invalid(field, format!("`{}` holds a control character", value.escape_debug())));
    }
    Ok(())
}

pub(super) fn absolute(field: &str, path: String) -> Result<Option<PathBuf>, Failure> {
    if path.is_empty() {
        return Ok(None);
    }
    if !path.starts_with('/') {
        return Err(invalid(field, format!("`{}`: want an absolute path", path.escape_debug())));
    }
    Ok(Some(path.into()))
}

fn port_mapping(mapping: &v1::PortMapping) -> Result<PortMapping, Failure> {
    const FIELD: &str = "config.port_mappings";
    let port = |name: &str, port: i32| {
        u16::try_from(port).map_err(|_| invalid(FIELD, format!("{name} {port}: want 0 to 65535")))
    };
    let protocol = match v1::Protocol::try_from(mapping.protocol) {
        Ok(v1::Protocol::Tcp) => Protocol::Tcp,
        Ok(v1::Protocol::Udp) => Protocol::Udp,
        Ok(v1::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => return Err(invalid(FIELD, format!("protocol {} is not one of CRI v1", mapping.protocol))),
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(
            text.parse::<IpAddr>()
                .map_err(|_| invalid(FIELD, format!("host_ip `{}` is not an IP address", text.escape_debug())))?,
        ),
    };
    Ok(PortMapping {
        protocol,
        container_port: port("container_port", mapping.container_port)?,
        host_port: port("host_port", mapping.host_port)?,
        host_ip,
    })
}

fn namespaces(options: Option<v1::NamespaceOption>) -> Result<Namespaces, Failure> {
    use v1::NamespaceMode::{Container, Node, Pod, Target};
    const FIELD: &str = "config.linux.security_context.namespace_options";
    // Nothing said: as kubelet says it for a plain pod. The protocol's zero would share one PID namespace, and cost a process.
    let Some(options) = options else { return Ok(Namespaces::default()) };
    user_namespace(FIELD, options.userns_options.as_ref())?;
    let field = |name: &str| format!("{FIELD}.{name}");
    Ok(Namespaces {
        network: match mode(&field("network"), options.network)? {
            Pod => NetworkMode::Sandbox,
            Node => NetworkMode::Host,
            Container | Target => return Err(invalid(&field("network"), "a pod has one network: want POD or NODE")),
        },
        pid: match mode(&field("pid"), options.pid)? {
            Pod => PidMode::Sandbox,
            Container => PidMode::Container,
            Node => PidMode::Host,
            Target => return Err(invalid(&field("pid"), "TARGET is for a container, not for its sandbox")),
        },
        ipc: match mode(&field("ipc"), options.ipc)? {
            Pod => IpcMode::Sandbox,
            Node => IpcMode::Host,
            Container | Target => return Err(invalid(&field("ipc"), "want POD or NODE")),
        },
    })
}

pub(super) fn mode(field: &str, value: i32) -> Result<v1::NamespaceMode, Failure> {
    v1::NamespaceMode::try_from(value).map_err(|_| invalid(field, format!("mode {value} is not one of CRI v1")))
}

/// The host's user namespace is all there is so far; `Status` says so, and kubelet then never asks for another.
pub(super) fn user_namespace(field: &str, options: Option<&v1::UserNamespace>) -> Result<(), Failure> {
    let field = format!("{field}.userns_options");
    match options.map(|options| mode(&field, options.mode)).transpose()? {
        None | Some(v1::NamespaceMode::Node) => Ok(()),
        Some(v1::NamespaceMode::Pod) => Err(unsupported(
            &field,
            "user namespaces are not built yet: leave them out (hostUsers: true), or use mode NODE",
        )),
        Some(v1::NamespaceMode::Container | v1::NamespaceMode::Target) => Err(invalid(&field, "want POD or NODE")),
    }
}

pub(super) fn encode_namespaces(namespaces: Namespaces) -> v1::NamespaceOption {
    use v1::NamespaceMode::{Container, Node, Pod};
    v1::NamespaceOption {
        network: i32::from(match namespaces.network {
            NetworkMode::Sandbox => Pod,
            NetworkMode::Host => Node,
        }),
        pid: i32::from(match namespaces.pid {
            PidMode::Container => Container,
            PidMode::Sandbox => Pod,
            PidMode::Host => Node,
        }),
        ipc: i32::from(match namespaces.ipc {
            IpcMode::Sandbox => Pod,
            IpcMode::Host => Node,
        }),
        target_id: String::new(),
        userns_options: None,
    }
}

pub(super) fn encode_key(key: &SandboxKey) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: key.name.clone(),
        uid: key.uid.clone(),
        namespace: key.namespace.clone(),
        attempt: key.attempt,
    }
}

#[cfg(test)]
mod tests;
