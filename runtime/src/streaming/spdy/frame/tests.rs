//! What is written is read the same, however it is cut; what is hostile is refused.

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
