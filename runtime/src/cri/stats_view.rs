//! What a container uses, made into CRI's message of it.
//! Pure, in any task of the daemon. Owns nothing.
//! Must never invent a value: what the host does not tell is absent, not 0.

use keelson_cri::v1;

use super::{container_view, sandbox_view::map};
use crate::{
    container::ContainerView,
    stats::{ContainerStats, FsUse, Pressure, PressureLine},
};

pub(super) fn encode(view: &ContainerView, stats: &ContainerStats) -> v1::ContainerStats {
    let timestamp = stats.timestamp;
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: view.id.to_string(),
            metadata: Some(container_view::metadata(&view.spec)),
            labels: map(&view.spec.labels),
            annotations: map(&view.spec.annotations),
        }),
        cpu: Some(v1::CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(stats.cpu_usage_ns),
            usage_nano_cores: value(stats.cpu_nano_cores),
            psi: stats.cpu_pressure.map(pressure),
        }),
        memory: Some(v1::MemoryUsage {
            timestamp,
            working_set_bytes: value(stats.memory_working_set),
            available_bytes: value(stats.memory_available),
            usage_bytes: value(stats.memory_usage),
            rss_bytes: value(stats.memory_rss),
            page_faults: value(stats.page_faults),
            major_page_faults: value(stats.major_page_faults),
            psi: stats.memory_pressure.map(pressure),
        }),
        writable_layer: stats.writable_layer.as_ref().map(filesystem),
        swap: (stats.swap_usage.is_some() || stats.swap_available.is_some()).then(|| v1::SwapUsage {
            timestamp,
            swap_available_bytes: value(stats.swap_available),
            swap_usage_bytes: value(stats.swap_usage),
        }),
        io: stats.io_pressure.map(|psi| v1::IoUsage { timestamp, psi: Some(pressure(psi)) }),
    }
}

fn value(value: Option<u64>) -> Option<v1::UInt64Value> {
    value.map(|value| v1::UInt64Value { value })
}

fn filesystem(used: &FsUse) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: used.timestamp,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: used.mountpoint.to_string_lossy().into_owned() }),
        used_bytes: value(Some(used.used_bytes)),
        inodes_used: value(Some(used.inodes_used)),
    }
}

fn pressure(pressure: Pressure) -> v1::PsiStats {
    // The kernel counts microseconds, CRI nanoseconds.
    let line = |line: PressureLine| v1::PsiData {
        total: line.total.saturating_mul(1000),
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    v1::PsiStats { full: Some(line(pressure.full)), some: Some(line(pressure.some)) }
}
