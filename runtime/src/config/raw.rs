//! The configuration file exactly as written: names and TOML types, nothing checked beyond them.
//! Plain data on the daemon's main thread at start, and in `keelson config check`.
//! Owns the list of keys (by serde, unknown keys refused). Must never be read by anything but `config/check.rs`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) root: Option<String>,
    pub(super) state: Option<String>,
    pub(super) socket: Option<String>,
    pub(super) shim: Option<String>,
    pub(super) log: RawLog,
    pub(super) metrics: RawMetrics,
    pub(super) traces: RawTraces,
    pub(super) images: RawImages,
    pub(super) network: RawNetwork,
    pub(super) streaming: RawStreaming,
    pub(super) cgroup: RawCgroup,
    pub(super) containers: RawContainers,
    pub(super) records: RawRecords,
    pub(super) stats: RawStats,
    pub(super) checkpoint: RawCheckpoint,
    pub(super) runtimes: BTreeMap<String, RawRuntime>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawStats {
    pub(super) writable_layer_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCheckpoint {
    pub(super) criu: Option<String>,
    pub(super) images: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub(super) level: Option<String>,
    pub(super) format: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMetrics {
    pub(super) address: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTraces {
    pub(super) endpoint: Option<String>,
    pub(super) sample_ratio: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawImages {
    pub(super) hosts_dir: Option<String>,
    pub(super) platform: Option<String>,
    pub(super) max_concurrent_downloads: Option<u64>,
    pub(super) max_layer_bytes: Option<u64>,
    pub(super) max_image_bytes: Option<u64>,
    pub(super) max_layer_entries: Option<u64>,
    pub(super) max_layer_ratio: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNetwork {
    pub(super) enabled: Option<bool>,
    pub(super) bridge: Option<String>,
    pub(super) ipv4: Option<String>,
    pub(super) ipv6: Option<String>,
    pub(super) mtu: Option<AutoOr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawStreaming {
    pub(super) address: Option<String>,
    pub(super) tls_cert: Option<String>,
    pub(super) tls_key: Option<String>,
    pub(super) idle_timeout: Option<u64>,
    pub(super) creation_timeout: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCgroup {
    pub(super) driver: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawContainers {
    pub(super) nofile: Option<String>,
    pub(super) pids_limit: Option<u64>,
    pub(super) log_line_max: Option<u64>,
    pub(super) seccomp: Option<String>,
    pub(super) cdi_dirs: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRecords {
    pub(super) exited_per_container: Option<u64>,
    pub(super) stopped_pods: Option<u64>,
    pub(super) stopped_pods_after_seconds: Option<u64>,
}

/// Of a name that a person chooses: these keys are in no default text.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRuntime {
    pub(in crate::config) path: Option<String>,
    pub(in crate::config) options: Vec<String>,
    pub(in crate::config) sandboxed: bool,
}

/// A number, or the word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AutoOr {
    Auto,
    Number(u64),
}

impl<'de> Deserialize<'de> for AutoOr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = AutoOr;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number or \"auto\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<AutoOr, E> {
                if text == "auto" { Ok(AutoOr::Auto) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<AutoOr, E> {
                u64::try_from(number)
                    .map(AutoOr::Number)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<AutoOr, E> {
                Ok(AutoOr::Number(number))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
