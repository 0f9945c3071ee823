//! Any bytes as SPDY frames: decoding never panics, and gives the same frames however the bytes are cut.
#![no_main]

use bytes::{Bytes, BytesMut};
use keelson_runtime::streaming::spdy::frame::{Decoder, Frame};

/// The frames, data of one frame joined, and whether the rest was refused.
fn decode(bytes: &[u8], step: usize) -> (Vec<Frame>, bool) {
    let (mut decoder, mut input, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
    for chunk in bytes.chunks(step) {
        input.extend_from_slice(chunk);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(Frame::Data { stream, bytes, fin })) => match frames.last_mut() {
                    Some(Frame::Data { stream: last, bytes: before, fin: false }) if *last == stream => {
                        *before = Bytes::from([&before[..], &bytes[..]].concat());
                        if fin {
                            let bytes = std::mem::take(before);
                            frames.pop();
                            frames.push(Frame::Data { stream, bytes, fin });
                        }
                    }
                    _ => frames.push(Frame::Data { stream, bytes, fin }),
                },
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes, bytes.len().max(1));
    assert_eq!(whole, decode(bytes, 1));
    assert_eq!(whole, decode(bytes, 7));
});
