//! Kernel parameters of a sandbox: which may be set, and setting them on the thread that is inside its namespaces.
//! `check` is pure; `apply` runs on the namespace thread, where `/proc/sys` shows that thread's namespaces.
//! Owns the allow-list: parameters that the kernel keeps per network or IPC namespace. Must never write one that is the host's.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use super::{
    SandboxError,
    check::{cut, invalid},
    spec::{IpcMode, Namespaces, NetworkMode},
};

/// Which namespace keeps a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    Network,
    Ipc,
}

/// A parameter as a path below `/proc/sys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sysctl {
    path: PathBuf,
    keeper: Keeper,
}

/// Why a parameter could not be set.
#[derive(Debug, thiserror::Error)]
#[error("set sysctl `{}` to `{value}`", path.display())]
pub(crate) struct SysctlError {
    path: PathBuf,
    value: String,
    #[source]
    source: io::Error,
}

impl Sysctl {
    /// Whether the parameter may have the value in a sandbox with these namespaces.
    pub(crate) fn check(name: &str, value: &str, namespaces: Namespaces) -> Result<Self, SandboxError> {
        let field = || format!("sysctls[{}]", cut(name));
        let sysctl = Self::parse(name).ok_or_else(|| {
            invalid(field(), "not a parameter that a namespace keeps: want net.*, fs.mqueue.*, kernel.shm*, kernel.msg* or kernel.sem")
        })?;
        let shared = match sysctl.keeper {
            Keeper::Network => namespaces.network == NetworkMode::Host,
            Keeper::Ipc => namespaces.ipc == IpcMode::Host,
        };
        if shared {
            let kind = if sysctl.keeper == Keeper::Network { "network" } else { "IPC" };
            return Err(invalid(
                field(),
                format!("would change the host: the sandbox uses the host's {kind} namespace"),
            ));
        }
        // A comma has its place in lists of ports alone; `+`, `=` and line ends have none (CVE-2022-0811).
        let list = value.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'-' | b' '));
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b' ' | b'\t' | b'-' | b'.' | b':' | b'_');
        if value.is_empty() || value.len() > 4096 || !(list || value.bytes().all(word)) {
            return Err(invalid(
                field(),
                format!("value `{}`: want letters, digits, spaces and `-.:_`, or numbers with commas", cut(value)),
            ));
        }
        Ok(sysctl)
    }

    /// `net.core.somaxconn` and `net/core/somaxconn` are the same; in the latter form a dot belongs to an interface's name.
    fn parse(name: &str) -> Option<Self> {
        let slashes = name.find('/').is_some_and(|slash| name.find('.').is_none_or(|dot| slash < dot));
        let parts: Vec<&str> = if slashes { name.split('/').collect() } else { name.split('.').collect() };
        let allowed = |part: &&str| {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'@');
            !part.is_empty() && part.len() < 256 && !part.starts_with('.') && part.bytes().all(inner)
        };
        if !parts.iter().all(allowed) {
            return None;
        }
        let keeper = match parts.as_slice() {
            ["net", _, ..] => Keeper::Network,
            ["fs", "mqueue", _] => Keeper::Ipc,
            ["kernel", name] if *name == "sem" || name.starts_with("shm") || name.starts_with("msg") => Keeper::Ipc,
            _ => return None,
        };
        Some(Self { path: parts.iter().collect(), keeper })
    }
}

/// What a sandbox gets unless it says otherwise.
///
/// `groups`: how many a user namespace of its own has; the kernel takes a range of those alone.
pub(crate) fn defaults(
    namespaces: Namespaces,
    ports: bool,
    icmp: bool,
    groups: Option<u32>,
) -> Vec<(&'static str, String)> {
    let own = namespaces.network == NetworkMode::Sandbox;
    let last = groups.map_or(i32::MAX.cast_unsigned(), |groups| groups.saturating_sub(1).min(i32::MAX.cast_unsigned()));
    [
        ("net.ipv4.ip_unprivileged_port_start", "0".to_owned(), ports),
        ("net.ipv4.ping_group_range", format!("0 {last}"), icmp),
    ]
    .into_iter()
    .filter(|(_, _, wanted)| own && *wanted)
    .map(|(name, value, _)| (name, value))
    .collect()
}

/// Checked parameters, and those of `defaults` that they do not name and this kernel has: values by path below `/proc/sys`.
pub(crate) fn writes(asked: &BTreeMap<String, String>, defaults: &[(&str, String)]) -> BTreeMap<String, String> {
    let path = |name: &str| Some(Sysctl::parse(name)?.path.to_str()?.to_owned());
    let asked: BTreeMap<String, String> =
        asked.iter().filter_map(|(name, value)| Some((path(name)?, value.clone()))).collect();
    let mut all: BTreeMap<String, String> = defaults
        .iter()
        .filter_map(|(name, value)| Some((path(name)?, value.clone())))
        .filter(|(path, _)| PathBuf::from("/proc/sys").join(path).exists())
        .collect();
    all.extend(asked);
    all
}

