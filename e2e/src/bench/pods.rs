//! H1 (pod start), H8 (stop and remove), H4 (exec probe), through CRI.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use k8s_cri::v1 as cri;

use super::{
    Options, Table,
    daemons::Contender,
    figures::{FLOOR, machine_cpu},
};

const IMAGE: &str = "docker.io/library/busybox:latest";

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// What one contender has gathered.
#[derive(Default)]
struct Samples {
    values: BTreeMap<&'static str, Vec<f64>>,
    cpu: BTreeMap<&'static str, Duration>,
}

impl Samples {
    fn push(&mut self, figure: &'static str, value: f64) {
        self.values.entry(figure).or_default().push(value);
    }
}

pub(super) fn sandbox(contender: &Contender, name: &str) -> cri::PodSandboxConfig {
    let log_directory = contender.logs.join(name);
    let _ = fs::create_dir_all(&log_directory);
    let seccomp = cri::SecurityProfile { profile_type: 0, localhost_ref: String::new() };
    let context = cri::LinuxSandboxSecurityContext { seccomp: Some(seccomp), ..Default::default() };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "bench".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: log_directory.to_string_lossy().into_owned(),
        linux: Some(cri::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
        ..Default::default()
    }
}

pub(super) fn workload(script: &str) -> cri::ContainerConfig {
    let seccomp = cri::SecurityProfile { profile_type: 0, localhost_ref: String::new() };
    let context = cri::LinuxContainerSecurityContext { seccomp: Some(seccomp), ..Default::default() };
    let mut config = crate::node::container("c", IMAGE, script);
    config.linux = Some(cri::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    config
}

/// Kernel work that no runtime can leave out: namespaces, fork, exec of a static program, its end.
fn floor_start() -> Result<f64> {
    let begun = Instant::now();
    let status = Command::new("unshare")
        .args(["-m", "-n", "-p", "-u", "-i", "-f", "/bin/busybox", "true"])
        .stdin(Stdio::null())
        .status();
    anyhow::ensure!(status.context("run unshare")?.success());
    Ok(ms(begun.elapsed()))
}

fn floor_exec() -> Result<f64> {
    let begun = Instant::now();
    anyhow::ensure!(
        Command::new("/bin/busybox").arg("true").stdin(Stdio::null()).status().context("run busybox")?.success()
    );
    Ok(ms(begun.elapsed()))
}

pub(super) async fn h1_h8(options: &Options, contenders: &mut [Contender], table: &mut Table) -> Result<()> {
    let mut samples: Vec<Samples> = contenders.iter().map(|_| Samples::default()).collect();
    let mut floor = Vec::new();
    for contender in contenders.iter_mut() {
        contender.cri.pull(IMAGE).await.with_context(|| format!("{}: pull", contender.name))?;
        // One warm-up pod: images unpacked, bridge made, programs in the page cache.
        round(contender, &mut Samples::default(), 1, "warm").await?;
    }
    for r in 0..options.rounds {
        for (contender, samples) in contenders.iter_mut().zip(&mut samples) {
            round(contender, samples, options.operations, &format!("r{r}"))
                .await
                .with_context(|| format!("{}: round {r}", contender.name))?;
            // Namespace clean-up of one must not slow the next.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        for _ in 0..options.operations {
            floor.push(floor_start()?);
        }
    }
    for figure in ["H1 pod start, RPC sum", "H1 pod start, to log", "H8 stop and remove"] {
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            let cpu = samples.cpu.get(figure).copied();
            table.add(figure, contender.name, "ms", samples.values.remove(figure).unwrap_or_default(), cpu);
        }
        if figure.starts_with("H1 pod start, RPC") {
            table.add(figure, FLOOR, "ms", floor.clone(), None);
        }
    }
    Ok(())
}

