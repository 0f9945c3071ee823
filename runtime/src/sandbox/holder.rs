//! The holder of a sandbox's shared PID namespace: one shim with keelson's own reaping init, nothing of an image.
//! Runs in the sandbox's task and on the blocking pool. Its run directory is `holder/` in the sandbox's.
//! Owns the holder's client until the sandbox's task takes it. Must never outlive its sandbox.

use std::{future::Future, pin::Pin, sync::Arc};

use keelson_api::shim;
use keelson_sys::namespace::{NamespaceKinds, pin_of};

use super::{
    create::{Failure, failed},
    parent,
};
use crate::{
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

/// Starts it and pins its PID namespace.
pub(crate) async fn start(shared: &Arc<Shared>, record: &SandboxRecord) -> Result<Holder, Failure> {
    let dir = shared.state.sandbox(&record.id);
    let run = dir.holder();
    let id = record.id.as_str().to_owned();
    let path = cgroup_path::of(shared.host.systemd, &record.spec.cgroup_parent, parent::short(record.id.as_str()), &id);
    let (spawned, spec) = {
        let (shared, run, id) = (Arc::clone(shared), run.clone(), id.clone());
        let (users, user_pin) = (record.spec.user_namespace.clone(), dir.user());
        blocking(move || {
            run.make().map_err(failed("make run directory of holder"))?;
            // The holder may be root of a user namespace alone, which can make nothing here.
            std::fs::create_dir_all(run.empty_root().join("proc")).map_err(failed("make root of holder"))?;
            let users = users.as_ref().map(|users| (users, user_pin));
            let spec = serde_json::to_vec(&holder::build(&run.empty_root(), &path, users))
                .map_err(failed("encode spec of holder"))?;
            write_new(&run.config(), &spec, 0o600).map_err(failed("write spec of holder"))?;
            let spawned = shared.shims.spawn(&id, &run).map_err(failed("start shim of holder"))?;
            Ok::<_, Failure>((spawned, spec))
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
        builtin_init: true,
        clamp_oom_score: true,
        ..Default::default()
    };
    let begin = async {
        let state = client.launch(launch).await.map_err(failed("launch holder"))?;
        pin_of(state.pid, NamespaceKinds::PID, &dir.pid()).map_err(failed("pin PID namespace"))?;
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

/// Ends it.
pub(crate) async fn stop(holder: &ShimClient) {
    if let Err(error) = holder.delete().await {
        tracing::warn!(%error, "end holder of shared PID namespace");
    }
}
