//! One pull from its first request to its commit: resolve, documents, config, layers, record.
//! Async, in a task of its own. Owns what it has fetched until the store has it.
//! Must never write a document into the store before the whole image is there: what an error leaves would be nobody's.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::try_join_all;
use keelson_api::Digest;
use sha2::{Digest as _, Sha256};
use tracing::Instrument as _;

use super::{
    PullError,
    counts::{Counts, Stage},
    layer::{self, LayerFailure, Transfer},
    short,
};
use crate::{
    image::Image,
    layer::{Job, LayerDescriptor, LayerHold},
    manifest::{Document, ImageFile, Manifest, ManifestError},
    reference::Reference,
    registry::{Credentials, Fetch, Resolved, Session},
    store::{ImageService, NewImage},
};

/// Indexes in indexes before a manifest must come.
const DEPTH: usize = 4;

/// What one pull carries through its steps.
struct Pull {
    service: Arc<ImageService>,
    session: Arc<Session>,
    reference: Reference,
    name: String,
    /// Documents as they came, for the store.
    documents: Vec<(Digest, Vec<u8>)>,
}

/// A document and what announced it.
struct Arrived {
    digest: Digest,
    bytes: Vec<u8>,
    media_type: Option<String>,
}

pub(super) async fn run(
    service: Arc<ImageService>,
    reference: Reference,
    credentials: Option<Credentials>,
) -> Result<Arc<Image>, PullError> {
    let name = reference.to_string();
    let session = match service.pulls.registry.session(&reference, credentials).await {
        Ok(session) => Arc::new(session),
        Err(source) => return Err(PullError::Hosts { reference: name, source: Arc::new(source) }),
    };
    let counts = service.pulls.counts.clone();
    let pull = Pull { service: service.clone(), session, reference, name, documents: Vec::new() };
    let pulled = counts.pull(pull.run(&counts)).await;
    if pulled.is_err() {
        // A commit would have collected what earlier pulls left; so does one that does not get there. At the end of the daemon, the next
        // start does.
        let _ = tokio::task::spawn_blocking(move || service.collect_idle()).await;
    }
    pulled
}

impl Pull {
    async fn run(mut self, counts: &Counts) -> Result<Arc<Image>, PullError> {
        // Who has nothing yet wants the document, not only its digest.
        let head = self.service.find(&self.name).is_some()
            || self.reference.digest().is_some_and(|digest| self.service.content().has(&digest));
        let resolving = self.session.resolve(head).instrument(tracing::debug_span!("resolve"));
        let resolved = counts.stage(Stage::Resolve, resolving).await;
        let root = match resolved.map_err(|attempts| self.failed("manifest", attempts))? {
            Resolved::Digest(digest) => {
                // Looked up anew: it may have been removed or moved while the registry was asked.
                let named = self.reference.with_digest(&digest);
                if let Some(image) = self.service.find(&self.name).filter(|image| image.digests.contains(&named)) {
                    return Ok(image);
                }
                self.document(digest, None).await?
            }
            Resolved::Document { digest, bytes, media_type } => Arrived { digest, bytes, media_type },
        };
        let root_digest = root.digest;
        let documents = async {
            let (manifest_digest, manifest) = self.choose(root).await?;
            let file = self.config(manifest_digest, &manifest).await?;
            Ok::<_, PullError>((manifest, file))
        };
        let documents = documents.instrument(tracing::debug_span!("documents"));
        let (manifest, file) = counts.stage(Stage::Documents, documents).await?;
        if file.dropped_env > 0 {
            tracing::warn!(image = %self.name, entries = file.dropped_env, "environment entries that are not NAME=value are left out");
        }
        let layers = self.layers(&manifest.layers, &file.diff_ids).instrument(tracing::debug_span!("layers"));
        let layers = counts.stage(Stage::Layers, layers).await?;
        let commit = self.commit(root_digest, &manifest, file, layers).instrument(tracing::debug_span!("commit"));
        counts.stage(Stage::Commit, commit).await
    }

    /// Goes down from index to index to the manifest for this node.
    async fn choose(&mut self, root: Arrived) -> Result<(Digest, Manifest), PullError> {
        let mut current = root;
        for _ in 0..=DEPTH {
            let limits = &self.service.config().limits;
            let digest = current.digest;
            let document = Document::parse(&current.bytes, current.media_type.as_deref(), limits)
                .map_err(|source| self.invalid(digest, source))?;
            self.documents.push((digest, current.bytes));
            let index = match document {
                Document::Image(manifest) => return Ok((digest, manifest)),
                Document::Index(index) => index,
            };
            let target =
                index.choose(&self.service.config().platform).map_err(|source| self.invalid(digest, source))?;
            current = self.document(target.digest, Some(&target.media_type)).await?;
            let found = u64::try_from(current.bytes.len()).unwrap_or(u64::MAX);
            if found != target.size {
                return Err(self.invalid(digest, ManifestError::Size { stated: target.size, found }));
            }
        }
        Err(self.invalid(current.digest, ManifestError::TooDeep { limit: DEPTH }))
    }

