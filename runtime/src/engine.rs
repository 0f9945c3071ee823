//! The engine: everything a face (CRI, later others) can ask of sandboxes and containers, in domain words.
//! Its methods run on tokio workers and hand kernel work to the blocking pool; a vanished caller never cancels work begun.
//! Owns the sandboxes' tasks, the store, the network and the image service. Must never speak an outer protocol.
//!
//! This file opens and drains it; what can be asked of it is in one file per noun, each an `impl Engine`.

mod census;
pub(crate) mod checkpoint;
pub mod config;
mod containers;
pub mod error;
pub mod events;
mod exec;
mod open;
mod sandboxes;
mod sessions;
pub(crate) mod shared;
mod stats;
pub(crate) mod status;
pub(crate) mod table;

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use keelson_imageservice::ImageService;

pub(crate) use census::Census;
pub use config::{CgroupDriver, EngineConfig, HandlerConfig, Rlimit};
pub use error::{ErrorKind, OpenError};
pub use exec::ExecOutput;
pub use status::{EngineStatus, Features};

use self::shared::{Shared, blocking};
pub use crate::session::{AttachSession, AttachSpec, Detached, ExecSession, ExecSpec, Size, port::PortError};
pub use crate::{apparmor::AppArmorStatus, selinux::SelinuxStatus};
use crate::{reconcile, recover, sandbox::task::Command, stats::layers};

/// How long `drain` waits for what is under way.
const DRAIN: Duration = Duration::from_secs(20);

/// A handle on the engine; clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    /// The reconciler, and what keeps figures of writable layers new.
    background: Arc<[tokio::task::AbortHandle; 2]>,
}

impl Engine {
    /// Takes the folders, recovers what is there, and is ready.
    ///
    /// # Errors
    /// Another daemon has the folders, or a part cannot be opened.
    pub async fn open(config: EngineConfig) -> Result<Self, OpenError> {
        let shared = blocking(move || open::open(config)).await?;
        recover::recover(&shared).await?;
        let reconciler = tokio::spawn(reconcile::run(Arc::downgrade(&shared))).abort_handle();
        let measurer = layers::run(Arc::downgrade(&shared), Arc::clone(&shared.layers));
        let background = Arc::new([reconciler, tokio::spawn(measurer).abort_handle()]);
        Ok(Self { shared, background })
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> &Arc<ImageService> {
        &self.shared.images
    }

    /// Takes no more requests, ends what is under way, writes every record. Containers go on.
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
        self.background.iter().for_each(tokio::task::AbortHandle::abort);
        for entry in self.shared.table.all_sandboxes() {
            // A task that has ended needs not be told.
            let _ = entry.commands.send(Command::Drain).await;
        }
        self.shared.images.stop_pulls().await;
        let mut tasks = std::mem::take(&mut *self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let ended = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!("operations under way did not end in time: the next start finishes them");
        }
        tasks.shutdown().await;
        self.shared.drop_reapers();
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            shared.store.flush();
            if let Some(network) = &shared.network
                && let Err(error) = network.close()
            {
                tracing::warn!(%error, "take down the unused network");
            }
        })
        .await;
    }
}
