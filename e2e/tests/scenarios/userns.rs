//! Pods with a user namespace of their own: what they own, what they cannot reach, what is refused, what survives the daemon.
//! Suite T15 of the security record where a user namespace is part of it (CVE-2025-47291).

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_cri::v1;
use keelson_e2e::{
    newest::Newest,
    node::{Cri, Node, container, pod},
};

use crate::scenario;

const HOST: u32 = 700_000;
const LENGTH: u32 = 65_536;

fn ranges(ranges: &[(u32, u32, u32)]) -> Vec<cri::IdMapping> {
    ranges.iter().map(|&(container_id, host_id, length)| cri::IdMapping { host_id, container_id, length }).collect()
}

fn options(mode: cri::NamespaceMode, mapping: &[(u32, u32, u32)]) -> cri::NamespaceOption {
    cri::NamespaceOption {
        pid: cri::NamespaceMode::Container.into(),
        userns_options: Some(cri::UserNamespace { mode: mode.into(), uids: ranges(mapping), gids: ranges(mapping) }),
        ..Default::default()
    }
}

pub(crate) fn own() -> cri::NamespaceOption {
    options(cri::NamespaceMode::Pod, &[(0, HOST, LENGTH)])
}

pub(crate) fn with(config: &mut cri::PodSandboxConfig, options: cri::NamespaceOption) {
    config.linux.get_or_insert_default().security_context.get_or_insert_default().namespace_options = Some(options);
}

pub(crate) fn inside(mut config: cri::ContainerConfig, options: cri::NamespaceOption) -> cri::ContainerConfig {
    config.linux.get_or_insert_default().security_context.get_or_insert_default().namespace_options = Some(options);
    config
}

/// Whether the node says it can; prints why the rest of a scenario is skipped.
pub(crate) async fn can(cri: &mut Cri, name: &str) -> Result<bool> {
    let status = cri.runtime.status(cri::StatusRequest { verbose: true }).await?.into_inner();
    let handlers: Vec<_> =
        status.runtime_handlers.iter().map(|h| h.features.unwrap_or_default().user_namespaces).collect();
    ensure!(handlers.len() >= 2 && handlers.iter().all(|can| *can == handlers[0]), "{handlers:?}");
    if !handlers[0] {
        println!("SKIP {name}: {}", status.info.get("config").map_or("", String::as_str));
    }
    Ok(handlers[0])
}

async fn pod_with_users(
    cri: &mut Cri,
    node: &Node,
    change: impl FnOnce(&mut cri::PodSandboxConfig),
) -> Result<(String, cri::PodSandboxConfig)> {
    cri.pull("busybox:latest").await?;
    let mut config = pod(node, "users");
    with(&mut config, own());
    change(&mut config);
    Ok((cri.run_pod(&config).await?, config))
}

