//! Suite T6: entries that reach for what is outside their layer, or lie about what is inside.

use std::{
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use keelson_imageservice::UnpackError;

use super::{
    Store,
    support::{Entry, Tar},
};

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
