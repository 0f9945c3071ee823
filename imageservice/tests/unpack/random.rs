//! A random layer, and the tree that a reading of the rules says it must become; damaged archives, and where they must not get.

use std::{collections::BTreeMap, os::unix::fs::MetadataExt as _};

use keelson_imageservice::{Limits, UnpackError};
use proptest::prelude::*;
use rustix::fs::RawMode;

use super::{
    Layer, Store,
    model::Model,
    support::{Entry, Tar},
};

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
                let (above, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(above, name)| (above, name));
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
        let store = Store::fast(limits);
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
        let store = Store::fast(Limits::default());
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
