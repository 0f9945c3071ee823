//! CDI devices: names such as `vendor.com/gpu=0`, looked up in the specs that vendors put on the node, and what those specs ask
//! to be changed of a container. Container Device Interface specification 1.1.0, and all released before it.
//! Reads the specs' folders on the blocking pool, when a container asks for such a device and only then.
//! Owns nothing. Must never take a device from anything but the request, nor pass over an edit that it does not know.

mod apply;
mod folder;
mod name;
mod spec;

use std::path::{Path, PathBuf};

pub(crate) use self::spec::IntelRdt;
use self::{
    folder::Found,
    name::DeviceName,
    spec::{ContainerEdits, Hook, Mount},
};
use crate::container::ContainerError;

/// The field of a request that is to blame.
const FIELD: &str = "cdi_devices";
/// Changes to one container: as many as some hundred devices make.
const EDITS_MAX: usize = 16_384;

/// A device node that is known to be one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    path: String,
    /// The node of the host that it stands for.
    host: PathBuf,
    /// `b`, `c`, `u` or `p`.
    kind: char,
    major: i64,
    minor: i64,
    mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// All that the devices of one container change.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    env: Vec<String>,
    nodes: Vec<Node>,
    mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    gids: Vec<u32>,
    /// Interfaces of the host and what they are called in the pod.
    pub(crate) interfaces: Vec<(String, String)>,
    /// A share of cache and memory bandwidth.
    pub(crate) rdt: Option<IntelRdt>,
}

/// Refuses what is no name of a device.
pub(crate) fn check(text: &str) -> Result<(), ContainerError> {
    DeviceName::parse(text).map(drop).map_err(refused)
}

/// Looks the devices up: each once, in the order asked for.
///
/// # Errors
/// A name that no spec describes, or an edit that cannot be made.
pub(crate) fn resolve(names: &[String], folders: &[PathBuf]) -> Result<Edits, ContainerError> {
    let mut edits = Edits::default();
    if names.is_empty() {
        return Ok(edits);
    }
    let found = folder::read(folders);
    let mut done: Vec<DeviceName> = Vec::new();
    let mut common: Vec<&Path> = Vec::new();
    for text in names {
        let name = DeviceName::parse(text).map_err(refused)?;
        if done.contains(&name) {
            continue;
        }
        let (spec, device) = found.device(&name).map_err(|why| refused(words(&name, why, &found, folders)))?;
        // What all devices of a spec share comes first, and once.
        if !common.contains(&spec.path.as_path()) {
            common.push(&spec.path);
            edits.add(&spec.spec.container_edits, &name)?;
        }
        edits.add(&device.container_edits, &name)?;
        done.push(name);
    }
    Ok(edits)
}

fn refused(reason: String) -> ContainerError {
    ContainerError::Invalid { field: FIELD.to_owned(), reason }
}

/// Why a name leads nowhere, and where was looked.
fn words(name: &DeviceName, why: folder::Missing, found: &Found, folders: &[PathBuf]) -> String {
    let folders = folders.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let mut text = match why {
        folder::Missing::Conflict(one, other) => {
            return format!(
                "`{name}` is described twice, in {} and in {}: remove one of the two",
                one.display(),
                other.display()
            );
        }
        folder::Missing::Device(known) => format!(
            "`{name}`: no spec in {folders} has this device; of {} there are: {}",
            name.kind,
            known.into_iter().take(16).collect::<Vec<_>>().join(", ")
        ),
        folder::Missing::Kind => {
            format!(
                "`{name}`: no spec in {folders} describes {}: is the vendor's driver or plugin installed?",
                name.kind
            )
        }
    };
    for problem in found.problems.iter().take(4) {
        text.push_str(&format!("; passed over {problem}"));
    }
    text
}

impl Edits {
    fn add(&mut self, edits: &ContainerEdits, name: &DeviceName) -> Result<(), ContainerError> {
        for device in &edits.net_devices {
            let pod = if device.name.is_empty() { &device.host_interface_name } else { &device.name };
            let new = (device.host_interface_name.clone(), pod.clone());
            if self.interfaces.contains(&new) {
                continue;
            }
            if self.interfaces.iter().any(|(host, pod)| *host == new.0 || *pod == new.1) {
                let reason = format!("`{name}`: interface `{}` as `{}` conflicts with another device's", new.0, new.1);
                return Err(refused(reason));
            }
            self.interfaces.push(new);
        }
        if let Some(rdt) = &edits.intel_rdt {
            if self.rdt.as_ref().is_some_and(|other| other != rdt) {
                return Err(refused(format!("`{name}`: intelRdt differs from that of another device")));
            }
            self.rdt = Some(rdt.clone());
        }
        for node in &edits.device_nodes {
            self.nodes
                .push(apply::node(node).map_err(|why| refused(format!("`{name}`: device {}: {why}", node.path)))?);
        }
        self.env.extend_from_slice(&edits.env);
        self.mounts.extend_from_slice(&edits.mounts);
        self.hooks.extend_from_slice(&edits.hooks);
        self.gids.extend(edits.additional_gids.iter().filter(|gid| **gid != 0));
        let count = self.env.len()
            + self.nodes.len()
            + self.mounts.len()
            + self.hooks.len()
            + self.gids.len()
            + self.interfaces.len();
        if count > EDITS_MAX {
            return Err(refused(format!("`{name}`: more than {EDITS_MAX} changes to one container")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
