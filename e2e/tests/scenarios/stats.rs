//! Statistics and metrics: numbers move with the load, filters mean what they say, what ended does not fail a list.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use keelson_cri::v1;
use keelson_e2e::{
    newest::Newest,
    node::{Cri, Node, container, eventually, pod},
};

use crate::{scenario, scenario_with};

async fn sandbox(cri: &mut Cri, node: &Node, name: &str) -> Result<(String, cri::PodSandboxConfig)> {
    cri.pull("busybox:latest").await?;
    let config = pod(node, name);
    Ok((cri.run_pod(&config).await?, config))
}

fn number(value: Option<v1::UInt64Value>) -> u64 {
    value.map_or(0, |value| value.value)
}

async fn of_container(newest: &mut Newest, id: &str) -> Result<v1::ContainerStats> {
    let request = v1::ContainerStatsRequest { container_id: id.into() };
    newest.runtime.container_stats(request).await?.into_inner().stats.context("no stats")
}

async fn of_pod(newest: &mut Newest, id: &str) -> Result<v1::LinuxPodSandboxStats> {
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: id.into() };
    let stats = newest.runtime.pod_sandbox_stats(request).await?.into_inner().stats.context("no stats")?;
    stats.linux.context("no linux stats")
}

#[test]
fn numbers_move_with_the_load() {
    scenario_with("[stats]\nwritable_layer_seconds = 1\n", async |node, mut cri| {
        let (pod, config) = sandbox(&mut cri, node, "pod").await?;
        let c = cri.run(&pod, container("c", "busybox:latest", "sleep 1000"), &config).await?;
        let mut newest = Newest::of(node)?;
        let before = of_container(&mut newest, &c).await?;
        let pod_before = of_pod(&mut newest, &pod).await?;
        ensure!(before.attributes.as_ref().is_some_and(|attributes| attributes.id == c), "{before:?}");

        cri.shell(&c, "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done").await?;
        cri.shell(&c, "dd if=/dev/zero of=/dev/shm/held bs=1M count=16 2>/dev/null").await?;
        let addresses = cri.shell(&c, "ip -4 route | awk '/default/ { print $3 }'").await?;
        cri.shell(&c, &format!("ping -c 5 -i 0.05 -s 1000 {} >/dev/null", addresses.trim())).await?;

        let cpu = |stats: &v1::ContainerStats| number(stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds));
        let after = of_container(&mut newest, &c).await?;
        ensure!(cpu(&after) > cpu(&before) + 1_000_000, "{before:?} {after:?}");
        let memory = |stats: &v1::ContainerStats| number(stats.memory.as_ref().and_then(|memory| memory.usage_bytes));
        ensure!(memory(&after) >= memory(&before) + (15 << 20), "{before:?} {after:?}");
        let (cpu, memory) = (after.cpu.context("cpu")?, after.memory.context("memory")?);
        ensure!(cpu.timestamp > 0 && cpu.usage_nano_cores.is_some(), "{cpu:?}");
        ensure!(number(memory.working_set_bytes) > 0 && number(memory.page_faults) > 0, "{memory:?}");
        ensure!(memory.available_bytes.is_none(), "without a limit there is no end to it: {memory:?}");
        if std::path::Path::new("/proc/pressure/cpu").exists() {
            let psi = cpu.psi.context("pressure")?;
            ensure!(psi.some.is_some() && psi.full.is_some() && memory.psi.is_some() && after.io.is_some());
        }

        let pod_after = of_pod(&mut newest, &pod).await?;
        let usage =
            |stats: &v1::LinuxPodSandboxStats| number(stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds));
        ensure!(usage(&pod_after) > usage(&pod_before) + 1_000_000, "{pod_before:?} {pod_after:?}");
        ensure!(number(pod_after.process.context("process")?.process_count) >= 1);
        ensure!(pod_after.containers.len() == 1, "{:?}", pod_after.containers);
        let traffic = |stats: &v1::LinuxPodSandboxStats| -> Result<(u64, u64)> {
            let eth0 = stats.network.as_ref().and_then(|network| network.default_interface.as_ref());
            let eth0 = eth0.context("no default interface")?;
            ensure!(eth0.name == "eth0", "{eth0:?}");
            Ok((number(eth0.rx_bytes), number(eth0.tx_bytes)))
        };
        let ((rx, tx), (rx_before, tx_before)) = (traffic(&pod_after)?, traffic(&pod_before)?);
        ensure!(rx >= rx_before + 5000 && tx >= tx_before + 5000, "{rx_before} {tx_before} {rx} {tx}");

        cri.shell(&c, "dd if=/dev/zero of=/written bs=1M count=3 2>/dev/null; touch /a /b").await?;
        let layer = eventually("the writable layer is measured behind", async || {
            let layer = of_container(&mut newest, &c).await.ok()?.writable_layer?;
            (number(layer.used_bytes) >= 3 << 20).then_some(layer)
        })
        .await?;
        ensure!(number(layer.inodes_used) >= 3 && layer.timestamp > 0, "{layer:?}");
        let root = node.root_dir();
        let mountpoint = layer.fs_id.context("filesystem")?.mountpoint;
        ensure!(mountpoint == root.to_string_lossy(), "{mountpoint}");
        let disk = cri.images.image_fs_info(cri::ImageFsInfoRequest {}).await?.into_inner();
        let used = |list: &[cri::FilesystemUsage]| {
            list.first().map_or(0, |one| one.used_bytes.as_ref().map_or(0, |used| used.value))
        };
        ensure!(used(&disk.container_filesystems) >= 3 << 20, "{disk:?}");
        ensure!(used(&disk.image_filesystems) > 1 << 20, "{disk:?}");
        ensure!(disk.image_filesystems[0].fs_id.as_ref().is_some_and(|id| id.mountpoint == root.to_string_lossy()));
        Ok(())
    });
}

