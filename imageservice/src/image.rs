//! What an image is to the rest of the daemon: an id, names, a checked config, an ordered list of layers.
//! Plain data, shared as `Arc<Image>` between threads and never changed in place.
//! Owns the chain-id arithmetic. Must never hold anything that is only true while some file exists.

use std::{collections::BTreeMap, fmt};

use keelson_api::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The digest of an image's config blob.
pub type ImageId = Digest;

/// A pulled or imported image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the config blob.
    pub id: ImageId,
    /// Canonical `repository:tag` names, sorted.
    pub tags: Vec<String>,
    /// Canonical `repository@sha256:..` names, sorted.
    pub digests: Vec<String>,
    /// Bytes its layers and metadata occupy on disk; a layer shared with another image counts in both.
    pub size: u64,
    /// What the image's author asks for.
    pub config: ImageConfig,
    /// Uncompressed layer digests, bottom first, as the config lists them.
    pub diff_ids: Vec<Digest>,
    /// Chain id of each prefix of `diff_ids`.
    pub chain: Vec<ChainId>,
    /// Never to be collected by the kubelet.
    pub pinned: bool,
    /// A manifest that led to it says that it carries the checkpoint of a container. Anybody may say so of any image.
    pub checkpoint: bool,
}

/// The part of the OCI image config that decides how a container runs. Every string is **image-supplied**: no engine meaning may
/// ever be read from it (CVE-2026-53488).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers, unresolved.
    pub user: String,
    /// `NAME=value` entries as given.
    pub env: Vec<String>,
    /// Program and leading arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// Initial working directory; empty means `/`.
    pub working_dir: String,
    /// Declared volumes, sorted.
    pub volumes: Vec<String>,
    /// Signal name or number that asks the process to end.
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `port[/proto]` declarations, sorted.
    pub exposed_ports: Vec<String>,
    /// Creation time, RFC 3339, as the author states it.
    pub created: Option<String>,
}

/// Identity of a stack of layers (OCI image spec, "Layer ChainID").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(Digest);

impl ChainId {
    /// The chain ids of every prefix of `diff_ids`, bottom first.
    #[must_use]
    pub fn chain(diff_ids: &[Digest]) -> Vec<Self> {
        let mut chain: Vec<Self> = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let id = match chain.last() {
                None => *diff_id,
                Some(Self(parent)) => {
                    Digest::from_sha256(Sha256::digest(format!("{parent} {diff_id}").as_bytes()).into())
                }
            };
            chain.push(Self(id));
        }
        chain
    }

    /// The chain id as a digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_chain_id_is_the_diff_id_and_the_next_hashes_both() {
        let (a, b) = (Digest::from_sha256([1; 32]), Digest::from_sha256([2; 32]));
        let chain = ChainId::chain(&[a, b]);
        assert_eq!(chain[0].digest(), a);
        let want: [u8; 32] = Sha256::digest(format!("{a} {b}")).into();
        assert_eq!(chain[1].digest(), Digest::from_sha256(want));
        assert!(ChainId::chain(&[]).is_empty());
    }
}
