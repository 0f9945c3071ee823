//! Capability names and sets: the default set, what a request adds and drops, what the daemon itself can hand out.
//! Pure but for reading the daemon's own sets once. Owns the default set.
//! Must never fill the inheritable set beyond the ambient one (CVE-2022-24769 and its kin).

use std::{collections::BTreeSet, str::FromStr as _};

use keelson_shim::launch::CAPABILITY_NAMES;
use oci_spec::runtime::{Capability, LinuxCapabilities};

use super::Host;
use crate::container::{ContainerError, spec::Security};

/// What a container has when nobody says otherwise: the set all runtimes agree on.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Whether the word means all capabilities.
pub(crate) fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL")
}

/// The name without `CAP_`, upper case; none for a name that is no capability.
pub(crate) fn canonical(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    CAPABILITY_NAMES.iter().find(|known| **known == bare).copied()
}

/// Names of what this daemon has and may pass on.
pub(crate) fn of_this_process() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    let mask = mask("CapPrm:") & mask("CapBnd:");
    (0..).zip(CAPABILITY_NAMES).filter(|(bit, _)| mask & (1u64 << bit) != 0).map(|(_, name)| name.to_owned()).collect()
}

/// The process's sets.
pub(crate) fn build(security: &Security, host: &Host) -> Result<LinuxCapabilities, ContainerError> {
    let known = |name: &str| canonical(name).and_then(|name| Capability::from_str(name).ok());
    let all = || host.capabilities.iter().filter_map(|name| known(name));
    let mut set: BTreeSet<String> = BTreeSet::new();
    let asked = &security.capabilities;
    if security.privileged || asked.add.iter().any(|name| is_all(name)) {
        set.extend(all().map(|capability| capability.to_string()));
    } else if !asked.drop.iter().any(|name| is_all(name)) {
        set.extend(DEFAULT.iter().map(ToString::to_string).filter(|name| host.capabilities.contains(name)));
    }
    let mut ambient = BTreeSet::new();
    if !security.privileged {
        for name in asked.drop.iter().filter_map(|name| canonical(name)) {
            set.remove(name);
        }
        for name in asked.add.iter().chain(&asked.ambient).filter_map(|name| canonical(name)) {
            if !host.capabilities.iter().any(|had| had == name) {
                let reason = format!("CAP_{name}: this daemon does not have it itself and cannot pass it on");
                return Err(ContainerError::Unsupported { field: "capabilities".into(), reason });
            }
            set.insert(name.to_owned());
        }
        ambient.extend(asked.ambient.iter().filter_map(|name| canonical(name)).map(str::to_owned));
    }
    let parse = |names: &BTreeSet<String>| names.iter().filter_map(|name| known(name)).collect();
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(parse(&set)))
        .set_effective(Some(parse(&set)))
        .set_permitted(Some(parse(&set)))
        .set_inheritable(Some(parse(&ambient)))
        .set_ambient(Some(parse(&ambient)));
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::Capabilities;

    fn host() -> Host {
        let capabilities =
            CAPABILITY_NAMES.iter().filter(|name| **name != "SYS_RESOURCE").map(|name| (*name).to_owned()).collect();
        Host { unified: true, capabilities, ..Host::default() }
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn sets(add: &[&str], drop: &[&str], ambient: &[&str]) -> (usize, Vec<String>) {
        let capabilities = Capabilities { add: names(add), drop: names(drop), ambient: names(ambient) };
        let sets = build(&Security { capabilities, ..Default::default() }, &host()).unwrap();
        let mut inheritable: Vec<_> = sets.inheritable().iter().flatten().map(ToString::to_string).collect();
        inheritable.sort();
        assert_eq!(sets.inheritable(), sets.ambient());
        assert_eq!(sets.bounding(), sets.effective());
        (sets.bounding().as_ref().unwrap().len(), inheritable)
    }

    #[test]
    fn every_number_has_a_name_the_spec_knows() {
        for name in CAPABILITY_NAMES {
            assert_eq!(Capability::from_str(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn sets_follow_the_request_and_nothing_is_inheritable_but_the_ambient() {
        assert_eq!(sets(&[], &[], &[]), (14, vec![]));
        assert_eq!(sets(&["NET_ADMIN", "cap_net_admin"], &["CAP_NET_RAW"], &[]), (14, vec![]));
        assert_eq!(sets(&[], &["ALL"], &[]), (0, vec![]));
        assert_eq!(sets(&["CHOWN"], &["ALL"], &[]), (1, vec![]));
        assert_eq!(sets(&["ALL"], &["NET_RAW"], &[]), (39, vec![]));
        // Asked for and taken away: the request's addition is the more exact word, as with the peers.
        assert_eq!(sets(&["NET_RAW"], &["NET_RAW"], &[]), (14, vec![]));
        assert_eq!(sets(&[], &["ALL"], &["NET_BIND_SERVICE"]), (1, vec!["NET_BIND_SERVICE".to_owned()]));
    }

    #[test]
    fn what_the_daemon_lacks_is_told() {
        let capabilities = Capabilities { add: names(&["SYS_RESOURCE"]), ..Default::default() };
        let error = build(&Security { capabilities, ..Default::default() }, &host()).unwrap_err();
        assert!(error.to_string().contains("CAP_SYS_RESOURCE"), "{error}");
        let privileged = build(&Security { privileged: true, ..Default::default() }, &host()).unwrap();
        assert_eq!(privileged.bounding().as_ref().unwrap().len(), 40);
    }
}
