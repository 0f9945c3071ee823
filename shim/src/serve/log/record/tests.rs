use proptest::prelude::*;

use super::*;

/// Chunks, and the records they give.
type Case = (&'static [&'static [u8]], &'static [(u8, &'static str)]);

const MOMENT: &str = "1970-01-01T00:00:00.000000007Z";

fn split(max: usize, chunks: &[&[u8]]) -> Vec<u8> {
    let prefix = Prefix::new(Stream::Stdout, 7);
    let mut splitter = Splitter::new(max);
    let mut log = Vec::new();
    for chunk in chunks {
        let mut rest = *chunk;
        loop {
            let mut out = Vec::new();
            rest = splitter.push(rest, &prefix, &mut out, 100);
            log.extend(out);
            if rest.is_empty() {
                break;
            }
        }
    }
    splitter.finish(&prefix, &mut log);
    log
}

/// The records as `(tag, content)`, and every other field checked.
fn parse(log: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let lines = log.split_inclusive(|byte| *byte == b'\n');
    lines
        .map(|line| {
            let content = line.strip_prefix(MOMENT.as_bytes()).and_then(|rest| rest.strip_prefix(b" stdout ")).unwrap();
            assert_eq!((content[1], content[content.len() - 1]), (b' ', b'\n'));
            (content[0], content[2..content.len() - 1].to_vec())
        })
        .collect()
}

fn join(records: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (tag, content) in records {
        stream.extend(content);
        if *tag == b'F' {
            stream.push(b'\n');
        }
    }
    stream
}

#[test]
fn lines_partial_lines_and_long_lines() {
    let cases: [Case; 7] = [
        (&[b"one\ntwo\n"], &[(b'F', "one"), (b'F', "two")]),
        (&[b"\n"], &[(b'F', "")]),
        (&[b"on", b"e\ntw", b"o"], &[(b'F', "one"), (b'P', "two")]),
        (&[b"12345678\n"], &[(b'F', "12345678")]),
        (&[b"12345678", b"\n"], &[(b'F', "12345678")]),
        (&[b"123456789\n"], &[(b'P', "12345678"), (b'F', "9")]),
        (&[b"1234567", b"89abcdefgh"], &[(b'P', "12345678"), (b'P', "9abcdefg"), (b'P', "h")]),
    ];
    for (chunks, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|(tag, text)| (*tag, text.as_bytes().to_vec())).collect();
        assert_eq!(parse(&split(8, chunks)), expected, "{chunks:?}");
    }
}

#[test]
fn a_full_batch_is_handed_out_before_it_grows_on() {
    let prefix = Prefix::new(Stream::Stderr, 0);
    let mut out = Vec::new();
    let data = vec![b'\n'; 1000];
    let rest = Splitter::new(8).push(&data, &prefix, &mut out, 256);
    assert!(!rest.is_empty() && out.len() < 256 + 2 * (Prefix::LENGTH + 1));
}

#[test]
fn no_memory_is_held_between_lines() {
    let prefix = Prefix::new(Stream::Stdout, 0);
    let mut splitter = Splitter::new(DEFAULT_MAX);
    let mut out = Vec::new();
    splitter.push(b"begun", &prefix, &mut out, usize::MAX);
    assert!(out.is_empty() && splitter.carry.capacity() > 0);
    splitter.push(b" and ended\n", &prefix, &mut out, usize::MAX);
    assert_eq!(splitter.carry.capacity(), 0);
}

proptest! {
    #[test]
    fn joined_records_are_the_stream(
        chunks in prop::collection::vec(prop::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..60), 0..12),
        max in 1_usize..20,
    ) {
        let log = split(max, &chunks.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let records = parse(&log);
        prop_assert_eq!(join(&records), chunks.concat());
        for (tag, content) in &records {
            prop_assert!(content.len() <= max);
            prop_assert!(*tag == b'F' || !content.is_empty());
        }
        // The cuts depend on the bytes alone, not on how they arrived.
        prop_assert_eq!(log, split(max, &[&chunks.concat()]));
    }
}
