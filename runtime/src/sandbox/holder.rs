//! The holder of a sandbox's shared PID namespace: one shim with keelson's own reaping init, nothing of an image. Under a handler that
//! puts the whole sandbox into one of its own, the holder is the container with which that begins.
//! Runs in the sandbox's task and on the blocking pool. Its run directory is `holder/` in the sandbox's.
//! Owns the holder's client until the sandbox's task takes it. Must never outlive its sandbox.

use std::{future::Future, pin::Pin, sync::Arc};

use keelson_api::shim;
use keelson_sys::namespace::{NamespaceKinds, pin_of};

use super::{
    create::{Failure, failed},
    files, handler, parent,
    spec::{PidMode, SandboxSpec},
};
use crate::{
    container::{foreign, release},
    dirs::{RootDir, SandboxDir},
    engine::shared::{Shared, blocking},
    oci::{cgroup_path, holder},
    shim_client::{ShimClient, spawn},
    store::{record::SandboxRecord, write_new},
};

/// Reads replies until the shim is gone.
pub(crate) type Watch = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A running holder.
pub(crate) struct Holder {
    pub(crate) shim: Arc<ShimClient>,
    pub(crate) pid: i32,
    pub(crate) watch: Watch,
}

/// Whether this sandbox has one.
pub(crate) fn is_wanted(shared: &Shared, spec: &SandboxSpec) -> bool {
    spec.namespaces.pid == PidMode::Sandbox || handler::sandboxed(&shared.config.handlers, spec).is_some()
}

/// Starts it and pins its PID namespace, where that is shared.
pub(crate) async fn start(shared: &Arc<Shared>, record: &SandboxRecord) -> Result<Holder, Failure> {
    let dir = shared.state.sandbox(&record.id);
    let run = dir.holder();
    let id = record.id.as_str().to_owned();
    let (spawned, spec, maker) = {
        let (shared, id, record, dir) = (Arc::clone(shared), id.clone(), record.clone(), dir.clone());
        blocking(move || {
            run.make().map_err(failed("make run directory of holder"))?;
            // The holder may be root of a user namespace alone, which can make nothing here.
            std::fs::create_dir_all(run.empty_root().join("proc")).map_err(failed("make root of holder"))?;
            let (spec, maker) = describe(&shared, &record, &dir)?;
            write_new(&run.config(), &spec, 0o600).map_err(failed("write spec of holder"))?;
            let spawned = shared.shims.spawn(&id, &run).map_err(failed("start shim of holder"))?;
            Ok::<_, Failure>((spawned, spec, maker))
        })
        .await?
    };
    let stream = tokio::net::UnixStream::from_std(spawned.stream).map_err(failed("talk to shim of holder"))?;
    let (client, read) = ShimClient::attach(&id, stream);
    let (close, closed) = tokio::sync::oneshot::channel();
    shared.spawn_reaper(spawn::reap(id, spawned.pidfd, closed));
    // Must be polled for the answers to come.
    let mut watch: Watch = Box::pin(async move {
        read.await;
        // The reaper may have seen its end already.
        let _ = close.send(());
    });
    let launch = shim::Launch {
        spec,
        stdio: Some(shim::Stdio::default()),
        systemd_cgroup: shared.host.systemd,
        builtin_init: maker.is_none(),
        clamp_oom_score: true,
        handler: maker,
        ..Default::default()
    };
    let shares_pids = record.spec.namespaces.pid == PidMode::Sandbox;
    let begin = async {
        let state = client.launch(launch).await.map_err(failed("launch holder"))?;
        if shares_pids {
            pin_of(state.pid, NamespaceKinds::PID, &dir.pid()).map_err(failed("pin PID namespace"))?;
        }
        client.start().await.map_err(failed("start holder"))?;
        Ok::<_, Failure>(state.pid)
    };
    let begun = tokio::select! {
        begun = begin => begun,
        () = &mut watch => Err(Failure { stage: "start holder", source: Arc::new(std::io::Error::other("its shim ended: see shim.log")) }),
    };
    match begun {
        Ok(pid) => Ok(Holder { shim: client, pid, watch }),
        Err(failure) => {
            tokio::select! {
                // What is left of it is in the sandbox's directory and cgroup.
                result = client.delete() => drop(result),
                () = watch => {}
            }
            Err(failure)
        }
    }
}

/// The spec's text, and who makes a container of it when it is not our own launcher.
fn describe(
    shared: &Shared,
    record: &SandboxRecord,
    dir: &SandboxDir,
) -> Result<(Vec<u8>, Option<shim::Handler>), Failure> {
    let (root, path) = (dir.holder().empty_root(), cgroups_path(shared, record));
    let name = record.spec.handler.as_str();
    let Some(config) = handler::sandboxed(&shared.config.handlers, &record.spec) else {
        let users = record.spec.user_namespace.as_ref().map(|users| (users, dir.user()));
        let spec = serde_json::to_vec(&holder::build(&root, &path, users)).map_err(failed("encode spec of holder"))?;
        return Ok((spec, None));
    };
    let program = RootDir::new(shared.config.root.clone()).pause();
    shared.shims.copy_to(&program).map_err(failed("copy the program that holds a sandbox"))?;
    std::fs::File::create(root.join(holder::PAUSE)).map_err(failed("make root of holder"))?;
    let hostname = files::hostname(&record.spec);
    let spec = holder::pause(&holder::Pause {
        root: &root,
        program: &program,
        cgroups_path: &path,
        hostname: &hostname,
        sandbox: &record.spec,
        dir,
    });
    let mut spec = serde_json::to_value(&spec).map_err(failed("encode spec of holder"))?;
    foreign::complete_sandbox(&mut spec, record);
    let spec = serde_json::to_vec(&spec).map_err(failed("encode spec of holder"))?;
    let call = foreign::call(shared, name, config).map_err(failed("make the runtime's folder"))?;
    Ok((spec, Some(call)))
}

fn cgroups_path(shared: &Shared, record: &SandboxRecord) -> String {
    let id = record.id.as_str();
    cgroup_path::of(shared.host.systemd, &record.spec.cgroup_parent, parent::short(id), id)
}

/// Ends it.
pub(crate) async fn stop(holder: &ShimClient) {
    if let Err(error) = holder.delete().await {
        tracing::warn!(%error, "end holder of a sandbox");
    }
}

/// Takes away what a holder left whose shim was lost. Blocks.
pub(crate) fn leftovers(shared: &Shared, record: &SandboxRecord) -> Result<(), Lost> {
    if !shared.state.sandbox(&record.id).holder().path().exists() {
        return Ok(());
    }
    foreign::forget(shared, record.id.as_str())
        .map_err(|source| Lost("have its runtime forget it", Box::new(source)))?;
    release::cgroup(shared, &cgroups_path(shared, record)).map_err(|source| Lost("remove its cgroup", Box::new(source)))
}

/// See [`leftovers`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Lost(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>);
