//! The inflating half of an unpacking: compressed bytes in, tar bytes out, in chunks over a bounded channel.
//! `produce` runs on its own scoped thread, [`Chunks`] on the extracting one; chunk buffers travel round and are reused.
//! Owns both hashes, the size check and the bomb limits. Must never read past what the descriptor states by more than one read.

use std::{
    cell::Cell,
    io::{self, BufRead, Read},
    sync::mpsc::{Receiver, Sender, SyncSender},
};

use keelson_api::Digest;
use sha2::{Digest as _, Sha256};

use super::{Request, UnpackError};
use crate::{
    config::Limits,
    content::BlobWriter,
    layer::{Compression, Job, LayerDescriptor},
};

/// Size of a chunk and of one read from the source: large enough that the channel costs nothing, small enough for the cache.
const CHUNK: usize = 256 << 10;

/// Chunks on their way between the two threads.
pub(super) const DEPTH: usize = 6;

/// zstd windows above 128 MiB are refused: the decoder would allocate one.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What came of the whole stream.
pub(super) struct Produced {
    /// Digest of the tar, for the caller to compare.
    pub(super) diff_id: Digest,
    /// A copy of the blob, verified.
    pub(super) blob: Option<BlobWriter>,
}

/// Why producing ended early.
pub(super) enum Stopped {
    /// The extractor went away; it knows why.
    ByExtractor,
    /// For a reason of our own.
    By(UnpackError),
}

/// Reads the blob to its end, sends the tar that is in it, and verifies the blob.
pub(super) fn produce(
    request: Request<'_>,
    reader: impl Read,
    chunks: &SyncSender<Vec<u8>>,
    used: &Receiver<Vec<u8>>,
) -> Result<Produced, Stopped> {
    let Request { descriptor, limits, job, blob, .. } = request;
    let taken = Cell::new(0);
    let mut source = Source::new(reader, descriptor, job, blob, &taken);
    let mut sink = Sink { chunks, used, limits, job, taken: &taken, hash: Sha256::new(), out: 0 };
    let compression = source.detect().map_err(Stopped::By)?;
    let pumped = match compression {
        Compression::Plain => sink.pump(&mut source),
        Compression::Gzip => sink.pump(&mut flate2::bufread::MultiGzDecoder::new(&mut source)),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(&mut source)
            .and_then(|mut decoder| decoder.window_log_max(ZSTD_WINDOW_LOG).map(|()| decoder))
            .map_err(Pumping::Inflate)
            .and_then(|mut decoder| sink.pump(&mut decoder)),
    };
    let diff_id = Digest::from_sha256(sink.hash.finalize().into());
    match pumped {
        Ok(()) => {}
        Err(Pumping::Gone) => return Err(Stopped::ByExtractor),
        Err(Pumping::Refused(error)) => return Err(Stopped::By(error)),
        // A decoder passes on what its source said, and that is the better error.
        Err(Pumping::Inflate(error)) => {
            let own = UnpackError::Inflate { digest: descriptor.digest, compression, source: error };
            return Err(Stopped::By(source.failed.take().unwrap_or(own)));
        }
    }
    let blob = source.finish().map_err(Stopped::By)?;
    Ok(Produced { diff_id, blob })
}

/// The compressed bytes: counted, hashed, kept if they are to be kept.
struct Source<'a, R> {
    reader: R,
    descriptor: &'a LayerDescriptor,
    job: &'a Job,
    blob: Option<BlobWriter>,
    hash: Sha256,
    taken: &'a Cell<u64>,
    buffer: Vec<u8>,
    /// What of the buffer is filled and not yet consumed.
    ready: std::ops::Range<usize>,
    /// Why reading failed.
    failed: Option<UnpackError>,
}

impl<'a, R: Read> Source<'a, R> {
    fn new(
        reader: R,
        descriptor: &'a LayerDescriptor,
        job: &'a Job,
        blob: Option<BlobWriter>,
        taken: &'a Cell<u64>,
    ) -> Self {
        let buffer = vec![0; CHUNK];
        Self { reader, descriptor, job, blob, hash: Sha256::new(), taken, buffer, ready: 0..0, failed: None }
    }

    /// Takes up to `room` more bytes behind what is ready; 0 at the end.
    fn take_more(&mut self) -> Result<usize, UnpackError> {
        if self.job.is_cancelled() {
            return Err(UnpackError::Cancelled);
        }
        let digest = self.descriptor.digest;
        let room = self.buffer.get_mut(self.ready.end..).unwrap_or_default();
        let got = loop {
            match self.reader.read(room) {
                Ok(got) => break got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(UnpackError::Read { digest, source }),
            }
        };
        let new = room.get(..got).unwrap_or_default();
        self.hash.update(new);
        let taken = self.taken.get().saturating_add(u64::try_from(got).unwrap_or(u64::MAX));
        self.taken.set(taken);
        if taken > self.descriptor.size {
            return Err(UnpackError::Size { digest, expected: self.descriptor.size, found: taken });
        }
        if let Some(blob) = &mut self.blob {
            blob.write(new).map_err(|source| UnpackError::io("write blob", "content/tmp", source))?;
        }
        self.ready.end += got;
        Ok(got)
    }

