//! Writable layers of containers: `snapshots/<key>/{upper,work}` and the link `image` that says what they lie on.
//! Called from blocking threads of the daemon on the hot path of a container's creation: three mkdirs and a link, no sync.
//! Owns the names and types here; the folder belongs to [`ImageService`](crate::ImageService). Must never mount anything.

use std::{fmt, io, path::PathBuf, str::FromStr, time::SystemTime};

use keelson_api::{ContainerId, Digest};

use crate::usage::FsUsage;

/// Name of a snapshot: what its owner calls it. 1 to 128 of `[a-zA-Z0-9_.-]`, not starting with a dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotKey(Box<str>);

/// Why a text is not a snapshot key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("snapshot key `{text}`: want 1 to 128 of `[a-zA-Z0-9_.-]`, not starting with a dot")]
pub struct InvalidSnapshotKey {
    /// The text as given, cut to 128 characters.
    pub text: String,
}

impl SnapshotKey {
    /// The key as text, safe as a file name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotKey {
    type Err = InvalidSnapshotKey;

    fn from_str(text: &str) -> Result<Self, InvalidSnapshotKey> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if (1..=128).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.') {
            Ok(Self(text.into()))
        } else {
            Err(InvalidSnapshotKey { text: text.chars().take(128).collect() })
        }
    }
}

impl SnapshotKey {
    /// The hold that a container has on an image of which it has mounted a volume: of its volume `index`.
    #[must_use]
    pub fn of_volume(container: &ContainerId, index: usize) -> Self {
        Self(format!("{}.{index}", container.as_str()).into())
    }
}

impl From<&ContainerId> for SnapshotKey {
    fn from(id: &ContainerId) -> Self {
        Self(id.as_str().into())
    }
}

impl fmt::Display for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folders that make one root filesystem, ready to be stacked by overlayfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Read-only folders, top first, no folder twice; never empty.
    pub lower: Vec<PathBuf>,
    /// Where writes go.
    pub upper: PathBuf,
    /// overlayfs's own scratch folder.
    pub work: PathBuf,
}

/// How much a writable layer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotUsage {
    /// What was found.
    pub usage: FsUsage,
    /// When; none: it was not measured since the service was opened.
    pub measured_at: Option<SystemTime>,
}

/// Why a snapshot could not be prepared, found or discarded.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The image is not here, or is being removed.
    #[error("prepare snapshot {key}: image {image} is not present; pull it first")]
    NoImage {
        /// The snapshot.
        key: SnapshotKey,
        /// The image.
        image: Digest,
    },
    /// The key is in use over another image.
    #[error("prepare snapshot {key}: it exists already over image {image}; discard it first")]
    Exists {
        /// The snapshot.
        key: SnapshotKey,
        /// The image it lies on.
        image: Digest,
    },
    /// No such snapshot.
    #[error("measure snapshot {key}: no such snapshot")]
    Missing {
        /// The snapshot.
        key: SnapshotKey,
    },
    /// The filesystem refused.
    #[error("{act} snapshot {key}")]
    Io {
        /// `prepare`, `discard`, `measure`.
        act: &'static str,
        /// The snapshot.
        key: SnapshotKey,
        /// What the kernel said.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_safe_file_names() {
        for good in ["a", "a-b_c.d", &"f".repeat(128)] {
            assert_eq!(good.parse::<SnapshotKey>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", ".a", "a/b", "a b", "a\n", "\u{e9}", &"f".repeat(129)] {
            assert!(bad.parse::<SnapshotKey>().is_err(), "{bad:?}");
        }
    }
}
