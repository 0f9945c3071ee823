//! T5 on a real node: sessions that end in every way leave nothing in the daemon, the shim or the container.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node};

use super::{
    exec_url, sleeper,
    wire::{self, Spdy, Web},
};
use crate::scenario;

/// What the daemon, the container's shim and the container hold.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    threads: usize,
    memory: usize,
    shim: (usize, usize),
    processes: usize,
}

fn process(pid: u32) -> Result<(usize, usize, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let number = |name: &str| -> Result<usize> {
        let line = status.lines().find(|line| line.starts_with(name)).context("no such line")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok((descriptors, number("Threads:")?, number("RssAnon:")?))
}

async fn held(node: &Node, cri: &mut Cri, id: &str) -> Result<Held> {
    let processes = cri.shell(id, "ls -d /proc/[0-9]* | wc -l").await?.trim().parse()?;
    let shim = std::fs::read_to_string(node.state_dir().join("containers").join(id).join("shim.pid"))?;
    let (descriptors, threads, memory) = process(node.daemon_pid().context("a daemon")?)?;
    let shim = process(shim.trim().parse()?)?;
    Ok(Held { descriptors, threads, memory, shim: (shim.0, shim.2), processes })
}

/// T5 on a real node. Its ten thousand are in `runtime/tests/flood`; here each session costs processes, so there are fewer.
#[test]
fn sessions_however_they_end_leave_nothing() {
    scenario(async |node, mut cri| {
        let count: usize = std::env::var("KEELSON_T5_NODE").ok().and_then(|count| count.parse().ok()).unwrap_or(300);
        let (pod_id, id) = sleeper(&mut cri, node).await?;
        for number in 0..40 {
            session(&mut cri, &pod_id, &id, number).await.with_context(|| format!("session {number}"))?;
        }
        let before = settled(node, &mut cri, &id, None).await?;
        let begun = Instant::now();
        for number in 0..count {
            session(&mut cri, &pod_id, &id, number).await.with_context(|| format!("session {number}"))?;
        }
        let took = begun.elapsed();
        let after = settled(node, &mut cri, &id, Some(before)).await?;
        println!("T5: {count} sessions of a node (KEELSON_T5_NODE) in {took:?}: before {before:?}, after {after:?}");
        ensure!(after.descriptors <= before.descriptors && after.threads <= before.threads, "{before:?} {after:?}");
        ensure!(after.shim.0 <= before.shim.0 && after.processes <= before.processes, "{before:?} {after:?}");
        ensure!(after.memory <= before.memory + 8192 && after.shim.1 <= before.shim.1 + 128, "{before:?} {after:?}");
        Ok(())
    });
}

/// What is held once it is as little as before, or does not change for a while.
async fn settled(node: &Node, cri: &mut Cri, id: &str, before: Option<Held>) -> Result<Held> {
    let begun = Instant::now();
    loop {
        // The pool's idle threads end after five seconds.
        tokio::time::sleep(Duration::from_millis(if before.is_none() { 6500 } else { 500 })).await;
        let now = held(node, cri, id).await?;
        let back = before.is_none_or(|before| {
            now.descriptors <= before.descriptors
                && now.threads <= before.threads
                && now.shim.0 <= before.shim.0
                && now.processes <= before.processes
        });
        if back || begun.elapsed() > Duration::from_secs(20) {
            return Ok(now);
        }
    }
}

async fn session(cri: &mut Cri, pod: &str, id: &str, number: usize) -> Result<()> {
    const V4: &str = "v4.channel.k8s.io";
    let kinds = |spdy: Spdy| async move {
        let mut spdy = spdy;
        let status = spdy.open(&[("streamtype", "error")]).await?;
        for kind in ["stdin", "stdout", "stderr"] {
            spdy.open(&[("streamtype", kind)]).await?;
        }
        anyhow::Ok((spdy, status))
    };
    match number % 8 {
        0 => {
            let url = exec_url(cri, id, "echo x; exit 2", true, false).await?;
            let (mut spdy, status) = kinds(Spdy::connect(&url, V4).await?).await?;
            let said = String::from_utf8(spdy.hear(status).await?)?;
            ensure!(said.contains("NonZeroExitCode"), "{said}");
        }
        1 => {
            let url = exec_url(cri, id, "echo x", false, false).await?;
            ensure!(!Web::connect(&url, "v5.channel.k8s.io").await?.hear().await?.is_empty());
        }
        // Broken off: with the program at work, with a terminal, before any stream, in the middle of output.
        2 => {
            let url = exec_url(cri, id, "sleep 1000", true, false).await?;
            let _ = kinds(Spdy::connect(&url, V4).await?).await?;
        }
        3 => drop(Web::connect(&exec_url(cri, id, "sleep 1000", true, true).await?, V4).await?),
        4 => drop(Spdy::connect(&exec_url(cri, id, "true", true, false).await?, V4).await?),
        5 => {
            let mut web = Web::connect(&exec_url(cri, id, "while :; do echo y; done", false, false).await?, V4).await?;
            tokio::io::AsyncReadExt::read_u64(&mut web.0).await?;
        }
        6 => {
            let container_id = id.to_owned();
            let attach = cri::AttachRequest { container_id, stdout: true, stderr: true, ..Default::default() };
            let url = cri.runtime.attach(attach).await?.into_inner().url;
            drop(Web::connect(&url, V4).await?);
            let (_, answer) = wire::upgrade(&url, "Upgrade: SPDY/3.1\r\n").await?;
            ensure!(answer.starts_with("HTTP/1.1 404"), "a URL is good once: {answer}");
        }
        _ => {
            let request = cri::PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![] };
            let url = cri.runtime.port_forward(request).await?.into_inner().url;
            let mut spdy = Spdy::connect(&url, "portforward.k8s.io").await?;
            let error = spdy.open(&[("port", "9"), ("streamtype", "error"), ("requestid", "1")]).await?;
            spdy.open(&[("port", "9"), ("streamtype", "data"), ("requestid", "1")]).await?;
            ensure!(!spdy.hear(error).await?.is_empty(), "nobody listens there");
        }
    }
    Ok(())
}
