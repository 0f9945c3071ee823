//! Lives of pods: begun, probed, restarted, ended.

use anyhow::ensure;
use serde_json::json;

use super::{cgroup, container, exec, id, limit, restarts, shell, shell_with, with_kubelet};

#[test]
fn kubelet_runs_a_pod_with_volumes_and_limits() {
    with_kubelet("kubelet_runs_a_pod_with_volumes_and_limits", &json!({}), async |node, kubelet, _| {
        let host = kubelet.scratch().join("host");
        std::fs::create_dir(&host)?;
        std::fs::write(host.join("from"), "host")?;
        let mounts = |names: &[&str]| -> Vec<_> {
            names.iter().map(|name| json!({ "name": name, "mountPath": format!("/{name}") })).collect()
        };
        let mut all = mounts(&["disk", "memory", "host", "words", "image"]);
        all.push(json!({ "name": "image", "mountPath": "/part", "subPath": "etc/nginx" }));
        let spec = json!({
            "terminationGracePeriodSeconds": 1,
            "hostname": "called",
            "shareProcessNamespace": true,
            "initContainers": [
                shell_with("init", "echo first > /disk/init", json!({ "volumeMounts": mounts(&["disk"]) })),
                // A sidecar: an init container that goes on.
                shell_with("side", "exec sleep 1000", json!({ "restartPolicy": "Always" })),
            ],
            "containers": [
                shell_with("main", "exec sleep 1000", json!({
                    "resources": { "requests": { "cpu": "100m", "memory": "32Mi" }, "limits": { "cpu": "200m", "memory": "64Mi" } },
                    "env": [
                        { "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                        { "name": "ADDRESS", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                        { "name": "MEMORY", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory" } } },
                    ],
                    "volumeMounts": all,
                })),
                { "name": "web", "image": "nginx:latest" },
            ],
            "volumes": [
                { "name": "disk", "emptyDir": {} },
                { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } },
                { "name": "host", "hostPath": { "path": host, "type": "Directory" } },
                { "name": "words", "downwardAPI": { "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }] } },
                { "name": "image", "image": { "reference": "nginx:latest" } },
            ],
        });
        kubelet.give_whole(
            "first",
            &json!({ "name": "first", "namespace": "default", "labels": { "who": "me" } }),
            &spec,
        )?;
        let pod = kubelet.until_ready("first").await?;
        ensure!(restarts(&pod, "main") == 0 && restarts(&pod, "web") == 0, "{pod:#}");
        let address = pod["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        let said = exec(kubelet, "first", "main", "echo $POD $ADDRESS $MEMORY $(hostname)").await?;
        ensure!(said == format!("first-node {address} {} called\n", 64 << 20), "{said}");
        let script = "cat /disk/init /host/from; echo; cat /words/labels; echo; test -e /part/nginx.conf && test -e /image/etc/nginx && echo image;
            ! touch /image/x 2>/dev/null && echo fixed; grep ' /memory ' /proc/mounts; echo mine > /host/to; cat /etc/resolv.conf";
        let said = exec(kubelet, "first", "main", script).await?;
        ensure!(said.starts_with("first\nhost\nwho=\"me\"\nimage\nfixed\ntmpfs /memory tmpfs"), "{said}");
        ensure!(said.contains("size=8192k") && said.contains("nameserver 192.0.2.53"), "{said}");
        ensure!(std::fs::read_to_string(host.join("to"))? == "mine\n", "written to the host path");
        // The processes of the pod, the sidecar's among them.
        let said = exec(kubelet, "first", "main", "ps").await?;
        ensure!(said.contains("nginx") && said.matches("sleep 1000").count() == 2, "{said}");
        // From the image's own port, by the host's network.
        ensure!(answers(&address).await, "nginx answers on {address}");
        let main = id(&pod, "main")?;
        let memory = limit(&cgroup(kubelet, "memory", &main)?, ["memory.limit_in_bytes", "memory.max"])?;
        ensure!(memory == (64 << 20).to_string(), "{memory}");
        let quota = limit(&cgroup(kubelet, "cpu", &main)?, ["cpu.cfs_quota_us", "cpu.max"])?;
        ensure!(quota.starts_with("20000"), "{quota}");
        ensure!(pod["status"]["qosClass"] == "Burstable", "{pod:#}");
        let reported = &container(&pod, "main")["resources"]["limits"];
        ensure!(
            *reported == json!({ "cpu": "200m", "memory": "64Mi" }),
            "what the runtime says is in force: {reported}"
        );
        ensure!(node.log()?.matches("sandbox is ready").count() == 1, "{}", node.log_tail());
        kubelet.withdraw("first")?;
        kubelet.until_gone("first").await
    });
}

async fn answers(address: &str) -> bool {
    tokio::net::TcpStream::connect((address, 80)).await.is_ok()
}