/// Sets checked parameters and, before them, those of `defaults` that they do not name. On the namespace thread.
pub(crate) fn apply(asked: &BTreeMap<String, String>, defaults: &[(&str, String)]) -> Result<(), SysctlError> {
    let asked: Vec<_> =
        asked.iter().filter_map(|(name, value)| Some((Sysctl::parse(name)?.path, value.as_str()))).collect();
    for (name, value) in defaults {
        if let Some(sysctl) = Sysctl::parse(name)
            && asked.iter().all(|(path, _)| *path != sysctl.path)
        {
            match set(sysctl.path, value) {
                // A kernel without the parameter has not the restriction either.
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    asked.into_iter().try_for_each(|(path, value)| set(path, value))
}

fn set(path: PathBuf, value: &str) -> Result<(), SysctlError> {
    let file = PathBuf::from("/proc/sys").join(&path);
    let written = fs::OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(|source| SysctlError { path, value: value.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, value: &str) -> bool {
        Sysctl::check(name, value, Namespaces::default()).is_ok()
    }

    #[test]
    fn namespaced_parameters_pass_in_both_forms() {
        for (name, value) in [
            ("net.core.somaxconn", "1024"),
            ("net/core/somaxconn", "1024"),
            ("net/ipv4/conf/eth0.100/rp_filter", "1"),
            ("net.ipv4.ip_local_reserved_ports", "30000-30010,8080"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
            ("net.ipv4.tcp_congestion_control", "bbr"),
            ("kernel.shm_rmid_forced", "1"),
            ("kernel.sem", "250\t32000 100 128"),
            ("fs.mqueue.msg_max", "100"),
        ] {
            assert!(check(name, value), "{name}={value}");
        }
    }

    #[test]
    fn the_hosts_parameters_and_tricks_are_refused() {
        for name in [
            "kernel.core_pattern",
            "kernel/core_pattern",
            "kernel.shm/../core_pattern",
            "net/../kernel/core_pattern",
            "net",
            "net.",
            "",
            "kernel.hostname",
            "vm.overcommit_memory",
            "fs.file-max",
            "fs.mqueue",
            "fs.mqueue.a.b",
            "net..x",
            "/proc/sys/net/x",
            "net/./x",
            "net.x\n",
            "net.x y",
            "kernel.sem.x",
            "user.max_net_namespaces",
            "net/ipv4/.../x",
            "net.a+kernel.core_pattern",
        ] {
            assert!(!check(name, "1"), "{name:?}");
        }
        for value in ["1+kernel.core_pattern=|x", "a=b", "a,b", "1\n2", "|/bin/sh", "", "$(x)", "1\0", "\u{e9}"] {
            assert!(!check("net.core.somaxconn", value), "{value:?}");
        }
    }

    #[test]
    fn a_sandbox_in_the_hosts_namespaces_may_not_change_them() {
        let network = Namespaces { network: NetworkMode::Host, ..Default::default() };
        assert!(Sysctl::check("net.core.somaxconn", "1", network).is_err());
        assert!(Sysctl::check("kernel.shmmax", "1", network).is_ok());
        let ipc = Namespaces { ipc: IpcMode::Host, ..Default::default() };
        assert!(Sysctl::check("kernel.shmmax", "1", ipc).is_err());
        assert!(defaults(network, true, true, None).is_empty());
    }

    #[test]
    fn the_groups_that_may_ping_are_those_there_are() {
        let range = |groups| {
            let defaults = defaults(Namespaces::default(), true, true, groups);
            writes(&BTreeMap::new(), &defaults).remove("net/ipv4/ping_group_range").unwrap()
        };
        assert_eq!(range(None), "0 2147483647");
        assert_eq!(range(Some(65_536)), "0 65535");
        let asked = BTreeMap::from([("net.ipv4.ping_group_range".to_owned(), "1 0".to_owned())]);
        let writes = writes(&asked, &defaults(Namespaces::default(), true, true, Some(10)));
        assert_eq!(writes["net/ipv4/ping_group_range"], "1 0", "the caller's word is the stronger one");
    }

    proptest::proptest! {
        #[test]
        fn an_accepted_name_never_leaves_its_folder(name in "(net|kernel|fs)[./a-z@+]{0,20}") {
            if let Some(sysctl) = Sysctl::parse(&name) {
                proptest::prop_assert!(sysctl.path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }
    }
}
