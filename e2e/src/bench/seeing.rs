//! What it costs to be looked at: pod starts with nothing watching, with metrics scraped, with every span sent to a collector.
//! Three daemons of ours side by side, one pod start of each in turn, so that whatever slows the machine slows all three.
//! Must count the daemons' own CPU time beside the latency: the collector and the scraper are not keelson.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    Options, Table,
    daemons::{Contender, keelson_with},
    figures::OURS,
    pods::{sandbox, workload},
};
use crate::collector::Collector;

const IMAGE: &str = "docker.io/library/busybox:latest";
/// Far more often than any Prometheus asks.
const SCRAPE: Duration = Duration::from_secs(1);

const START: &str = "H1 seeing inside, RPC sum";
const CPU: &str = "H1 seeing inside, daemon CPU/pod";
const PAIRED: &str = "H1 seeing inside, over off";
const MEMORY: &str = "H5 seeing inside, daemon PSS";

/// One daemon and what it gave; CPU time at first as it was at the beginning.
struct Watched {
    contender: Contender,
    starts: Vec<f64>,
    cpu: Duration,
}

pub(super) async fn h1(options: &Options, table: &mut Table) -> Result<()> {
    let collector = Collector::start()?;
    let traced = format!("[metrics]\naddress = \"off\"\n[traces]\nendpoint = \"http://{}\"\n", collector.address());
    // The first has our own name: the others' ratios are over it.
    let mut all = Vec::new();
    for (name, config) in
        [(OURS, "[metrics]\naddress = \"off\"\n"), ("metrics scraped", ""), ("all spans sent", &traced)]
    {
        all.push(Watched { contender: keelson_with(name, config)?, starts: Vec::new(), cpu: Duration::ZERO });
    }
    let socket = all.get(1).and_then(|one| one.contender.state()).context("its state folder")?.join("metrics.sock");
    let scraper = tokio::spawn(async move {
        loop {
            // What it says is not of interest here.
            let _ = scrape(&socket).await;
            tokio::time::sleep(SCRAPE).await;
        }
    });
    for one in &mut all {
        one.contender.cri.pull(IMAGE).await?;
        start(one, "warm").await?;
        one.starts.clear();
        one.cpu = cpu_of(one.contender.processes().0)?;
    }
    for round in 0..options.rounds * options.operations {
        // Each is first, second and last equally often.
        for at in 0..all.len() {
            let turn = (round + at) % all.len();
            start(&mut all[turn], &format!("p{round}")).await?;
        }
    }
    scraper.abort();
    for one in &mut all {
        one.cpu = cpu_of(one.contender.processes().0)?.saturating_sub(one.cpu);
    }
    let off = all[0].starts.clone();
    for one in &all {
        table.add(START, one.contender.name, "ms", one.starts.clone(), None);
    }
    for one in &all {
        let each = one.cpu.as_secs_f64() * 1000.0 / one.starts.len().max(1) as f64;
        table.add(CPU, one.contender.name, "ms", vec![each], None);
    }
    for one in all.iter().skip(1) {
        let paired = one.starts.iter().zip(&off).map(|(one, off)| one / off).collect();
        table.add(PAIRED, one.contender.name, "x", paired, None);
    }
    for one in &all {
        table.add(MEMORY, one.contender.name, "MB", vec![super::memory::pss(one.contender.processes().0)], None);
    }
    eprintln!("the collector took {} spans", collector.spans().len());
    Ok(())
}

/// One pod with one container, started and taken away again; only the start is timed.
async fn start(one: &mut Watched, name: &str) -> Result<()> {
    let contender = &mut one.contender;
    let config = sandbox(contender, name);
    let begun = Instant::now();
    let pod = contender.cri.run_pod(&config).await?;
    let id = contender.cri.create(&pod, workload("exec sleep 100000"), &config).await?;
    contender.cri.start(&id).await?;
    one.starts.push(begun.elapsed().as_secs_f64() * 1000.0);
    contender.cri.stop_pod(&pod).await?;
    contender.cri.remove_pod(&pod).await?;
    // Namespaces go behind the answer: not while the next one is timed.
    tokio::time::sleep(Duration::from_millis(30)).await;
    Ok(())
}

/// CPU time of a process with all its threads, also those that have ended; to the hundredth of a second, so over many starts.
fn cpu_of(pid: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = text.rsplit_once(')').context("its stat line")?.1.split_whitespace().collect();
    // Fields 14 and 15, user and system; the third is the first here.
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

async fn scrape(socket: &Path) -> Result<String> {
    let mut stream = tokio::net::UnixStream::connect(socket).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}