    /// What the bytes say they are. A media type that says otherwise is common and harmless, since both digests are verified; one that
    /// promises compression over bytes that are neither compressed nor a tar is an error here rather than a riddle later.
    fn detect(&mut self) -> Result<Compression, UnpackError> {
        while self.ready.len() < 512 && self.take_more()? > 0 {}
        let head = self.buffer.get(self.ready.clone()).unwrap_or_default();
        let skippable = |head: &[u8]| matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
        let found = match head {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            _ if skippable(head) => Compression::Zstd,
            _ => Compression::Plain,
        };
        let tar = head.get(257..262) == Some(b"ustar".as_slice()) || head.iter().all(|byte| *byte == 0);
        let stated = self.descriptor.compression;
        if found == Compression::Plain && stated != Compression::Plain && !tar {
            let source = io::Error::new(io::ErrorKind::InvalidData, "its first bytes are not those of that format");
            return Err(UnpackError::Inflate { digest: self.descriptor.digest, compression: stated, source });
        }
        Ok(found)
    }

    /// Reads what the decoder left, which must be nothing that it should have read, and verifies the whole.
    fn finish(mut self) -> Result<Option<BlobWriter>, UnpackError> {
        loop {
            self.ready = 0..0;
            if self.take_more()? == 0 {
                break;
            }
        }
        let LayerDescriptor { digest, size, .. } = *self.descriptor;
        if self.taken.get() != size {
            return Err(UnpackError::Size { digest, expected: size, found: self.taken.get() });
        }
        let found = Digest::from_sha256(self.hash.finalize().into());
        if found != digest {
            return Err(UnpackError::Digest { expected: digest, found });
        }
        Ok(self.blob)
    }
}

impl<R: Read> BufRead for Source<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.ready.is_empty() {
            self.ready = 0..0;
            if let Err(error) = self.take_more() {
                self.failed = Some(error);
                return Err(io::Error::other("source failed"));
            }
        }
        Ok(self.buffer.get(self.ready.clone()).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.ready.start = (self.ready.start + amount).min(self.ready.end);
    }
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.fill_buf()?.read(into)?;
        self.consume(got);
        Ok(got)
    }
}

enum Pumping {
    Inflate(io::Error),
    Refused(UnpackError),
    Gone,
}

/// The tar bytes: counted, hashed, sent.
struct Sink<'a> {
    chunks: &'a SyncSender<Vec<u8>>,
    used: &'a Receiver<Vec<u8>>,
    limits: &'a Limits,
    job: &'a Job,
    taken: &'a Cell<u64>,
    hash: Sha256,
    out: u64,
}

impl Sink<'_> {
    fn pump(&mut self, decoder: &mut dyn Read) -> Result<(), Pumping> {
        loop {
            let mut chunk = self.used.try_recv().unwrap_or_default();
            chunk.resize(CHUNK, 0);
            let mut filled = 0;
            while let Some(room) = chunk.get_mut(filled..).filter(|room| !room.is_empty()) {
                match decoder.read(room) {
                    Ok(0) => break,
                    Ok(got) => filled += got,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Pumping::Inflate(error)),
                }
            }
            if filled == 0 {
                return Ok(());
            }
            let ended = filled < chunk.len();
            chunk.truncate(filled);
            self.hash.update(&chunk);
            self.account(u64::try_from(filled).unwrap_or(u64::MAX)).map_err(Pumping::Refused)?;
            self.chunks.send(chunk).map_err(|_| Pumping::Gone)?;
            if ended {
                return Ok(());
            }
        }
    }

    fn account(&mut self, bytes: u64) -> Result<(), UnpackError> {
        let limits = self.limits;
        // Not only where bytes come in: a few of them may make gigabytes.
        if self.job.is_cancelled() {
            return Err(UnpackError::Cancelled);
        }
        self.out = self.out.saturating_add(bytes);
        if self.out > limits.layer_bytes {
            return Err(UnpackError::Limit { what: "bytes in one layer", limit: limits.layer_bytes });
        }
        if self.job.add(bytes) > limits.image_bytes {
            return Err(UnpackError::Limit { what: "bytes in one image", limit: limits.image_bytes });
        }
        if self.out > limits.ratio_floor_bytes && self.out > self.taken.get().saturating_mul(limits.ratio) {
            return Err(UnpackError::Limit { what: "bytes out of each compressed byte", limit: limits.ratio });
        }
        Ok(())
    }
}

/// The tar bytes on the extractor's side.
pub(super) struct Chunks {
    chunks: Receiver<Vec<u8>>,
    used: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Chunks {
    pub(super) fn new(chunks: Receiver<Vec<u8>>, used: Sender<Vec<u8>>) -> Self {
        Self { chunks, used, chunk: Vec::new(), at: 0 }
    }

    /// Lets the producer run to its end: what follows a tar's end marker still counts for the diff id.
    pub(super) fn drain(&mut self) {
        while self.next_chunk() {}
    }

    /// Whether there is one.
    fn next_chunk(&mut self) -> bool {
        let Ok(next) = self.chunks.recv() else {
            self.at = self.chunk.len();
            return false;
        };
        // A producer that is gone needs no buffers.
        let _ = self.used.send(std::mem::replace(&mut self.chunk, next));
        self.at = 0;
        true
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at >= self.chunk.len() {
            self.next_chunk();
        }
        Ok(self.chunk.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.chunk.len());
    }
}

impl Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.fill_buf()?.read(into)?;
        self.consume(got);
        Ok(got)
    }
}
