//! The stock crictl goes through the whole life of a pod against real images.

use std::{process::Output, time::Duration};

use anyhow::{Result, ensure};
use keelson_e2e::node::{Node, eventually};

use crate::scenario;

fn text(output: &Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "crictl ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn crictl(node: &Node, arguments: &[&str]) -> Result<String> {
    text(&node.crictl(arguments)?).map_err(|e| e.context(format!("crictl {arguments:?}")))
}

#[test]
fn crictl_pulls_runs_inspects_and_removes() {
    scenario(async |node, _| {
        for (image, command, probe) in [
            ("docker.io/library/nginx:latest", "", "cat /etc/nginx/nginx.conf"),
            (
                "docker.io/library/debian:bookworm",
                r#""command": ["sh", "-c", "echo started; exec sleep 1000"],"#,
                "bash --version",
            ),
            ("docker.io/library/busybox:latest", r#""command": ["sh", "-c", "echo started; exec sleep 1000"],"#, "id"),
        ] {
            let dir = tempfile::tempdir_in("/var/tmp")?;
            let pod_file = dir.path().join("pod.json");
            let container_file = dir.path().join("container.json");
            std::fs::write(
                &pod_file,
                format!(
                    r#"{{"metadata":{{"name":"pod","namespace":"default","uid":"u1","attempt":1}},"hostname":"pod","log_directory":"{}","linux":{{}}}}"#,
                    dir.path().display()
                ),
            )?;
            std::fs::write(
                &container_file,
                format!(
                    r#"{{"metadata":{{"name":"main"}},"image":{{"image":"{image}"}},{command}"log_path":"main.log","linux":{{}}}}"#
                ),
            )?;
            let (pod_file, container_file) =
                (pod_file.to_string_lossy().into_owned(), container_file.to_string_lossy().into_owned());
            crictl(node, &["pull", image])?;
            ensure!(
                crictl(node, &["images"])?.contains(image.trim_end_matches(":latest").trim_end_matches(":bookworm"))
            );
            crictl(node, &["inspecti", image])?;
            let pod = crictl(node, &["runp", &pod_file])?;
            let container = crictl(node, &["create", &pod, &container_file, &pod_file])?;
            crictl(node, &["start", &container])?;
            let out = crictl(node, &["exec", "-s", &container, "sh", "-c", probe])?;
            ensure!(!out.is_empty());
            if !command.is_empty() {
                let log = eventually("the first log line", async || {
                    crictl(node, &["logs", &container]).ok().filter(|l| l.contains("started"))
                })
                .await?;
                ensure!(log == "started", "{log}");
            } else {
                let address =
                    crictl(node, &["inspectp", "-o", "go-template", "--template", "{{.status.network.ip}}", &pod])?;
                let answered = eventually("nginx answers", async || {
                    std::net::TcpStream::connect_timeout(
                        &format!("{address}:80").parse().ok()?,
                        Duration::from_millis(200),
                    )
                    .ok()
                })
                .await?;
                drop(answered);
            }
            ensure!(crictl(node, &["ps", "-q"])? == container);
            ensure!(crictl(node, &["pods", "-q"])? == pod);
            let inspected: serde_json::Value = serde_json::from_str(&crictl(node, &["inspect", &container])?)?;
            ensure!(inspected["info"]["pid"].as_i64().is_some_and(|p| p > 0), "{inspected}");
            ensure!(inspected["info"]["runtimeSpec"]["process"].is_object(), "{inspected}");
            ensure!(crictl(node, &["stats", "-o", "json"])?.contains(&container));
            let info: serde_json::Value = serde_json::from_str(&crictl(node, &["info"])?)?;
            ensure!(
                info["status"]["conditions"].as_array().is_some_and(|c| c.iter().all(|c| c["status"] == true)),
                "{info}"
            );
            ensure!(crictl(node, &["version"])?.contains("keelson"));
            crictl(node, &["update", "--memory", "134217728", &container])?;
            crictl(node, &["stop", &container])?;
            crictl(node, &["rm", &container])?;
            crictl(node, &["stopp", &pod])?;
            crictl(node, &["rmp", &pod])?;
            crictl(node, &["rmi", image])?;
            ensure!(crictl(node, &["images", "-q"])?.is_empty() && crictl(node, &["pods", "-q"])?.is_empty());
        }
        Ok(())
    });
}
