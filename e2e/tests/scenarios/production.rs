//! What production nodes have and a development machine may lack: one cgroup v2 hierarchy, systemd as process 1, kubelet's slices, swap.
//! Elsewhere each says SKIP; `e2e/tools/scenarios-in-guest` runs them where nothing is missing.
#![expect(clippy::print_stdout, reason = "a scenario that cannot run says so")]

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use k8s_cri::v1 as cri;
use keelson_cri::v1;
use keelson_e2e::{
    newest::{Newest, same},
    node::{Cri, Node, container, eventually, pod},
};
use tonic::Code;

use crate::scenario;

const MIB: i64 = 1 << 20;
const ROOT: &str = "/sys/fs/cgroup";

fn unified(scenario: &str) -> bool {
    let found = Path::new(ROOT).join("cgroup.controllers").exists();
    if !found {
        println!("SKIP {scenario}: this host has cgroup v1 controllers");
    }
    found
}

fn systemd(scenario: &str) -> bool {
    let found = unified(scenario) && Path::new("/run/systemd/system").exists();
    if !found && Path::new(ROOT).join("cgroup.controllers").exists() {
        println!("SKIP {scenario}: systemd is not process 1 here");
    }
    found
}

/// A program of the host, which must succeed; what it says.
fn host(words: &str) -> Result<String> {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().context("no program")?);
    let output = command.args(words).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn info(cri: &mut Cri, id: &str) -> Result<serde_json::Value> {
    let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: true };
    Ok(serde_json::from_str(&cri.runtime.container_status(request).await?.into_inner().info["info"])?)
}

/// The cgroup of a container's init, as the host sees it: `/system.slice/x.scope/container`.
async fn cgroup_of(cri: &mut Cri, id: &str) -> Result<String> {
    let pid = info(cri, id).await?["pid"].as_i64().context("no pid")?;
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(text.trim().strip_prefix("0::").context("not cgroup v2")?.to_owned())
}

async fn update(cri: &mut Cri, id: &str, linux: cri::LinuxContainerResources) -> Result<(), tonic::Status> {
    let request =
        cri::UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(linux), ..Default::default() };
    cri.runtime.update_container_resources(request).await.map(drop)
}

fn limited(name: &str, script: &str, limits: cri::LinuxContainerResources) -> cri::ContainerConfig {
    let mut wanted = container(name, "busybox:latest", script);
    wanted.linux.get_or_insert_default().resources = Some(limits);
    wanted
}

async fn file(cri: &mut Cri, id: &str, name: &str) -> Result<String> {
    Ok(cri.shell(id, &format!("cat {ROOT}/{name}")).await?.trim().to_owned())
}

/// Kubelet makes a slice for each pod and sends its whole path; a path as for cgroupfs means the same slice.
#[test]
fn pods_live_in_the_slices_that_kubelet_made() {
    const NAME: &str = "pods_live_in_the_slices_that_kubelet_made";
    const SLICE: &str = "kubepods-burstable-podk1f0c.slice";
    const PATH: &str = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podk1f0c.slice";
    if !systemd(NAME) {
        return;
    }
    scenario(async |node, mut cri| {
        cri.pull("busybox:latest").await?;
        let driver = Newest::of(node)?.runtime.runtime_config(v1::RuntimeConfigRequest {}).await?.into_inner();
        ensure!(driver.linux.context("linux")?.cgroup_driver() == v1::CgroupDriver::Systemd);
        host(&format!(
            "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager \
             StartTransientUnit ssa(sv)a(sa(sv)) {SLICE} replace 2 MemoryMax t {} TasksMax t 500 0",
            256 * MIB
        ))?;
        eventually("the slice is there", async || Path::new(ROOT).join(&PATH[1..]).exists().then_some(())).await?;
        for (name, parent) in [("slices", PATH), ("folders", "/kubepods/burstable/podk1f0c")] {
            lives_in(node, &mut cri, name, parent, PATH).await.with_context(|| format!("parent {parent}"))?;
            cri = node.cri()?;
        }
        // It is kubelet's and stays until kubelet takes it away.
        let dir = Path::new(ROOT).join(&PATH[1..]);
        ensure!(fs::read_to_string(dir.join("memory.max"))?.trim() == (256 * MIB).to_string());
        let inside = fs::read_dir(&dir)?.flatten().filter(|entry| entry.path().is_dir()).count();
        ensure!(inside == 0, "{inside} cgroups are left in the pod's slice");
        let units = host("systemctl list-units --all --plain --no-legend keelson-*.scope")?;
        ensure!(units.trim().is_empty(), "{units}");
        host("systemctl stop kubepods.slice")?;
        Ok(())
    });
}

