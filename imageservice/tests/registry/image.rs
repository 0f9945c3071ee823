//! Small images made in memory, and where a registry would keep their parts.
//! Plain functions. Owns nothing.
//! Must never depend on the code under test for a digest.

use std::io::Write as _;

use keelson_imageservice::Digest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::server::Shelf;

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// How a layer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Which family of media types is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Oci,
    Docker,
}

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) packing: Packing,
    pub(crate) tar: Vec<u8>,
    pub(crate) blob: Vec<u8>,
}

impl Layer {
    pub(crate) fn new(packing: Packing, files: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(1_700_000_000);
            builder.append_data(&mut header, path, *bytes).unwrap();
        }
        Self::of_tar(packing, builder.into_inner().unwrap())
    }

    pub(crate) fn of_tar(packing: Packing, tar: Vec<u8>) -> Self {
        let blob = match packing {
            Packing::Plain => tar.clone(),
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&tar).unwrap();
                encoder.finish().unwrap()
            }
            Packing::Zstd => zstd::encode_all(tar.as_slice(), 1).unwrap(),
        };
        Self { packing, tar, blob }
    }

    pub(crate) fn digest(&self) -> Digest {
        digest(&self.blob)
    }

    fn media_type(&self, family: Family) -> &'static str {
        match (family, self.packing) {
            (Family::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Family::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Family::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Family::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (Family::Docker, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Family::Docker, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

/// Bytes that do not compress, the same every time.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) family: Family,
    pub(crate) architecture: &'static str,
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

impl Image {
    pub(crate) fn new(family: Family, architecture: &'static str, layers: Vec<Layer>) -> Self {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| digest(&layer.tar)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": { "Env": ["PATH=/bin"], "Cmd": ["/hello"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let manifest = Self::manifest_of(family, &layers, &config).to_string().into_bytes();
        Self { family, architecture, layers, config, manifest }
    }

    /// One gzip layer with a file that tells `seed` apart.
    pub(crate) fn simple(seed: u64) -> Self {
        Self::of_sizes(seed, &[5_000])
    }

    pub(crate) fn of_sizes(seed: u64, sizes: &[usize]) -> Self {
        let layer = |(at, size): (usize, &usize)| {
            let bytes = noise(seed * 1000 + at as u64 + 1, *size);
            Layer::new(Packing::Gzip, &[(&format!("file-{at}"), &bytes)])
        };
        Self::new(Family::Oci, "amd64", sizes.iter().enumerate().map(layer).collect())
    }

    fn manifest_of(family: Family, layers: &[Layer], config: &[u8]) -> Value {
        let (manifest, config_type) = match family {
            Family::Oci => ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json"),
            Family::Docker => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
        };
        let descriptor = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() });
        let layers: Vec<Value> = layers.iter().map(|layer| descriptor(layer.media_type(family), &layer.blob)).collect();
        json!({ "schemaVersion": 2, "mediaType": manifest, "config": descriptor(config_type, config), "layers": layers })
    }

    pub(crate) fn media_type(&self) -> &'static str {
        match self.family {
            Family::Oci => "application/vnd.oci.image.manifest.v1+json",
            Family::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        digest(&self.manifest)
    }

    pub(crate) fn id(&self) -> Digest {
        digest(&self.config)
    }

    /// Puts all parts where `name:tag` is served.
    pub(crate) fn publish(&self, shelf: &mut Shelf, name: &str, tag: &str) {
        for wanted in [tag.to_owned(), self.digest().to_string()] {
            shelf.insert(format!("/v2/{name}/manifests/{wanted}"), (self.media_type().into(), self.manifest.clone()));
        }
        for blob in self.layers.iter().map(|layer| &layer.blob).chain([&self.config]) {
            shelf.insert(
                format!("/v2/{name}/blobs/{}", digest(blob)),
                ("application/octet-stream".into(), blob.clone()),
            );
        }
    }

    pub(crate) fn shelf(&self, name: &str, tag: &str) -> Shelf {
        let mut shelf = Shelf::new();
        self.publish(&mut shelf, name, tag);
        shelf
    }
}

/// Puts an index of images where `name:tag` is served; returns its digest.
pub(crate) fn publish_index(family: Family, images: &[&Image], shelf: &mut Shelf, (name, tag): (&str, &str)) -> Digest {
    let media_type = match family {
        Family::Oci => "application/vnd.oci.image.index.v1+json",
        Family::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
    };
    let entry = |image: &&Image| {
        image.publish(shelf, name, "unused");
        shelf.remove(&format!("/v2/{name}/manifests/unused"));
        json!({
            "mediaType": image.media_type(), "digest": image.digest(), "size": image.manifest.len(),
            "platform": { "os": "linux", "architecture": image.architecture },
        })
    };
    let entries: Vec<Value> = images.iter().map(entry).collect();
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries }).to_string().into_bytes();
    let id = digest(&index);
    for wanted in [tag.to_owned(), id.to_string()] {
        shelf.insert(format!("/v2/{name}/manifests/{wanted}"), (media_type.into(), index.clone()));
    }
    id
}
