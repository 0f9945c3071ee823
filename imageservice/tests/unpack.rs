//! Suites T6 and T8 of the security rules, and what honest layers must come out as.
//! Runs as root: owners, device nodes and overlay attributes are the point. Every layer goes through the public way in.
//! Owns a temporary folder per test. Must never leave a mount behind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test panics, in its helpers too")]

#[path = "support/tar.rs"]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use keelson_imageservice::{Compression, Config, Digest, ImageService, Job, LayerHold, Limits, UnpackError};
use rustix::fs::{AtFlags, CWD, Mode, RawMode};
use support::{Entry, Tar, descriptor, digest, gzip, header, record, zstd};

struct Store {
    temp: tempfile::TempDir,
    service: ImageService,
}

impl Store {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let service =
            ImageService::open(Config { root: temp.path().join("store"), limits, ..Config::default() }).unwrap();
        Self { temp, service }
    }

    fn unpack(&self, tar: &[u8]) -> Result<Layer, UnpackError> {
        self.unpack_as(tar, tar, Compression::Plain)
    }

    fn unpack_as(&self, blob: &[u8], tar: &[u8], compression: Compression) -> Result<Layer, UnpackError> {
        let id = digest(tar);
        let hold = self.service.layers().unpack(&descriptor(blob, compression), &id, blob, &Job::new())?;
        let path = self.temp.path().join("store/layers").join(id.hex()).join("fs");
        Ok(Layer { path, _hold: hold })
    }

    /// Nothing half-made is visible: no layer, no temporary, and the trash drains.
    fn assert_empty(&self) {
        let layers = self.temp.path().join("store/layers");
        let names: Vec<_> = std::fs::read_dir(&layers).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["tmp"]);
        assert_eq!(std::fs::read_dir(layers.join("tmp")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(self.temp.path().join("store/content/tmp")).unwrap().count(), 0);
    }
}

#[derive(Debug)]
struct Layer {
    path: PathBuf,
    _hold: LayerHold,
}

