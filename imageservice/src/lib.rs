//! From a reference to a root filesystem: registry client, content store, layers, image records, snapshots.
//! A plain library linked into the daemon; pulls run on its tokio runtime, everything else is synchronous and made for
//! `spawn_blocking` or an owned thread. Owns the folders `content`, `layers`, `images`, `snapshots` and `trash` below one root.
//! Must never run a subprocess, speak CRI, or reach into an image's tree by a joined path.

pub mod config;
pub mod content;
mod disk;
pub mod gc;
pub mod image;
pub mod import;
pub mod layer;
pub mod manifest;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod snapshot;
pub mod store;
pub mod unpack;
pub mod usage;

pub use config::{Config, Limits, Platform};
pub use content::{Content, ContentError};
pub use image::{ChainId, Image, ImageConfig, ImageId};
pub use import::{ImportError, ImportedImage};
pub use keelson_api::Digest;
pub use layer::{Compression, Job, LayerDescriptor, LayerHold, Layers, UnpackError};
pub use pull::{PullCounts, PullError, PullRequest, StageTime};
pub use reference::Reference;
pub use snapshot::{Snapshot, SnapshotError, SnapshotKey};
pub use store::{CommitError, ImageService, NewImage, OpenError, RemoveError, Removed, Tree};
pub use unpack::{Contents, unpack_tree};
pub use usage::FsUsage;
