//! One layer blob in one pass: hash, inflate, hash again, extract.
//! Two threads per layer: the caller's extracts, a scoped one reads, hashes and inflates, with a bounded channel between.
//! Owns nothing but its buffers. Must never write outside the folder it was given, whatever the archive says.

mod archive;
mod extract;
mod path;
mod pax;
mod sparse;
mod stream;
mod tree;

use std::{
    io::{self, Read},
    os::fd::OwnedFd,
    sync::mpsc::{channel, sync_channel},
};

use keelson_api::Digest;

use self::{
    archive::Archive,
    stream::{Chunks, Produced, Stopped},
};
use crate::{
    config::Limits,
    content::BlobWriter,
    layer::{Compression, Job, LayerDescriptor},
    usage::FsUsage,
};

/// Why a layer was not unpacked. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The job was cancelled.
    #[error("unpack layer: cancelled")]
    Cancelled,
    /// The blob's source failed.
    #[error("read layer blob {digest}")]
    Read {
        /// The blob.
        digest: Digest,
        /// What the source said.
        source: io::Error,
    },
    /// More or fewer bytes came than the manifest states.
    #[error("read layer blob {digest}: the manifest states {expected} bytes, {found} came")]
    Size {
        /// The blob.
        digest: Digest,
        /// Stated.
        expected: u64,
        /// Come; one more than stated when the rest was not read.
        found: u64,
    },
    /// The blob is not the one the manifest names.
    #[error("verify layer blob {expected}: what came has the digest {found}")]
    Digest {
        /// Named.
        expected: Digest,
        /// Come.
        found: Digest,
    },
    /// The tar inside is not the one the image config names.
    #[error("verify layer {expected}: what was unpacked has the diff id {found}")]
    DiffId {
        /// Named.
        expected: Digest,
        /// Unpacked.
        found: Digest,
    },
    /// The compressed stream is broken.
    #[error("inflate layer blob {digest} as {compression:?}")]
    Inflate {
        /// The blob.
        digest: Digest,
        /// How it was read.
        compression: Compression,
        /// What the decoder said.
        source: io::Error,
    },
    /// The archive is not a tar that we understand.
    #[error("read tar entry {entry} of the layer: {reason}")]
    Archive {
        /// Number of the entry, from 1.
        entry: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// An entry that must not be unpacked.
    #[error("unpack `{path}`: {reason}")]
    Refused {
        /// The entry's name as the archive has it, lossy, cut.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// The layer is larger than this node accepts.
    #[error("unpack layer: more than {limit} {what}, the limit of this node")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// No space or no inodes are left.
    #[error("{act} `{path}`: the disk is full; free space on the image filesystem and pull again")]
    DiskFull {
        /// What was attempted.
        act: &'static str,
        /// On what.
        path: String,
    },
    /// The filesystem refused.
    #[error("{act} `{path}`")]
    Io {
        /// What was attempted.
        act: &'static str,
        /// On what.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl UnpackError {
    /// An I/O failure on our own filesystem, with a full disk told apart.
    pub(crate) fn io(act: &'static str, path: &str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { act, path: path.to_owned() },
            _ => Self::Io { act, path: path.to_owned(), source },
        }
    }
}

/// What to unpack, against what to verify it, and where to.
pub(crate) struct Request<'a> {
    pub(crate) descriptor: &'a LayerDescriptor,
    pub(crate) diff_id: &'a Digest,
    pub(crate) limits: &'a Limits,
    pub(crate) job: &'a Job,
    /// An empty folder, and the one around it where replaced folders are put.
    pub(crate) root: &'a OwnedFd,
    pub(crate) aside: &'a OwnedFd,
    /// Where a copy of the compressed bytes goes, if they are kept.
    pub(crate) blob: Option<BlobWriter>,
}

/// A layer that was unpacked and verified.
pub(crate) struct Unpacked {
    pub(crate) usage: FsUsage,
    pub(crate) implied: Vec<String>,
    /// Mode, uid and gid of the root, where the archive says so.
    pub(crate) root: Option<(u32, u32, u32)>,
    pub(crate) opaque_root: bool,
    pub(crate) blob: Option<BlobWriter>,
}

/// What an archive is trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// A layer of an image: anything.
    Layer,
    /// What a container has changed in its filesystem, in the form of a layer: no devices; set-id bits and file capabilities are
    /// taken from what it holds.
    Changes,
    /// Regular files and folders, nothing that points anywhere.
    Files,
}

/// Unpacks a plain tar from whoever wrote it into the empty folder `root`; `aside` is an empty place on the same filesystem for what
/// a later entry replaces. Limits as for a layer. Blocks; what was made before an error stays for the caller to remove.
///
/// # Errors
/// The archive is broken, has an entry that `contents` does not allow, is larger than the limits, or the filesystem refused.
pub fn unpack_tree(
    reader: impl Read,
    (root, aside): (&OwnedFd, &OwnedFd),
    limits: &Limits,
    contents: Contents,
) -> Result<FsUsage, UnpackError> {
    let bounded = Bounded { reader, left: limits.layer_bytes };
    let mut archive = Archive::new(io::BufReader::with_capacity(128 << 10, bounded), limits);
    extract::extract(&mut archive, (root, aside), (limits, contents)).map(|finished| finished.usage)
}

/// A reader that fails, rather than ends, when more comes than is allowed.
struct Bounded<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.reader.read(buffer)?;
        self.left = self
            .left
            .checked_sub(u64::try_from(got).unwrap_or(u64::MAX))
            .ok_or_else(|| io::Error::other("the archive is larger than this node accepts"))?;
        Ok(got)
    }
}

/// Unpacks and verifies. Of two errors, the reader's is returned: what the extractor then saw follows from it.
pub(crate) fn run(request: Request<'_>, reader: impl Read + Send) -> Result<Unpacked, UnpackError> {
    let (root, aside, limits, expected) = (request.root, request.aside, request.limits, *request.diff_id);
    let (send, receive) = sync_channel(stream::DEPTH);
    let (give_back, used) = channel();
    let (produced, extracted) = std::thread::scope(|scope| {
        let producer = std::thread::Builder::new()
            .name("keelson-inflate".into())
            .spawn_scoped(scope, move || stream::produce(request, reader, &send, &used));
        let mut archive = Archive::new(Chunks::new(receive, give_back), limits);
        let producer = match producer {
            Ok(producer) => producer,
            Err(source) => return (Ok(Err(Stopped::By(UnpackError::io("start thread for", "layer", source)))), None),
        };
        let extracted = extract::extract(&mut archive, (root, aside), (limits, Contents::Layer));
        let mut chunks = archive.into_input();
        if extracted.is_ok() {
            chunks.drain();
        }
        drop(chunks);
        (producer.join(), Some(extracted))
    });
    let produced = match produced {
        Ok(produced) => produced,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    let Produced { diff_id, blob } = match produced {
        Ok(produced) => produced,
        Err(Stopped::By(error)) => return Err(error),
        Err(Stopped::ByExtractor) => return Err(extracted.and_then(Result::err).unwrap_or(UnpackError::Cancelled)),
    };
    let Some(extracted) = extracted else { return Err(UnpackError::Cancelled) };
    let tree::Finished { usage, implied, root, opaque_root } = extracted?;
    if diff_id != expected {
        return Err(UnpackError::DiffId { expected, found: diff_id });
    }
    Ok(Unpacked { usage, implied, root, opaque_root, blob })
}
