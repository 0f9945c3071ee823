//! Images as volumes: found, held while the container has them, and put in words for the launcher.
//! On the blocking pool, while a container is created.
//! Owns nothing: each hold is a snapshot named after the container, which `release` and recovery find by the record.
//! Must never mount anything: that is the launcher's, in the container's own mount namespace.

use std::path::{Path, PathBuf};

use keelson_api::shim;
use keelson_imageservice::SnapshotKey;

use super::{ContainerError, spec::Volume};
use crate::{
    engine::{ErrorKind, shared::Shared},
    oci::mounts::{ImageLayers, destination},
    shim_client::ShimError,
    store::record::ContainerRecord,
};

/// Holds every image that the container mounts. Returns their layers, and the volumes with the ids of what was found.
pub(super) fn hold(
    shared: &Shared,
    record: &ContainerRecord,
) -> Result<(Vec<ImageLayers>, Vec<Volume>), ContainerError> {
    let mut volumes = record.spec.volumes.clone();
    let mut layers = Vec::new();
    for (index, volume) in volumes.iter_mut().enumerate() {
        let Some(name) = volume.image.clone() else { continue };
        let refused = |reason: String, kind| ContainerError::ImageVolume {
            image: name.chars().take(200).collect(),
            path: volume.container_path.clone(),
            reason,
            kind,
        };
        let image = shared.images.find(&name);
        let image =
            image.ok_or_else(|| refused("it is not on this node: pull it first".to_owned(), ErrorKind::NotFound))?;
        let snapshot = shared
            .images
            .prepare(&SnapshotKey::of_volume(&record.id, index), &image.id)
            .map_err(|error| refused(keelson_api::chain(&error), ErrorKind::of(&error)))?;
        // The hold's own folder, which stays empty, on top: it has the looks of the image's root, and makes two layers of one.
        let lower: Vec<PathBuf> = std::iter::once(snapshot.upper).chain(snapshot.lower).collect();
        layers.push(ImageLayers { destination: destination(volume), lower });
        volume.image_id = image.id.to_string();
    }
    Ok((layers, volumes))
}

/// For the launcher; none: a path is not text.
pub(super) fn for_launch(images: &[ImageLayers], volumes: &[Volume]) -> Option<Vec<shim::ImageVolume>> {
    let text = |path: &Path| path.to_str().map(str::to_owned);
    images
        .iter()
        .map(|image| {
            let volume = volumes.iter().find(|volume| destination(volume) == image.destination)?;
            Some(shim::ImageVolume {
                destination: text(&image.destination)?,
                lower: image.lower.iter().map(|path| text(path)).collect::<Option<_>>()?,
                sub_path: volume.image_sub_path.clone(),
            })
        })
        .collect()
}

/// A launch that failed at the mount of an image is told so, for kubelet has a word for it.
pub(super) fn blame(volumes: &[Volume], error: &ShimError) -> Option<ContainerError> {
    let ShimError::Refused { failure, .. } = error else { return None };
    if !failure.step.contains("mount") {
        return None;
    }
    let volume = volumes.iter().filter(|volume| volume.image.is_some()).find(|volume| {
        let place = destination(volume).to_string_lossy().into_owned();
        failure.object == place || failure.object.strip_prefix(&place).is_some_and(|rest| rest.starts_with(':'))
    })?;
    Some(ContainerError::ImageVolume {
        image: volume.image.clone().unwrap_or_default(),
        path: volume.container_path.clone(),
        reason: keelson_api::chain(error),
        kind: error.kind(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(step: &str, object: &str) -> Option<ContainerError> {
        let volumes = [
            Volume { container_path: "/image/".into(), image: Some("a:1".into()), ..Default::default() },
            Volume { container_path: "/image2".into(), host_path: "/srv".into(), ..Default::default() },
        ];
        let failure = shim::Failure { step: step.into(), object: object.into(), errno: 2, ..Default::default() };
        blame(&volumes, &ShimError::Refused { act: "launch", id: "c".into(), failure: Box::new(failure) })
    }

    #[test]
    fn only_the_mount_of_an_image_is_blamed_on_the_image() {
        assert!(refused("mount image volume", "/image: sub path x").is_some());
        assert!(refused("open mount target", "/image").is_some());
        assert!(refused("change to working directory", "/image").is_none());
        assert!(refused("open mount target", "/image2").is_none());
        let text = refused("mount", "/image").unwrap().to_string();
        assert!(text.contains("`a:1`") && text.contains("No such file"), "{text}");
    }

    #[test]
    fn the_launcher_gets_paths_as_the_spec_has_them() {
        let volume = Volume {
            container_path: "/image//deep/".into(),
            image: Some("a:1".into()),
            image_sub_path: "etc".into(),
            ..Default::default()
        };
        let layers = [ImageLayers { destination: destination(&volume), lower: vec!["/a".into(), "/b".into()] }];
        let launch = for_launch(&layers, &[volume]).unwrap();
        assert_eq!((launch[0].destination.as_str(), launch[0].sub_path.as_str()), ("/image/deep", "etc"));
        assert_eq!(launch[0].lower, ["/a", "/b"]);
    }
}
