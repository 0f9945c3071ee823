//! A CDI spec as its file has it, and whether it keeps to the version it names.
//! Pure. Owns the list of versions and what each brought.
//! Must never accept a field that it does not know, nor one that is younger than the spec's own version.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::name::{check_device, check_kind};

/// Released versions, oldest first.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
const PATH_MAX: usize = 4095;
const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) cdi_version: String,
    pub(super) kind: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) devices: Vec<Device>,
    /// For every container that has any of the devices.
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct ContainerEdits {
    /// `NAME=value`.
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) net_devices: Vec<NetDevice>,
    pub(super) mounts: Vec<Mount>,
    pub(super) hooks: Vec<Hook>,
    pub(super) intel_rdt: Option<IntelRdt>,
    #[serde(rename = "additionalGids")]
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct DeviceNode {
    /// In the container.
    pub(super) path: String,
    /// On the host; empty: the same.
    pub(super) host_path: String,
    /// `b`, `c`, `u`, `p`; empty: as on the host.
    pub(super) r#type: String,
    pub(super) major: i64,
    pub(super) minor: i64,
    pub(super) file_mode: Option<u32>,
    /// Of `r`, `w`, `m`; empty: all.
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// An interface of the host for the pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct NetDevice {
    pub(crate) host_interface_name: String,
    /// In the pod; empty: the same.
    #[serde(default)]
    pub(crate) name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default)]
    pub(super) options: Vec<String>,
    /// Empty: a bind.
    #[serde(default)]
    pub(super) r#type: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    /// Seconds.
    pub(super) timeout: Option<i64>,
}

/// A share of cache and memory bandwidth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct IntelRdt {
    /// Folder of resctrl; empty: one of the container's own.
    #[serde(rename = "closID")]
    pub(crate) clos_id: String,
    #[serde(rename = "l3CacheSchema")]
    pub(crate) l3_cache_schema: String,
    pub(crate) mem_bw_schema: String,
    pub(crate) schemata: Option<Vec<String>>,
    pub(crate) enable_monitoring: bool,
    #[serde(rename = "enableCMT")]
    pub(crate) enable_cmt: bool,
    #[serde(rename = "enableMBM")]
    pub(crate) enable_mbm: bool,
}

impl IntelRdt {
    /// Lines for the folder's `schemata`; none: it is to be there as it is wanted.
    pub(crate) fn lines(&self) -> Vec<&str> {
        let old = [&self.l3_cache_schema, &self.mem_bw_schema].into_iter();
        let all = old.chain(self.schemata.iter().flatten());
        all.flat_map(|text| text.lines()).map(str::trim).filter(|line| !line.is_empty()).collect()
    }

    /// Whether what it uses is to be counted apart.
    pub(crate) fn monitors(&self) -> bool {
        self.enable_monitoring || self.enable_cmt || self.enable_mbm
    }

    fn check(&self) -> Result<(), String> {
        let name = &self.clos_id;
        let own = ["info", "mon_groups", "mon_data"].contains(&name.as_str());
        if name.contains(['/', '\0', '\n']) || name.starts_with('.') || name.len() > 255 || own {
            return Err(format!("intelRdt.closID `{}` is no name of a resctrl group", cut(name)));
        }
        if self.lines().iter().any(|line| !line.contains(':') || line.chars().any(char::is_control)) {
            return Err("intelRdt: a line of a schema is not `RESOURCE:..`".to_owned());
        }
        Ok(())
    }
}

impl Spec {
    /// Why the spec is not one; all of it must be right before any of it is used.
    pub(super) fn check(&self) -> Result<(), String> {
        let rank = |version: &str| VERSIONS.iter().position(|known| *known == version);
        let Some(own) = rank(&self.cdi_version) else {
            return Err(format!(
                "cdiVersion `{}` is not one up to 1.1.0",
                self.cdi_version.chars().take(40).collect::<String>().escape_debug()
            ));
        };
        check_kind(&self.kind)?;
        for (what, since) in self.features() {
            if rank(since).is_none_or(|since| own < since) {
                return Err(format!("{what} needs cdiVersion {since}, the spec has {}", self.cdi_version));
            }
        }
        if self.devices.is_empty() {
            return Err("it describes no device".to_owned());
        }
        self.container_edits.check()?;
        for (index, device) in self.devices.iter().enumerate() {
            check_device(&device.name)?;
            if self.devices.iter().take(index).any(|other| other.name == device.name) {
                return Err(format!("device `{}` is there twice", device.name));
            }
            device.container_edits.check().map_err(|why| format!("device `{}`: {why}", device.name))?;
        }
        Ok(())
    }

