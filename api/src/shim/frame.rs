//! Frames on a shim's socket: four bytes little-endian length, then that many bytes of protobuf.
//! Pure functions over byte slices, in both processes; the caller does the reading and writing.
//! Must never allocate for a length it has not checked.

use prost::Message;

/// Bytes of the length prefix.
pub const HEADER: usize = 4;
/// Longest frame body, bytes: two full exec streams and their envelope.
pub const BODY_MAX: usize = 2 * super::EXEC_OUTPUT_MAX + 64 * 1024;

/// Why a frame cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`BODY_MAX`].
    #[error("frame of {length} bytes: more than the {BODY_MAX} a peer may send")]
    TooLong {
        /// What the header says.
        length: usize,
    },
    /// The body is not the message.
    #[error("decode frame")]
    Decode(#[from] prost::DecodeError),
}

/// The message as one frame.
#[must_use]
pub fn encode(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(HEADER + length);
    // A body over 4 GiB cannot be built: streams are capped far below.
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    // `encode` fails only when the buffer cannot grow; a Vec can.
    let _ = message.encode(&mut frame);
    frame
}

/// The first whole frame in `bytes` and how many bytes it took; `None` when more must be read first.
///
/// # Errors
/// A length over the limit, or a body that is not a `M`: the peer must be dropped.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<Option<(M, usize)>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
    if length > BODY_MAX {
        return Err(FrameError::TooLong { length });
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    Ok(Some((M::decode(body)?, HEADER + length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::{Call, Request, Signal};

    fn request() -> Request {
        Request { seq: 7, call: Some(Call::Signal(Signal { signal: 15, all: true })) }
    }

    #[test]
    fn a_frame_survives_any_split() {
        let mut two = encode(&request());
        let one = two.len();
        two.extend(encode(&request()));
        for cut in 0..one {
            assert!(decode::<Request>(&two[..cut]).unwrap().is_none(), "cut at {cut}");
        }
        let (message, used) = decode::<Request>(&two).unwrap().unwrap();
        assert_eq!((message, used), (request(), one));
    }

    #[test]
    fn a_huge_length_is_refused_before_anything_is_allocated() {
        assert!(matches!(decode::<Request>(&[0xff; 8]), Err(FrameError::TooLong { .. })));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = decode::<Request>(&bytes);
        }
    }
}
