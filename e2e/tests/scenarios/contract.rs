//! The contract of single RPCs: what is done twice, what is asked of the unknown, what a status holds, which code an error has.

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::{self as cri, ContainerState};
use keelson_e2e::node::{Cri, container, eventually, pod};
use tonic::Code;

use crate::scenario;

async fn reopen(cri: &mut Cri, id: &str) -> Result<(), tonic::Status> {
    cri.runtime.reopen_container_log(cri::ReopenContainerLogRequest { container_id: id.into() }).await.map(drop)
}

#[test]
fn what_is_unknown_can_be_ended_and_not_asked_about() {
    scenario(async |_, mut cri| {
        for id in ["5a".repeat(32), "5a5a".to_owned(), "no-id".to_owned()] {
            cri.stop_pod(&id).await?;
            cri.remove_pod(&id).await?;
            cri.stop(&id, 1).await?;
            cri.remove(&id).await?;
            let image = Some(cri::ImageSpec { image: format!("absent/{id}"), ..Default::default() });
            cri.images.remove_image(cri::RemoveImageRequest { image: image.clone() }).await?;
            let status = cri.images.image_status(cri::ImageStatusRequest { image, verbose: true }).await?.into_inner();
            ensure!(status.image.is_none(), "an absent image is an empty answer");

            let runtime = &mut cri.runtime;
            let verbose = false;
            let container_id = || id.clone();
            let answers = [
                runtime
                    .pod_sandbox_status(cri::PodSandboxStatusRequest { pod_sandbox_id: container_id(), verbose })
                    .await
                    .err(),
                runtime
                    .container_status(cri::ContainerStatusRequest { container_id: container_id(), verbose })
                    .await
                    .err(),
                runtime.start_container(cri::StartContainerRequest { container_id: container_id() }).await.err(),
                runtime
                    .reopen_container_log(cri::ReopenContainerLogRequest { container_id: container_id() })
                    .await
                    .err(),
                runtime.container_stats(cri::ContainerStatsRequest { container_id: container_id() }).await.err(),
                runtime
                    .exec_sync(cri::ExecSyncRequest {
                        container_id: container_id(),
                        cmd: vec!["true".into()],
                        timeout: 1,
                    })
                    .await
                    .err(),
                runtime
                    .update_container_resources(cri::UpdateContainerResourcesRequest {
                        container_id: container_id(),
                        linux: Some(cri::LinuxContainerResources { cpu_shares: 100, ..Default::default() }),
                        ..Default::default()
                    })
                    .await
                    .err(),
                runtime
                    .create_container(cri::CreateContainerRequest {
                        pod_sandbox_id: container_id(),
                        config: Some(container("c", "busybox", "true")),
                        sandbox_config: Some(cri::PodSandboxConfig::default()),
                    })
                    .await
                    .err(),
            ];
            for (n, error) in answers.into_iter().enumerate() {
                let error = error.with_context(|| format!("call {n} about `{id}` must fail"))?;
                ensure!(error.code() == Code::NotFound && error.message().contains(&id), "call {n}: {error:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_beginning_of_an_id_stands_for_just_one_thing() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let mut ids = Vec::new();
        // Of 17 two begin with the same character.
        for n in 0..17 {
            let mut config = pod(node, &format!("pod{n}"));
            let options = cri::NamespaceOption { network: 2, ..Default::default() };
            config.linux.get_or_insert_default().security_context =
                Some(cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() });
            ids.push(cri.run_pod(&config).await?);
        }
        ids.sort();
        let same = ids.windows(2).find(|two| two[0][..1] == two[1][..1]).context("two of 17")?;
        let error = cri.stop_pod(&same[0][..1]).await.err().context("several are meant: none is stopped")?;
        ensure!(error.code() == Code::InvalidArgument && error.message().contains("several"), "{error:?}");
        ensure!(cri.pod_status(&same[0][..1]).await.is_err());
        ensure!(cri.pod_status(&ids[3][..20]).await?.id == ids[3]);
        cri.stop_pod(&ids[3][..20]).await?;
        ensure!(cri.pod_status(&ids[3]).await?.state() == cri::PodSandboxState::SandboxNotready);
        Ok(())
    });
}

#[test]
fn every_verb_is_done_twice_and_a_state_that_does_not_allow_it_is_named() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        ensure!(cri.run_pod(&config).await? == id, "the ready sandbox of the same name");
        let wanted = container("c", "busybox", "exec sleep 1000");
        let c = cri.create(&id, wanted.clone(), &config).await?;
        let error = reopen(&mut cri, &c).await.err().context("it does not run")?;
        ensure!(error.code() == Code::FailedPrecondition && error.message().contains("created"), "{error:?}");
        let error = cri.exec(&c, &["true"], 1).await.err().context("it does not run")?;
        ensure!(error.code() == Code::FailedPrecondition, "{error:?}");
        cri.start(&c).await?;
        reopen(&mut cri, &c).await?;
        reopen(&mut cri, &c).await?;
        cri.stop(&c, 0).await?;
        cri.stop(&c, 0).await?;
        ensure!(cri.create(&id, wanted, &config).await? == c, "its name is taken until it is removed");
        for error in [reopen(&mut cri, &c).await, cri.start(&c).await, cri.exec(&c, &["true"], 1).await.map(drop)] {
            let error = error.err().context("it has ended")?;
            ensure!(error.code() == Code::FailedPrecondition && error.message().contains("exited"), "{error:?}");
        }
        cri.remove(&c).await?;
        cri.remove(&c).await?;
        cri.stop_pod(&id).await?;
        cri.stop_pod(&id).await?;
        let error = cri.run_pod(&config).await.err().context("the name of a stopped sandbox")?;
        ensure!(error.code() == Code::AlreadyExists && error.message().contains(&id), "{error:?}");
        let error = cri.create(&id, container("d", "busybox", "true"), &config).await.err().context("stopped")?;
        ensure!(error.code() == Code::FailedPrecondition, "{error:?}");
        let mut next = config.clone();
        next.metadata.as_mut().context("metadata")?.attempt = 1;
        ensure!(cri.run_pod(&next).await? != id, "the next attempt is another sandbox");
        cri.remove_pod(&id).await?;
        cri.remove_pod(&id).await?;
        ensure!(cri.run_pod(&config).await? != id, "a removed name is free");
        Ok(())
    });
}

