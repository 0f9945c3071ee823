//! H10: what many idle pods cost: each list on its own, and the runtime's CPU while kubelet's rhythm goes on.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use k8s_cri::v1 as cri;

use super::{
    Options, Table,
    daemons::Contender,
    figures::OURS,
    pods::{sandbox, workload},
};
use crate::node::Cri;

/// Calls of each list.
const CALLS: u32 = 30;
/// Lists, and then statistics: kubelet asks for the former each second, for all each ten.
const LISTS: [&str; 4] = ["ListPodSandbox", "ListContainers", "ListContainerStats", "ListPodSandboxStats"];
/// How long kubelet's rhythm is watched: lists each second, statistics each ten.
const WATCHED: u32 = 20;

/// CPU time of a process, of its threads that have ended too, in the ticks (10 ms) that `/proc/pid/stat` counts in; zero when it is gone.
fn spent(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may hold anything: utime and stime are the 12th and 13th words from there.
    let words = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let ticks: u64 = words.take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

async fn call(cri: &mut Cri, list: &str) -> Result<usize> {
    let runtime = &mut cri.runtime;
    Ok(match list {
        "ListPodSandbox" => {
            runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.into_inner().items.len()
        }
        "ListContainers" => {
            runtime.list_containers(cri::ListContainersRequest::default()).await?.into_inner().containers.len()
        }
        "ListContainerStats" => {
            runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await?.into_inner().stats.len()
        }
        _ => runtime.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default()).await?.into_inner().stats.len(),
    })
}

async fn one(cri: &mut Cri, name: &str, container: &cri::Container) -> Result<()> {
    match name {
        "Version" => drop(cri.runtime.version(cri::VersionRequest::default()).await?),
        "ContainerStatus" => drop(cri.status(&container.id).await?),
        _ => drop(cri.pod_status(&container.pod_sandbox_id).await?),
    }
    Ok(())
}

pub(super) async fn h10(options: &Options, contenders: &mut [Contender], table: &mut Table) -> Result<()> {
    for contender in contenders.iter_mut() {
        contender.cri.pull("docker.io/library/busybox:latest").await?;
        let mut pods = Vec::new();
        let measured = match fill(options, contender, &mut pods).await {
            Ok(()) => measure(options, contender, table).await,
            failed @ Err(_) => failed,
        };
        for pod in pods {
            contender.cri.stop_pod(&pod).await?;
            contender.cri.remove_pod(&pod).await?;
        }
        measured.context(contender.name)?;
    }
    Ok(())
}

/// Starts the pods, and tells of each as soon as it is there.
async fn fill(options: &Options, contender: &mut Contender, pods: &mut Vec<String>) -> Result<()> {
    for i in 0..options.pods {
        let config = sandbox(contender, &format!("dense-{i}"));
        let pod = contender.cri.run_pod(&config).await?;
        pods.push(pod.clone());
        contender.cri.run(&pod, workload("exec sleep 100000"), &config).await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    Ok(())
}

async fn measure(options: &Options, contender: &mut Contender, table: &mut Table) -> Result<()> {
    let name = contender.name;
    let figure = |what: &str| format!("H10 {what}, {} pods", options.pods);
    let mut refused = Vec::new();
    for list in LISTS {
        // The first opens and caches. A peer that cannot answer on this host has no figure; it is not ours to fail for it.
        match call(&mut contender.cri, list).await {
            Ok(count) => anyhow::ensure!(count == options.pods, "{list} has {count} items"),
            Err(error) if name != OURS => {
                println!("{name}: {list}: {error:#}");
                refused.push(list);
                continue;
            }
            Err(error) => return Err(error.context(list)),
        }
        let mut walls = Vec::new();
        for _ in 0..CALLS {
            let began = Instant::now();
            call(&mut contender.cri, list).await?;
            walls.push(began.elapsed().as_secs_f64() * 1e3);
        }
        table.add(&figure(list), name, "ms", walls, None);
    }
    // What a round trip costs that asks for nothing, and one thing among many.
    let list = contender.cri.runtime.list_containers(cri::ListContainersRequest::default()).await?.into_inner();
    let container = list.containers.into_iter().next().context("no container")?;
    for what in ["Version", "ContainerStatus", "PodSandboxStatus"] {
        let mut walls = Vec::new();
        for _ in 0..10 * CALLS {
            let began = Instant::now();
            one(&mut contender.cri, what, &container).await?;
            walls.push(began.elapsed().as_secs_f64() * 1e3);
        }
        table.add(&figure(what), name, "ms", walls, None);
    }
    let (daemon, others) = contender.processes();
    let processes = || spent(daemon) + others.iter().map(|pid| spent(*pid)).sum::<Duration>();
    let before = processes();
    let began = Instant::now();
    for second in 0..WATCHED {
        let due = if second % 10 == 0 { &LISTS[..] } else { &LISTS[..2] };
        for list in due.iter().filter(|list| !refused.contains(list)) {
            call(&mut contender.cri, list).await?;
        }
        let next = began + Duration::from_secs(u64::from(second) + 1);
        tokio::time::sleep(next.saturating_duration_since(Instant::now())).await;
    }
    let each = processes().saturating_sub(before).as_secs_f64() * 1e3 / began.elapsed().as_secs_f64();
    table.add(&figure("CPU each second"), name, "ms", vec![each], None);
    Ok(())
}
