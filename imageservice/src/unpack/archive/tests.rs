use super::*;

#[test]
fn numbers_are_octal_or_base_256() {
    for (field, want) in [
        (b"0000644\0".as_slice(), Some(0o644)),
        (b"   644 \0", Some(0o644)),
        (b"644", Some(0o644)),
        (b"\0\0\0\0\0\0\0\0", Some(0)),
        (b"        ", Some(0)),
        (b"\x80\0\0\0\0\0\0\x07", Some(7)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
        (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
        (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
        (b"0000648\0", None),
        (b"-1\0\0\0\0\0\0", None),
        (b"77777777777777777777777777", None),
    ] {
        assert_eq!(number(field), want, "{field:?}");
    }
}

fn entries(tar: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, UnpackError> {
    let limits = Limits::default();
    let mut archive = Archive::new(tar, &limits);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut data = Vec::new();
        loop {
            let piece = archive.data()?.to_vec();
            if piece.is_empty() {
                break;
            }
            archive.consume(piece.len());
            data.extend(piece);
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

fn header(kind: tar::EntryType, path: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_path(path).unwrap();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o4755);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(9);
    header.set_cksum();
    header
}

#[test]
fn an_entry_carries_what_its_header_says() {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header(tar::EntryType::Regular, "a/b", 3), b"abc".as_slice()).unwrap();
    let long = "long/".repeat(60);
    builder.append_data(&mut header(tar::EntryType::Regular, "x", 1), &long, b"d".as_slice()).unwrap();
    let entries = entries(&builder.into_inner().unwrap()).unwrap();
    let (first, data) = &entries[0];
    assert_eq!(
        (first.kind, first.path.as_slice(), data.as_slice()),
        (Kind::File, b"a/b".as_slice(), b"abc".as_slice())
    );
    assert_eq!((first.mode, first.uid, first.gid, first.mtime.tv_sec), (0o4755, 7, 8, 9));
    assert_eq!(entries[1].0.path, long.as_bytes());
}

#[test]
fn a_stream_may_end_without_a_marker_but_not_inside_anything() {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header(tar::EntryType::Regular, "a", 700), vec![1; 700].as_slice()).unwrap();
    let whole = builder.into_inner().unwrap();
    for length in 0..whole.len() {
        let result = entries(&whole[..length]);
        // Nothing; an entry and its padding; then one zero block or two.
        let complete = [0, 1536, 2048].contains(&length);
        assert_eq!(result.is_ok(), complete, "{length}");
    }
    assert!(entries(&[]).unwrap().is_empty());
    assert!(entries(&[0; 512]).unwrap().is_empty());
}

#[test]
fn headers_that_lie_are_refused() {
    let regular = header(tar::EntryType::Regular, "a", 0);
    let broken = |change: &dyn Fn(&mut Header)| {
        let mut header = regular.clone();
        change(&mut header);
        header.set_cksum();
        entries(header.as_bytes()).is_err()
    };
    assert!(!broken(&|_| {}));
    assert!(broken(&|header| header.as_old_mut().size = *b"-0000000001\0"));
    assert!(broken(&|header| header.as_old_mut().size = [0xff; 12]));
    assert!(broken(&|header| header.as_old_mut().uid = [0xff; 8]));
    assert!(broken(&|header| header.set_uid(u64::from(u32::MAX))));
    assert!(broken(&|header| header.set_uid(1 << 32)));
    assert!(broken(&|header| header.as_old_mut().linkflag = *b"M"));
    assert!(broken(&|header| header.set_size(1 << 50)));
    let mut unsummed = regular.clone();
    unsummed.as_old_mut().name[0] = b'b';
    assert!(entries(unsummed.as_bytes()).is_err());
}

#[test]
fn an_extended_header_must_be_small_and_followed() {
    let mut huge = Vec::new();
    huge.extend(header(tar::EntryType::XHeader, "x", 2 << 20).as_bytes());
    assert!(matches!(entries(&huge), Err(UnpackError::Limit { .. })));
    let mut alone = Vec::new();
    alone.extend(header(tar::EntryType::GNULongName, "x", 512).as_bytes());
    alone.extend([b'a'; 512]);
    assert!(matches!(entries(&alone), Err(UnpackError::Archive { .. })));
}

#[test]
fn a_link_or_directory_that_claims_a_size_has_no_data() {
    for kind in [tar::EntryType::Link, tar::EntryType::Symlink, tar::EntryType::Directory, tar::EntryType::Fifo] {
        let mut tar = header(kind, "a", 1000).as_bytes().to_vec();
        tar.extend(header(tar::EntryType::Regular, "b", 0).as_bytes());
        assert_eq!(entries(&tar).unwrap().len(), 2, "{kind:?}");
    }
}

proptest::proptest! {
    #[test]
    fn reading_never_panics(mut tar in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2048), fix in proptest::prelude::any::<bool>()) {
        if fix && tar.len() >= 512 {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(&tar[..512]);
            header.set_cksum();
            tar[..512].copy_from_slice(header.as_bytes());
        }
        let _ = entries(&tar);
    }
}