#[test]
fn what_a_pod_without_a_process_has_sent_is_told_by_the_other_end() {
    scenario(async |node, mut cri| {
        let (pod, config) = sandbox(&mut cri, node, "pod").await?;
        let c = cri.run(&pod, container("c", "busybox:latest", "sleep 1000"), &config).await?;
        let mut newest = Newest::of(node)?;
        let gateway = cri.shell(&c, "ip -4 route | awk '/default/ { print $3 }'").await?;
        cri.shell(&c, &format!("ping -c 3 -i 0.05 -s 1400 {} >/dev/null", gateway.trim())).await?;
        let eth0 = async |newest: &mut Newest| -> Result<v1::NetworkInterfaceUsage> {
            let network = of_pod(newest, &pod).await?.network.context("no network")?;
            ensure!(network.interfaces.is_empty(), "{network:?}");
            network.default_interface.context("no interface")
        };
        let inside = eth0(&mut newest).await?;
        cri.stop(&c, 0).await?;
        let outside = eth0(&mut newest).await?;
        // Up to what IPv6 says by itself meanwhile.
        for (one, other) in [(inside.rx_bytes, outside.rx_bytes), (inside.tx_bytes, outside.tx_bytes)] {
            let (one, other) = (number(one), number(other));
            ensure!(one > 4000 && (one..one + 3000).contains(&other), "{inside:?} {outside:?}");
        }

        let mut host = config.clone();
        host.metadata.get_or_insert_default().name = "host".into();
        host.linux.get_or_insert_default().security_context = Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(cri::NamespaceOption { network: 2, pid: 1, ..Default::default() }),
            ..Default::default()
        });
        let host = cri.run_pod(&host).await?;
        ensure!(of_pod(&mut newest, &host).await?.network.is_none(), "the host's traffic is nobody's alone");
        Ok(())
    });
}

