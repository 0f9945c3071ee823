//! H5: memory of the runtime per idle pod, as proportional set size, and of the daemon.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

use super::{
    Options, Table,
    daemons::Contender,
    figures::FLOOR,
    pods::{sandbox, workload},
};

/// Proportional set size of a process, MB.
pub(super) fn pss(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix("Pss:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or_default() * 1024.0 / 1e6
}

pub(super) async fn h5(options: &Options, contenders: &mut [Contender], table: &mut Table) -> Result<()> {
    // What any resident process costs: a static program asleep, as many of them.
    let mut sleepers = Vec::new();
    for _ in 0..options.pods {
        sleepers
            .push(std::process::Command::new("/bin/busybox").args(["sleep", "1000"]).spawn().context("run busybox")?);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let floor: f64 = sleepers.iter().map(|c| pss(c.id())).sum::<f64>() / options.pods as f64;
    for mut sleeper in sleepers {
        sleeper.kill()?;
        sleeper.wait()?;
    }
    let name = format!("H5 runtime per pod, {} idle", options.pods);
    for contender in contenders.iter_mut() {
        contender.cri.pull("docker.io/library/busybox:latest").await?;
        let mut pods = Vec::new();
        for i in 0..options.pods {
            let config = sandbox(contender, &format!("idle-{i}"));
            let pod = contender.cri.run_pod(&config).await?;
            contender.cri.run(&pod, workload("exec sleep 100000"), &config).await?;
            pods.push(pod);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (daemon, others) = contender.processes();
        anyhow::ensure!(!others.is_empty(), "{}: no per-container process found", contender.name);
        let each = others.iter().map(|p| pss(*p)).sum::<f64>() / options.pods as f64;
        table.add(&name, contender.name, "MB", vec![each], None);
        table.add("H5 daemon with these pods", contender.name, "MB", vec![pss(daemon)], None);
        for pod in pods {
            contender.cri.stop_pod(&pod).await?;
            contender.cri.remove_pod(&pod).await?;
        }
    }
    table.add(&name, FLOOR, "MB", vec![floor], None);
    Ok(())
}
