//! The stock kubelet (k8s.io/kubernetes v1.36.0) drives the node, with Evented PLEG and statistics from CRI: pods from a folder, no API
//! server. What it holds against the runtime in its log is a failure here.

mod lives;
mod looks;
mod restarts;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use keelson_e2e::{
    kubelet::{self, Kubelet, door::quoted},
    node::{Cri, Node},
};
use serde_json::{Value, json};

use crate::{scenario_with, streaming::wire::Web};

const IMAGE: &str = "busybox:latest";

/// A scenario with a kubelet, or SKIP where none was built.
fn with_kubelet(name: &str, settings: &Value, run: impl AsyncFnOnce(&mut Node, &mut Kubelet, &mut Cri) -> Result<()>) {
    if kubelet::binary().is_none() {
        println!("SKIP {name}: no kubelet here: `make kubelet` builds one from Go modules");
        return;
    }
    scenario_with("", async |node, mut cri| {
        let mut kubelet = Kubelet::start(node, settings.clone()).await?;
        run(node, &mut kubelet, &mut cri).await?;
        let complaints: Vec<_> = kubelet.complaints()?.into_iter().filter(|line| against_the_runtime(line)).collect();
        ensure!(complaints.is_empty(), "the kubelet complains: {complaints:#?}");
        kubelet.finish(&mut cri).await
    });
}

/// Whether a line of the kubelet's log is about what the runtime did, and is not how the kubelet is without an API server or with a runtime
/// that it does not know by name.
fn against_the_runtime(line: &str) -> bool {
    let about = [
        "remote_",
        "kuberuntime_",
        "cri_stats",
        "cri_metrics",
        "generic.go",
        "evented.go",
        "container_log_manager",
        "image_",
    ];
    let usual = [
        // It asks for a container that it has removed a moment ago, with every runtime.
        "\"ContainerStatus from runtime service failed\" err=\"rpc error: code = NotFound",
        // Its cached version, asked for again with the context of its own start, which is over.
        "\"Version from runtime service failed\" err=\"rpc error: code = Canceled",
        // A probe whose container is being ended.
        "\"ExecSync cmd from runtime service failed\" err=\"rpc error: code = Canceled",
        // A test that kills the daemon under a call, and what is asked while there is none.
        "connection refused",
        "error reading from server: EOF",
    ];
    about.iter().any(|file| line.starts_with(file)) && !usual.iter().any(|text| line.contains(text))
}

/// A container that runs a script.
fn shell(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": IMAGE, "command": ["sh", "-c", script] })
}

/// The same with more fields.
fn shell_with(name: &str, script: &str, more: Value) -> Value {
    let mut container = shell(name, script);
    if let (Some(fields), Value::Object(more)) = (container.as_object_mut(), more) {
        fields.extend(more);
    }
    container
}

/// The status of one container in a pod, `null` when it has none.
fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let all = pod["status"]["containerStatuses"].as_array();
    all.and_then(|all| all.iter().find(|status| status["name"] == name)).unwrap_or(&Value::Null)
}

fn restarts(pod: &Value, name: &str) -> i64 {
    container(pod, name)["restartCount"].as_i64().unwrap_or(0)
}

/// The runtime's id of a container.
fn id(pod: &Value, name: &str) -> Result<String> {
    let id = container(pod, name)["containerID"].as_str().context("no container id")?;
    Ok(id.trim_start_matches("keelson://").to_owned())
}

/// `kubectl exec`: through the kubelet's own endpoint, WebSocket from here, SPDY from there to the runtime. Output and errors.
async fn exec(kubelet: &Kubelet, pod: &str, container: &str, script: &str) -> Result<String> {
    let path = format!(
        "/exec/default/{pod}-node/{container}?output=1&error=1&command=sh&command=-c&command={}",
        quoted(script)
    );
    let mut web = Web::connect(&format!("{}{path}", kubelet.url()), "v4.channel.k8s.io").await?;
    let mut said = Vec::new();
    for message in web.hear().await? {
        match message.split_first() {
            Some((1 | 2, bytes)) => said.extend(bytes),
            Some((3, status)) => {
                let status: Value = serde_json::from_slice(status).context("the exec's status")?;
                ensure!(status["status"] == "Success", "`{script}` in {pod}/{container}: {status}");
            }
            _ => {}
        }
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// The folder of a container's cgroup: of the v1 controller, or the one there is.
fn cgroup(kubelet: &Kubelet, controller: &str, id: &str) -> Result<PathBuf> {
    fn find(dir: &Path, id: &str) -> Option<PathBuf> {
        for entry in std::fs::read_dir(dir).ok()?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            let found = entry.file_name().to_string_lossy().contains(id).then(|| entry.path());
            if let Some(found) = found.or_else(|| find(&entry.path(), id)) {
                return Some(found);
            }
        }
        None
    }
    let roots =
        [format!("/sys/fs/cgroup/{controller}/{}", kubelet.cgroup()), format!("/sys/fs/cgroup/{}", kubelet.cgroup())];
    roots.iter().find_map(|root| find(Path::new(root), id)).with_context(|| format!("no cgroup `{controller}` of {id}"))
}

/// The first of these files that is there, trimmed.
fn limit(dir: &Path, files: [&str; 2]) -> Result<String> {
    let text = files.iter().find_map(|file| std::fs::read_to_string(dir.join(file)).ok());
    Ok(text.with_context(|| format!("none of {files:?} in `{}`", dir.display()))?.trim().to_owned())
}
