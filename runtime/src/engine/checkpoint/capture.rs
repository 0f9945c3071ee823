//! Writing a checkpoint: all held, each written by CRIU, each archived, all let go, and the archive gets its place.
//! Async, in a task that nobody can cancel; files on the blocking pool.
//! Owns nothing: folders and claim are the caller's. Must never return before every container that was held is let go.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use keelson_api::{ContainerId, shim};
use keelson_imageservice::SnapshotKey;

use super::{Into, Target, discard};
use crate::{
    checkpoint::{
        CheckpointError, metadata, pod,
        read::Folder,
        write::{self, Destination},
    },
    container::ContainerView,
    engine::shared::{Shared, blocking, now},
};

/// What failed: the shim's part or ours.
pub(super) enum Failed {
    Shim(crate::shim_client::ShimError),
    Archive(CheckpointError),
}

pub(super) type Outcome<T> = Result<T, (Option<ContainerId>, Failed)>;

/// Writes the archive, and takes every folder away that was made for it.
pub(super) async fn write_all(
    shared: &Arc<Shared>,
    mut targets: Vec<Target>,
    into: Into,
    location: PathBuf,
    deadline: Instant,
) -> Outcome<()> {
    let folders: Vec<Folder> = targets.iter().map(|target| target.work.clone()).collect();
    let made = folders.clone();
    let destination = blocking(move || {
        let destination = Destination::open(&location)?;
        made.iter().try_for_each(Folder::make)?;
        Ok(destination)
    });
    let written = match destination.await {
        Ok(destination) => capture(shared, &mut targets, into, destination, deadline).await,
        Err(error) => Err((None, Failed::Archive(error))),
    };
    blocking(move || folders.iter().for_each(discard)).await;
    written
}

/// Holds all, writes each, lets all go, gives the archive its place.
async fn capture(
    shared: &Arc<Shared>,
    targets: &mut [Target],
    into: Into,
    destination: Destination,
    deadline: Instant,
) -> Outcome<()> {
    let mut held = 0;
    let mut captured = Ok(destination);
    for target in targets.iter() {
        if let Err(error) = target.shim.pause(true).await {
            captured = Err((Some(target.view.id.clone()), Failed::Shim(error)));
            break;
        }
        held += 1;
    }
    if let Ok(destination) = captured {
        captured = each(shared, targets, &into, destination, deadline).await;
    }
    for target in targets.iter().take(held) {
        // A container that has ended meanwhile cannot be let go and needs not be.
        if let Err(error) = target.shim.pause(false).await {
            tracing::warn!(container = %target.view.id, %error, "let go after a checkpoint");
        }
    }
    let destination = captured?;
    let parts: Vec<(String, PathBuf)> =
        targets.iter().map(|target| (target.view.spec.key.name.clone(), archive_in(&target.work))).collect();
    let finished = blocking(move || {
        if let Into::Pod(sandbox) = into {
            pod::write(destination.file(), &sandbox, &parts)?;
        }
        destination.finish()
    });
    finished.await.map_err(|error| (None, Failed::Archive(error)))
}

async fn each(
    shared: &Arc<Shared>,
    targets: &mut [Target],
    into: &Into,
    destination: Destination,
    deadline: Instant,
) -> Outcome<Destination> {
    for target in targets.iter_mut() {
        let id = target.view.id.clone();
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let call = shim::Checkpoint {
            criu: text(&shared.config.criu),
            images: text(&target.work.images()),
            work: text(target.work.path()),
            timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        let done = target.shim.checkpoint(call, left).await;
        target.streams = done.map_err(|error| (Some(id.clone()), Failed::Shim(error)))?.stdio;
    }
    let mut destination = destination;
    for target in targets.iter() {
        let (shared, view, work) = (Arc::clone(shared), Arc::clone(&target.view), target.work.clone());
        let streams = target.streams.clone();
        let pod = matches!(into, Into::Pod(_));
        let archived = blocking(move || {
            let own = match pod {
                true => Some(File::create_new(archive_in(&work)).map_err(CheckpointError::io("make", work.path()))?),
                false => None,
            };
            let file = own.as_ref().unwrap_or_else(|| destination.file());
            archive(&shared, &view, &work, &streams, file, deadline)?;
            Ok(destination)
        });
        destination = archived.await.map_err(|error| (Some(target.view.id.clone()), Failed::Archive(error)))?;
    }
    Ok(destination)
}

/// Where a container's archive is on its way into that of a pod.
fn archive_in(work: &Folder) -> PathBuf {
    work.archive().join("container.tar")
}

fn archive(
    shared: &Shared,
    view: &ContainerView,
    work: &Folder,
    streams: &[String],
    file: &File,
    deadline: Instant,
) -> Result<(), CheckpointError> {
    let snapshot = shared.images.find_snapshot(&SnapshotKey::from(&view.id));
    let upper = snapshot.ok_or_else(|| CheckpointError::NoImage { image: view.image_id.clone() })?.upper;
    let path = shared.state.container(&view.id).config();
    let spec = std::fs::read(&path).map_err(CheckpointError::io("read", &path))?;
    let written = if view.spec.image_as_written.is_empty() { &view.spec.image } else { &view.spec.image_as_written };
    let config = metadata::Config {
        id: view.id.to_string(),
        name: view.spec.key.name.clone(),
        rootfs_image: written.clone(),
        rootfs_image_ref: view.image_id.clone(),
        rootfs_image_name: written.clone(),
        runtime: "keelson".to_owned(),
        created_time: metadata::time(view.created_at),
        checkpointed_time: metadata::time(now()),
        restored_time: metadata::time(0),
        restored: view.spec.checkpoint.is_some(),
    };
    let parts = write::Parts { config: &config, spec: &spec, work: work.path(), upper: &upper, streams };
    let mut out = io::BufWriter::with_capacity(1 << 20, file);
    write::container(&mut out, &parts, Some(deadline))?;
    io::Write::flush(&mut out).map_err(CheckpointError::io("write archive from", work.path()))
}
