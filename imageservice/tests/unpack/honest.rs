//! What honest layers must come out as: owners, modes, times, attributes, whiteouts, sparse files, packings.

use std::{
    collections::BTreeSet,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use keelson_imageservice::Compression;
use rustix::fs::{AtFlags, CWD, Mode};

use super::{
    Store,
    support::{Entry, Tar, gzip, header, record, zstd},
};

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
