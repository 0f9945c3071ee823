//! What is shown of a sandbox, and which ones a filter means.

use std::sync::Arc;

use keelson_api::SandboxId;

use super::*;
use crate::sandbox::spec::{IpcMode, Namespaces, NetworkMode, PidMode, SandboxKey, SandboxSpec};

pub(in crate::cri) fn view() -> SandboxView {
    SandboxView {
        id: SandboxId::from_random([0xa5; 32]),
        spec: Arc::new(SandboxSpec {
            key: SandboxKey {
                namespace: "ns".into(),
                name: "web".into(),
                uid: "u".into(),
                attempt: 2,
                ..SandboxKey::default()
            },
            labels: [("app".to_owned(), "web".to_owned())].into(),
            annotations: [("note".to_owned(), "x".repeat(1000))].into(),
            namespaces: Namespaces { network: NetworkMode::Sandbox, pid: PidMode::Sandbox, ipc: IpcMode::Host },
            handler: "native".into(),
            ..SandboxSpec::default()
        }),
        phase: SandboxPhase::Ready,
        created_at: 1_700_000_000_123_456_789,
        stopped_at: None,
        addresses: vec!["10.85.0.2".parse().unwrap(), "fd85::2".parse().unwrap()],
        netns: None,
        holder_pid: None,
        run_dir: "/run/k/sandboxes/x".into(),
    }
}

#[test]
fn a_status_holds_everything_kubelet_looks_for() {
    let status = status(&view());
    assert_eq!(status.id, "a5".repeat(32));
    assert_eq!(status.metadata.unwrap().attempt, 2);
    assert_eq!((status.state, status.created_at), (0, 1_700_000_000_123_456_789));
    let network = status.network.unwrap();
    assert_eq!((network.ip.as_str(), network.additional_ips.len()), ("10.85.0.2", 1));
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!((options.network, options.pid, options.ipc), (0, 0, 2));
    assert_eq!((status.labels["app"].as_str(), status.annotations["note"].len()), ("web", 1000));
    assert_eq!(status.runtime_handler, "native");
}

#[test]
fn a_sandbox_without_addresses_has_an_empty_network_and_not_none() {
    let status = status(&SandboxView { addresses: vec![], phase: SandboxPhase::NotReady, ..view() });
    assert_eq!((status.state, status.network), (1, Some(v1::PodSandboxNetworkStatus::default())));
}

#[test]
fn a_filter_means_what_it_says() {
    let label = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    let state = |state| Some(v1::PodSandboxStateValue { state });
    for (filter, want) in [
        (v1::PodSandboxFilter::default(), true),
        (v1::PodSandboxFilter { id: "a5a5".into(), ..Default::default() }, true),
        (v1::PodSandboxFilter { id: "5a".into(), ..Default::default() }, false),
        (v1::PodSandboxFilter { id: "a5".repeat(33), ..Default::default() }, false),
        (v1::PodSandboxFilter { state: state(0), ..Default::default() }, true),
        (v1::PodSandboxFilter { state: state(1), ..Default::default() }, false),
        (v1::PodSandboxFilter { label_selector: label("app", "web"), ..Default::default() }, true),
        (v1::PodSandboxFilter { label_selector: label("app", "db"), ..Default::default() }, false),
        (v1::PodSandboxFilter { label_selector: label("tier", ""), ..Default::default() }, false),
    ] {
        assert_eq!(Filter::decode(Some(filter.clone())).unwrap().matches(&view()), want, "{filter:?}");
    }
    assert!(Filter::decode(None).unwrap().matches(&view()));
    assert!(Filter::decode(Some(v1::PodSandboxFilter { state: state(9), ..Default::default() })).is_err());
}
