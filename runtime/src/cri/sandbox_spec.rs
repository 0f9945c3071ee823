//! A pod sandbox as CRI asks for it, made into the engine's checked words; and its namespaces back again.
//! Pure, in any task of the daemon. Owns nothing.
//! Must never ignore a value it does not know: an unknown enum or a field that cannot be honoured is refused by name.

use std::{net::IpAddr, path::PathBuf};

use keelson_cri::v1;

use super::{
    container_spec::id_mappings,
    resource, security_spec,
    status::{Failure, invalid, unsupported},
};
use crate::{
    container::spec::{ContainerUsers, IdMapping},
    sandbox::spec::{
        Dns, IpcMode, Namespaces, NetworkMode, PidMode, PortMapping, Protocol, Realm, SandboxKey, SandboxSpec,
    },
    user_namespace::UserNamespace,
};

/// The built-in launcher's name beside the unnamed default.
pub(super) const HANDLER: &str = "native";
const NAMESPACES: &str = "config.linux.security_context.namespace_options";

pub(super) fn decode(config: Option<v1::PodSandboxConfig>, handler: String) -> Result<SandboxSpec, Failure> {
    let config = config.ok_or_else(|| invalid("config", "missing: a sandbox needs a configuration"))?;
    if config.windows.is_some() {
        return Err(unsupported("config.windows", "this runtime runs Linux containers only"));
    }
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    // No process of a sandbox runs anything of an image: what confines one is checked, and is the containers' own to ask for.
    security_spec::seccomp(security.seccomp, &security.seccomp_profile_path)?;
    security_spec::apparmor(security.apparmor, "")?;
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
        user_namespace: own_user_namespace(security.namespace_options.as_ref())?,
        namespaces: namespaces(security.namespace_options)?,
        sysctls: linux.sysctls.into_iter().collect(),
        privileged: security.privileged,
        selinux: security.selinux_options.map(security_spec::selinux),
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
    // Nothing said: as kubelet says it for a plain pod. The protocol's zero would share one PID namespace, and cost a process.
    let Some(options) = options else { return Ok(Namespaces::default()) };
    let field = |name: &str| format!("{NAMESPACES}.{name}");
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

/// Which user namespace a request means.
pub(super) fn user_namespace(field: &str, options: Option<v1::UserNamespace>) -> Result<ContainerUsers, Failure> {
    let field = format!("{field}.userns_options");
    let Some(options) = options else { return Ok(ContainerUsers::Sandbox) };
    match mode(&field, options.mode)? {
        v1::NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(ContainerUsers::Host),
        v1::NamespaceMode::Node => Err(invalid(&field, "mode NODE has no mappings: leave them out, or use mode POD")),
        v1::NamespaceMode::Pod => {
            let namespace = UserNamespace { uids: id_mappings(options.uids), gids: id_mappings(options.gids) };
            namespace.check().map_err(|reason| invalid(&field, reason))?;
            Ok(ContainerUsers::Mapped(namespace))
        }
        v1::NamespaceMode::Container | v1::NamespaceMode::Target => Err(invalid(&field, "want POD or NODE")),
    }
}

/// The sandbox's: nobody asks for the host's by saying nothing else.
fn own_user_namespace(options: Option<&v1::NamespaceOption>) -> Result<Option<UserNamespace>, Failure> {
    let options = options.and_then(|options| options.userns_options.clone());
    Ok(match user_namespace(NAMESPACES, options)? {
        ContainerUsers::Mapped(namespace) => Some(namespace),
        ContainerUsers::Sandbox | ContainerUsers::Host => None,
    })
}

pub(super) fn encode_users(namespace: Option<&UserNamespace>) -> Option<v1::UserNamespace> {
    let ranges = |ranges: &[IdMapping]| ranges.iter().map(encode_range).collect();
    namespace.map(|namespace| v1::UserNamespace {
        mode: i32::from(v1::NamespaceMode::Pod),
        uids: ranges(&namespace.uids),
        gids: ranges(&namespace.gids),
    })
}

pub(super) fn encode_range(range: &IdMapping) -> v1::IdMapping {
    v1::IdMapping { host_id: range.host_id, container_id: range.container_id, length: range.length }
}

pub(super) fn encode_namespaces(spec: &SandboxSpec) -> v1::NamespaceOption {
    let namespaces = spec.namespaces;
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
        userns_options: encode_users(spec.user_namespace.as_ref()),
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
