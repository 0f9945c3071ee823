//! Seeing inside: numbers that move and parse, health, a log that changes its level, traces that go on with the caller's.

mod exposition;

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::{
    collector::Collector,
    node::{Node, container, eventually, pod},
};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::metadata::MetadataValue;

use self::exposition::Page;
use crate::{scenario, scenario_with};

/// Status line, headers, body.
struct Answer {
    status: String,
    head: String,
    body: String,
}

/// One HTTP request over the node's socket.
async fn ask(node: &Node, method: &str, path: &str) -> Result<Answer> {
    let socket = tokio::net::UnixStream::connect(node.state_dir().join("metrics.sock")).await;
    request(socket.context("connect to metrics.sock")?, method, path).await
}

async fn request(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    method: &str,
    path: &str,
) -> Result<Answer> {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await??;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no head in `{text}`"))?;
    let (status, head) = head.split_once("\r\n").context("no headers")?;
    Ok(Answer { status: status.to_owned(), head: head.to_ascii_lowercase(), body: body.to_owned() })
}

async fn scrape(node: &Node) -> Result<Page> {
    let answer = ask(node, "GET", "/metrics").await?;
    ensure!(answer.status.contains(" 200 "), "{}", answer.status);
    ensure!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    Page::parse(&answer.body)
}

#[test]
fn numbers_move_with_a_pods_life_and_read_strictly() {
    scenario(async |node, mut cri| {
        let before = scrape(node).await?;
        ensure!(before.value("keelson_build_info", &[]) == Some(1.0), "build info");
        cri.pull("busybox").await?;
        let config = pod(node, "counted");
        let sandbox = cri.run_pod(&config).await?;
        for (name, script) in [("good", "exit 0"), ("bad", "exit 3")] {
            let id = cri.run(&sandbox, container(name, "busybox", script), &config).await?;
            cri.wait_exit(&id).await?;
        }
        ensure!(cri.status("absent").await.is_err());
        let after = scrape(node).await?;
        let grew = |name: &str, labels: &[(&str, &str)], by: f64| {
            let (old, new) = (before.value(name, labels).unwrap_or(0.0), after.value(name, labels));
            let new = new.with_context(|| format!("no {name} {labels:?}"))?;
            ensure!(new - old >= by, "{name} {labels:?}: from {old} to {new}, expected {by} more");
            anyhow::Ok(())
        };
        for (method, times) in
            [("PullImage", 1.0), ("RunPodSandbox", 1.0), ("CreateContainer", 2.0), ("StartContainer", 2.0)]
        {
            grew("keelson_rpc_duration_seconds_count", &[("method", method), ("code", "OK")], times)?;
            grew("keelson_rpc_duration_seconds_sum", &[("method", method), ("code", "OK")], 1e-6)?;
        }
        grew("keelson_rpc_duration_seconds_count", &[("method", "ContainerStatus"), ("code", "NOT_FOUND")], 1.0)?;
        let sandbox_stages = ["reserve", "namespaces", "network", "files", "cgroup"];
        let container_stages = ["container_reserve", "snapshot", "spec", "shim_spawn", "launch", "start"];
        for (stages, times) in [(&sandbox_stages[..], 1.0), (&container_stages[..], 2.0)] {
            for stage in stages {
                grew("keelson_pod_start_stage_duration_seconds_count", &[("stage", stage)], times)?;
            }
        }
        grew("keelson_container_exits_total", &[("how", "success")], 1.0)?;
        grew("keelson_container_exits_total", &[("how", "failure")], 1.0)?;
        grew("keelson_image_pulls_total", &[("result", "ok")], 1.0)?;
        grew("keelson_image_pull_bytes_total", &[], 1000.0)?;
        grew("keelson_image_pull_stage_duration_seconds_count", &[("stage", "layers")], 1.0)?;
        grew("keelson_shim_calls_total", &[], 4.0)?;
        ensure!(after.value("keelson_sandboxes", &[("state", "ready")]) == Some(1.0), "one sandbox");
        ensure!(after.value("keelson_containers", &[("state", "exited")]) == Some(2.0), "two ended containers");
        ensure!(after.value("keelson_images", &[]) == Some(1.0), "one image");
        ensure!(after.value("process_resident_memory_bytes", &[]).is_some_and(|bytes| bytes > 1e6), "memory");
        ensure!(after.value("process_open_fds", &[]).is_some_and(|count| count > 5.0), "descriptors");
        // What a user or a pod chooses is no label: the page stays small whatever runs.
        for id in [sandbox.as_str(), "counted", "busybox", "absent"] {
            ensure!(!after.has_label_value(id), "`{id}` is a label");
        }
        cri.stop_pod(&sandbox).await?;
        cri.remove_pod(&sandbox).await?;
        eventually("gauges fall", async || {
            let page = scrape(node).await.ok()?;
            let empty = page.value("keelson_sandboxes", &[("state", "ready")]) == Some(0.0)
                && page.value("keelson_containers", &[("state", "exited")]) == Some(0.0)
                && page.value("keelson_teardown_pending", &[]) == Some(0.0)
                && page.value("keelson_rpc_in_flight", &[]) == Some(0.0);
            empty.then_some(())
        })
        .await
    });
}

