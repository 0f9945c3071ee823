//! The image service: records of images on disk, the view of them in memory, and who may be removed when.
//! `list`, `find` and `prepare`'s checks answer from memory on any thread; everything else blocks and belongs on `spawn_blocking`.
//! Owns `images/` and `snapshots/`, and the order in which an image comes to be: content and layers, one syncfs, record, view.
//! Must never hold `state` or `view` over I/O, nor make an image visible before it would survive a power cut.

mod commit;
mod record;
mod recover;
mod remove;
mod snapshots;
mod stack;
mod tree;
mod view;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::SystemTime,
};

use keelson_api::Digest;

pub use self::{
    commit::{CommitError, NewImage},
    remove::{RemoveError, Removed},
    tree::Tree,
};
use self::{record::Record, view::View};
use crate::{
    config::Config, content::Content, gc::Trash, image::Image, layer::Layers, pull::Pulls, snapshot::SnapshotKey,
    usage::FsUsage,
};

/// Images, layers and snapshots of one node.
#[derive(Debug)]
pub struct ImageService {
    pub(crate) config: Config,
    pub(crate) content: Content,
    pub(crate) layers: Layers,
    /// Pulls under way; belongs to `pull.rs`.
    pub(crate) pulls: Pulls,
    root: OwnedFd,
    /// Carries the lock against a second service on the same root.
    images: OwnedFd,
    images_tmp: OwnedFd,
    snapshots: OwnedFd,
    trash: Trash,
    /// Held by whoever changes image records, over their I/O; readers never take it. Taken before `state`.
    records: Mutex<()>,
    state: Mutex<State>,
    view: RwLock<Arc<View>>,
    #[cfg(test)]
    fail_at: Mutex<Option<&'static str>>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<Digest, Record>,
    snapshots: HashMap<SnapshotKey, SnapshotState>,
}

#[derive(Debug)]
struct SnapshotState {
    image: Digest,
    /// When a walk ended, and what it found.
    measured: Option<(SystemTime, FsUsage)>,
}

/// Why the service did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder of ours cannot be made, read or cleaned.
    #[error("open image store {path}: {act}")]
    Folder {
        /// Root of the store.
        path: PathBuf,
        /// What was attempted.
        act: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("open image store {path}: another keelson uses it; stop it or choose another --root")]
    InUse {
        /// Root of the store.
        path: PathBuf,
    },
    /// Written by a later build: opening it would collect layers that its records need.
    #[error(
        "open image store {path}: image record {id} has version {version}, newer than this build reads; upgrade keelson"
    )]
    Newer {
        /// Root of the store.
        path: PathBuf,
        /// The record.
        id: String,
        /// Its version.
        version: u64,
    },
}

impl ImageService {
    /// Opens the store below `config.root`, making it when missing; finishes or undoes what a crash left.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(config: Config) -> Result<Self, OpenError> {
        recover::open(config)
    }

    /// The settings it was opened with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The content store, for manifests and configs.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The layers.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// All images, ordered by id; memory only.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.view().images().to_vec()
    }

    /// The image with this tag, `repository@digest`, id or unique id prefix, in any spelling a person would use; memory only.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.view().find(name)
    }

    /// What all layers, manifests and configs occupy; memory only. Writable layers are not in it.
    #[must_use]
    pub fn usage(&self) -> FsUsage {
        let mounted = FsUsage { mountpoint: self.config.root.clone(), ..FsUsage::default() };
        mounted.plus(&self.layers.usage()).plus(&self.content.usage())
    }

    /// Whether everything given up so far has also left the disk; for tests and `df`-like tools.
    ///
    /// # Errors
    /// When the trash folder cannot be read.
    pub fn is_drained(&self) -> io::Result<bool> {
        self.trash.is_empty()
    }

    fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows readers what `state` holds; the caller still holds it.
    fn publish(&self, state: &State) {
        let view = Arc::new(View::new(state.records.values()));
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    /// A place where tests make the power fail.
    #[cfg(test)]
    fn step(&self, name: &'static str) -> io::Result<()> {
        match *self.fail_at.lock().unwrap() {
            Some(fail) if fail == name => Err(io::Error::other(format!("failpoint {name}"))),
            _ => Ok(()),
        }
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unnecessary_wraps,
        clippy::unused_self,
        reason = "the shape of the failpoint that tests compile in"
    )]
    fn step(&self, _name: &'static str) -> io::Result<()> {
        Ok(())
    }
}
