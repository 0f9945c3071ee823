//! Lists as streams: the same things as the unary lists have, under the same filters, in messages that stay small.

use anyhow::{Context, Result, ensure};
use keelson_cri::v1::{self, ContainerState, PodSandboxState};
use keelson_e2e::{
    newest::Newest,
    node::{container, pod},
};
use prost::Message;
use tonic::{Status, Streaming};

use crate::scenario;

/// All messages of a stream, to its end.
async fn all<M>(stream: Result<tonic::Response<Streaming<M>>, Status>) -> Result<Vec<M>> {
    let mut stream = stream?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

async fn sandboxes(newest: &mut Newest, filter: v1::PodSandboxFilter) -> Result<Vec<v1::PodSandbox>> {
    let filter = Some(filter);
    let request = v1::StreamPodSandboxesRequest { filter: filter.clone() };
    let messages = all(newest.runtime.stream_pod_sandboxes(request).await).await?;
    ensure!(messages.iter().all(|message| !message.pod_sandboxes.is_empty()), "a message has an item");
    let streamed: Vec<_> = messages.into_iter().flat_map(|message| message.pod_sandboxes).collect();
    let unary = newest.runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter }).await?.into_inner().items;
    ensure!(streamed == unary, "{streamed:?}\n{unary:?}");
    Ok(streamed)
}

async fn containers(newest: &mut Newest, filter: v1::ContainerFilter) -> Result<Vec<v1::Container>> {
    let filter = Some(filter);
    let messages =
        all(newest.runtime.stream_containers(v1::StreamContainersRequest { filter: filter.clone() }).await).await?;
    ensure!(messages.iter().all(|message| !message.containers.is_empty()), "a message has an item");
    let streamed: Vec<_> = messages.into_iter().flat_map(|message| message.containers).collect();
    let unary = newest.runtime.list_containers(v1::ListContainersRequest { filter }).await?.into_inner().containers;
    ensure!(streamed == unary, "{streamed:?}\n{unary:?}");
    Ok(streamed)
}

/// Whose numbers; the numbers themselves differ from moment to moment.
async fn stats(newest: &mut Newest, filter: v1::ContainerStatsFilter) -> Result<Vec<String>> {
    let filter = Some(filter);
    let request = v1::StreamContainerStatsRequest { filter: filter.clone() };
    let messages = all(newest.runtime.stream_container_stats(request).await).await?;
    ensure!(messages.iter().all(|message| !message.container_stats.is_empty()), "a message has an item");
    let id = |stats: v1::ContainerStats| {
        let used = stats.cpu.is_some() && stats.memory.is_some();
        used.then_some(stats.attributes).flatten().map(|attributes| attributes.id).context("numbers of somebody")
    };
    let streamed =
        messages.into_iter().flat_map(|message| message.container_stats).map(id).collect::<Result<Vec<_>>>()?;
    let unary = newest.runtime.list_container_stats(v1::ListContainerStatsRequest { filter }).await?.into_inner().stats;
    ensure!(streamed == unary.into_iter().map(id).collect::<Result<Vec<_>>>()?);
    Ok(streamed)
}

async fn sandbox_stats(newest: &mut Newest, filter: v1::PodSandboxStatsFilter) -> Result<Vec<String>> {
    let filter = Some(filter);
    let request = v1::StreamPodSandboxStatsRequest { filter: filter.clone() };
    let messages = all(newest.runtime.stream_pod_sandbox_stats(request).await).await?;
    ensure!(messages.iter().all(|message| !message.pod_sandbox_stats.is_empty()), "a message has an item");
    let id =
        |stats: v1::PodSandboxStats| stats.attributes.map(|attributes| attributes.id).context("numbers of somebody");
    let streamed =
        messages.into_iter().flat_map(|message| message.pod_sandbox_stats).map(id).collect::<Result<Vec<_>>>()?;
    let request = v1::ListPodSandboxStatsRequest { filter };
    let unary = newest.runtime.list_pod_sandbox_stats(request).await?.into_inner().stats;
    ensure!(streamed == unary.into_iter().map(id).collect::<Result<Vec<_>>>()?);
    Ok(streamed)
}

