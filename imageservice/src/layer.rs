//! Unpacked layers, one folder per diff id: `layers/<hex>/fs` and the record `layers/<hex>/layer.json` beside it.
//! Called from blocking threads; each unpacking adds one thread of its own that hashes and inflates.
//! Owns the folder `layers` and who may not lose which layer ([`LayerHold`]). Must never change a layer once it is in place.

mod job;
mod temp;

use std::{
    collections::HashMap,
    io::{self, Read},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use keelson_api::Digest;
use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

pub use self::job::{Compression, Job, LayerDescriptor};
use self::temp::Temp;
pub use crate::unpack::UnpackError;
use crate::{
    config::Limits,
    content::Content,
    disk::{self, Durability},
    gc::Trash,
    unpack::{self, Unpacked},
    usage::FsUsage,
};

/// What is known of a layer in place; the content of `layer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) version: u32,
    pub(crate) diff_id: Digest,
    /// The blob it came from.
    pub(crate) blob: Digest,
    pub(crate) usage: FsUsage,
    /// Directories that the archive used but never described: they must not hide the attributes of the same directory below.
    pub(crate) implied: Vec<String>,
    /// Mode, uid and gid of the root, where the archive says so.
    pub(crate) root: Option<(u32, u32, u32)>,
    /// Nothing of the layers below shows.
    pub(crate) opaque_root: bool,
}

/// Version of `layer.json` that this build writes.
const VERSION: u32 = 1;

/// The layers of one store; a handle that is cheap to clone.
#[derive(Debug, Clone)]
pub struct Layers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: OwnedFd,
    tmp: OwnedFd,
    path: PathBuf,
    limits: Limits,
    /// Where compressed blobs are kept, if they are.
    keep: Option<Content>,
    trash: Trash,
    present: Mutex<HashMap<Digest, Present>>,
}

#[derive(Debug)]
struct Present {
    record: Arc<LayerRecord>,
    holds: usize,
    /// When the last hold went; decides how long an unused layer waits for a retry.
    idle_since: Instant,
    /// Covered by a `syncfs` since it was unpacked.
    durable: bool,
}

/// A layer that is in place and cannot be collected while this value lives.
#[derive(Debug)]
pub struct LayerHold {
    layers: Layers,
    record: Arc<LayerRecord>,
}

impl LayerHold {
    /// Which layer.
    #[must_use]
    pub fn diff_id(&self) -> &Digest {
        &self.record.diff_id
    }

    pub(crate) fn record(&self) -> &LayerRecord {
        &self.record
    }
}

impl Drop for LayerHold {
    fn drop(&mut self) {
        if let Some(present) = self.layers.present().get_mut(&self.record.diff_id) {
            present.holds = present.holds.saturating_sub(1);
            present.idle_since = Instant::now();
        }
    }
}

impl Layers {
    /// Opens `layers` below `root`. Half-unpacked layers go; so does what `wanted` does not name, because only layers that a
    /// durable image record names are known to have reached the disk before a power cut.
    pub(crate) fn open(
        root: (&OwnedFd, &std::path::Path),
        limits: Limits,
        keep: Option<Content>,
        trash: Trash,
        wanted: impl Fn(&Digest) -> bool,
    ) -> io::Result<Self> {
        let dir = disk::ensure_dir(root.0, "layers", Mode::RWXU)?;
        let tmp = disk::ensure_dir(&dir, "tmp", Mode::RWXU)?;
        let mut present = HashMap::new();
        for name in disk::names(&tmp)? {
            trash.take(&tmp, &name)?;
        }
        for name in disk::names(&dir)?.into_iter().filter(|name| name != "tmp") {
            let record = Digest::from_hex(&name).ok().filter(&wanted).and_then(|id| read_record(&dir, &id, &limits));
            let Some(record) = record else {
                trash.take(&dir, &name)?;
                continue;
            };
            let id = record.diff_id;
            present
                .insert(id, Present { record: Arc::new(record), holds: 0, idle_since: Instant::now(), durable: true });
        }
        let path = root.1.join("layers");
        Ok(Self(Arc::new(Inner { dir, tmp, path, limits, keep, trash, present: Mutex::new(present) })))
    }

    /// Whether the layer is in place; memory only. Take a [`Layers::hold`] to rely on it.
    #[must_use]
    pub fn has(&self, diff_id: &Digest) -> bool {
        self.present().contains_key(diff_id)
    }

    /// Keeps a layer that is in place from being collected; `None` when it must be unpacked.
    #[must_use]
    pub fn hold(&self, diff_id: &Digest) -> Option<LayerHold> {
        let mut present = self.present();
        let layer = present.get_mut(diff_id)?;
        layer.holds += 1;
        Some(LayerHold { layers: self.clone(), record: layer.record.clone() })
    }

