//! `linux.sysctl`: which settings belong to a namespace of the container, and how they are written.
//! Pure, but for the operations it makes; in the shim, before the clone.
//! Owns the private procfs through which the child writes.
//! Must never let a setting through that reaches the host (CVE-2022-0811).

use std::collections::BTreeMap;

use keelson_sys::child::{Op, Shared};

use super::{LaunchError, Namespaces, c_string};
use crate::spec::NamespaceKind;

const STEP: &str = "set sysctl";

pub(super) fn operations(
    settings: &BTreeMap<String, String>,
    namespaces: &Namespaces,
    proc: &Shared,
) -> Result<Vec<Op>, LaunchError> {
    settings
        .iter()
        .map(|(name, value)| {
            let path = checked_path(name)?;
            let kind = namespace_of(&path).ok_or_else(|| {
                LaunchError::invalid(STEP, name, "it belongs to the node, not to a namespace of the container")
            })?;
            if !namespaces.separates(kind) {
                let hint = format!("the container shares the node's {} namespace", super::namespaces::name(kind));
                return Err(LaunchError::invalid(STEP, name, hint));
            }
            if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
                return Err(LaunchError::invalid(STEP, name, "the value has a control character"));
            }
            Ok(Op::WriteProc {
                proc: proc.clone(),
                path: c_string(STEP, &format!("sys/{path}"))?,
                value: value.clone().into_bytes(),
                what: STEP,
                lenient: false,
            })
        })
        .collect()
}

/// `net.ipv4.ip_forward` or `net/ipv4/ip_forward` as a path; a name may hold a dot in the form with slashes, and the other way round.
fn checked_path(name: &str) -> Result<String, LaunchError> {
    let slashes_first = name.find('/').unwrap_or(usize::MAX) < name.find('.').unwrap_or(usize::MAX);
    let path: String = if slashes_first {
        name.to_owned()
    } else {
        let swap = |c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        };
        name.chars().map(swap).collect()
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '@');
    if !path.chars().all(valid) || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(LaunchError::invalid(STEP, name, "not a name of a setting"));
    }
    Ok(path)
}

fn namespace_of(path: &str) -> Option<NamespaceKind> {
    match path {
        "kernel/msgmax"
        | "kernel/msgmnb"
        | "kernel/msgmni"
        | "kernel/sem"
        | "kernel/shmall"
        | "kernel/shmmax"
        | "kernel/shmmni"
        | "kernel/shm_rmid_forced" => Some(NamespaceKind::Ipc),
        "kernel/domainname" | "kernel/hostname" => Some(NamespaceKind::Uts),
        _ if path.starts_with("net/") => Some(NamespaceKind::Network),
        _ if path.starts_with("fs/mqueue/") => Some(NamespaceKind::Ipc),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_one_path() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ] {
            assert_eq!(checked_path(name).unwrap(), path);
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        for name in [
            "",
            "net..x",
            "net/../kernel/core_pattern",
            "../x",
            "net/ipv4/a b",
            "net.x+kernel.y=1",
            "net.x\n",
            "/net/x",
        ] {
            assert!(checked_path(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn only_namespaced_settings_have_a_namespace() {
        for name in [
            "kernel/core_pattern",
            "vm/swappiness",
            "kernel/sysrq",
            "fs/file-max",
            "kernel/ns_last_pid",
            "net",
            "user/max_user_namespaces",
        ] {
            assert_eq!(namespace_of(name), None, "{name}");
        }
        assert_eq!(namespace_of("kernel/shmmax"), Some(NamespaceKind::Ipc));
        assert_eq!(namespace_of("net/core/somaxconn"), Some(NamespaceKind::Network));
    }
}
