//! The store from outside: names, snapshots, removal, restarts, kills, permissions, and what overlayfs makes of it.
//! Runs as root. Owns a temporary folder per test, and one private mount namespace for the overlay test.
//! Must never leave a mount or a child behind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test panics, in its helpers too")]

#[path = "support/tar.rs"]
mod support;

use std::{
    collections::HashSet,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use keelson_imageservice::{
    Compression, Config, Digest, Image, ImageConfig, ImageService, ImportedImage, Job, NewImage, OpenError, Snapshot,
    SnapshotError, SnapshotKey,
};
use support::{Entry, Tar, descriptor, digest, gzip};

struct Store {
    temp: tempfile::TempDir,
    service: Option<ImageService>,
}

impl Store {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut store = Self { temp, service: None };
        store.reopen();
        store
    }

    fn root(&self) -> PathBuf {
        self.temp.path().join("store")
    }

    fn reopen(&mut self) -> &ImageService {
        self.service = None;
        self.service.insert(open(&self.root()).unwrap())
    }

    fn get(&self) -> &ImageService {
        self.service.as_ref().unwrap()
    }

    fn names_in(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.root().join(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "tmp");
        names.sort();
        names
    }

    /// Not a byte of any image or snapshot is left.
    fn assert_bare(&self) {
        wait(|| self.get().is_drained().unwrap());
        for folder in ["images", "layers", "content/sha256", "snapshots", "trash", "layers/tmp", "content/tmp"] {
            assert_eq!(self.names_in(folder), Vec::<String>::new(), "{folder}");
        }
        let usage = self.get().usage();
        assert_eq!((usage.used_bytes, usage.inodes_used), (0, 0));
    }
}

fn open(root: &Path) -> Result<ImageService, OpenError> {
    ImageService::open(Config { root: root.to_owned(), ..Config::default() })
}

