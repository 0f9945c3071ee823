//! One layer from the registry into the store: an async transfer feeds a blocking unpacker through a bounded channel.
//! Async, as a task that all pulls of the layer share; the unpacker runs on a blocking thread.
//! Owns the hand-over. Must never let an unpacker take a transfer that was given up for one that is complete.

use std::{
    io::{self, Read},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::{Buf as _, Bytes};
use keelson_api::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, mpsc};
use tracing::Instrument as _;

use super::{counts::Counts, flight::Flights, short};
use crate::{
    layer::{Job, LayerDescriptor, LayerHold, Layers, UnpackError},
    registry::{Attempts, Ended, Fetch, Session},
};

/// Pieces between network and unpacker; each is at most what one read of a socket gives.
const PIECES: usize = 32;

/// What is transferred under which name. Both digests: an image that pairs a blob with a wrong diff id fails alone.
pub(super) type LayerKey = (Digest, Digest);
pub(super) type LayerResult = Result<Arc<LayerHold>, LayerFailure>;

/// Why a layer is not here.
#[derive(Debug, Clone)]
pub(super) enum LayerFailure {
    Registry(Attempts),
    Unpack(Arc<UnpackError>),
    Interrupted,
}

/// Everything that one layer's transfer needs.
#[derive(Clone)]
pub(super) struct Transfer {
    pub(super) layers: Layers,
    pub(super) session: Arc<Session>,
    pub(super) downloads: Arc<Semaphore>,
    pub(super) counts: Arc<Counts>,
    pub(super) job: Arc<Job>,
    pub(super) descriptor: LayerDescriptor,
    pub(super) diff_id: Digest,
}

/// The layer, held: at once if it is here, else by the transfer under way, else by one of our own.
pub(super) async fn hold(
    flights: &Flights<LayerKey, LayerResult>,
    transfer: Transfer,
) -> Result<LayerHold, LayerFailure> {
    let key = (transfer.descriptor.digest, transfer.diff_id);
    loop {
        if let Some(hold) = transfer.layers.hold(&transfer.diff_id) {
            return Ok(hold);
        }
        let ours = transfer.clone();
        let span = || tracing::debug_span!("layer", digest = short(&key.0), size = transfer.descriptor.size);
        let (result, started) = flights.join(key, || ours.run().instrument(span())).await;
        match result {
            Some(Ok(shared)) => {
                // Our own hold, while the shared one keeps the layer.
                let own = transfer.layers.hold(&transfer.diff_id);
                drop(shared);
                return own.ok_or(LayerFailure::Interrupted);
            }
            Some(Err(failure)) if started => return Err(failure),
            // Somebody else's registry or credentials failed; ours may not.
            Some(Err(_)) => {}
            None => return Err(LayerFailure::Interrupted),
        }
    }
}

impl Transfer {
    async fn run(self) -> LayerResult {
        let Ok(_permit) = self.downloads.acquire().await else { return Err(LayerFailure::Interrupted) };
        let mut fetch = Fetch::new(&self.session, self.descriptor.digest, self.descriptor.size);
        loop {
            let (sender, receiver) = mpsc::channel(PIECES);
            let (layers, job) = (self.layers.clone(), self.job.clone());
            let (descriptor, diff_id) = (self.descriptor, self.diff_id);
            let pieces = Pieces::new(receiver, self.counts.clone());
            let unpack = tokio::task::spawn_blocking(move || layers.unpack(&descriptor, &diff_id, pieces, &job));
            let sent = fetch.run(&sender).await;
            if sent.is_ok() {
                // The empty piece says that this is the end. A reader that has gone will tell why.
                let _ = sender.send(Ok(Bytes::new())).await;
            }
            drop(sender);
            match (sent, unpack.await) {
                (_, Ok(Ok(hold))) => return Ok(Arc::new(hold)),
                (Err(Ended::Failed(attempts)), _) => return Err(LayerFailure::Registry(attempts)),
                // The endpoint sent something else; perhaps the next one does not.
                (Ok(()), Ok(Err(UnpackError::Digest { found, .. }))) => fetch.blame(found),
                (_, Ok(Err(error))) => {
                    let suspect = blames_content(&error);
                    let wrong = if suspect { wrong_digest(&mut fetch, &self.descriptor).await } else { None };
                    match wrong {
                        Some(found) => fetch.blame(found),
                        None => return Err(LayerFailure::Unpack(Arc::new(error))),
                    }
                }
                (_, Err(_)) => return Err(LayerFailure::Interrupted),
            }
        }
    }
}

/// Whether altered content could be the reason: the unpacker stops at the first bad byte, before it knows the digest of all.
fn blames_content(error: &UnpackError) -> bool {
    match error {
        UnpackError::Inflate { .. }
        | UnpackError::Archive { .. }
        | UnpackError::Refused { .. }
        | UnpackError::Limit { .. } => true,
        UnpackError::Size { .. } | UnpackError::Digest { .. } | UnpackError::DiffId { .. } | UnpackError::Cancelled => {
            false
        }
        UnpackError::Read { .. } | UnpackError::DiskFull { .. } | UnpackError::Io { .. } => false,
    }
}

/// Reads a blob that could not be unpacked once more, to tell an endpoint that alters content from an image that is bad:
/// the digest of what came, if it is not the blob's.
async fn wrong_digest(fetch: &mut Fetch<'_>, descriptor: &LayerDescriptor) -> Option<Digest> {
    let mut hash = Sha256::new();
    fetch.read(|piece| hash.update(piece)).await.ok()?;
    let found = Digest::from_sha256(hash.finalize().into());
    (found != descriptor.digest).then_some(found)
}

/// The pieces as a reader, for a blocking thread.
struct Pieces {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    counts: Arc<Counts>,
    piece: Bytes,
    ended: bool,
}

impl Pieces {
    fn new(receiver: mpsc::Receiver<io::Result<Bytes>>, counts: Arc<Counts>) -> Self {
        Self { receiver, counts, piece: Bytes::new(), ended: false }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Ok(piece)) => {
                    self.counts.bytes.fetch_add(u64::try_from(piece.len()).unwrap_or(u64::MAX), Relaxed);
                    (self.ended, self.piece) = (piece.is_empty(), piece);
                }
                Some(Err(error)) => return Err(error),
                // Without the empty piece: the transfer was given up.
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the transfer was given up")),
            }
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(buffer.get_mut(..length).unwrap_or_default());
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_given_up_is_no_end_of_file() {
        let (sender, receiver) = mpsc::channel(4);
        sender.blocking_send(Ok(Bytes::from_static(b"ab"))).unwrap();
        drop(sender);
        let mut text = Vec::new();
        let error = Pieces::new(receiver, Arc::default()).read_to_end(&mut text).unwrap_err();
        assert_eq!((error.kind(), text.as_slice()), (io::ErrorKind::ConnectionAborted, &b"ab"[..]));

        let (sender, receiver) = mpsc::channel(4);
        for piece in [&b"ab"[..], b"c", b""] {
            sender.blocking_send(Ok(Bytes::from_static(piece))).unwrap();
        }
        let mut reader = Pieces::new(receiver, Arc::default());
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        assert_eq!(text, b"abc");
        assert_eq!(reader.read(&mut [0; 4]).unwrap(), 0, "an end stays an end");
    }
}
