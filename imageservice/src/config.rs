//! What an image service is told once, at open: where it lives, which platform it picks, how much it will swallow.
//! Plain data, read by every thread of the service and changed by none.
//! Owns the default limits and the reason for each. Must never read a file or the environment.

use std::path::PathBuf;

/// Settings of an [`ImageService`](crate::ImageService). Build with `Config { root, ..Config::default() }`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder that holds everything of the service; made when missing, mode 0711.
    pub root: PathBuf,
    /// containerd-style tree of `<host>/hosts.toml`; may be absent.
    pub hosts_dir: PathBuf,
    /// Which manifest of an index is ours.
    pub platform: Platform,
    /// Bounds on what a registry may make us read, store and unpack.
    pub limits: Limits,
    /// Layers fetched at the same time, over all pulls.
    pub max_concurrent_downloads: usize,
    /// Keep compressed layer blobs in `content/` after unpacking. Off by default: nothing on the node reads them again, and they
    /// cost about a third of the image's disk and a second write of every byte (docs/decisions/0004). Manifests and configs are
    /// always kept.
    pub keep_blobs: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/keelson"),
            hosts_dir: PathBuf::from("/etc/keelson/certs.d"),
            platform: Platform::host(),
            limits: Limits::default(),
            max_concurrent_downloads: 4,
            keep_blobs: false,
        }
    }
}

/// An OCI platform, in Go's names (`linux`, `amd64`, `arm64`; variant `v8`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// CPU architecture.
    pub architecture: String,
    /// CPU variant; `None` matches any.
    pub variant: Option<String>,
}

impl Platform {
    /// The platform this program was compiled for.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.map(Into::into) }
    }
}

/// Upper bounds. Each has a default that no honest image of today comes near.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of one manifest or index (the OCI distribution spec asks registries for at least 4 MiB).
    pub manifest_bytes: u64,
    /// Bytes of one image config.
    pub config_bytes: u64,
    /// Compressed bytes of one layer, as its descriptor states them.
    pub layer_blob_bytes: u64,
    /// Tar bytes of one layer.
    pub layer_bytes: u64,
    /// Tar bytes of all layers of one image that are unpacked by one pull.
    pub image_bytes: u64,
    /// Tar bytes per compressed byte, once more than `ratio_floor_bytes` came out.
    pub ratio: u64,
    /// Output below which the ratio is not looked at: small files of zeros are honest.
    pub ratio_floor_bytes: u64,
    /// Entries in one layer.
    pub entries: u64,
    /// Bytes of the names of all folders and whiteouts of one layer: they are held in memory until it is done.
    pub name_bytes: u64,
    /// Bytes of the records of all layers unpacked for one image: they stay in memory, with every folder that a layer only implies.
    pub record_bytes: u64,
    /// Bytes of one path or link target; the kernel's own bound.
    pub path_bytes: usize,
    /// Components of one path.
    pub path_depth: usize,
    /// Bytes of one long-name, long-link or PAX header, extended attributes included.
    pub header_bytes: u64,
    /// Bytes of one extended attribute's value; the kernel's own bound.
    pub xattr_bytes: usize,
    /// Layers of one image; overlayfs stacks at most 500.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            layer_blob_bytes: 64 << 30,
            layer_bytes: 128 << 30,
            image_bytes: 256 << 30,
            ratio: 200,
            ratio_floor_bytes: 1 << 30,
            entries: 2_000_000,
            name_bytes: 128 << 20,
            record_bytes: 32 << 20,
            path_bytes: 4095,
            path_depth: 1024,
            header_bytes: 1 << 20,
            xattr_bytes: 64 << 10,
            layers: 256,
        }
    }
}
