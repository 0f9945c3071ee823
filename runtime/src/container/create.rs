//! Making a container: writable layer, OCI spec, filter, shim, and an init that waits.
//! Kernel and file work runs in one stretch on the blocking pool; the launch is awaited. A vanished caller changes nothing.
//! Owns nothing: the intent is recorded before the first effect, and every effect is found again by the container's id.
//! Must never leave anything of a container that failed: `release` undoes all that a name can find.

use std::{
    future::Future,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use keelson_api::shim;
use keelson_imageservice::{Image, Snapshot, SnapshotKey};

use super::{
    ContainerError,
    aftermath::Aftermath,
    foreign, images, rdt, release,
    spec::{Stdin, Volume},
    view::User,
};
use crate::{
    checkpoint::{images::Bounds, read, restore},
    dirs::{ContainerDir, SandboxDir},
    engine::shared::{Shared, blocking},
    observe::Stage,
    oci::{self, volumes},
    sandbox::{files, handler, interfaces, spec::NetworkMode},
    selinux::Refusal,
    shim_client::{ShimClient, spawn},
    store::{
        record::{ContainerRecord, SandboxRecord},
        write_new,
    },
    users::{self, UserError, rootfs::RootView},
};

/// Reads replies until the shim is gone.
pub(crate) type Watch = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Everything a container is made from.
pub(crate) struct Order {
    pub(crate) record: ContainerRecord,
    pub(crate) sandbox: SandboxRecord,
    pub(crate) image: Arc<Image>,
    /// Init of the container whose PID namespace is joined.
    pub(crate) target_pid: Option<i32>,
}

/// A container whose init waits.
pub(crate) struct Made {
    pub(crate) pid: i32,
    pub(crate) shim: Arc<ShimClient>,
    pub(crate) watch: Watch,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) user: User,
}

/// What the stretch on the blocking pool gives.
struct Prepared {
    /// Folder of its checkpoint, and what its images may ask for.
    checkpoint: Option<(String, Bounds)>,
    stream: std::os::unix::net::UnixStream,
    pidfd: OwnedFd,
    launch: shim::Launch,
    volumes: Vec<Volume>,
    user: User,
}

/// Makes it, or undoes what was made.
pub(crate) async fn create(shared: Arc<Shared>, order: Order) -> Result<Made, ContainerError> {
    let record = order.record.clone();
    let made = attempt(&shared, order).await;
    if made.is_err() {
        let id = record.id.clone();
        let undone = blocking(move || release::everything(&shared, &record)).await;
        if let Err(error) = undone {
            // The record is still there: the next start of the daemon tries again.
            tracing::warn!(container = %id, %error, "undo failed container");
        }
    }
    made
}

async fn attempt(shared: &Arc<Shared>, order: Order) -> Result<Made, ContainerError> {
    let id = order.record.id.clone();
    let prepared = {
        let shared = Arc::clone(shared);
        blocking(move || prepare(&shared, &order)).await?
    };
    let stream = tokio::net::UnixStream::from_std(prepared.stream).map_err(failed(&id, "talk to shim"))?;
    let (client, read) = ShimClient::attach(id.as_str(), stream);
    let (close, closed) = tokio::sync::oneshot::channel();
    shared.spawn_reaper(spawn::reap(id.to_string(), prepared.pidfd, closed));
    let mut watch: Watch = Box::pin(async move {
        read.await;
        // The reaper may have seen its end already.
        let _ = close.send(());
    });
    // The watch must be polled for the answer to come.
    let launched = tokio::select! {
        launched = Stage::Launch.wait(&id, client.launch(prepared.launch)) => launched
            .map_err(|error| images::blame(&prepared.volumes, &error).unwrap_or_else(|| failed(&id, "launch")(error))),
        () = &mut watch => Err(failed(&id, "launch")(std::io::Error::other("its shim ended: see shim.log in the container's run directory"))),
    };
    let launched = match (launched, prepared.checkpoint) {
        (Ok(state), Some((folder, bounds))) => {
            let (shared, init) = (Arc::clone(shared), state.pid);
            let checked = blocking(move || restore::prepare(&shared, &folder, init, bounds)).await;
            let refused = |source| ContainerError::Checkpoint { act: "restore", id: Some(id.clone()), source };
            checked.map(|()| state).map_err(refused)
        }
        (launched, _) => launched,
    };
    match launched {
        Ok(state) => Ok(Made { pid: state.pid, shim: client, watch, volumes: prepared.volumes, user: prepared.user }),
        Err(error) => {
            tokio::select! {
                // Whatever it says, what is left is found by the container's id.
                result = client.delete() => drop(result),
                () = watch => {}
            }
            Err(error)
        }
    }
}

