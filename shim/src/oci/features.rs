//! `features`: what this runtime can do, as the specification's features structure.
//! Prints one JSON object.
//! Owns nothing.
//! Must never claim what is refused elsewhere.

use std::process::ExitCode;

use lexopt::Parser;
use serde_json::{Value, json};

use super::error::OciError;
use super::print;

pub(super) fn features(parser: &mut Parser) -> Result<ExitCode, OciError> {
    match parser.next()? {
        None => print(&format!("{:#}\n", describe())),
        Some(other) => Err(other.unexpected().into()),
    }
}

fn describe() -> Value {
    let words = |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    let capabilities: Vec<String> = words(CAPABILITIES).into_iter().map(|name| format!("CAP_{name}")).collect();
    let actions: Vec<String> = words(ACTIONS).into_iter().map(|name| format!("SCMP_ACT_{name}")).collect();
    let operators: Vec<String> =
        words("NE LT LE EQ GE GT MASKED_EQ").into_iter().map(|name| format!("SCMP_CMP_{name}")).collect();
    let flags = words("SECCOMP_FILTER_FLAG_TSYNC SECCOMP_FILTER_FLAG_LOG SECCOMP_FILTER_FLAG_SPEC_ALLOW");
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": keelson_shim::spec::VERSION,
        "hooks": words("prestart createRuntime createContainer startContainer poststart poststop"),
        "mountOptions": words(MOUNT_OPTIONS),
        "linux": {
            "namespaces": words("cgroup ipc mount network pid time user uts"),
            "capabilities": capabilities,
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": actions,
                "operators": operators,
                "archs": words("SCMP_ARCH_X86_64 SCMP_ARCH_X86 SCMP_ARCH_X32 SCMP_ARCH_AARCH64"),
                "knownFlags": flags,
                "supportedFlags": flags,
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
        },
        "annotations": { "io.keelson.version": env!("CARGO_PKG_VERSION") },
        "potentiallyUnsafeConfigAnnotations": [],
    })
}

const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE \
    SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL \
    SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";

const ACTIONS: &str = "KILL KILL_THREAD KILL_PROCESS TRAP ERRNO TRACE LOG ALLOW";

const MOUNT_OPTIONS: &str = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev \
    nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev \
    rdiratime relatime rexec rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate \
    rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime suid \
    symfollow sync unbindable idmap ridmap";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_what_engines_read() {
        let features = describe();
        for pointer in [
            "/ociVersionMin",
            "/ociVersionMax",
            "/linux/seccomp/enabled",
            "/linux/cgroup/v2",
            "/linux/mountExtensions/idmap/enabled",
        ] {
            assert!(features.pointer(pointer).is_some(), "{pointer}");
        }
        assert_eq!(features["linux"]["capabilities"].as_array().unwrap().len(), 41);
    }
}
