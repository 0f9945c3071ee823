//! Checkpoints: archives of a container's memory and changed files, written by `write`, read by `read`.
//! Blocks: on the blocking pool of the daemon. The processes themselves are CRIU's, which the container's shim runs.
//! Owns the folder `<root>/checkpoints`: one folder for each archive being written or restored, named by random letters.
//! Must never take anything from an archive but memory and the content of files: spec, mounts, devices, labels and log path are the
//! request's; and must never write into an archive's place before the archive is whole.

pub(crate) mod diff;
pub(crate) mod images;
pub(crate) mod metadata;
pub(crate) mod mounts;
pub(crate) mod pod;
pub(crate) mod read;
pub(crate) mod restore;
mod wire;
pub(crate) mod write;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use keelson_imageservice::UnpackError;

use crate::engine::ErrorKind;

/// Why an archive was not written or not read. Shown with its sources.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("{act} `{path}`")]
    Io { act: &'static str, path: PathBuf, source: Arc<io::Error> },
    /// An image that must not reach CRIU.
    #[error("checkpoint image `{name}`: {reason}")]
    Image { name: String, reason: &'static str },
    /// A mount that cannot be restored.
    #[error("mount `{mountpoint}`: {reason}")]
    Mount { mountpoint: String, reason: &'static str },
    /// An archive or a part of it that cannot be unpacked.
    #[error("unpack {what}")]
    Unpack { what: &'static str, source: Arc<UnpackError> },
    /// A file of the archive is not what it must be.
    #[error("checkpoint file `{name}`: {reason}")]
    File { name: &'static str, reason: String },
    /// The image it was made from.
    #[error("image `{image}` of the checkpoint is not on this node: pull exactly that image first")]
    NoImage { image: String },
    /// There is something in the archive's place, or no place for it.
    #[error("write checkpoint `{path}`: {reason}")]
    Place { path: PathBuf, reason: &'static str },
    /// The caller's time is over.
    #[error("write checkpoint: not finished in the time that was allowed")]
    Timeout,
}

impl CheckpointError {
    pub(crate) fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { act, path, source: Arc::new(source) }
    }

    /// What a caller must tell apart.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
                _ => ErrorKind::Internal,
            },
            Self::Image { .. } | Self::Mount { .. } | Self::File { .. } | Self::Place { .. } => ErrorKind::Invalid,
            Self::Unpack { source, .. } => match source.as_ref() {
                UnpackError::DiskFull { .. } => ErrorKind::Exhausted,
                _ => ErrorKind::Invalid,
            },
            Self::NoImage { .. } => ErrorKind::NotFound,
            Self::Timeout => ErrorKind::Timeout,
        }
    }

    pub(crate) fn image(name: &str, reason: &'static str) -> Self {
        Self::Image { name: name.chars().take(80).flat_map(char::escape_debug).collect(), reason }
    }

    pub(crate) fn mount(mountpoint: &str, reason: &'static str) -> Self {
        Self::Mount { mountpoint: mountpoint.to_owned(), reason }
    }
}
