//! Logs: the CRI format, partial lines, rotation under load, and none lost while no daemon runs.

use std::fs;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{container, eventually, pod};

use crate::scenario;

/// The content of a CRI log: stream, whole lines; checks each record's form.
fn parse(text: &str) -> Result<Vec<(String, String)>> {
    let mut lines = Vec::new();
    let mut partial = String::new();
    for record in text.lines() {
        let mut words = record.splitn(4, ' ');
        let (time, stream, tag) =
            (words.next().context("time")?, words.next().context("stream")?, words.next().context("tag")?);
        ensure!(time.len() >= 20 && time.contains('T') && time.ends_with('Z') | time.contains('+'), "time `{time}`");
        ensure!(matches!(stream, "stdout" | "stderr") && matches!(tag, "P" | "F"), "{record}");
        partial.push_str(words.next().unwrap_or_default());
        if tag == "F" {
            lines.push((stream.to_owned(), std::mem::take(&mut partial)));
        }
    }
    Ok(lines)
}

#[test]
fn a_log_has_both_streams_whole_and_long_lines_in_pieces() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let script = "echo one; echo two >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; printf end";
        let c = cri.run(&id, container("c", "busybox", script), &config).await?;
        cri.wait_exit(&c).await?;
        let text = fs::read_to_string(node.logs_dir().join("pod/c.log"))?;
        let lines = parse(&text)?;
        ensure!(lines.iter().filter(|l| l.0 == "stderr").map(|l| &*l.1).collect::<Vec<_>>() == ["two"]);
        let out: Vec<_> = lines.iter().filter(|l| l.0 == "stdout").map(|l| l.1.len()).collect();
        ensure!(text.lines().all(|r| r.len() < 16384 + 64), "records are at most 16 KiB of content");
        ensure!(out == [3, 40000] || out == [3, 40000, 3], "{out:?}");
        ensure!(text.ends_with("end\n"), "the unfinished last line is there");
        Ok(())
    });
}

#[test]
fn rotation_under_load_loses_and_splits_nothing() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let c = cri.run(&id, container("c", "busybox", "seq 1 300000"), &config).await?;
        let log = node.logs_dir().join("pod/c.log");
        let mut pieces = Vec::new();
        for i in 0..20 {
            let old = log.with_extension(format!("log.{i}"));
            fs::rename(&log, &old)?;
            pieces.push(old.clone());
            match cri.runtime.reopen_container_log(cri::ReopenContainerLogRequest { container_id: c.clone() }).await {
                Ok(_) => {}
                // Only a running container's log can be opened anew: the writer had the old file to its end.
                Err(_) if cri.status(&c).await?.state() == cri::ContainerState::ContainerExited => break,
                Err(error) => return Err(error.into()),
            }
            tokio::task::yield_now().await;
        }
        cri.wait_exit(&c).await?;
        pieces.push(log);
        let mut numbers = Vec::new();
        for piece in pieces.iter().filter(|p| p.exists()) {
            for (_, line) in parse(&fs::read_to_string(piece)?)? {
                numbers.push(line.parse::<u32>()?);
            }
        }
        ensure!(numbers.len() == 300_000 && numbers.is_sorted_by(|a, b| a < b), "{} lines", numbers.len());
        Ok(())
    });
}

#[test]
fn no_line_is_lost_while_the_daemon_is_dead() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let script = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); usleep 500; done; exit 9";
        let c = cri.run(&id, container("c", "busybox", script), &config).await?;
        let log = node.logs_dir().join("pod/c.log");
        eventually("the first lines", async || fs::read_to_string(&log).ok().filter(|t| t.lines().count() > 10))
            .await?;
        node.kill()?;
        eventually("the container goes on and ends without a daemon", async || {
            fs::read_to_string(&log).ok().filter(|t| t.ends_with(" 1999\n"))
        })
        .await?;
        node.boot()?;
        let mut cri = node.cri()?;
        let status = cri.wait_exit(&c).await?;
        ensure!(status.exit_code == 9, "the exit code was kept: {status:?}");
        let lines = parse(&fs::read_to_string(&log)?)?;
        ensure!(
            lines.iter().map(|l| &*l.1).eq((0..2000).map(|i| i.to_string()).collect::<Vec<_>>().iter().map(|s| &**s))
        );
        Ok(())
    });
}