async fn lives_in(node: &mut Node, cri: &mut Cri, name: &str, parent: &str, path: &str) -> Result<()> {
    let mut config = pod(node, name);
    config.linux.get_or_insert_default().cgroup_parent = parent.into();
    let id = cri.run_pod(&config).await?;
    let limits = cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 * MIB,
        ..Default::default()
    };
    let c = cri.run(&id, limited("c", "sleep 1000", limits), &config).await?;
    let other = cri.run(&id, container("other", "busybox:latest", "sleep 1000"), &config).await?;
    let cgroup = cgroup_of(cri, &c).await?;
    ensure!(cgroup.starts_with(&format!("{path}/")) && cgroup.contains(&format!("{c}.scope")), "{cgroup}");
    ensure!(cgroup_of(cri, &other).await?.starts_with(&format!("{path}/")));

    // systemd writes what it knows whenever it reloads: it must know what is in force.
    let update_to = cri::LinuxContainerResources {
        memory_limit_in_bytes: 96 * MIB,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        ..Default::default()
    };
    update(cri, &c, update_to).await?;
    for act in ["", "systemctl daemon-reload", "systemctl daemon-reexec"] {
        if !act.is_empty() {
            host(act)?;
        }
        let seen =
            [file(cri, &c, "memory.max").await?, file(cri, &c, "cpu.max").await?, file(cri, &c, "cpu.weight").await?];
        ensure!(seen[0] == (96 * MIB).to_string() && seen[1] == "20000 100000", "after `{act}`: {seen:?}");
        ensure!(["39", "100"].contains(&&*seen[2]), "after `{act}`: {seen:?}");
    }
    // The bus that was there before systemd went through exec is gone; nothing of ours may have kept it.
    let late = cri.run(&id, container("late", "busybox:latest", "sleep 1000"), &config).await?;
    ensure!(cgroup_of(cri, &late).await?.starts_with(&format!("{path}/")));

    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: id.clone() };
    let stats = Newest::of(node)?.runtime.pod_sandbox_stats(request).await?.into_inner().stats;
    let linux = stats.and_then(|stats| stats.linux).context("no stats")?;
    let number = |value: Option<v1::UInt64Value>| value.map_or(0, |value| value.value);
    ensure!(number(linux.process.and_then(|process| process.process_count)) >= 3);
    ensure!(number(linux.memory.and_then(|memory| memory.usage_bytes)) > 0 && linux.containers.len() == 3);

    node.kill()?;
    node.boot()?;
    *cri = node.cri()?;
    ensure!(cgroup_of(cri, &c).await? == cgroup, "another daemon finds it where it was");
    ensure!(cri.shell(&c, "echo here").await? == "here\n");
    cri.stop_pod(&id).await?;
    cri.remove_pod(&id).await?;
    Ok(())
}

