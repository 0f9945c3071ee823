//! Suite T3 of the security record from the outside: hidden and read-only paths, devices, procfs; and profiles of the host.
#![expect(deprecated, reason = "the old fields are still sent, and mean something")]

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, pod};

use crate::scenario;

type Context3 = cri::LinuxContainerSecurityContext;

async fn sandbox(cri: &mut Cri, node: &Node) -> Result<(String, cri::PodSandboxConfig)> {
    cri.pull("busybox:latest").await?;
    let config = pod(node, "pod");
    Ok((cri.run_pod(&config).await?, config))
}

fn with(name: &str, context: Option<Context3>) -> cri::ContainerConfig {
    let mut c = container(name, "busybox", "exec sleep 1000");
    c.linux.get_or_insert_default().security_context = context;
    c
}

fn text(list: &[&str]) -> Vec<String> {
    list.iter().map(|path| (*path).to_owned()).collect()
}

/// CVE-2025-31133, CVE-2025-52565: what is hidden is hidden by the node's own null device, what is read-only stays so, and an
/// unmasked proc is one.
#[test]
fn t3_hidden_paths_are_hidden_and_read_only_ones_cannot_be_written() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let masked = [
            "/proc/interrupts",
            "/proc/keys",
            "/proc/timer_list",
            "/proc/acpi",
            "/sys/firmware",
            "/bin/ls",
            "/not/there",
        ];
        let readonly = ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/tmp"];
        let context = Context3 { masked_paths: text(&masked), readonly_paths: text(&readonly), ..Default::default() };
        let told = cri.run(&id, with("told", Some(context)), &config).await?;
        // A container of which nothing is said has the same defaults as with every other runtime.
        let silent = cri.run(&id, with("silent", None), &config).await?;
        let core_pattern = fs::read("/proc/sys/kernel/core_pattern")?;
        for c in [&told, &silent] {
            let hidden = cri
                .shell(c, "stat -c '%F %t:%T' /proc/interrupts; wc -c < /proc/keys; ls -A /sys/firmware | wc -l")
                .await?;
            ensure!(hidden == "character special file 1:3\n0\n0\n", "{hidden}");
            for attack in [
                "echo x > /proc/sys/kernel/core_pattern",
                "echo h > /proc/sysrq-trigger",
                "umount /proc/interrupts",
                "umount /proc/sys",
                "mount -o remount,rw /proc/sys",
                "echo x > /sys/kernel/uevent_helper",
                "rm /proc/interrupts",
            ] {
                let result = cri.exec(c, &["sh", "-c", attack], 5).await?;
                ensure!(result.exit_code != 0, "`{attack}` succeeded");
            }
            // Writing to what hides a path must not reach anything that is told again.
            let kept = cri.shell(c, "echo secret > /proc/keys; cat /proc/keys").await?;
            ensure!(kept.is_empty(), "{kept}");
        }
        ensure!(fs::read("/proc/sys/kernel/core_pattern")? == core_pattern, "the node's core_pattern was changed");
        ensure!(cri.exec(&told, &["sh", "-c", "test -s /bin/ls || touch /tmp/x"], 5).await?.exit_code != 0);
        let open = cri.run(&id, with("open", Some(Context3::default())), &config).await?;
        ensure!(
            cri.shell(&open, "stat -c %F /proc/interrupts").await? == "regular empty file\n",
            "an empty list hides nothing"
        );
        Ok(())
    });
}