/// T15: root inside is nobody outside, and owns what a root should own.
#[test]
fn t15_root_of_a_pod_is_nobody_on_the_node() {
    scenario(async |node, mut cri| {
        if !can(&mut cri, "t15_root_of_a_pod_is_nobody_on_the_node").await? {
            return Ok(());
        }
        let (id, config) = pod_with_users(&mut cri, node, |config| {
            let linux = config.linux.get_or_insert_default();
            linux.sysctls = [("kernel.shm_rmid_forced", "1"), ("net.ipv4.ip_forward", "1")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        })
        .await?;
        let status = cri.pod_status(&id).await?;
        let told = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
        ensure!(told.as_ref() == Some(&own()), "{told:?}");
        let volume = tempfile::tempdir_in("/var/tmp")?;
        fs::write(volume.path().join("given"), "x")?;
        let mut c = inside(container("c", "busybox", "exec sleep 1000"), own());
        c.mounts = vec![cri::Mount {
            container_path: "/volume".into(),
            host_path: volume.path().to_string_lossy().into(),
            uid_mappings: ranges(&[(0, HOST, LENGTH)]),
            gid_mappings: ranges(&[(0, HOST, LENGTH)]),
            ..Default::default()
        }];
        let c = cri.run(&id, c, &config).await?;
        let sh = async |cri: &mut Cri, script: &str| cri.shell(&c, script).await.map(|text| text.trim().to_owned());
        ensure!(sh(&mut cri, "cat /proc/self/uid_map").await?.split_whitespace().eq(["0", "700000", "65536"]));
        ensure!(sh(&mut cri, "cat /proc/1/gid_map").await?.split_whitespace().eq(["0", "700000", "65536"]));
        // The image's files, the writable layer, the volume: root's inside, the mapped root's (or the volume's own root's) outside.
        let owners =
            sh(&mut cri, "stat -c '%u:%g %n' / /bin/busybox /etc /dev/shm /volume /volume/given /etc/hosts").await?;
        ensure!(owners.lines().all(|line| line.starts_with("0:0 ")), "{owners}");
        sh(&mut cri, "echo x > /made && echo y > /dev/shm/made && echo z > /volume/made && echo '1.2.3.4 x' >> /etc/hosts && chown 7:7 /made").await?;
        let layer =
            fs::read_dir(node.root_dir().join("snapshots"))?.flatten().find(|e| e.path().join("upper/made").exists());
        let made = fs::metadata(layer.context("no upper layer has the file")?.path().join("upper/made"))?;
        ensure!((made.uid(), made.gid()) == (HOST + 7, HOST + 7), "{}:{}", made.uid(), made.gid());
        ensure!(fs::metadata(volume.path().join("made"))?.uid() == 0, "a shifted volume holds the container's ids");
        ensure!(sh(&mut cri, "cat /etc/resolv.conf /etc/hostname >/dev/null; ls /dev/mqueue; echo ok").await? == "ok");
        // The pod's other namespaces are its own to govern.
        ensure!(sh(&mut cri, "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_forward").await? == "1\n1");
        let range = sh(&mut cri, "cat /proc/sys/net/ipv4/ping_group_range").await?;
        ensure!(range.split_whitespace().eq(["0", "65535"]), "{range}");
        ensure!(sh(&mut cri, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await? == "0");
        ensure!(sh(&mut cri, "hostname").await? == "users");
        // Devices are the node's, and none can be made.
        ensure!(
            sh(&mut cri, "stat -c %t:%T /dev/null /dev/zero; echo x > /dev/null; head -c 4 /dev/urandom | wc -c")
                .await?
                == "1:3\n1:5\n4"
        );
        let mknod = cri.exec(&c, &["sh", "-c", "mknod /node c 1 3"], 10).await?;
        ensure!(mknod.exit_code != 0, "a device was made in a user namespace");
        // On the node it is nobody.
        let info = cri.pid(&c).await?;
        let of_init = fs::metadata(format!("/proc/{info}"))?;
        ensure!((of_init.uid(), of_init.gid()) == (HOST, HOST), "{}:{}", of_init.uid(), of_init.gid());
        for kind in ["user", "net", "ipc", "uts", "mnt", "pid", "cgroup"] {
            let path = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}"));
            ensure!(path(&info.to_string())? != path("self")?, "the init is in the node's {kind} namespace");
        }
        let log = config.log_directory.clone() + "/c.log";
        ensure!(fs::metadata(&log)?.uid() == 0, "the log is the node's root's");
        Ok(())
    });
}

/// Capabilities act inside, users and groups are the namespace's own, streams can be opened by name.
#[test]
fn t15_identity_inside_a_user_namespace() {
    scenario(async |node, mut cri| {
        if !can(&mut cri, "t15_identity_inside_a_user_namespace").await? {
            return Ok(());
        }
        let (id, config) = pod_with_users(&mut cri, node, |_| ()).await?;
        let mut c = inside(
            container(
                "admin",
                "busybox",
                "echo by name > /dev/stdout; ip link set lo mtu 1400 && mount -t tmpfs none /tmp && echo mounted; exec sleep 1000",
            ),
            own(),
        );
        let security = c.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.capabilities = Some(cri::Capability {
            add_capabilities: vec!["NET_ADMIN".into(), "SYS_ADMIN".into()],
            ..Default::default()
        });
        let admin = cri.run(&id, c, &config).await?;
        let log = config.log_directory.clone() + "/admin.log";
        let text = keelson_e2e::node::eventually("the container's two lines", async || {
            fs::read_to_string(&log).ok().filter(|text| text.lines().count() >= 2)
        })
        .await?;
        ensure!(text.contains("by name") && text.contains("mounted"), "{text}");
        drop(admin);
        let mut c = inside(
            container(
                "user",
                "busybox",
                "echo by name > /dev/stdout; id; grep -E 'Cap|Groups' /proc/self/status; exec sleep 1000",
            ),
            own(),
        );
        let security = c.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.run_as_user = Some(cri::Int64Value { value: 1000 });
        security.run_as_group = Some(cri::Int64Value { value: 2000 });
        security.supplemental_groups = vec![3000];
        let user = cri.run(&id, c, &config).await?;
        let said = cri
            .shell(&user, "id -u; id -g; id -G; grep -E 'CapEff|CapInh|CapAmb' /proc/self/status | cut -f2 | sort -u")
            .await?;
        ensure!(said == "1000\n2000\n2000 3000\n0000000000000000\n", "{said}");
        ensure!(cri.shell(&user, "echo again > /proc/self/fd/1").await? == "again\n");
        let status = cri.status(&user).await?;
        let linux = status.user.and_then(|user| user.linux).context("no user told")?;
        ensure!((linux.uid, linux.gid, linux.supplemental_groups) == (1000, 2000, vec![2000, 3000]));
        // An id that has no number inside is refused before anything is made.
        let mut c = inside(container("beyond", "busybox", "true"), own());
        let security = c.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.run_as_user = Some(cri::Int64Value { value: i64::from(LENGTH) });
        let error = cri.create(&id, c, &config).await.err().context("an unmapped user was taken")?;
        ensure!(
            error.code() == tonic::Code::InvalidArgument && error.message().contains("user namespace"),
            "{error:?}"
        );
        Ok(())
    });
}

/// T15, CVE-2025-47291: limits hold for pods with user namespaces, in the cgroup of the pod.
#[test]
fn t15_a_pod_with_a_user_namespace_is_in_its_cgroup() {
    scenario(async |node, mut cri| {
        if !can(&mut cri, "t15_a_pod_with_a_user_namespace_is_in_its_cgroup").await? {
            return Ok(());
        }
        let (id, config) = pod_with_users(&mut cri, node, |config| {
            config.linux.get_or_insert_default().cgroup_parent = "/keelson-e2e-users".into();
        })
        .await?;
        let mut c = inside(container("c", "busybox", "exec sleep 1000"), own());
        c.linux.get_or_insert_default().resources = Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 32 << 20,
            memory_swap_limit_in_bytes: 32 << 20,
            ..Default::default()
        });
        let c = cri.run(&id, c, &config).await?;
        let pid = cri.pid(&c).await?;
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let memory = text
            .lines()
            .find(|line| line.contains(":memory:") || line.starts_with("0::"))
            .context("no memory cgroup")?;
        // systemd's slices are named as kubelet names them: a dash is a step down, so one in a name is an underscore.
        let slice = memory.contains(&format!("/keelson_e2e_users.slice/keelson-{c}.scope"));
        ensure!(slice || memory.contains(&format!("/keelson-e2e-users/{c}")), "{text}");
        // The limit acts: what eats more is killed, and the kill is told.
        let hungry = cri.exec(&c, &["sh", "-c", "dd if=/dev/zero of=/dev/null bs=100000000 count=1"], 20).await?;
        ensure!(hungry.exit_code != 0, "100 MB were eaten under a limit of 32 MiB");
        // And its own limits are not its own to change.
        let raise = cri.exec(&c, &["sh", "-c", "for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do echo 1000000000 > $f && exit 0; done; exit 1"], 10).await?;
        ensure!(raise.exit_code != 0, "the container raised its own limit");
        if slice {
            // systemd keeps a slice that it was not told to stop; kubelet tells it.
            cri.stop_pod(&id).await?;
            cri.remove_pod(&id).await?;
            ensure!(
                std::process::Command::new("systemctl").args(["stop", "keelson_e2e_users.slice"]).status()?.success()
            );
        }
        Ok(())
    });
}

