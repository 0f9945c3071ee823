//! A container that another OCI runtime makes: what it cannot be asked for, what its spec needs beside ours, and what it forgets.
//! Runs on the blocking pool of the daemon. Owns nothing: the runtime is the shim's to call, but for what a lost shim left.
//! Must never grant less than was asked for in silence: what only our own launcher does is refused by name.

pub(crate) mod features;

use std::{
    ffi::CString,
    fs::File,
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use keelson_api::shim;
use keelson_sys::{pidfd, spawn};
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
/// What a runtime may say about a container, bytes: less than a pipe holds.
const TOLD_MAX: u64 = 32 * 1024;
/// A command of a runtime that has not ended by then is killed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Refuses what only our own launcher does.
pub(super) fn check(handler: &str, record: &ContainerRecord, volumes: &[Volume]) -> Result<(), ContainerError> {
    let unsupported = |field: &str, what: &str| {
        let reason = format!("{what} is done by the handler `native` alone, not by `{handler}`");
        Err(ContainerError::Unsupported { field: field.to_owned(), reason })
    };
    if volumes.iter().any(|volume| volume.propagation == Propagation::Bidirectional) {
        return unsupported("mounts.propagation", "propagation of mounts to the host");
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
    annotate(spec, sandbox, "container");
    for (name, value) in [("container-name", &record.spec.key.name), ("image-name", &record.spec.image)] {
        put(spec, &["annotations", &format!("io.kubernetes.cri.{name}")], json!(value));
    }
    own_score(spec);
    Ok(())
}

/// The same for the container with which a runtime begins a sandbox: what the sandbox may use as a whole, for those that make a machine
/// of that size.
pub(crate) fn complete_sandbox(spec: &mut Value, sandbox: &SandboxRecord) {
    put(spec, &["ociVersion"], json!(SPEC_VERSION));
    annotate(spec, sandbox, "sandbox");
    if let Some(resources) = &sandbox.spec.resources {
        let sizes = [
            ("cpu-period", resources.cpu_period.map(|period| period.to_string())),
            ("cpu-quota", resources.cpu_quota.map(|quota| quota.to_string())),
            ("cpu-shares", resources.cpu_shares.map(|shares| shares.to_string())),
            ("memory", resources.memory_limit.map(|bytes| bytes.to_string())),
        ];
        for (name, value) in sizes {
            if let Some(value) = value {
                put(spec, &["annotations", &format!("io.kubernetes.cri.sandbox-{name}")], json!(value));
            }
        }
    }
    own_score(spec);
}

/// Which container of which sandbox it is, in the words of both families of runtimes.
fn annotate(spec: &mut Value, sandbox: &SandboxRecord, kind: &str) {
    let (key, id) = (&sandbox.spec.key, sandbox.id.as_str());
    for (name, value) in [
        ("io.kubernetes.cri.container-type", kind),
        ("io.kubernetes.cri.sandbox-id", id),
        ("io.kubernetes.cri.sandbox-name", &key.name),
        ("io.kubernetes.cri.sandbox-namespace", &key.namespace),
        ("io.kubernetes.cri.sandbox-uid", &key.uid),
        ("io.kubernetes.cri-o.ContainerType", kind),
        ("io.kubernetes.cri-o.SandboxID", id),
    ] {
        put(spec, &["annotations", name], json!(value));
    }
}

fn own_score(spec: &mut Value) {
    // Lowering it takes a capability that a daemon may lack; our own launcher gives that up, other runtimes fail.
    let score = spec.pointer("/process/oomScoreAdj").and_then(Value::as_i64);
    if let (Some(score), Some(own)) = (score, own_oom_score()) {
        put(spec, &["process", "oomScoreAdj"], json!(score.max(own)));
    }
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
pub(crate) fn call(shared: &Shared, name: &str, handler: &HandlerConfig) -> std::io::Result<shim::Handler> {
    use std::os::unix::fs::DirBuilderExt as _;

    let root = shared.state.runtime(name);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(shared.state.staging())?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Ok(shim::Handler {
        name: name.to_owned(),
        program: text(&handler.program),
        options: handler.options.clone(),
        root: text(&root),
        place: String::new(),
    })
}

/// Has every runtime forget the container of a shim that was lost. Those that know nothing of it are not called.
pub(crate) fn forget(shared: &Shared, id: &str) -> std::io::Result<()> {
    let Ok(found) = std::fs::read_dir(shared.state.runtimes()) else { return Ok(()) };
    for root in found.flatten().map(|entry| entry.path()) {
        let known = kept(&root, id);
        if known.is_empty() {
            continue;
        }
        let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(handler) = shared.config.handlers.get(&name)
            && let Err(error) = delete(handler, &root, id)
        {
            tracing::warn!(container = id, handler = name, %error, "have a runtime forget a container");
        }
        // Its processes are killed by their cgroup; what else it keeps is here.
        for path in known {
            if path.is_dir() {
                crate::sandbox::release::remove_tree(&path)?;
            } else if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
    }
    Ok(())
}

/// What a runtime keeps of a container: a folder of its name, or files that begin with it (runsc).
fn kept(root: &Path, id: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let of_it = |name: &std::ffi::OsStr| {
        let rest = name.as_bytes().strip_prefix(id.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"_") || rest.starts_with(b"."))
    };
    entries.filter(|entry| of_it(&entry.file_name())).map(|entry| entry.path()).collect()
}

/// Has the spec refer to what the shim makes ready at `place` (`api::shim::Handler::place`): `images` and `volumes` as it is told.
pub(super) fn stage(spec: &mut Value, place: &Path, images: &[shim::ImageVolume], volumes: &[String]) {
    let at = |name: &str| json!(place.join(name).to_string_lossy());
    put(spec, &["root", "path"], at(keelson_shim::launch::STAGED_ROOT));
    let readonly = spec.pointer("/root/readonly").and_then(Value::as_bool) == Some(true);
    let Some(mounts) = spec.get_mut("mounts").and_then(Value::as_array_mut) else { return };
    for (index, mount) in mounts.iter_mut().enumerate() {
        let Some(mount) = mount.as_object_mut() else { continue };
        let of_image = images.iter().any(|image| mount.get("destination") == Some(&json!(image.destination)));
        let mapped = mount.remove("uidMappings").is_some() | mount.remove("gidMappings").is_some();
        if of_image {
            mount.insert("type".into(), json!("bind"));
            if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
                options.retain(|option| option.as_str().is_some_and(|option| !option.starts_with("lowerdir=")));
                options.extend([json!("rbind"), json!("rprivate")]);
            }
        }
        if of_image || mapped {
            mount.insert("source".into(), at(&index.to_string()));
        }
    }
    if !readonly {
        return;
    }
    for (index, folder) in volumes.iter().enumerate() {
        let below = |mount: &Value| {
            let rest =
                mount.get("destination").and_then(Value::as_str).and_then(|path| path.strip_prefix(folder.as_str()));
            rest.is_some_and(|rest| rest.starts_with('/'))
        };
        let before = mounts.iter().position(below).unwrap_or(mounts.len());
        let options = ["rbind", "rprivate", "rw", "nosuid", "nodev"];
        let source = at(&format!("v{index}"));
        mounts.insert(before, json!({ "destination": folder, "type": "bind", "source": source, "options": options }));
    }
}

/// To a change of limits, of a container that has no process of its own.
pub(crate) fn no_limits(handler: &str) -> ContainerError {
    let reason = format!(
        "the handler `{handler}` runs all containers of the sandbox in one process: change the limits of the sandbox's cgroup"
    );
    ContainerError::Unsupported { field: "resources".into(), reason }
}

/// What a container uses whose runtime alone knows it; none when it does not say in time.
pub(crate) fn stats(shared: &Shared, name: &str, id: &keelson_api::ContainerId) -> Option<keelson_shim::cgroup::Stats> {
    let handler = shared.config.handlers.get(name)?;
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).ok()?;
    let arguments = ["events", "--stats", id.as_str()];
    let run = run(handler, &shared.state.runtime(name), &arguments, Some(writer.into()));
    if let Err(error) = run {
        tracing::debug!(container = %id, handler = name, %error, "ask a runtime what a container uses");
        return None;
    }
    // A line, which the pipe holds.
    let mut told = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(File::from(reader), TOLD_MAX), &mut told).ok()?;
    let told: Value = serde_json::from_slice(&told).ok()?;
    let number = |path: &str| told.pointer(path).and_then(Value::as_u64);
    let memory = number("/data/memory/usage/usage")?;
    Some(keelson_shim::cgroup::Stats {
        cpu_usage_ns: number("/data/cpu/usage/total")?,
        memory: keelson_shim::cgroup::MemoryStats {
            usage: memory,
            working_set: memory,
            rss: memory,
            ..Default::default()
        },
        processes: number("/data/pids/current").unwrap_or(0),
        ..Default::default()
    })
}