/// Whose metrics, with those of which containers.
async fn metrics(newest: &mut Newest) -> Result<Vec<(String, Vec<String>)>> {
    let messages = all(newest.runtime.stream_pod_sandbox_metrics(v1::StreamPodSandboxMetricsRequest {}).await).await?;
    ensure!(messages.iter().all(|message| !message.pod_sandbox_metrics.is_empty()), "a message has an item");
    let ids = |list: Vec<v1::PodSandboxMetrics>| -> Vec<_> {
        let containers = |metrics: Vec<v1::ContainerMetrics>| metrics.into_iter().map(|it| it.container_id).collect();
        list.into_iter().map(|it| (it.pod_sandbox_id, containers(it.container_metrics))).collect()
    };
    let streamed = ids(messages.into_iter().flat_map(|message| message.pod_sandbox_metrics).collect());
    let unary = newest.runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await?.into_inner();
    ensure!(streamed == ids(unary.pod_metrics));
    Ok(streamed)
}

async fn images(newest: &mut Newest, name: &str) -> Result<Vec<String>> {
    let filter = v1::ImageFilter { image: Some(v1::ImageSpec { image: name.into(), ..Default::default() }) };
    let filter = (!name.is_empty()).then_some(filter);
    let messages = all(newest.images.stream_images(v1::StreamImagesRequest { filter: filter.clone() }).await).await?;
    ensure!(messages.iter().all(|message| !message.images.is_empty()), "a message has an item");
    let streamed: Vec<_> = messages.into_iter().flat_map(|message| message.images).collect();
    let unary = newest.images.list_images(v1::ListImagesRequest { filter }).await?.into_inner().images;
    ensure!(streamed == unary, "{streamed:?}\n{unary:?}");
    Ok(streamed.into_iter().map(|image| image.id).collect())
}