/// CVE-2019-16884, CVE-2019-19921, CVE-2023-28642, CVE-2025-52881: nobody's volume takes the place of procfs or sysfs files that
/// the runtime itself writes to or relies on.
#[test]
fn t3_nothing_is_mounted_over_the_kernels_files() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let fake = tempfile::tempdir_in("/var/tmp")?;
        for dir in ["self/attr", "sys/net/ipv4", "1", "thread-self/attr/apparmor"] {
            fs::create_dir_all(fake.path().join(dir))?;
        }
        for file in ["self/attr/exec", "thread-self/attr/exec", "sys/net/ipv4/ip_forward"] {
            fs::write(fake.path().join(file), "untouched")?;
        }
        let mount = |path: &str| cri::Mount {
            container_path: path.into(),
            host_path: fake.path().to_string_lossy().into(),
            ..Default::default()
        };
        for (number, path) in
            ["/proc/self", "/proc/self/attr", "/proc/1", "/proc/sys", "/proc/thread-self"].into_iter().enumerate()
        {
            let mut c = with(&format!("c{number}"), None);
            c.mounts = vec![mount(path)];
            let error = match cri.create(&id, c, &config).await {
                Ok(c) => cri.start(&c).await.err(),
                Err(error) => Some(error),
            };
            let error = error.with_context(|| format!("a volume took the place of {path}"))?;
            ensure!(error.message().contains("/proc"), "{path}: {error:?}");
        }
        // A whole other /proc is the pod's own business, but nothing of ours is written there.
        let mut c = with("whole", Some(Context3 { no_new_privs: true, ..Default::default() }));
        c.mounts = vec![mount("/proc")];
        c.linux.get_or_insert_default().resources =
            Some(cri::LinuxContainerResources { oom_score_adj: 500, ..Default::default() });
        if let Ok(c) = cri.create(&id, c, &config).await {
            let _ = cri.start(&c).await;
            let _ = cri.exec(&c, &["true"], 5).await;
        }
        for file in ["self/attr/exec", "thread-self/attr/exec", "sys/net/ipv4/ip_forward"] {
            ensure!(fs::read_to_string(fake.path().join(file))? == "untouched", "{file} was written to");
        }
        Ok(())
    });
}

/// CVE-2026-88264, CVE-2026-88265: /dev is ours whatever the volumes say, a terminal is its own, and only devices that were given act.
#[test]
fn t3_devices_are_those_given_and_act_as_permitted() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        // One that opens without further rights.
        let host = ["/dev/fuse", "/dev/net/tun", "/dev/loop-control"].into_iter().find(|path| Path::new(path).exists());
        let host = host.context("this host has none of the devices that the scenario gives")?;
        let mut c = with("c", None);
        c.devices =
            vec![cri::Device { host_path: host.into(), container_path: "/dev/given".into(), permissions: "r".into() }];
        c.tty = true;
        let null = fs::metadata("/dev/null")?;
        let c = cri.run(&id, c, &config).await?;
        let nodes =
            cri.shell(&c, "cd /dev; stat -c '%n %t:%T' null zero full random urandom tty given | tr '\\n' ' '").await?;
        let number = fs::metadata(host)?.rdev();
        let given = format!("given {:x}:{:x} ", rustix::fs::major(number), rustix::fs::minor(number));
        ensure!(nodes == format!("null 1:3 zero 1:5 full 1:7 random 1:8 urandom 1:9 tty 5:0 {given}"), "{nodes}");
        ensure!(
            cri.shell(&c, "stat -c %t:%T /dev/console; readlink /dev/ptmx; readlink /dev/fd")
                .await?
                .ends_with("pts/ptmx\n/proc/self/fd\n")
        );
        ensure!(cri.exec(&c, &["sh", "-c", "exec 3< /dev/given"], 5).await?.exit_code == 0, "a given device opens");
        ensure!(cri.exec(&c, &["sh", "-c", "exec 3> /dev/given"], 5).await?.exit_code != 0, "it was given for reading");
        // Nodes can be made (as with every runtime), and act on nothing.
        let script = "mknod /made b 7 0 && mknod /raw c 1 1 && ! cat /made && ! head -c 1 /raw";
        cri.shell(&c, script).await?;
        let after = fs::metadata("/dev/null")?;
        ensure!(
            (null.mode(), null.uid(), null.rdev()) == (after.mode(), after.uid(), after.rdev()),
            "the node's null changed"
        );
        Ok(())
    });
}

