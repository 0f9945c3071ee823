//! A sandbox as the engine sees it, made into CRI's three shapes of it; and whether a filter means it.
//! Pure over an immutable view, in any task of the daemon. Owns nothing.
//! Must never ask the engine or the kernel: lists are answered from memory.

use std::collections::{BTreeMap, HashMap};

use keelson_cri::v1;

use super::{
    sandbox_spec,
    status::{Failure, invalid},
};
use crate::sandbox::{SandboxPhase, SandboxView};

pub(super) fn item(view: &SandboxView) -> v1::PodSandbox {
    v1::PodSandbox {
        id: view.id.to_string(),
        metadata: Some(sandbox_spec::encode_key(&view.spec.key)),
        state: i32::from(state(view.phase)),
        created_at: view.created_at,
        labels: map(&view.spec.labels),
        annotations: map(&view.spec.annotations),
        runtime_handler: view.spec.handler.clone(),
    }
}

pub(super) fn status(view: &SandboxView) -> v1::PodSandboxStatus {
    let mut addresses = view.addresses.iter().map(ToString::to_string);
    v1::PodSandboxStatus {
        id: view.id.to_string(),
        metadata: Some(sandbox_spec::encode_key(&view.spec.key)),
        state: i32::from(state(view.phase)),
        created_at: view.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: Some(sandbox_spec::encode_namespaces(&view.spec)) }),
        }),
        labels: map(&view.spec.labels),
        annotations: map(&view.spec.annotations),
        runtime_handler: view.spec.handler.clone(),
    }
}

fn state(phase: SandboxPhase) -> v1::PodSandboxState {
    match phase {
        SandboxPhase::Ready => v1::PodSandboxState::SandboxReady,
        SandboxPhase::NotReady => v1::PodSandboxState::SandboxNotready,
    }
}

/// A map as protobuf has it.
pub(super) fn map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Whether every selected label is there with its value.
pub(super) fn labels_match(selector: &HashMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A checked filter over sandboxes: the beginning of an id, a state, labels; what is not said matches all.
pub(super) struct Filter {
    id: String,
    state: Option<v1::PodSandboxState>,
    labels: HashMap<String, String>,
}

impl Filter {
    pub(super) fn decode(filter: Option<v1::PodSandboxFilter>) -> Result<Self, Failure> {
        let filter = filter.unwrap_or_default();
        let state = filter.state.map(|value| v1::PodSandboxState::try_from(value.state)).transpose();
        let state = state.map_err(|_| invalid("filter.state", "is not a sandbox state of CRI v1"))?;
        Ok(Self { id: filter.id, state, labels: filter.label_selector })
    }

    pub(super) fn matches(&self, view: &SandboxView) -> bool {
        view.id.as_str().starts_with(&self.id)
            && self.state.is_none_or(|wanted| wanted == state(view.phase))
            && labels_match(&self.labels, &view.spec.labels)
    }
}

#[cfg(test)]
pub(in crate::cri) mod tests;
