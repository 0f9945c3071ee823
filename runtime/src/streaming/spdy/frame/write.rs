//! The SPDY/3.1 frames that we send, and those that tests and fuzzers send as a client: bytes from plain values.
//! Pure; called in the task of the connection. Owns the header compression of one direction.
//! Must keep no compressor for a server: its header blocks are all empty.

use super::VERSION;
use crate::streaming::spdy::header;

/// Accepts streams: the only thing with a header block that a server of these protocols says, and that block is empty.
/// Written as it is, in stored blocks of the zlib stream: a compressor's state is a quarter megabyte a connection.
#[derive(Debug, Default)]
pub struct Replies {
    begun: bool,
}

impl Replies {
    /// Accepts a stream that the peer opened.
    pub fn reply(&mut self, stream: u32) -> Vec<u8> {
        let mut body = stream.to_be_bytes().to_vec();
        if !self.begun {
            self.begun = true;
            body.extend(header::STREAM_HEAD);
        }
        // A stored block of four bytes, its length and that inverted, then the bytes: no headers. And an empty one, as any
        // flush ends: readers (Go's) hand out nothing before it.
        body.extend([0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
        body.extend([0, 0, 0, 0xff, 0xff]);
        control(2, 0, &body)
    }
}

/// A client's half of the header compression (tests play the client with it).
pub struct Encoder(header::Writer);

impl Encoder {
    /// # Errors
    /// The zlib state cannot be used: only by a defect of the library.
    pub fn new() -> Result<Self, flate2::CompressError> {
        Ok(Self(header::Writer::new()?))
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// The zlib state cannot be used: only by a defect of the library.
    pub fn open(&mut self, stream: u32, headers: &[(&str, &str)], fin: bool) -> Result<Vec<u8>, flate2::CompressError> {
        let mut body = stream.to_be_bytes().to_vec();
        body.extend([0; 6]);
        body.extend(self.0.write(headers)?);
        Ok(control(1, u8::from(fin), &body))
    }
}

/// The eight bytes before a data frame's content; `length` is at most 2^24 - 1.
#[must_use]
pub fn data_head(stream: u32, length: usize, fin: bool) -> [u8; 8] {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let [s0, s1, s2, s3] = (stream & 0x7fff_ffff).to_be_bytes();
    [s0, s1, s2, s3, u8::from(fin), a, b, c]
}

/// Ends one stream at once.
#[must_use]
pub fn reset(stream: u32, status: u32) -> Vec<u8> {
    let mut body = stream.to_be_bytes().to_vec();
    body.extend(status.to_be_bytes());
    control(3, 0, &body)
}

/// A ping's answer, or a ping.
#[must_use]
pub fn ping(id: u32) -> Vec<u8> {
    control(6, 0, &id.to_be_bytes())
}

/// We take so many more bytes on a stream, or with stream 0 on the whole connection.
#[must_use]
pub fn window(stream: u32, more: u32) -> Vec<u8> {
    let mut body = stream.to_be_bytes().to_vec();
    body.extend(more.to_be_bytes());
    control(9, 0, &body)
}

/// The window that each of our streams begins with (tests play the client with it).
#[must_use]
pub fn settings(window: u32) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 1, 0, 0, 0, 7];
    body.extend(window.to_be_bytes());
    control(4, 0, &body)
}

/// No more streams are accepted.
#[must_use]
pub fn go_away(last: u32) -> Vec<u8> {
    let mut body = last.to_be_bytes().to_vec();
    body.extend([0; 4]);
    control(7, 0, &body)
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = Vec::with_capacity(8 + body.len());
    frame.extend((0x8000 | VERSION).to_be_bytes());
    frame.extend(kind.to_be_bytes());
    frame.extend([flags, a, b, c]);
    frame.extend(body);
    frame
}