/// Profiles that are files of the node: read, refused with the reason, and stronger than what the deprecated field says.
#[test]
fn seccomp_profiles_of_the_node_hold_or_say_why_they_cannot() {
    scenario(async |node, mut cri| {
        use cri::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
        let (id, config) = sandbox(&mut cri, node).await?;
        let dir = tempfile::tempdir_in("/var/tmp")?;
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        fs::write(
            path("no-mkdir"),
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#,
        )?;
        fs::write(path("broken"), "{")?;
        fs::write(path("odd"), r#"{"defaultAction":"SCMP_ACT_MAYBE"}"#)?;
        let new = |kind: cri::security_profile::ProfileType, file: &str| {
            let localhost_ref = if file.is_empty() { String::new() } else { path(file) };
            Context3 {
                seccomp: Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref }),
                ..Default::default()
            }
        };
        let old = |text: String| Context3 { seccomp_profile_path: text, ..Default::default() };
        let both = |kind, file: &str, text: &str| Context3 { seccomp_profile_path: text.into(), ..new(kind, file) };
        let local = |file: &str| format!("localhost/{}", path(file));
        for (name, context, mode, mkdir) in [
            ("nil", Context3::default(), "0", true),
            ("unconfined", new(Unconfined, ""), "0", true),
            ("default", new(RuntimeDefault, ""), "2", true),
            ("local", new(Localhost, "no-mkdir"), "2", false),
            ("old-default", old("runtime/default".into()), "2", true),
            ("old-local", old(local("no-mkdir")), "2", false),
            ("new-over-old", both(Unconfined, "", &local("no-mkdir")), "0", true),
            ("local-over-old", both(Localhost, "no-mkdir", "unconfined"), "2", false),
        ] {
            let c = cri.run(&id, with(name, Some(context)), &config).await?;
            let told = cri.shell(&c, "grep Seccomp: /proc/1/status /proc/self/status | cut -f2 | sort -u").await?;
            ensure!(told.trim() == mode, "{name}: mode {told}");
            ensure!((cri.exec(&c, &["mkdir", "/made"], 5).await?.exit_code == 0) == mkdir, "{name}: mkdir");
        }
        for (name, context, words) in [
            ("absent", new(Localhost, "absent"), "absent"),
            ("broken", new(Localhost, "broken"), "broken"),
            ("odd", new(Localhost, "odd"), "SCMP_ACT_MAYBE"),
            ("nameless", new(Localhost, ""), "absolute path"),
            ("old-absent", old(local("absent")), "absent"),
            ("old-odd", old("somewhere".into()), "somewhere"),
        ] {
            let error = cri.create(&id, with(name, Some(context)), &config).await.err().context(name)?;
            ensure!(
                error.code() == tonic::Code::InvalidArgument && error.message().contains(words),
                "{name}: {error:?}"
            );
        }
        Ok(())
    });
}

/// A profile or label that the node's kernel cannot enforce is refused; what asks for nothing special is not.
#[test]
fn mandatory_access_control_is_refused_where_the_kernel_has_none() {
    scenario(async |node, mut cri| {
        use cri::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
        let (id, config) = sandbox(&mut cri, node).await?;
        if Path::new("/sys/module/apparmor/parameters/enabled").exists()
            || Path::new("/sys/fs/selinux/enforce").exists()
        {
            println!("SKIP mandatory_access_control_is_refused_where_the_kernel_has_none: this kernel has one");
            return Ok(());
        }
        let new = |kind: cri::security_profile::ProfileType, name: &str| Context3 {
            apparmor: Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() }),
            ..Default::default()
        };
        let old = |text: &str| Context3 { apparmor_profile: text.into(), ..Default::default() };
        for (name, context) in [
            ("default", new(RuntimeDefault, "")),
            ("unconfined", new(Unconfined, "")),
            ("old-default", old("runtime/default")),
            ("no-label", Context3 { selinux_options: Some(Default::default()), ..Default::default() }),
        ] {
            cri.run(&id, with(name, Some(context)), &config).await.with_context(|| name)?;
        }
        let label = cri::SeLinuxOption { level: "s0:c1,c2".into(), ..Default::default() };
        for (name, context, words) in [
            ("profile", new(Localhost, "mine"), "AppArmor"),
            ("old-profile", old("localhost/mine"), "AppArmor"),
            ("label", Context3 { selinux_options: Some(label), ..Default::default() }, "SELinux"),
        ] {
            let error = cri.create(&id, with(name, Some(context)), &config).await.err().context(name)?;
            ensure!(error.message().contains(words), "{name}: {error:?}");
        }
        Ok(())
    });
}
