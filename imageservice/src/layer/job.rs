//! What is to be unpacked, and the job that the layers of one image share.
//! Plain data and counters, read and changed by any thread. Owns the media types that name a layer's packing.
//! Must never guess a packing from a media type that it does not know.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keelson_api::Digest;

/// How a layer's blob is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A bare tar.
    Plain,
    /// gzip, one or many members.
    Gzip,
    /// zstd, one or many frames, window at most 128 MiB.
    Zstd,
}

impl Compression {
    /// The packing that a layer media type (OCI or Docker schema 2) states; `None` when it is no layer we can unpack.
    #[must_use]
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Some(Self::Plain),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// What a manifest says about a layer's blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// Digest of the blob as it travels.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// How it is packed.
    pub compression: Compression,
}

/// One image's worth of unpacking, shared by all its layers: stops them together, and counts what they wrote together.
#[derive(Debug, Default)]
pub struct Job {
    cancelled: AtomicBool,
    unpacked: AtomicU64,
    records: AtomicU64,
}

impl Job {
    /// A job that runs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every unpacking of this job to end soon with `UnpackError::Cancelled`. A reader that blocks must be woken by
    /// whoever feeds it.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`Job::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Tar bytes unpacked so far, over all layers.
    #[must_use]
    pub fn unpacked(&self) -> u64 {
        self.unpacked.load(Ordering::Relaxed)
    }

    /// Adds tar bytes; returns the new sum.
    pub(crate) fn add(&self, bytes: u64) -> u64 {
        self.unpacked.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes)
    }
    /// Adds the bytes of a layer's record; returns the new sum.
    pub(super) fn add_record(&self, bytes: u64) -> u64 {
        self.records.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes)
    }
}
