//! What is shown of a container, and which ones a filter means.

use std::sync::Arc;

use keelson_api::{ContainerId, SandboxId};

use super::*;
use crate::{
    container::{
        spec::ContainerKey,
        view::{Exit, User},
    },
    resources::Resources,
};

pub(in crate::cri) fn view() -> ContainerView {
    ContainerView {
        id: ContainerId::from_random([0xc0; 32]),
        sandbox: SandboxId::from_random([0xa5; 32]),
        spec: Arc::new(ContainerSpec {
            key: ContainerKey { name: "app".into(), attempt: 4 },
            image: "sha256:aa".into(),
            image_as_written: "busybox".into(),
            command: vec!["sleep".into()],
            args: vec!["9".into()],
            env: vec![crate::container::spec::EnvVar { name: "K".into(), value: vec![b'v', 0xff] }],
            labels: [("app".to_owned(), "web".to_owned())].into(),
            log_path: "app/4.log".into(),
            ..ContainerSpec::default()
        }),
        state: ContainerState::Running { started_at: 20 },
        created_at: 10,
        image_id: "sha256:aa".into(),
        image_ref: "docker.io/library/busybox@sha256:bb".into(),
        log_path: "/var/log/pods/x/app/4.log".into(),
        volumes: vec![
            Volume { container_path: "/data".into(), host_path: "/srv".into(), ..Volume::default() },
            Volume {
                container_path: "/img".into(),
                image: Some("data:1".into()),
                access: Access::ReadOnly,
                ..Volume::default()
            },
        ],
        resources: Resources { cpu_shares: Some(512), memory_limit: Some(1 << 20), ..Resources::default() },
        stop_signal: 3,
        user: User { uid: 1000, gid: 100, additional_gids: vec![5] },
        pid: Some(4321),
        run_dir: "/nonexistent/keelson-test".into(),
    }
}

fn exited(reason: ExitReason, code: i32) -> ContainerView {
    let exit = Exit { code, reason, message: "why".into(), started_at: 20, finished_at: 30 };
    ContainerView { state: ContainerState::Exited(exit), pid: None, ..view() }
}

fn status_of(view: &ContainerView) -> v1::ContainerStatus {
    status(view, |name| (name == "data:1").then(|| "sha256:dd".to_owned()))
}

#[test]
fn a_status_holds_everything_kubelet_looks_for() {
    let status = status_of(&view());
    assert_eq!(status.metadata, Some(v1::ContainerMetadata { name: "app".into(), attempt: 4 }));
    assert_eq!((status.state, status.created_at, status.started_at, status.finished_at), (1, 10, 20, 0));
    assert_eq!(
        (status.image_id.as_str(), status.image_ref.as_str()),
        ("sha256:aa", "docker.io/library/busybox@sha256:bb")
    );
    assert_eq!(status.image.unwrap().image, "busybox");
    assert_eq!(status.log_path, "/var/log/pods/x/app/4.log");
    let linux = status.resources.unwrap().linux.unwrap();
    assert_eq!((linux.cpu_shares, linux.memory_limit_in_bytes), (512, 1 << 20));
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 100, vec![5]));
    assert_eq!(status.stop_signal, i32::from(v1::Signal::Sigquit));
    let [data, image] = status.mounts.as_slice() else { panic!("{:?}", status.mounts) };
    assert_eq!((data.container_path.as_str(), data.host_path.as_str(), data.readonly), ("/data", "/srv", false));
    assert_eq!((image.image.as_ref().unwrap().image_ref.as_str(), image.readonly), ("sha256:dd", true));
}

#[test]
fn an_end_is_told_in_the_words_that_others_look_for() {
    for (reason, code, want) in [
        (ExitReason::Completed, 0, "Completed"),
        (ExitReason::Error, 3, "Error"),
        (ExitReason::OomKilled, 137, "OOMKilled"),
        (ExitReason::StartError, 128, "StartError"),
        (ExitReason::Unknown, 255, "Unknown"),
    ] {
        let status = status_of(&exited(reason, code));
        assert_eq!((status.state, status.exit_code, status.reason.as_str()), (2, code, want));
        assert_eq!((status.started_at, status.finished_at, status.message.as_str()), (20, 30, "why"));
    }
    assert_eq!(status_of(&ContainerView { state: ContainerState::Created, ..view() }).state, 0);
    assert_eq!(status_of(&ContainerView { state: ContainerState::Unknown, ..view() }).state, 3);
}

#[test]
fn the_ids_of_an_image_agree_in_lists_and_statuses() {
    let (item, status) = (item(&view()), status_of(&view()));
    assert_eq!((item.image_id, item.image_ref), (status.image_id, status.image_ref));
}

#[test]
fn a_filter_means_what_it_says() {
    let state = |state| Some(v1::ContainerStateValue { state });
    let label = |value: &str| HashMap::from([("app".to_owned(), value.to_owned())]);
    for (filter, want) in [
        (v1::ContainerFilter::default(), true),
        (v1::ContainerFilter { id: "c0c0".into(), ..Default::default() }, true),
        (v1::ContainerFilter { id: "a5".into(), ..Default::default() }, false),
        (v1::ContainerFilter { pod_sandbox_id: "a5a5a5".into(), ..Default::default() }, true),
        (v1::ContainerFilter { pod_sandbox_id: "c0".into(), ..Default::default() }, false),
        (v1::ContainerFilter { state: state(1), ..Default::default() }, true),
        (v1::ContainerFilter { state: state(2), ..Default::default() }, false),
        (v1::ContainerFilter { label_selector: label("web"), ..Default::default() }, true),
        (v1::ContainerFilter { label_selector: label("db"), ..Default::default() }, false),
        (v1::ContainerFilter { id: "c0".into(), state: state(2), ..Default::default() }, false),
    ] {
        assert_eq!(Filter::decode(Some(filter.clone())).unwrap().matches(&view()), want, "{filter:?}");
    }
    assert!(Filter::decode(Some(v1::ContainerFilter { state: state(4), ..Default::default() })).is_err());
    let stats = v1::ContainerStatsFilter { pod_sandbox_id: "c0".into(), ..Default::default() };
    assert!(!Filter::of_stats(Some(stats)).matches(&view()));
}
