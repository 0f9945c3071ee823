//! Manifests as they are written: every field optional, unknown ones ignored, decided only when the whole is known.
//! Plain data for `serde_json`, whose recursion limit bounds the depth. Owns the rule for what a document is.
//! Must never be used beyond this folder.

use std::collections::HashMap;

use serde::{Deserialize, de::IgnoredAny};

use super::{DOCKER_LIST, DOCKER_MANIFEST, ManifestError, OCI_INDEX, OCI_MANIFEST, error::cut};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    pub(super) artifact_type: Option<String>,
    pub(super) config: Option<Descriptor>,
    pub(super) layers: Option<Vec<Descriptor>>,
    pub(super) manifests: Option<Vec<Descriptor>>,
    pub(super) annotations: Option<HashMap<String, IgnoredAny>>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: Option<String>,
    pub(super) digest: Option<String>,
    pub(super) size: Option<u64>,
    pub(super) urls: Option<Vec<String>>,
    pub(super) platform: Option<Platform>,
    pub(super) annotations: Option<HashMap<String, IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Platform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl Platform {
    pub(super) fn check(self) -> crate::config::Platform {
        crate::config::Platform {
            os: cut(&self.os.unwrap_or_default()),
            architecture: cut(&self.architecture.unwrap_or_default()),
            variant: self.variant.filter(|variant| !variant.is_empty()).map(|variant| cut(&variant)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Index,
}

/// What the document is, when all that speaks of it agrees: what announced it, its own media type, and its shape.
pub(super) fn kind(raw: &Document, announced: Option<&str>) -> Result<Kind, ManifestError> {
    let own = raw.media_type.as_deref().filter(|own| !own.is_empty());
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() || announced.or(own).is_some_and(is_schema1) {
        return Err(ManifestError::Schema1);
    }
    if raw.layers.is_some() && raw.manifests.is_some() {
        return Err(ManifestError::Ambiguous);
    }
    if let (Some(expected), Some(found)) = (announced, own)
        && expected != found
    {
        return Err(ManifestError::MediaType { expected: cut(expected), found: cut(found) });
    }
    let stated = match own.or(announced) {
        None => None,
        Some(OCI_MANIFEST | DOCKER_MANIFEST) => Some(Kind::Manifest),
        Some(OCI_INDEX | DOCKER_LIST) => Some(Kind::Index),
        Some(other) => return Err(ManifestError::Unknown { media_type: cut(other) }),
    };
    let shape = match (&raw.layers, &raw.manifests) {
        (Some(_), _) => Some(Kind::Manifest),
        (None, Some(_)) => Some(Kind::Index),
        (None, None) => None,
    };
    match (stated, shape) {
        (Some(Kind::Manifest), Some(Kind::Manifest)) | (None, Some(Kind::Manifest)) => Ok(Kind::Manifest),
        (Some(Kind::Index), Some(Kind::Index)) | (None, Some(Kind::Index)) => Ok(Kind::Index),
        (Some(Kind::Manifest), _) => Err(ManifestError::Missing { field: "layers" }),
        (Some(Kind::Index), _) => Err(ManifestError::Missing { field: "manifests" }),
        (None, None) => Err(ManifestError::Missing { field: "layers" }),
    }
}

fn is_schema1(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.docker.distribution.manifest.v1+")
}