/// Every refusal, by its name, before anything is made.
#[test]
fn user_namespaces_that_cannot_be_are_refused() {
    scenario(async |node, mut cri| {
        use cri::NamespaceMode::{Container, Node as Host, Pod, Target};
        cri.pull("busybox:latest").await?;
        let one = [(0, HOST, LENGTH)];
        for (i, options) in [
            options(Pod, &[]),
            options(Pod, &[(0, 1000, 100_000), (0, 2000, 100_000)]),
            options(Pod, &[(1, 1000, 100_000)]),
            options(Pod, &[(0, 1000, 0)]),
            options(Pod, &[(0, 0, LENGTH)]),
            options(Pod, &[(0, u32::MAX - 5, LENGTH)]),
            options(Host, &one),
            options(Container, &one),
            options(Target, &one),
            cri::NamespaceOption { pid: Host.into(), ..own() },
            cri::NamespaceOption { ipc: Host.into(), ..own() },
        ]
        .into_iter()
        .enumerate()
        {
            let mut config = pod(node, &format!("refused{i}"));
            with(&mut config, options.clone());
            let error = cri.run_pod(&config).await.err().with_context(|| format!("{options:?}"))?;
            ensure!(
                error.code() == tonic::Code::InvalidArgument && error.message().contains("user"),
                "{options:?}: {error:?}"
            );
        }
        // A container that expects another namespace than its sandbox's.
        let plain = pod(node, "plain");
        let id = cri.run_pod(&plain).await?;
        let c = inside(container("mapped", "busybox", "true"), own());
        let error = cri.create(&id, c, &plain).await.err().context("mapped in a pod without")?;
        ensure!(error.code() == tonic::Code::InvalidArgument, "{error:?}");
        let c = inside(container("host", "busybox", "cat /proc/self/uid_map; exec sleep 1000"), options(Host, &[]));
        cri.run(&id, c, &plain).await?;
        if !can(&mut cri, "user_namespaces_that_cannot_be_are_refused (the second half)").await? {
            return Ok(());
        }
        let mut config = pod(node, "users");
        with(&mut config, own());
        let id = cri.run_pod(&config).await?;
        for (i, options) in [
            options(Host, &[]),
            options(Pod, &[(0, HOST + 1, LENGTH)]),
            options(Pod, &[(0, HOST, LENGTH - 1)]),
            cri::NamespaceOption { pid: Host.into(), ..own() },
        ]
        .into_iter()
        .enumerate()
        {
            let c = inside(container(&format!("c{i}"), "busybox", "true"), options.clone());
            let error = cri.create(&id, c, &config).await.err().with_context(|| format!("{options:?}"))?;
            ensure!(error.code() == tonic::Code::InvalidArgument, "{options:?}: {error:?}");
        }
        Ok(())
    });
}

