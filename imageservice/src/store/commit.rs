//! How an image comes to be: its blobs and layers first, one syncfs, then its record, then the view.
//! Runs on a blocking thread of the daemon, at the end of a pull or an import.
//! Owns that order. Must never write the record of an image before what it names would survive a power cut.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, PoisonError},
};

use keelson_api::Digest;
use sha2::{Digest as _, Sha256};

use super::{
    ImageService,
    record::Record,
    stack::{self, Stack},
};
use crate::{
    content::ContentError,
    image::{Image, ImageConfig, ImageId},
    layer::{Compression, Job, LayerDescriptor, LayerHold, UnpackError},
    usage::FsUsage,
};

/// Everything that makes an image, verified and in place but for the record.
#[derive(Debug)]
pub struct NewImage {
    /// Digest of the config blob.
    pub id: ImageId,
    /// Canonical `repository:tag` names; each moves here from whatever image has it.
    pub tags: Vec<String>,
    /// Canonical `repository@sha256:..` names.
    pub digests: Vec<String>,
    /// The checked config.
    pub config: ImageConfig,
    /// Layers, bottom first, as the config lists them; a layer may come twice.
    pub diff_ids: Vec<Digest>,
    /// One hold for every layer in `diff_ids`; order and repetition do not matter.
    pub layers: Vec<LayerHold>,
    /// Config, manifest and index as they came.
    pub blobs: Vec<(Digest, Vec<u8>)>,
    /// Never to be collected by the kubelet. Once pinned, an image stays so.
    pub pinned: bool,
    /// The manifest says that it carries a checkpoint. Once said of an image, it stays so.
    pub checkpoint: bool,
}

