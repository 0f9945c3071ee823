//! Everything about a sandbox request that can be wrong without looking at the host, found before anything is touched.
//! Pure functions over the spec, in any task. Every text of the request that the engine writes into a file or the kernel passes here.
//! Owns the bounds. Must never repair a value: it is right, or the caller is told what is wrong and what would be right.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use keelson_network::dns;

use super::{
    SandboxError, files,
    spec::{Dns, IpcMode, Namespaces, NetworkMode, PidMode, PortMapping, SandboxSpec},
    sysctl::Sysctl,
};

/// Name, namespace, uid, label keys: a few times what any orchestrator allows.
const TEXT_MAX: usize = 1024;
/// Labels and annotations of one object together: kubelet allows 256 KiB of annotations to users.
const MAP_MAX: usize = 1024 * 1024;
const PATH_MAX: usize = 4095;

/// Refuses what cannot be run.
pub(crate) fn check(spec: &SandboxSpec) -> Result<(), SandboxError> {
    let key = &spec.key;
    for (field, text) in [("name", &key.name), ("namespace", &key.namespace), ("uid", &key.uid)] {
        if text.is_empty() && field == "name" {
            return Err(invalid("metadata.name", "is empty: a sandbox needs a name"));
        }
        if text.is_empty() && field == "uid" {
            return Err(invalid("metadata.uid", "is empty: without it a retry cannot be told from another sandbox"));
        }
        plain(&format!("metadata.{field}"), text, TEXT_MAX)?;
    }
    hostname(&spec.hostname)?;
    if let Some(directory) = &spec.log_directory {
        absolute("log_directory", directory)?;
    }
    if let Some(dns) = &spec.dns {
        resolver(dns)?;
    }
    map("labels", &spec.labels)?;
    map("annotations", &spec.annotations)?;
    if !spec.cgroup_parent.is_empty() {
        absolute("cgroup_parent", Path::new(&spec.cgroup_parent))?;
    }
    ports(&spec.port_mappings, spec.namespaces.network)?;
    users(spec)?;
    if let Some(label) = &spec.selinux {
        label.check().map_err(|reason| invalid("selinux_options", reason))?;
    }
    for (name, value) in &spec.sysctls {
        Sysctl::check(name, value, spec.namespaces)?;
    }
    Ok(())
}

/// An error about one field of the request.
pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> SandboxError {
    SandboxError::Invalid { field: field.into(), reason: reason.into() }
}

/// The text, short enough for an error.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_default).collect()
}