    /// Reads a layer's blob once and turns it into a folder, verifying the digest and size of what came and the diff id of what was
    /// in it. Nothing is visible until all of that holds; on any error nothing is left. Blocks for as long as `reader` does.
    ///
    /// # Errors
    /// [`UnpackError`], telling a broken transfer from a hostile archive and from a full disk.
    pub fn unpack(
        &self,
        descriptor: &LayerDescriptor,
        diff_id: &Digest,
        reader: impl Read + Send,
        job: &Job,
    ) -> Result<LayerHold, UnpackError> {
        if let Some(hold) = self.hold(diff_id) {
            return Ok(hold);
        }
        let temp = Temp::new(self.0.clone(), diff_id)?;
        let blob = match &self.0.keep {
            Some(content) => {
                Some(content.writer().map_err(|source| UnpackError::io("make blob file", "content/tmp", source))?)
            }
            None => None,
        };
        let request = unpack::Request {
            descriptor,
            diff_id,
            limits: &self.0.limits,
            job,
            root: &temp.fs,
            aside: &temp.aside,
            blob,
        };
        let Unpacked { usage, implied, root, opaque_root, blob } = unpack::run(request, reader)?;
        let record = LayerRecord {
            version: VERSION,
            diff_id: *diff_id,
            blob: descriptor.digest,
            usage,
            implied,
            root,
            opaque_root,
        };
        let bytes = serde_json::to_vec(&record)
            .map_err(|source| UnpackError::io("encode record of", "layer.json", source.into()))?;
        let limit = self.0.limits.record_bytes;
        if job.add_record(u64::try_from(bytes.len()).unwrap_or(u64::MAX)) > limit {
            let what = "bytes in the names of folders that layers of one image imply without describing them";
            return Err(UnpackError::Limit { what, limit });
        }
        disk::replace_file(&temp.dir, &temp.dir, "layer.json", (&bytes, Durability::Cached))
            .map_err(|source| UnpackError::io("write", "layer.json", source))?;
        if let Some(blob) = blob {
            blob.publish(&descriptor.digest).map_err(|source| UnpackError::io("publish blob of", "layer", source))?;
        }
        temp.publish(record)
    }

    /// The bounds that every layer here was held to.
    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The folder to stack.
    pub(crate) fn fs_path(&self, diff_id: &Digest) -> PathBuf {
        self.0.path.join(diff_id.hex()).join("fs")
    }

    /// The folder to look into, as an fd.
    pub(crate) fn fs_dir(&self, diff_id: &Digest) -> io::Result<OwnedFd> {
        let layer = rustix::fs::openat(&self.0.dir, diff_id.hex(), disk::DIR, Mode::empty())?;
        Ok(rustix::fs::openat(&layer, "fs", disk::DIR, Mode::empty())?)
    }

    /// Whether every one of these has been covered by a `syncfs`.
    pub(crate) fn all_durable<'a>(&self, mut diff_ids: impl Iterator<Item = &'a Digest>) -> bool {
        let present = self.present();
        diff_ids.all(|id| present.get(id).is_some_and(|layer| layer.durable))
    }

    /// Notes that a `syncfs` which began after these were in place has ended.
    pub(crate) fn mark_durable<'a>(&self, diff_ids: impl Iterator<Item = &'a Digest>) {
        let mut present = self.present();
        for id in diff_ids {
            if let Some(layer) = present.get_mut(id) {
                layer.durable = true;
            }
        }
    }

    /// Moves every layer that nobody holds and `wanted` does not name to the trash, if it has been idle since before `cutoff`.
    /// Returns what that will free.
    pub(crate) fn collect(&self, cutoff: Instant, wanted: impl Fn(&Digest) -> bool) -> FsUsage {
        let mut present = self.present();
        let idle: Vec<Digest> =
            present.iter().filter(|(id, layer)| layer.holds == 0 && !wanted(id)).map(|(id, _)| *id).collect();
        let mut freed = FsUsage::default();
        for id in idle {
            let Some(layer) = present.get(&id).filter(|layer| layer.idle_since <= cutoff) else { continue };
            // Under the lock: an unpacking of the same layer must see it either whole or gone.
            match self.0.trash.take(&self.0.dir, &id.hex()) {
                Ok(()) => {
                    freed = freed.plus(&layer.record.usage);
                    present.remove(&id);
                }
                Err(error) => tracing::warn!(layer = %id, %error, "layer stays: move it to the trash"),
            }
        }
        freed
    }

    /// Bytes and inodes of all layers; memory only.
    pub(crate) fn usage(&self) -> FsUsage {
        self.present().values().fold(FsUsage::default(), |sum, layer| sum.plus(&layer.record.usage))
    }

    fn present(&self) -> MutexGuard<'_, HashMap<Digest, Present>> {
        self.0.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_record(dir: &OwnedFd, id: &Digest, limits: &Limits) -> Option<LayerRecord> {
    let layer = rustix::fs::openat(dir, id.hex(), disk::DIR, Mode::empty()).ok()?;
    rustix::fs::openat(&layer, "fs", disk::DIR, Mode::empty()).ok()?;
    let bytes = disk::read_file(&layer, "layer.json", limits.record_bytes).ok()?;
    let record: LayerRecord = serde_json::from_slice(&bytes).ok()?;
    (record.version == VERSION && record.diff_id == *id).then_some(record)
}