/// A shared PID namespace belongs to the pod's user namespace, and all of it outlives the daemon.
#[test]
fn a_pod_with_a_user_namespace_outlives_the_daemon() {
    scenario(async |node, mut cri| {
        if !can(&mut cri, "a_pod_with_a_user_namespace_outlives_the_daemon").await? {
            return Ok(());
        }
        let shared = || cri::NamespaceOption { pid: cri::NamespaceMode::Pod.into(), ..own() };
        let (id, config) = pod_with_users(&mut cri, node, |config| with(config, shared())).await?;
        let c = cri.run(&id, inside(container("c", "busybox", "exec sleep 1000"), shared()), &config).await?;
        ensure!(cri.shell(&c, "ps -o comm | sort | tr '\\n' ' '").await?.contains("keelson-init"));
        node.kill()?;
        node.boot()?;
        let mut cri = node.cri()?;
        let map = cri.shell(&c, "cat /proc/self/uid_map").await?;
        ensure!(map.split_whitespace().eq(["0", "700000", "65536"]), "{map}");
        ensure!(Path::new(&format!("{}/sandboxes/{id}/user", node.state_dir().display())).exists());
        let later = cri.run(&id, inside(container("later", "busybox", "exec sleep 1000"), shared()), &config).await?;
        ensure!(cri.shell(&later, "stat -c %u /bin/busybox").await?.trim() == "0");
        let told = cri.pod_status(&id).await?.linux.and_then(|linux| linux.namespaces).and_then(|n| n.options);
        ensure!(told == Some(shared()), "{told:?}");
        Ok(())
    });
}