/// Why an image was not made. Its layers stay for a retry, for a while.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A layer of the config that nobody unpacked.
    #[error("commit image {id}: layer {diff_id} is not unpacked")]
    LayerMissing {
        /// The image.
        id: ImageId,
        /// The layer.
        diff_id: Digest,
    },
    /// More layers than overlayfs should stack.
    #[error("commit image {id}: {found} layers, more than {limit}, the limit of this node")]
    TooManyLayers {
        /// The image.
        id: ImageId,
        /// Its layers.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// The layer of directory attributes that the stack needs.
    #[error("commit image {id}: restore the attributes of directories")]
    Cover {
        /// The image.
        id: ImageId,
        /// Why it was not unpacked.
        source: Box<UnpackError>,
    },
    /// A blob does not match or cannot be written.
    #[error("commit image {id}")]
    Content {
        /// The image.
        id: ImageId,
        /// Why.
        source: Box<ContentError>,
    },
    /// The filesystem refused.
    #[error("commit image {id}: {act}")]
    Io {
        /// The image.
        id: ImageId,
        /// What was attempted.
        act: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ImageService {
    /// Makes the image exist, wholly or not at all. Committing an id that exists adds its names to it; a tag leaves the image that
    /// had it, which stays under its digests.
    ///
    /// # Errors
    /// [`CommitError`]; the image is then as it was before.
    pub fn commit(&self, new: NewImage) -> Result<Arc<Image>, CommitError> {
        let id = new.id;
        let io = |act| move |source| CommitError::Io { id, act, source };
        self.check(&new)?;
        let mut new = new;
        let stack = self.stack_of(&mut new)?;
        self.put_blobs(&new)?;
        self.step("blobs are stored").map_err(io("store blobs"))?;
        self.make_durable(&new)?;
        self.step("filesystem is synced").map_err(io("sync filesystem"))?;

        let changing = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        // A removal of the same image may have overtaken us and taken its blobs along; under the lock none can.
        self.put_blobs(&new)?;
        self.make_durable(&new)?;
        let (record, losers) = self.plan(&new, stack);
        record.save(&self.images, &self.images_tmp).map_err(io("write record"))?;
        let written = self.step("record is written");
        for loser in losers.iter().filter(|_| written.is_ok()) {
            // Should it fail, the next start sees two owners of the tag and the higher generation wins.
            if let Err(error) = loser.save(&self.images, &self.images_tmp) {
                tracing::warn!(image = %loser.id, %error, "still claims a moved tag on disk: write image record");
            }
        }
        let image = Arc::new(record.image());
        let mut state = self.state();
        for changed in losers.into_iter().chain([record]) {
            state.records.insert(changed.id, changed);
        }
        self.publish(&state);
        drop(state);
        drop(new);
        self.collect_waiting(&changing);
        written.map_err(io("write record"))?;
        Ok(image)
    }

    /// How the layers lie on each other; unpacks, and adds to the holds, the layer that this may need on top.
    fn stack_of(&self, new: &mut NewImage) -> Result<Stack, CommitError> {
        let id = new.id;
        let failed = |source| CommitError::Io { id, act: "look into layers", source };
        let mut stack = stack::stack(&self.layers, &new.diff_ids, &new.layers).map_err(failed)?;
        if let Some(tar) = stack.cover.take() {
            let digest = Digest::from_sha256(Sha256::digest(&tar).into());
            let size = u64::try_from(tar.len()).unwrap_or(u64::MAX);
            let descriptor = LayerDescriptor { digest, size, compression: Compression::Plain };
            let cover = self
                .layers
                .unpack(&descriptor, &digest, tar.as_slice(), &Job::new())
                .map_err(|error| CommitError::Cover { id, source: Box::new(error) })?;
            if !stack.lower.contains(&digest) {
                stack.lower.insert(0, digest);
            }
            new.layers.push(cover);
        }
        Ok(stack)
    }

    /// One `syncfs`, unless all that the image names has had one since it was written, by whomever.
    fn make_durable(&self, new: &NewImage) -> Result<(), CommitError> {
        let layers = || new.layers.iter().map(LayerHold::diff_id);
        let blobs = || new.blobs.iter().map(|(digest, _)| digest);
        if self.content.all_durable(blobs()) && self.layers.all_durable(layers()) {
            return Ok(());
        }
        rustix::fs::syncfs(&self.root).map_err(|errno| CommitError::Io {
            id: new.id,
            act: "sync filesystem",
            source: errno.into(),
        })?;
        self.layers.mark_durable(layers());
        self.content.mark_durable(blobs());
        Ok(())
    }

    fn check(&self, new: &NewImage) -> Result<(), CommitError> {
        let limit = self.config.limits.layers;
        if new.diff_ids.len() > limit {
            return Err(CommitError::TooManyLayers { id: new.id, found: new.diff_ids.len(), limit });
        }
        match new.diff_ids.iter().find(|id| !new.layers.iter().any(|hold| hold.diff_id() == *id)) {
            Some(missing) => Err(CommitError::LayerMissing { id: new.id, diff_id: *missing }),
            None => Ok(()),
        }
    }

    fn put_blobs(&self, new: &NewImage) -> Result<(), CommitError> {
        for (digest, bytes) in &new.blobs {
            self.content
                .put(digest, bytes)
                .map_err(|error| CommitError::Content { id: new.id, source: Box::new(error) })?;
        }
        Ok(())
    }

    /// The record to write, and the records of other images that lose a tag to it.
    fn plan(&self, new: &NewImage, stack: Stack) -> (Record, Vec<Record>) {
        let state = self.state();
        let generation = state.records.values().map(|record| record.generation).max().unwrap_or(0).saturating_add(1);
        let mut record = state
            .records
            .get(&new.id)
            .cloned()
            .unwrap_or_else(|| Record::new(new.id, new.config.clone(), new.diff_ids.clone(), stack));
        record.generation = generation;
        record.removed = false;
        record.pinned |= new.pinned;
        record.checkpoint |= new.checkpoint;
        record.tags = union(&record.tags, &new.tags);
        record.digests = union(&record.digests, &new.digests);
        let layer_blobs = new.layers.iter().map(|hold| hold.record().blob).filter(|blob| self.content.has(blob));
        let blobs = new.blobs.iter().map(|(digest, _)| *digest).chain(layer_blobs).chain(record.blobs);
        record.blobs = blobs.collect::<BTreeSet<_>>().into_iter().collect();
        record.size = self.size_of(new, &record);
        let losers = state.records.values().filter(|other| other.id != new.id);
        let losers = losers.filter(|other| other.tags.iter().any(|tag| new.tags.contains(tag))).cloned();
        let losers = losers.map(|mut other| {
            other.tags.retain(|tag| !new.tags.contains(tag));
            other
        });
        (record, losers.collect())
    }

    fn size_of(&self, new: &NewImage, record: &Record) -> u64 {
        let mut seen = BTreeSet::new();
        let layers = new.layers.iter().filter(|hold| seen.insert(*hold.diff_id()));
        let layers = layers.map(|hold| hold.record().usage.used_bytes);
        let blobs = record.blobs.iter().filter_map(|blob| self.content.size(blob));
        layers.chain(blobs.map(|size| FsUsage::file(size).used_bytes)).fold(0, u64::saturating_add)
    }
}

/// Both lists, sorted, nothing twice.
fn union(left: &[String], right: &[String]) -> Vec<String> {
    left.iter().chain(right).cloned().collect::<BTreeSet<_>>().into_iter().collect()
}
