//! Pulls: from a reference to a committed image.
//! Async, on the daemon's runtime. Owns the pulls under way. Must never be cancelled by a caller that went away.

use std::sync::Arc;

use crate::{
    config::Config,
    image::Image,
    reference::Reference,
    registry::Credentials,
    store::{ImageService, OpenError},
};

/// What to pull.
#[derive(Clone)]
pub struct PullRequest {
    /// Which image.
    pub reference: Reference,
    /// What to show its registry.
    pub credentials: Option<Credentials>,
}

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No such image.
    #[error("pull `{reference}`: not found")]
    NotFound {
        /// As asked.
        reference: String,
    },
}

/// Pulls under way.
#[derive(Debug)]
pub(crate) struct Pulls;

impl Pulls {
    #[expect(clippy::unnecessary_wraps, reason = "opening the client can fail")]
    pub(crate) fn open(_config: &Config) -> Result<Self, OpenError> {
        Ok(Self)
    }
}

impl ImageService {
    /// Pulls an image.
    ///
    /// # Errors
    /// [`PullError`].
    #[expect(clippy::unused_async, reason = "the call is async for its callers")]
    pub async fn pull(self: &Arc<Self>, request: PullRequest) -> Result<Arc<Image>, PullError> {
        let reference = request.reference.to_string();
        self.find(&reference).ok_or(PullError::NotFound { reference })
    }
}