async fn round(contender: &mut Contender, samples: &mut Samples, operations: usize, tag: &str) -> Result<()> {
    let mut running = Vec::new();
    let cpu = machine_cpu();
    for i in 0..operations {
        let config = sandbox(contender, &format!("{tag}-{i}"));
        let log = contender.logs.join(format!("{tag}-{i}/c.log"));
        let begun = Instant::now();
        let pod = contender.cri.run_pod(&config).await?;
        let id = contender
            .cri
            .create(&pod, workload("echo up; trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"), &config)
            .await?;
        contender.cri.start(&id).await?;
        samples.push("H1 pod start, RPC sum", ms(begun.elapsed()));
        while fs::metadata(&log).map_or(0, |m| m.len()) == 0 {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        samples.push("H1 pod start, to log", ms(begun.elapsed()));
        running.push((pod, id));
    }
    *samples.cpu.entry("H1 pod start, RPC sum").or_default() += machine_cpu() - cpu;
    // The shells set their traps.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let cpu = machine_cpu();
    for (pod, id) in running {
        let begun = Instant::now();
        contender.cri.stop(&id, 10).await?;
        contender.cri.remove(&id).await?;
        contender.cri.stop_pod(&pod).await?;
        contender.cri.remove_pod(&pod).await?;
        samples.push("H8 stop and remove", ms(begun.elapsed()));
    }
    *samples.cpu.entry("H8 stop and remove").or_default() += machine_cpu() - cpu;
    Ok(())
}

pub(super) async fn h4(options: &Options, contenders: &mut [Contender], table: &mut Table) -> Result<()> {
    let serial = "H4 ExecSync /bin/true, serial";
    let mut pods = Vec::new();
    for contender in contenders.iter_mut() {
        contender.cri.pull(IMAGE).await?;
        let config = sandbox(contender, "exec");
        let pod = contender.cri.run_pod(&config).await?;
        let id = contender.cri.run(&pod, workload("exec sleep 100000"), &config).await?;
        contender.cri.exec(&id, &["/bin/true"], 10).await?;
        pods.push((pod, id));
    }
    let mut samples: Vec<Samples> = contenders.iter().map(|_| Samples::default()).collect();
    let mut rates: Vec<Vec<f64>> = contenders.iter().map(|_| Vec::new()).collect();
    let mut floor = Vec::new();
    for _ in 0..options.rounds {
        for (i, contender) in contenders.iter_mut().enumerate() {
            let id = &pods[i].1;
            let cpu = machine_cpu();
            for _ in 0..options.operations {
                let begun = Instant::now();
                contender.cri.exec(id, &["/bin/true"], 10).await?;
                samples[i].push(serial, ms(begun.elapsed()));
            }
            *samples[i].cpu.entry(serial).or_default() += machine_cpu() - cpu;
            let begun = Instant::now();
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..8 {
                let (mut cri, id, each) = (contender.cri.clone(), id.clone(), options.operations / 4);
                tasks.spawn(async move {
                    for _ in 0..each {
                        cri.exec(&id, &["/bin/true"], 10).await?;
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(result) = tasks.join_next().await {
                result??;
            }
            rates[i].push(ms(begun.elapsed()) / (8 * (options.operations / 4)).max(1) as f64);
        }
        for _ in 0..options.operations {
            floor.push(floor_exec()?);
        }
    }
    for (i, contender) in contenders.iter().enumerate() {
        let cpu = samples[i].cpu.get(serial).copied();
        table.add(serial, contender.name, "ms", samples[i].values.remove(serial).unwrap_or_default(), cpu);
    }
    table.add(serial, FLOOR, "ms", floor, None);
    for (contender, rates) in contenders.iter().zip(rates) {
        table.add("H4 ExecSync, 8 at a time, per exec", contender.name, "ms", rates, None);
    }
    for (contender, (pod, _)) in contenders.iter_mut().zip(pods) {
        contender.cri.stop_pod(&pod).await?;
        contender.cri.remove_pod(&pod).await?;
    }
    Ok(())
}