#[test]
fn kubelet_resizes_a_pod_in_place() {
    with_kubelet("kubelet_resizes_a_pod_in_place", &json!({}), async |_, kubelet, _| {
        let spec = |cpu: &str, memory: &str| {
            let amount = json!({ "cpu": cpu, "memory": memory });
            json!({ "terminationGracePeriodSeconds": 1, "containers": [
                shell_with("main", "exec sleep 1000", json!({ "resources": { "requests": amount, "limits": amount } })),
            ] })
        };
        // With a uid of its own the changed file is the same pod.
        let metadata =
            json!({ "name": "grows", "namespace": "default", "uid": "11111111-2222-3333-4444-555555555555" });
        kubelet.give_whole("grows", &metadata, &spec("100m", "32Mi"))?;
        let before = id(&kubelet.until_ready("grows").await?, "main")?;
        for (cpu, memory, quota, bytes) in [("200m", "48Mi", "20000", 48 << 20), ("50m", "24Mi", "5000", 24 << 20)] {
            kubelet.give_whole("grows", &metadata, &spec(cpu, memory))?;
            let amount = json!({ "cpu": cpu, "memory": memory });
            // What the status says is in force is what the runtime says.
            let pod = kubelet
                .until("grows", "resized", |pod| container(pod, "main")["resources"]["limits"] == amount)
                .await?;
            ensure!(id(&pod, "main")? == before && restarts(&pod, "main") == 0, "{pod:#}");
            let memory = limit(&cgroup(kubelet, "memory", &before)?, ["memory.limit_in_bytes", "memory.max"])?;
            let cpu = limit(&cgroup(kubelet, "cpu", &before)?, ["cpu.cfs_quota_us", "cpu.max"])?;
            ensure!(memory == bytes.to_string() && cpu.split(' ').next() == Some(quota), "{memory} {cpu}");
        }
        kubelet.withdraw("grows")?;
        kubelet.until_gone("grows").await
    });
}

#[test]
fn kubelet_restarts_what_fails() {
    with_kubelet("kubelet_restarts_what_fails", &json!({}), async |_, kubelet, cri| {
        let every = |probe: serde_json::Value, failures: u32| {
            let mut probe = probe;
            probe["periodSeconds"] = json!(1);
            probe["failureThreshold"] = json!(failures);
            probe
        };
        let alive = every(json!({ "exec": { "command": ["cat", "/alive"] } }), 1);
        let nobody = every(json!({ "tcpSocket": { "port": 81 } }), 2);
        let web = every(json!({ "httpGet": { "path": "/", "port": 80 } }), 3);
        kubelet.give(
            "live",
            &json!({ "terminationGracePeriodSeconds": 1, "containers": [
                shell_with("file", "touch /alive; sleep 2; rm /alive; exec sleep 1000", json!({
                    "startupProbe": every(json!({ "exec": { "command": ["cat", "/alive"] } }), 30), "livenessProbe": alive })),
                shell_with("deaf", "exec sleep 1000", json!({ "livenessProbe": nobody })),
                { "name": "web", "image": "nginx:latest", "livenessProbe": web, "readinessProbe": web },
            ] }),
        )?;
        kubelet.give(
            "crash",
            &json!({ "terminationGracePeriodSeconds": 1, "containers": [
                shell("crash", "echo dying > /dev/termination-log; exit 3"),
                shell("calm", "exec sleep 1000"),
            ] }),
        )?;
        let hungry = json!({ "resources": { "limits": { "memory": "20Mi" } } });
        kubelet.give(
            "hungry",
            &json!({ "terminationGracePeriodSeconds": 1, "containers": [shell_with("hungry", "sleep 1; tail /dev/zero", hungry)] }),
        )?;
        let logs = json!({ "terminationMessagePolicy": "FallbackToLogsOnError" });
        kubelet.give(
            "once",
            &json!({ "restartPolicy": "Never", "containers": [shell_with("once", "echo last words; exit 7", logs)] }),
        )?;

        let pod = kubelet.until("once", "failed", |pod| pod["status"]["phase"] == "Failed").await?;
        let end = &container(&pod, "once")["state"]["terminated"];
        ensure!(end["exitCode"] == 7 && end["reason"] == "Error" && end["message"] == "last words\n", "{end}");
        let pod = kubelet
            .until("hungry", "killed for its memory", |pod| {
                container(pod, "hungry")["lastState"]["terminated"]["reason"] == "OOMKilled"
            })
            .await?;
        ensure!(container(&pod, "hungry")["lastState"]["terminated"]["exitCode"] == 137, "{pod:#}");
        // Each time a new attempt, never the old one begun again.
        let pod = kubelet.until("crash", "crashed four times", |pod| restarts(pod, "crash") >= 4).await?;
        let end = &container(&pod, "crash")["lastState"]["terminated"];
        ensure!(end["exitCode"] == 3 && end["message"] == "dying\n", "{end}");
        ensure!(restarts(&pod, "calm") == 0, "{pod:#}");
        let pod =
            kubelet.until("live", "restarted", |pod| restarts(pod, "file") >= 1 && restarts(pod, "deaf") >= 1).await?;
        ensure!(restarts(&pod, "web") == 0 && container(&pod, "web")["ready"] == true, "{pod:#}");
        ensure!(container(&pod, "file")["lastState"]["terminated"]["exitCode"] == 137, "its grace was over: {pod:#}");
        // Of what has ended the kubelet keeps one of each name, and removes the others.
        let kept = |all: Vec<k8s_cri::v1::Container>| {
            all.iter().filter(|c| c.metadata.as_ref().is_some_and(|m| m.name == "crash") && c.state == 2).count() <= 2
        };
        keelson_e2e::node::eventually("old attempts are removed", async || {
            let request = k8s_cri::v1::ListContainersRequest::default();
            let all = cri.runtime.list_containers(request).await.ok()?.into_inner().containers;
            kept(all).then_some(())
        })
        .await?;
        for pod in ["live", "crash", "hungry", "once"] {
            kubelet.withdraw(pod)?;
        }
        for pod in ["live", "crash", "hungry", "once"] {
            kubelet.until_gone(pod).await?;
        }
        // No event was lost and no relist stood in for one: the stream has never broken.
        ensure!(kubelet.metric("kubelet_evented_pleg_connection_success_count").await? == 1.0, "one stream of events");
        ensure!(kubelet.metric("kubelet_evented_pleg_connection_error_count").await? == 0.0, "an unbroken one");
        ensure!(kubelet.metric("kubelet_evented_pleg_connection_latency_seconds_count").await? > 20.0, "with events");
        Ok(())
    });
}