impl Layer {
    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn stat(&self, name: &str) -> std::fs::Metadata {
        std::fs::symlink_metadata(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn xattr(&self, name: &str, attribute: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 70_000];
        match rustix::fs::lgetxattr(self.at(name), attribute, &mut value) {
            Ok(length) => Some(value[..length].to_vec()),
            Err(rustix::io::Errno::NODATA) => None,
            Err(errno) => panic!("{name} {attribute}: {errno}"),
        }
    }

    fn is_opaque(&self, name: &str) -> bool {
        self.xattr(name, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }

    fn is_whiteout(&self, name: &str) -> bool {
        let stat = self.stat(name);
        stat.file_type().is_char_device() && stat.rdev() == 0
    }
}

#[test]
fn privileged_a_layer_is_what_its_entries_say() {
    let store = Store::new();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    let tar = Tar::new()
        .entry(&Entry { flag: b'5', name: b"./", mode: 0o751, owner: (3, 4), ..Entry::default() })
        .entry(&Entry { flag: b'5', name: b"var/mail/", mode: 0o2775, owner: (0, 8), mtime: 77, ..Entry::default() })
        .entry(&Entry {
            name: b"var/mail/user",
            data: b"hello",
            mode: 0o6711,
            owner: (1000, 100_000),
            pax: vec![
                ("mtime", b"1234567890.123456789".to_vec()),
                ("SCHILY.xattr.security.capability", capability.clone()),
                ("SCHILY.xattr.user.note", b"a=b\n\0".to_vec()),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc".to_vec()),
                ("SCHILY.xattr.trusted.overlay.metacopy", b"".to_vec()),
                ("SCHILY.xattr.user.overlay.opaque", b"y".to_vec()),
                ("SCHILY.xattr.security.selinux", b"system_u:object_r:bin_t:s0".to_vec()),
            ],
            ..Entry::default()
        })
        .entry(&Entry { flag: b'2', name: b"link", link: b"/var/mail", owner: (5, 6), mtime: 99, ..Entry::default() })
        .entry(&Entry { flag: b'3', name: b"dev/null", device: (1, 3), mode: 0o666, ..Entry::default() })
        .entry(&Entry {
            flag: b'4',
            name: b"dev/disk",
            device: (259, 300),
            mode: 0o660,
            owner: (0, 6),
            ..Entry::default()
        })
        .entry(&Entry { flag: b'6', name: b"fifo", mode: 0o622, ..Entry::default() })
        .hard_link("again", "/var/mail/user")
        .entry(&Entry { name: "\u{e9}\u{ff}".as_bytes(), data: b"x", ..Entry::default() })
        .entry(&Entry { name: b"latin\xe9", data: b"y", ..Entry::default() })
        .entry(&Entry { flag: 0, name: b"old/", mode: 0o700, ..Entry::default() })
        .end();
    let layer = store.unpack(&tar).unwrap();

    let root = layer.stat("");
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o751, 3, 4));
    let mail = layer.stat("var/mail");
    assert_eq!((mail.mode() & 0o7777, mail.gid(), mail.mtime()), (0o2775, 8, 77));
    let user = layer.stat("var/mail/user");
    assert_eq!((user.mode() & 0o7777, user.uid(), user.gid()), (0o6711, 1000, 100_000));
    assert_eq!((user.mtime(), user.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!(layer.read("var/mail/user"), b"hello");
    assert_eq!(layer.xattr("var/mail/user", "security.capability"), Some(capability));
    assert_eq!(layer.xattr("var/mail/user", "user.note"), Some(b"a=b\n\0".to_vec()));
    for dropped in ["trusted.overlay.redirect", "trusted.overlay.metacopy", "user.overlay.opaque"] {
        assert_eq!(layer.xattr("var/mail/user", dropped), None, "{dropped}");
    }
    let link = layer.stat("link");
    assert_eq!((link.uid(), link.gid(), link.mtime()), (5, 6, 99));
    assert_eq!(std::fs::read_link(layer.at("link")).unwrap(), Path::new("/var/mail"));
    let null = layer.stat("dev/null");
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o777), (rustix::fs::makedev(1, 3), 0o666));
    let disk = layer.stat("dev/disk");
    assert!(disk.file_type().is_block_device());
    assert_eq!((disk.rdev(), disk.gid()), (rustix::fs::makedev(259, 300), 6));
    assert!(layer.stat("fifo").file_type().is_fifo());
    assert_eq!(layer.stat("fifo").mode() & 0o777, 0o622);
    assert_eq!(layer.stat("again").ino(), user.ino());
    assert_eq!(layer.read("\u{e9}\u{ff}"), b"x");
    assert!(layer.stat("old").is_dir());
    let names: Vec<_> = std::fs::read_dir(&layer.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().any(|name| name.as_encoded_bytes() == b"latin\xe9"));
}

#[test]
fn privileged_every_packing_gives_the_same_layer() {
    let tar = Tar::new().file("a", &vec![b'a'; 1_000_000]).file("b", b"b").end();
    let (front, back) = tar.split_at(700_001);
    let skippable = [b"\x50\x2a\x4d\x18\x04\0\0\0abcd".as_slice(), &zstd(&tar)].concat();
    for (blob, stated) in [
        (tar.clone(), Compression::Plain),
        (gzip(&tar), Compression::Gzip),
        ([gzip(front), gzip(back)].concat(), Compression::Gzip),
        (zstd(&tar), Compression::Zstd),
        ([zstd(front), zstd(back)].concat(), Compression::Zstd),
        (skippable, Compression::Zstd),
        (zstd(&tar), Compression::Gzip),
        (tar.clone(), Compression::Gzip),
    ] {
        let store = Store::new();
        let layer = store.unpack_as(&blob, &tar, stated).unwrap();
        assert_eq!(layer.read("a").len(), 1_000_000);
        assert_eq!(layer.read("b"), b"b");
    }
}

#[test]
fn privileged_an_empty_layer_is_a_layer() {
    for tar in [vec![], vec![0; 512], vec![0; 1024], vec![0; 10240]] {
        let store = Store::new();
        let layer = store.unpack(&tar).unwrap();
        assert_eq!(std::fs::read_dir(&layer.path).unwrap().count(), 0);
        assert_eq!(layer.stat("").mode() & 0o7777, 0o755);
    }
}