    /// What it uses that did not always exist, and since when that does.
    fn features(&self) -> Vec<(&'static str, &'static str)> {
        let edits = || std::iter::once(&self.container_edits).chain(self.devices.iter().map(|it| &it.container_edits));
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let names = || self.devices.iter().map(|device| device.name.as_str());
        let annotated =
            !self.annotations.is_empty() || self.devices.iter().any(|device| !device.annotations.is_empty());
        let newest = |rdt: &IntelRdt| rdt.schemata.is_some() || rdt.enable_monitoring;
        [
            ("a mount's type", "0.4.0", edits().any(|it| it.mounts.iter().any(|mount| !mount.r#type.is_empty()))),
            (
                "a node's hostPath",
                "0.5.0",
                edits().any(|it| it.device_nodes.iter().any(|node| !node.host_path.is_empty())),
            ),
            (
                "a device's name with a digit first",
                "0.5.0",
                names().any(|name| name.starts_with(|c: char| c.is_ascii_digit())),
            ),
            ("annotations", "0.6.0", annotated),
            ("a class with a dot", "0.6.0", class.contains('.')),
            ("intelRdt", "0.7.0", edits().any(|it| it.intel_rdt.is_some())),
            ("additionalGids", "0.7.0", edits().any(|it| !it.additional_gids.is_empty())),
            ("netDevices", "1.1.0", edits().any(|it| !it.net_devices.is_empty())),
            ("intelRdt.schemata", "1.1.0", edits().any(|it| it.intel_rdt.as_ref().is_some_and(newest))),
        ]
        .into_iter()
        .filter_map(|(what, since, used)| used.then_some((what, since)))
        .collect()
    }
}

impl ContainerEdits {
    fn check(&self) -> Result<(), String> {
        for entry in &self.env {
            if !variable(entry) {
                return Err(format!("env `{}` is not NAME=value", cut(entry)));
            }
        }
        for node in &self.device_nodes {
            absolute("deviceNodes.path", &node.path)?;
            if !node.host_path.is_empty() {
                absolute("deviceNodes.hostPath", &node.host_path)?;
            }
            if !matches!(node.r#type.as_str(), "" | "b" | "c" | "u" | "p") {
                return Err(format!("device node {}: type `{}` is not b, c, u or p", node.path, cut(&node.r#type)));
            }
            if node.permissions.chars().any(|c| !"rwm".contains(c)) {
                return Err(format!("device node {}: permissions are letters of `rwm`", node.path));
            }
        }
        for device in &self.net_devices {
            interface("netDevices.hostInterfaceName", &device.host_interface_name)?;
            if !device.name.is_empty() {
                interface("netDevices.name", &device.name)?;
            }
        }
        if let Some(rdt) = &self.intel_rdt {
            rdt.check()?;
        }
        for mount in &self.mounts {
            absolute("mounts.hostPath", &mount.host_path)?;
            absolute("mounts.containerPath", &mount.container_path)?;
            if mount.container_path.split('/').all(|part| part.is_empty() || part == ".") {
                return Err("a mount over `/`".to_owned());
            }
            if mount.options.iter().any(|option| option.contains('\0')) {
                return Err(format!("mount {}: an option has a NUL", mount.container_path));
            }
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(format!("hook `{}` is none of {}", cut(&hook.hook_name), HOOKS.join(", ")));
            }
            absolute("hooks.path", &hook.path)?;
            if hook.args.iter().any(|word| word.contains('\0')) || !hook.env.iter().all(|entry| variable(entry)) {
                return Err(format!("hook {}: bad args or env", hook.path));
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return Err(format!("hook {}: a timeout is more than 0 seconds", hook.path));
            }
        }
        Ok(())
    }
}

/// What the kernel takes for a name and does not read as a pattern.
fn interface(what: &str, name: &str) -> Result<(), String> {
    let bad = name.is_empty()
        || name.len() > 15
        || matches!(name, "." | ".." | "lo")
        || name.chars().any(|c| c.is_whitespace() || c.is_control() || "/:%".contains(c));
    if bad { Err(format!("{what} `{}` is no name of an interface", cut(name))) } else { Ok(()) }
}

fn variable(entry: &str) -> bool {
    entry.split_once('=').is_some_and(|(name, _)| !name.is_empty()) && !entry.contains('\0')
}

fn absolute(what: &str, path: &str) -> Result<(), String> {
    let bad = !path.starts_with('/')
        || path.len() > PATH_MAX
        || path.contains('\0')
        || path.split('/').any(|part| part == "..");
    if bad { Err(format!("{what} `{}` is not an absolute path without `..`", cut(path))) } else { Ok(()) }
}

fn cut(text: &str) -> String {
    text.chars().take(120).collect::<String>().escape_debug().to_string()
}
