//! Nothing is left after many pods, and the daemon does not grow with what has gone.

use std::fs;

use anyhow::{Context, Result, ensure};
use keelson_e2e::node::{Node, container, eventually, pod};

use crate::scenario;

const PODS: usize = 500;

fn descriptors(node: &Node) -> Result<usize> {
    let pid = node.daemon_pid().context("no daemon")?;
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn resident(node: &Node) -> Result<usize> {
    let pid = node.daemon_pid().context("no daemon")?;
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

#[test]
fn five_hundred_pods_leave_nothing() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let life = async |cri: &mut keelson_e2e::node::Cri, node: &Node, i: usize| -> Result<()> {
            let config = pod(node, &format!("pod{i}"));
            let id = cri.run_pod(&config).await?;
            let c = cri.run(&id, container("c", "busybox", "exec sleep 1000"), &config).await?;
            if i.is_multiple_of(10) {
                cri.exec(&c, &["true"], 10).await?;
            }
            if i.is_multiple_of(3) {
                cri.stop(&c, 0).await?;
                cri.remove(&c).await?;
            }
            cri.stop_pod(&id).await?;
            cri.remove_pod(&id).await?;
            Ok(())
        };
        for i in 0..20 {
            life(&mut cri, node, i).await?;
        }
        let settled = eventually("teardown settles", async || descriptors(node).ok().filter(|n| *n < 64)).await?;
        let memory = resident(node)?;
        for batch in 0..PODS / 10 {
            let mut tasks = Vec::new();
            for i in 0..10 {
                let mut cri = cri.clone();
                let node = &*node;
                tasks.push(async move { life(&mut cri, node, 20 + batch * 10 + i).await });
            }
            for result in futures_join(tasks).await {
                result?;
            }
        }
        eventually("descriptors are back where they were", async || {
            descriptors(node).ok().filter(|n| *n <= settled + 4)
        })
        .await?;
        let grown = resident(node)?.saturating_sub(memory);
        ensure!(grown < 16 * 1024, "the daemon grew by {grown} KiB over {PODS} pods");
        for dir in ["snapshots", "network/ipam"] {
            let left = eventually("folders are empty", async || {
                let left: Vec<_> = fs::read_dir(node.root_dir().join(dir))
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|e| e.file_name())
                    .collect();
                (left.len() <= 2).then_some(left)
            })
            .await;
            ensure!(left.is_ok(), "{dir}: {left:?}");
        }
        Ok(())
    });
}

/// All of them at once, on this task.
async fn futures_join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut pinned: Vec<_> = futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(move |context| {
        let mut pending = false;
        for (future, output) in &mut pinned {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(pinned.iter_mut().filter_map(|(_, o)| o.take()).collect())
    })
    .await
}
