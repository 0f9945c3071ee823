//! Opening a store that may have been left at any instant, by a crash or a power cut.
//! Runs once, before the service exists, on a blocking thread.
//! Assumes: (1) a record file is whole or absent; (2) whatever a record names was synced before it; (3) layers and blobs that no
//! record names may be torn; (4) a snapshot is whole once it has its `work` folder; (5) of two records with one tag, the higher
//! generation was written later. Must never collect anything while a record exists that this build cannot read.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use keelson_api::Digest;
use rustix::{
    fs::{AtFlags, FlockOperation, Mode},
    io::Errno,
};

use super::{
    ImageService, OpenError, SnapshotState, State,
    record::{Found, Record},
    view::View,
};
use crate::{config::Config, content::Content, disk, gc::Trash, layer::Layers, pull::Pulls, snapshot::SnapshotKey};

/// Everyone may pass through the root, nobody may look into what is in it: an image's set-uid files must not be within a local
/// user's reach (CVE-2021-41103).
const ROOT_MODE: Mode = Mode::from_bits_retain(0o711);

/// How long an owner that is going away may take.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Takes the store. The last owner's lock lives on for a moment in a process that it had begun to spawn and that has not come to its
/// exec yet; a living owner keeps it.
fn lock(images: &OwnedFd) -> Result<(), Errno> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(images, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
}

pub(super) fn open(config: Config) -> Result<ImageService, OpenError> {
    let folder = |act| {
        let path = config.root.clone();
        move |source| OpenError::Folder { path, act, source }
    };
    let root = disk::ensure_root(&config.root, ROOT_MODE).map_err(folder("make folder"))?;
    let images = disk::ensure_dir(&root, "images", Mode::RWXU).map_err(folder("make `images`"))?;
    match lock(&images) {
        Ok(()) => {}
        Err(Errno::AGAIN) => return Err(OpenError::InUse { path: config.root }),
        Err(errno) => return Err(folder("lock `images`")(errno.into())),
    }
    let images_tmp = disk::ensure_dir(&images, "tmp", Mode::RWXU).map_err(folder("make `images/tmp`"))?;
    let snapshots = disk::ensure_dir(&root, "snapshots", Mode::RWXU).map_err(folder("make `snapshots`"))?;
    disk::ensure_dir(&root, "empty", Mode::from_bits_retain(0o755)).map_err(folder("make `empty`"))?;
    let mut records = load_records(&images, &images_tmp, &config)?;
    let trash = Trash::open(&root).map_err(folder("open `trash`"))?;
    let content = Content::open(&root).map_err(folder("open `content`"))?;
    let keep = config.keep_blobs.then(|| content.clone());
    let named: HashSet<Digest> = records.values().flat_map(Record::layers).copied().collect();
    let place = (&root, &*config.root);
    let layers = Layers::open(place, config.limits.clone(), keep, trash.clone(), |id| named.contains(id))
        .map_err(folder("open `layers`"))?;
    let on_disk = load_snapshots(&snapshots, &trash).map_err(folder("read `snapshots`"))?;

    drop_unusable(&mut records, &layers, &on_disk, &images).map_err(folder("clean `images`"))?;
    settle_tags(&mut records, (&images, &images_tmp)).map_err(folder("settle tags in `images`"))?;
    let needed: HashSet<Digest> = records.values().flat_map(|record| &record.blobs).copied().collect();
    for blob in content.digests().into_iter().filter(|blob| !needed.contains(blob)) {
        if let Err(error) = content.remove(&blob) {
            tracing::warn!(%blob, %error, "orphan blob stays");
        }
    }
    let wanted: HashSet<Digest> = records.values().flat_map(Record::layers).copied().collect();
    layers.collect(std::time::Instant::now(), |id| wanted.contains(id));

    let pulls = Pulls::new(&config);
    let view = RwLock::new(Arc::new(View::new(records.values())));
    Ok(ImageService {
        config,
        content,
        layers,
        pulls,
        root,
        images,
        images_tmp,
        snapshots,
        trash,
        records: Mutex::new(()),
        state: Mutex::new(State { records, snapshots: on_disk }),
        view,
        #[cfg(test)]
        fail_at: Mutex::new(None),
    })
}

