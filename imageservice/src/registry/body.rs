//! The bytes of an answer, with a floor under their speed.
//! Async. Owns the stall rule: per window of waiting, a least number of bytes; time that the reader spends elsewhere is free.
//! Must never wait without bound, nor read more than asked.

use std::time::Instant;

use bytes::Bytes;
use reqwest::Response;

use super::{
    Timing,
    error::{Cause, chain},
};

/// A body being read.
pub(super) struct Body<'a> {
    response: Response,
    timing: &'a Timing,
    waited: std::time::Duration,
    in_window: u64,
}

impl<'a> Body<'a> {
    pub(super) fn new(response: Response, timing: &'a Timing) -> Self {
        Self { response, timing, waited: std::time::Duration::ZERO, in_window: 0 }
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Cause> {
        let left = self.timing.window.saturating_sub(self.waited);
        let start = Instant::now();
        let next = tokio::time::timeout(left, self.response.chunk()).await;
        self.waited += start.elapsed();
        if let Ok(Ok(Some(bytes))) = &next {
            self.in_window = self.in_window.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        }
        if self.waited >= self.timing.window {
            let seconds = self.timing.window.as_secs_f64();
            let received = std::mem::take(&mut self.in_window);
            self.waited = std::time::Duration::ZERO;
            // Exact to the byte is not needed.
            #[expect(clippy::cast_precision_loss, reason = "a speed, compared with a round figure")]
            let slow = (received as f64) < self.timing.floor as f64 * seconds;
            if slow {
                return Err(Cause::Stalled {
                    received,
                    seconds: self.timing.window.as_secs(),
                    floor: self.timing.floor,
                });
            }
        }
        match next {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => {
                let reason = std::error::Error::source(&error).map_or_else(|| "read failed".to_owned(), chain);
                Err(Cause::Connect { reason })
            }
            // The window had bytes enough; wait on.
            Err(_) => Box::pin(self.chunk()).await,
        }
    }
}

/// The whole body, if it is no larger than `limit`.
pub(super) async fn read_all(response: Response, limit: u64, timing: &Timing) -> Result<Vec<u8>, Cause> {
    let too_large = || Cause::TooLarge { limit };
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut body = Body::new(response, timing);
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if u64::try_from(bytes.len()).map_or(true, |length| length > limit) {
            return Err(too_large());
        }
    }
    Ok(bytes)
}
