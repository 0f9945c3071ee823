//! Suite T8: little in, much out, in bytes, entries, names, memory and time.

use std::time::{Duration, Instant};

use keelson_imageservice::{Compression, Job, Limits, UnpackError};

use super::{
    Store,
    support::{Entry, Tar, descriptor, digest, gzip, header, record, zstd},
};

#[test]
fn privileged_bombs_are_stopped_early() {
    let small = Limits {
        layer_bytes: 10 << 20,
        ratio: 20,
        ratio_floor_bytes: 1 << 20,
        entries: 1000,
        header_bytes: 64 << 10,
        xattr_bytes: 8 << 10,
        ..Limits::default()
    };
    let store = Store::with(small);
    let zeros = vec![0; 4 << 20];
    let limited = |tar: &[u8], blob: &[u8], compression| {
        let error = store.unpack_as(blob, tar, compression).unwrap_err();
        assert!(matches!(error, UnpackError::Limit { .. }), "{error:?}");
        store.assert_empty();
    };
    // Small in, large out.
    let tar = Tar::new().file("zeros", &zeros).end();
    limited(&tar, &gzip(&tar), Compression::Gzip);
    limited(&tar, &zstd(&tar), Compression::Zstd);
    // Too large altogether; and one that only claims to be.
    let tar = Tar::new().file("a", &vec![1; 11 << 20]).end();
    limited(&tar, &tar, Compression::Plain);
    let mut tar = Tar::new();
    tar.0.extend(header(b'0', b"huge", 1 << 40).as_bytes());
    limited(&tar.0, &tar.0, Compression::Plain);
    // Too many entries, described or implied.
    let tar = (0..1001).fold(Tar::new(), |tar, at| tar.file(&format!("f{at}"), b"")).end();
    limited(&tar, &tar, Compression::Plain);
    let tar = (0..40).fold(Tar::new(), |tar, at| tar.file(&format!("{at}/{}f", "d/".repeat(30)), b"")).end();
    limited(&tar, &tar, Compression::Plain);
    // Names that would fill the memory: a thousand folders with a path of kilobytes each, out of one entry.
    let deep = Limits { name_bytes: 100 << 10, ..Limits::default() };
    let named = Store::with(deep);
    let tar = Tar::new().file(&format!("{}f", "d/".repeat(1000)), b"").end();
    assert!(matches!(named.unpack(&tar), Err(UnpackError::Limit { .. })));
    let tar = (0..600).fold(Tar::new(), |tar, at| tar.file(&format!(".wh.{at}{}", "w".repeat(200)), b"")).end();
    assert!(matches!(named.unpack(&tar), Err(UnpackError::Limit { .. })));
    named.assert_empty();
    // Records that would, together.
    let store_of_records = Store::with(Limits { record_bytes: 2000, ..Limits::default() });
    let job = Job::new();
    let unpack = |at: u8| {
        let tar = Tar::new().file(&format!("{}{at}", "folder/".repeat(10)), b"").end();
        store_of_records.service.layers().unpack(&descriptor(&tar, Compression::Plain), &digest(&tar), &*tar, &job)
    };
    assert!(unpack(1).is_ok());
    assert!(matches!((2..9).find_map(|at| unpack(at).err()), Some(UnpackError::Limit { .. })));
    // A header that would fill the memory; thousands that say nothing.
    let mut tar = Tar::new();
    tar.raw(b'x', b"pax", &vec![b'a'; 65 << 10]);
    limited(&tar.0, &tar.0, Compression::Plain);
    let mut tar = Tar::new();
    (0..4001).for_each(|_| tar.raw(b'g', b"global", &record("comment", b"x")));
    limited(&tar.0, &tar.0, Compression::Plain);
    // An attribute beyond the limit is refused by name.
    let pax = vec![("SCHILY.xattr.user.big", vec![b'x'; 9 << 10])];
    let tar = Tar::new().entry(&Entry { name: b"a", pax, ..Entry::default() }).end();
    assert!(matches!(store.unpack(&tar), Err(UnpackError::Refused { .. })));
    store.assert_empty();
}

#[test]
fn privileged_a_window_that_would_fill_the_memory_is_refused() {
    let store = Store::new();
    // A frame header that asks for a window of 512 MiB, and one raw block.
    let blob = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (29 - 10) << 3, 0x01, 0x00, 0x00];
    let error = store.unpack_as(&blob, b"", Compression::Zstd).unwrap_err();
    assert!(matches!(error, UnpackError::Inflate { .. }), "{error:?}");
    store.assert_empty();
}

#[test]
fn privileged_two_hundred_thousand_entries_take_linear_time() {
    let limits = Limits { entries: 300_000, ..Limits::default() };
    let build = |count: u32| {
        let mut tar = Tar::new().file("target", b"t");
        for at in 0..count / 4 {
            tar = tar
                .dir(&format!("d{}/{at}", at % 97))
                .symlink(&format!("d{}/{at}/l", at % 97), "/target")
                .file(&format!("d{}/.wh.{at}x", (at + 1) % 97), b"")
                .file(&format!("w{}/.wh..wh..opq", at % 1000), b"");
        }
        tar.end()
    };
    let timed = |count| {
        let store = Store::fast(limits.clone());
        let tar = build(count);
        let started = Instant::now();
        let layer = store.unpack(&tar).unwrap();
        let took = started.elapsed();
        drop(layer);
        (took, store)
    };
    let (small, _store) = timed(20_000);
    let (large, _store) = timed(200_000);
    // Ten times the work; thrice that again for a busy machine. Quadratic would be a hundred times.
    assert!(large < small * 30 + Duration::from_secs(2), "{small:?} {large:?}");
}

#[test]
fn privileged_deep_trees_are_unpacked_up_to_the_limit() {
    let store = Store::new();
    let deep = "d/".repeat(999);
    let mut tar = Tar::new();
    for at in 0..300 {
        tar = tar.file(&format!("{deep}f{at}"), b"").file(&format!("{}x{at}", "e/".repeat(at)), b"");
    }
    let layer = store.unpack(&tar.end()).unwrap();
    assert!(layer.at(&format!("{deep}f299")).exists());
    let error = store.unpack(&Tar::new().file(&"d/".repeat(1024 + 1), b"").end()).unwrap_err();
    assert!(matches!(error, UnpackError::Refused { .. }), "{error:?}");
}
