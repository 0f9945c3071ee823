//! Limits of a running container: changed, kept, lifted, refused; a pod's limits taken note of; signals that stop.

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_cri::v1;
use keelson_e2e::{
    newest::{Newest, same},
    node::{Cri, Node, container, eventually, pod},
};
use tonic::Code;

use crate::scenario;

const MIB: i64 = 1 << 20;

async fn sandbox(cri: &mut Cri, node: &Node) -> Result<(String, cri::PodSandboxConfig)> {
    cri.pull("busybox:latest").await?;
    let config = pod(node, "pod");
    Ok((cri.run_pod(&config).await?, config))
}

fn limits(set: impl FnOnce(&mut cri::LinuxContainerResources)) -> cri::LinuxContainerResources {
    let mut limits = cri::LinuxContainerResources::default();
    set(&mut limits);
    limits
}

async fn update(cri: &mut Cri, id: &str, linux: cri::LinuxContainerResources) -> Result<(), tonic::Status> {
    let request =
        cri::UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(linux), ..Default::default() };
    cri.runtime.update_container_resources(request).await.map(drop)
}

async fn reported(cri: &mut Cri, id: &str) -> Result<cri::LinuxContainerResources> {
    Ok(cri.status(id).await?.resources.and_then(|resources| resources.linux).unwrap_or_default())
}

/// What the container sees in its own cgroup, by version: one of two files.
async fn cgroup(cri: &mut Cri, id: &str, v1: &str, v2: &str) -> Result<String> {
    let root = "/sys/fs/cgroup";
    Ok(cri.shell(id, &format!("cat {root}/{v1} 2>/dev/null || cat {root}/{v2}")).await?.trim().to_owned())
}

#[test]
fn an_update_changes_what_it_names_and_minus_one_lifts() {
    scenario(async |node, mut cri| {
        let (pod, config) = sandbox(&mut cri, node).await?;
        let mut wanted = container("c", "busybox:latest", "sleep 1000");
        wanted.linux.get_or_insert_default().resources = Some(limits(|l| {
            (l.cpu_period, l.cpu_quota, l.cpu_shares) = (100_000, 50_000, 512);
            (l.memory_limit_in_bytes, l.memory_swap_limit_in_bytes) = (64 * MIB, 64 * MIB);
        }));
        let c = cri.create(&pod, wanted, &config).await?;
        // Before the start as after it; zero leaves as it is.
        update(&mut cri, &c, limits(|l| l.cpu_shares = 256)).await.context("update a created container")?;
        cri.start(&c).await?;
        let now = reported(&mut cri, &c).await?;
        ensure!((now.cpu_shares, now.cpu_quota, now.memory_limit_in_bytes) == (256, 50_000, 64 * MIB), "{now:?}");

        // Memory alone: what may be swapped above it, nothing, stays nothing.
        for _ in 0..2 {
            update(&mut cri, &c, limits(|l| l.memory_limit_in_bytes = 128 * MIB)).await?;
            let now = reported(&mut cri, &c).await?;
            let both = (now.memory_limit_in_bytes, now.memory_swap_limit_in_bytes);
            ensure!(both == (128 * MIB, 128 * MIB) && now.cpu_quota == 50_000, "{now:?}");
            let seen = cgroup(&mut cri, &c, "memory/memory.limit_in_bytes", "memory.max").await?;
            ensure!(seen == (128 * MIB).to_string(), "{seen}");
        }
        update(&mut cri, &c, limits(|l| l.memory_swap_limit_in_bytes = 160 * MIB)).await?;
        let seen = cgroup(&mut cri, &c, "memory/memory.memsw.limit_in_bytes", "memory.swap.max").await?;
        ensure!([(160 * MIB).to_string(), (32 * MIB).to_string()].contains(&seen), "{seen}");

        update(&mut cri, &c, limits(|l| (l.cpu_quota, l.memory_limit_in_bytes) = (-1, -1))).await?;
        let now = reported(&mut cri, &c).await?;
        ensure!((now.cpu_quota, now.memory_limit_in_bytes, now.memory_swap_limit_in_bytes) == (-1, -1, -1), "{now:?}");
        let seen = cgroup(&mut cri, &c, "cpu/cpu.cfs_quota_us", "cpu.max").await?;
        ensure!(seen == "-1" || seen.starts_with("max"), "{seen}");
        Ok(())
    });
}