/// As kubelet asks on cgroup v2: `memory.oom.group`, swap, and files that only v2 has.
#[test]
fn limits_of_v2_are_given_changed_lifted_and_refused() {
    const NAME: &str = "limits_of_v2_are_given_changed_lifted_and_refused";
    if !unified(NAME) {
        return;
    }
    scenario(async |node, mut cri| {
        cri.pull("busybox:latest").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let files = |files: &[(&str, &str)]| files.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let limits = cri::LinuxContainerResources {
            memory_limit_in_bytes: 64 * MIB,
            memory_swap_limit_in_bytes: 96 * MIB,
            unified: files(&[("memory.oom.group", "1"), ("memory.high", "50331648")]),
            ..Default::default()
        };
        let c = cri.run(&id, limited("c", "sleep 1000", limits.clone()), &config).await?;
        for (name, value) in [
            ("memory.max", (64 * MIB).to_string()),
            ("memory.swap.max", (32 * MIB).to_string()),
            ("memory.oom.group", "1".to_owned()),
            ("memory.high", "50331648".to_owned()),
        ] {
            let seen = file(&mut cri, &c, name).await?;
            ensure!(seen == value, "{name} is {seen}, not {value}");
        }
        let only = |unified| cri::LinuxContainerResources { unified, ..Default::default() };
        update(&mut cri, &c, only(files(&[("memory.high", "max"), ("memory.low", "1048576")]))).await?;
        let seen = [file(&mut cri, &c, "memory.high").await?, file(&mut cri, &c, "memory.low").await?];
        ensure!(seen == ["max", "1048576"] && file(&mut cri, &c, "memory.oom.group").await? == "1", "{seen:?}");
        for (name, code) in [
            ("memory.nonsense", Code::FailedPrecondition),
            ("cgroup.procs", Code::InvalidArgument),
            ("../memory.max", Code::InvalidArgument),
        ] {
            let refused = update(&mut cri, &c, only(files(&[(name, "1")]))).await.expect_err(name);
            ensure!(refused.code() == code, "{name}: {refused:?}");
        }
        // Memory and swap: lifted together, and the files follow.
        let lift = cri::LinuxContainerResources {
            memory_limit_in_bytes: -1,
            memory_swap_limit_in_bytes: -1,
            ..Default::default()
        };
        update(&mut cri, &c, lift).await?;
        let seen = [file(&mut cri, &c, "memory.max").await?, file(&mut cri, &c, "memory.swap.max").await?];
        ensure!(seen == ["max", "max"], "{seen:?}");

        // One process takes too much: with the group set all of the container goes, without it that process alone.
        let script = "dd if=/dev/zero of=/dev/null bs=256M count=1 & sleep 1000";
        let mut tight = limits;
        (tight.memory_limit_in_bytes, tight.memory_swap_limit_in_bytes) = (32 * MIB, 32 * MIB);
        tight.unified = files(&[("memory.oom.group", "1")]);
        let all = cri.run(&id, limited("all", script, tight.clone()), &config).await?;
        let status = cri.wait_exit(&all).await?;
        ensure!((status.exit_code, status.reason.as_str()) == (137, "OOMKilled"), "{status:?}");
        tight.unified = files(&[("memory.oom.group", "0")]);
        let one = cri.run(&id, limited("one", script, tight), &config).await?;
        eventually("the kernel kills one", async || {
            let events = cri.shell(&one, &format!("cat {ROOT}/memory.events")).await.ok()?;
            (!events.contains("oom_kill 0\n")).then_some(())
        })
        .await?;
        ensure!(cri.status(&one).await?.state() == cri::ContainerState::ContainerRunning);
        Ok(())
    });
}

/// Swap for the length of one scenario; only in a guest, which is thrown away.
struct Swap(String);

