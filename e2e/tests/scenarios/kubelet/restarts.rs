//! The daemon ends, the kubelet ends, logs turn, images go: what runs goes on.

use anyhow::{Result, ensure};
use keelson_e2e::node::eventually;
use serde_json::json;

use super::{exec, id, restarts, shell, with_kubelet};

#[test]
fn kubelet_and_daemon_restart_under_running_pods() {
    let settings = json!({ "featureGates": { "EventedPLEG": true } });
    with_kubelet("kubelet_and_daemon_restart_under_running_pods", &settings, async |node, kubelet, cri| {
        kubelet.give(
            "stays",
            &json!({ "terminationGracePeriodSeconds": 1, "containers": [
                shell("counts", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"),
                shell("fails", "sleep 3; exit 1"),
            ] }),
        )?;
        let pod = kubelet.until("stays", "begun", |pod| id(pod, "counts").is_ok()).await?;
        let first = id(&pod, "counts")?;
        node.kill()?;
        // While nobody answers: pods run, the kubelet lives and asks again.
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        node.boot()?;
        let before = restarts(&pod, "fails");
        let pod =
            kubelet.until("stays", "restarted what ended meanwhile", |pod| restarts(pod, "fails") > before).await?;
        ensure!(id(&pod, "counts")? == first && restarts(&pod, "counts") == 0, "{pod:#}");
        ensure!(!exec(kubelet, "stays", "counts", "echo here").await?.is_empty());
        // Then the kubelet: what it finds is its own.
        kubelet.kill()?;
        kubelet.boot().await?;
        let before = kubelet.until("stays", "found again", |pod| id(pod, "counts").is_ok()).await?;
        ensure!(id(&before, "counts")? == first && restarts(&before, "counts") == 0, "{before:#}");
        let now = restarts(&before, "fails");
        kubelet.until("stays", "restarted by the new kubelet", |pod| restarts(pod, "fails") > now).await?;
        let pods =
            cri.runtime.list_pod_sandbox(k8s_cri::v1::ListPodSandboxRequest::default()).await?.into_inner().items;
        ensure!(pods.len() == 1, "one sandbox all the time: {pods:#?}");
        let (_, log) = kubelet.get("/containerLogs/default/stays-node/counts").await?;
        let counted: Vec<u64> = log.lines().filter_map(|line| line.parse().ok()).collect();
        ensure!(counted.len() > 40 && counted.iter().zip(1..).all(|(a, b)| *a == b), "no line is lost: {counted:?}");
        kubelet.withdraw("stays")?;
        kubelet.until_gone("stays").await
    });
}

#[test]
fn kubelet_turns_logs_and_collects_images() {
    let settings =
        json!({ "containerLogMaxSize": "16Ki", "containerLogMaxFiles": 3, "containerLogMonitorInterval": "3s" });
    with_kubelet("kubelet_turns_logs_and_collects_images", &settings, async |_, kubelet, cri| {
        let unused = "docker.io/library/debian:bookworm";
        cri.pull(unused).await?;
        let talk = "i=0; while :; do i=$((i+1)); echo $i aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; sleep 0.02; done";
        kubelet.give("talks", &json!({ "terminationGracePeriodSeconds": 1, "containers": [shell("talks", talk)] }))?;
        let pod = kubelet.until_ready("talks").await?;
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let folder = kubelet.logs_dir().join(format!("default_talks-node_{uid}/talks"));
        let files = || -> Vec<String> {
            let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        };
        let turned = eventually("the log is turned twice", async || {
            let files = files();
            (files.iter().any(|f| f.ends_with(".gz")) && files.iter().any(|f| f == "0.log") && files.len() >= 3)
                .then_some(files)
        })
        .await?;
        // Over the seam between a closed file and the open one every line is there.
        let mut closed: Vec<_> = turned.iter().filter(|f| f.starts_with("0.log.") && !f.ends_with(".gz")).collect();
        closed.sort();
        if let Some(newest) = closed.last() {
            let numbers =
                |text: String| -> Vec<u64> { text.lines().filter_map(|l| l.split(' ').nth(3)?.parse().ok()).collect() };
            let mut seam = numbers(std::fs::read_to_string(folder.join(newest))?);
            let last = *seam.last().unwrap_or(&0);
            seam = numbers(std::fs::read_to_string(folder.join("0.log"))?);
            ensure!(
                last > 0 && seam.first().is_none_or(|first| *first == last + 1 || *first > last + 50),
                "{last} then {seam:?}"
            );
        }
        ensure!(
            kubelet.metric("kubelet_runtime_operations_errors_total").await? <= 1.0,
            "nothing refused to the rotation"
        );
        // A disk that is too full, as it thinks: an image that nothing uses goes; the one of the pod stays, and the pod (the kubelet never
        // evicts one that came from a file).
        kubelet.stop()?;
        let full = json!({ "nodefs.available": "99%" });
        kubelet
            .set(json!({ "evictionHard": full, "evictionPressureTransitionPeriod": "1s", "imageMinimumGCAge": "1ns" }));
        kubelet.boot().await?;
        let there = async |cri: &mut keelson_e2e::node::Cri, name: &str| -> Result<bool> {
            let image = Some(k8s_cri::v1::ImageSpec { image: name.into(), ..Default::default() });
            let request = k8s_cri::v1::ImageStatusRequest { image, verbose: false };
            Ok(cri.images.image_status(request).await?.into_inner().image.is_some())
        };
        let begun = std::time::Instant::now();
        while there(cri, unused).await? {
            ensure!(begun.elapsed().as_secs() < 60, "the unused image stays: {:#?}", kubelet.complaints()?);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        ensure!(there(cri, super::IMAGE).await?, "the pod's image is kept");
        ensure!(exec(kubelet, "talks", "talks", "echo here").await? == "here\n");
        kubelet.withdraw("talks")?;
        kubelet.until_gone("talks").await
    });
}