#[test]
fn lists_are_filtered_and_do_not_fail_for_what_ends() {
    scenario(async |node, mut cri| {
        let (pod, config) = sandbox(&mut cri, node, "one").await?;
        let (other, other_config) = sandbox(&mut cri, node, "two").await?;
        let labelled = |name: &str| {
            let mut config = container(name, "busybox:latest", "sleep 1000");
            config.labels = [("which".to_owned(), name.to_owned())].into();
            config
        };
        let a = cri.run(&pod, labelled("a"), &config).await?;
        let b = cri.run(&pod, labelled("b"), &config).await?;
        let c = cri.run(&other, labelled("c"), &other_config).await?;
        let created = cri.create(&other, labelled("d"), &other_config).await?;
        let mut newest = Newest::of(node)?;
        let list = async |newest: &mut Newest, filter: v1::ContainerStatsFilter| -> Result<BTreeSet<String>> {
            let request = v1::ListContainerStatsRequest { filter: Some(filter) };
            let stats = newest.runtime.list_container_stats(request).await?.into_inner().stats;
            Ok(stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect())
        };
        let set = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect::<BTreeSet<_>>();
        let filter = v1::ContainerStatsFilter::default;
        ensure!(list(&mut newest, filter()).await? == set(&[&a, &b, &c]), "created ones use nothing yet");
        ensure!(list(&mut newest, v1::ContainerStatsFilter { id: a.clone(), ..filter() }).await? == set(&[&a]));
        let by_pod = v1::ContainerStatsFilter { pod_sandbox_id: pod.clone(), ..filter() };
        ensure!(list(&mut newest, by_pod).await? == set(&[&a, &b]));
        let by_label =
            v1::ContainerStatsFilter { label_selector: [("which".to_owned(), "c".to_owned())].into(), ..filter() };
        ensure!(list(&mut newest, by_label).await? == set(&[&c]));
        let pods = async |newest: &mut Newest, filter: v1::PodSandboxStatsFilter| -> Result<BTreeSet<String>> {
            let request = v1::ListPodSandboxStatsRequest { filter: Some(filter) };
            let stats = newest.runtime.list_pod_sandbox_stats(request).await?.into_inner().stats;
            Ok(stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect())
        };
        ensure!(pods(&mut newest, Default::default()).await? == set(&[&pod, &other]));
        let by_label = v1::PodSandboxStatsFilter {
            label_selector: [("test".to_owned(), "two".to_owned())].into(),
            ..Default::default()
        };
        ensure!(pods(&mut newest, by_label).await? == set(&[&other]));

        // Containers end while lists are read.
        let mut busy = newest.clone();
        let reading = tokio::spawn(async move {
            let begun = Instant::now();
            let mut lists = 0;
            while begun.elapsed().as_millis() < 1500 {
                busy.runtime.list_container_stats(v1::ListContainerStatsRequest::default()).await?;
                busy.runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await?;
                busy.runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await?;
                lists += 1;
            }
            Ok::<_, tonic::Status>(lists)
        });
        for turn in 0..5 {
            let id = cri.run(&pod, labelled(&format!("short-{turn}")), &config).await?;
            cri.stop(&id, 0).await?;
            cri.remove(&id).await?;
        }
        let lists = reading.await??;
        ensure!(lists > 1, "{lists}");
        for id in [&b, &c] {
            cri.stop(id, 0).await?;
        }
        let ended = of_container(&mut newest, &b).await?;
        ensure!(ended.cpu.is_some_and(|cpu| cpu.usage_core_nano_seconds.is_none()), "an ended one uses nothing");
        ensure!(list(&mut newest, filter()).await? == set(&[&a]));
        cri.remove(&created).await?;
        cri.stop_pod(&other).await?;
        ensure!(pods(&mut newest, Default::default()).await? == set(&[&pod]), "only ready ones are listed");
        Ok(())
    });
}

