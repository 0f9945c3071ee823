//! A container whose processes come from a checkpoint: what its images may ask for is taken from the request and from the init that
//! waits in the container that was made for it.
//! Blocks: on the blocking pool of the daemon.
//! Owns nothing. Must never be called for a container whose waiting init was not made by us: it is what everything is measured by.

use std::{fs, io, path::Path};

use keelson_api::shim;
use keelson_shim::launch::CAPABILITY_NAMES;

use super::{CheckpointError, images, images::Bounds, mounts, read};
use crate::engine::shared::Shared;

/// Milliseconds in which CRIU must have read everything.
const LONGEST_MS: u64 = 600_000;
const MOUNTS: &str = "mountpoints-";

/// What a spec says of its process, as bounds for others'.
pub(crate) fn bounds(spec: &oci_spec::runtime::Spec, seccomp: &[u8]) -> Bounds {
    let process = spec.process().as_ref();
    let user = process.map(oci_spec::runtime::Process::user);
    let sets = process.and_then(|process| process.capabilities().as_ref());
    let bounding = sets.and_then(|sets| sets.bounding().as_ref()).into_iter().flatten();
    let names: Vec<String> = bounding.map(ToString::to_string).collect();
    let bit = |name: &String| CAPABILITY_NAMES.iter().position(|known| name.trim_start_matches("CAP_") == *known);
    let gid = user.map_or(0, oci_spec::runtime::User::gid);
    let further = user.and_then(|user| user.additional_gids().clone()).unwrap_or_default();
    let labelled =
        process.is_some_and(|process| process.apparmor_profile().is_some() || process.selinux_label().is_some());
    let kinds = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let own_network =
        kinds.into_iter().flatten().any(|namespace| namespace.typ() == oci_spec::runtime::LinuxNamespaceType::Network);
    Bounds {
        capabilities: names.iter().filter_map(bit).fold(0, |bits, bit| bits | 1 << bit),
        uid: user.map_or(0, oci_spec::runtime::User::uid),
        gids: std::iter::once(gid).chain(further).collect(),
        no_new_privileges: process.and_then(oci_spec::runtime::Process::no_new_privileges).unwrap_or(false),
        seccomp: (!seccomp.is_empty()).then(|| seccomp.to_vec()),
        labelled,
        host_network: !own_network,
        ..Bounds::default()
    }
}

/// Checks the images of an unpacked checkpoint against the container that waits for them, and puts those that may be used where
/// CRIU will look.
///
/// # Errors
/// The first thing that the container may not have.
pub(crate) fn prepare(shared: &Shared, folder: &str, init: i32, mut bounds: Bounds) -> Result<(), CheckpointError> {
    let folder = shared.checkpoint(folder);
    let proc = |name: &str| {
        let path = format!("/proc/{init}/{name}");
        fs::read_to_string(&path).map_err(CheckpointError::io("read", path.as_ref()))
    };
    bounds.rlimits = rlimits(&proc("limits")?);
    bounds.oom_score_adj = proc("oom_score_adj")?.trim().parse().unwrap_or(0);
    keep_streams(&folder)?;
    bounds.stdio = read::streams(&folder)?;
    bounds.stdio.retain(|name| !name.is_empty());
    let from = folder.archive().join(super::metadata::IMAGES);
    let archived = images::take(&from, &folder.images(), &bounds)?;
    let ours = mounts::of_process(init)?;
    let image = mounts::rewrite(&archived, &ours)?;
    // Its number is that of the namespace in the other images, which have been read.
    let name = number(&from)?;
    crate::store::write_new(&folder.images().join(&name), &image, 0o600)
        .map_err(CheckpointError::io("write image", Path::new(&name)))?;
    // Nothing else of the archive is needed any more.
    fs::remove_dir_all(folder.archive()).map_err(CheckpointError::io("remove", &folder.archive()))
}

/// The one image of mounts that was left by [`images::take`].
fn number(from: &Path) -> Result<String, CheckpointError> {
    let names = fs::read_dir(from).map_err(CheckpointError::io("list", from))?;
    let mut names = names.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let absent = || CheckpointError::io("find image of mounts in", from)(io::ErrorKind::NotFound.into());
    names.find(|name| name.starts_with(MOUNTS)).ok_or_else(absent)
}

/// What the shim is asked.
///
/// # Errors
/// The init that waits has ended.
pub(crate) fn call(shared: &Shared, folder: &str, init: i32, spec: &[u8]) -> Result<shim::Restore, CheckpointError> {
    let folder = shared.checkpoint(folder);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let stdio = fs::read(folder.path().join(STREAMS)).map_err(CheckpointError::io("read", folder.path()))?;
    Ok(shim::Restore {
        criu: text(&shared.config.criu),
        images: text(&folder.images()),
        work: text(folder.path()),
        timeout_ms: LONGEST_MS,
        mounts: mounts::external(&mounts::of_process(init)?),
        stdio: serde_json::from_slice(&stdio).unwrap_or_default(),
        lsm_profile: label(spec),
    })
}

/// The checked names of streams, in the checkpoint's folder.
const STREAMS: &str = "streams.json";

/// Keeps what of the archive's texts the start will need.
///
/// # Errors
/// Those of the file system.
fn keep_streams(folder: &read::Folder) -> Result<(), CheckpointError> {
    let names = serde_json::to_vec(&read::streams(folder)?).unwrap_or_default();
    crate::store::write_new(&folder.path().join(STREAMS), &names, 0o600)
        .map_err(CheckpointError::io("write", folder.path()))
}

/// The label of the request, in CRIU's words.
fn label(spec: &[u8]) -> String {
    let spec: serde_json::Value = serde_json::from_slice(spec).unwrap_or_default();
    let part = |name: &str| spec.pointer(&format!("/process/{name}")).and_then(|value| value.as_str());
    match (part("apparmorProfile"), part("selinuxLabel")) {
        (Some(profile), _) if !profile.is_empty() => format!("apparmor:{profile}"),
        (_, Some(label)) if !label.is_empty() => format!("selinux:{label}"),
        _ => String::new(),
    }
}

/// Hard limits by their numbers, from the kernel's table.
fn rlimits(text: &str) -> Vec<Option<u64>> {
    const NAMES: [&str; 16] = [
        "Max cpu time",
        "Max file size",
        "Max data size",
        "Max stack size",
        "Max core file size",
        "Max resident set",
        "Max processes",
        "Max open files",
        "Max locked memory",
        "Max address space",
        "Max file locks",
        "Max pending signals",
        "Max msgqueue size",
        "Max nice priority",
        "Max realtime priority",
        "Max realtime timeout",
    ];
    let hard = |name: &&str| {
        let line = text.lines().find_map(|line| line.strip_prefix(*name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    NAMES.iter().map(hard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_by_their_numbers() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max cpu time              unlimited            unlimited            seconds\n\
                    Max open files            1024                 4096                 files\n";
        let limits = rlimits(text);
        assert_eq!((limits.len(), limits[0], limits[7]), (16, None, Some(4096)));
        let own = rlimits(&std::fs::read_to_string("/proc/self/limits").unwrap());
        assert_eq!(own[7], rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum);
    }

    #[test]
    fn the_request_s_label_is_told() {
        assert_eq!(label(br#"{"process":{"apparmorProfile":"web"}}"#), "apparmor:web");
        assert_eq!(label(br#"{"process":{"selinuxLabel":"a:b:c:d"}}"#), "selinux:a:b:c:d");
        assert_eq!(label(b"{}"), "");
    }
}
