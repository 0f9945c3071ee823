//! What containers and sandboxes use, made into CRI's messages of it.
//! Pure, in any task of the daemon. Owns nothing.
//! Must never invent a value: what the host does not tell is absent, not 0.

use keelson_cri::v1;

use super::{container_view, sandbox_spec, sandbox_view::map};
use crate::{
    container::ContainerView,
    stats::{Average, ContainerStats, FsUse, Interface, Network, Pressure, SandboxStats, Usage},
};

pub(super) fn container(view: &ContainerView, stats: &ContainerStats) -> v1::ContainerStats {
    let usage = stats.usage.as_ref();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: view.id.to_string(),
            metadata: Some(container_view::metadata(&view.spec)),
            labels: map(&view.spec.labels),
            annotations: map(&view.spec.annotations),
        }),
        cpu: Some(cpu(stats.timestamp, usage)),
        memory: Some(memory(stats.timestamp, usage)),
        writable_layer: stats.writable_layer.as_ref().map(filesystem),
        swap: usage.and_then(|usage| {
            (usage.swap_usage.is_some() || usage.swap_available.is_some()).then(|| v1::SwapUsage {
                timestamp: usage.timestamp,
                swap_available_bytes: usage.swap_available.map(value),
                swap_usage_bytes: usage.swap_usage.map(value),
            })
        }),
        io: usage.and_then(io),
    }
}

pub(super) fn sandbox(stats: &SandboxStats) -> v1::PodSandboxStats {
    let (view, usage) = (&stats.view, stats.usage.as_ref());
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: view.id.to_string(),
            metadata: Some(sandbox_spec::encode_key(&view.spec.key)),
            labels: map(&view.spec.labels),
            annotations: map(&view.spec.annotations),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: Some(cpu(stats.timestamp, usage)),
            memory: Some(memory(stats.timestamp, usage)),
            network: stats.network.as_ref().map(network),
            process: Some(v1::ProcessUsage {
                timestamp: usage.map_or(stats.timestamp, |usage| usage.timestamp),
                process_count: usage.map(|usage| value(usage.tasks)),
            }),
            containers: stats.containers.iter().map(|(view, stats)| container(view, stats)).collect(),
            io: usage.and_then(io),
        }),
        windows: None,
    }
}

/// Without a reading, `asked` says when there was none.
fn cpu(asked: i64, usage: Option<&Usage>) -> v1::CpuUsage {
    let Some(usage) = usage else { return v1::CpuUsage { timestamp: asked, ..Default::default() } };
    v1::CpuUsage {
        timestamp: usage.timestamp,
        usage_core_nano_seconds: Some(value(usage.cpu_ns)),
        usage_nano_cores: usage.cpu_nano_cores.map(value),
        psi: usage.cpu_pressure.as_ref().map(pressure),
    }
}

fn memory(asked: i64, usage: Option<&Usage>) -> v1::MemoryUsage {
    let Some(usage) = usage else { return v1::MemoryUsage { timestamp: asked, ..Default::default() } };
    v1::MemoryUsage {
        timestamp: usage.timestamp,
        working_set_bytes: Some(value(usage.memory_working_set)),
        available_bytes: usage.memory_available.map(value),
        usage_bytes: Some(value(usage.memory_usage)),
        rss_bytes: Some(value(usage.memory_rss)),
        page_faults: Some(value(usage.page_faults)),
        major_page_faults: Some(value(usage.major_page_faults)),
        psi: usage.memory_pressure.as_ref().map(pressure),
    }
}

fn io(usage: &Usage) -> Option<v1::IoUsage> {
    let psi = usage.io_pressure.as_ref()?;
    Some(v1::IoUsage { timestamp: usage.timestamp, psi: Some(pressure(psi)) })
}

fn network(network: &Network) -> v1::NetworkUsage {
    let interface = |interface: &Interface| v1::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: Some(value(interface.traffic.rx_bytes)),
        rx_errors: Some(value(interface.traffic.rx_errors)),
        tx_bytes: Some(value(interface.traffic.tx_bytes)),
        tx_errors: Some(value(interface.traffic.tx_errors)),
    };
    v1::NetworkUsage {
        timestamp: network.timestamp,
        default_interface: network.default.as_ref().map(interface),
        interfaces: network.others.iter().map(interface).collect(),
    }
}

fn value(value: u64) -> v1::UInt64Value {
    v1::UInt64Value { value }
}

pub(super) fn filesystem(used: &FsUse) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: used.timestamp,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: used.mountpoint.to_string_lossy().into_owned() }),
        used_bytes: Some(value(used.used_bytes)),
        inodes_used: Some(value(used.inodes_used)),
    }
}

fn pressure(pressure: &Pressure) -> v1::PsiStats {
    let line = |line: &Average| v1::PsiData {
        total: line.total_ns,
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    v1::PsiStats { full: Some(line(&pressure.full)), some: Some(line(&pressure.some)) }
}

#[cfg(test)]
mod tests;
