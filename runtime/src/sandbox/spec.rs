//! What a caller asks for when it wants a sandbox: plain data, kept in the sandbox's record, returned in its view.
//! Built by a face (CRI, later others) in any task; checked by `sandbox::check` before anything is touched.
//! Owns no resource. Must never hold a word of an outer protocol, nor a default that depends on the host.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{container::spec::SelinuxLabel, resources::Resources, user_namespace::UserNamespace};

/// Which face an object belongs to: each has its own names, and lists only its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Realm {
    /// Pods of a node agent.
    #[default]
    Pods,
    /// Containers that a person made one by one.
    Standalone,
}

/// By what a caller recognises its sandbox. A repeated create with the same key joins the first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct SandboxKey {
    /// Whose name it is.
    #[serde(default)]
    pub realm: Realm,
    /// The caller's grouping of names.
    pub namespace: String,
    /// The name in it.
    pub name: String,
    /// The caller's unique id of the workload.
    pub uid: String,
    /// How many sandboxes this workload had before.
    pub attempt: u32,
}

/// Whose network namespace the sandbox uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NetworkMode {
    /// Its own.
    #[default]
    Sandbox,
    /// The host's; then the host's UTS namespace too.
    Host,
}

/// Which PID namespace containers get unless they say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PidMode {
    /// Each container its own.
    #[default]
    Container,
    /// One for the sandbox.
    Sandbox,
    /// The host's.
    Host,
}

/// Whose IPC namespace the sandbox uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum IpcMode {
    /// Its own.
    #[default]
    Sandbox,
    /// The host's.
    Host,
}

/// The namespaces of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Namespaces {
    /// Network (and UTS).
    pub network: NetworkMode,
    /// PID.
    pub pid: PidMode,
    /// IPC, and with it /dev/shm.
    pub ipc: IpcMode,
}

/// The resolver file of a sandbox; absent in the spec: a copy of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// Transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the sandbox published on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// Port in the sandbox.
    pub container_port: u16,
    /// Port on the host; 0: not published.
    pub host_port: u16,
    /// On this host address only.
    pub host_ip: Option<IpAddr>,
}

/// A sandbox as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Its name.
    pub key: SandboxKey,
    /// Host name in its UTS namespace; empty: the key's name, made valid.
    pub hostname: String,
    /// Where its containers' logs go, absolute.
    pub log_directory: Option<PathBuf>,
    /// Resolver.
    pub dns: Option<Dns>,
    /// Published ports.
    pub port_mappings: Vec<PortMapping>,
    /// The caller's labels, kept verbatim.
    pub labels: BTreeMap<String, String>,
    /// The caller's annotations, kept verbatim, never interpreted.
    pub annotations: BTreeMap<String, String>,
    /// Cgroup under which its containers live, cgroupfs or systemd path form; empty: one of our own.
    pub cgroup_parent: String,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// A user namespace of its own, which owns its other namespaces; `None`: the host's.
    #[serde(default)]
    pub user_namespace: Option<UserNamespace>,
    /// Kernel parameters of its namespaces (`net.core.somaxconn` or `net/core/somaxconn`).
    pub sysctls: BTreeMap<String, String>,
    /// A privileged container may be made in it.
    pub privileged: bool,
    /// SELinux label of its containers that name none of their own; `None`: the node chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<SelinuxLabel>,
    /// Named way to run it; empty: the default. The only one so far is the default.
    pub handler: String,
    /// The workload's resources as a whole: told, not applied (its cgroup is the caller's).
    #[serde(default)]
    pub resources: Option<Resources>,
    /// What running the workload costs beside its containers: told, not applied.
    #[serde(default)]
    pub overhead: Option<Resources>,
}

/// What a workload may use as a whole, and what running it costs beside its containers; absent: as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Whole {
    /// What it may use.
    pub resources: Option<Resources>,
    /// What running it costs.
    pub overhead: Option<Resources>,
}