    /// A document by digest: from the store, if it is there, else from the registry.
    async fn document(&self, digest: Digest, announced: Option<&str>) -> Result<Arrived, PullError> {
        if let Some(bytes) = self.stored(digest, self.service.config().limits.manifest_bytes).await {
            return Ok(Arrived { digest, bytes, media_type: announced.map(str::to_owned) });
        }
        let what = format!("manifest {}", short(&digest));
        let fetched = self.session.fetch_document(&digest).await.map_err(|attempts| self.failed(&what, attempts))?;
        let (bytes, media_type) = fetched;
        Ok(Arrived { digest, bytes, media_type: announced.map(str::to_owned).or(media_type) })
    }

    async fn config(&mut self, manifest_digest: Digest, manifest: &Manifest) -> Result<ImageFile, PullError> {
        let target = &manifest.config;
        let bytes = match self.stored(target.digest, self.service.config().limits.config_bytes).await {
            Some(bytes) => bytes,
            None => {
                let fetched = small_blob(&self.session, target.digest, target.size).await;
                fetched.map_err(|attempts| self.failed(&format!("config {}", short(&target.digest)), attempts))?
            }
        };
        let config = self.service.config();
        let file = ImageFile::parse(&bytes, manifest.layers.len(), &config.platform, &config.limits)
            .map_err(|source| self.invalid(manifest_digest, source))?;
        self.documents.push((target.digest, bytes));
        Ok(file)
    }

    /// All layers, at once; the first failure lets go of the others.
    async fn layers(&self, layers: &[LayerDescriptor], diff_ids: &[Digest]) -> Result<Vec<LayerHold>, PullError> {
        let job = Arc::new(Job::new());
        let count = layers.len();
        let mut wanted: HashMap<Digest, (usize, LayerDescriptor)> = HashMap::new();
        for (at, (descriptor, diff_id)) in layers.iter().zip(diff_ids).enumerate() {
            wanted.entry(*diff_id).or_insert((at + 1, *descriptor));
        }
        let transfers = wanted.into_iter().map(|(diff_id, (number, descriptor))| {
            let transfer = Transfer {
                layers: self.service.layers().clone(),
                session: self.session.clone(),
                downloads: self.service.pulls.downloads.clone(),
                counts: self.service.pulls.counts.clone(),
                job: job.clone(),
                descriptor,
                diff_id,
            };
            async move {
                let what = format!("layer {number} of {count} {}", short(&descriptor.digest));
                layer::hold(&self.service.pulls.layers, transfer).await.map_err(|failure| match failure {
                    LayerFailure::Registry(attempts) => self.failed(&what, attempts),
                    LayerFailure::Unpack(source) => PullError::unpack(&self.name, &what, source),
                    LayerFailure::Interrupted => PullError::Interrupted { reference: self.name.clone() },
                })
            }
        });
        try_join_all(transfers).await
    }

    async fn commit(
        self,
        root: Digest,
        manifest: &Manifest,
        file: ImageFile,
        layers: Vec<LayerHold>,
    ) -> Result<Arc<Image>, PullError> {
        let new = NewImage {
            id: manifest.config.digest,
            tags: self.reference.tagged().into_iter().collect(),
            digests: vec![self.reference.with_digest(&root)],
            config: file.config,
            diff_ids: file.diff_ids,
            layers,
            blobs: self.documents,
            pinned: false,
            checkpoint: manifest.checkpoint,
        };
        let service = self.service;
        match tokio::task::spawn_blocking(move || service.commit(new)).await {
            Ok(committed) => committed.map_err(|source| PullError::commit(&self.name, source)),
            Err(_) => Err(PullError::Interrupted { reference: self.name }),
        }
    }

    /// A blob that the store has; what it cannot read counts as absent and is fetched again.
    async fn stored(&self, digest: Digest, max: u64) -> Option<Vec<u8>> {
        let content = self.service.content().clone();
        if !content.has(&digest) {
            return None;
        }
        tokio::task::spawn_blocking(move || content.read(&digest, max).ok()).await.ok()?
    }

    fn failed(&self, what: &str, attempts: crate::registry::Attempts) -> PullError {
        PullError::from_attempts(&self.name, what, attempts)
    }

    fn invalid(&self, digest: Digest, source: ManifestError) -> PullError {
        PullError::InvalidManifest { reference: self.name.clone(), digest, source }
    }
}

/// A blob that fits into memory; its size has been held against the limits.
async fn small_blob(session: &Session, digest: Digest, size: u64) -> Result<Vec<u8>, crate::registry::Attempts> {
    let mut fetch = Fetch::new(session, digest, size);
    loop {
        let mut bytes = Vec::new();
        fetch.read(|piece| bytes.extend_from_slice(piece)).await?;
        let found = Digest::from_sha256(Sha256::digest(&bytes).into());
        if found == digest {
            return Ok(bytes);
        }
        fetch.blame(found);
    }
}
