//! SPDY/3.1 frames (draft 3.1, section 2.2): reading what a client sends; `write` has what we send.
//! Pure state over byte slices; the session's tasks do the reading and writing. Owns the header decompression.
//! Must bound every control frame; data frames pass in pieces, so their length needs no bound.

mod write;

use bytes::{Buf, Bytes, BytesMut};

use super::header::{self, HeaderError, Headers};
pub use write::{Encoder, Replies, data_head, go_away, ping, reset, settings, window};

/// Longest control frame body, bytes.
const CONTROL_MAX: usize = 64 * 1024;
/// Longest piece of a data frame handed on at once, bytes.
const PIECE_MAX: usize = 64 * 1024;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

/// What a peer sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A new stream.
    Open { stream: u32, headers: Headers, fin: bool },
    /// The answer to a stream that we opened.
    Reply { stream: u32, fin: bool },
    /// A piece of a stream's data.
    Data { stream: u32, bytes: Bytes, fin: bool },
    /// The stream is over, at once and in both directions.
    Reset { stream: u32, status: u32 },
    /// To be sent back as it is.
    Ping { id: u32 },
    /// The peer opens no more streams.
    GoAway,
    /// The peer's settings; only the window that each of its streams begins with matters here.
    Settings { window: Option<u32> },
    /// The peer takes so many more bytes on a stream, or with stream 0 on the whole connection (draft 3.1, section 2.6.8).
    Window { stream: u32, more: u32 },
    /// Something that needs no action.
    Other,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Another SPDY version.
    #[error("SPDY version {version}: want 3")]
    Version {
        /// As sent.
        version: u16,
    },
    /// A control frame over the limit.
    #[error("control frame of {length} bytes: more than {CONTROL_MAX}")]
    TooLong {
        /// As sent.
        length: usize,
    },
    /// A control frame shorter than its kind needs.
    #[error("control frame of kind {kind} is cut")]
    Cut {
        /// Frame type.
        kind: u16,
    },
    /// A header block that cannot be read.
    #[error("read header block")]
    Header(#[from] HeaderError),
}

/// Turns a client's bytes into frames.
pub struct Decoder {
    headers: header::Reader,
    /// The data frame whose rest is still to come.
    open: Option<(u32, usize, bool)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { headers: header::Reader::new(), open: None }
    }
}

impl Decoder {
    /// The next frame in `input`, taken from its front; `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`]: the connection must be closed.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if let Some((stream, left, fin)) = self.open {
            if input.is_empty() {
                return Ok(None);
            }
            return Ok(Some(self.piece(input, stream, left, fin)));
        }
        let Some(head) = input.first_chunk::<8>() else { return Ok(None) };
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = usize::try_from(u32::from_be_bytes([0, head[5], head[6], head[7]])).unwrap_or(usize::MAX);
        if word >> 31 == 0 {
            input.advance(8);
            return Ok(Some(self.piece(input, word, length, flags & FLAG_FIN != 0)));
        }
        let version = u16::try_from(word >> 16 & 0x7fff).unwrap_or(u16::MAX);
        if version != VERSION {
            return Err(FrameError::Version { version });
        }
        if length > CONTROL_MAX {
            return Err(FrameError::TooLong { length });
        }
        if input.len() < 8 + length {
            return Ok(None);
        }
        let kind = u16::try_from(word & 0xffff).unwrap_or(u16::MAX);
        input.advance(8);
        let body = input.split_to(length);
        self.control(kind, flags, &body).map(Some)
    }

    fn piece(&mut self, input: &mut BytesMut, stream: u32, left: usize, fin: bool) -> Frame {
        let bytes = input.split_to(left.min(input.len()).min(PIECE_MAX)).freeze();
        let rest = left - bytes.len();
        self.open = (rest > 0).then_some((stream, rest, fin));
        Frame::Data { stream, bytes, fin: fin && rest == 0 }
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Frame, FrameError> {
        let number = |at: usize| -> Result<u32, FrameError> {
            let bytes = body.get(at..).and_then(|b| b.first_chunk::<4>()).ok_or(FrameError::Cut { kind })?;
            Ok(u32::from_be_bytes(*bytes))
        };
        let stream = |at: usize| number(at).map(|n| n & 0x7fff_ffff);
        let fin = flags & FLAG_FIN != 0;
        Ok(match kind {
            1 => {
                let block = body.get(10..).ok_or(FrameError::Cut { kind })?;
                Frame::Open { stream: stream(0)?, headers: self.headers.read(block)?, fin }
            }
            2 | 8 => {
                // The block must be read even when nobody looks at it: compression is one state for all.
                self.headers.read(body.get(4..).ok_or(FrameError::Cut { kind })?)?;
                if kind == 2 { Frame::Reply { stream: stream(0)?, fin } } else { Frame::Other }
            }
            3 => Frame::Reset { stream: stream(0)?, status: number(4)? },
            6 => Frame::Ping { id: number(0)? },
            4 => Frame::Settings { window: initial_window(body) },
            7 => Frame::GoAway,
            9 => Frame::Window { stream: stream(0)?, more: stream(4)? },
            _ => Frame::Other,
        })
    }
}

/// The value of SETTINGS_INITIAL_WINDOW_SIZE: entries of flags (8 bits), id (24), value (32) after a count.
fn initial_window(body: &[u8]) -> Option<u32> {
    let entries = body.get(4..)?.as_chunks::<8>().0;
    let found = entries.iter().rfind(|entry| entry[1..4] == [0, 0, 7])?;
    Some(u32::from_be_bytes([found[4], found[5], found[6], found[7]]) & 0x7fff_ffff)
}

#[cfg(test)]
mod tests;
