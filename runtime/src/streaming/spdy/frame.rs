//! SPDY/3.1 frames (draft 3.1, section 2.2): parsing what a client sends, encoding what we send.
//! Pure state over byte slices; the session's tasks do the reading and writing. Owns the header compression of one direction each.
//! Must bound every control frame; data frames pass in pieces, so their length needs no bound.

use bytes::{Buf, Bytes, BytesMut};

use super::header::{self, HeaderError, Headers};

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

#[cfg(test)]
mod tests {
    use super::*;

    fn all(decoder: &mut Decoder, bytes: &[u8], step: usize) -> Vec<Frame> {
        let mut input = BytesMut::new();
        let mut frames = Vec::new();
        for chunk in bytes.chunks(step) {
            input.extend_from_slice(chunk);
            while let Some(frame) = decoder.decode(&mut input).unwrap() {
                frames.push(frame);
            }
        }
        frames
    }

    #[test]
    fn frames_survive_any_split() {
        let mut encoder = Encoder::new().unwrap();
        let mut bytes = encoder.open(1, &[("streamtype", "error")], true).unwrap();
        bytes.extend(encoder.open(3, &[("streamtype", "data"), ("port", "80")], false).unwrap());
        bytes.extend(data_head(3, 5, true));
        bytes.extend(b"hello");
        bytes.extend(ping(7));
        bytes.extend(reset(3, 5));
        bytes.extend(settings(1000));
        bytes.extend(window(3, 70_000));
        bytes.extend(go_away(3));
        for step in [1, 2, 3, 7, 64, bytes.len()] {
            let frames = all(&mut Decoder::default(), &bytes, step);
            let data: Vec<u8> = frames
                .iter()
                .filter_map(|f| if let Frame::Data { bytes, .. } = f { Some(bytes.to_vec()) } else { None })
                .flatten()
                .collect();
            assert_eq!(data, b"hello");
            let fins = frames.iter().filter(|f| matches!(f, Frame::Data { fin: true, .. })).count();
            assert_eq!(fins, 1, "the end is told once, with the last piece");
            let rest: Vec<_> = frames.into_iter().filter(|f| !matches!(f, Frame::Data { .. })).collect();
            let open = |stream, pairs: &[(&str, &str)], fin| Frame::Open {
                stream,
                headers: pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
                fin,
            };
            assert_eq!(
                rest,
                [
                    open(1, &[("streamtype", "error")], true),
                    open(3, &[("streamtype", "data"), ("port", "80")], false),
                    Frame::Ping { id: 7 },
                    Frame::Reset { stream: 3, status: 5 },
                    Frame::Settings { window: Some(1000) },
                    Frame::Window { stream: 3, more: 70_000 },
                    Frame::GoAway
                ]
            );
        }
    }

    #[test]
    fn replies_are_a_zlib_stream_with_the_dictionary() {
        let mut replies = Replies::default();
        let bytes: Vec<u8> = [1, 3, 5].into_iter().flat_map(|id| replies.reply(id)).collect();
        assert!(bytes.ends_with(&[0, 0, 0xff, 0xff]), "a flush");
        let want = [1, 3, 5].map(|stream| Frame::Reply { stream, fin: false });
        assert_eq!(all(&mut Decoder::default(), &bytes, 5), want);
    }

