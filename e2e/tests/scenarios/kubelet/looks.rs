//! What is asked of pods that run: their logs, commands in them, connections to them, what they use.

use anyhow::ensure;
use keelson_e2e::node::eventually;
use serde_json::{Value, json};

use super::{exec, id, shell, with_kubelet};
use crate::streaming::wire::Spdy;

#[test]
fn kubelet_passes_streams_and_reads_logs() {
    with_kubelet("kubelet_passes_streams_and_reads_logs", &json!({}), async |_, kubelet, _| {
        let spec = json!({ "terminationGracePeriodSeconds": 1, "containers": [
            shell("talks", "echo begun; echo wrong >&2; exec sleep 1000"),
            { "name": "web", "image": "nginx:latest" },
        ] });
        kubelet.give("first", &spec)?;
        kubelet.until_ready("first").await?;
        let (code, log) = kubelet.get("/containerLogs/default/first-node/talks?timestamps=true").await?;
        ensure!(code == 200 && log.contains("Z begun\n") && log.contains("Z wrong\n"), "{code}: {log}");
        ensure!(kubelet.run("first", "talks", "cat /etc/hostname").await? == "first-node\n");
        ensure!(exec(kubelet, "first", "talks", "echo out; echo err >&2").await?.len() == 8);
        let failed = exec(kubelet, "first", "talks", "exit 7").await.expect_err("an exit code of 7");
        ensure!(failed.to_string().contains("NonZeroExitCode") && failed.to_string().contains("\"7\""), "{failed}");
        // kubectl's older transport, end to end.
        let url = format!("{}/exec/default/first-node/talks?output=1&input=1&command=cat", kubelet.url());
        let mut spdy = Spdy::connect(&url, "v4.channel.k8s.io").await?;
        let error = spdy.open(&[("streamtype", "error")]).await?;
        let input = spdy.open(&[("streamtype", "stdin")]).await?;
        let output = spdy.open(&[("streamtype", "stdout")]).await?;
        spdy.send(input, b"back and forth").await?;
        spdy.close(input).await?;
        ensure!(spdy.hear(output).await? == b"back and forth");
        ensure!(error == 1);
        // A connection to the pod.
        let url = format!("{}/portForward/default/first-node", kubelet.url());
        let mut spdy = Spdy::connect(&url, "portforward.k8s.io").await?;
        let headers = |kind| [("port", "80"), ("requestid", "1"), ("streamtype", kind)];
        spdy.open(&headers("error")).await?;
        let data = spdy.open(&headers("data")).await?;
        spdy.send(data, b"GET / HTTP/1.0\r\n\r\n").await?;
        let answer = String::from_utf8_lossy(&spdy.hear(data).await?).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        kubelet.withdraw("first")?;
        kubelet.until_gone("first").await
    });
}

#[test]
fn kubelet_shows_what_pods_use() {
    with_kubelet("kubelet_shows_what_pods_use", &json!({}), async |_, kubelet, _| {
        let work = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/file bs=64k count=16 2>/dev/null; exec sleep 1000";
        kubelet.give("first", &json!({ "terminationGracePeriodSeconds": 1, "containers": [shell("works", work), shell("idle", "exec sleep 1000")] }))?;
        let pod = kubelet.until_ready("first").await?;
        // The writable layer is measured behind: its own clock is ten seconds.
        let summary = eventually("/stats/summary has the pod and what it wrote", async || {
            let (code, text) = kubelet.get("/stats/summary").await.ok()?;
            let summary: Value = serde_json::from_str(&text).ok().filter(|_| code == 200)?;
            let pod = summary["pods"].as_array()?.iter().find(|p| p["podRef"]["name"] == "first-node")?.clone();
            let works = pod["containers"].as_array()?.iter().find(|c| c["name"] == "works")?.clone();
            (works["rootfs"]["usedBytes"].as_u64()? >= 1 << 20).then_some((pod, works))
        })
        .await?;
        let (pod_stats, works) = summary;
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        ensure!(pod_stats["containers"].as_array().is_some_and(|all| all.len() == 2), "{pod_stats:#}");
        for stats in [&works, &pod_stats] {
            ensure!(number(&stats["cpu"]["usageCoreNanoSeconds"]) > 1_000_000, "{stats:#}");
            ensure!(
                number(&stats["memory"]["workingSetBytes"]) > 0 && number(&stats["memory"]["rssBytes"]) > 0,
                "{stats:#}"
            );
        }
        ensure!(pod_stats["network"]["name"] == "eth0" && !pod_stats["network"]["rxBytes"].is_null(), "{pod_stats:#}");
        ensure!(number(&pod_stats["process_stats"]["process_count"]) >= 2, "{pod_stats:#}");
        ensure!(
            number(&works["logs"]["capacityBytes"]) > 0 && number(&works["rootfs"]["capacityBytes"]) > 0,
            "{works:#}"
        );
        let (code, page) = kubelet.get("/metrics/cadvisor").await?;
        ensure!(code == 200, "{code}");
        let name = id(&pod, "works")?;
        for metric in [
            "container_cpu_usage_seconds_total",
            "container_memory_working_set_bytes",
            "container_fs_writes_bytes_total",
            "container_start_time_seconds",
            "container_processes",
            "container_oom_events_total",
        ] {
            let line = page.lines().find(|l| l.starts_with(metric) && l.contains("container=\"works\""));
            let line = line.unwrap_or_default();
            ensure!(
                line.contains(&format!("name=\"{name}\"")) && line.contains("pod=\"first-node\""),
                "{metric}: {line}"
            );
        }
        let network = page.lines().any(|l| {
            l.starts_with("container_network_receive_bytes_total")
                && l.contains("interface=\"eth0\"")
                && l.contains("first-node")
        });
        ensure!(network, "the pod's traffic");
        // What the kubelet hangs itself on: its readiness to serve resource metrics.
        let (code, page) = kubelet.get("/metrics/resource").await?;
        ensure!(code == 200 && page.contains("resource_scrape_error 0"), "{code}: {page}");
        ensure!(
            page.lines().any(|l| l.starts_with("pod_cpu_usage_seconds_total") && l.contains("first-node")),
            "{page}"
        );
        kubelet.withdraw("first")?;
        kubelet.until_gone("first").await
    });
}
