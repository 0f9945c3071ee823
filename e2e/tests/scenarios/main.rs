//! End-to-end scenarios: a real daemon, real images, the k8s-cri client and the stock crictl. As root, one at a time.

mod bad_input;
mod checkpoint;
mod confinement;
mod containers;
mod contract;
mod crictl;
mod devices;
mod events;
mod handlers;
mod host_ports;
mod identity;
mod images;
mod kubelet;
mod leaks;
mod lists;
mod logs;
mod lsm;
mod memory;
mod mounts;
mod observe;
mod pods;
mod production;
mod resources;
mod restart;
mod sandboxed;
mod security;
mod stats;
mod streaming;
mod surface;
mod userns;

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use keelson_e2e::{
    audit::Audit,
    node::{Cri, Node, patience},
};

/// The audit compares what the whole machine holds, so scenarios take turns.
static TURN: Mutex<()> = Mutex::new(());

/// What takes longer than any scenario does: it hangs.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs one scenario on a fresh node and then demands that nothing of it is left: no mount, process, link, cgroup, file.
/// The scenario itself removes its pods, as kubelet would.
fn scenario(run: impl AsyncFnOnce(&mut Node, Cri) -> Result<()>) {
    scenario_with("", run);
}

/// The same with more configuration.
fn scenario_with(config: &str, run: impl AsyncFnOnce(&mut Node, Cri) -> Result<()>) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Audit::take();
    let mut node = Node::start_with(config).expect("start node");
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("tokio");
    tokio.block_on(async {
        let cri = node.cri().expect("clients");
        let run = tokio::time::timeout(patience(LIMIT), run(&mut node, cri.clone()));
        run.await.expect("over in time").expect("scenario");
        let mut cri = node.cri().expect("clients");
        remove_all(&mut cri).await.expect("remove what the scenario made");
    });
    drop(tokio);
    node.stop().expect("stop the daemon");
    let left: Vec<_> = ["sandboxes", "containers"]
        .iter()
        .flat_map(|dir| std::fs::read_dir(node.state_dir().join(dir)).into_iter().flatten().flatten())
        .map(|e| e.path())
        .collect();
    assert!(left.is_empty(), "state left after every pod was removed: {left:?}");
    before.assert_clean().expect("clean machine");
}

async fn remove_all(cri: &mut Cri) -> Result<()> {
    let pods = cri.runtime.list_pod_sandbox(k8s_cri::v1::ListPodSandboxRequest::default()).await?.into_inner().items;
    for pod in pods {
        cri.stop_pod(&pod.id).await?;
        cri.remove_pod(&pod.id).await?;
    }
    Ok(())
}