fn delete(handler: &HandlerConfig, root: &Path, id: &str) -> std::io::Result<()> {
    run(handler, root, &["delete", "--force", id], None)
}

/// Runs a command to its end, which is waited for a bounded time; what it says goes to `output`, or nowhere.
fn run(handler: &HandlerConfig, root: &Path, arguments: &[&str], output: Option<File>) -> std::io::Result<()> {
    let words = ["--root".into(), root.as_os_str().to_owned()].into_iter();
    let words = words.chain(handler.options.iter().map(Into::into));
    let words = words.chain(arguments.iter().map(Into::into));
    let argv: Vec<CString> = std::iter::once(handler.program.as_os_str().to_owned())
        .chain(words)
        .map(|word: std::ffi::OsString| CString::new(word.as_bytes()))
        .collect::<Result<_, _>>()?;
    // Nothing of the host's: some give their streams to another user.
    let nothing = || rustix::fs::memfd_create("runtime", rustix::fs::MemfdFlags::CLOEXEC).map(File::from);
    let (input, silent) = (nothing()?, nothing()?);
    let (file, cwd) = (File::open(&handler.program)?, File::open("/")?);
    let spawned = spawn::spawn(&spawn::Program {
        file: file.as_fd(),
        argv: &argv,
        env: &[c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        cwd: cwd.as_fd(),
        stdio: [input.as_fd(), output.as_ref().unwrap_or(&silent).as_fd(), silent.as_fd()],
    })?;
    drop(output);
    match pidfd::wait_at_most(&spawned.pidfd, PATIENCE)? {
        Some(_) => Ok(()),
        None => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_refers_to_what_is_made_ready() {
        let mut spec = json!({
            "root": { "path": "rootfs", "readonly": true },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/data/in", "type": "bind", "source": "/srv", "uidMappings": [1], "gidMappings": [1] },
                { "destination": "/image", "type": "overlay", "source": "overlay", "options": ["ro", "lowerdir=/a:/b"] },
            ],
        });
        let image = shim::ImageVolume { destination: "/image".into(), ..Default::default() };
        stage(&mut spec, Path::new("/p"), &[image], &["/data".into()]);
        let expected = json!({
            "root": { "path": "/p/root", "readonly": true },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/data", "type": "bind", "source": "/p/v0",
                  "options": ["rbind", "rprivate", "rw", "nosuid", "nodev"] },
                { "destination": "/data/in", "type": "bind", "source": "/p/1" },
                { "destination": "/image", "type": "bind", "source": "/p/2", "options": ["ro", "rbind", "rprivate"] },
            ],
        });
        assert_eq!(spec, expected);
    }

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
