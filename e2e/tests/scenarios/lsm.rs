//! AppArmor profiles and SELinux labels, on kernels that have the one or the other: seen from inside a container and from its /proc.
//! `e2e/tools/lsm-in-guest` runs them in guests; on a kernel without they say SKIP.
#![expect(deprecated, reason = "the old field is still sent, and means something")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1::{self as cri, security_profile::ProfileType};
use keelson_e2e::node::{Cri, Node, container, pod};

use crate::scenario;

type Security = cri::LinuxContainerSecurityContext;

const DEFAULT: &str = "keelson-default";

fn lacks_apparmor(name: &str) -> bool {
    let lacks = !fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"));
    if lacks {
        println!("SKIP {name}: this kernel runs without AppArmor");
    }
    lacks
}

fn lacks_selinux(name: &str) -> bool {
    let lacks = !Path::new("/sys/fs/selinux/enforce").exists();
    if lacks {
        println!("SKIP {name}: this kernel runs without SELinux");
    }
    lacks
}

async fn sandbox(cri: &mut Cri, node: &Node, name: &str) -> Result<(String, cri::PodSandboxConfig)> {
    cri.pull("busybox:latest").await?;
    let config = pod(node, name);
    Ok((cri.run_pod(&config).await?, config))
}

fn with(name: &str, context: Security) -> cri::ContainerConfig {
    let mut c = container(name, "busybox", "exec sleep 1000");
    c.linux.get_or_insert_default().security_context = Some(context);
    c
}

fn profile(kind: ProfileType, name: &str) -> Security {
    let apparmor = Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() });
    Security { apparmor, ..Default::default() }
}

/// With the rights to mount, as far as only the profile is against it.
fn mighty(context: Security) -> Security {
    let capabilities = cri::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() };
    Security { capabilities: Some(capabilities), ..context }
}

/// Of the container's first process and of an exec.
async fn labels(cri: &mut Cri, id: &str) -> Result<[String; 2]> {
    let text = cri.shell(id, "cat /proc/1/attr/current; echo; cat /proc/self/attr/current").await?;
    let mut lines = text.lines().map(|line| line.trim_matches(['\0', ' ']).to_owned()).filter(|line| !line.is_empty());
    let mut next = || lines.next().with_context(|| format!("two labels in `{text}`"));
    Ok([next()?, next()?])
}

/// Loads, or takes away, profiles.
fn parser(option: &str, text: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), text)?;
    let status = Command::new("apparmor_parser").args(["-K", option]).arg(file.path()).status()?;
    ensure!(status.success(), "apparmor_parser {option} ended with {status}");
    Ok(())
}

#[test]
fn apparmor_the_default_profile_confines_whoever_asks_for_none_and_for_it() {
    if lacks_apparmor("apparmor_the_default_profile_confines_whoever_asks_for_none_and_for_it") {
        return;
    }
    // An older keelson's, that allows everything.
    parser(
        "-r",
        &format!(
            "profile {DEFAULT} flags=(attach_disconnected) {{ file, capability, mount, umount, signal, ptrace, }}"
        ),
    )
    .unwrap();
    scenario(async |node, mut cri| {
        let mut sandbox_config = pod(node, "pod");
        sandbox_config.linux.get_or_insert_default().security_context =
            Some(cri::LinuxSandboxSecurityContext { privileged: true, ..Default::default() });
        cri.pull("busybox:latest").await?;
        let id = cri.run_pod(&sandbox_config).await?;
        let confined = format!("{DEFAULT} (enforce)");
        let old = Security { apparmor_profile: "runtime/default".into(), ..Default::default() };
        for (name, context, want) in [
            ("silent", Security::default(), confined.as_str()),
            ("default", profile(ProfileType::RuntimeDefault, ""), &confined),
            ("old-default", old, &confined),
            ("unconfined", profile(ProfileType::Unconfined, ""), "unconfined"),
            ("privileged", Security { privileged: true, ..Default::default() }, "unconfined"),
        ] {
            let c = cri.run(&id, with(name, mighty(context)), &sandbox_config).await.context(name)?;
            ensure!(labels(&mut cri, &c).await? == [want, want], "{name}: {:?}", labels(&mut cri, &c).await?);
            let mount = cri.exec(&c, &["mount", "-t", "tmpfs", "none", "/tmp"], 20).await?;
            let mounted = mount.exit_code == 0;
            ensure!(mounted == (want == "unconfined"), "{name}: mounting ended with {mount:?}");
            // The rest of its life is as ever.
            cri.shell(&c, "echo x > /tmp/x && cat /tmp/x /etc/hosts /proc/self/stat > /dev/null && kill -0 1").await?;
        }
        // A tool took it away; the next container has it again.
        parser("-R", &format!("profile {DEFAULT} {{ }}"))?;
        let again = cri.run(&id, with("again", Security::default()), &sandbox_config).await?;
        ensure!(labels(&mut cri, &again).await? == [confined.as_str(); 2]);
        // And after a daemon that was killed, for the exec as well.
        node.kill()?;
        node.boot()?;
        let mut cri = node.cri()?;
        ensure!(labels(&mut cri, &again).await? == [confined.as_str(); 2]);
        cri.stop(&again, 10).await.context("the node's signals reach what is confined")?;
        Ok(())
    });
    parser("-R", &format!("profile {DEFAULT} {{ }}")).unwrap();
}