#[test]
fn privileged_whiteouts_mean_the_same_in_any_order() {
    let parts: [&dyn Fn(Tar) -> Tar; 5] = [
        &|tar| tar.dir("gone-then-dir").file("gone-then-dir/new", b"n"),
        &|tar| tar.file(".wh.gone-then-dir", b"").file(".wh.gone", b"").file("deep/.wh.gone", b""),
        &|tar| tar.file("opaque/.wh..wh..opq", b"").file("gone-then-file", b"f"),
        &|tar| tar.dir("opaque").file("opaque/new", b"n").file(".wh.gone-then-file", b""),
        &|tar| tar.file(".wh..wh.aufs", b"x").dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", b"x"),
    ];
    for turn in 0..parts.len() {
        for reverse in [false, true] {
            let mut order: Vec<_> = (0..parts.len()).map(|at| (at + turn) % parts.len()).collect();
            if reverse {
                order.reverse();
            }
            let tar = order.iter().fold(Tar::new(), |tar, at| parts[*at](tar)).end();
            let store = Store::new();
            let layer = store.unpack(&tar).unwrap();
            assert!(layer.is_whiteout("gone") && layer.is_whiteout("deep/gone"), "{order:?}");
            assert!(layer.is_opaque("gone-then-dir"), "{order:?}");
            assert_eq!(layer.read("gone-then-dir/new"), b"n");
            assert_eq!(layer.read("gone-then-file"), b"f");
            assert!(layer.is_opaque("opaque"), "{order:?}");
            assert_eq!(layer.read("opaque/new"), b"n");
            assert!(!layer.is_opaque("deep"));
            let names: BTreeSet<_> =
                std::fs::read_dir(&layer.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert!(names.iter().all(|name| !name.as_encoded_bytes().starts_with(b".wh.")), "{names:?}");
        }
    }
}

#[test]
fn privileged_a_whiteout_is_replaced_by_what_needs_a_directory_there() {
    let store = Store::new();
    let tar = Tar::new().file(".wh.etc", b"").file("etc/passwd", b"p").end();
    let layer = store.unpack(&tar).unwrap();
    assert!(layer.is_opaque("etc"));
    assert_eq!(layer.read("etc/passwd"), b"p");
}

#[test]
fn privileged_names_that_lead_out_are_refused() {
    for tar in [
        Tar::new().file("../escape", b"x"),
        Tar::new().file("/../escape", b"x"),
        Tar::new().file("a/../../escape", b"x"),
        Tar::new().dir(".."),
        Tar::new().file("..", b"x"),
        Tar::new().symlink("../escape", "x"),
        Tar::new().entry(&Entry { name: b"ok", pax: vec![("path", b"../../escape".to_vec())], ..Entry::default() }),
        Tar::new().file("a", b"x").hard_link("b", "../../../../../etc/passwd"),
        Tar::new().hard_link("b", "/etc/passwd"),
        Tar::new().hard_link("b", "a"),
        Tar::new().dir("d").hard_link("b", "d"),
        Tar::new().file("a", b"x").hard_link("a", "a"),
        Tar::new().hard_link("b", ""),
        Tar::new().file(".wh.", b""),
        Tar::new().file(".wh..", b""),
        Tar::new().file(".wh...", b""),
        Tar::new().file("a/.wh...", b""),
        Tar::new().file(".wh.a/b", b""),
        Tar::new().file("", b"x"),
        Tar::new().file("./", b"x"),
        Tar::new().symlink("a", ""),
        Tar::new().file("a", b"x").file("a/b", b"x"),
        Tar::new().file("a", b"x").hard_link("b", ".wh.a"),
        Tar::new().entry(&Entry { flag: b'3', name: b"a", device: (0o777_7777, 0), ..Entry::default() }),
        Tar::new().entry(&Entry { name: b"a", owner: (u64::from(u32::MAX), 0), ..Entry::default() }),
        Tar::new().entry(&Entry { name: b"a", pax: vec![("uid", b"4294967296".to_vec())], ..Entry::default() }),
    ] {
        let store = Store::new();
        let error = store.unpack(&tar.clone().end()).unwrap_err();
        assert!(matches!(error, UnpackError::Refused { .. } | UnpackError::Archive { .. }), "{error:?}");
        assert!(!store.temp.path().join("escape").exists());
        assert!(!store.temp.path().join("store/escape").exists());
        store.assert_empty();
    }
}

#[test]
fn privileged_names_above_the_host_root_cannot_reach_a_canary() {
    let store = Store::new();
    let canary = store.temp.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("kept"), b"kept").unwrap();
    let before = std::fs::metadata(canary.join("kept")).unwrap();
    let text = canary.to_str().unwrap();
    // Each reaches for the canary through a link of its own making; all land inside the layer.
    let tar = Tar::new()
        .symlink("absolute", text)
        .file("absolute/new", b"x")
        .symlink("up", "../../../../../../../../../../..")
        .file(&format!("up{text}/new"), b"x")
        .symlink("one", "two/three")
        .symlink("two", text)
        .dir("one/made")
        .file("absolute/.wh.kept", b"")
        .file("absolute/.wh..wh..opq", b"")
        .symlink("magic", "/proc/self/root")
        .file("magic/etc/planted", b"x")
        .entry(&Entry {
            flag: b'5',
            name: b"absolute",
            mode: 0o777,
            owner: (1000, 1000),
            pax: vec![("SCHILY.xattr.user.planted", b"1".to_vec())],
            ..Entry::default()
        })
        .end();
    let layer = store.unpack(&tar).unwrap();
    let names: Vec<_> = std::fs::read_dir(&canary).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["kept"]);
    let after = std::fs::metadata(canary.join("kept")).unwrap();
    assert_eq!((after.mode(), after.ino(), after.ctime_nsec()), (before.mode(), before.ino(), before.ctime_nsec()));
    let inside = text.trim_start_matches('/');
    assert_eq!(layer.read(&format!("{inside}/new")), b"x");
    assert!(layer.stat(&format!("{inside}/three/made")).is_dir());
    assert!(layer.stat("absolute").is_dir());
    assert_eq!(layer.read("proc/self/root/etc/planted"), b"x");
    assert!(!Path::new("/etc/planted").exists());
}

