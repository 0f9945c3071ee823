//! What a registry says an image is made of: manifests, indexes and configs, parsed into types that only hold checked values.
//! Pure functions over bytes whose size the caller has bounded; called on async tasks, no I/O. Owns the rules for which documents
//! are refused. Must never let one document be read in two ways (CVE-2021-41190), nor look anything up on the host.

mod config;
mod error;
mod platform;
mod raw;

#[cfg(test)]
mod tests;

use keelson_api::Digest;

pub use self::{config::ImageFile, error::ManifestError};
use crate::{
    config::{Limits, Platform},
    layer::{Compression, LayerDescriptor},
};

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker schema 2 manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Annotations of an image that carries the checkpoint of a container: CRI-O's first one, and the one that came to be shared.
const CHECKPOINT_NOTES: [&str; 2] =
    ["io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name"];

/// A document that a registry serves under `/manifests/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image for one platform.
    Image(Manifest),
    /// A choice of images.
    Index(Index),
}

/// One image: a config and layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The config blob.
    pub config: Target,
    /// The layer blobs.
    pub layers: Vec<LayerDescriptor>,
    /// A note says that the layers hold the checkpoint of a container.
    pub checkpoint: bool,
}

/// A choice of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    entries: Vec<Entry>,
}

/// One choice in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    target: Target,
    platform: Option<Platform>,
}

/// A blob or document that a document points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What it is said to be.
    pub media_type: String,
}

impl Document {
    /// Parses a manifest or index. `expected` is the media type that the registry's header or the index entry gives, if it is one
    /// that says anything.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8], expected: Option<&str>, limits: &Limits) -> Result<Self, ManifestError> {
        let raw: raw::Document = serde_json::from_slice(bytes).map_err(|source| error::json("manifest", &source))?;
        match raw::kind(&raw, expected.and_then(known))? {
            raw::Kind::Manifest => manifest(raw, limits).map(Self::Image),
            raw::Kind::Index => index(raw, limits).map(Self::Index),
        }
    }
}

impl Index {
    /// The entry to run on this node.
    ///
    /// # Errors
    /// [`ManifestError::NoPlatform`], naming what there is.
    pub fn choose(&self, want: &Platform) -> Result<&Target, ManifestError> {
        platform::choose(&self.entries, want)
    }
}

/// A media type that decides how a document is read; `None` for what careless servers say of everything.
fn known(media_type: &str) -> Option<&str> {
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    (!matches!(media_type, "" | "application/json" | "application/octet-stream" | "text/plain")).then_some(media_type)
}

fn manifest(raw: raw::Document, limits: &Limits) -> Result<Manifest, ManifestError> {
    let config = raw.config.ok_or(ManifestError::Missing { field: "config" })?;
    let config = target(config, "config", limits.config_bytes)?;
    check_config_type(&config.media_type, raw.artifact_type.as_deref())?;
    let layers = raw.layers.ok_or(ManifestError::Missing { field: "layers" })?;
    if layers.len() > limits.layers {
        return Err(ManifestError::TooMany { what: "layers", found: layers.len(), limit: limits.layers });
    }
    let layers = layers.into_iter().enumerate();
    let layers = layers.map(|(at, raw)| layer(raw, at + 1, limits)).collect::<Result<_, _>>()?;
    let notes = raw.annotations.unwrap_or_default();
    let checkpoint = CHECKPOINT_NOTES.iter().any(|name| notes.contains_key(*name));
    Ok(Manifest { config, layers, checkpoint })
}

fn check_config_type(media_type: &str, artifact: Option<&str>) -> Result<(), ManifestError> {
    match media_type {
        "application/vnd.oci.image.config.v1+json"
        | "application/vnd.docker.container.image.v1+json"
        // What Docker 1.10 pushed.
        | "application/octet-stream" => Ok(()),
        other => Err(ManifestError::NotAnImage { found: error::cut(artifact.unwrap_or(other)) }),
    }
}

fn layer(raw: raw::Descriptor, number: usize, limits: &Limits) -> Result<LayerDescriptor, ManifestError> {
    let urls = raw.urls.as_deref().unwrap_or_default();
    let media_type = raw.media_type.clone().unwrap_or_default();
    let foreign = media_type.contains("foreign") || media_type.contains("nondistributable");
    if let Some(url) = urls.first()
        && foreign
    {
        return Err(ManifestError::Foreign { layer: number, url: error::cut(url) });
    }
    if media_type.contains("+encrypted") {
        return Err(ManifestError::Encrypted { layer: number, media_type: error::cut(&media_type) });
    }
    let compression = Compression::from_media_type(&media_type)
        .ok_or_else(|| ManifestError::LayerType { layer: number, media_type: error::cut(&media_type) })?;
    let target = target(raw, "layer", limits.layer_blob_bytes)?;
    Ok(LayerDescriptor { digest: target.digest, size: target.size, compression })
}

fn index(raw: raw::Document, limits: &Limits) -> Result<Index, ManifestError> {
    let manifests = raw.manifests.ok_or(ManifestError::Missing { field: "manifests" })?;
    let mut entries = Vec::with_capacity(manifests.len());
    for mut raw in manifests {
        // BuildKit keeps attestations in the index as if they were images.
        let attestation = raw.annotations.as_ref().is_some_and(|notes| notes.contains_key("vnd.docker.reference.type"));
        let platform = raw.platform.take().map(raw::Platform::check);
        if attestation {
            continue;
        }
        entries.push(Entry { target: target(raw, "manifest", limits.manifest_bytes)?, platform });
    }
    Ok(Index { entries })
}

fn target(raw: raw::Descriptor, what: &'static str, limit: u64) -> Result<Target, ManifestError> {
    let digest = raw.digest.ok_or(ManifestError::Missing { field: "digest" })?;
    let digest = digest.parse().map_err(|source| ManifestError::Digest { what, source })?;
    let size = raw.size.ok_or(ManifestError::Missing { field: "size" })?;
    if size > limit {
        return Err(ManifestError::TooLarge { what, digest, size, limit });
    }
    let media_type = raw.media_type.ok_or(ManifestError::Missing { field: "mediaType" })?;
    Ok(Target { digest, size, media_type })
}
