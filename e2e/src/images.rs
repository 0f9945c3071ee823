//! Real images for tests, made from Debian packages: no registry and no network but the package mirror.
//! Runs in the `keelson-e2e` tool. Owns `images/` in the cache folder: blobs by digest, one `<name>.json` per image that is complete.
//! Must never put a file into the repository, nor rebuild what is complete.

mod layer;
mod packages;
mod recipe;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use recipe::{Recipe, all as recipes};

/// How a layer blob is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Zstd,
    None,
}

/// One image that is complete in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Built {
    /// Repository names and tags it is served under, without a registry: `library/busybox:latest`.
    pub names: Vec<String>,
    /// Digest of the manifest, `sha256:...`.
    pub manifest: String,
    pub media_type: String,
    /// Hash of the recipe that made it: another recipe builds anew.
    pub recipe: String,
}

/// The image store in the cache folder.
pub struct Store {
    dir: PathBuf,
}

impl Store {
    pub fn open() -> Result<Store> {
        let dir = crate::cache::dir().join("images");
        fs::create_dir_all(dir.join("blobs/sha256")).with_context(|| format!("create `{}`", dir.display()))?;
        Ok(Store { dir })
    }

    pub fn blob_path(&self, digest: &str) -> Option<PathBuf> {
        let digest: keelson_api::Digest = digest.parse().ok()?;
        Some(self.dir.join("blobs/sha256").join(digest.hex()))
    }

    /// Every complete image.
    pub fn built(&self) -> Result<Vec<Built>> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "json") {
                images.push(
                    serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("read `{}`", path.display()))?,
                );
            }
        }
        Ok(images)
    }

    /// Builds what is missing of the recipes whose name contains `filter`; says on stderr what it does.
    pub fn build(&self, filter: &str) -> Result<()> {
        for recipe in recipe::all().into_iter().filter(|r| r.file.contains(filter)) {
            let record = self.dir.join(format!("{}.json", recipe.file));
            let key = recipe.key();
            if let Ok(bytes) = fs::read(&record)
                && serde_json::from_slice::<Built>(&bytes).is_ok_and(|b| b.recipe == key)
            {
                continue;
            }
            eprintln!("building image {}", recipe.file);
            let built = self.assemble(&recipe, key).with_context(|| format!("build image `{}`", recipe.file))?;
            write_whole(&record, &serde_json::to_vec_pretty(&built)?)?;
        }
        Ok(())
    }

    fn assemble(&self, recipe: &Recipe, key: String) -> Result<Built> {
        let docker = recipe.docker;
        let mut diff_ids = Vec::new();
        let mut layers = Vec::new();
        for layer in &recipe.layers {
            let tree = tempfile::tempdir_in(&self.dir)?;
            packages::unpack(&self.dir.join("packages"), &layer.packages, layer.closure, tree.path())?;
            (layer.finish)(tree.path()).context("finish layer")?;
            let blob = layer::pack(tree.path(), layer.compression, &self.dir)?;
            let digest = blob.digest.clone();
            fs::rename(blob.file.into_temp_path().keep()?, self.blob_path(&digest).context("own digest")?)?;
            diff_ids.push(blob.diff_id);
            layers.push(
                json!({ "mediaType": layer_type(layer.compression, docker), "digest": digest, "size": blob.size }),
            );
        }
        let mut config = json!({
            "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
            "config": recipe.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        config["history"] = Value::Array(vec![json!({ "created_by": recipe.file }); layers.len()]);
        let config = self.put(&serde_json::to_vec(&config)?)?;
        let (manifest_type, config_type) = if docker {
            ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json")
        } else {
            ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json")
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": { "mediaType": config_type, "digest": config.0, "size": config.1 },
            "layers": layers,
        });
        let manifest = self.put(&serde_json::to_vec(&manifest)?)?;
        let mut top = (manifest.0.clone(), manifest_type.to_owned());
        if recipe.index {
            let media_type = "application/vnd.oci.image.index.v1+json";
            let index = json!({
                "schemaVersion": 2, "mediaType": media_type,
                "manifests": [
                    { "mediaType": manifest_type, "digest": format!("sha256:{}", "0".repeat(64)), "size": 2,
                      "platform": { "architecture": "s390x", "os": "linux" } },
                    { "mediaType": manifest_type, "digest": manifest.0, "size": manifest.1,
                      "platform": { "architecture": "amd64", "os": "linux" } },
                ],
            });
            top = (self.put(&serde_json::to_vec(&index)?)?.0, media_type.to_owned());
        }
        Ok(Built { names: recipe.names.clone(), manifest: top.0, media_type: top.1, recipe: key })
    }

    fn put(&self, bytes: &[u8]) -> Result<(String, usize)> {
        let digest = sha256(bytes);
        write_whole(&self.blob_path(&digest).context("own digest")?, bytes)?;
        Ok((digest, bytes.len()))
    }

    /// Names (`repository:tag`) to manifest digests and media types.
    pub fn names(&self) -> Result<BTreeMap<String, (String, String)>> {
        let mut names = BTreeMap::new();
        for image in self.built()? {
            for name in image.names {
                names.insert(name, (image.manifest.clone(), image.media_type.clone()));
            }
        }
        Ok(names)
    }
}

fn layer_type(compression: Compression, docker: bool) -> &'static str {
    match (compression, docker) {
        (Compression::Gzip, true) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        (Compression::None, true) => "application/vnd.docker.image.rootfs.diff.tar",
        (Compression::Gzip, false) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (Compression::Zstd, _) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (Compression::None, false) => "application/vnd.oci.image.layer.v1.tar",
    }
}

/// `sha256:<hex>` of the bytes.
pub fn sha256(bytes: &[u8]) -> String {
    keelson_api::Digest::from_sha256(Sha256::digest(bytes).into()).to_string()
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let temp = path.with_extension("partial");
    fs::write(&temp, bytes).with_context(|| format!("write `{}`", temp.display()))?;
    fs::rename(&temp, path).with_context(|| format!("rename to `{}`", path.display()))
}