/// Wraps the error of a step.
fn failed<E: std::error::Error + Send + Sync + 'static>(
    id: &keelson_api::ContainerId,
    stage: &'static str,
) -> impl FnOnce(E) -> ContainerError + use<E> {
    let id = id.clone();
    move |error| ContainerError::Failed { act: "create", id, stage, source: Arc::new(error) }
}

fn prepare(shared: &Shared, order: &Order) -> Result<Prepared, ContainerError> {
    let Order { record, sandbox, image, target_pid } = order;
    let spec = &record.spec;
    let id = &record.id;
    let dir = shared.state.container(id);
    Stage::ContainerReserve.run(id, || {
        dir.make().map_err(failed(id, "make run directory"))?;
        // The intent: from here on the container's effects can be found and undone.
        shared.store.put_container(record).map_err(failed(id, "record intent"))
    })?;
    let snapshot = Stage::Snapshot.run(id, || shared.images.prepare(&SnapshotKey::from(id), &image.id));
    let snapshot = snapshot.map_err(failed(id, "prepare writable layer"))?;
    if let Some(folder) = &spec.checkpoint {
        let limits = &shared.config.images.limits;
        read::changes(&shared.checkpoint(folder), &snapshot.upper, limits)
            .map_err(|source| ContainerError::Checkpoint { act: "restore", id: Some(id.clone()), source })?;
    }
    let stage = Stage::Spec.begin(id);
    let root = RootView::open(&snapshot.lower).map_err(failed(id, "open image layers"))?;
    let mut identity = users::resolve(&spec.security, &image.config.user, &root).map_err(|error| refused(&error))?;
    let cdi = oci::cdi::resolve(&spec.cdi_devices, &shared.config.cdi_dirs)?;
    for gid in cdi.groups().iter().filter(|gid| !identity.user.additional_gids.contains(gid)).collect::<Vec<_>>() {
        identity.user.additional_gids.push(*gid);
    }
    let (images, held) = images::hold(shared, record)?;
    let resolved = volumes::resolve(&held)?;
    let sandbox_dir = shared.state.sandbox(&sandbox.id);
    let hostname = files::hostname(&sandbox.spec);
    let labels = shared.selinux.labels(sandbox, &spec.security).map_err(Refusal::of_container)?;
    let built = oci::build(&oci::Inputs {
        spec,
        sandbox: &sandbox.spec,
        sandbox_dir: &sandbox_dir,
        image: &image.config,
        identity: &identity,
        volumes: &resolved,
        cdi: &cdi,
        images: &images,
        cgroups_path: &record.cgroups_path,
        hostname: &hostname,
        target_pid: *target_pid,
        rlimits: &shared.config.rlimits,
        pids_limit: shared.config.pids_limit,
        profile: shared.apparmor.of(&spec.security)?,
        labels: labels.as_ref(),
        host: &shared.host,
    })?;
    if let Some(labels) = &labels {
        oci::relabel::relabel(&resolved, &labels.file)?;
    }
    let image_volumes = images::for_launch(&images, &resolved)
        .ok_or_else(|| failed(id, "mount image volumes")(std::io::Error::other("a path is not UTF-8")))?;
    let parts = Parts { spec: &built.spec, volumes: &resolved, images: &image_volumes, folders: &built.image_volumes };
    let Confined { program, spec: json, bundle, handler } = confined(shared, order, &parts)?;
    if built.spec.hooks().is_some() {
        // A hook of the container's own namespace finds the root filesystem where the spec says.
        std::fs::create_dir(dir.empty_root()).map_err(failed(id, "make folder of the root filesystem"))?;
    }
    drop(stage);
    write_new(&dir.config(), bundle.as_ref().unwrap_or(&json), 0o600).map_err(failed(id, "write spec"))?;
    if let Some(parent) = record.log_path.parent().filter(|_| !record.log_path.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(failed(id, "make log directory"))?;
    }
    let resctrl = extras(order, &cdi, &built.spec, (&sandbox_dir, &dir))?;
    let spawned =
        Stage::ShimSpawn.run(id, || shared.shims.spawn(id.as_str(), &dir)).map_err(failed(id, "start shim"))?;
    if let (Some(root), Some(rdt)) = (resctrl, &cdi.rdt) {
        // The shim, so that the init and every exec are born in the group.
        rdt::join(&root, rdt, id.as_str(), spawned.pid).map_err(failed(id, "give it its share of the cache"))?;
    }
    let checkpoint = spec.checkpoint.clone().map(|folder| (folder, restore::bounds(&built.spec, &program)));
    let launch = shim::Launch {
        spec: json,
        overlay: Some(
            overlay(&snapshot)
                .ok_or_else(|| failed(id, "prepare writable layer")(std::io::Error::other("its path is not UTF-8")))?,
        ),
        stdio: Some(stdio(shared, record)),
        seccomp: program,
        systemd_cgroup: shared.host.systemd,
        builtin_init: false,
        clamp_oom_score: true,
        env: built.env,
        volumes: built.image_volumes,
        image_volumes,
        resolved_sources: resolved
            .iter()
            .filter(|volume| volume.image.is_none())
            .map(|volume| volume.host_path.to_string_lossy().into_owned())
            .collect(),
        handler,
    };
    Ok(Prepared {
        checkpoint,
        stream: spawned.stream,
        pidfd: spawned.pidfd,
        launch,
        volumes: resolved,
        user: identity.user,
    })
}