#[test]
fn asking_something_of_a_container_that_ends_just_then_is_told_that_it_has_ended() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        for attempt in 0..30 {
            let mut wanted = container("c", "busybox", "usleep 20000");
            wanted.metadata.as_mut().context("metadata")?.attempt = attempt;
            let c = cri.run(&id, wanted, &config).await?;
            let error = loop {
                match reopen(&mut cri, &c).await {
                    Ok(()) => {}
                    Err(error) => break error,
                }
            };
            ensure!(error.code() == Code::FailedPrecondition, "round {attempt}: {error:?}");
            // It may have been told while the exit was being recorded.
            cri.wait_exit(&c).await?;
            cri.remove(&c).await?;
        }
        Ok(())
    });
}

#[test]
fn an_image_has_one_id_wherever_it_is_told_and_goes_with_all_its_names() {
    scenario(async |node, mut cri| {
        let pulled = cri.pull("docker.io/library/busybox:latest").await?;
        ensure!(cri.pull("registry.k8s.io/e2e-test-images/busybox:1.29-2").await? == pulled);
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let c = cri.run(&id, container("c", "docker.io/library/busybox:latest", "exec sleep 1000"), &config).await?;
        let spec = |image: &str| Some(cri::ImageSpec { image: image.into(), ..Default::default() });
        let image = spec("busybox");
        let status = cri.images.image_status(cri::ImageStatusRequest { image, verbose: true }).await?.into_inner();
        ensure!(status.info.values().all(|text| serde_json::from_str::<serde_json::Value>(text).is_ok()));
        let list = cri.images.list_images(cri::ListImagesRequest::default()).await?.into_inner().images;
        let containers =
            cri.runtime.list_containers(cri::ListContainersRequest::default()).await?.into_inner().containers;
        let told = cri.status(&c).await?;
        let ids = [&status.image.as_ref().context("image")?.id, &list[0].id, &containers[0].image_id, &told.image_id];
        ensure!(list.len() == 1 && ids.iter().all(|id| **id == pulled), "{pulled}: {ids:?}");
        ensure!(containers[0].image_ref == told.image_ref && !told.image_ref.is_empty());
        let image = spec("registry.k8s.io/e2e-test-images/busybox:1.29-2");
        let mut removals = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let (mut cri, image) = (cri.clone(), image.clone());
            removals.spawn(async move { cri.images.remove_image(cri::RemoveImageRequest { image }).await.map(drop) });
        }
        while let Some(removed) = removals.join_next().await {
            removed??;
        }
        for name in ["busybox", &pulled, &list[0].repo_digests[0]] {
            let image = spec(name);
            let status = cri.images.image_status(cri::ImageStatusRequest { image, verbose: false }).await?.into_inner();
            ensure!(status.image.is_none(), "`{name}` is still there");
        }
        Ok(())
    });
}