#[test]
fn health_is_told_on_a_private_socket_and_nothing_can_be_changed_there() {
    scenario(async |node, _| {
        let mode = fs::metadata(node.state_dir().join("metrics.sock"))?.permissions().mode() & 0o777;
        ensure!(mode == 0o660, "mode {mode:o}");
        let health = ask(node, "GET", "/healthz").await?;
        ensure!(health.status.contains(" 200 ") && health.body == "ok\n", "{} {}", health.status, health.body);
        for (method, path, status) in [
            ("HEAD", "/healthz", " 200 "),
            ("GET", "/", " 404 "),
            ("POST", "/metrics", " 405 "),
            ("PUT", "/healthz", " 405 "),
        ] {
            let answer = ask(node, method, path).await?;
            ensure!(answer.status.contains(status), "{method} {path}: {}", answer.status);
        }
        // A client that says nonsense, or nothing, costs nobody else anything.
        let socket = node.state_dir().join("metrics.sock");
        let silent: Vec<_> =
            (0..8).map(|_| std::os::unix::net::UnixStream::connect(&socket)).collect::<Result<_, _>>()?;
        std::os::unix::net::UnixStream::connect(&socket)?.write_all(b"\x00\xff nonsense\r\n\r\n")?;
        ensure!(ask(node, "GET", "/healthz").await?.body == "ok\n");
        drop(silent);
        node.kill()?;
        ensure!(ask(node, "GET", "/healthz").await.is_err(), "nobody is there");
        node.boot()?;
        ensure!(ask(node, "GET", "/healthz").await?.body == "ok\n", "over the stale socket");
        Ok(())
    });
}

#[test]
fn a_loopback_port_serves_the_same() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    scenario_with(&format!("[metrics]\naddress = \"{port}\"\n"), async |node, _| {
        let answer = request(tokio::net::TcpStream::connect(port).await?, "GET", "/metrics").await?;
        ensure!(answer.status.contains(" 200 "), "{}", answer.status);
        Page::parse(&answer.body)?;
        ensure!(!node.state_dir().join("metrics.sock").exists(), "one endpoint");
        Ok(())
    });
}

#[test]
fn a_json_log_is_objects_with_ids_and_no_secret() {
    scenario_with("[log]\nformat = \"json\"\nlevel = \"trace\"\n", async |node, mut cri| {
        cri.pull("busybox").await?;
        let secrets = ["hunter2-password", "hunter2-identity", "hunter2-registry"];
        let auth = cri::AuthConfig {
            username: "somebody".into(),
            password: secrets[0].into(),
            identity_token: secrets[1].into(),
            registry_token: secrets[2].into(),
            ..Default::default()
        };
        let with_auth = |image: &str, auth: cri::AuthConfig| cri::PullImageRequest {
            image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
            auth: Some(auth),
            ..Default::default()
        };
        // One that goes well, one that fails, one that is refused, each with all its words at the level that says most.
        let password = cri::AuthConfig { identity_token: String::new(), registry_token: String::new(), ..auth.clone() };
        cri.images.pull_image(with_auth("busybox", password)).await?;
        ensure!(cri.images.pull_image(with_auth("docker.io/library/absent:1", auth.clone())).await.is_err());
        let broken = cri::AuthConfig { auth: secrets[0].into(), ..Default::default() };
        let _ = cri.images.pull_image(with_auth("busybox", broken)).await;
        let config = pod(node, "logged");
        let sandbox = cri.run_pod(&config).await?;
        let id = cri.run(&sandbox, container("c", "busybox", "sleep 1000"), &config).await?;
        ensure!(cri.status("absent").await.is_err());
        let text = node.log()?;
        let mut lines = Vec::new();
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
            ensure!(value.is_object() && value["timestamp"].is_string() && value["level"].is_string(), "{line}");
            lines.push(value);
        }
        let of = |rpc: &str, field: &str, id: &str| {
            lines.iter().any(|line| {
                line["spans"][0]["rpc"] == rpc
                    && line["spans"][0][field].as_str().is_some_and(|short| id.starts_with(short))
            })
        };
        ensure!(of("RunPodSandbox", "sandbox", &sandbox), "no line of RunPodSandbox with its sandbox: {text}");
        ensure!(of("StartContainer", "container", &id), "no line of StartContainer with its container");
        let refused =
            lines.iter().filter(|line| line["spans"][0]["rpc"] == "ContainerStatus" && line["code"] == "NotFound");
        ensure!(refused.count() == 1, "an error is one line");
        for secret in secrets {
            ensure!(!text.contains(secret), "`{secret}` is in the log");
        }
        Ok(())
    });
}

