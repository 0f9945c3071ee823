//! Why a manifest, index or config is refused.
//! Plain data; strings in it come from a registry and are cut and escaped before they are kept.
//! Owns nothing. Must never carry a whole document.

use keelson_api::{Digest, digest::InvalidDigest};

/// Why a document is not an image that this node can run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the right shape.
    #[error("parse {what}: {reason}")]
    Json {
        /// `manifest` or `config`.
        what: &'static str,
        /// The parser's words: position and type.
        reason: String,
    },
    /// A field that must be there.
    #[error("read manifest: `{field}` is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A manifest and an index at once (CVE-2021-41190).
    #[error("read manifest: it has both `layers` and `manifests`, which could be read in two ways")]
    Ambiguous,
    /// Header, index entry and document disagree on what it is.
    #[error("read manifest: it says `{found}` but was announced as `{expected}`")]
    MediaType {
        /// What the header or the index said.
        expected: String,
        /// What the document says.
        found: String,
    },
    /// The format of 2015.
    #[error("read manifest: it is Docker schema 1, which is not supported; push the image again with a current tool")]
    Schema1,
    /// A media type that is no manifest.
    #[error("read manifest: `{media_type}` is neither an image manifest nor an index")]
    Unknown {
        /// As given.
        media_type: String,
    },
    /// A chart, a signature, a model.
    #[error("read manifest: it is not a container image but an artifact of type `{found}`")]
    NotAnImage {
        /// Its type.
        found: String,
    },
    /// A digest that is none.
    #[error("read manifest: digest of {what}")]
    Digest {
        /// Of what.
        what: &'static str,
        /// What is wrong.
        source: InvalidDigest,
    },
    /// Larger than this node accepts.
    #[error("{what} {digest} has {size} bytes, more than {limit}, the limit of this node")]
    TooLarge {
        /// `config`, `layer` or `manifest`.
        what: &'static str,
        /// Which.
        digest: Digest,
        /// Stated size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// A document that is not as long as the index says.
    #[error("read manifest: it has {found} bytes, the index states {stated}")]
    Size {
        /// In the index.
        stated: u64,
        /// In truth.
        found: u64,
    },
    /// More than this node accepts.
    #[error("read manifest: {found} {what}, more than {limit}, the limit of this node")]
    TooMany {
        /// What was counted.
        what: &'static str,
        /// How many.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// A layer that lives elsewhere.
    #[error("layer {layer} would have to be fetched from `{url}`; layers outside the registry are refused")]
    Foreign {
        /// Number of the layer, from 1.
        layer: usize,
        /// Where.
        url: String,
    },
    /// A layer that needs a key.
    #[error("layer {layer} is encrypted (`{media_type}`); encrypted images are not supported")]
    Encrypted {
        /// Number of the layer, from 1.
        layer: usize,
        /// Its media type.
        media_type: String,
    },
    /// A layer that is no tar we know.
    #[error("layer {layer} has the media type `{media_type}`; plain, gzip and zstd tar layers are supported")]
    LayerType {
        /// Number of the layer, from 1.
        layer: usize,
        /// Its media type.
        media_type: String,
    },
    /// An index in an index in an index.
    #[error("read index: nested more than {limit} deep")]
    TooDeep {
        /// The bound.
        limit: usize,
    },
    /// Nothing for this node.
    #[error("the image is not built for {want}; it has {}", if found.is_empty() { "no image at all".to_owned() } else { found.join(", ") })]
    NoPlatform {
        /// This node.
        want: String,
        /// What there is.
        found: Vec<String>,
    },
    /// Manifest and config disagree (CVE-2026-24054 for none at all).
    #[error("the manifest has {layers} layers, the config {diff_ids} diff ids")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the config.
        diff_ids: usize,
    },
    /// A config value that cannot be handed to a process.
    #[error("read config: `{field}` holds a NUL byte")]
    Nul {
        /// The field.
        field: &'static str,
    },
}

/// A JSON error without the document's own text beyond what serde quotes, cut.
pub(super) fn json(what: &'static str, source: &serde_json::Error) -> ManifestError {
    ManifestError::Json { what, reason: cut(&source.to_string()) }
}

/// A stranger's text for a message: at most 200 characters, nothing unprintable.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(200).flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}
