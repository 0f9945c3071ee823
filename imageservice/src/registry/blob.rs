//! A blob's bytes in order, whatever breaks on the way: resumed by `Range`, at the next endpoint if need be.
//! Async; hands the bytes to a bounded channel whose other end is a blocking reader, so a slow disk slows the network.
//! Owns one blob's progress. Must never hand on a byte twice, or one more than the manifest states.

use std::io;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use keelson_api::Digest;
use tokio::sync::mpsc::Sender;

use super::{
    body::Body,
    error::{Attempts, Cause},
    exchange::Ask,
    session::{Need, Served, Session, Walk},
};

/// Broken connections in a row, without `PROGRESS` between them, before the next endpoint is asked.
const BREAKS: u32 = 4;
/// Bytes that show that an endpoint does serve.
const PROGRESS: u64 = 1 << 20;

/// How a transfer ended other than well.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Every endpoint failed.
    Failed(Attempts),
    /// The reader went away; it knows why.
    Unwanted,
}

/// One blob under way.
pub(crate) struct Fetch<'a> {
    session: &'a Session,
    walk: Walk<'a>,
    digest: Digest,
    size: u64,
    last: Option<Served>,
}

impl<'a> Fetch<'a> {
    pub(crate) fn new(session: &'a Session, digest: Digest, size: u64) -> Self {
        Self { session, walk: Walk::new(session, Need::Pull), digest, size, last: None }
    }

    /// Sends the whole blob, from its first byte, to `sink`.
    pub(crate) async fn run(&mut self, sink: &Sender<io::Result<Bytes>>) -> Result<(), Ended> {
        let (mut received, mut breaks, mut mark) = (0, 0, 0);
        loop {
            let path = format!("{}/blobs/{}", self.session.reference.repository(), self.digest);
            let ask = Ask { method: Method::GET, path, accept: None, from: received };
            let Some((response, served)) = self.walk.next(&ask).await else {
                return Err(Ended::Failed(std::mem::take(&mut self.walk.attempts)));
            };
            let cause = match self.copy(response, &mut received, sink).await? {
                None => {
                    self.last = Some(served);
                    return Ok(());
                }
                Some(cause) => cause,
            };
            if received >= mark + PROGRESS {
                (breaks, mark) = (0, received);
            }
            breaks += 1;
            if !cause.is_transient() || breaks >= BREAKS {
                self.walk.blame(&served, cause);
                (breaks, mark) = (0, received);
            } else {
                tracing::debug!(blob = %self.digest, received, %cause, "resume transfer");
                tokio::time::sleep(self.session.timing().backoff.saturating_mul(1 << (breaks - 1))).await;
            }
        }
    }

    /// Hands the whole blob, piece by piece, to `each`.
    pub(crate) async fn read(&mut self, mut each: impl FnMut(&[u8])) -> Result<(), Attempts> {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
        let send = async {
            let sent = self.run(&sender).await;
            drop(sender);
            sent
        };
        let collect = async {
            while let Some(Ok(piece)) = receiver.recv().await {
                each(&piece);
            }
        };
        match tokio::join!(send, collect) {
            (Err(Ended::Failed(attempts)), ()) => Err(attempts),
            // The other end of the channel is here.
            (Ok(()) | Err(Ended::Unwanted), ()) => Ok(()),
        }
    }

    /// Notes that what the last endpoint sent was not the blob; the next run asks the others.
    pub(crate) fn blame(&mut self, found: Digest) {
        if let Some(served) = self.last.take() {
            self.walk.blame(&served, Cause::Digest { expected: self.digest, found });
        }
    }

    /// Copies one answer's body; `Some` tells why it is not the rest of the blob.
    async fn copy(
        &self,
        response: reqwest::Response,
        received: &mut u64,
        sink: &Sender<io::Result<Bytes>>,
    ) -> Result<Option<Cause>, Ended> {
        let mut skip = match (*received, response.status()) {
            (0, StatusCode::OK) => 0,
            // It knows no ranges: what we have comes again.
            (have, StatusCode::OK) => have,
            (have, _) if starts_at(&response) == Some(have) => 0,
            (have, _) => {
                return Ok(Some(Cause::Protocol { reason: format!("asked for bytes from {have}, got another range") }));
            }
        };
        let due = skip + (self.size - *received);
        if let Some(stated) = response.content_length()
            && stated != due
        {
            let reason =
                format!("it has {} bytes, the manifest states {}", stated.saturating_add(*received - skip), self.size);
            return Ok(Some(Cause::Protocol { reason }));
        }
        let mut body = Body::new(response, self.session.timing());
        loop {
            let mut chunk = match body.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if *received == self.size && skip == 0 => return Ok(None),
                Ok(None) => return Ok(Some(self.broken(*received, "the connection was closed"))),
                Err(Cause::Connect { reason }) => return Ok(Some(self.broken(*received, &reason))),
                Err(cause) => return Ok(Some(cause)),
            };
            let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            let old = skip.min(length);
            skip -= old;
            let Ok(cut) = usize::try_from(old) else { continue };
            let fresh = chunk.split_off(cut);
            let length = length - old;
            if length > self.size - *received {
                let reason = format!("it has more than the {} bytes that the manifest states", self.size);
                return Ok(Some(Cause::Protocol { reason }));
            }
            *received += length;
            if !fresh.is_empty() && sink.send(Ok(fresh)).await.is_err() {
                return Err(Ended::Unwanted);
            }
        }
    }

    fn broken(&self, received: u64, reason: &str) -> Cause {
        Cause::Broken { received, expected: self.size, reason: reason.to_owned() }
    }
}

/// First byte of a 206 answer.
fn starts_at(response: &reqwest::Response) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