#[test]
fn apparmor_a_profile_of_the_host_is_enforced_or_refused() {
    if lacks_apparmor("apparmor_a_profile_of_the_host_is_enforced_or_refused") {
        return;
    }
    const PROFILE: &str = "keelson-test-deny-write";
    let text = format!("profile {PROFILE} flags=(attach_disconnected) {{ file, capability, signal, deny /tmp/** w, }}");
    parser("-r", &text).unwrap();
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node, "pod").await?;
        let old = |name: &str| Security { apparmor_profile: format!("localhost/{name}"), ..Default::default() };
        let both =
            Security { apparmor_profile: "localhost/not-loaded".into(), ..profile(ProfileType::Localhost, PROFILE) };
        for (name, context) in [
            ("new", profile(ProfileType::Localhost, PROFILE)),
            ("prefixed", profile(ProfileType::Localhost, &format!("localhost/{PROFILE}"))),
            ("old", old(PROFILE)),
            ("both", both),
        ] {
            let c = cri.run(&id, with(name, context), &config).await.context(name)?;
            ensure!(labels(&mut cri, &c).await?.iter().all(|label| label.starts_with(PROFILE)), "{name}");
            ensure!(cri.exec(&c, &["touch", "/tmp/x"], 20).await?.exit_code != 0, "{name}: an exec wrote");
            cri.shell(&c, "touch /x").await?;
        }
        for context in [old("not-loaded"), profile(ProfileType::Localhost, "unconfined"), old(&PROFILE[..9])] {
            let error = cri.create(&id, with("refused", context), &config).await.err().context("not refused")?;
            ensure!(error.code() == tonic::Code::FailedPrecondition, "{error:?}");
            ensure!(error.message().contains("is not loaded on this node"), "{error:?}");
        }
        Ok(())
    });
    parser("-R", &text).unwrap();
}

/// The label of a file as the container has it.
fn of_file(pid: i64, path: &str) -> Result<String> {
    let mut buffer = [0; 256];
    let path = PathBuf::from(format!("/proc/{pid}/root{path}"));
    let length = rustix::fs::lgetxattr(&path, "security.selinux", &mut buffer)
        .with_context(|| format!("label of `{}`", path.display()))?;
    Ok(String::from_utf8_lossy(&buffer[..length]).trim_end_matches('\0').to_owned())
}

/// `s0:c1,c2` of `u:r:t:s0:c1,c2`.
fn level(label: &str) -> &str {
    label.splitn(4, ':').nth(3).unwrap_or_default()
}

