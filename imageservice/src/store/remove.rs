//! How an image goes: out of the view, then its record, then what only it needed.
//! Runs on a blocking thread of the daemon; many removals at once only wait for each other's record I/O.
//! Owns the rule that a layer under a snapshot outlives its image. Must never free a layer before the record that names it is gone.

use std::{
    collections::HashSet,
    io,
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use keelson_api::Digest;
use rustix::fs::AtFlags;

use super::{ImageService, State, record::Record};
use crate::{image::ImageId, snapshot::SnapshotKey, usage::FsUsage};

/// How long a layer that no image names waits for the retry of a pull that broke off.
const RETRY_WINDOW: Duration = Duration::from_secs(600);

/// What a removal did. All empty when there was no such image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// The image that went.
    pub id: Option<ImageId>,
    /// The tags that went with it.
    pub tags: Vec<String>,
    /// The digest names that went with it.
    pub digests: Vec<String>,
    /// What the disk gets back, now or as soon as the background thread is through.
    pub freed: FsUsage,
    /// Snapshots that keep its layers on disk until they are discarded.
    pub in_use: Vec<SnapshotKey>,
}

/// Why an image was not removed. It is then as it was before.
#[derive(Debug, thiserror::Error)]
#[error("remove image {id}: {act}")]
pub struct RemoveError {
    /// The image.
    pub id: ImageId,
    /// What was attempted.
    pub act: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

impl ImageService {
    /// Removes the image that `name` finds, with all its names. A name that finds nothing is a success (CRI: "This call is
    /// idempotent, and must not return an error if the image has already been removed").
    ///
    /// # Errors
    /// [`RemoveError`] when its record cannot be removed.
    pub fn remove(&self, name: &str) -> Result<Removed, RemoveError> {
        let changing = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(image) = self.find(name) else { return Ok(Removed::default()) };
        let id = image.id;

        let mut state = self.state();
        let Some(before) = state.records.get(&id).cloned() else { return Ok(Removed::default()) };
        let mut in_use: Vec<_> = snapshots_on(&state, &id).cloned().collect();
        in_use.sort();
        let claim = (!in_use.is_empty()).then(|| Record {
            removed: true,
            tags: Vec::new(),
            digests: Vec::new(),
            generation: before.generation.saturating_add(1),
            ..before.clone()
        });
        match &claim {
            Some(claim) => state.records.insert(id, claim.clone()),
            None => state.records.remove(&id),
        };
        self.publish(&state);
        drop(state);

        let gone = match &claim {
            Some(claim) => claim.save(&self.images, &self.images_tmp),
            None => self.unlink_record(&id),
        };
        if let Err(source) = gone {
            let mut state = self.state();
            state.records.insert(id, before);
            self.publish(&state);
            return Err(RemoveError { id, act: "remove record", source });
        }
        let freed = self.collect(&changing, &before);
        Ok(Removed { id: Some(id), tags: before.tags, digests: before.digests, freed, in_use })
    }

    /// Collects what nothing names: layers left by pulls that broke off more than ten minutes ago. Memory and a rename each.
    pub(crate) fn collect_idle(&self) {
        let changing = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        self.collect_waiting(&changing);
    }

    pub(super) fn collect_waiting(&self, _changing: &MutexGuard<'_, ()>) {
        let wanted = layers_of(&self.state());
        // A machine that has not run that long has nothing to collect yet.
        if let Some(cutoff) = Instant::now().checked_sub(RETRY_WINDOW) {
            self.layers.collect(cutoff, |id| wanted.contains(id));
        }
    }

    /// After the last snapshot on a removed image: drops the claim on its layers.
    pub(super) fn release_claim(&self, id: &Digest) -> io::Result<()> {
        let changing = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        let unclaimed = snapshots_on(&state, id).next().is_none();
        let Some(before) = state.records.get(id).filter(|record| record.removed && unclaimed).cloned() else {
            return Ok(());
        };
        state.records.remove(id);
        drop(state);
        if let Err(error) = self.unlink_record(id) {
            self.state().records.insert(*id, before);
            return Err(error);
        }
        self.collect(&changing, &before);
        Ok(())
    }

    fn unlink_record(&self, id: &Digest) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.images, Record::file_name(id), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(rustix::fs::fsync(&self.images)?),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Frees layers and blobs that no record names and no pull holds. `gone` just lost its record: its own layers go at once,
    /// whatever else is idle waits for its retry.
    fn collect(&self, changing: &MutexGuard<'_, ()>, gone: &Record) -> FsUsage {
        let state = self.state();
        let layers = layers_of(&state);
        let blobs: HashSet<Digest> = state.records.values().flat_map(|record| &record.blobs).copied().collect();
        drop(state);
        let own: HashSet<Digest> = gone.layers().copied().collect();
        let mut freed = self.layers.collect(Instant::now(), |id| layers.contains(id) || !own.contains(id));
        for blob in gone.blobs.iter().filter(|blob| !blobs.contains(blob)) {
            let size = self.content.size(blob);
            match self.content.remove(blob) {
                Ok(()) => freed = freed.plus(&size.map(FsUsage::file).unwrap_or_default()),
                Err(error) => tracing::warn!(%blob, %error, "blob stays until the next start"),
            }
        }
        self.collect_waiting(changing);
        freed
    }
}

fn layers_of(state: &State) -> HashSet<Digest> {
    state.records.values().flat_map(|record| record.layers()).copied().collect()
}

fn snapshots_on<'a>(state: &'a State, id: &'a Digest) -> impl Iterator<Item = &'a SnapshotKey> {
    state.snapshots.iter().filter(move |(_, snapshot)| snapshot.image == *id).map(|(key, _)| key)
}
