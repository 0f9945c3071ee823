//! Suites T1, T2, T4, T10 of the security record, from the outside: hostile images and requests against a real node.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, pod};

use crate::scenario;

async fn sandbox(cri: &mut Cri, node: &Node) -> Result<(String, cri::PodSandboxConfig)> {
    cri.pull("busybox:latest").await?;
    let config = pod(node, "pod");
    Ok((cri.run_pod(&config).await?, config))
}

/// T1: CVE-2024-21626, CVE-2019-5736.
#[test]
fn no_descriptor_and_no_host_program_leaks_into_a_container() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let shim = keelson_e2e::node::binary("keelson-shim");
        let before = fs::read(&shim)?;
        let c = cri.run(&id, container("c", "busybox", "ls /proc/self/fd > /fds; exec sleep 1000"), &config).await?;
        // ls has its own directory open: 0, 1, 2 and that.
        ensure!(cri.shell(&c, "cat /fds; cat /fds | wc -l").await? == "0\n1\n2\n3\n4\n", "init has only 0-2");
        ensure!(cri.shell(&c, "ls /proc/self/fd | wc -l").await?.trim() == "4", "an exec has only 0-2");
        for fd in 3..20 {
            let mut hostile = container(&format!("cwd{fd}"), "busybox", "pwd; ls -l /proc/self/cwd/; sleep 1");
            hostile.working_dir = format!("/proc/self/fd/{fd}");
            let created = cri.create(&id, hostile, &config).await;
            if let Ok(c) = created
                && cri.start(&c).await.is_ok()
            {
                let result = cri
                    .exec(&c, &["cat", "../../../../../../etc/hostname", "/proc/1/cwd/../../../../etc/shadow"], 5)
                    .await;
                let text = result.map(|r| String::from_utf8_lossy(&r.stdout).into_owned()).unwrap_or_default();
                ensure!(!text.contains("root:"), "the host's files are reachable by fd {fd}");
            }
        }
        // Overwrite of the runtime through /proc/self/exe of whatever enters the container.
        let attack =
            "for i in $(seq 1 200); do for p in /proc/[0-9]*; do (echo x > $p/exe) 2>/dev/null; done; done; true";
        let (mut other, target) = (cri.clone(), c.clone());
        let attacker = tokio::spawn(async move { other.exec(&target, &["sh", "-c", attack], 20).await.map(drop) });
        for _ in 0..50 {
            cri.exec(&c, &["/bin/true"], 5).await?;
        }
        let _ = attacker.await?;
        ensure!(fs::read(&shim)? == before, "the shim binary was changed");
        Ok(())
    });
}

