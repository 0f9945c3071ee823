//! Pulls: from a reference to a committed image.
//! Async, on the daemon's runtime; each pull is a task of its own, which its callers wait for. Unpacking runs on blocking threads.
//! Owns the pulls and layer transfers under way. Must never be cancelled by a caller that went away, show an image that is not
//! whole, or let a caller profit from another one's credentials.

mod counts;
mod error;
mod flight;
mod layer;
mod work;

use std::{sync::Arc, time::Duration};

use keelson_api::Digest;
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use self::{
    counts::Counts,
    flight::Flights,
    layer::{LayerKey, LayerResult},
};
pub use self::{
    counts::{PullCounts, StageTime},
    error::{PullError, PullFailure},
};
use crate::{
    config::Config,
    image::Image,
    reference::Reference,
    registry::{Credentials, Registry, Timing},
    store::ImageService,
};

/// How long a pull goes on when nobody waits for it any more: a kubelet that gave up comes back within its back-off of 5 minutes.
const ORPHAN: Duration = Duration::from_secs(600);

/// What to pull.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// Which image.
    pub reference: Reference,
    /// What to show its registry.
    pub credentials: Option<Credentials>,
}

/// Pulls under way.
#[derive(Debug)]
pub(crate) struct Pulls {
    registry: Arc<Registry>,
    /// Only callers with the same credentials share a pull: the others have yet to show that they may.
    images: Flights<(Reference, Option<Fingerprint>), Result<Arc<Image>, PullError>>,
    layers: Flights<LayerKey, LayerResult>,
    downloads: Arc<Semaphore>,
    counts: Arc<Counts>,
}

type Fingerprint = [u8; 32];

impl Pulls {
    pub(crate) fn new(config: &Config) -> Self {
        let permits = config.max_concurrent_downloads.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            registry: Arc::new(Registry::new(config.hosts_dir.clone(), config.limits.manifest_bytes)),
            images: Flights::new(ORPHAN),
            // The pulls keep these alive.
            layers: Flights::new(Duration::ZERO),
            downloads: Arc::new(Semaphore::new(permits)),
            counts: Arc::default(),
        }
    }
}

impl ImageService {
    /// Pulls an image, or joins the pull of the same reference with the same credentials. Dropping the future does not end the
    /// work. An image whose tag still means the same digest costs one HEAD.
    ///
    /// # Errors
    /// [`PullError`]; nothing half-made is left.
    pub async fn pull(self: &Arc<Self>, request: PullRequest) -> Result<Arc<Image>, PullError> {
        let PullRequest { reference, credentials } = request;
        let name = reference.to_string();
        let credentials = match credentials.map(Credentials::check).transpose() {
            Ok(credentials) => credentials.flatten(),
            Err(source) => return Err(PullError::InvalidCredentials { reference: name, source }),
        };
        let key = (reference.clone(), credentials.as_ref().map(Credentials::fingerprint));
        let service = self.clone();
        let span = || tracing::debug_span!("pull", image = name);
        let work = || work::run(service, reference, credentials).instrument(span());
        let (result, _) = self.pulls.images.join(key, work).await;
        result.unwrap_or(Err(PullError::Interrupted { reference: name }))
    }

    /// As [`ImageService::pull`], for a caller that waits no longer than `limit`.
    ///
    /// # Errors
    /// [`PullError::DeadlineExceeded`] when the time is up, else as `pull`.
    pub async fn pull_within(self: &Arc<Self>, request: PullRequest, limit: Duration) -> Result<Arc<Image>, PullError> {
        let reference = request.reference.to_string();
        match tokio::time::timeout(limit, self.pull(request)).await {
            Ok(result) => result,
            Err(_) => Err(PullError::DeadlineExceeded { reference, limit }),
        }
    }

    /// Ends all pulls, whose callers get [`PullError::Interrupted`], and waits until they have let go. For the daemon's end.
    pub async fn stop_pulls(&self) {
        self.pulls.images.close().await;
        self.pulls.layers.close().await;
    }

    /// What pulls have come to since this process began.
    #[must_use]
    pub fn pull_counts(&self) -> PullCounts {
        self.pulls.counts.read()
    }

    /// Makes the registry client more or less patient, for pulls that start from now on.
    pub fn set_registry_timing(&self, timing: Timing) {
        self.pulls.registry.set_timing(timing);
    }
}

/// `sha256:0123456789ab`, enough to find it in a manifest.
fn short(digest: &Digest) -> String {
    let mut text = digest.to_string();
    text.truncate("sha256:".len() + 12);
    text
}
