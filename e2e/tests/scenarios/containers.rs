//! Containers: life, exits and reasons, exec, resources, stats, users, mounts.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, eventually, pod};

use crate::scenario;

/// A pod with busybox at hand.
async fn sandbox(cri: &mut Cri, node: &Node) -> Result<(String, cri::PodSandboxConfig)> {
    cri.pull("busybox:latest").await?;
    let config = pod(node, "pod");
    Ok((cri.run_pod(&config).await?, config))
}

#[test]
fn a_container_is_created_started_listed_stopped_and_removed() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let mut wanted =
            container("c", "busybox:latest", "trap 'exit 7' TERM; echo up; while :; do usleep 10000; done");
        wanted.labels = [("l".to_owned(), "v".to_owned())].into();
        wanted.annotations = [("a".to_owned(), "w".to_owned())].into();
        let c = cri.create(&id, wanted.clone(), &config).await?;
        ensure!(cri.create(&id, wanted.clone(), &config).await? == c, "a repeated CreateContainer returns the first");
        let status = cri.status(&c).await?;
        ensure!(status.state() == cri::ContainerState::ContainerCreated && status.started_at == 0, "{status:?}");
        cri.start(&c).await?;
        let status = cri.status(&c).await?;
        ensure!(
            status.state() == cri::ContainerState::ContainerRunning && status.started_at > status.created_at,
            "{status:?}"
        );
        ensure!(
            status.labels == wanted.labels
                && status.annotations == wanted.annotations
                && status.metadata == wanted.metadata
        );
        ensure!(status.log_path == node.logs_dir().join("pod/c.log").to_string_lossy(), "{}", status.log_path);
        cri.start(&c).await.context("a repeated StartContainer finds it done")?;
        eventually("the shell has set its trap", async || {
            std::fs::read_to_string(&status.log_path).ok().filter(|l| l.contains("up"))
        })
        .await?;
        cri.stop(&c, 10).await?;
        let status = cri.status(&c).await?;
        ensure!(status.state() == cri::ContainerState::ContainerExited, "{status:?}");
        ensure!(
            status.exit_code == 7 && status.reason == "Error" && status.finished_at > status.started_at,
            "{status:?}"
        );
        cri.stop(&c, 10).await?;
        cri.remove(&c).await?;
        cri.remove(&c).await?;
        ensure!(cri.status(&c).await.is_err());
        Ok(())
    });
}

#[test]
fn exits_have_their_code_and_reason() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        for (name, script, code, reason) in [
            ("ok", "exit 0", 0, "Completed"),
            ("bad", "exit 3", 3, "Error"),
            ("killed", "kill -9 $$", 137, "Error"),
            ("term", "kill -15 $$; sleep 9", 143, "Error"),
        ] {
            // Init ignores signals it has no handler for: one more process takes them.
            let script = if code > 128 { format!("sh -c '{script}'; exit $?") } else { script.to_owned() };
            let c = cri.run(&id, container(name, "busybox:latest", &script), &config).await?;
            let status = cri.wait_exit(&c).await?;
            ensure!((status.exit_code, &*status.reason) == (code, reason), "{name}: {status:?}");
        }
        let mut oom = container(
            "oom",
            "busybox:latest",
            "dd if=/dev/zero of=/dev/null bs=64M count=1; dd if=/dev/zero of=/dev/null bs=512M; sleep 5",
        );
        oom.command = vec!["dd".into(), "if=/dev/zero".into(), "of=/dev/null".into(), "bs=512M".into()];
        oom.linux.get_or_insert_default().resources = Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 15 << 20,
            memory_swap_limit_in_bytes: 15 << 20,
            ..Default::default()
        });
        let c = cri.run(&id, oom, &config).await?;
        let status = cri.wait_exit(&c).await?;
        ensure!((status.exit_code, &*status.reason) == (137, "OOMKilled"), "{status:?}");

        let mut missing = container("missing", "busybox:latest", "");
        missing.command = vec!["/no/such/program".into()];
        let c = cri.create(&id, missing, &config).await?;
        let error = cri.start(&c).await.err().context("start must fail")?;
        ensure!(error.message().contains("/no/such/program"), "{error:?}");
        let status = cri.status(&c).await?;
        ensure!(
            (status.exit_code, &*status.reason) == (128, "StartError") && status.message.contains("/no/such/program"),
            "{status:?}"
        );
        Ok(())
    });
}