#[test]
fn what_is_refused_has_a_reason_and_changes_nothing() {
    scenario(async |node, mut cri| {
        let (pod, config) = sandbox(&mut cri, node).await?;
        // Holds 24 MiB that cannot be given up: a file on tmpfs counts as its memory.
        let script = "dd if=/dev/zero of=/dev/shm/held bs=1M count=24 2>/dev/null; echo held; sleep 1000";
        let mut wanted = container("c", "busybox:latest", script);
        wanted.linux.get_or_insert_default().resources =
            Some(limits(|l| (l.memory_limit_in_bytes, l.cpu_shares) = (64 * MIB, 512)));
        let c = cri.run(&pod, wanted, &config).await?;
        let log = cri.status(&c).await?.log_path;
        eventually("memory is held", async || std::fs::read_to_string(&log).ok().filter(|log| log.contains("held")))
            .await?;
        let before = reported(&mut cri, &c).await?;
        let bad = |set: fn(&mut cri::LinuxContainerResources)| limits(set);
        for (what, change, code, words) in [
            (
                "memory below what is in use",
                bad(|l| (l.memory_limit_in_bytes, l.cpu_shares) = (8 << 20, 1024)),
                Code::FailedPrecondition,
                "bytes are in use",
            ),
            ("a quota below the least", bad(|l| l.cpu_quota = 10), Code::InvalidArgument, "1000 microseconds"),
            ("a negative weight", bad(|l| l.cpu_shares = -1), Code::InvalidArgument, "cpu_shares"),
            ("a CPU nobody has", bad(|l| l.cpuset_cpus = "4000".into()), Code::InvalidArgument, "4000"),
            (
                "less of both than of one",
                bad(|l| l.memory_swap_limit_in_bytes = 1 << 20),
                Code::InvalidArgument,
                "memory_swap_limit",
            ),
            (
                "a file that is no limit",
                bad(|l| l.unified = [("cgroup.procs".to_owned(), "1".to_owned())].into()),
                Code::InvalidArgument,
                "unified",
            ),
            (
                "a file that no kernel has",
                bad(|l| l.unified = [("memory.nonsense".to_owned(), "1".to_owned())].into()),
                Code::FailedPrecondition,
                "cgroup v2",
            ),
        ] {
            let error = update(&mut cri, &c, change).await.err().context(what)?;
            // On v2 the last names the missing file instead.
            let said = error.message().contains(words) || error.message().contains("memory.nonsense");
            ensure!(error.code() == code && said, "{what}: {error:?}");
            ensure!(reported(&mut cri, &c).await? == before, "{what}");
        }
        let seen = cgroup(&mut cri, &c, "cpu/cpu.shares", "cpu.weight").await?;
        ensure!(["512", "59"].contains(&&*seen), "a refused change is not half made: {seen}");
        cri.stop(&c, 0).await?;
        let error = update(&mut cri, &c, limits(|l| l.cpu_shares = 99)).await.err().context("it has ended")?;
        ensure!(error.code() == Code::FailedPrecondition && error.message().contains("exited"), "{error:?}");
        let error = update(&mut cri, &"ab".repeat(32), limits(|_| ())).await.err().context("nobody")?;
        ensure!(error.code() == Code::NotFound, "{error:?}");
        Ok(())
    });
}

#[test]
fn a_pods_limits_are_taken_note_of_and_survive_the_daemon() {
    scenario(async |node, mut cri| {
        let (pod, _) = sandbox(&mut cri, node).await?;
        let mut newest = Newest::of(node)?;
        let memory = |bytes| v1::LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
        let request = |pod: &str| v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.into(),
            overhead: Some(memory(MIB)),
            resources: Some(memory(9 * MIB)),
        };
        newest.runtime.update_pod_sandbox_resources(request(&pod)).await?;
        node.kill()?;
        node.boot()?;
        let mut cri = node.cri()?;
        let status = cri
            .runtime
            .pod_sandbox_status(cri::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true })
            .await?
            .into_inner();
        let info: serde_json::Value = serde_json::from_str(&status.info["info"])?;
        let linux = &info["config"]["linux"];
        ensure!(linux["resources"]["memory_limit_in_bytes"] == 9 * MIB, "{info}");
        ensure!(linux["overhead"]["memory_limit_in_bytes"] == MIB, "{info}");
        let mut newest = Newest::of(node)?;
        let error = newest.runtime.update_pod_sandbox_resources(request(&"ab".repeat(32))).await.err();
        ensure!(error.as_ref().is_some_and(|error| error.code() == Code::NotFound), "{error:?}");
        cri.stop_pod(&pod).await?;
        let error = newest.runtime.update_pod_sandbox_resources(request(&pod)).await.err();
        ensure!(error.as_ref().is_some_and(|error| error.code() == Code::FailedPrecondition), "{error:?}");
        Ok(())
    });
}

#[test]
fn the_signal_that_stops_is_the_requests_else_the_images_else_term() {
    scenario(async |node, mut cri| {
        let (pod, config) = sandbox(&mut cri, node).await?;
        cri.pull("nginx:latest").await?;
        let mut newest = Newest::of(node)?;
        for (name, image, asked, effective, code) in [
            ("asked", "busybox:latest", v1::Signal::Sigusr1, v1::Signal::Sigusr1, 10),
            ("real", "busybox:latest", v1::Signal::Sigrtminplus3, v1::Signal::Sigrtminplus3, 37),
            ("default", "busybox:latest", v1::Signal::RuntimeDefault, v1::Signal::Sigterm, 15),
            ("image", "nginx:latest", v1::Signal::RuntimeDefault, v1::Signal::Sigquit, 3),
            ("over", "nginx:latest", v1::Signal::Sigint, v1::Signal::Sigint, 2),
        ] {
            // Exits with the number of the signal that it gets; real-time ones have no name in every shell.
            let script =
                "for s in 2 3 10 12 15 37; do trap \"exit $s\" $s; done; echo up; while :; do sleep 0.02; done";
            let mut wanted: v1::ContainerConfig = same(&container(name, image, script))?;
            wanted.stop_signal = asked.into();
            let request = v1::CreateContainerRequest {
                pod_sandbox_id: pod.clone(),
                config: Some(wanted),
                sandbox_config: Some(same(&config)?),
            };
            let c = newest.runtime.create_container(request).await?.into_inner().container_id;
            cri.start(&c).await?;
            let status = newest.status(&c).await?;
            ensure!(status.stop_signal == i32::from(effective), "{name}: {status:?}");
            eventually("its traps are set", async || {
                std::fs::read_to_string(&status.log_path).ok().filter(|log| log.contains("up"))
            })
            .await?;
            cri.stop(&c, 20).await?;
            let status = cri.status(&c).await?;
            ensure!(status.exit_code == code, "{name}: {status:?}");
        }
        Ok(())
    });
}