/// What devices ask for beyond the spec: interfaces are lent, and what is to be undone with the container is written down before it
/// is done. Returns where resctrl is, when it is needed.
fn extras(
    order: &Order,
    cdi: &oci::cdi::Edits,
    spec: &oci_spec::runtime::Spec,
    (sandbox_dir, dir): (&SandboxDir, &ContainerDir),
) -> Result<Option<PathBuf>, ContainerError> {
    let (id, sandbox) = (&order.record.id, &order.sandbox.spec);
    let native = handler::is_native(&sandbox.handler);
    let unsupported = |reason: String| ContainerError::Unsupported { field: "cdi_devices".into(), reason };
    if !native && (!cdi.interfaces.is_empty() || cdi.rdt.is_some()) {
        let reason =
            format!("netDevices and intelRdt are done by the handler `native` alone, not by `{}`", sandbox.handler);
        return Err(unsupported(reason));
    }
    if !cdi.interfaces.is_empty() && sandbox.namespaces.network == NetworkMode::Host {
        return Err(unsupported("netDevices: the pod has the host's network, where they are".into()));
    }
    let resctrl = match &cdi.rdt {
        None => None,
        Some(_) => {
            let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(failed(id, "look for resctrl"))?;
            Some(rdt::root(&table).ok_or_else(|| unsupported(format!("intelRdt: {}", rdt::RdtError::NotMounted)))?)
        }
    };
    // Another runtime runs its hooks itself.
    let poststop = spec.hooks().as_ref().filter(|_| native).and_then(|hooks| hooks.poststop().as_ref());
    let folders = |rdt| resctrl.as_ref().map(|root| rdt::folders(root, rdt, id.as_str()));
    let aftermath = Aftermath {
        poststop: poststop.map(|hooks| hooks.iter().map(own_hook).collect()).unwrap_or_default(),
        resctrl: cdi.rdt.as_ref().and_then(folders).unwrap_or_default(),
    };
    aftermath.record(dir).map_err(failed(id, "write down what is to be done at its end"))?;
    interfaces::lend(sandbox_dir, &cdi.interfaces).map_err(failed(id, "lend interfaces of the host"))?;
    Ok(resctrl)
}

/// In the launcher's words.
fn own_hook(hook: &oci_spec::runtime::Hook) -> keelson_shim::spec::Hook {
    keelson_shim::spec::Hook {
        path: hook.path().to_string_lossy().into_owned(),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout: hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()),
    }
}

/// A spec in the words of whoever makes the container.
struct Confined {
    /// Of the filter.
    program: Vec<u8>,
    /// Its text, for the shim.
    spec: Vec<u8>,
    /// Its text in the bundle, where that is another.
    bundle: Option<Vec<u8>>,
    /// Who makes it, when it is not our own launcher.
    handler: Option<shim::Handler>,
}

