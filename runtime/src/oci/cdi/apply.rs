//! Edits of CDI devices as parts of an OCI runtime spec.
//! Reads the numbers of host devices where a spec leaves them out; pure otherwise.
//! Owns nothing. Must never open a device, nor believe a spec's type of a node that the host has as another.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Hook, Hooks, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount};

use super::{Edits, Node, spec::DeviceNode};
use crate::oci::mounts;

/// The time of a hook that names none, seconds.
const HOOK_SECONDS: i64 = 60;

/// An environment entry, as name and value.
type Variable<'a> = (&'a str, &'a str);

/// With type and numbers, from the spec or from the host.
pub(super) fn node(node: &DeviceNode) -> Result<Node, String> {
    let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    let made = |kind: char, (major, minor): (i64, i64)| Node {
        path: node.path.clone(),
        host: PathBuf::from(host),
        kind,
        major,
        minor,
        mode: node.file_mode,
        permissions: if node.permissions.is_empty() { "rwm".to_owned() } else { node.permissions.clone() },
        uid: node.uid,
        gid: node.gid,
    };
    let asked = node.r#type.chars().next();
    if let Some(kind) = asked.filter(|kind| *kind == 'p' || node.major != 0) {
        return Ok(made(kind, (node.major, node.minor)));
    }
    let found = fs::metadata(host).map_err(|error| format!("`{host}` cannot be read on the host: {error}"))?;
    let kind = if found.file_type().is_char_device() {
        'c'
    } else if found.file_type().is_block_device() {
        'b'
    } else if found.file_type().is_fifo() {
        'p'
    } else {
        return Err(format!("`{host}` is not a device on the host"));
    };
    let same = asked.is_none_or(|asked| asked == kind || (asked == 'u' && kind == 'c'));
    if !same {
        return Err(format!("`{host}` is of type {kind} on the host, the spec says {}", node.r#type));
    }
    let numbers = (i64::from(rustix::fs::major(found.rdev())), i64::from(rustix::fs::minor(found.rdev())));
    Ok(made(kind, if kind == 'p' { (0, 0) } else { numbers }))
}

fn kind(kind: char) -> LinuxDeviceType {
    match kind {
        'b' => LinuxDeviceType::B,
        'p' => LinuxDeviceType::P,
        _ => LinuxDeviceType::C,
    }
}

impl Edits {
    /// In the order of the specs: a later one of the same name counts.
    pub(crate) fn environment(&self) -> impl Iterator<Item = Variable<'_>> {
        self.env.iter().filter_map(|entry| entry.split_once('='))
    }

    /// Nodes to make; those without an owner are the process's, as every runtime has it.
    pub(crate) fn nodes(&self, uid: u32, gid: u32) -> Vec<LinuxDevice> {
        let made = |node: &Node| {
            let mut device = LinuxDevice::default();
            device
                .set_path(PathBuf::from(&node.path))
                .set_typ(kind(node.kind))
                .set_major(node.major)
                .set_minor(node.minor)
                .set_file_mode(node.mode)
                .set_uid(Some(node.uid.unwrap_or(uid)))
                .set_gid(Some(node.gid.unwrap_or(gid)));
            device
        };
        self.nodes.iter().map(made).collect()
    }

    /// Nodes that are found elsewhere on the host, as `(host, container)` paths.
    pub(crate) fn elsewhere(&self) -> Vec<(PathBuf, PathBuf)> {
        let moved = self.nodes.iter().map(|node| (node.host.clone(), PathBuf::from(&node.path)));
        moved.filter(|(host, path)| host != path).collect()
    }

    /// Rules that let the container use them.
    pub(crate) fn rules(&self) -> Vec<LinuxDeviceCgroup> {
        let rule = |node: &Node| {
            let mut rule = LinuxDeviceCgroup::default();
            rule.set_allow(true)
                .set_typ(Some(kind(node.kind)))
                .set_major(Some(node.major))
                .set_minor(Some(node.minor))
                .set_access(Some(node.permissions.clone()));
            rule
        };
        self.nodes.iter().filter(|node| node.kind != 'p').map(rule).collect()
    }

    /// Mounts; a bind where the spec gives no type.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let made = |mount: &super::Mount| {
            let target: PathBuf = Path::new(&mount.container_path).components().collect();
            let kind = if matches!(mount.r#type.as_str(), "" | "none") { "bind" } else { mount.r#type.as_str() };
            let mut options: Vec<&str> = mount.options.iter().map(String::as_str).collect();
            if kind == "bind" && !options.iter().any(|option| matches!(*option, "bind" | "rbind")) {
                options.insert(0, "bind");
            }
            mounts::mount(&target.to_string_lossy(), kind, Path::new(&mount.host_path), &options)
        };
        self.mounts.iter().map(made).collect()
    }

    /// Hooks by their points; none: no hook at all.
    pub(crate) fn hooks(&self) -> Option<Hooks> {
        let of = |point: &str| {
            let hooks = self.hooks.iter().filter(|hook| hook.hook_name == point);
            let hooks: Vec<Hook> = hooks.map(hook).collect();
            (!hooks.is_empty()).then_some(hooks)
        };
        if self.hooks.is_empty() {
            return None;
        }
        let mut hooks = Hooks::default();
        hooks.set_prestart(of("prestart"));
        hooks
            .set_create_runtime(of("createRuntime"))
            .set_create_container(of("createContainer"))
            .set_start_container(of("startContainer"))
            .set_poststart(of("poststart"))
            .set_poststop(of("poststop"));
        Some(hooks)
    }

    /// Supplementary groups.
    pub(crate) fn groups(&self) -> &[u32] {
        &self.gids
    }
}

fn hook(hook: &super::Hook) -> Hook {
    let mut made = Hook::default();
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    made.set_path(PathBuf::from(&hook.path))
        .set_args(some(&hook.args))
        .set_env(some(&hook.env))
        // Whoever waits for a hook waits for a container.
        .set_timeout(hook.timeout.or(Some(HOOK_SECONDS)));
    made
}