#[test]
fn a_stop_kills_what_ignores_it_and_a_shorter_one_shortens_the_wait() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let deaf = "trap '' TERM; (trap '' TERM; sleep 1000) & echo up; while :; do sleep 1000; done";
        let c = cri.run(&id, container("deaf", "busybox:latest", deaf), &config).await?;
        let mut long = cri.clone();
        let (target, begun) = (c.clone(), Instant::now());
        let waiting = tokio::spawn(async move { long.stop(&target, 600).await });
        eventually("the first stop is under way", async || (begun.elapsed().as_millis() > 50).then_some(())).await?;
        cri.stop(&c, 1).await?;
        waiting.await??;
        ensure!(begun.elapsed().as_secs() < 300, "the shorter stop shortens the longer");
        ensure!(cri.status(&c).await?.exit_code == 137);
        Ok(())
    });
}

#[test]
fn exec_gives_output_code_and_respects_its_timeout() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let c = cri.run(&id, container("c", "busybox:latest", "sleep 1000"), &config).await?;
        let result = cri.exec(&c, &["sh", "-c", "echo out; echo err >&2; exit 5"], 0).await?;
        ensure!(
            (&*result.stdout, &*result.stderr, result.exit_code) == (&b"out\n"[..], &b"err\n"[..], 5),
            "{result:?}"
        );
        let begun = Instant::now();
        let error =
            cri.exec(&c, &["sh", "-c", "(sleep 4711 &); sleep 4711"], 1).await.err().context("must time out")?;
        ensure!(error.code() == tonic::Code::DeadlineExceeded, "{error:?}");
        ensure!(begun.elapsed().as_secs() < 300, "not when the program ends");
        let left = cri.shell(&c, "ps | grep -c 'sleep [4]711' || true").await?;
        ensure!(left.trim() == "0", "the timeout kills grandchildren too: {left}");
        let begun = Instant::now();
        let result = cri.exec(&c, &["sh", "-c", "sleep 4712 & echo started"], 0).await?;
        ensure!(
            result.stdout == b"started\n" && begun.elapsed().as_secs() < 300,
            "a background child does not hang the call"
        );
        let error = cri.exec(&c, &["/no/such"], 5).await;
        ensure!(error.as_ref().map_or(true, |r| r.exit_code != 0), "{error:?}");
        let error = cri.exec(&c, &[], 5).await.err().context("an empty command is refused")?;
        ensure!(error.code() == tonic::Code::InvalidArgument, "{error:?}");
        let big = cri.exec(&c, &["sh", "-c", "head -c 17000000 /dev/zero"], 20).await?;
        ensure!(big.stdout.len() <= 16 << 20 && big.stdout.len() > 15 << 20, "output is capped: {}", big.stdout.len());
        Ok(())
    });
}

#[test]
fn many_execs_at_once_leave_nothing() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let c = cri.run(&id, container("c", "busybox:latest", "sleep 1000"), &config).await?;
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..200 {
            let (mut cri, c) = (cri.clone(), c.clone());
            tasks.spawn(async move { cri.exec(&c, &["echo", &i.to_string()], 30).await.map(|r| (i, r)) });
        }
        while let Some(result) = tasks.join_next().await {
            let (i, result) = result??;
            ensure!(result.stdout == format!("{i}\n").into_bytes());
        }
        let processes = cri.shell(&c, "ls -d /proc/[0-9]* | wc -l").await?;
        ensure!(processes.trim().parse::<u32>()? <= 5, "{processes}");
        Ok(())
    });
}

