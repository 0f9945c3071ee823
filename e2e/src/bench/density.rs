//! H10: what many idle pods cost: each list on its own, and the runtime's CPU while kubelet's rhythm goes on.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use k8s_cri::v1 as cri;

use super::{
    Options, Table,
    daemons::Contender,
    pods::{sandbox, workload},
};
use crate::node::Cri;

/// Calls of each list.
const CALLS: u32 = 30;
/// How long kubelet's rhythm is watched: lists each second, statistics each ten.
const WATCHED: u32 = 20;

/// CPU time of all threads of a process, as the scheduler counted it.
fn spent(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
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

pub(super) async fn h10(options: &Options, contenders: &mut [Contender], table: &mut Table) -> Result<()> {
    for contender in contenders.iter_mut() {
        contender.cri.pull("docker.io/library/busybox:latest").await?;
        let mut pods = Vec::new();
        for i in 0..options.pods {
            let config = sandbox(contender, &format!("dense-{i}"));
            let pod = contender.cri.run_pod(&config).await?;
            contender.cri.run(&pod, workload("exec sleep 100000"), &config).await?;
            pods.push(pod);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        for list in ["ListPodSandbox", "ListContainers", "ListContainerStats", "ListPodSandboxStats"] {
            // The first opens and caches.
            anyhow::ensure!(call(&mut contender.cri, list).await? == options.pods, "{}: {list}", contender.name);
            let mut walls = Vec::new();
            for _ in 0..CALLS {
                let began = Instant::now();
                call(&mut contender.cri, list).await?;
                walls.push(began.elapsed().as_secs_f64() * 1e3);
            }
            table.add(&format!("H10 {list}, {} pods", options.pods), contender.name, "ms", walls, None);
        }
        let (daemon, others) = contender.processes();
        let processes = || spent(daemon) + others.iter().map(|pid| spent(*pid)).sum::<Duration>();
        let before = processes();
        let began = Instant::now();
        for second in 0..WATCHED {
            for list in ["ListPodSandbox", "ListContainers"] {
                call(&mut contender.cri, list).await?;
            }
            if second % 10 == 0 {
                for list in ["ListContainerStats", "ListPodSandboxStats"] {
                    call(&mut contender.cri, list).await?;
                }
            }
            let next = began + Duration::from_secs(u64::from(second) + 1);
            tokio::time::sleep(next.saturating_duration_since(Instant::now())).await;
        }
        let each = (processes() - before).as_secs_f64() * 1e3 / began.elapsed().as_secs_f64();
        table.add(&format!("H10 CPU each second, {} pods", options.pods), contender.name, "ms", vec![each], None);
        for pod in pods {
            contender.cri.stop_pod(&pod).await?;
            contender.cri.remove_pod(&pod).await?;
        }
    }
    Ok(())
}
