//! Pods that are over: as many as configured stay, those stopped last, and no other pod is touched.

use std::time::Duration;

use keelson_runtime::{
    engine::{Engine, events::EventKind},
    retire::Keep,
    sandbox::{SandboxSpec, spec::NetworkMode},
};

use crate::lab::Lab;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_the_pods_stopped_first_go_and_the_rest_stays() {
    let lab = lab!("pods_that_are_over");
    let mut config = lab.config();
    config.keep = Keep { per_container: 1, pods: 1, after: Duration::ZERO };
    let engine = Engine::open(config).await.unwrap();
    let spec = |name: &str, attempt| -> SandboxSpec {
        let mut spec = lab.sandbox(name);
        spec.namespaces.network = NetworkMode::Host;
        spec.key.attempt = attempt;
        spec
    };
    let mut ids = Vec::new();
    for (name, attempt, stop) in [
        ("goes", 0, true),
        ("goes", 1, true),
        ("last", 0, true),
        ("runs", 0, true),
        ("runs", 1, false),
        ("ready", 0, false),
    ] {
        let id = engine.run_sandbox(spec(name, attempt)).await.unwrap();
        if stop {
            engine.stop_sandbox(&id).await.unwrap();
        }
        ids.push(id);
    }
    let mut listener = engine.listen().unwrap();
    let mut gone = Vec::new();
    while gone.len() < 2 {
        let event = tokio::time::timeout(Duration::from_secs(30), listener.next()).await.unwrap().unwrap();
        if event.kind == EventKind::Deleted {
            gone.push(event.sandbox.id.clone());
        }
    }
    gone.sort();
    let mut want = ids[..2].to_vec();
    want.sort();
    assert_eq!(gone, want);
    let left: Vec<_> = engine.sandboxes().iter().map(|view| view.id.clone()).collect();
    assert_eq!(left, ids[2..]);
    for id in &ids {
        engine.remove_sandbox(id).await.unwrap();
    }
    lab.end(engine).await;
}