#[test]
fn selinux_each_pod_has_a_level_of_its_own_and_keeps_it() {
    if lacks_selinux("selinux_each_pod_has_a_level_of_its_own_and_keeps_it") {
        return;
    }
    scenario(async |node, mut cri| {
        let volume = tempfile::tempdir_in("/var/tmp")?;
        fs::create_dir(volume.path().join("deep"))?;
        let mut levels = BTreeSet::new();
        let mut first = None;
        for name in ["a", "b", "c"] {
            let (id, config) = sandbox(&mut cri, node, name).await?;
            let mut labelled = with("one", Security::default());
            labelled.mounts.push(cri::Mount {
                container_path: "/volume".into(),
                host_path: volume.path().to_string_lossy().into_owned(),
                selinux_relabel: true,
                ..Default::default()
            });
            let one = cri.run(&id, labelled, &config).await?;
            let [init, exec] = labels(&mut cri, &one).await?;
            ensure!(init == exec && init.starts_with("system_u:system_r:container_t:s0:c"), "{init} {exec}");
            let two = cri.run(&id, with("two", Security::default()), &config).await?;
            ensure!(labels(&mut cri, &two).await?[0] == init, "containers of one pod have one level");
            ensure!(levels.insert(level(&init).to_owned()), "two pods have the level of {init}");
            let files = format!("system_u:object_r:container_file_t:{}", level(&init));
            cri.shell(&one, "touch /new /dev/shm/new /dev/mqueue/new").await?;
            let pid = cri.pid(&one).await?;
            for path in [
                "/",
                "/bin/busybox",
                "/new",
                "/dev/null",
                "/dev/shm",
                "/dev/shm/new",
                "/dev/mqueue",
                "/etc/hosts",
                "/etc/resolv.conf",
                "/etc/hostname",
                "/volume",
                "/volume/deep",
            ] {
                ensure!(of_file(pid, path)? == files, "{path}: {} is not {files}", of_file(pid, path)?);
            }
            // A policy may have a type of its own for queues.
            let queue = of_file(pid, "/dev/mqueue/new")?;
            ensure!(level(&queue) == level(&init), "{queue}");
            first.get_or_insert((id, config, init));
        }
        node.kill()?;
        node.boot()?;
        let mut cri = node.cri()?;
        let (id, config, label) = first.context("a pod")?;
        let three = cri.run(&id, with("three", Security::default()), &config).await?;
        ensure!(labels(&mut cri, &three).await? == [label.as_str(); 2], "a pod keeps its level");
        Ok(())
    });
}

#[test]
fn selinux_what_a_request_says_wins_and_what_the_policy_does_not_know_is_refused() {
    if lacks_selinux("selinux_what_a_request_says_wins_and_what_the_policy_does_not_know_is_refused") {
        return;
    }
    scenario(async |node, mut cri| {
        cri.pull("busybox:latest").await?;
        let option = |level: &str| Some(cri::SeLinuxOption { level: level.into(), ..Default::default() });
        let mut config = pod(node, "pod");
        let context = cri::LinuxSandboxSecurityContext {
            privileged: true,
            selinux_options: option("s0:c100,c200"),
            ..Default::default()
        };
        config.linux.get_or_insert_default().security_context = Some(context);
        let id = cri.run_pod(&config).await?;
        let label = |level: &str| Security { selinux_options: option(level), ..Default::default() };
        for (name, context, want) in [
            ("inherits", Security::default(), "system_u:system_r:container_t:s0:c100,c200"),
            ("own", label("s0:c3,c4"), "system_u:system_r:container_t:s0:c3,c4"),
            ("lowest", label("s0"), "system_u:system_r:container_t:s0"),
        ] {
            let c = cri.run(&id, with(name, context), &config).await.context(name)?;
            ensure!(labels(&mut cri, &c).await? == [want, want], "{name}: {:?}", labels(&mut cri, &c).await?);
            // Queues are the pod's, whoever looks.
            let pid = cri.pid(&c).await?;
            ensure!(level(&of_file(pid, "/dev/mqueue")?) == "s0:c100,c200", "{name}");
            ensure!(level(&of_file(pid, "/")?) == level(want), "{name}");
        }
        let privileged = Security { privileged: true, ..Default::default() };
        let (other, other_config) = {
            let mut config = pod(node, "other");
            let context = cri::LinuxSandboxSecurityContext { privileged: true, ..Default::default() };
            config.linux.get_or_insert_default().security_context = Some(context);
            (cri.run_pod(&config).await?, config)
        };
        let c = cri.run(&other, with("privileged", privileged), &other_config).await?;
        let [init, exec] = labels(&mut cri, &c).await?;
        ensure!(init == exec && init == "system_u:system_r:spc_t:s0", "{init} {exec}");
        for wrong in ["s0,c4,c5", "s0:c4,c99999", "s9"] {
            let error = cri.create(&id, with("wrong", label(wrong)), &config).await.err().context(wrong)?;
            ensure!(error.code() == tonic::Code::InvalidArgument, "{wrong}: {error:?}");
            ensure!(error.message().contains("no label of the loaded policy"), "{wrong}: {error:?}");
        }
        Ok(())
    });
}