#[test]
fn privileged_link_loops_and_link_storms_end_with_an_error() {
    let store = Store::new();
    let tar = Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"x").end();
    assert!(store.unpack(&tar).is_err());
    // Each name costs a thousand steps; without a budget this would be half an hour.
    let zigzag = "d/../".repeat(790);
    let mut tar = Tar::new().dir("d");
    for link in 0..30 {
        tar = tar.symlink(&format!("l{link}"), &format!("{zigzag}l{}", link + 1));
    }
    tar = tar.dir("l30");
    for entry in 0..3000 {
        tar = tar.file(&format!("l0/s{entry}/x"), b"");
    }
    let started = Instant::now();
    let error = store.unpack(&tar.end()).unwrap_err();
    assert!(matches!(error, UnpackError::Refused { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(60));
    store.assert_empty();
}

#[test]
fn privileged_later_entries_replace_earlier_ones() {
    let store = Store::new();
    let tar = Tar::new()
        .dir("tree")
        .file("tree/in/side", b"x")
        .file("tree", b"file now")
        .file("file", b"x")
        .dir("file")
        .file("file/in", b"y")
        .file("original", b"original")
        .hard_link("name", "original")
        .file("name", b"another")
        .symlink("link", "tree")
        .file("link", b"not through it")
        .symlink("swing", "one")
        .file("swing/a", b"1")
        .symlink("swing", "two")
        .file("swing/a", b"2")
        .dir("again")
        .file("again/x", b"x")
        .symlink("again", "elsewhere")
        .dir("again")
        .file("again/y", b"y")
        .entry(&Entry { flag: b'5', name: b"again", mode: 0o711, mtime: 5, ..Entry::default() })
        .end();
    let layer = store.unpack(&tar).unwrap();
    assert_eq!(layer.read("tree"), b"file now");
    assert_eq!(layer.read("file/in"), b"y");
    assert_eq!(layer.read("original"), b"original");
    assert_eq!(layer.read("name"), b"another");
    assert_eq!(layer.read("link"), b"not through it");
    assert_eq!((layer.read("one/a"), layer.read("two/a")), (b"1".to_vec(), b"2".to_vec()));
    assert!(!layer.at("again/x").exists());
    assert_eq!(layer.read("again/y"), b"y");
    assert_eq!((layer.stat("again").mode() & 0o777, layer.stat("again").mtime()), (0o711, 5));
    drop(layer);
    drop(store);
}

#[test]
fn privileged_sparse_files_of_every_dialect_are_the_same_file() {
    let want = {
        let mut want = vec![0; 1_000_000];
        want[4096..4196].fill(b'a');
        want[900_000..900_010].fill(b'b');
        want
    };
    let data = [[b'a'; 100].as_slice(), &[b'b'; 10]].concat();
    let pax = |pax: Vec<(&'static str, &[u8])>, data: &[u8]| {
        let pax = pax.into_iter().map(|(key, value)| (key, value.to_vec())).collect();
        Tar::new().entry(&Entry { name: b"GNUSparseFile.0/x", data, pax, ..Entry::default() }).file("after", b"z").end()
    };
    let mut leading = b"2\n4096\n100\n900000\n10\n".to_vec();
    leading.resize(512, 0);
    leading.extend(&data);
    let old = {
        let mut tar = Tar::new();
        let mut header = header(b'S', b"sparse", data.len());
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(1_000_000);
        gnu.sparse[0].set_offset(4096);
        gnu.sparse[0].set_length(100);
        gnu.set_is_extended(true);
        header.set_cksum();
        tar.0.extend(header.as_bytes());
        let mut more = tar::GnuExtSparseHeader::new();
        more.sparse_mut()[0].set_offset(900_000);
        more.sparse_mut()[0].set_length(10);
        tar.0.extend(more.as_bytes());
        tar.pad(&data);
        tar.file("after", b"z").end()
    };
    for tar in [
        old,
        pax(
            vec![
                ("GNU.sparse.size", b"1000000"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", b"4096"),
                ("GNU.sparse.numbytes", b"100"),
                ("GNU.sparse.offset", b"900000"),
                ("GNU.sparse.numbytes", b"10"),
                ("path", b"sparse"),
            ],
            &data,
        ),
        pax(
            vec![
                ("GNU.sparse.size", b"1000000"),
                ("GNU.sparse.map", b"4096,100,900000,10"),
                ("GNU.sparse.name", b"sparse"),
            ],
            &data,
        ),
        pax(
            vec![
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"1000000"),
                ("GNU.sparse.name", b"sparse"),
            ],
            &leading,
        ),
    ] {
        let store = Store::new();
        let layer = store.unpack(&tar).unwrap();
        assert!(layer.read("sparse") == want);
        assert!(layer.stat("sparse").blocks() * 512 < 100_000);
        assert_eq!(layer.read("after"), b"z");
    }
}

#[test]
fn privileged_sparse_maps_that_lie_are_refused() {
    for (size, map) in
        [("10", "0,20"), ("100", "50,10,0,10"), ("100", "0,5"), ("9223372036854775808", "0,20"), ("", "0,20")]
    {
        let pax = vec![("GNU.sparse.size", size.as_bytes().to_vec()), ("GNU.sparse.map", map.as_bytes().to_vec())];
        let tar = Tar::new().entry(&Entry { name: b"x", data: &[1; 20], pax, ..Entry::default() }).end();
        let store = Store::new();
        assert!(matches!(store.unpack(&tar), Err(UnpackError::Archive { .. })), "{size} {map}");
        store.assert_empty();
    }
}

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
        while job.unpacked() < 1 << 20 {
            std::thread::yield_now();
        }
        job.cancel();
        assert!(matches!(unpacking.join().unwrap(), Err(UnpackError::Cancelled)));
    });
    store.assert_empty();
}

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
fn privileged_global_headers_say_nothing_about_entries() {
    let store = Store::new();
    let mut tar = Tar::new();
    tar.raw(b'g', b"global", &record("path", b"elsewhere"));
    let layer = store.unpack(&tar.file("a", b"a").end()).unwrap();
    assert_eq!(layer.read("a"), b"a");
}

