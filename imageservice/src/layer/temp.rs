//! A layer under way, `layers/tmp/<hex>.<pid>.<n>`: made, filled by the unpacker, renamed into place or thrown away.
//! Runs on the thread that called for the unpacking. Owns that folder until it is published.
//! Must never show a layer before all of it is there, nor leave one behind that was given up.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Instant};

use keelson_api::Digest;
use rustix::{
    fs::{AtFlags, Mode},
    io::Errno,
};

use super::{Inner, LayerHold, LayerRecord, Layers, Present, UnpackError};
use crate::disk;

/// A layer under way in `layers/tmp`; goes to the trash unless published.
pub(super) struct Temp {
    inner: Arc<Inner>,
    name: Option<String>,
    pub(super) dir: OwnedFd,
    pub(super) fs: OwnedFd,
    /// Where folders go that a later entry replaces.
    pub(super) aside: OwnedFd,
}

impl Temp {
    pub(super) fn new(inner: Arc<Inner>, diff_id: &Digest) -> Result<Self, UnpackError> {
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

    pub(super) fn publish(mut self, record: LayerRecord) -> Result<LayerHold, UnpackError> {
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