    #[test]
    fn hostile_frames_are_refused() {
        let mut input = BytesMut::from(&[0x80, 2, 0, 1, 0, 0, 0, 0][..]);
        assert!(matches!(Decoder::default().decode(&mut input), Err(FrameError::Version { version: 2 })));
        let mut input = BytesMut::from(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff][..]);
        assert!(matches!(Decoder::default().decode(&mut input), Err(FrameError::TooLong { .. })));
        let mut input = BytesMut::from(&[0x80, 3, 0, 3, 0, 0, 0, 1, 9][..]);
        assert!(matches!(Decoder::default().decode(&mut input), Err(FrameError::Cut { kind: 3 })));
        // A count of settings that lies is believed no further than the body goes.
        let mut input = BytesMut::from(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff][..]);
        assert_eq!(Decoder::default().decode(&mut input).unwrap(), Some(Frame::Settings { window: None }));
    }

    /// A frame that a client may send, and its bytes.
    #[derive(Debug, Clone)]
    enum Sent {
        Open(u32, Vec<(String, String)>, bool),
        Data(u32, Vec<u8>, bool),
        Reset(u32, u32),
        Ping(u32),
        Window(u32, u32),
        Settings(u32),
    }

    fn sent() -> impl proptest::strategy::Strategy<Value = Sent> {
        use proptest::prelude::{Strategy as _, any, prop_oneof};
        let id = 1..0x7fff_ffff_u32;
        let pairs = proptest::collection::vec(("[a-z0-9-]{1,20}", "\\PC{0,60}"), 0..6);
        prop_oneof![
            (id.clone(), pairs, any::<bool>()).prop_map(|(id, pairs, fin)| Sent::Open(id, pairs, fin)),
            (id.clone(), proptest::collection::vec(any::<u8>(), 0..300), any::<bool>())
                .prop_map(|(id, bytes, fin)| Sent::Data(id, bytes, fin)),
            (id.clone(), any::<u32>()).prop_map(|(id, status)| Sent::Reset(id, status)),
            any::<u32>().prop_map(Sent::Ping),
            (id.clone(), id.clone()).prop_map(|(id, more)| Sent::Window(id, more)),
            id.prop_map(Sent::Settings),
        ]
    }

    /// Data of one frame may come in pieces: they are joined again.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut joined: Vec<Frame> = Vec::new();
        for frame in frames {
            match (joined.last_mut(), frame) {
                (Some(Frame::Data { stream: last, bytes: before, fin: false }), Frame::Data { stream, bytes, fin })
                    if *last == stream =>
                {
                    let bytes = [&before[..], &bytes].concat().into();
                    joined.pop();
                    joined.push(Frame::Data { stream, bytes, fin });
                }
                (_, frame) => joined.push(frame),
            }
        }
        joined
    }

    proptest::proptest! {
        #[test]
        fn what_is_encoded_is_decoded_the_same(list in proptest::collection::vec(sent(), 0..20), step in 1..200_usize) {
            let mut encoder = Encoder::new().unwrap();
            let (mut bytes, mut want) = (Vec::new(), Vec::new());
            for frame in list {
                match frame {
                    Sent::Open(stream, pairs, fin) => {
                        let borrowed: Vec<_> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                        bytes.extend(encoder.open(stream, &borrowed, fin).unwrap());
                        want.push(Frame::Open { stream, headers: pairs, fin });
                    }
                    Sent::Data(stream, data, fin) => {
                        bytes.extend(data_head(stream, data.len(), fin));
                        bytes.extend(&data);
                        want.push(Frame::Data { stream, bytes: data.into(), fin });
                    }
                    Sent::Reset(stream, status) => {
                        bytes.extend(reset(stream, status));
                        want.push(Frame::Reset { stream, status });
                    }
                    Sent::Ping(id) => {
                        bytes.extend(ping(id));
                        want.push(Frame::Ping { id });
                    }
                    Sent::Window(stream, more) => {
                        bytes.extend(window(stream, more));
                        want.push(Frame::Window { stream, more });
                    }
                    Sent::Settings(size) => {
                        bytes.extend(settings(size));
                        want.push(Frame::Settings { window: Some(size) });
                    }
                }
            }
            proptest::prop_assert_eq!(joined(all(&mut Decoder::default(), &bytes, step)), joined(want));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let mut input = BytesMut::from(&bytes[..]);
            let mut decoder = Decoder::default();
            for _ in 0..bytes.len() + 1 {
                match decoder.decode(&mut input) {
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }
}
