//! Unpacked layers, one folder per diff id: `layers/<hex>/fs` and the record `layers/<hex>/layer.json` beside it.
//! Called from blocking threads; each unpacking adds one thread of its own that hashes and inflates.
//! Owns the folder `layers` and who may not lose which layer ([`LayerHold`]). Must never change a layer once it is in place.

use std::{
    collections::HashMap,
    io::{self, Read},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use keelson_api::Digest;
use rustix::{
    fs::{AtFlags, Mode},
    io::Errno,
};
use serde::{Deserialize, Serialize};

pub use crate::unpack::UnpackError;
use crate::{
    config::Limits,
    content::Content,
    disk::{self, Durability},
    gc::Trash,
    unpack::{self, Unpacked},
    usage::FsUsage,
};

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
}

impl Job {
    /// A job that runs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every unpacking of this job to end soon with [`UnpackError::Cancelled`]. A reader that blocks must be woken by
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
}

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
            let record = Digest::from_hex(&name).ok().filter(&wanted).and_then(|id| read_record(&dir, &id));
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
        disk::replace_file(&temp.dir, &temp.dir, "layer.json", (&bytes, Durability::Cached))
            .map_err(|source| UnpackError::io("write", "layer.json", source))?;
        if let Some(blob) = blob {
            blob.publish(&descriptor.digest).map_err(|source| UnpackError::io("publish blob of", "layer", source))?;
        }
        temp.publish(record)
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
    /// Returns what that will free, and whether idle layers stay behind.
    pub(crate) fn collect(&self, cutoff: Instant, wanted: impl Fn(&Digest) -> bool) -> (FsUsage, bool) {
        let mut present = self.present();
        let idle: Vec<Digest> =
            present.iter().filter(|(id, layer)| layer.holds == 0 && !wanted(id)).map(|(id, _)| *id).collect();
        let (mut freed, mut waiting) = (FsUsage::default(), false);
        for id in idle {
            let Some(layer) = present.get(&id) else { continue };
            if layer.idle_since > cutoff {
                waiting = true;
                continue;
            }
            // Under the lock: an unpacking of the same layer must see it either whole or gone.
            match self.0.trash.take(&self.0.dir, &id.hex()) {
                Ok(()) => {
                    freed = freed.plus(&layer.record.usage);
                    present.remove(&id);
                }
                Err(error) => tracing::warn!(layer = %id, %error, "layer stays: move it to the trash"),
            }
        }
        (freed, waiting)
    }

    /// Bytes and inodes of all layers; memory only.
    pub(crate) fn usage(&self) -> FsUsage {
        self.present().values().fold(FsUsage::default(), |sum, layer| sum.plus(&layer.record.usage))
    }

    fn present(&self) -> MutexGuard<'_, HashMap<Digest, Present>> {
        self.0.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_record(dir: &OwnedFd, id: &Digest) -> Option<LayerRecord> {
    let layer = rustix::fs::openat(dir, id.hex(), disk::DIR, Mode::empty()).ok()?;
    rustix::fs::openat(&layer, "fs", disk::DIR, Mode::empty()).ok()?;
    let bytes = disk::read_file(&layer, "layer.json", 64 << 20).ok()?;
    let record: LayerRecord = serde_json::from_slice(&bytes).ok()?;
    (record.version == VERSION && record.diff_id == *id).then_some(record)
}

/// A layer under way in `layers/tmp`; goes to the trash unless published.
struct Temp {
    inner: Arc<Inner>,
    name: Option<String>,
    dir: OwnedFd,
    fs: OwnedFd,
    aside: OwnedFd,
}

impl Temp {
    fn new(inner: Arc<Inner>, diff_id: &Digest) -> Result<Self, UnpackError> {
        let name = disk::temp_name(&diff_id.hex());
        let made = (|| {
            let dir = disk::ensure_dir(&inner.tmp, &name, Mode::RWXU)?;
            let fs = disk::ensure_dir(&dir, "fs", Mode::from_raw_mode(0o755))?;
            let aside = disk::ensure_dir(&dir, "aside", Mode::RWXU)?;
            Ok((dir, fs, aside))
        })();
        let (dir, fs, aside) =
            made.map_err(|source| UnpackError::io("make folder", &format!("layers/tmp/{name}"), source))?;
        Ok(Self { inner, name: Some(name), dir, fs, aside })
    }

    fn publish(mut self, record: LayerRecord) -> Result<LayerHold, UnpackError> {
        let layers = Layers(self.inner.clone());
        let id = record.diff_id;
        if let Some(hold) = layers.hold(&id) {
            // Another blob with the same content was faster.
            return Ok(hold);
        }
        let cleared = match rustix::fs::unlinkat(&self.dir, "aside", AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => self.inner.trash.take(&self.dir, "aside"),
            done => done.map_err(io::Error::from),
        };
        cleared.map_err(|source| UnpackError::io("put away", "replaced folders", source))?;
        let mut present = layers.present();
        if let Some(name) = &self.name {
            match rustix::fs::renameat(&self.inner.tmp, &**name, &self.inner.dir, id.hex()) {
                Ok(()) => self.name = None,
                Err(Errno::EXIST | Errno::NOTEMPTY) if present.contains_key(&id) => {}
                Err(errno) => {
                    return Err(UnpackError::io("publish", &format!("layers/{}", id.hex()), errno.into()));
                }
            }
        }
        let layer = present.entry(id).or_insert_with(|| Present {
            record: Arc::new(record),
            holds: 0,
            idle_since: Instant::now(),
            durable: false,
        });
        layer.holds += 1;
        let record = layer.record.clone();
        drop(present);
        Ok(LayerHold { layers, record })
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = self.inner.trash.take(&self.inner.tmp, name)
        {
            tracing::warn!(temp = %name, %error, "half-unpacked layer stays until the next start: move it to the trash");
        }
    }
}