#[test]
fn privileged_a_tar_may_have_anything_after_its_end() {
    let store = Store::new();
    let tar = [Tar::new().file("a", b"a").end(), vec![0xaa; 300_000]].concat();
    assert_eq!(store.unpack(&tar).unwrap().read("a"), b"a");
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
        let store = Store::with(limits.clone());
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
    while !service.is_drained().unwrap() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // And the space is back.
    let tar = Tar::new().file("a", &vec![7; 1 << 20]).end();
    let told = descriptor(&tar, Compression::Plain);
    service.layers().unpack(&told, &digest(&tar), tar.as_slice(), &Job::new()).unwrap();
    drop(service);
    drop(mount);
}

struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: &Path, options: &str) -> Self {
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), &*options).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn privileged_the_same_layer_from_two_blobs_at_once_is_one_layer() {
    let store = Store::new();
    let tar = (0..500).fold(Tar::new(), |tar, at| tar.file(&format!("f{at}"), b"data")).end();
    let blobs = [(gzip(&tar), Compression::Gzip), (zstd(&tar), Compression::Zstd), (tar.clone(), Compression::Plain)];
    std::thread::scope(|scope| {
        for (blob, compression) in &blobs {
            scope.spawn(|| store.unpack_as(blob, &tar, *compression).unwrap());
        }
    });
    let layers = store.temp.path().join("store/layers");
    assert_eq!(std::fs::read_dir(&layers).unwrap().count(), 2);
    assert_eq!(std::fs::read_dir(layers.join("tmp")).unwrap().count(), 0);
    assert_eq!(store.unpack(&tar).unwrap().read("f499"), b"data");
}

