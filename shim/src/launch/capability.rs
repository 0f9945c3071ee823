//! Capability names and sets.
//! Pure, but for asking the kernel once what this process has.
//! Owns nothing.
//! Must never widen: what this kernel or this process lacks is left out.

use keelson_sys::child::Capabilities as Sets;
use rustix::thread::{CapabilitySet, capabilities};

use crate::spec::Capabilities;

/// Names without `CAP_`, by number (capabilities(7)).
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const SYS_PTRACE: u64 = 1 << 19;

/// The five sets of a process, limited to what this process has.
pub(super) struct Granted {
    pub(super) bounding: u64,
    pub(super) sets: Sets,
}

pub(super) fn granted(asked: Option<&Capabilities>, own: u64) -> Granted {
    let Some(asked) = asked else {
        return Granted { bounding: 0, sets: Sets::default() };
    };
    let permitted = mask(&asked.permitted) & own;
    let inheritable = mask(&asked.inheritable) & own;
    Granted {
        bounding: mask(&asked.bounding),
        sets: Sets {
            permitted,
            effective: mask(&asked.effective) & permitted,
            inheritable,
            ambient: mask(&asked.ambient) & permitted & inheritable,
        },
    }
}

/// Whether processes of a container with these sets may look into others.
pub(super) fn may_trace(sets: Option<&Capabilities>) -> bool {
    sets.is_some_and(|sets| mask(&sets.bounding) & SYS_PTRACE != 0)
}

/// What this process may use.
pub(super) fn own() -> u64 {
    capabilities(None).map_or(0, |sets| sets.permitted.bits())
}

fn mask(names: &[String]) -> u64 {
    names.iter().filter_map(|name| number(name)).fold(0, |mask, number| mask | 1 << number)
}

fn number(name: &str) -> Option<usize> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == bare)
}

const _: () = assert!(CapabilitySet::CHECKPOINT_RESTORE.bits() == 1 << 40);

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_have_their_numbers() {
        for (name, bit) in [("CAP_CHOWN", 0), ("cap_net_raw", 13), ("SYS_ADMIN", 21), ("CAP_CHECKPOINT_RESTORE", 40)] {
            assert_eq!(mask(&names(&[name])), 1 << bit, "{name}");
        }
        assert_eq!(SYS_PTRACE, mask(&names(&["CAP_SYS_PTRACE"])));
    }

    #[test]
    fn an_unknown_name_gives_nothing() {
        assert_eq!(mask(&names(&["CAP_GODMODE", ""])), 0);
    }

    #[test]
    fn no_set_holds_what_a_larger_one_lacks() {
        let asked = Capabilities {
            bounding: names(&["CAP_CHOWN"]),
            permitted: names(&["CAP_CHOWN", "CAP_KILL"]),
            effective: names(&["CAP_CHOWN", "CAP_SYS_ADMIN"]),
            inheritable: names(&["CAP_CHOWN"]),
            ambient: names(&["CAP_CHOWN", "CAP_KILL"]),
        };
        let granted = granted(Some(&asked), u64::MAX);
        assert_eq!(granted.sets.effective, 1);
        assert_eq!(granted.sets.ambient, 1);
        assert_eq!(super::granted(Some(&asked), 1 << 5).sets.permitted, 1 << 5);
        assert_eq!(super::granted(None, u64::MAX).sets, Sets::default());
    }
}