/// The network is the node's, and nothing of it is the pod's to change: not even its root with every capability.
#[test]
fn t15_a_pod_with_a_user_namespace_on_the_nodes_network() {
    const NAME: &str = "t15_a_pod_with_a_user_namespace_on_the_nodes_network";
    scenario(async |node, mut cri| {
        let told = Newest::of(node)?.runtime.status(v1::StatusRequest { verbose: false }).await?.into_inner();
        let offered = told.features.context("no features told")?.user_namespaces_host_network;
        if !can(&mut cri, NAME).await? {
            ensure!(!offered, "user namespaces on the node's network, and none otherwise?");
            return Ok(());
        }
        ensure!(offered, "the node has user namespaces and a sysfs");
        let on_host = || cri::NamespaceOption { network: cri::NamespaceMode::Node.into(), ..own() };
        let set = |config: &mut cri::PodSandboxConfig, sysctl: &str| {
            with(config, on_host());
            config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
            config.linux.get_or_insert_default().sysctls = [(sysctl.to_owned(), "1".to_owned())].into();
        };
        let mut refused = pod(node, "refused");
        set(&mut refused, "net.ipv4.ip_forward");
        let error = cri.run_pod(&refused).await.err().context("a kernel parameter of the node's network")?;
        ensure!(error.code() == tonic::Code::InvalidArgument && error.message().contains("ip_forward"), "{error:?}");
        let (id, config) = pod_with_users(&mut cri, node, |config| set(config, "kernel.shm_rmid_forced")).await?;
        let told = cri.pod_status(&id).await?.linux.and_then(|linux| linux.namespaces).and_then(|n| n.options);
        ensure!(told == Some(on_host()), "{told:?}");
        let mut all = inside(container("all", "busybox", "exec sleep 1000"), on_host());
        let security = all.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.capabilities = Some(cri::Capability { add_capabilities: vec!["ALL".into()], ..Default::default() });
        let mut privileged = inside(container("privileged", "busybox", "exec sleep 1000"), on_host());
        privileged.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
        let plain = inside(container("plain", "busybox", "exec sleep 1000"), on_host());
        // What the node's root may write at any time, with the value that it has.
        const KNOB: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
        let knob = if Path::new(KNOB).exists() { KNOB } else { "/sys/kernel/uevent_seqnum" };
        for c in [plain, all, privileged] {
            let c = cri.run(&id, c, &config).await?;
            let sh = async |cri: &mut Cri, script: &str| cri.shell(&c, script).await.map(|text| text.trim().to_owned());
            let init = cri.pid(&c).await?;
            for (kind, own) in
                [("user", true), ("ipc", true), ("pid", true), ("mnt", true), ("net", false), ("uts", false)]
            {
                let path = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}"));
                ensure!((path(&init.to_string())? != path("self")?) == own, "the {kind} namespace");
            }
            let interfaces = sh(&mut cri, "ls /sys/class/net").await?;
            ensure!(interfaces.split_whitespace().any(|name| name == "lo"), "{interfaces}");
            ensure!(sh(&mut cri, "cat /proc/sys/kernel/shm_rmid_forced").await? == "1", "its IPC is its own");
            // Nothing that the node has mounted below /sys, and what there is cannot be written.
            let mounts = sh(&mut cri, "awk '$5 ~ \"^/sys\" { print $5 }' /proc/self/mountinfo").await?;
            let foreign: Vec<&str> = mounts
                .lines()
                .filter(|path| {
                    *path != "/sys" && !path.starts_with("/sys/fs/cgroup") && !path.starts_with("/sys/firmware")
                })
                .filter(|path| !path.starts_with("/sys/devices/virtual/powercap"))
                .collect();
            ensure!(foreign.is_empty(), "{mounts}");
            for script in [
                "touch /sys/class/net/lo/mtu; echo 1500 > /sys/class/net/lo/mtu".to_owned(),
                format!(
                    "mount -o remount,bind,rw /sys; v=$(cat {knob} | sed 's/.*\\[\\(.*\\)\\].*/\\1/'); echo $v > {knob}"
                ),
                "ip link add keelson-e2e type dummy".to_owned(),
                "ip link set lo mtu 1234".to_owned(),
                "echo 1 > /proc/sys/net/ipv4/ip_forward".to_owned(),
                "hostname keelson-e2e".to_owned(),
                "mount -t sysfs sysfs /mnt".to_owned(),
            ] {
                let done = cri.exec(&c, &["sh", "-c", &script], 10).await?;
                ensure!(done.exit_code != 0, "{script}: {}", String::from_utf8_lossy(&done.stdout));
            }
        }
        node.kill()?;
        node.boot()?;
        let mut cri = node.cri()?;
        let later = cri.run(&id, inside(container("later", "busybox", "exec sleep 1000"), on_host()), &config).await?;
        ensure!(cri.shell(&later, "stat -f -c %t /sys").await?.trim() == "62656572", "after a kill of the daemon");
        Ok(())
    });
}