#[test]
fn the_level_of_the_log_changes_while_it_runs() {
    scenario(async |node, mut cri| {
        let file = node.config_path();
        let original = fs::read_to_string(&file)?;
        let pid = i32::try_from(node.daemon_pid().context("no daemon")?)?;
        let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
        let hang_up = || rustix::process::kill_process(pid, rustix::process::Signal::HUP);
        // Every answered call is a line at the level of debug.
        let told = async |cri: &mut keelson_e2e::node::Cri| -> Result<usize> {
            cri.runtime.version(cri::VersionRequest { version: "v1".into() }).await?;
            Ok(node.log()?.lines().filter(|line| line.contains("rpc=\"Version\"") && line.contains("done")).count())
        };
        ensure!(told(&mut cri).await? == 0, "silent at the level of info");
        fs::write(&file, format!("{original}\n[log]\nlevel = \"debug\"\n"))?;
        hang_up()?;
        let changes = async |count: usize| {
            eventually("the level changes", async || {
                (node.log().ok()?.matches("SIGHUP").count() == count).then_some(())
            })
            .await
        };
        changes(1).await?;
        ensure!(told(&mut cri).await? == 1, "said at the level of debug");
        fs::write(&file, format!("{original}\n[log]\nlevel = \"loud\"\n"))?;
        hang_up()?;
        changes(2).await?;
        ensure!(node.log()?.contains("want one of error, warn"), "why not");
        ensure!(told(&mut cri).await? == 2, "a bad file changes nothing");
        fs::write(&file, &original)?;
        hang_up()?;
        changes(3).await?;
        ensure!(told(&mut cri).await? == 2, "silent again");
        Ok(())
    });
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn traced<T>(message: T, trace: &str, flags: &str) -> Result<tonic::Request<T>> {
    let mut request = tonic::Request::new(message);
    let parent = format!("00-{trace}-{CALLER}-{flags}");
    request.metadata_mut().insert("traceparent", MetadataValue::try_from(parent)?);
    request.metadata_mut().insert("tracestate", MetadataValue::from_static("vendor=1"));
    Ok(request)
}

#[test]
fn spans_go_on_with_the_callers_trace() {
    let collector = Collector::start().unwrap();
    let config = format!("[traces]\nendpoint = \"http://{}\"\n", collector.address());
    scenario_with(&config, async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "traced");
        let message = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let answer = cri.runtime.run_pod_sandbox(traced(message, TRACE, "01")?).await?;
        let sandbox = answer.into_inner().pod_sandbox_id;
        let message = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container("c", "busybox", "sleep 1000")),
            sandbox_config: Some(config),
        };
        let answer = cri.runtime.create_container(traced(message, TRACE, "01")?).await?;
        let id = answer.into_inner().container_id;
        // A caller that does not sample is followed too.
        let unsampled = "1".repeat(32);
        let version = cri::VersionRequest { version: "v1".into() };
        cri.runtime.version(traced(version, &unsampled, "00")?).await?;
        let message = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
        cri.runtime.stop_pod_sandbox(traced(message, TRACE, "01")?).await?;
        let spans = eventually("spans arrive", async || {
            let spans = collector.spans();
            spans.iter().any(|span| span.name == "StopPodSandbox").then_some(spans)
        })
        .await?;
        for rpc in ["RunPodSandbox", "CreateContainer", "StopPodSandbox"] {
            let span = spans.iter().find(|span| span.name == rpc).with_context(|| format!("no span {rpc}"))?;
            ensure!((span.trace.as_str(), span.parent.as_str()) == (TRACE, CALLER), "{span:?}");
            ensure!(span.state == "vendor=1", "{span:?}");
            ensure!(span.attribute("rpc.grpc.status_code") == Some("0"), "{span:?}");
        }
        let ancestors = |name: &str, count: usize, rpc: &str| {
            let below =
                spans.iter().filter(|span| span.name == name && span.trace == TRACE && span.has_ancestor(&spans, rpc));
            let found = below.count();
            ensure!(found >= count, "{found} spans `{name}` below {rpc}, expected {count}: {spans:#?}");
            anyhow::Ok(())
        };
        for stage in ["reserve", "namespaces", "network", "files", "attach", "plan", "make_veth", "configure"] {
            ancestors(stage, 1, "RunPodSandbox")?;
        }
        for stage in ["snapshot", "spec", "shim_spawn", "launch", "shim: launch"] {
            ancestors(stage, 1, "CreateContainer")?;
        }
        ancestors("shim: stop", 1, "StopPodSandbox")?;
        let network = spans.iter().find(|span| span.name == "network").context("network")?;
        ensure!(network.attribute("sandbox") == Some(&sandbox), "{network:?}");
        let launch = spans.iter().find(|span| span.name == "launch").context("launch")?;
        ensure!(launch.attribute("container") == Some(&id), "{launch:?}");
        ensure!(
            spans.iter().any(|span| span.name == "layer" && span.has_ancestor(&spans, "PullImage")),
            "layers of the pull"
        );
        // A call does not last until the teardown behind it has ended.
        let stop = spans.iter().find(|span| span.name == "StopPodSandbox").context("stop")?;
        ensure!(stop.nanos < 5_000_000_000, "{stop:?}");
        ensure!(!spans.iter().any(|span| span.trace == unsampled), "the caller did not want this one");
        for (key, value) in [("service.name", "keelson"), ("service.version", env!("CARGO_PKG_VERSION"))] {
            ensure!(collector.resource(key).as_deref() == Some(value), "{key}: {:?}", collector.resource(key));
        }
        ensure!(collector.resource("host.name").is_some_and(|node| !node.is_empty()));
        // The last spans leave before the daemon does.
        let last = "2".repeat(32);
        let version = cri::VersionRequest { version: "v1".into() };
        cri.runtime.version(traced(version, &last, "01")?).await?;
        node.stop()?;
        ensure!(collector.spans().iter().any(|span| span.trace == last), "flushed at the end");
        node.boot()
    });
}