#[test]
fn every_declared_metric_is_emitted_and_nothing_else() {
    scenario(async |node, mut cri| {
        let (pod, config) = sandbox(&mut cri, node, "pod").await?;
        let c = cri.run(&pod, container("c", "busybox:latest", "sleep 1000"), &config).await?;
        let mut newest = Newest::of(node)?;
        let declared = newest.runtime.list_metric_descriptors(v1::ListMetricDescriptorsRequest {}).await?.into_inner();
        let declared: BTreeMap<String, v1::MetricDescriptor> =
            declared.descriptors.into_iter().map(|one| (one.name.clone(), one)).collect();
        ensure!((45..=56).contains(&declared.len()), "{}", declared.len());
        let mut pods = newest.runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await?.into_inner();
        let sandbox = pods.pod_metrics.pop().context("no metrics")?;
        ensure!(pods.pod_metrics.is_empty() && sandbox.pod_sandbox_id == pod);
        ensure!(sandbox.container_metrics.len() == 1 && sandbox.container_metrics[0].container_id == c);
        let all = || sandbox.metrics.iter().chain(&sandbox.container_metrics[0].metrics);
        let emitted: BTreeSet<&str> = all().map(|metric| metric.name.as_str()).collect();
        let names: BTreeSet<&str> = declared.keys().map(String::as_str).collect();
        ensure!(emitted == names, "{:?}", emitted.symmetric_difference(&names).collect::<Vec<_>>());
        for metric in all() {
            let keys = &declared[&metric.name].label_keys;
            ensure!(metric.label_values.len() == keys.len() && metric.timestamp > 0, "{metric:?}");
            ensure!(keys.starts_with(&["pod", "namespace", "container", "id", "image"].map(str::to_owned)), "{keys:?}");
            ensure!(metric.label_values[0] == "pod" && metric.label_values[1] == "default", "{metric:?}");
        }
        let value = |name: &str| all().find(|one| one.name == name).map_or(0, |one| number(one.value));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        ensure!(
            value("container_start_time_seconds").abs_diff(now) < 300
                && value("container_last_seen").abs_diff(now) < 60
        );
        ensure!(value("container_processes") == 1 && value("container_threads") >= 1);
        ensure!(value("container_file_descriptors") >= 3 && value("container_memory_usage_bytes") > 0);
        ensure!(value("container_fs_limit_bytes") > 1 << 20 && value("container_ulimits_soft") >= 256);
        Ok(())
    });
}

/// Prints what a list costs for each container; says nothing about what is fast enough.
#[test]
fn the_cost_of_lists_is_printed() {
    const PODS: usize = 20;
    scenario(async |node, mut cri| {
        for n in 0..PODS {
            let (pod, config) = sandbox(&mut cri, node, &format!("p{n}")).await?;
            cri.run(&pod, container("c", "busybox:latest", "sleep 1000"), &config).await?;
        }
        let mut newest = Newest::of(node)?;
        let pid = node.daemon_pid().context("no daemon")?;
        let spent = || -> Result<f64> {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
            let nanos = tasks.filter_map(|task| {
                let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
                text.split(' ').next()?.parse::<f64>().ok()
            });
            Ok(nanos.sum::<f64>() / 1e6)
        };
        for what in
            ["ListPodSandbox", "ListContainers", "ListContainerStats", "ListPodSandboxStats", "ListPodSandboxMetrics"]
        {
            let (turns, mut begun, mut cpu) = (20u32, Instant::now(), spent()?);
            for turn in 0..=turns {
                if turn == 1 {
                    // The first opens files.
                    (begun, cpu) = (Instant::now(), spent()?);
                }
                let runtime = &mut newest.runtime;
                match what {
                    "ListPodSandbox" => drop(runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?),
                    "ListContainers" => drop(runtime.list_containers(v1::ListContainersRequest::default()).await?),
                    "ListContainerStats" => {
                        drop(runtime.list_container_stats(v1::ListContainerStatsRequest::default()).await?);
                    }
                    "ListPodSandboxStats" => {
                        drop(runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await?);
                    }
                    _ => drop(runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await?),
                }
            }
            let calls = f64::from(turns);
            let wall = begun.elapsed().as_secs_f64() * 1e3 / calls;
            let per = (spent()? - cpu) * 1e3 / calls / 20.0;
            eprintln!(
                "{what}: {wall:.2} ms a call at {PODS} pods, {per:.0} us CPU of the daemon for each (debug build)"
            );
        }
        Ok(())
    });
}
