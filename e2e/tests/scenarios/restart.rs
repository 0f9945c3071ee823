//! kill -9 of the daemon at any moment: nothing is lost, everything can be retried, nothing is left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_e2e::node::{Cri, Node, container, eventually, patience, pod};

use crate::scenario;

#[test]
fn a_restart_finds_the_pod_running_and_serves_it_on() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let c = cri.run(&id, container("c", "busybox", "echo up; exec sleep 1000"), &config).await?;
        let created = cri.create(&id, container("later", "busybox", "sleep 1000"), &config).await?;
        let before = (cri.status(&c).await?, cri.pod_status(&id).await?);
        for graceful in [true, false, false] {
            if graceful {
                node.stop()?
            } else {
                node.kill()?
            }
            node.boot()?;
            cri = node.cri()?;
            ensure!((cri.status(&c).await?, cri.pod_status(&id).await?) == before, "the same after a restart");
            ensure!(cri.shell(&c, "echo alive").await? == "alive\n");
            ensure!(cri.run_pod(&config).await? == id, "the name is still the pod's");
        }
        cri.start(&created).await?;
        ensure!(cri.shell(&created, "hostname").await? == "pod\n");
        // An exit that nobody saw.
        let host_pid =
            |node: &Node| std::fs::read_to_string(node.state_dir().join("containers").join(&c).join("record.json"));
        ensure!(host_pid(node).is_ok(), "a record is in the state folder");
        node.kill()?;
        let log = node.logs_dir().join("pod/c.log");
        ensure!(std::fs::read_to_string(log)?.contains("up"));
        node.boot()?;
        cri = node.cri()?;
        cri.stop(&c, 1).await?;
        ensure!(cri.status(&c).await?.state() == cri::ContainerState::ContainerExited);
        Ok(())
    });
}

/// One step of a pod's life, as kubelet repeats it after a lost answer.
async fn step(
    cri: &mut Cri,
    node: &Node,
    at: usize,
    pod_id: &mut String,
    id: &mut String,
) -> Result<(), tonic::Status> {
    let config = pod(node, "pod");
    match at {
        0 => cri.pull("manyfiles:zstd").await.map(drop),
        1 => cri.run_pod(&config).await.map(|i| *pod_id = i),
        2 => cri.create(pod_id, container("c", "busybox", "echo up; exec sleep 1000"), &config).await.map(|i| *id = i),
        3 => match cri.start(id).await {
            // The start may have happened before the answer was lost.
            Err(error) if cri.status(id).await.is_ok_and(|s| s.state() == cri::ContainerState::ContainerRunning) => {
                let _ = error;
                Ok(())
            }
            other => other,
        },
        4 => cri.exec(id, &["echo", "hello"], 10).await.map(drop),
        5 => cri.stop(id, 1).await,
        6 => cri.remove(id).await,
        7 => cri.stop_pod(pod_id).await,
        _ => cri.remove_pod(pod_id).await,
    }
}

#[test]
fn a_kill_in_the_middle_of_each_call_is_recovered_from() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        // A daemon's start takes seconds in a guest, and all else longer: fewer instants, further in.
        let instants: &[u64] = if std::env::var_os("KEELSON_TEST_GUEST").is_some() {
            &[6000, 60_000]
        } else {
            &[0, 300, 1000, 2500, 6000]
        };
        for &delay_us in instants {
            let (mut pod_id, mut id) = (String::new(), String::new());
            for at in 0..9 {
                let mut client = cri.clone();
                let (mut p, mut c) = (pod_id.clone(), id.clone());
                let call = step(&mut client, node, at, &mut p, &mut c);
                let _ = tokio::time::timeout(Duration::from_micros(delay_us), call).await;
                node.kill()?;
                node.boot()?;
                cri = node.cri()?;
                let retried = tokio::time::timeout(
                    patience(Duration::from_secs(60)),
                    step(&mut cri, node, at, &mut pod_id, &mut id),
                )
                .await;
                retried
                    .with_context(|| format!("step {at} after a kill at {delay_us} us hangs"))?
                    .with_context(|| format!("step {at} after a kill at {delay_us} us"))?;
            }
            let image = Some(cri::ImageSpec { image: "manyfiles:zstd".into(), ..Default::default() });
            cri.images.remove_image(cri::RemoveImageRequest { image }).await?;
            ensure!(
                cri.runtime
                    .list_containers(cri::ListContainersRequest::default())
                    .await?
                    .into_inner()
                    .containers
                    .is_empty()
            );
            ensure!(
                cri.runtime
                    .list_pod_sandbox(cri::ListPodSandboxRequest::default())
                    .await?
                    .into_inner()
                    .items
                    .is_empty()
            );
        }
        Ok(())
    });
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused_and_the_first_goes_on() {
    scenario(async |node, mut cri| {
        let output = std::process::Command::new(keelson_e2e::node::binary("keelson"))
            .args(["serve", "--root"])
            .arg(node.root_dir())
            .arg("--state")
            .arg(node.state_dir())
            .arg("--socket")
            .arg(node.socket().with_extension("second"))
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && text.contains("another"), "{text}");
        cri.runtime.version(cri::VersionRequest::default()).await?;
        Ok(())
    });
}

#[test]
fn a_dead_shim_is_noticed_and_its_container_ended() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let c = cri.run(&id, container("c", "busybox", "exec sleep 1000"), &config).await?;
        Node::kill_shim(&node.state_dir().join("containers").join(&c))?;
        let status = eventually("the loss of the shim is noticed", async || {
            cri.status(&c).await.ok().filter(|s| s.state() == cri::ContainerState::ContainerExited)
        })
        .await?;
        ensure!(status.exit_code == 255 && status.reason == "Unknown", "{status:?}");
        Ok(())
    });
}