#[test]
fn a_pod_is_told_with_its_containers_and_when_it_was_looked_at() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let mut other = config.clone();
        other.metadata.as_mut().context("metadata")?.uid = "uid-other".into();
        let other = cri.run_pod(&other).await?;
        let stranger = cri.run(&other, container("c", "busybox", "exec sleep 1000"), &config).await?;
        let a = cri.run(&id, container("a", "busybox", "exec sleep 1000"), &config).await?;
        let b = cri.run(&id, container("b", "busybox", "exit 4"), &config).await?;
        let ended = cri.wait_exit(&b).await?;
        let mut last = ended.finished_at.max(cri.status(&stranger).await?.started_at);
        for _ in 0..3 {
            let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
            let answer = cri.runtime.pod_sandbox_status(request).await?.into_inner();
            ensure!(answer.timestamp > last, "each answer is newer than the one before and what it tells of");
            last = answer.timestamp;
            // Newest first, as kubelet needs it.
            ensure!(answer.containers_statuses == [ended.clone(), cri.status(&a).await?], "{answer:?}");
            let status = answer.status.context("status")?;
            ensure!(status.network.is_some_and(|network| !network.ip.is_empty()) && status.created_at > 0);
            ensure!(!answer.info.is_empty(), "details when they are asked for");
            for (key, text) in &answer.info {
                serde_json::from_str::<serde_json::Value>(text).with_context(|| format!("info `{key}` is JSON"))?;
            }
        }
        let request = cri::ContainerStatusRequest { container_id: a.clone(), verbose: true };
        let info = cri.runtime.container_status(request).await?.into_inner().info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("info")?)?;
        ensure!(info["pid"].as_i64().is_some_and(|pid| pid > 1) && info["runtimeSpec"].is_object(), "{info}");
        Ok(())
    });
}

#[test]
fn the_node_is_told_ready_and_takes_its_pods_addresses() {
    scenario(async |_, mut cri| {
        let status = cri.runtime.status(cri::StatusRequest { verbose: true }).await?.into_inner();
        let conditions = status.status.context("status")?.conditions;
        let all: Vec<_> = conditions.iter().map(|it| (it.r#type.as_str(), it.status)).collect();
        ensure!(all == [("RuntimeReady", true), ("NetworkReady", true)], "{conditions:?}");
        ensure!(status.runtime_handlers.iter().any(|handler| handler.name.is_empty()), "the default handler");
        for (key, text) in &status.info {
            serde_json::from_str::<serde_json::Value>(text).with_context(|| format!("info `{key}` is JSON"))?;
        }
        let mut update = async |pod_cidr: &str| {
            let network_config = Some(cri::NetworkConfig { pod_cidr: pod_cidr.into() });
            let runtime_config = Some(cri::RuntimeConfig { network_config });
            cri.runtime.update_runtime_config(cri::UpdateRuntimeConfigRequest { runtime_config }).await
        };
        update("10.7.0.0/24").await?;
        update("10.7.0.0/24,fd00:7::/64").await?;
        update("").await?;
        let error = update("10.7.0.0").await.err().context("no network")?;
        ensure!(error.code() == Code::InvalidArgument && error.message().contains("pod_cidr"), "{error:?}");
        Ok(())
    });
}

#[test]
fn a_caller_whose_time_is_up_changes_nothing() {
    scenario(async |node, mut cri| {
        cri.pull("busybox").await?;
        let config = pod(node, "pod");
        let id = cri.run_pod(&config).await?;
        let c = cri.run(&id, container("c", "busybox", "trap '' TERM; while :; do sleep 1; done"), &config).await?;
        let mut request = tonic::Request::new(cri::StopContainerRequest { container_id: c.clone(), timeout: 2 });
        request.set_timeout(std::time::Duration::from_millis(300));
        let error = cri.runtime.stop_container(request).await.err().context("shorter than the grace")?;
        // This client's own clock says CANCELLED when it is the first.
        let over = |code| matches!(code, Code::DeadlineExceeded | Code::Cancelled);
        ensure!(over(error.code()), "{error:?}");
        eventually("what was begun goes on", async || {
            let status = cri.status(&c).await.ok()?;
            (status.state() == ContainerState::ContainerExited).then_some(())
        })
        .await?;
        ensure!(cri.status(&c).await?.exit_code == 137);
        let mut request = tonic::Request::new(cri::PullImageRequest {
            image: Some(cri::ImageSpec { image: "nginx:latest".into(), ..Default::default() }),
            ..Default::default()
        });
        request.set_timeout(std::time::Duration::from_nanos(1));
        let error = cri.images.pull_image(request).await.err().context("no time at all")?;
        ensure!(over(error.code()), "{error:?}");
        Ok(())
    });
}