/// What a spec and its shim are told of.
struct Parts<'a> {
    spec: &'a oci_spec::runtime::Spec,
    volumes: &'a [Volume],
    images: &'a [shim::ImageVolume],
    folders: &'a [String],
}

/// Puts a spec into the words of whoever makes the container.
fn confined(shared: &Shared, order: &Order, parts: &Parts<'_>) -> Result<Confined, ContainerError> {
    let spec = parts.spec;
    let (record, sandbox) = (&order.record, &order.sandbox);
    let (id, security, name) = (&record.id, &record.spec.security, sandbox.spec.handler.as_str());
    let capabilities = capabilities(spec);
    if handler::is_native(name) {
        let program = shared.programs.of(security, &capabilities)?;
        let text = serde_json::to_vec(spec).map_err(failed(id, "encode spec"))?;
        let program = program.map(|program| program.as_bytes().to_vec()).unwrap_or_default();
        return Ok(Confined { program, spec: text, bundle: None, handler: None });
    }
    let Some(config) = handler::find(&shared.config.handlers, name) else {
        let reason = format!("the sandbox's runtime handler `{name}` is not in the daemon's configuration any more");
        return Err(ContainerError::Unsupported { field: "runtime_handler".into(), reason });
    };
    foreign::check(name, record, parts.volumes)?;
    let mut text = serde_json::to_value(spec).map_err(failed(id, "encode spec"))?;
    let profile = crate::seccomp::profile(security, &capabilities)?;
    foreign::complete(&mut text, record, sandbox, profile.as_ref()).map_err(failed(id, "encode spec"))?;
    let encode = |text: &serde_json::Value| serde_json::to_vec(text).map_err(failed(id, "encode spec"));
    let spec = encode(&text)?;
    let place = shared.state.staging();
    foreign::stage(&mut text, &place, parts.images, parts.folders);
    let mut call = foreign::call(shared, name, config).map_err(failed(id, "make the runtime's folder"))?;
    call.place = place.to_string_lossy().into_owned();
    Ok(Confined { program: Vec::new(), spec, bundle: Some(encode(&text)?), handler: Some(call) })
}

/// A user that cannot be resolved is the request's or the image's fault.
fn refused(error: &UserError) -> ContainerError {
    match error {
        UserError::File { file, reason } => ContainerError::ImageFile { path: file.clone(), reason: reason.clone() },
        UserError::Text { .. }
        | UserError::Range { .. }
        | UserError::GroupWithoutUser
        | UserError::Unknown { .. }
        | UserError::TooMany { .. } => ContainerError::Invalid { field: "user".into(), reason: error.to_string() },
    }
}

fn overlay(snapshot: &Snapshot) -> Option<shim::Overlay> {
    let text = |path: &Path| path.to_str().map(str::to_owned);
    Some(shim::Overlay {
        lower: snapshot.lower.iter().map(|path| text(path)).collect::<Option<_>>()?,
        upper: text(&snapshot.upper)?,
        work: text(&snapshot.work)?,
    })
}

fn stdio(shared: &Shared, record: &ContainerRecord) -> shim::Stdio {
    shim::Stdio {
        // Checked to be UTF-8 with the request.
        log_path: record.log_path.to_string_lossy().into_owned(),
        stdin: record.spec.stdin != Stdin::Closed,
        stdin_once: record.spec.stdin == Stdin::OpenOnce,
        terminal: record.spec.terminal,
        max_line: shared.config.log_line_max,
    }
}

/// What the default filter depends on.
fn capabilities(spec: &oci_spec::runtime::Spec) -> keelson_shim::spec::Capabilities {
    let sets = spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
    let names = |set: Option<&Option<oci_spec::runtime::Capabilities>>| {
        let mut names: Vec<String> = set.into_iter().flatten().flatten().map(|name| format!("CAP_{name}")).collect();
        names.sort();
        names
    };
    keelson_shim::spec::Capabilities {
        bounding: names(sets.map(|sets| sets.bounding())),
        effective: names(sets.map(|sets| sets.effective())),
        inheritable: names(sets.map(|sets| sets.inheritable())),
        permitted: names(sets.map(|sets| sets.permitted())),
        ambient: names(sets.map(|sets| sets.ambient())),
    }
}