#[test]
fn kubelet_ends_pods_with_hooks_and_grace() {
    with_kubelet("kubelet_ends_pods_with_hooks_and_grace", &json!({}), async |_, kubelet, cri| {
        let host = kubelet.scratch().join("host");
        std::fs::create_dir(&host)?;
        let say = |word: &str| json!({ "exec": { "command": ["sh", "-c", format!("echo {word} >> /host/said")] } });
        kubelet.give(
            "hooks",
            &json!({
                "terminationGracePeriodSeconds": 20,
                "containers": [shell_with("main", "trap 'echo term >> /host/said; exit 0' TERM; while :; do sleep 0.1; done", json!({
                    "lifecycle": { "postStart": say("post"), "preStop": say("pre") },
                    "volumeMounts": [{ "name": "host", "mountPath": "/host" }],
                }))],
                "volumes": [{ "name": "host", "hostPath": { "path": host } }],
            }),
        )?;
        kubelet.give(
            "users",
            &json!({
                "hostUsers": false,
                "terminationGracePeriodSeconds": 1,
                "containers": [shell_with("main", "touch /disk/mine; exec sleep 1000", json!({
                    "volumeMounts": [{ "name": "disk", "mountPath": "/disk" }] }))],
                "volumes": [{ "name": "disk", "emptyDir": {} }],
            }),
        )?;
        kubelet.until_ready("hooks").await?;
        let pod = kubelet.until_ready("users").await?;
        let said = exec(kubelet, "users", "main", "cat /proc/self/uid_map; stat -c %u:%g /disk/mine").await?;
        let words: Vec<_> = said.split_whitespace().collect();
        // Root of the pod is nobody's root on the host, and what it writes is its own on both sides.
        ensure!(words[0] == "0" && words[1] != "0" && words[2] == "65536" && words[3] == "0:0", "{said}");
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let file = kubelet.root_dir().join(format!("pods/{uid}/volumes/kubernetes.io~empty-dir/disk/mine"));
        ensure!(
            std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(file)?) == 0,
            "the volume is id-mapped, not shifted"
        );
        kubelet.withdraw("hooks")?;
        kubelet.withdraw("users")?;
        kubelet.until_gone("hooks").await?;
        kubelet.until_gone("users").await?;
        let said = std::fs::read_to_string(host.join("said"))?;
        ensure!(said == "post\npre\nterm\n", "{said:?}");
        // Within its period of a minute the kubelet's own collector removes what is left of both.
        let begun = std::time::Instant::now();
        loop {
            let pods =
                cri.runtime.list_pod_sandbox(k8s_cri::v1::ListPodSandboxRequest::default()).await?.into_inner().items;
            let containers = cri.runtime.list_containers(k8s_cri::v1::ListContainersRequest::default()).await?;
            if pods.is_empty() && containers.into_inner().containers.is_empty() {
                return Ok(());
            }
            ensure!(begun.elapsed().as_secs() < 100, "sandboxes stay: {pods:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
}
