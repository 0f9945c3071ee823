//! Suite T17 of the security record from the outside: what of the kernel a container with the default profile can reach
//! (CVE-2026-31431, CVE-2022-0185, CVE-2022-0492). Every call is made inside a container, by a program built for it.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{container, pod};

use crate::scenario;

/// `probe NUMBER A B C`: one system call, its errno (0: it succeeded) printed. `probe i386 ..`: through the old gate.
const PROBE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **words) {
    int old = count > 1 && !strcmp(words[1], "i386");
    long a[4] = {0};
    for (int i = 0; i < 4 && i + 1 + old < count; i++) a[i] = strtol(words[i + 1 + old], 0, 0);
    long result;
    if (old) {
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(a[0]), "b"(a[1]), "c"(a[2]), "d"(a[3]) : "memory", "r8", "r9", "r10", "r11");
        result = (int)result;
    } else {
        result = syscall(a[0], a[1], a[2], a[3], 0, 0, 0);
        if (result < 0) result = -errno;
    }
    if (result == 0 && (a[0] == 56 || (old && a[0] == 120))) _exit(0);
    printf("%ld\n", result < 0 && result > -4096 ? -result : 0);
    return 0;
}
"#;

const EPERM: i64 = 1;
const ENOSYS: i64 = 38;
const EAFNOSUPPORT: i64 = 97;
const NEW_USER: &str = "0x10000000";

