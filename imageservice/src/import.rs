//! An image from memory instead of a registry: the one that `keelson try` carries in its own binary.
//! Runs on a blocking thread. Owns nothing: blobs, layers and record go the same way as those of a pull.
//! Must never be a second, laxer way in: the same limits and the same extractor apply.

use std::sync::Arc;

use keelson_api::Digest;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    image::{Image, ImageConfig},
    layer::{Compression, Job, LayerDescriptor, UnpackError},
    reference::Reference,
    store::{CommitError, ImageService, NewImage},
};

/// An image in memory.
#[derive(Debug, Clone, Default)]
pub struct ImportedImage {
    /// Its name, as a person would write it.
    pub name: String,
    /// How it runs.
    pub config: ImageConfig,
    /// Uncompressed tars, bottom first.
    pub layers: Vec<Vec<u8>>,
    /// Never to be collected by the kubelet.
    pub pinned: bool,
}

/// Why an image was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The name is no image reference.
    #[error("import image `{name}`: {reason}")]
    Name {
        /// As given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer was refused.
    #[error("import image `{name}`: layer {layer}")]
    Unpack {
        /// As given.
        name: String,
        /// Number of the layer, from 1.
        layer: usize,
        /// Why.
        source: UnpackError,
    },
    /// The image could not be recorded.
    #[error("import image `{name}`")]
    Commit {
        /// As given.
        name: String,
        /// Why.
        source: CommitError,
    },
}

impl ImageService {
    /// Makes an image from tars in memory. Importing the same again is a success that changes nothing.
    ///
    /// # Errors
    /// [`ImportError`]; nothing is left then.
    pub fn import(&self, image: ImportedImage) -> Result<Arc<Image>, ImportError> {
        let ImportedImage { name, config, layers, pinned } = image;
        let tag = match name.parse::<Reference>() {
            Ok(reference) => reference.to_string(),
            Err(error) => return Err(ImportError::Name { name, reason: error.to_string() }),
        };
        let job = Job::new();
        let (mut diff_ids, mut holds) = (Vec::new(), Vec::new());
        for (number, tar) in layers.iter().enumerate() {
            let digest = digest_of(tar);
            let size = u64::try_from(tar.len()).unwrap_or(u64::MAX);
            let descriptor = LayerDescriptor { digest, size, compression: Compression::Plain };
            let hold = self
                .layers
                .unpack(&descriptor, &digest, tar.as_slice(), &job)
                .map_err(|source| ImportError::Unpack { name: name.clone(), layer: number + 1, source })?;
            diff_ids.push(digest);
            holds.push(hold);
        }
        let blob = self.config_blob(&config, &diff_ids);
        let id = digest_of(&blob);
        self.commit(NewImage {
            id,
            tags: vec![tag],
            digests: Vec::new(),
            config,
            diff_ids,
            layers: holds,
            blobs: vec![(id, blob)],
            pinned,
            checkpoint: false,
        })
        .map_err(|source| ImportError::Commit { name, source })
    }

    /// The OCI image config that says the same.
    fn config_blob(&self, config: &ImageConfig, diff_ids: &[Digest]) -> Vec<u8> {
        let set =
            |names: &[String]| names.iter().map(|name| (name.clone(), json!({}))).collect::<serde_json::Map<_, _>>();
        let platform = &self.config.platform;
        let document = json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "created": config.created,
            "config": {
                "User": config.user,
                "Env": config.env,
                "Entrypoint": config.entrypoint,
                "Cmd": config.cmd,
                "WorkingDir": config.working_dir,
                "StopSignal": config.stop_signal,
                "Labels": config.labels,
                "Volumes": set(&config.volumes),
                "ExposedPorts": set(&config.exposed_ports),
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        document.to_string().into_bytes()
    }
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}
