//! A container that another OCI runtime makes: what it cannot be asked for, what its spec needs beside ours, and what it forgets.
//! Runs on the blocking pool of the daemon. Owns nothing: the runtime is the shim's to call, but for what a lost shim left.
//! Must never grant less than was asked for in silence: what only our own launcher does is refused by name.

use std::{
    ffi::CString,
    fs::File,
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::Path,
    time::{Duration, Instant},
};

use keelson_api::{ContainerId, shim};
use keelson_sys::{pidfd, spawn};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use super::{
    ContainerError,
    spec::{CgroupMount, Propagation, Volume},
};
use crate::{
    engine::{HandlerConfig, shared::Shared},
    store::record::{ContainerRecord, SandboxRecord},
};

/// What the oldest runtimes in use still read, and newer ones take.
const SPEC_VERSION: &str = "1.0.2";
/// A runtime that has not forgotten a container by then is killed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Refuses what only our own launcher does.
pub(super) fn check(handler: &str, record: &ContainerRecord, volumes: &[Volume]) -> Result<(), ContainerError> {
    let unsupported = |field: &str, what: &str| {
        let reason = format!("{what} is done by the handler `native` alone, not by `{handler}`");
        Err(ContainerError::Unsupported { field: field.to_owned(), reason })
    };
    if volumes.iter().any(|volume| !volume.image_sub_path.is_empty()) {
        return unsupported("mounts.image_sub_path", "a part of an image as a volume");
    }
    if volumes.iter().any(|volume| volume.propagation == Propagation::Bidirectional) {
        return unsupported("mounts.propagation", "propagation of mounts to the host");
    }
    if volumes.iter().any(|volume| !(volume.uid_mappings.is_empty() && volume.gid_mappings.is_empty())) {
        return unsupported("mounts.uid_mappings", "a volume with mapped ids");
    }
    if record.spec.checkpoint.is_some() {
        return unsupported("image", "restoring from a checkpoint");
    }
    if record.spec.security.cgroup == CgroupMount::Writable {
        return unsupported("cgroup_mount_mode", "a cgroup of its own to write to");
    }
    if record.spec.env.iter().any(|variable| std::str::from_utf8(&variable.value).is_err()) {
        return unsupported("envs", "an environment that is not UTF-8");
    }
    Ok(())
}

/// Completes the spec, which our own launcher gets in parts: the filter's profile, and who the container is.
pub(super) fn complete(
    spec: &mut Value,
    record: &ContainerRecord,
    sandbox: &SandboxRecord,
    seccomp: Option<&keelson_shim::spec::Seccomp>,
) -> serde_json::Result<()> {
    put(spec, &["ociVersion"], json!(SPEC_VERSION));
    if let Some(seccomp) = seccomp {
        put(spec, &["linux", "seccomp"], serde_json::to_value(seccomp)?);
    }
    let key = &sandbox.spec.key;
    for (name, value) in [
        ("container-type", "container"),
        ("container-name", &record.spec.key.name),
        ("image-name", &record.spec.image),
        ("sandbox-id", sandbox.id.as_str()),
        ("sandbox-name", &key.name),
        ("sandbox-namespace", &key.namespace),
        ("sandbox-uid", &key.uid),
    ] {
        put(spec, &["annotations", &format!("io.kubernetes.cri.{name}")], json!(value));
    }
    // Lowering it takes a capability that a daemon may lack; our own launcher gives that up, other runtimes fail.
    let score = spec.pointer("/process/oomScoreAdj").and_then(Value::as_i64);
    if let (Some(score), Some(own)) = (score, own_oom_score()) {
        put(spec, &["process", "oomScoreAdj"], json!(score.max(own)));
    }
    Ok(())
}

/// Ours, when what we start could not be given a lower one.
fn own_oom_score() -> Option<i64> {
    let may_lower = rustix::thread::capabilities(None)
        .is_ok_and(|own| own.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE));
    let own = || std::fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok();
    if may_lower { None } else { own() }
}

fn put(spec: &mut Value, path: &[&str], value: Value) {
    let mut at = spec;
    for key in path {
        if !at.is_object() {
            *at = json!({});
        }
        let Value::Object(object) = at else { return };
        at = object.entry(*key).or_insert(Value::Null);
    }
    *at = value;
}

/// What the shim is to call.
pub(super) fn call(shared: &Shared, name: &str, handler: &HandlerConfig) -> std::io::Result<shim::Handler> {
    use std::os::unix::fs::DirBuilderExt as _;

    let root = shared.state.runtime(name);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Ok(shim::Handler {
        name: name.to_owned(),
        program: text(&handler.program),
        options: handler.options.clone(),
        root: text(&root),
    })
}

/// Has every runtime forget the container of a shim that was lost. Those that know nothing of it are not called.
pub(super) fn forget(shared: &Shared, id: &ContainerId) -> std::io::Result<()> {
    let Ok(found) = std::fs::read_dir(shared.state.runtimes()) else { return Ok(()) };
    for root in found.flatten().map(|entry| entry.path()).filter(|root| root.join(id.as_str()).exists()) {
        let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(handler) = shared.config.handlers.get(&name)
            && let Err(error) = delete(handler, &root, id)
        {
            tracing::warn!(container = %id, handler = name, %error, "have a runtime forget a container");
        }
        // Its processes are killed by their cgroup; what else it keeps is in this folder.
        crate::sandbox::release::remove_tree(&root.join(id.as_str()))?;
    }
    Ok(())
}

fn delete(handler: &HandlerConfig, root: &Path, id: &ContainerId) -> std::io::Result<()> {
    let words = ["--root".into(), root.as_os_str().to_owned()].into_iter();
    let words = words.chain(handler.options.iter().map(Into::into));
    let words = words.chain(["delete", "--force", id.as_str()].map(Into::into));
    let argv: Vec<CString> = std::iter::once(handler.program.as_os_str().to_owned())
        .chain(words)
        .map(|word: std::ffi::OsString| CString::new(word.as_bytes()))
        .collect::<Result<_, _>>()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let (file, cwd) = (File::open(&handler.program)?, File::open("/")?);
    let spawned = spawn::spawn(&spawn::Program {
        file: file.as_fd(),
        argv: &argv,
        env: &[c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        cwd: cwd.as_fd(),
        stdio: [null.as_fd(); 3],
    })?;
    let end = Instant::now() + PATIENCE;
    while pidfd::try_wait(&spawned.pidfd)?.is_none() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let _ = pidfd::send_signal(&spawned.pidfd, 9);
            pidfd::wait(&spawned.pidfd)?;
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        let left =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let _ = rustix::event::poll(&mut [PollFd::new(&spawned.pidfd, PollFlags::IN)], Some(&left));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_completed_where_parts_are_missing() {
        let mut spec = json!({ "ociVersion": "1.2.0", "linux": { "cgroupsPath": "/x" } });
        put(&mut spec, &["ociVersion"], json!("1.0.2"));
        put(&mut spec, &["annotations", "a.b/c"], json!("d"));
        put(&mut spec, &["linux", "seccomp"], json!({ "defaultAction": "SCMP_ACT_ALLOW" }));
        let expected = json!({
            "ociVersion": "1.0.2",
            "annotations": { "a.b/c": "d" },
            "linux": { "cgroupsPath": "/x", "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" } },
        });
        assert_eq!(spec, expected);
    }
}
