//! Opening a checkpoint for a new container: from the archive or the image that the request names in the place of an image, or from the
//! archive of a pod.
//! Methods of the engine, on tokio workers; files on the blocking pool.
//! Owns a checkpoint's folder until a container has it. Must never make a container of what an image carries where the operator has
//! not allowed it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use keelson_api::{ContainerId, SandboxId};
use keelson_imageservice::{Image, Tree};

use super::{discard, folder_name, possible};
use crate::{
    checkpoint::{
        CheckpointError, pod,
        read::{self, Folder},
    },
    container::{ContainerError, ContainerSpec},
    engine::{
        Engine,
        shared::{Shared, blocking},
    },
};

/// Where a checkpoint is.
pub(in crate::engine) enum Source {
    /// In a file of the host.
    Archive(PathBuf),
    /// In the layers of an image.
    Image(Tree),
}

impl Engine {
    /// The checkpoint that a container specification names in the place of an image, if it does; else the image.
    pub(in crate::engine) async fn source(
        &self,
        spec: &ContainerSpec,
    ) -> Result<Result<Source, Arc<Image>>, ContainerError> {
        // No reference begins so: it is the archive of a checkpoint.
        if spec.image.starts_with('/') {
            return Ok(Ok(Source::Archive(PathBuf::from(&spec.image))));
        }
        let image = self.shared.images.find(&spec.image);
        let image = image.ok_or_else(|| ContainerError::ImageMissing { image: spec.image.clone() })?;
        if !image.checkpoint {
            return Ok(Err(image));
        }
        let (shared, wanted) = (Arc::clone(&self.shared), Arc::clone(&image));
        let found = blocking(move || {
            let tree = shared.images.tree(&wanted)?;
            // A note on a manifest is anybody's, also on one of another's image: what is no checkpoint is run as ever.
            Ok(read::is_checkpoint(&tree)?.then_some(tree))
        });
        let failed = |error| CheckpointError::io("look into image", Path::new(&spec.image))(error);
        let found = found.await.map_err(|error| opening(failed(error)))?;
        match found {
            None => Ok(Err(image)),
            Some(tree) if self.shared.config.checkpoint_images => Ok(Ok(Source::Image(tree))),
            Some(_) => Err(ContainerError::Unsupported {
                field: "image".to_owned(),
                reason: format!(
                    "`{}` carries a checkpoint, and this node restores none from images: whoever made it chooses what CRIU reads as \
                     root; allow it with `images = true` below `[checkpoint]` in the configuration",
                    spec.image
                ),
            }),
        }
    }

    /// Unpacks a checkpoint for a container, and gives the image that it was made from.
    pub(in crate::engine) async fn open_checkpoint(
        &self,
        sandbox: &SandboxId,
        spec: &mut ContainerSpec,
        source: Source,
    ) -> Result<Arc<Image>, ContainerError> {
        let view = self.find_sandbox(sandbox.as_str());
        let view = view.ok_or_else(|| ContainerError::SandboxNotFound { id: sandbox.to_string() })?;
        possible(spec, &view.spec)?;
        let shared = Arc::clone(&self.shared);
        let opened = blocking(move || {
            let name = folder_name(&shared, "restore")?;
            let folder = shared.checkpoint(&name);
            let limits = &shared.config.images.limits;
            let read = match source {
                Source::Archive(path) => read::archive(&path).and_then(|file| read::unpack(file, &folder, limits)),
                Source::Image(tree) => read::copy(&tree, &folder),
            };
            match read.and_then(|()| base_image(&shared, &folder)) {
                Ok(image) => Ok((name, image)),
                Err(error) => {
                    discard(&folder);
                    Err(error)
                }
            }
        });
        let (folder, image) = opened.await.map_err(opening)?;
        spec.checkpoint = Some(folder);
        Ok(image)
    }

    /// Takes away what [`Engine::open_checkpoint`] unpacked for a container that has not come to be, or had been made before.
    pub(in crate::engine) async fn close_checkpoint(&self, folder: String, made: Option<&ContainerId>) {
        let kept = made
            .and_then(|id| self.find_container(id.as_str()))
            .is_some_and(|view| view.spec.checkpoint.as_deref() == Some(folder.as_str()));
        if !kept {
            let folder = self.shared.checkpoint(&folder);
            blocking(move || discard(&folder)).await;
        }
    }

    /// Unpacks the archive of a pod and gives the checkpoint of each of its containers as an archive of its own, by name. The
    /// folder is the caller's to give back.
    ///
    /// # Errors
    /// See [`ContainerError`].
    pub async fn open_pod_checkpoint(&self, path: PathBuf) -> Result<PodCheckpoint, ContainerError> {
        let shared = Arc::clone(&self.shared);
        let opened = blocking(move || {
            let folder = shared.checkpoint(&folder_name(&shared, "restore")?);
            let opened = read::archive(&path)
                .and_then(|file| read::unpack(file, &folder, &shared.config.images.limits))
                .and_then(|()| pod::containers(&folder));
            match opened {
                Ok(containers) => Ok(PodCheckpoint { containers, folder }),
                Err(error) => {
                    discard(&folder);
                    Err(error)
                }
            }
        });
        opened.await.map_err(opening)
    }
}

/// An unpacked archive of a pod. Its folder goes with it.
pub struct PodCheckpoint {
    /// Names, and the archive of each, in the order of the pod's archive.
    pub containers: Vec<(String, PathBuf)>,
    folder: Folder,
}

impl Drop for PodCheckpoint {
    fn drop(&mut self) {
        // Some files below a folder of ours; a restore is no hot path.
        discard(&self.folder);
    }
}

fn opening(source: CheckpointError) -> ContainerError {
    ContainerError::Checkpoint { act: "open checkpoint", id: None, source }
}

/// The image that a checkpoint was made from: exactly that one, by its id.
fn base_image(shared: &Shared, folder: &Folder) -> Result<Arc<Image>, CheckpointError> {
    let wanted = read::config(folder)?.rootfs_image_ref;
    let absent = || CheckpointError::NoImage { image: wanted.chars().take(200).flat_map(char::escape_debug).collect() };
    let digest: keelson_api::Digest = wanted.parse().map_err(|_| absent())?;
    let image = shared.images.find(&digest.to_string()).ok_or_else(absent)?;
    if image.id.to_string() == digest.to_string() { Ok(image) } else { Err(absent()) }
}
