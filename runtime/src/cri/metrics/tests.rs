//! What is declared is emitted, name for name and label for label, in whole seconds and with the right kinds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::*;
use crate::{
    cri::{container_view::tests::view as container_view, sandbox_view::tests::view as sandbox_view},
    stats::{
        Average, Counts, Device, Filesystem, FsUse, HugepageStats, Interface, Network, Pressure, Processes, Traffic,
    },
};

/// The names that critest looks for, without their common beginning.
const NAMES: &str = "blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total \
    cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors \
    fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total \
    fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen memory_cache memory_failcnt memory_failures_total \
    memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes \
    memory_working_set_bytes network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total \
    network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total \
    network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total \
    pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total \
    pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total processes \
    sockets spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes \
    spec_memory_swap_limit_bytes start_time_seconds threads threads_max ulimits_soft";

const EVERYTHING: Counted = Counted { pressure: true, hugepages: true, hugepage_peaks: true };

fn detail() -> SandboxDetail {
    let line = |total_ns| Average { total_ns, ..Average::default() };
    let pressure = Some(Pressure { some: line(9_900_000_000), full: line(1_999_999_999) });
    let mut counts = Counts {
        cpu_usage_ns: 3_700_000_000,
        cpu_pressure: pressure,
        memory_pressure: pressure,
        io_pressure: pressure,
        hugepages: vec![HugepageStats { size: "2MB".into(), usage: 1, peak: Some(2) }],
        ..Counts::default()
    };
    counts.memory.page_faults = 5;
    counts.memory.own_page_faults = 4;
    let device = Device { name: "/dev/nowhere".into(), major: 0, minor: 4711 };
    let container = ContainerDetail {
        view: Arc::new(container_view()),
        timestamp: 1_700_000_000_123_456_789,
        cgroup: "/kubepods/podu/c".into(),
        counts,
        processes: Processes { files_limit: Some(1024), ..Processes::default() },
        writable_layer: Some(FsUse::default()),
        filesystem: Arc::new(Filesystem { device: device.clone(), disk: device, size: 1, inodes: 2, inodes_free: 1 }),
    };
    let interface =
        |name: &str| Interface { name: name.into(), traffic: Traffic { rx_bytes: 77, ..Traffic::default() } };
    SandboxDetail {
        view: Arc::new(sandbox_view()),
        timestamp: 5,
        cgroup: "/kubepods/podu".into(),
        network: Some(Network { timestamp: 6, default: Some(interface("eth0")), others: vec![interface("tun0")] }),
        containers: vec![container],
    }
}

fn emitted(message: &v1::PodSandboxMetrics) -> impl Iterator<Item = &v1::Metric> {
    message.metrics.iter().chain(message.container_metrics.iter().flat_map(|container| &container.metrics))
}

#[test]
fn the_names_are_those_the_field_asks_for() {
    let wanted: BTreeSet<String> = NAMES.split_ascii_whitespace().map(|name| format!("container_{name}")).collect();
    let declared: BTreeSet<String> = declared(EVERYTHING).into_iter().map(|one| one.name).collect();
    assert_eq!((wanted.len(), &declared), (56, &wanted));
}

#[test]
fn what_is_declared_is_emitted_with_its_labels_and_nothing_else_is() {
    for counted in [
        EVERYTHING,
        Counted { hugepage_peaks: false, ..EVERYTHING },
        Counted { pressure: false, hugepages: false, hugepage_peaks: false },
    ] {
        let declared: BTreeMap<String, v1::MetricDescriptor> =
            declared(counted).into_iter().map(|one| (one.name.clone(), one)).collect();
        let message = encode(&detail(), counted);
        let names: BTreeSet<&str> = emitted(&message).map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, declared.keys().map(String::as_str).collect());
        for metric in emitted(&message) {
            let descriptor = &declared[&metric.name];
            assert!(!descriptor.help.is_empty() && descriptor.label_keys.len() >= BASE.len());
            assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{}", metric.name);
            assert!(metric.timestamp > 0 && metric.value.is_some(), "{}", metric.name);
            let counter = match metric.name.as_str() {
                "container_memory_failcnt" => true,
                "container_fs_inodes_total" => false,
                name => name.ends_with("_total"),
            };
            assert_eq!(metric.metric_type == i32::from(v1::MetricType::Counter), counter, "{}", metric.name);
        }
    }
}

#[test]
fn no_two_samples_of_a_metric_have_the_same_labels() {
    let message = encode(&detail(), EVERYTHING);
    let mut seen = BTreeSet::new();
    for metric in emitted(&message) {
        assert!(seen.insert((metric.name.clone(), metric.label_values.clone())), "{metric:?}");
    }
}

#[test]
fn labels_say_whose_a_sample_is() {
    let message = encode(&detail(), EVERYTHING);
    let find = |name: &str| -> Vec<(Vec<String>, u64)> {
        emitted(&message)
            .filter(|metric| metric.name == format!("container_{name}"))
            .map(|metric| (metric.label_values.clone(), metric.value.unwrap().value))
            .collect()
    };
    let container = container_view().id.to_string();
    let cpu = vec!["web".to_owned(), "ns".into(), "app".into(), "/kubepods/podu/c".into(), "busybox".into(), container];
    assert_eq!(find("cpu_usage_seconds_total"), [(cpu, 3)]);
    let network = find("network_receive_bytes_total");
    assert_eq!(network.len(), 2);
    assert_eq!(network[0].0[..5], ["web", "ns", "", "/kubepods/podu", ""].map(str::to_owned));
    assert_eq!((network[0].0[6].as_str(), network[1].0[6].as_str(), network[0].1), ("eth0", "tun0", 77));
    let faults: Vec<_> =
        find("memory_failures_total").into_iter().map(|(labels, value)| (labels[6..].join(" "), value)).collect();
    assert_eq!(faults[..2], [("pgfault container".to_owned(), 4), ("pgfault hierarchy".to_owned(), 5)]);
    assert_eq!(find("pressure_cpu_stalled_seconds_total")[0].1, 1);
    assert_eq!(find("pressure_io_waiting_seconds_total")[0].1, 9);
    // The disk of the writable layer is there before the first byte.
    assert_eq!(find("fs_reads_total")[0].0[6], "0:4711");
}

#[test]
fn a_pod_on_the_hosts_network_has_no_traffic_of_its_own() {
    let message = encode(&SandboxDetail { network: None, ..detail() }, EVERYTHING);
    assert!(message.metrics.is_empty() && message.container_metrics.len() == 1);
}