/// No control characters, not too long.
fn plain(field: &str, text: &str, max: usize) -> Result<(), SandboxError> {
    if text.len() > max {
        return Err(invalid(field, format!("has {} bytes, at most {max} are allowed", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(field, format!("`{}` has a control character", cut(text))));
    }
    Ok(())
}

/// Absolute, without `..`, without control characters.
pub(crate) fn absolute(field: &str, path: &Path) -> Result<(), SandboxError> {
    let text = path.to_str().ok_or_else(|| invalid(field, "is not UTF-8"))?;
    plain(field, text, PATH_MAX)?;
    if !path.is_absolute() {
        return Err(invalid(field, format!("`{}` is not an absolute path", cut(text))));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(invalid(field, format!("`{}` has a `..`: give the path it means", cut(text))));
    }
    Ok(())
}

/// What is written into the hostname file and given to the kernel.
fn hostname(name: &str) -> Result<(), SandboxError> {
    match dns::check_hostname(name) {
        Err(error) if !name.is_empty() => Err(invalid("hostname", error.to_string())),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What is written into the resolver file, one word each.
fn resolver(asked: &Dns) -> Result<(), SandboxError> {
    let lists = [("servers", &asked.servers), ("searches", &asked.searches), ("options", &asked.options)];
    if let Some((field, list)) = lists.into_iter().find(|(_, list)| list.len() > 64) {
        return Err(invalid(
            format!("dns_config.{field}"),
            format!("has {} entries, at most 64 are allowed", list.len()),
        ));
    }
    dns::resolv_conf(&files::dns(asked), "").map(|_| ()).map_err(|error| invalid("dns_config", error.to_string()))
}

fn ports(mappings: &[PortMapping], network: NetworkMode) -> Result<(), SandboxError> {
    let mut seen = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0 && network == NetworkMode::Sandbox) {
        if mapping.container_port == 0 {
            return Err(invalid("port_mappings", format!("host port {} has no container port", mapping.host_port)));
        }
        let key = (format!("{:?}", mapping.protocol), mapping.host_port, mapping.host_ip);
        if seen.contains(&key) {
            return Err(invalid(
                "port_mappings",
                format!("{:?} host port {} is given twice", mapping.protocol, mapping.host_port),
            ));
        }
        seen.push(key);
    }
    Ok(())
}

/// A user namespace owns the sandbox's other namespaces, so they must be its own; but the network can be the host's, which its root
/// then has no power over.
fn users(spec: &SandboxSpec) -> Result<(), SandboxError> {
    const FIELD: &str = "namespace_options.userns_options";
    let Some(namespace) = &spec.user_namespace else { return Ok(()) };
    namespace.check().map_err(|reason| invalid(FIELD, reason))?;
    let shared = match spec.namespaces {
        Namespaces { pid: PidMode::Host, .. } => "PID",
        Namespaces { ipc: IpcMode::Host, .. } => "IPC",
        Namespaces {
            network: NetworkMode::Sandbox | NetworkMode::Host,
            pid: PidMode::Container | PidMode::Sandbox,
            ipc: IpcMode::Sandbox,
        } => {
            return Ok(());
        }
    };
    Err(invalid(
        FIELD,
        format!("a user namespace with the host's {shared} namespace: use the host's for neither or for both"),
    ))
}

/// Labels or annotations: any text, bounded.
pub(crate) fn map(field: &str, map: &BTreeMap<String, String>) -> Result<(), SandboxError> {
    let total: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > MAP_MAX {
        return Err(invalid(field, format!("have {total} bytes together, at most {MAP_MAX} are allowed")));
    }
    if map.contains_key("") {
        return Err(invalid(field, "one has no name"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        container::spec::IdMapping,
        sandbox::spec::{Protocol, SandboxKey},
        user_namespace::UserNamespace,
    };

    fn good() -> SandboxSpec {
        let key =
            SandboxKey { namespace: "default".into(), name: "web".into(), uid: "u1".into(), ..Default::default() };
        SandboxSpec { key, ..Default::default() }
    }

    fn refused(change: impl FnOnce(&mut SandboxSpec)) -> String {
        let mut spec = good();
        change(&mut spec);
        match check(&spec) {
            Err(SandboxError::Invalid { field, .. }) => field,
            other => format!("not refused: {other:?}"),
        }
    }

    #[test]
    fn a_plain_spec_passes() {
        check(&good()).unwrap();
        let mut spec = good();
        spec.hostname = "web-0.example".into();
        spec.log_directory = Some("/var/log/pods/default_web_u1".into());
        spec.dns = Some(Dns {
            servers: vec!["10.96.0.10".into(), "fd00::1%eth0".into()],
            searches: vec!["svc.cluster.local".into(), ".".into()],
            options: vec!["ndots:5".into()],
        });
        spec.cgroup_parent = "/kubepods.slice/kubepods-pod1_2.slice".into();
        spec.annotations.insert("k".into(), "x".repeat(256 * 1024));
        check(&spec).unwrap();
    }

    #[test]
    fn each_bad_field_is_named() {
        assert_eq!(refused(|spec| spec.key.name.clear()), "metadata.name");
        assert_eq!(refused(|spec| spec.key.uid.clear()), "metadata.uid");
        assert_eq!(refused(|spec| spec.key.namespace = "a\nb".into()), "metadata.namespace");
        assert_eq!(refused(|spec| spec.key.name = "n".repeat(2000)), "metadata.name");
        assert_eq!(refused(|spec| spec.log_directory = Some("logs".into())), "log_directory");
        assert_eq!(refused(|spec| spec.log_directory = Some("/var/log/../../etc".into())), "log_directory");
        assert_eq!(refused(|spec| spec.cgroup_parent = "kubepods".into()), "cgroup_parent");
        assert_eq!(refused(|spec| spec.cgroup_parent = "/a/../b".into()), "cgroup_parent");
        let mapping = PortMapping { protocol: Protocol::Tcp, container_port: 0, host_port: 80, host_ip: None };
        assert_eq!(refused(|spec| spec.port_mappings = vec![mapping.clone()]), "port_mappings");
        let mapping = PortMapping { container_port: 80, ..mapping };
        assert_eq!(refused(|spec| spec.port_mappings = vec![mapping.clone(), mapping]), "port_mappings");
        assert_eq!(refused(|spec| _ = spec.labels.insert("x".into(), "y".repeat(MAP_MAX))), "labels");
    }

    #[test]
    fn a_user_namespace_owns_all_the_others_but_the_network() {
        let range = vec![IdMapping { host_id: 65_536, container_id: 0, length: 65_536 }];
        let users = || Some(UserNamespace { uids: range.clone(), gids: range.clone() });
        let mut spec = good();
        spec.user_namespace = users();
        spec.namespaces.pid = PidMode::Sandbox;
        check(&spec).unwrap();
        spec.namespaces.network = NetworkMode::Host;
        check(&spec).unwrap();
        spec.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
        check(&spec).unwrap();
        spec.sysctls.insert("net.core.somaxconn".into(), "1".into());
        assert!(check(&spec).is_err(), "the host's network is not a pod's to change");
        const FIELD: &str = "namespace_options.userns_options";
        assert_eq!(refused(|spec| spec.user_namespace = Some(UserNamespace::default())), FIELD);
        for namespaces in [
            Namespaces { pid: PidMode::Host, ..Default::default() },
            Namespaces { ipc: IpcMode::Host, ..Default::default() },
            Namespaces { network: NetworkMode::Host, ipc: IpcMode::Host, ..Default::default() },
        ] {
            assert_eq!(refused(|spec| (spec.user_namespace, spec.namespaces) = (users(), namespaces)), FIELD);
        }
    }

    #[test]
    fn nothing_that_ends_a_line_reaches_a_file() {
        for bad in ["a\nb", "a\rb", "a\0b", "a b", "\u{85}", "a\u{2028}b", "\n"] {
            assert_eq!(refused(|spec| spec.hostname = bad.into()), "hostname", "{bad:?}");
            let dns = |field: usize| {
                let mut lists = [vec![], vec![], vec![]];
                lists[field] = vec![bad.to_owned()];
                let [servers, searches, options] = lists;
                Some(Dns { servers, searches, options })
            };
            for field in 0..3 {
                assert_eq!(refused(|spec| spec.dns = dns(field)), "dns_config", "{bad:?}");
            }
        }
    }
}