#[test]
fn streamed_lists_have_what_the_others_have_under_every_filter() {
    scenario(async |node, mut cri| {
        let mut newest = Newest::of(node)?;
        ensure!(sandboxes(&mut newest, Default::default()).await?.is_empty());
        ensure!(containers(&mut newest, Default::default()).await?.is_empty());
        ensure!(stats(&mut newest, Default::default()).await?.is_empty());
        ensure!(sandbox_stats(&mut newest, Default::default()).await?.is_empty());
        ensure!(images(&mut newest, "").await?.is_empty());
        ensure!(metrics(&mut newest).await?.is_empty());

        let busybox = cri.pull("busybox").await?;
        let nginx = cri.pull("nginx:latest").await?;
        ensure!(images(&mut newest, "").await?.len() == 2);
        ensure!(
            images(&mut newest, "busybox").await? == [busybox.as_str()]
                && images(&mut newest, &nginx).await? == [nginx.as_str()]
        );
        ensure!(images(&mut newest, "absent").await?.is_empty());

        let (one, two) = (pod(node, "one"), pod(node, "two"));
        let (p1, p2) = (cri.run_pod(&one).await?, cri.run_pod(&two).await?);
        let labelled = |name: &str, script: &str| {
            let mut config = container(name, "busybox", script);
            config.labels = [("name".to_owned(), name.to_owned())].into();
            config
        };
        let a = cri.run(&p1, labelled("a", "exec sleep 1000"), &one).await?;
        let b = cri.run(&p1, labelled("b", "exit 0"), &one).await?;
        let c = cri.run(&p2, labelled("c", "exec sleep 1000"), &two).await?;
        let d = cri.create(&p2, labelled("d", "exec sleep 1000"), &two).await?;
        cri.wait_exit(&b).await?;

        let ids = |list: Vec<v1::Container>| -> Vec<String> { list.into_iter().map(|it| it.id).collect() };
        ensure!(ids(containers(&mut newest, Default::default()).await?) == [a.as_str(), &b, &c, &d]);
        let state = |state: ContainerState| Some(v1::ContainerStateValue { state: state.into() });
        for (filter, want) in [
            (v1::ContainerFilter { id: a[..10].into(), ..Default::default() }, vec![&a]),
            (v1::ContainerFilter { id: "zz".into(), ..Default::default() }, vec![]),
            (v1::ContainerFilter { pod_sandbox_id: p1.clone(), ..Default::default() }, vec![&a, &b]),
            (
                v1::ContainerFilter { state: state(ContainerState::ContainerRunning), ..Default::default() },
                vec![&a, &c],
            ),
            (v1::ContainerFilter { state: state(ContainerState::ContainerExited), ..Default::default() }, vec![&b]),
            (v1::ContainerFilter { state: state(ContainerState::ContainerCreated), ..Default::default() }, vec![&d]),
            (
                v1::ContainerFilter {
                    label_selector: [("name".to_owned(), "c".to_owned())].into(),
                    pod_sandbox_id: p2.clone(),
                    ..Default::default()
                },
                vec![&c],
            ),
        ] {
            ensure!(ids(containers(&mut newest, filter.clone()).await?).iter().eq(want), "{filter:?}");
        }
        for (filter, want) in [
            (v1::ContainerStatsFilter::default(), vec![&a, &c]),
            (v1::ContainerStatsFilter { id: c[..8].into(), ..Default::default() }, vec![&c]),
            (v1::ContainerStatsFilter { pod_sandbox_id: p1.clone(), ..Default::default() }, vec![&a]),
        ] {
            ensure!(stats(&mut newest, filter.clone()).await?.iter().eq(want), "{filter:?}");
        }
        let label_selector = [("test".to_owned(), "two".to_owned())].into();
        ensure!(
            sandbox_stats(&mut newest, v1::PodSandboxStatsFilter { label_selector, ..Default::default() }).await?
                == [p2.as_str()]
        );

        let told = metrics(&mut newest).await?;
        ensure!(told == [(p1.clone(), vec![a.clone()]), (p2.clone(), vec![c.clone()])], "{told:?}");

        cri.stop_pod(&p1).await?;
        let state = |state: PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
        let ids = |list: Vec<v1::PodSandbox>| -> Vec<String> { list.into_iter().map(|it| it.id).collect() };
        for (filter, want) in [
            (v1::PodSandboxFilter::default(), vec![&p1, &p2]),
            (v1::PodSandboxFilter { id: p2[..13].into(), ..Default::default() }, vec![&p2]),
            (v1::PodSandboxFilter { state: state(PodSandboxState::SandboxNotready), ..Default::default() }, vec![&p1]),
            (
                v1::PodSandboxFilter {
                    label_selector: [("test".to_owned(), "two".to_owned())].into(),
                    ..Default::default()
                },
                vec![&p2],
            ),
        ] {
            ensure!(ids(sandboxes(&mut newest, filter.clone()).await?).iter().eq(want), "{filter:?}");
        }
        let wrong = v1::PodSandboxFilter { state: Some(v1::PodSandboxStateValue { state: 7 }), ..Default::default() };
        let error = newest.runtime.stream_pod_sandboxes(v1::StreamPodSandboxesRequest { filter: Some(wrong) }).await;
        let error = error.err().context("an unknown state must be refused")?;
        ensure!(error.code() == tonic::Code::InvalidArgument && error.message().contains("filter.state"), "{error:?}");
        Ok(())
    });
}

#[test]
fn a_list_above_the_largest_message_streams_whole_in_small_ones() {
    scenario(async |node, mut cri| {
        const PODS: usize = 70;
        let mut configs = Vec::new();
        for n in 0..PODS {
            let mut config = pod(node, &format!("pod{n}"));
            config.annotations = [("large".to_owned(), "x".repeat(250 * 1024))].into();
            let options = k8s_cri::v1::NamespaceOption { network: 2, ..Default::default() };
            config.linux.get_or_insert_default().security_context = Some(k8s_cri::v1::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            });
            cri.run_pod(&config).await?;
            configs.push(config);
        }
        let mut newest = Newest::of(node)?;
        let error = newest.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await;
        ensure!(error.is_err(), "17 MB in one message: no client takes it");
        let messages = all(newest.runtime.stream_pod_sandboxes(v1::StreamPodSandboxesRequest::default()).await).await?;
        let largest = messages.iter().map(Message::encoded_len).max().unwrap_or_default();
        ensure!(largest <= 512 * 1024 && messages.len() >= PODS / 2, "{} messages, {largest} bytes", messages.len());
        let items: Vec<_> = messages.into_iter().flat_map(|message| message.pod_sandboxes).collect();
        ensure!(items.len() == PODS);
        for (item, config) in items.iter().zip(&configs) {
            cri.remove_pod(&item.id).await?;
            ensure!(
                item.annotations == config.annotations && item.state() == PodSandboxState::SandboxReady,
                "{}",
                item.id
            );
        }
        Ok(())
    });
}