#[test]
fn privileged_recorded_usage_is_what_the_disk_says() {
    let store = Store::new();
    let tar =
        Tar::new().dir("d").file("d/a", &[1; 5000]).file("d/b", b"").symlink("l", "x").hard_link("h", "d/a").end();
    let layer = store.unpack(&tar).unwrap();
    let usage = store.service.usage();
    let mut blocks = 0;
    for name in ["d", "d/a", "d/b", "l"] {
        blocks += layer.stat(name).blocks() * 512;
    }
    assert_eq!((usage.used_bytes, usage.inodes_used), (blocks, 4));
}

#[path = "support/model.rs"]
mod model;

/// A random layer, and the tree that a reading of the rules says it must become.
mod random {
    use proptest::prelude::*;

    use super::{model::Model, *};

    #[derive(Debug, Clone)]
    pub(crate) enum Op {
        File(String, u8),
        Dir(String, RawMode),
        Symlink(String, String),
        HardLink(String, String),
        Whiteout(String),
        Opaque(String),
    }

    fn path() -> impl Strategy<Value = String> {
        proptest::collection::vec("[abc]", 1..4).prop_map(|parts| parts.join("/"))
    }

    fn op() -> impl Strategy<Value = Op> {
        let target = prop_oneof![
            path(),
            path().prop_map(|path| format!("/{path}")),
            path().prop_map(|path| format!("../{path}")),
            Just("..".to_owned()),
            Just("/".to_owned()),
        ];
        prop_oneof![
            4 => (path(), any::<u8>()).prop_map(|(path, data)| Op::File(path, data)),
            4 => (path(), 0u32..0o1000).prop_map(|(path, mode)| Op::Dir(path, mode)),
            2 => (path(), target).prop_map(|(path, target)| Op::Symlink(path, target)),
            1 => (path(), path()).prop_map(|(path, target)| Op::HardLink(path, target)),
            2 => path().prop_map(Op::Whiteout),
            1 => path().prop_map(Op::Opaque),
        ]
    }

    fn write(ops: &[Op]) -> Vec<u8> {
        let mut tar = Tar::new();
        for op in ops {
            tar = match op {
                Op::File(path, data) => tar.file(path, &[*data; 3]),
                Op::Dir(path, mode) => {
                    tar.entry(&Entry { flag: b'5', name: path.as_bytes(), mode: *mode, ..Entry::default() })
                }
                Op::Symlink(path, target) => tar.symlink(path, target),
                Op::HardLink(path, target) => tar.hard_link(path, target),
                Op::Whiteout(path) => {
                    let (above, name) =
                        path.rsplit_once('/').map_or(("", path.as_str()), |(above, name)| (above, name));
                    tar.file(&format!("{above}/.wh.{name}"), b"")
                }
                Op::Opaque(path) => tar.file(&format!("{path}/.wh..wh..opq"), b""),
            };
        }
        tar.end()
    }