#[test]
fn a_sampling_ratio_of_nought_keeps_only_what_callers_ask_for() {
    let collector = Collector::start().unwrap();
    let config = format!("[traces]\nendpoint = \"http://{}\"\nsample_ratio = 0.0\n", collector.address());
    scenario_with(&config, async |_, mut cri| {
        for _ in 0..20 {
            cri.runtime.version(cri::VersionRequest { version: "v1".into() }).await?;
        }
        cri.runtime.version(traced(cri::VersionRequest { version: "v1".into() }, TRACE, "01")?).await?;
        eventually("the wanted span arrives", async || (!collector.spans().is_empty()).then_some(())).await?;
        ensure!(collector.spans().iter().all(|span| span.trace == TRACE), "{:?}", collector.spans());
        Ok(())
    });
}

#[test]
fn a_dead_or_silent_collector_costs_spans_and_no_call() {
    // The one refuses connections, the other takes them and never answers.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [dead, silent.local_addr().unwrap()] {
        scenario_with(&format!("[traces]\nendpoint = \"http://{address}\"\n"), async |node, mut cri| {
            cri.pull("busybox").await?;
            let config = pod(node, "untraced");
            let sandbox = cri.run_pod(&config).await?;
            let id = cri.run(&sandbox, container("c", "busybox", "sleep 1000"), &config).await?;
            let dropped = eventually("drops are counted", async || {
                cri.exec(&id, &["true"], 10).await.ok()?;
                scrape(node).await.ok()?.value("keelson_trace_spans_dropped_total", &[]).filter(|count| *count > 0.0)
            })
            .await?;
            let page = scrape(node).await?;
            ensure!(page.value("keelson_trace_spans_exported_total", &[]) == Some(0.0), "{dropped} dropped");
            let told = node.log()?.matches("does not take spans").count();
            ensure!(told == 1, "told {told} times");
            Ok(())
        });
    }
}
