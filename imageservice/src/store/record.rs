//! One image record, `images/<hex>.json`: the only thing that makes an image exist.
//! Read at open, written under the service's `records` lock, on blocking threads.
//! Owns the format. Must never be half-written: temp, fsync, rename, fsync of the folder.

use std::{io, os::fd::OwnedFd};

use keelson_api::Digest;
use serde::{Deserialize, Serialize};

use super::stack::Stack;
use crate::{
    disk::{self, Durability},
    image::{ChainId, Image, ImageConfig},
};

/// Version that this build writes.
const VERSION: u64 = 1;

/// Far above any honest record, far below what would hurt.
const MAX_BYTES: u64 = 16 << 20;

/// An image as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u64,
    pub(super) id: Digest,
    /// Grows with every write of any record; of two records with one tag, the higher one has it.
    pub(super) generation: u64,
    pub(super) tags: Vec<String>,
    pub(super) digests: Vec<String>,
    pub(super) config: ImageConfig,
    pub(super) diff_ids: Vec<Digest>,
    /// Layers as overlayfs stacks them: top first, none twice, perhaps one more than `diff_ids` names.
    pub(super) lower: Vec<Digest>,
    /// Blobs in the content store that this image needs.
    pub(super) blobs: Vec<Digest>,
    pub(super) size: u64,
    pub(super) pinned: bool,
    /// Removed by its user while snapshots lay on it: no longer an image, only a claim on layers, until the last of them goes.
    pub(super) removed: bool,
    pub(super) root: RootAttributes,
    /// As in [`Image`].
    #[serde(default)]
    pub(super) checkpoint: bool,
}

/// Owner and mode of `/`: overlayfs takes them from the writable folder, so that one must be given them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootAttributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Default for RootAttributes {
    fn default() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0 }
    }
}

/// A record file as found.
pub(super) enum Found {
    Record(Box<Record>),
    Newer(u64),
    Broken(io::Error),
}

impl Record {
    pub(super) fn new(id: Digest, config: ImageConfig, diff_ids: Vec<Digest>, stack: Stack) -> Self {
        Self {
            version: VERSION,
            id,
            generation: 0,
            tags: Vec::new(),
            digests: Vec::new(),
            config,
            diff_ids,
            lower: stack.lower,
            blobs: Vec::new(),
            size: 0,
            pinned: false,
            removed: false,
            root: stack.root,
            checkpoint: false,
        }
    }

    /// Every layer that must stay on disk for this record.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Digest> {
        self.diff_ids.iter().chain(&self.lower)
    }

    pub(super) fn file_name(id: &Digest) -> String {
        format!("{}.json", id.hex())
    }

    pub(super) fn image(&self) -> Image {
        Image {
            id: self.id,
            tags: self.tags.clone(),
            digests: self.digests.clone(),
            size: self.size,
            config: self.config.clone(),
            diff_ids: self.diff_ids.clone(),
            chain: ChainId::chain(&self.diff_ids),
            pinned: self.pinned,
            checkpoint: self.checkpoint,
        }
    }

    pub(super) fn save(&self, images: &OwnedFd, tmp: &OwnedFd) -> io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        disk::replace_file(images, tmp, &Self::file_name(&self.id), (&bytes, Durability::Synced))
    }

    pub(super) fn load(images: &OwnedFd, name: &str) -> Found {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let bytes = match disk::read_file(images, name, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) => return Found::Broken(error),
        };
        match serde_json::from_slice::<Versioned>(&bytes) {
            Ok(Versioned { version }) if version > VERSION => return Found::Newer(version),
            Ok(_) => {}
            Err(error) => return Found::Broken(error.into()),
        }
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(record) if Self::file_name(&record.id) == name => Found::Record(Box::new(record)),
            Ok(_) => Found::Broken(io::Error::new(io::ErrorKind::InvalidData, "the record names another image")),
            Err(error) => Found::Broken(error.into()),
        }
    }
}