fn load_records(images: &OwnedFd, tmp: &OwnedFd, config: &Config) -> Result<BTreeMap<Digest, Record>, OpenError> {
    let folder = |act| {
        let path = config.root.clone();
        move |source| OpenError::Folder { path, act, source }
    };
    for name in disk::names(tmp).map_err(folder("read `images/tmp`"))? {
        rustix::fs::unlinkat(tmp, &*name, AtFlags::empty()).map_err(|e| folder("sweep `images/tmp`")(e.into()))?;
    }
    let mut records = BTreeMap::new();
    for name in disk::names(images).map_err(folder("read `images`"))? {
        let Some(id) = name.strip_suffix(".json").map(str::to_owned) else { continue };
        match Record::load(images, &name) {
            Found::Record(record) => {
                records.insert(record.id, *record);
            }
            Found::Newer(version) => {
                return Err(OpenError::Newer { path: config.root.clone(), id, version });
            }
            Found::Broken(error) => {
                tracing::warn!(image = %id, %error, "image is lost, pull it again: read image record");
                let aside = format!("{name}.broken");
                rustix::fs::renameat(images, &*name, images, &*aside)
                    .map_err(|e| folder("set a broken record aside")(e.into()))?;
            }
        }
    }
    Ok(records)
}

/// An image that lost a layer would be listed but could never start, and a node that has it would never pull it again.
fn drop_unusable(
    records: &mut BTreeMap<Digest, Record>,
    layers: &Layers,
    snapshots: &HashMap<SnapshotKey, SnapshotState>,
    images: &OwnedFd,
) -> io::Result<()> {
    let lost: Vec<Digest> = records
        .values()
        .filter(|record| {
            let missing = record.layers().find(|id| !layers.has(id));
            if let Some(layer) = missing {
                tracing::warn!(image = %record.id, %layer, "image is lost, pull it again: its layer is not on disk");
            }
            let abandoned = record.removed && !snapshots.values().any(|snapshot| snapshot.image == record.id);
            missing.is_some() || abandoned
        })
        .map(|record| record.id)
        .collect();
    for id in &lost {
        rustix::fs::unlinkat(images, Record::file_name(id), AtFlags::empty())?;
        records.remove(id);
    }
    if !lost.is_empty() {
        rustix::fs::fsync(images)?;
    }
    Ok(())
}

/// A crash between the two writes of a tag's move leaves it in both records: the later one has it.
fn settle_tags(records: &mut BTreeMap<Digest, Record>, images: (&OwnedFd, &OwnedFd)) -> io::Result<()> {
    let mut owner: HashMap<String, (u64, Digest)> = HashMap::new();
    for record in records.values() {
        for tag in &record.tags {
            let claim = (record.generation, record.id);
            let best = owner.entry(tag.clone()).or_insert(claim);
            *best = (*best).max(claim);
        }
    }
    for record in records.values_mut() {
        let before = record.tags.len();
        record.tags.retain(|tag| owner.get(tag).is_some_and(|(_, id)| *id == record.id));
        if record.tags.len() != before {
            record.save(images.0, images.1)?;
        }
    }
    Ok(())
}

fn load_snapshots(dir: &OwnedFd, trash: &Trash) -> io::Result<HashMap<SnapshotKey, SnapshotState>> {
    let mut found = HashMap::new();
    for name in disk::names(dir)? {
        let whole = || {
            let key: SnapshotKey = name.parse().ok()?;
            let snapshot = rustix::fs::openat(dir, &*name, disk::DIR, Mode::empty()).ok()?;
            rustix::fs::openat(&snapshot, "work", disk::DIR, Mode::empty()).ok()?;
            let link = rustix::fs::readlinkat(&snapshot, "image", Vec::new()).ok()?;
            let file = link.to_str().ok()?.rsplit('/').next()?.strip_suffix(".json")?;
            Some((key, Digest::from_hex(file).ok()?))
        };
        match whole() {
            Some((key, image)) => {
                found.insert(key, SnapshotState { image, measured: None });
            }
            None => trash.take(dir, &name)?,
        }
    }
    Ok(found)
}
