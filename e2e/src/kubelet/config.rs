//! What the kubelet of a scenario is configured with: nothing outside its own folders, ports and cgroups, and short periods.
//! Pure. Owns nothing. Must never let it touch the machine's firewall, or evict for a disk that is not ours.

use std::path::Path;

use serde_json::{Value, json};

/// A `KubeletConfiguration` (v1beta1) for the scratch folder, its cgroup root, its port and the runtime's endpoint, with `settings` over it.
pub(super) fn configuration(dir: &Path, cgroup: &str, port: u16, endpoint: &str, settings: &Value) -> Value {
    let at = |name: &str| dir.join(name).display().to_string();
    let mut config = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "containerRuntimeEndpoint": endpoint,
        "address": "127.0.0.1",
        "port": port,
        "readOnlyPort": 0,
        "healthzPort": 0,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "staticPodPath": at("pods"),
        "fileCheckFrequency": "1s",
        "syncFrequency": "2s",
        "podLogsDir": at("logs"),
        "volumePluginDir": at("plugins"),
        "resolvConf": at("resolv.conf"),
        "cgroupRoot": format!("/{cgroup}"),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": ["pods"],
        "failCgroupV1": false,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "registerNode": false,
        // The machine's disk may be as full as it likes.
        "evictionHard": { "memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%" },
        "imageGCHighThresholdPercent": 100,
        "crashLoopBackOff": { "maxContainerRestartPeriod": "2s" },
        "serializeImagePulls": false,
        "shutdownGracePeriod": "0s",
        "featureGates": { "EventedPLEG": true, "PodAndContainerStatsFromCRI": true, "CRIListStreaming": true },
    });
    merge(&mut config, settings.clone());
    config
}

/// Lays one object over another, key by key.
pub(super) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
