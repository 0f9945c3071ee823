//! Statistics in CRI's messages: every field in its place, and absent where nothing is known.

use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::{
    cri::{container_view::tests::view as container_view, sandbox_view::tests::view as sandbox_view},
    stats::Traffic,
};

fn usage() -> Usage {
    let line = |total_ns| Average { avg10: 1.5, avg60: 0.5, avg300: 0.25, total_ns };
    let pressure = |total_ns| Some(Pressure { some: line(total_ns), full: line(total_ns + 1) });
    Usage {
        timestamp: 7,
        cpu_ns: 1_000,
        cpu_nano_cores: Some(50),
        memory_usage: 900,
        memory_working_set: 800,
        memory_available: Some(100),
        memory_rss: 700,
        page_faults: 3,
        major_page_faults: 2,
        swap_usage: Some(60),
        swap_available: None,
        tasks: 4,
        cpu_pressure: pressure(10),
        memory_pressure: pressure(20),
        io_pressure: pressure(30),
    }
}

fn number(value: Option<v1::UInt64Value>) -> Option<u64> {
    value.map(|value| value.value)
}

#[test]
fn every_field_of_a_container_is_in_its_place() {
    let layer = FsUse { mountpoint: "/var/lib/keelson".into(), used_bytes: 5, inodes_used: 6, timestamp: 8 };
    let stats = ContainerStats { timestamp: 1, usage: Some(usage()), writable_layer: Some(layer) };
    let message = container(&container_view(), &stats);
    let (cpu, memory) = (message.cpu.unwrap(), message.memory.unwrap());
    assert_eq!(
        (cpu.timestamp, number(cpu.usage_core_nano_seconds), number(cpu.usage_nano_cores)),
        (7, Some(1000), Some(50))
    );
    // Nanoseconds already: the kernel's microseconds were turned into them where the file is read.
    let psi = cpu.psi.unwrap();
    assert_eq!((psi.some.unwrap().total, psi.full.unwrap().total), (10, 11));
    assert_eq!((number(memory.usage_bytes), number(memory.working_set_bytes)), (Some(900), Some(800)));
    assert_eq!((number(memory.available_bytes), number(memory.rss_bytes)), (Some(100), Some(700)));
    assert_eq!((number(memory.page_faults), number(memory.major_page_faults)), (Some(3), Some(2)));
    assert_eq!(memory.psi.unwrap().some.unwrap().avg10, 1.5);
    let swap = message.swap.unwrap();
    assert_eq!((number(swap.swap_usage_bytes), number(swap.swap_available_bytes)), (Some(60), None));
    assert_eq!(message.io.unwrap().psi.unwrap().some.unwrap().total, 30);
    let layer = message.writable_layer.unwrap();
    assert_eq!((layer.timestamp, number(layer.used_bytes), number(layer.inodes_used)), (8, Some(5), Some(6)));
    assert_eq!(layer.fs_id.unwrap().mountpoint, "/var/lib/keelson");
}

#[test]
fn what_is_not_known_is_absent() {
    let message = container(&container_view(), &ContainerStats { timestamp: 1, ..Default::default() });
    assert_eq!(message.cpu, Some(v1::CpuUsage { timestamp: 1, ..Default::default() }));
    assert_eq!(message.memory, Some(v1::MemoryUsage { timestamp: 1, ..Default::default() }));
    assert_eq!((message.swap, message.io, message.writable_layer), (None, None, None));
}

#[test]
fn a_sandbox_has_its_network_and_its_containers() {
    let interface =
        |name: &str, rx_bytes| Interface { name: name.into(), traffic: Traffic { rx_bytes, ..Traffic::default() } };
    let network = Network { timestamp: 9, default: Some(interface("eth0", 1)), others: vec![interface("tun0", 2)] };
    let stats = SandboxStats {
        view: Arc::new(sandbox_view()),
        timestamp: 1,
        usage: Some(usage()),
        network: Some(network),
        containers: vec![(Arc::new(container_view()), ContainerStats::default())],
    };
    let linux = sandbox(&stats).linux.unwrap();
    let network = linux.network.unwrap();
    let found: BTreeMap<_, _> = network
        .default_interface
        .into_iter()
        .chain(network.interfaces)
        .map(|interface| (interface.name, interface.rx_bytes.unwrap().value))
        .collect();
    assert_eq!((network.timestamp, found), (9, [("eth0".into(), 1), ("tun0".into(), 2)].into()));
    assert_eq!(number(linux.process.unwrap().process_count), Some(4));
    assert_eq!((linux.containers.len(), linux.io.is_some()), (1, true));
}