#[test]
fn the_image_config_is_honoured() {
    scenario(async |node, mut cri| {
        cri.pull("docker.io/library/user:latest").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let c = cri.run(&id, container("c", "docker.io/library/user:latest", ""), &config).await?;
        let log = node.logs_dir().join("pod/c.log");
        let text = eventually("the command's output", async || {
            std::fs::read_to_string(&log).ok().filter(|t| t.contains("from-cmd"))
        })
        .await?;
        ensure!(text.contains("uid=1234") && text.contains("gid=1234") && text.contains("5000"), "{text}");
        ensure!(cri.shell(&c, "pwd; echo $GREETING; echo $HOME").await? == "/srv/work\nfrom-image\n/srv/work\n");
        ensure!(
            cri.shell(&c, "cat /data/seed").await? == "from the image\n",
            "a volume begins with the image's content"
        );
        let status = cri.status(&c).await?;
        ensure!(status.image.as_ref().is_some_and(|i| i.image == "docker.io/library/user:latest"), "{status:?}");
        // SIGUSR1 ends sleep through its shell: the image's stop signal was used.
        cri.stop(&c, 30).await?;
        Ok(())
    });
}

#[test]
fn users_groups_and_capabilities_are_as_asked() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let with = |name: &str, context: cri::LinuxContainerSecurityContext| {
            let mut c = container(name, "busybox:latest", "sleep 1000");
            c.linux.get_or_insert_default().security_context = Some(context);
            c
        };
        let value = |value| Some(cri::Int64Value { value });
        let c = cri
            .run(
                &id,
                with(
                    "user",
                    cri::LinuxContainerSecurityContext {
                        run_as_user: value(1001),
                        run_as_group: value(1002),
                        supplemental_groups: vec![1003, 1004],
                        no_new_privs: true,
                        ..Default::default()
                    },
                ),
                &config,
            )
            .await?;
        ensure!(cri.shell(&c, "id -u; id -g; id -G").await? == "1001\n1002\n1002 1003 1004\n");
        ensure!(
            cri.shell(&c, "grep -E 'CapEff|CapInh|CapAmb|NoNewPrivs' /proc/self/status | tr -d '\\t'").await?
                == "CapInh:0000000000000000\nCapEff:0000000000000000\nCapAmb:0000000000000000\nNoNewPrivs:1\n"
        );
        let c = cri
            .run(
                &id,
                with(
                    "caps",
                    cri::LinuxContainerSecurityContext {
                        capabilities: Some(cri::Capability {
                            add_capabilities: vec!["NET_ADMIN".into()],
                            drop_capabilities: vec!["ALL".into()],
                            ..Default::default()
                        }),
                        ..Default::default()
                    },
                ),
                &config,
            )
            .await?;
        ensure!(cri.shell(&c, "grep CapEff /proc/self/status | tr -d '\\t'").await? == "CapEff:0000000000001000\n");
        let c = cri.run(&id, with("default", cri::LinuxContainerSecurityContext::default()), &config).await?;
        ensure!(
            cri.shell(&c, "grep -E 'CapEff|CapInh' /proc/self/status | tr -d '\\t'").await?
                == "CapInh:0000000000000000\nCapEff:00000000a80425fb\n"
        );
        let privileged = || cri::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        let error = cri
            .create(&id, with("privileged", privileged()), &config)
            .await
            .err()
            .context("the pod is not privileged")?;
        ensure!(error.code() == tonic::Code::InvalidArgument, "{error:?}");
        let mut trusted = pod(node, "trusted");
        trusted.linux.get_or_insert_default().security_context =
            Some(cri::LinuxSandboxSecurityContext { privileged: true, ..Default::default() });
        let trusted_id = cri.run_pod(&trusted).await?;
        let c = cri.run(&trusted_id, with("privileged", privileged()), &trusted).await?;
        cri.shell(&c, "ip link add br9 type bridge && ip link del br9 && test -w /sys && test -e /dev/vda").await?;
        let c = cri
            .run(
                &id,
                with("ro", cri::LinuxContainerSecurityContext { readonly_rootfs: true, ..Default::default() }),
                &config,
            )
            .await?;
        let result = cri.exec(&c, &["touch", "/x"], 5).await?;
        ensure!(
            result.exit_code != 0 && String::from_utf8_lossy(&result.stderr).contains("Read-only file system"),
            "{result:?}"
        );
        let error = cri
            .create(
                &id,
                with("group", cri::LinuxContainerSecurityContext { run_as_group: value(5), ..Default::default() }),
                &config,
            )
            .await
            .err()
            .context("a group without a user is refused")?;
        ensure!(error.code() == tonic::Code::InvalidArgument, "{error:?}");
        Ok(())
    });
}