    fn found(layer: &Layer) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut todo = vec![String::new()];
        while let Some(above) = todo.pop() {
            let mut names: Vec<_> = std::fs::read_dir(layer.at(&above))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            for name in names {
                let path = if above.is_empty() { name } else { format!("{above}/{name}") };
                let stat = layer.stat(&path);
                let what = if stat.is_dir() {
                    todo.push(path.clone());
                    let opaque = if layer.is_opaque(&path) { " opaque" } else { "" };
                    format!("dir {:o}{opaque}", stat.mode() & 0o7777)
                } else if stat.file_type().is_symlink() {
                    format!("link {}", std::fs::read_link(layer.at(&path)).unwrap().display())
                } else if layer.is_whiteout(&path) {
                    "whiteout".to_owned()
                } else {
                    format!("file {:?}", layer.read(&path))
                };
                found.insert(path, what);
            }
        }
        found
    }

    /// Has something of everything.
    fn rich() -> Vec<u8> {
        let mut tar = Tar::new()
            .dir("a/b")
            .entry(&Entry {
                name: b"a/b/file",
                data: &[7; 900],
                mode: 0o4755,
                owner: (1, 2),
                pax: vec![("mtime", b"1.5".to_vec()), ("SCHILY.xattr.user.x", b"y".to_vec())],
                ..Entry::default()
            })
            .symlink("l", "/a/b")
            .file("l/through", b"x")
            .hard_link("h", "a/b/file")
            .file("a/.wh.gone", b"")
            .file("a/b/.wh..wh..opq", b"")
            .entry(&Entry { flag: b'3', name: b"dev/null", device: (1, 3), ..Entry::default() })
            .entry(&Entry { flag: b'6', name: b"fifo", ..Entry::default() })
            .entry(&Entry {
                name: b"sparse",
                data: &[1; 20],
                pax: vec![("GNU.sparse.size", b"9000".to_vec()), ("GNU.sparse.map", b"10,20".to_vec())],
                ..Entry::default()
            });
        tar.raw(b'L', b"long", "n/".repeat(80).as_bytes());
        tar.file("short", b"long after all").end()
    }

    /// Makes checksums right again where a header was damaged, or the damage would be all that is seen.
    fn mend(tar: &mut [u8]) {
        for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
            let mut header = tar::Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn privileged_a_damaged_archive_never_gets_out_of_its_layer(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(b'/'), Just(b'.'), Just(b'0'), Just(b'5')]), 1..12),
            cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        ) {
            let mut tar = rich();
            for (at, byte) in damage {
                let at = at.index(tar.len());
                tar[at] = byte;
            }
            if let Some(cut) = cut {
                tar.truncate(cut.index(tar.len()));
            }
            mend(&mut tar);
            let limits = Limits { layer_bytes: 16 << 20, ..Limits::default() };
            let store = Store::with(limits);
            let result = store.unpack(&tar);
            let beside: Vec<_> = std::fs::read_dir(store.temp.path()).unwrap().collect();
            prop_assert_eq!(beside.len(), 1);
            match result {
                Ok(layer) => prop_assert!(layer.path.is_dir()),
                Err(_) => store.assert_empty(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn privileged_a_random_layer_becomes_what_the_model_says(ops in proptest::collection::vec(op(), 0..14)) {
            let store = Store::new();
            let unpacked = store.unpack(&write(&ops));
            let modelled = ops.iter().try_fold(Model::default(), |mut model, op| model.apply(op).map(|()| model));
            match (unpacked, modelled) {
                (Ok(layer), Some(model)) => prop_assert_eq!(found(&layer), model.tree()),
                (Err(error), None) => {
                    prop_assert!(matches!(error, UnpackError::Refused { .. } | UnpackError::Io { .. }), "{:?}", error);
                    store.assert_empty();
                }
                (Ok(_), None) => prop_assert!(false, "the model refuses what was unpacked"),
                (Err(error), Some(_)) => prop_assert!(false, "the model takes what was refused: {}", error),
            }
        }
    }
}

#[test]
fn privileged_the_umask_of_the_process_changes_nothing() {
    // Asks for bits that any usual umask takes away.
    let store = Store::new();
    let tar = Tar::new()
        .entry(&Entry { name: b"f", mode: 0o777, ..Entry::default() })
        .entry(&Entry { flag: b'5', name: b"d", mode: 0o1777, ..Entry::default() })
        .end();
    let layer = store.unpack(&tar).unwrap();
    let mode = |name| rustix::fs::statat(CWD, layer.at(name), AtFlags::empty()).unwrap().st_mode & 0o7777;
    assert_eq!((mode("f"), mode("d")), (0o777, 0o1777));
    assert_eq!(Mode::from_raw_mode(layer.stat("").mode() & 0o7777), Mode::from_raw_mode(0o755));
}