fn wait(done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn tar(name: &str, data: &str) -> Vec<u8> {
    Tar::new().file(name, data.as_bytes()).end()
}

fn import(service: &ImageService, name: &str, layers: &[Vec<u8>]) -> Arc<Image> {
    let config = ImageConfig { cmd: vec![name.to_owned()], ..ImageConfig::default() };
    service.import(ImportedImage { name: name.into(), config, layers: layers.to_vec(), pinned: false }).unwrap()
}

fn key(text: &str) -> SnapshotKey {
    text.parse().unwrap()
}

const A: &str = "docker.io/library/a:1";
const B: &str = "docker.io/library/b:1";

#[test]
fn privileged_an_image_is_found_by_every_name_it_has() {
    let mut store = Store::new();
    let image = import(store.get(), A, &[tar("f", "1")]);
    let id = image.id;
    for turn in 0..2 {
        let service = if turn == 0 { store.get() } else { store.reopen() };
        for name in [A, "a:1", &id.to_string(), &id.hex(), &id.hex()[..12], &format!("sha256:{}", &id.hex()[..5])] {
            assert_eq!(service.find(name).map(|image| image.id), Some(id), "{name}");
        }
        for name in
            ["a:2", "b", &id.hex()[..11], "", "sha256:", "/", "..", &digest(b"other").to_string(), &"f".repeat(65)]
        {
            assert_eq!(service.find(name), None, "{name}");
        }
        assert_eq!(service.list(), [service.find(A).unwrap()]);
        assert_eq!(*service.find(A).unwrap(), *image);
    }
}

#[test]
fn privileged_an_ambiguous_prefix_finds_nothing() {
    let store = Store::new();
    for number in 0..17 {
        import(store.get(), &format!("docker.io/library/i{number}:1"), &[]);
    }
    let images = store.get().list();
    let first = |image: &Arc<Image>| image.id.hex()[..1].to_owned();
    let twice =
        images.iter().find(|image| images.iter().filter(|other| first(other) == first(image)).count() > 1).unwrap();
    assert_eq!(store.get().find(&format!("sha256:{}", first(twice))), None);
}

/// What a pull commits.
fn commit(service: &ImageService, tags: &[&str], digests: &[&str], tar: &[u8], config: &[u8]) -> Arc<Image> {
    let (id, diff_id) = (digest(config), digest(tar));
    let blob = gzip(tar);
    let told = descriptor(&blob, Compression::Gzip);
    let hold = service.layers().unpack(&told, &diff_id, blob.as_slice(), &Job::new()).unwrap();
    let text = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    service
        .commit(NewImage {
            id,
            tags: text(tags),
            digests: text(digests),
            config: ImageConfig::default(),
            diff_ids: vec![diff_id],
            layers: vec![hold],
            blobs: vec![(id, config.to_vec())],
            pinned: false,
            checkpoint: false,
        })
        .unwrap()
}

#[test]
fn privileged_one_content_under_two_names_is_one_image() {
    let mut store = Store::new();
    let repo = |name: &str| format!("docker.io/library/{name}@{}", digest(b"manifest"));
    let layer = tar("f", "1");
    commit(store.get(), &[A], &[&repo("a")], &layer, b"config");
    let image = commit(store.get(), &[B], &[&repo("b")], &layer, b"config");
    assert_eq!(image.tags, [A, B]);
    assert_eq!(image.digests, [repo("a"), repo("b")]);
    assert_eq!(store.get().list().len(), 1);
    assert_eq!(store.reopen().list().first(), Some(&image));
    assert_eq!(store.get().find(&repo("a")), Some(image.clone()));
    assert_eq!(store.get().find(&format!("{A}@{}", digest(b"manifest"))), Some(image));
    let removed = store.get().remove(B).unwrap();
    assert_eq!(removed.tags, [A, B]);
    store.assert_bare();
}

#[test]
fn privileged_a_tag_that_moves_leaves_the_older_image_under_its_digest() {
    let mut store = Store::new();
    let of = |name: &str| format!("docker.io/library/a@{}", digest(name.as_bytes()));
    let old = commit(store.get(), &[A, B], &[&of("old")], &tar("f", "old"), b"old");
    let new = commit(store.get(), &[A], &[&of("new")], &tar("f", "new"), b"new");
    for turn in 0..2 {
        let service = if turn == 0 { store.get() } else { store.reopen() };
        assert_eq!(service.find(A).unwrap().id, new.id);
        let old = service.find(&old.id.to_string()).unwrap();
        assert_eq!((old.tags.as_slice(), old.digests.as_slice()), ([B.to_owned()].as_slice(), [of("old")].as_slice()));
    }
}

#[test]
fn privileged_a_pin_stays() {
    let mut store = Store::new();
    let image = ImportedImage { name: A.into(), layers: vec![tar("f", "1")], pinned: true, ..ImportedImage::default() };
    assert!(store.get().import(image.clone()).unwrap().pinned);
    assert!(store.get().import(ImportedImage { pinned: false, ..image }).unwrap().pinned);
    assert!(store.reopen().find(A).unwrap().pinned);
}

#[test]
fn privileged_removal_is_idempotent_and_frees_what_only_it_used() {
    let store = Store::new();
    let (shared, own_a, own_b) = (tar("s", "shared"), tar("a", "a"), tar("b", "b"));
    import(store.get(), A, &[shared.clone(), own_a.clone()]);
    import(store.get(), B, &[shared.clone(), own_b.clone()]);
    assert_eq!(store.names_in("layers").len(), 3);
    let removed = store.get().remove("a:1").unwrap();
    assert!(removed.freed.used_bytes > 0 && removed.in_use.is_empty() && removed.tags == [A]);
    let mut left = [digest(&shared).hex(), digest(&own_b).hex()];
    left.sort();
    assert_eq!(store.names_in("layers"), left);
    assert_eq!(store.get().remove(A).unwrap(), Default::default());
    assert_eq!(store.get().remove("no/such/image").unwrap(), Default::default());
    assert!(store.get().find(B).is_some());
    store.get().remove(B).unwrap();
    store.assert_bare();
}

#[test]
fn privileged_snapshots_conform() {
    let mut store = Store::new();
    let (base, top) = (tar("etc/base", "base"), tar("etc/top", "top"));
    let image = import(store.get(), A, &[base.clone(), top.clone(), base.clone()]);
    let other = import(store.get(), B, &[tar("b", "b")]);
    let service = store.get();
    let made = service.prepare(&key("c1"), &image.id).unwrap();
    let fs = |tar: &[u8]| store.root().join("layers").join(digest(tar).hex()).join("fs");
    assert_eq!(made.lower, [fs(&base), fs(&top)]);
    assert!(made.lower.iter().chain([&made.upper, &made.work]).all(|path| path.is_dir()));
    assert_eq!(std::fs::metadata(&made.upper).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(
        std::fs::read_link(made.upper.with_file_name("image")).unwrap().file_name(),
        Some(format!("{}.json", image.id.hex()).as_ref())
    );
    // Again: the same, with what was written in it.
    std::fs::write(made.upper.join("written"), b"w").unwrap();
    assert_eq!(service.prepare(&key("c1"), &image.id).unwrap(), made);
    assert!(made.upper.join("written").exists());
    assert!(matches!(service.prepare(&key("c1"), &other.id), Err(SnapshotError::Exists { .. })));
    assert!(matches!(service.prepare(&key("c2"), &digest(b"no image")), Err(SnapshotError::NoImage { .. })));
    assert_eq!(service.find_snapshot(&key("c1")), Some(made.clone()));
    assert_eq!(service.find_snapshot(&key("c2")), None);
    // It outlives a restart.
    assert_eq!(store.reopen().find_snapshot(&key("c1")), Some(made.clone()));
    let service = store.get();
    service.prepare(&key("c2"), &other.id).unwrap();
    service.retain(&HashSet::from([key("c2")]));
    assert_eq!(service.snapshots(), [key("c2")]);
    assert!(!made.upper.exists());
    service.discard(&key("c1")).unwrap();
    service.discard(&key("c2")).unwrap();
    service.discard(&key("c2")).unwrap();
    service.remove(A).unwrap();
    service.remove(B).unwrap();
    store.assert_bare();
}

#[test]
fn privileged_an_image_in_use_vanishes_but_its_layers_stay_until_released() {
    let mut store = Store::new();
    let image = import(store.get(), A, &[tar("f", "1")]);
    let made = store.get().prepare(&key("c1"), &image.id).unwrap();
    store.get().prepare(&key("c2"), &image.id).unwrap();
    let removed = store.get().remove(A).unwrap();
    assert_eq!(removed.in_use, [key("c1"), key("c2")]);
    assert_eq!(removed.freed.inodes_used, 0);
    for turn in 0..2 {
        let service = if turn == 0 { store.get() } else { store.reopen() };
        assert!(service.list().is_empty() && service.find(A).is_none() && service.find(&image.id.hex()).is_none());
        assert_eq!(service.remove(A).unwrap(), Default::default());
        assert!(made.lower[0].join("f").exists());
        assert_eq!(service.find_snapshot(&key("c1")), Some(made.clone()));
        assert!(matches!(service.prepare(&key("c3"), &image.id), Err(SnapshotError::NoImage { .. })));
    }
    store.get().discard(&key("c1")).unwrap();
    assert!(made.lower[0].join("f").exists());
    // Pulled again meanwhile: an image again, and the same layers.
    import(store.get(), A, &[tar("f", "1")]);
    assert_eq!(store.get().find(A).unwrap().tags, [A]);
    store.get().remove(A).unwrap();
    store.get().discard(&key("c2")).unwrap();
    store.assert_bare();
}

#[test]
fn privileged_writes_are_measured_and_the_root_has_the_images_owner() {
    let store = Store::new();
    let layer = Tar::new()
        .entry(&Entry { flag: b'5', name: b"./", mode: 0o1750, owner: (7, 8), ..Entry::default() })
        .file("f", b"1")
        .end();
    let image = import(store.get(), A, &[layer, tar("g", "no root here")]);
    let made = store.get().prepare(&key("c"), &image.id).unwrap();
    let upper = std::fs::metadata(&made.upper).unwrap();
    assert_eq!((upper.mode() & 0o7777, upper.uid(), upper.gid()), (0o1750, 7, 8));
    std::fs::write(made.upper.join("a"), vec![1; 100_000]).unwrap();
    std::fs::create_dir(made.upper.join("d")).unwrap();
    let known = store.get().snapshot_usage(&key("c"));
    assert!(known.usage.used_bytes == 0 && known.measured_at.is_some(), "a new layer is empty: {known:?}");
    store.get().measure_snapshot(&key("c"));
    let usage = store.get().snapshot_usage(&key("c")).usage;
    assert_eq!(usage, store.get().snapshots_usage());
    assert_eq!(usage.inodes_used, 2);
    assert!((100_000..200_000).contains(&usage.used_bytes), "{usage:?}");
    assert_eq!(usage.mountpoint, store.root());
    assert_eq!(store.get().snapshot_usage(&key("none")).measured_at, None);
}

#[test]
fn privileged_the_ledger_is_what_the_disk_says() {
    let store = Store::new();
    let files = (0..200).fold(Tar::new(), |tar, at| tar.file(&format!("d{}/f{at}", at % 7), &vec![1; at * 100])).end();
    import(store.get(), A, &[files, tar("x", "y")]);
    import(store.get(), B, &[tar("x", "y")]);
    let (mut bytes, mut inodes) = (0, 0);
    let mut todo = vec![store.root().join("layers"), store.root().join("content")];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            (bytes, inodes) = (bytes + meta.blocks() * 512, inodes + 1);
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    let usage = store.get().usage();
    // Beside the images themselves: two folders and a record per layer, and three folders of the store.
    assert!(inodes - usage.inodes_used <= 2 * 3 + 3, "{inodes} {usage:?}");
    assert!(bytes - usage.used_bytes <= (2 * 3 + 3) * 4096, "{bytes} {usage:?}");
    let sizes: u64 = store.get().list().iter().map(|image| image.size).sum();
    assert!(sizes >= usage.used_bytes);
}

#[test]
fn privileged_leftovers_of_a_crash_are_swept_at_open() {
    let mut store = Store::new();
    let image = import(store.get(), A, &[tar("f", "1")]);
    store.get().prepare(&key("kept"), &image.id).unwrap();
    // A pull that broke off: a layer in place, without a record; held by nobody after the restart.
    let orphan = tar("o", "orphan");
    let told = descriptor(&orphan, Compression::Plain);
    drop(store.get().layers().unpack(&told, &digest(&orphan), orphan.as_slice(), &Job::new()).unwrap());
    let blob = digest(b"orphan blob");
    store.get().content().put(&blob, b"orphan blob").unwrap();
    let root = store.root();
    for dir in
        ["layers/tmp/half/fs/deep/er", "layers/not-a-digest", "snapshots/half/upper", "snapshots/.odd", "trash/old/x"]
    {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::write(root.join("content/tmp/blob"), b"x").unwrap();
    std::fs::write(root.join("content/sha256").join(digest(b"torn").hex()), b"to").unwrap();
    std::fs::write(root.join("images/tmp/x"), b"x").unwrap();
    std::fs::write(root.join(format!("images/{}.json", digest(b"bad").hex())), b"{").unwrap();

    let service = store.reopen();
    assert_eq!(service.list().len(), 1);
    assert!(!service.content().has(&blob) && !service.layers().has(&digest(&orphan)));
    assert_eq!(service.snapshots(), [key("kept")]);
    wait(|| service.is_drained().unwrap());
    assert_eq!(store.names_in("layers"), [digest(&tar("f", "1")).hex()]);
    assert_eq!(store.names_in("content/sha256"), [image.id.hex()]);
    assert_eq!(store.names_in("snapshots"), ["kept"]);
    let mut records = [format!("{}.json.broken", digest(b"bad").hex()), format!("{}.json", image.id.hex())];
    records.sort();
    assert_eq!(store.names_in("images"), records);
}

#[test]
fn privileged_an_image_that_lost_a_layer_is_not_listed() {
    let mut store = Store::new();
    import(store.get(), A, &[tar("f", "1"), tar("g", "2")]);
    import(store.get(), B, &[tar("f", "1")]);
    let lost = store.root().join("layers").join(digest(&tar("g", "2")).hex());
    std::fs::remove_dir_all(lost.join("fs")).unwrap();
    let service = store.reopen();
    assert!(service.find(A).is_none());
    assert!(service.find(B).is_some());
    import(service, A, &[tar("f", "1"), tar("g", "2")]);
    assert!(service.find(A).is_some());
}

#[test]
fn privileged_a_record_of_a_newer_build_stops_the_opening() {
    let mut store = Store::new();
    let image = import(store.get(), A, &[tar("f", "1")]);
    store.service = None;
    let path = store.root().join(format!("images/{}.json", image.id.hex()));
    let text = std::fs::read_to_string(&path).unwrap().replace("\"version\":1", "\"version\":2");
    std::fs::write(&path, text).unwrap();
    let error = open(&store.root()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { version: 2, .. }), "{error}");
    assert_eq!(store.names_in("layers").len(), 1);
}

#[test]
fn privileged_a_second_service_on_the_same_root_is_refused() {
    let store = Store::new();
    assert!(matches!(open(&store.root()), Err(OpenError::InUse { .. })));
    let error = open(Path::new("/proc/keelson-cannot-be-here")).unwrap_err();
    assert!(matches!(error, OpenError::Folder { .. }), "{error}");
}

#[test]
fn privileged_a_local_user_sees_nothing() {
    let mut store = Store::new();
    std::fs::set_permissions(store.temp.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let setuid = Tar::new().entry(&Entry { name: b"su", mode: 0o4755, data: b"#!/bin/sh\n", ..Entry::default() }).end();
    let image = import(store.get(), A, &[setuid]);
    store.get().prepare(&key("c"), &image.id).unwrap();
    // As an older version might have left them.
    for folder in ["layers", "snapshots", "images", "content", "trash"] {
        std::fs::set_permissions(store.root().join(folder), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    store.reopen();
    let mode = |path: &str| std::fs::metadata(store.root().join(path)).unwrap().mode() & 0o7777;
    assert_eq!(mode(""), 0o711);
    for folder in ["layers", "snapshots", "images", "content", "trash", "snapshots/c", "layers/tmp", "content/sha256"] {
        assert_eq!(mode(folder), 0o700, "{folder}");
    }
    assert_eq!(mode(&format!("layers/{}", image.diff_ids[0].hex())), 0o700);
    assert_eq!(mode(&format!("images/{}.json", image.id.hex())), 0o600);
}

#[test]
fn privileged_imports_and_removals_race_without_losing_anything() {
    let store = Store::new();
    let service = store.get();
    let shared = tar("shared", "shared");
    std::thread::scope(|scope| {
        for worker in 0..5 {
            let shared = &shared;
            scope.spawn(move || {
                for turn in 0..12 {
                    let name = format!("docker.io/library/w{worker}:{}", turn % 2);
                    let image = import(service, &name, &[shared.clone(), tar("own", &format!("{worker} {turn}"))]);
                    let key = key(&format!("c{worker}-{turn}"));
                    match service.prepare(&key, &image.id) {
                        Ok(Snapshot { lower, .. }) => {
                            assert!(lower.iter().any(|path| path.join("shared").exists()), "{lower:?}");
                            service.discard(&key).unwrap();
                        }
                        Err(SnapshotError::NoImage { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    service.remove(&name).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..200 {
                for image in service.list() {
                    let _ = service.remove(&image.id.to_string()).unwrap();
                }
                std::thread::yield_now();
            }
        });
    });
    for image in service.list() {
        service.remove(&image.id.to_string()).unwrap();
    }
    store.assert_bare();
}

#[test]
fn privileged_a_snapshot_that_fails_during_the_removal_of_its_image_keeps_nothing_of_it() {
    let store = Store::new();
    let service = store.get();
    for round in 0..10 {
        let image = import(service, A, &[tar("f", &round.to_string())]);
        // A file where each snapshot's folder should go.
        let keys: Vec<_> = (0..300).map(|at| key(&format!("s{at}"))).collect();
        keys.iter().for_each(|key| std::fs::write(store.root().join("snapshots").join(key.as_str()), b"").unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| keys.iter().for_each(|key| drop(service.prepare(key, &image.id).unwrap_err())));
            std::thread::sleep(Duration::from_micros(300 * (round + 1)));
            service.remove(A).unwrap();
        });
        for name in store.names_in("snapshots") {
            std::fs::remove_file(store.root().join("snapshots").join(name)).unwrap();
        }
        store.assert_bare();
    }
}

#[test]
fn privileged_kept_blobs_are_kept_and_collected() {
    let temp = tempfile::tempdir().unwrap();
    let config = Config { root: temp.path().join("store"), keep_blobs: true, ..Config::default() };
    let service = ImageService::open(config.clone()).unwrap();
    let layer = tar("f", "1");
    commit(&service, &[A], &[], &layer, b"config");
    let blob = digest(&gzip(&layer));
    assert_eq!(service.content().read(&blob, 1 << 20).unwrap(), gzip(&layer));
    drop(service);
    let service = ImageService::open(config).unwrap();
    assert!(service.content().has(&blob));
    service.remove(A).unwrap();
    assert!(!service.content().has(&blob));
}

/// Set in the environment of the copy of this program that gets killed.
const VICTIM: &str = "KEELSON_STORE_TEST_VICTIM";

/// The body of the child: makes and removes images until it is killed.
fn be_the_victim(root: &Path) {
    let service = open(root).unwrap();
    for turn in 0u64.. {
        let name = format!("docker.io/library/v:{}", turn % 3);
        let own = format!("{} {turn}", std::process::id());
        let image = import(&service, &name, &[tar("shared", "shared"), tar("own", &own), tar("and", &own)]);
        let key = key(&format!("s{}-{turn}", std::process::id()));
        service.prepare(&key, &image.id).unwrap();
        if turn % 2 == 0 {
            service.remove(&name).unwrap();
        }
        if turn % 3 > 0 {
            service.discard(&key).unwrap();
        }
    }
}

#[test]
fn privileged_a_kill_at_any_moment_loses_no_image_and_leaves_no_half() {
    if let Some(root) = std::env::var_os(VICTIM) {
        return be_the_victim(Path::new(&root));
    }
    let store = Store::new();
    let root = store.root();
    drop(store.service);
    for round in 0..25u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "privileged_a_kill_at_any_moment_loses_no_image_and_leaves_no_half"])
            .env(VICTIM, &root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait(|| std::fs::read_dir(root.join("images")).is_ok_and(|images| images.count() > 1) || round > 3);
        std::thread::sleep(Duration::from_millis(7 + round * 13 % 90));
        child.kill().unwrap();
        child.wait().unwrap();

        let service = open(&root).unwrap();
        for image in service.list() {
            let snapshot = service.prepare(&key("look"), &image.id).unwrap();
            for (name, layer) in ["and", "own", "shared"].iter().zip(&snapshot.lower) {
                assert!(layer.join(name).is_file(), "round {round}: {layer:?} {name}");
            }
            assert_eq!(snapshot.lower.len(), 3);
            service.content().read(&image.id, 1 << 20).unwrap();
            service.discard(&key("look")).unwrap();
        }
        for snapshot in service.snapshots() {
            let folders = service.find_snapshot(&snapshot).expect("its layers are claimed");
            assert!(folders.lower.iter().all(|path| path.is_dir()) && folders.work.is_dir());
        }
        assert_eq!(std::fs::read_dir(root.join("layers/tmp")).unwrap().count(), 0);
    }
    let service = open(&root).unwrap();
    service.retain(&HashSet::new());
    for image in service.list() {
        service.remove(&image.id.to_string()).unwrap();
    }
    drop(service);
    let service = Some(open(&root).unwrap());
    Store { service, temp: store.temp }.assert_bare();
}

/// An overlay of the snapshot, mounted where only this thread's fd leads.
fn overlay(snapshot: &Snapshot) -> std::os::fd::OwnedFd {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    };
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    for lower in &snapshot.lower {
        fsconfig_set_string(&fs, "lowerdir+", lower).unwrap();
    }
    fsconfig_set_string(&fs, "upperdir", &snapshot.upper).unwrap();
    fsconfig_set_string(&fs, "workdir", &snapshot.work).unwrap();
    fsconfig_create(&fs).unwrap();
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

#[test]
fn privileged_overlayfs_shows_what_the_layers_say() {
    let store = Store::new();
    let base = Tar::new()
        .entry(&Entry { flag: b'5', name: b"tmp", mode: 0o1777, ..Entry::default() })
        .entry(&Entry { flag: b'5', name: b"srv/app", mode: 0o750, owner: (33, 33), ..Entry::default() })
        .file("srv/app/code", b"code")
        .dir("opaque")
        .file("opaque/old", b"old")
        .dir("gone")
        .file("gone/file", b"x")
        .file("removed", b"x")
        .dir("remade")
        .file("remade/old", b"x")
        .symlink("bin", "usr/bin")
        .end();
    let top = Tar::new()
        .file("tmp/implied", b"in a folder that this layer does not describe")
        .file("srv/app/more", b"more")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .file(".wh.gone", b"")
        .file(".wh.removed", b"")
        .file(".wh.remade", b"")
        .dir("remade")
        .file("remade/new", b"x")
        .file("new/folder/file", b"x")
        .end();
    let image = import(store.get(), A, &[base, tar("empty", ""), top, tar("again", "x")]);
    // The directories that the upper layer only implied get a layer of their own.
    let made = store.get().prepare(&key("c"), &image.id).unwrap();
    assert_eq!(made.lower.len(), 5);
    let mount = overlay(&made);
    let at = |path: &str| PathBuf::from(format!("/proc/self/fd/{}/{path}", std::os::fd::AsRawFd::as_raw_fd(&mount)));
    let list = |path: &str| {
        let mut names: Vec<_> = std::fs::read_dir(at(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(list(""), ["again", "bin", "empty", "new", "opaque", "remade", "srv", "tmp"]);
    assert_eq!(list("opaque"), ["new"]);
    assert_eq!(list("remade"), ["new"]);
    assert_eq!(list("srv/app"), ["code", "more"]);
    let looks = |path: &str| {
        let meta = std::fs::metadata(at(path)).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    assert_eq!(looks("tmp"), (0o1777, 0, 0));
    assert_eq!(looks("srv/app"), (0o750, 33, 33));
    assert_eq!(looks("srv"), (0o755, 0, 0));
    assert_eq!(looks(""), (0o755, 0, 0));
    assert_eq!(looks("new/folder"), (0o755, 0, 0));
    // A container writes and deletes; the layers do not change.
    std::fs::write(at("tmp/written"), b"w").unwrap();
    std::fs::remove_file(at("srv/app/code")).unwrap();
    assert_eq!(list("srv/app"), ["more"]);
    assert!(made.upper.join("tmp/written").exists());
    assert_eq!(std::fs::read(made.lower.last().unwrap().join("srv/app/code")).unwrap(), b"code");
    drop(mount);
    store.get().discard(&key("c")).unwrap();
    store.get().remove(A).unwrap();
    store.assert_bare();
}

#[test]
fn privileged_an_image_without_layers_is_an_empty_root() {
    let store = Store::new();
    let image = import(store.get(), A, &[]);
    let made = store.get().prepare(&key("c"), &image.id).unwrap();
    assert_eq!(made.lower, [store.root().join("empty")]);
    let mount = overlay(&made);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&mount));
    assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
}

#[test]
fn privileged_an_opaque_root_hides_all_layers_below() {
    let store = Store::new();
    let fresh = Tar::new().file(".wh..wh..opq", b"").file("only", b"x").end();
    let image = import(store.get(), A, &[tar("below", "x"), fresh, tar("above", "y")]);
    let made = store.get().prepare(&key("c"), &image.id).unwrap();
    assert_eq!(made.lower.len(), 2);
    assert!(made.lower[0].join("above").exists() && made.lower[1].join("only").exists());
}

#[test]
fn a_commit_without_its_layers_is_refused() {
    let store = Store::new();
    let id: Digest = digest(b"config");
    let new = |diff_ids: Vec<Digest>| NewImage {
        id,
        tags: vec![A.into()],
        digests: vec![],
        config: ImageConfig::default(),
        diff_ids,
        layers: vec![],
        blobs: vec![(id, b"config".to_vec())],
        pinned: false,
        checkpoint: false,
    };
    let error = store.get().commit(new(vec![digest(b"layer")])).unwrap_err();
    assert!(error.to_string().contains("is not unpacked"), "{error}");
    let error = store.get().commit(new(vec![digest(b"layer"); 257])).unwrap_err();
    assert!(error.to_string().contains("257 layers"), "{error}");
    let error = store.get().commit(NewImage { blobs: vec![(id, b"other".to_vec())], ..new(vec![]) }).unwrap_err();
    assert!(error.to_string().contains("commit image"), "{error}");
    assert!(store.get().list().is_empty());
}