#[test]
fn mounts_are_made_and_their_propagation_kept() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let host = tempfile::tempdir_in("/var/tmp")?;
        std::fs::write(host.path().join("file"), "from the host\n")?;
        std::os::unix::fs::symlink(host.path(), host.path().with_extension("link"))?;
        let mount = |path: &str, host_path: String, readonly| cri::Mount {
            container_path: path.into(),
            host_path,
            readonly,
            ..Default::default()
        };
        let mut c = container("c", "busybox:latest", "sleep 1000");
        c.mounts = vec![
            mount("/mnt/rw", host.path().to_string_lossy().into(), false),
            mount("/mnt/ro", host.path().with_extension("link").to_string_lossy().into(), true),
            mount("/etc/one-file", host.path().join("file").to_string_lossy().into(), true),
        ];
        let c = cri.run(&id, c, &config).await?;
        ensure!(
            cri.shell(&c, "cat /mnt/ro/file /etc/one-file; echo back > /mnt/rw/out").await?
                == "from the host\nfrom the host\n"
        );
        ensure!(std::fs::read_to_string(host.path().join("out"))? == "back\n");
        let result = cri.exec(&c, &["touch", "/mnt/ro/x"], 5).await?;
        ensure!(result.exit_code != 0, "a readonly mount is read-only");
        let status = cri.status(&c).await?;
        ensure!(
            status.mounts.iter().any(|m| m.container_path == "/mnt/rw" && m.host_path == host.path().to_string_lossy()),
            "{status:?}"
        );
        std::fs::remove_file(host.path().with_extension("link"))?;
        Ok(())
    });
}

#[test]
fn resources_are_applied_updated_and_counted() {
    scenario(async |node, mut cri| {
        let (id, config) = sandbox(&mut cri, node).await?;
        let mut c = container("c", "busybox:latest", "sleep 1000");
        let first = cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        };
        c.linux.get_or_insert_default().resources = Some(first);
        let c = cri.run(&id, c, &config).await?;
        let reported = |s: cri::ContainerStatus| s.resources.and_then(|r| r.linux).unwrap_or_default();
        let now = reported(cri.status(&c).await?);
        ensure!((now.cpu_quota, now.cpu_shares, now.memory_limit_in_bytes) == (50_000, 512, 64 << 20), "{now:?}");
        let linux = cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 20_000,
            cpu_shares: 256,
            memory_limit_in_bytes: 128 << 20,
            ..Default::default()
        };
        cri.runtime
            .update_container_resources(cri::UpdateContainerResourcesRequest {
                container_id: c.clone(),
                linux: Some(linux),
                ..Default::default()
            })
            .await?;
        let now = reported(cri.status(&c).await?);
        ensure!((now.cpu_quota, now.cpu_shares, now.memory_limit_in_bytes) == (20_000, 256, 128 << 20), "{now:?}");
        let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
        ensure!(cri.shell(&c, limit).await?.trim() == (128 << 20).to_string(), "the container sees its own cgroup");
        cri.shell(
            &c,
            "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/written bs=1M count=3 2>/dev/null",
        )
        .await?;
        let stats = eventually("the writable layer is counted", async || {
            let stats = cri
                .runtime
                .container_stats(cri::ContainerStatsRequest { container_id: c.clone() })
                .await
                .ok()?
                .into_inner()
                .stats?;
            let used = stats.writable_layer.as_ref()?.used_bytes.as_ref()?.value;
            (used >= 3 << 20).then_some(stats)
        })
        .await?;
        let cpu = stats.cpu.context("cpu")?;
        ensure!(cpu.usage_core_nano_seconds.context("cpu")?.value > 1_000_000 && cpu.timestamp > 0);
        let memory = stats.memory.context("memory")?;
        ensure!(
            memory.working_set_bytes.context("working set")?.value > 0
                && memory.usage_bytes.context("usage")?.value > 0
        );
        let all = cri.runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await?.into_inner().stats;
        ensure!(all.len() == 1 && all[0].attributes.as_ref().is_some_and(|a| a.id == c), "{all:?}");
        Ok(())
    });
}
