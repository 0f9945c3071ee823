//! A container as the engine sees it, made into CRI's shapes of it; and whether a filter means it.
//! Pure over an immutable view, in any task of the daemon. Owns nothing.
//! Must never ask the engine or the kernel: lists are answered from memory.

use std::{collections::HashMap, path::Path, sync::Arc};

use keelson_cri::v1;

use super::{
    bound, resource,
    sandbox_view::{labels_match, map},
    signal,
    status::{Failure, invalid},
};
use crate::container::{
    ContainerState, ContainerView,
    spec::{Access, ContainerSpec, IdMapping, Propagation, Volume},
    view::ExitReason,
};

pub(super) fn item(view: &ContainerView) -> v1::Container {
    v1::Container {
        id: view.id.to_string(),
        pod_sandbox_id: view.sandbox.to_string(),
        metadata: Some(metadata(&view.spec)),
        image: Some(image(&view.spec)),
        image_ref: view.image_ref.clone(),
        state: i32::from(state(&view.state)),
        created_at: view.created_at,
        labels: map(&view.spec.labels),
        annotations: map(&view.spec.annotations),
        image_id: view.image_id.clone(),
    }
}

/// Statuses of one sandbox's containers, newest first: kubelet, where it takes its view of a pod from them (`EventedPLEG`), goes by the
/// first one that has a container's name. `oldest_first` are the views.
pub(super) fn statuses(
    oldest_first: &[Arc<ContainerView>],
    image_id: impl Fn(&str) -> Option<String>,
) -> Vec<v1::ContainerStatus> {
    let mut statuses: Vec<_> = oldest_first.iter().map(|view| status(view, &image_id)).collect();
    bound::shrink_statuses(&mut statuses);
    statuses.reverse();
    statuses
}

/// `image_id` finds the id of an image mounted as a volume.
pub(super) fn status(view: &ContainerView, image_id: impl Fn(&str) -> Option<String>) -> v1::ContainerStatus {
    let mut status = v1::ContainerStatus {
        id: view.id.to_string(),
        metadata: Some(metadata(&view.spec)),
        state: i32::from(state(&view.state)),
        created_at: view.created_at,
        image: Some(image(&view.spec)),
        image_ref: view.image_ref.clone(),
        labels: map(&view.spec.labels),
        annotations: map(&view.spec.annotations),
        mounts: view.volumes.iter().map(|volume| mount(volume, &image_id)).collect(),
        log_path: text(&view.log_path),
        resources: Some(v1::ContainerResources { linux: Some(resource::encode(&view.resources)), windows: None }),
        image_id: view.image_id.clone(),
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: i64::from(view.user.uid),
                gid: i64::from(view.user.gid),
                supplemental_groups: view.user.additional_gids.iter().copied().map(i64::from).collect(),
            }),
        }),
        stop_signal: i32::from(signal::name(view.stop_signal)),
        ..v1::ContainerStatus::default()
    };
    match &view.state {
        ContainerState::Created | ContainerState::Unknown => {}
        ContainerState::Running { started_at } => status.started_at = *started_at,
        ContainerState::Exited(exit) => {
            status.started_at = exit.started_at;
            status.finished_at = exit.finished_at;
            status.exit_code = exit.code;
            reason(exit.reason).clone_into(&mut status.reason);
            status.message.clone_from(&exit.message);
        }
    }
    status
}

/// The words that kubelet, its tests and people look for.
fn reason(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::Completed => "Completed",
        ExitReason::Error => "Error",
        ExitReason::OomKilled => "OOMKilled",
        ExitReason::StartError => "StartError",
        ExitReason::Unknown => "Unknown",
    }
}

fn state(state: &ContainerState) -> v1::ContainerState {
    match state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerState::Exited(_) => v1::ContainerState::ContainerExited,
        ContainerState::Unknown => v1::ContainerState::ContainerUnknown,
    }
}

pub(super) fn metadata(spec: &ContainerSpec) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: spec.key.name.clone(), attempt: spec.key.attempt }
}

/// The image as a person wrote it, where the caller told; kubelet asks with an id.
fn image(spec: &ContainerSpec) -> v1::ImageSpec {
    let written = if spec.image_as_written.is_empty() { &spec.image } else { &spec.image_as_written };
    v1::ImageSpec {
        image: written.clone(),
        user_specified_image: spec.image_as_written.clone(),
        ..v1::ImageSpec::default()
    }
}

fn mount(volume: &Volume, image_id: impl Fn(&str) -> Option<String>) -> v1::Mount {
    v1::Mount {
        container_path: text(&volume.container_path),
        host_path: text(&volume.host_path),
        readonly: volume.access != Access::ReadWrite,
        recursive_read_only: volume.access == Access::RecursiveReadOnly,
        selinux_relabel: volume.relabel,
        propagation: i32::from(match volume.propagation {
            Propagation::Private => v1::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
        }),
        uid_mappings: id_mappings(&volume.uid_mappings),
        gid_mappings: id_mappings(&volume.gid_mappings),
        image: volume.image.as_ref().map(|image| v1::ImageSpec {
            image: image.clone(),
            // As it was mounted: the name may lead to another image by now.
            image_ref: Some(volume.image_id.clone())
                .filter(|id| !id.is_empty())
                .or_else(|| image_id(image))
                .unwrap_or_default(),
            ..v1::ImageSpec::default()
        }),
        image_sub_path: volume.image_sub_path.clone(),
        mount_options: volume.options.iter().map(|option| option.name().to_owned()).collect(),
    }
}

fn id_mappings(ranges: &[IdMapping]) -> Vec<v1::IdMapping> {
    ranges
        .iter()
        .map(|range| v1::IdMapping { host_id: range.host_id, container_id: range.container_id, length: range.length })
        .collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A checked filter over containers: the beginning of an id or of its sandbox's, a state, labels.
pub(super) struct Filter {
    id: String,
    sandbox: String,
    state: Option<v1::ContainerState>,
    labels: HashMap<String, String>,
}

impl Filter {
    pub(super) fn decode(filter: Option<v1::ContainerFilter>) -> Result<Self, Failure> {
        let filter = filter.unwrap_or_default();
        let state = filter.state.map(|value| v1::ContainerState::try_from(value.state)).transpose();
        let state = state.map_err(|_| invalid("filter.state", "is not a container state of CRI v1"))?;
        Ok(Self { id: filter.id, sandbox: filter.pod_sandbox_id, state, labels: filter.label_selector })
    }

    pub(super) fn of_stats(filter: Option<v1::ContainerStatsFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Self { id: filter.id, sandbox: filter.pod_sandbox_id, state: None, labels: filter.label_selector }
    }

    pub(super) fn matches(&self, view: &ContainerView) -> bool {
        view.id.as_str().starts_with(&self.id)
            && view.sandbox.as_str().starts_with(&self.sandbox)
            && self.state.is_none_or(|wanted| wanted == state(&view.state))
            && labels_match(&self.labels, &view.spec.labels)
    }
}

#[cfg(test)]
pub(in crate::cri) mod tests;