impl Swap {
    fn on(megabytes: u32) -> Result<Swap> {
        let path = "/var/tmp/keelson-swap".to_owned();
        host(&format!("dd if=/dev/zero of={path} bs=1M count={megabytes}"))?;
        host(&format!("chmod 600 {path}"))?;
        host(&format!("mkswap {path}"))?;
        host(&format!("swapon {path}"))?;
        Ok(Swap(path))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = host(&format!("swapoff {}", self.0));
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn what_v2_counts_is_told_swap_pressure_and_disks_too() {
    const NAME: &str = "what_v2_counts_is_told_swap_pressure_and_disks_too";
    if !unified(NAME) {
        return;
    }
    let swap = match std::env::var_os("KEELSON_TEST_GUEST") {
        Some(_) => Some(Swap::on(64).expect("swap on")),
        None => {
            println!("SKIP {NAME} (its part about swap): no scenario gives a machine swap that is not a guest");
            None
        }
    };
    scenario(async |node, mut cri| {
        cri.pull("busybox:latest").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let limits = cri::LinuxContainerResources {
            memory_limit_in_bytes: 24 * MIB,
            memory_swap_limit_in_bytes: 80 * MIB,
            ..Default::default()
        };
        let c = cri.run(&id, limited("c", "sleep 1000", limits), &config).await?;
        cri.shell(&c, "dd if=/dev/zero of=/written bs=1M count=8 conv=fsync 2>/dev/null").await?;
        if swap.is_some() {
            cri.shell(&c, "dd if=/dev/zero of=/dev/shm/held bs=1M count=40 2>/dev/null").await?;
        }
        let mut newest = Newest::of(node)?;
        let request = v1::ContainerStatsRequest { container_id: c.clone() };
        let stats = newest.runtime.container_stats(request).await?.into_inner().stats.context("no stats")?;
        let number = |value: Option<v1::UInt64Value>| value.map_or(0, |value| value.value);
        if swap.is_some() {
            let swapped = stats.swap.as_ref().context("no swap")?;
            ensure!(number(swapped.swap_usage_bytes) >= 12 << 20, "{swapped:?}");
            ensure!((1..=56 << 20).contains(&number(swapped.swap_available_bytes)), "{swapped:?}");
        }
        let (cpu, memory) = (stats.cpu.context("cpu")?, stats.memory.context("memory")?);
        for psi in [cpu.psi, memory.psi, stats.io.context("io")?.psi] {
            let psi = psi.context("pressure")?;
            ensure!(psi.some.is_some() && psi.full.is_some(), "{psi:?}");
        }
        ensure!(number(memory.available_bytes) <= 24 << 20 && number(memory.page_faults) > 0);

        let declared = newest.runtime.list_metric_descriptors(v1::ListMetricDescriptorsRequest {}).await?.into_inner();
        let declared = declared.descriptors.len();
        ensure!(declared >= 55, "only {declared} of 56 metrics are declared");
        let mut pods = newest.runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await?.into_inner();
        let mut pod = pods.pod_metrics.pop().context("no metrics")?;
        let of_container = pod.container_metrics.pop().context("no metrics of the container")?.metrics;
        let mut sums = BTreeMap::<&str, u64>::new();
        for metric in of_container.iter().chain(&pod.metrics) {
            *sums.entry(&metric.name).or_default() += number(metric.value);
        }
        ensure!(sums.len() == declared, "{declared} are declared, {} emitted", sums.len());
        let sum = |name: &str| sums.get(name).copied().unwrap_or_default();
        ensure!(sum("container_fs_writes_bytes_total") >= 8 << 20, "{sums:?}");
        ensure!(sum("container_memory_max_usage_bytes") > 1 << 20 && sum("container_processes") >= 1, "{sums:?}");
        ensure!(sum("container_spec_memory_swap_limit_bytes") == 80 << 20, "{sums:?}");
        ensure!(swap.is_none() || sum("container_memory_swap") >= 12 << 20, "{sums:?}");
        println!("{NAME}: {declared} of 56 metrics are declared and emitted");
        cri.stop(&c, 0).await?;
        Ok(())
    });
}

/// Nothing under systemd tells an old request from a new one but the names: a pod made again by the same name is another.
#[test]
fn a_pod_is_made_again_under_systemd_at_once() {
    const NAME: &str = "a_pod_is_made_again_under_systemd_at_once";
    if !systemd(NAME) {
        return;
    }
    scenario(async |node, mut cri| {
        cri.pull("busybox:latest").await?;
        for attempt in 0..3 {
            let mut config = pod(node, "pod");
            config.metadata.get_or_insert_default().attempt = attempt;
            let id = cri.run_pod(&config).await?;
            let mut wanted: v1::ContainerConfig = same(&container("c", "busybox:latest", "exit 3"))?;
            wanted.metadata.get_or_insert_default().attempt = attempt;
            let c = Newest::of(node)?.run(&id, wanted).await?;
            let status = cri.wait_exit(&c).await?;
            ensure!(status.exit_code == 3, "{status:?}");
            // A scope whose last process has gone is stopped by systemd itself, while we remove it.
            cri.remove_pod(&id).await?;
        }
        let units = host("systemctl list-units --all --plain --no-legend keelson-*.scope")?;
        if !units.trim().is_empty() {
            bail!("units are left: {units}");
        }
        Ok(())
    });
}
