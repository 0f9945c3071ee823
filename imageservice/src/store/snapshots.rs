//! Writable layers: prepare, find, measure, discard.
//! `prepare` and `discard` are on the hot path of a container's life and run on a blocking thread; neither syncs.
//! Owns the content of `snapshots/<key>`: the link `image`, then `upper`, then `work`, in this order, so that `work` means whole.
//! Must never reach into `upper` by path: what is in it was written by a container.

use std::{collections::HashSet, io, path::Path, time::SystemTime};

use keelson_api::Digest;
use rustix::{
    fs::{AtFlags, Gid, Mode, Uid},
    io::Errno,
};

use super::{
    ImageService, SnapshotState,
    record::{Record, RootAttributes},
};
use crate::{
    disk,
    image::ImageId,
    snapshot::{Snapshot, SnapshotError, SnapshotKey, SnapshotUsage},
    usage::{self, FsUsage},
};

impl ImageService {
    /// Makes a writable layer over an image. Repeating it with the same image returns the same snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::NoImage`], [`SnapshotError::Exists`], [`SnapshotError::Io`]; nothing is left then.
    pub fn prepare(&self, key: &SnapshotKey, image: &ImageId) -> Result<Snapshot, SnapshotError> {
        let mut state = self.state();
        let Some(record) = state.records.get(image) else {
            return Err(SnapshotError::NoImage { key: key.clone(), image: *image });
        };
        let (root, snapshot) = (record.root, self.snapshot_over(key, record));
        let removed = record.removed;
        let known = match state.snapshots.get(key) {
            Some(other) if other.image != *image => {
                return Err(SnapshotError::Exists { key: key.clone(), image: other.image });
            }
            Some(_) => true,
            None if removed => return Err(SnapshotError::NoImage { key: key.clone(), image: *image }),
            None => false,
        };
        // From here on, a removal of the image leaves its layers.
        state.snapshots.entry(key.clone()).or_insert_with(|| {
            // Nothing is written yet.
            SnapshotState { image: *image, measured: Some((SystemTime::now(), FsUsage::default())) }
        });
        drop(state);
        self.make_folders(key, image, root).map_err(|source| {
            // The first error is the one to tell; what stays is swept at the next open.
            if !known && let Err(error) = self.discard(key) {
                tracing::warn!(snapshot = %key, %error, "stays until the next start: discard what could not be prepared");
            }
            SnapshotError::Io { act: "prepare", key: key.clone(), source }
        })?;
        Ok(snapshot)
    }

    fn make_folders(&self, key: &SnapshotKey, image: &Digest, root: RootAttributes) -> io::Result<()> {
        let made = |result: Result<(), Errno>| match result {
            Err(Errno::EXIST) | Ok(()) => Ok(()),
            Err(errno) => Err(errno),
        };
        made(rustix::fs::mkdirat(&self.snapshots, key.as_str(), Mode::RWXU))?;
        let dir = rustix::fs::openat(&self.snapshots, key.as_str(), disk::DIR, Mode::empty())?;
        made(rustix::fs::symlinkat(format!("../../images/{}", Record::file_name(image)), &dir, "image"))?;
        made(rustix::fs::mkdirat(&dir, "upper", Mode::RWXU))?;
        if (root.uid, root.gid) != (0, 0) {
            let (uid, gid) = (Uid::from_raw(root.uid), Gid::from_raw(root.gid));
            rustix::fs::chownat(&dir, "upper", Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        rustix::fs::chmodat(&dir, "upper", Mode::from_raw_mode(root.mode), AtFlags::empty())?;
        made(rustix::fs::mkdirat(&dir, "work", Mode::RWXU))?;
        Ok(())
    }

    /// The folders of a snapshot that was prepared, in this run or an earlier one; memory only.
    #[must_use]
    pub fn find_snapshot(&self, key: &SnapshotKey) -> Option<Snapshot> {
        let state = self.state();
        let record = state.records.get(&state.snapshots.get(key)?.image)?;
        Some(self.snapshot_over(key, record))
    }

    /// All snapshots; memory only.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotKey> {
        self.state().snapshots.keys().cloned().collect()
    }

    /// Gives a snapshot up; its folder is removed in the background, after a restart if need be. A snapshot that is not there is a
    /// success. Whoever mounted it has unmounted it.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; the snapshot is then still there.
    pub fn discard(&self, key: &SnapshotKey) -> Result<(), SnapshotError> {
        let failed = |source| SnapshotError::Io { act: "discard", key: key.clone(), source };
        let image = match self.state().snapshots.get(key) {
            Some(snapshot) => snapshot.image,
            None => return Ok(()),
        };
        self.trash.take(&self.snapshots, key.as_str()).map_err(failed)?;
        let mut state = self.state();
        state.snapshots.remove(key);
        let claimed = state.records.get(&image).is_some_and(|record| record.removed);
        drop(state);
        if claimed { self.release_claim(&image).map_err(failed) } else { Ok(()) }
    }

    /// Discards every snapshot that is not among `keys`: those of containers that no longer exist. Failures are logged.
    pub fn retain(&self, keys: &HashSet<SnapshotKey>) {
        for key in self.snapshots().iter().filter(|key| !keys.contains(key)) {
            if let Err(error) = self.discard(key) {
                tracing::warn!(snapshot = %key, %error, "orphan snapshot stays");
            }
        }
    }

    /// What a container had written when that was last measured; memory only. Zero for a snapshot that does not exist.
    #[must_use]
    pub fn snapshot_usage(&self, key: &SnapshotKey) -> SnapshotUsage {
        let mounted = FsUsage { mountpoint: self.config.root.clone(), ..FsUsage::default() };
        match self.state().snapshots.get(key).and_then(|snapshot| snapshot.measured.as_ref()) {
            Some((at, usage)) => SnapshotUsage { usage: mounted.plus(usage), measured_at: Some(*at) },
            None => SnapshotUsage { usage: mounted, measured_at: None },
        }
    }

    /// What all containers together had written when that was last measured; memory only.
    #[must_use]
    pub fn snapshots_usage(&self) -> FsUsage {
        let mounted = FsUsage { mountpoint: self.config.root.clone(), ..FsUsage::default() };
        let state = self.state();
        let measured = state.snapshots.values().filter_map(|snapshot| snapshot.measured.as_ref());
        measured.fold(mounted, |sum, (_, usage)| sum.plus(usage))
    }

    /// Walks a writable layer, for as long as it has files, and remembers what it holds. On a thread that may block.
    pub fn measure_snapshot(&self, key: &SnapshotKey) {
        let upper = rustix::fs::openat(&self.snapshots, key.as_str(), disk::DIR, Mode::empty())
            .and_then(|dir| rustix::fs::openat(&dir, "upper", disk::DIR, Mode::empty()));
        // Discarded meanwhile.
        let Ok(upper) = upper else { return };
        let usage = usage::measure(upper);
        if let Some(snapshot) = self.state().snapshots.get_mut(key) {
            snapshot.measured = Some((SystemTime::now(), usage));
        }
    }

    fn snapshot_over(&self, key: &SnapshotKey, record: &Record) -> Snapshot {
        let dir = self.config.root.join("snapshots").join(key.as_str());
        let lower = record.lower.iter().map(|id| self.layers.fs_path(id)).collect::<Vec<_>>();
        let lower = if lower.is_empty() { vec![self.config.root.join(Path::new("empty"))] } else { lower };
        Snapshot { lower, upper: dir.join("upper"), work: dir.join("work") }
    }
}