/// T4: CVE-2022-0811, CVE-2024-40635, CVE-2022-4318, CVE-2026-57231.
#[test]
fn strings_are_never_more_than_strings() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let core_pattern = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
        for (i, (key, value)) in [
            ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil"),
            ("kernel.core_pattern", "|/evil"),
            ("kernel/core_pattern", "|/evil"),
            ("net.ipv4/../../kernel.core_pattern", "|/evil"),
            ("net.ipv4.tcp_syncookies", "1\nx"),
            ("vm.swappiness", "1"),
            ("", "1"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut config = pod(node, &format!("sysctl{i}"));
            config.linux.get_or_insert_default().sysctls = [(key.to_owned(), value.to_owned())].into();
            let result = cri.run_pod(&config).await;
            ensure!(
                result.as_ref().is_err_and(|e| e.code() == tonic::Code::InvalidArgument),
                "`{key}={value}`: {result:?}"
            );
        }
        ensure!(fs::read_to_string("/proc/sys/kernel/core_pattern")? == core_pattern);
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        for (i, uid) in [2_147_483_648, 4_294_967_296, -1, 99_999_999_999].into_iter().enumerate() {
            let mut c = container(&format!("uid{i}"), "busybox", "id");
            c.linux.get_or_insert_default().security_context = Some(cri::LinuxContainerSecurityContext {
                run_as_user: Some(cri::Int64Value { value: uid }),
                ..Default::default()
            });
            let error =
                cri.create(&id, c, &config).await.err().with_context(|| format!("uid {uid} must be refused"))?;
            ensure!(error.code() == tonic::Code::InvalidArgument, "{error:?}");
        }
        for (i, user) in ["4294967296", "0x0", "00", "0 ", "-1", "nosuch", "root\nx"].into_iter().enumerate() {
            let mut c = container(&format!("name{i}"), "busybox", "id");
            c.linux.get_or_insert_default().security_context =
                Some(cri::LinuxContainerSecurityContext { run_as_username: user.into(), ..Default::default() });
            let result = cri.create(&id, c, &config).await;
            ensure!(result.is_err(), "user `{user}` must be refused: {result:?}");
        }
        let mut config = pod(node, "hostile-name");
        config.hostname = "a\nb".into();
        ensure!(cri.run_pod(&config).await.is_err(), "a hostname with a newline is refused");
        let mut config = pod(node, "hostile-dns");
        config.dns_config =
            Some(cri::DnsConfig { servers: vec!["1.1.1.1\nnameserver 6.6.6.6".into()], ..Default::default() });
        ensure!(cri.run_pod(&config).await.is_err(), "a nameserver with a newline is refused");
        // No exec of its own: while a process execs, its environ reads as empty.
        let mut c = container("env", "busybox", "env; sleep 1000; true");
        c.envs = vec![cri::KeyValue { key: "A".into(), value: "1\nB=2".into() }];
        let sandbox = pod(node, "pod");
        let c = cri.run(&id, c, &sandbox).await?;
        let env = cri.shell(&c, "tr '\\0' '|' < /proc/1/environ").await?;
        ensure!(env.contains("A=1\nB=2|"), "the value is one value: {env}");
        Ok(())
    });
}

/// T2: mounts over paths that the image or a volume made into links stay inside the root filesystem.
#[test]
fn links_in_images_and_volumes_lead_nowhere() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let outside = tempfile::tempdir_in("/var/tmp")?;
        let volume = tempfile::tempdir_in("/var/tmp")?;
        std::os::unix::fs::symlink(outside.path(), volume.path().join("link"))?;
        std::os::unix::fs::symlink("/../../../../../..", volume.path().join("up"))?;
        let mount = |path: &str, host: &std::path::Path| cri::Mount {
            container_path: path.into(),
            host_path: host.to_string_lossy().into(),
            ..Default::default()
        };
        let inner = tempfile::tempdir_in("/var/tmp")?;
        fs::write(inner.path().join("marker"), "inner")?;
        let mut c = container("c", "busybox", "sleep 1000");
        let absolute = format!("/vol/up{}", outside.path().display());
        c.mounts =
            vec![mount("/vol", volume.path()), mount("/vol/link/made", inner.path()), mount(&absolute, inner.path())];
        match cri.create(&id, c, &config).await {
            Ok(c) => drop(cri.start(&c).await),
            Err(error) => ensure!(!error.message().is_empty()),
        }
        ensure!(fs::read_dir(outside.path())?.count() == 0, "something was made outside of the root filesystem");
        Ok(())
    });
}

/// T10: what other users of the machine may see.
#[test]
fn folders_and_sockets_are_closed_to_others() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let c = cri.run(&id, container("c", "busybox", "sleep 1000"), &config).await?;
        let mode = |path: &std::path::Path| fs::symlink_metadata(path).map(|m| m.permissions().mode() & 0o777);
        ensure!(mode(&node.socket())? & 0o007 == 0, "socket {:o}", mode(&node.socket())?);
        let state = node.state_dir().join("containers").join(&c);
        for path in [state.clone(), state.join("shim.sock"), state.join("record.json"), state.join("config.json")] {
            let closed = mode(&path)? & 0o077 == 0 || mode(&state)? & 0o077 == 0;
            ensure!(closed, "{} is {:o}", path.display(), mode(&path)?);
        }
        for dir in ["content", "layers", "snapshots", "network"] {
            ensure!(mode(&node.root_dir().join(dir))? & 0o066 == 0, "{dir} is {:o}", mode(&node.root_dir().join(dir))?);
        }
        let abstract_sockets = fs::read_to_string("/proc/net/unix")?;
        ensure!(!abstract_sockets.lines().any(|l| l.contains("@") && l.contains("keelson")), "an abstract socket");
        Ok(())
    });
}
