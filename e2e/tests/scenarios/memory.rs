//! What an idle container costs: the pages that its supervisor has for itself.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use keelson_e2e::node::{container, eventually, pod};

use crate::scenario;

/// Pages of its own, KiB: 52 measured with musl, 108 with the GNU C library. What all supervisors share (the program)
/// is the benchmark's to measure.
const OWN: usize = 120;

fn own_pages(state: &Path, container: &str) -> Result<usize> {
    let pid = fs::read_to_string(state.join("containers").join(container).join("shim.pid"))?;
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.trim()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).context("Anonymous")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

#[test]
fn an_idle_supervisor_gives_back_what_a_launch_an_exec_and_output_took() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "idle");
        let sandbox = cri.run_pod(&config).await?;
        let script = "head -c 4000000 /dev/zero | tr '\\0' x | fold -w 100; exec sleep 100000";
        let id = cri.run(&sandbox, container("idle", "busybox", script), &config).await?;
        for _ in 0..20 {
            cri.exec(&id, &["true"], 10).await?;
        }
        let mut last = 0;
        let settled = eventually("the supervisor is small", async || {
            last = own_pages(node.state_dir(), &id).ok()?;
            (last <= OWN).then_some(())
        })
        .await;
        settled.with_context(|| format!("{last} KiB of its own, {OWN} allowed"))
    });
}