#[test]
fn t17_the_default_profile_keeps_containers_off_the_kernels_rare_parts() {
    scenario(async |node, mut cri| {
        const NAME: &str = "t17_the_default_profile_keeps_containers_off_the_kernels_rare_parts";
        if cfg!(not(target_arch = "x86_64")) {
            println!("SKIP {NAME}: its numbers are those of x86_64");
            return Ok(());
        }
        let dir = tempfile::tempdir_in("/var/tmp")?;
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        fs::write(dir.path().join("probe.c"), PROBE)?;
        let cc = Command::new("cc").args(["-Os", "-static", "-o", "probe", "probe.c"]).current_dir(dir.path()).output();
        let cc = cc.context("run cc, as for the test images")?;
        ensure!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
        cri.pull("busybox:latest").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let with = |name: &str, kind: cri::security_profile::ProfileType, add: &[&str]| {
            let mut c = container(name, "busybox", "exec sleep 1000");
            c.linux.get_or_insert_default().security_context = Some(cri::LinuxContainerSecurityContext {
                seccomp: Some(cri::SecurityProfile { profile_type: kind.into(), ..Default::default() }),
                capabilities: Some(cri::Capability {
                    add_capabilities: add.iter().map(|name| (*name).to_owned()).collect(),
                    ..Default::default()
                }),
                ..Default::default()
            });
            c.mounts = vec![cri::Mount {
                container_path: "/probe".into(),
                host_path: dir.path().to_string_lossy().into(),
                readonly: true,
                ..Default::default()
            }];
            c
        };
        use cri::security_profile::ProfileType::{RuntimeDefault, Unconfined};
        let confined = cri.run(&id, with("confined", RuntimeDefault, &[]), &config).await?;
        let open = cri.run(&id, with("open", Unconfined, &[]), &config).await?;
        let admin = cri.run(&id, with("admin", RuntimeDefault, &["SYS_ADMIN"]), &config).await?;
        let mut asker = cri.clone();
        let mut ask = async |c: &str, call: &str| -> Result<i64> {
            let said = asker.shell(c, &format!("/probe/probe {call}")).await?;
            said.trim().parse().with_context(|| format!("{call}: {said}"))
        };
        let x32 = |number: u64| format!("{:#x}", 0x4000_0000 | number);
        let calls = [
            ("socket(AF_ALG)", "41 38 5 0".to_owned(), EAFNOSUPPORT),
            ("socket(AF_ALG) with a bit above the family", "41 0x100000026 5 0".into(), EAFNOSUPPORT),
            ("socket(AF_VSOCK)", "41 40 1 0".into(), EAFNOSUPPORT),
            ("unshare(CLONE_NEWUSER)", format!("272 {NEW_USER}"), EPERM),
            ("clone(CLONE_NEWUSER)", "56 0x10000011".into(), EPERM),
            ("clone3", "435 0 0".into(), ENOSYS),
            ("setns", "308 0 0".into(), EPERM),
            ("mount", "165 0 0 0".into(), EPERM),
            ("fsopen (CVE-2022-0185)", "430 0 0".into(), EPERM),
            ("keyctl", "250 0 0".into(), EPERM),
            ("add_key", "248 0 0".into(), EPERM),
            ("request_key", "249 0 0".into(), EPERM),
            ("bpf", "321 0 0".into(), EPERM),
            ("userfaultfd", "323 0".into(), EPERM),
            ("io_uring_setup", "425 1 0".into(), EPERM),
            ("io_uring_enter", "426 0 0".into(), EPERM),
            ("perf_event_open", "298 0 0".into(), EPERM),
            ("open_by_handle_at", "304 0 0".into(), EPERM),
            ("kexec_load", "246 0 0".into(), EPERM),
            ("init_module", "175 0 0".into(), EPERM),
            ("a call of the future", "900".into(), ENOSYS),
            ("x32 socket(AF_ALG)", format!("{} 38 5 0", x32(41)), EAFNOSUPPORT),
            ("x32 unshare(CLONE_NEWUSER)", format!("{} {NEW_USER}", x32(272)), EPERM),
            ("x32 keyctl", format!("{} 0 0", x32(250)), EPERM),
        ];
        for (name, call, want) in &calls {
            let got = ask(&confined, call).await?;
            ensure!(got == *want, "{name}: {got}, want {want}");
        }
        // The old gate, where the kernel has it (without, the program dies of a signal and `ask` fails).
        if ask(&confined, "i386 20").await.is_ok_and(|errno| errno == 0) {
            for (name, call, want) in [
                ("socket(AF_ALG)", "i386 359 38 5 0", EAFNOSUPPORT),
                ("socketcall, which hides its family", "i386 102 1 0 0", ENOSYS),
                ("unshare(CLONE_NEWUSER)", "i386 310 0x10000000 0 0", EPERM),
                ("clone(CLONE_NEWUSER)", "i386 120 0x10000011 0 0", EPERM),
                ("keyctl", "i386 288 0 0 0", EPERM),
                ("io_uring_setup", "i386 425 1 0 0", EPERM),
            ] {
                let got = ask(&confined, call).await?;
                ensure!(got == want, "i386 {name}: {got}, want {want}");
            }
        } else {
            println!("SKIP {NAME} (the old gate): this kernel has no i386 calls");
        }
        // The same calls without a profile: what was denied above was denied by it, not by this kernel.
        let mut reached = 0;
        for (name, call, _) in calls.iter().filter(|(name, ..)| {
            name.starts_with("unshare") || name.starts_with("clone(") || *name == "keyctl" || *name == "bpf"
        }) {
            let got = ask(&open, call).await?;
            reached += u32::from(got != EPERM);
            println!("without a profile, {name}: {got}");
        }
        ensure!(reached > 0, "nothing that the profile denies can be reached without it: this scenario shows nothing");
        // Who may administer the system may make namespaces, and still has no rare sockets.
        ensure!(ask(&admin, &format!("272 {NEW_USER}")).await? != EPERM, "unshare with CAP_SYS_ADMIN");
        ensure!(ask(&admin, "41 38 5 0").await? == EAFNOSUPPORT, "AF_ALG with CAP_SYS_ADMIN");
        // What every program needs is there.
        for call in ["39", "41 1 1 0", "41 2 1 0", "135 0xffffffff"] {
            ensure!(ask(&confined, call).await? == 0, "{call}");
        }
        Ok(())
    });
}
