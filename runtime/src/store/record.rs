//! What is kept of a sandbox and of a container, and how a record of any age is read.
//! Plain data, written by the sandboxes' tasks, read at recovery. The JSON form is a contract: `runtime/testdata` has one of each.
//! Owns the version numbers. Must never lose a caller's label or annotation: kubelet restores its own state from them.

use std::sync::Arc;

use keelson_api::{ContainerId, SandboxId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    container::{
        spec::{ContainerSpec, Volume},
        state::State as ContainerMachine,
        view::User,
    },
    resources::Resources,
    sandbox::{spec::SandboxSpec, state::State as SandboxMachine},
};

/// A request is by far the largest part of a record: record, task and views have it in common.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
        T::serialize(value, serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}

/// A record with a layout version.
pub(crate) trait Record: DeserializeOwned {
    /// The newest layout known here.
    const VERSION: u32;
}

/// What is kept of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) version: u32,
    pub(crate) id: SandboxId,
    pub(crate) created_at: i64,
    /// When somebody first asked for its stop, nanoseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stopped_at: Option<i64>,
    pub(crate) state: SandboxMachine,
    /// Its cgroup parent was not there before: we made it, we take it.
    #[serde(default)]
    pub(crate) made_cgroup: bool,
    /// SELinux level of its containers' processes and files, its own or the one it asked for; none: the policy's lowest, or no SELinux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) level: Option<String>,
    #[serde(with = "shared")]
    pub(crate) spec: Arc<SandboxSpec>,
}

/// What is kept of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) version: u32,
    pub(crate) id: ContainerId,
    pub(crate) sandbox: SandboxId,
    pub(crate) created_at: i64,
    pub(crate) state: ContainerMachine,
    pub(crate) image_id: String,
    pub(crate) image_ref: String,
    /// Absolute; empty: none.
    pub(crate) log_path: std::path::PathBuf,
    /// As resolved; empty until created.
    #[serde(default)]
    pub(crate) volumes: Vec<Volume>,
    /// As applied.
    pub(crate) resources: Resources,
    pub(crate) stop_signal: i32,
    #[serde(default)]
    pub(crate) user: User,
    /// `linux.cgroupsPath` of its spec.
    #[serde(default)]
    pub(crate) cgroups_path: String,
    #[serde(with = "shared")]
    pub(crate) spec: Arc<ContainerSpec>,
}

impl Record for SandboxRecord {
    const VERSION: u32 = 1;
}

impl Record for ContainerRecord {
    const VERSION: u32 = 1;
}

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// A newer keelson wrote it.
    #[error("layout version {found} is newer than this program")]
    Newer { found: u32 },
    /// Damaged.
    #[error("decode record")]
    Json(#[from] serde_json::Error),
}

/// The record in these bytes; the version is looked at before anything else of it.
pub(crate) fn decode<R: Record>(bytes: &[u8]) -> Result<R, DecodeError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(bytes)?;
    if version > R::VERSION {
        return Err(DecodeError::Newer { found: version });
    }
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sandbox::spec::SandboxKey;

    pub(crate) fn sandbox(byte: u8) -> SandboxRecord {
        let key = SandboxKey {
            namespace: "default".into(),
            name: "web".into(),
            uid: format!("uid-{byte}"),
            ..Default::default()
        };
        SandboxRecord {
            version: SandboxRecord::VERSION,
            id: SandboxId::from_random([byte; 32]),
            created_at: 1_700_000_000_000_000_000,
            stopped_at: None,
            state: SandboxMachine::Ready { addresses: vec!["10.4.0.7".parse().unwrap()], holder_pid: None },
            made_cgroup: true,
            level: None,
            spec: Arc::new(SandboxSpec { key, hostname: "web".into(), ..Default::default() }),
        }
    }

    pub(crate) fn container(sandbox: u8, byte: u8) -> ContainerRecord {
        ContainerRecord {
            version: ContainerRecord::VERSION,
            id: ContainerId::from_random([byte; 32]),
            sandbox: SandboxId::from_random([sandbox; 32]),
            created_at: 1_700_000_000_000_000_001,
            state: ContainerMachine::Running { pid: 4711, started_at: 1_700_000_000_000_000_002 },
            image_id: format!("sha256:{}", "ab".repeat(32)),
            image_ref: format!("registry.example/web@sha256:{}", "cd".repeat(32)),
            log_path: "/var/log/pods/default_web_uid/web/0.log".into(),
            volumes: Vec::new(),
            resources: Resources { cpu_shares: Some(1024), ..Default::default() },
            stop_signal: 15,
            user: User { uid: 1000, gid: 1000, additional_gids: vec![1000] },
            cgroups_path: "/kubepods/pod1/x".into(),
            spec: Arc::new(ContainerSpec {
                image: "registry.example/web:1".into(),
                labels: [("io.kubernetes.container.name".to_owned(), "web".to_owned())].into(),
                env: vec![crate::container::spec::EnvVar { name: "RAW".into(), value: vec![0xff, 0xfe] }],
                ..Default::default()
            }),
        }
    }

    fn golden<R: Record + Serialize + PartialEq + std::fmt::Debug>(file: &str, record: &R) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file);
        let text = serde_json::to_string_pretty(record).unwrap() + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            crate::store::write_new(&path, text.as_bytes(), 0o644).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            kept, text,
            "the layout changed: raise the version, keep reading the old one (UPDATE_GOLDEN=1 rewrites)"
        );
        assert_eq!(decode::<R>(kept.as_bytes()).unwrap(), *record);
    }

    #[test]
    fn records_keep_their_layout() {
        golden("record-sandbox-v1.json", &sandbox(1));
        golden("record-container-v1.json", &container(1, 2));
    }

    #[test]
    fn a_newer_record_is_told_apart_from_a_damaged_one() {
        assert!(matches!(decode::<SandboxRecord>(br#"{"version":2,"new":{}}"#), Err(DecodeError::Newer { found: 2 })));
        assert!(matches!(decode::<SandboxRecord>(br#"{"version":1}"#), Err(DecodeError::Json(_))));
        assert!(matches!(decode::<SandboxRecord>(b"{\"versi"), Err(DecodeError::Json(_))));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = decode::<ContainerRecord>(&bytes);
        }
    }
}
