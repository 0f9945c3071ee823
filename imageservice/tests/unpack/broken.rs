//! Streams that break, lie or stop, and a disk that is full: each ends with an error that says which, and leaves nothing.

use std::{
    io::{self, Read},
    time::{Duration, Instant},
};

use keelson_imageservice::{Compression, Config, Digest, ImageService, Job, UnpackError};

use super::{
    Mounted, Store,
    support::{Tar, descriptor, digest, gzip, zstd},
};

#[test]
fn privileged_broken_streams_end_with_an_error_and_leave_nothing() {
    let noise: Vec<u8> = (0u32..60_000).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let tar = Tar::new().file("a", &noise).file("b", &noise[1000..]).end();
    let store = Store::new();
    let started = Instant::now();
    for (blob, compression) in
        [(tar.clone(), Compression::Plain), (gzip(&tar), Compression::Gzip), (zstd(&tar), Compression::Zstd)]
    {
        let mut hostile: Vec<Vec<u8>> = Vec::new();
        for cut in [0, 1, 2, 3, 4, 10, 17, 100, 511, 512, 700, blob.len() / 2, blob.len() - 9, blob.len() - 1] {
            hostile.push(blob[..cut].to_vec());
        }
        for at in [0, 1, 20, 200, blob.len() / 3, blob.len() - 6] {
            let mut flipped = blob.clone();
            flipped[at] ^= 0x55;
            hostile.push(flipped);
        }
        for tail in [b"garbage".as_slice(), &[0xff; 5000], &blob[..30]] {
            hostile.push([blob.as_slice(), tail].concat());
        }
        for blob in hostile {
            // The manifest and the registry agree on the broken blob: only the diff id and the codec can tell.
            let error = store.unpack_as(&blob, &tar, compression).unwrap_err();
            assert!(!matches!(error, UnpackError::Io { .. }), "{error:?}");
            store.assert_empty();
        }
    }
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn privileged_what_does_not_match_the_manifest_is_refused() {
    let store = Store::new();
    let tar = Tar::new().file("a", b"a").end();
    let other = Tar::new().file("a", b"b").end();
    let blob = gzip(&tar);
    let layers = store.service.layers();
    let told = descriptor(&blob, Compression::Gzip);
    let with = |size| keelson_imageservice::LayerDescriptor { size, ..told };
    let plain = descriptor(&tar, Compression::Plain);
    let unpack = |descriptor, id: &Digest, blob: &[u8]| layers.unpack(&descriptor, id, blob, &Job::new()).unwrap_err();
    assert!(matches!(unpack(told, &digest(&other), &blob), UnpackError::DiffId { .. }));
    assert!(matches!(unpack(plain, &digest(&other), &other), UnpackError::Digest { .. }));
    assert!(matches!(unpack(with(told.size - 1), &digest(&tar), &blob), UnpackError::Size { .. }));
    assert!(matches!(unpack(with(told.size + 1), &digest(&tar), &blob), UnpackError::Size { .. }));
    store.assert_empty();
}

#[test]
fn privileged_a_failing_source_is_told_apart() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let store = Store::new();
    let tar = Tar::new().file("a", &[7; 100_000]).end();
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let blob = match compression {
            Compression::Plain => tar.clone(),
            Compression::Gzip => gzip(&tar),
            Compression::Zstd => zstd(&tar),
        };
        let half = &blob[..blob.len() / 2];
        let reader = half.chain(Broken);
        let told = descriptor(&blob, compression);
        let error = store.service.layers().unpack(&told, &digest(&tar), reader, &Job::new()).unwrap_err();
        assert!(matches!(error, UnpackError::Read { .. }), "{error:?}");
    }
    store.assert_empty();
}

#[test]
fn privileged_a_cancelled_job_stops() {
    let store = Store::new();
    let job = Job::new();
    let told = descriptor(b"never read to its end", Compression::Plain);
    let endless = io::repeat(0).take(u64::MAX);
    let told = keelson_imageservice::LayerDescriptor { size: u64::MAX, ..told };
    std::thread::scope(|scope| {
        let unpacking = scope.spawn(|| store.service.layers().unpack(&told, &digest(b""), endless, &job));
        while job.unpacked() < 1 << 20 && !unpacking.is_finished() {
            std::thread::yield_now();
        }
        job.cancel();
        assert!(matches!(unpacking.join().unwrap(), Err(UnpackError::Cancelled)));
    });
    store.assert_empty();
}

#[test]
fn privileged_a_full_disk_is_named_and_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let mount = Mounted::tmpfs(temp.path(), "size=2m,mode=755");
    let service = ImageService::open(Config { root: temp.path().join("store"), ..Config::default() }).unwrap();
    let tar = Tar::new().file("a", &vec![7; 4 << 20]).end();
    let told = descriptor(&tar, Compression::Plain);
    let error = service.layers().unpack(&told, &digest(&tar), tar.as_slice(), &Job::new()).unwrap_err();
    assert!(matches!(error, UnpackError::DiskFull { .. }), "{error:?}");
    assert!(error.to_string().contains("the disk is full"));
    assert_eq!(std::fs::read_dir(temp.path().join("store/layers/tmp")).unwrap().count(), 0);
    let begun = std::time::Instant::now();
    while !service.is_drained().unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the trash is not emptied");
        std::thread::sleep(Duration::from_millis(5));
    }
    // And the space is back.
    let tar = Tar::new().file("a", &vec![7; 1 << 20]).end();
    let told = descriptor(&tar, Compression::Plain);
    service.layers().unpack(&told, &digest(&tar), tar.as_slice(), &Job::new()).unwrap();
    drop(service);
    drop(mount);
}
