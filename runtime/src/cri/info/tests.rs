//! The verbose halves, whole: people's scripts read these names.

use keelson_imageservice::{ChainId, Digest, ImageConfig};

use super::*;
use crate::{
    config::{Config, Overrides},
    container::spec::Seccomp,
    cri::container_view::tests::view,
};

fn json(info: &Info, name: &str) -> Value {
    assert_eq!(info.len(), 1);
    serde_json::from_str(&info[name]).unwrap()
}

#[test]
fn the_settings_of_the_daemon() {
    let about = About {
        config: Config::parse("root = \"/r\"\nstate = \"/s\"", "c", &Overrides::default()).unwrap(),
        kernel: "6.1.0".into(),
        default_seccomp: Seccomp::RuntimeDefault,
    };
    let status = EngineStatus {
        network_down: None,
        cgroup_driver: CgroupDriver::Cgroupfs,
        cgroup_mode: "hybrid",
        seccomp: true,
        apparmor: crate::engine::AppArmorStatus { enabled: true, problem: Some("no compiler".into()) },
        selinux: crate::engine::SelinuxStatus { enabled: false, problem: None },
        features: Default::default(),
        handlers: Vec::new(),
        sandboxes: 2,
        containers: 3,
        teardown_pending: 1,
    };
    let want = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "rootDir": "/r",
        "stateDir": "/s",
        "socket": "/s/keelson.sock",
        "cgroup": { "driver": "cgroupfs", "mode": "hybrid" },
        "seccomp": true,
        "apparmor": { "enabled": true, "problem": "no compiler" },
        "selinux": { "enabled": false, "problem": null },
        "userNamespaces": false,
        "kernel": "6.1.0",
        "network": { "enabled": true, "bridge": about.config.network.bridge },
        "images": { "hostsDir": "/etc/keelson/certs.d" },
        "containers": { "nofile": [1024, 524_288] },
        "counts": { "sandboxes": 2, "containers": 3, "teardownPending": 1 },
    });
    assert_eq!(json(&of_status(&about, &status), "config"), want);
}

#[test]
fn the_inside_of_a_container() {
    let view = view();
    let want = json!({
        "sandboxID": "a5".repeat(32),
        "pid": 4321,
        "runDir": "/nonexistent/keelson-test",
        "image": { "id": "sha256:aa", "ref": "docker.io/library/busybox@sha256:bb" },
        "stopSignal": "SIGQUIT",
        "resources": {
            "cpu_period": 0, "cpu_quota": 0, "cpu_shares": 512, "memory_limit_in_bytes": 1_048_576,
            "memory_swap_limit_in_bytes": 0, "cpuset_cpus": "", "cpuset_mems": "", "unified": {},
        },
        "config": {
            "metadata": { "name": "app", "attempt": 4 },
            "image": { "image": "sha256:aa", "user_specified_image": "busybox" },
            "command": ["sleep"], "args": ["9"], "working_dir": "",
            "envs": [{ "key": "K", "value": "v\u{fffd}" }],
            "mounts": [
                { "container_path": "/data", "host_path": "/srv", "readonly": false, "image": null },
                { "container_path": "/img", "host_path": "", "readonly": true, "image": "data:1" },
            ],
            "labels": { "app": "web" }, "annotations": {}, "log_path": "app/4.log", "tty": false,
        },
        "runtimeSpec": { "ociVersion": "1.2.0" },
    });
    assert_eq!(json(&container(&view, &json!({ "ociVersion": "1.2.0" })), "info"), want);
}

#[tokio::test]
async fn the_specification_is_read_from_the_bundle_and_its_lack_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let mut view = view();
    assert_eq!(json(&of_container(&view).await, "info")["runtimeSpec"], Value::Null);
    std::fs::write(folder.path().join("config.json"), r#"{"ociVersion":"1.2.0"}"#).unwrap();
    view.run_dir = folder.path().to_owned();
    assert_eq!(json(&of_container(&view).await, "info")["runtimeSpec"]["ociVersion"], "1.2.0");
}

#[test]
fn the_inside_of_an_image() {
    let diff_ids = vec![Digest::from_sha256([1; 32])];
    let image = Image {
        id: Digest::from_sha256([2; 32]),
        tags: vec![],
        digests: vec![],
        size: 1,
        config: ImageConfig {
            env: vec!["PATH=/bin".into()],
            volumes: vec!["/data".into()],
            exposed_ports: vec!["80/tcp".into()],
            ..ImageConfig::default()
        },
        chain: ChainId::chain(&diff_ids),
        diff_ids,
        checkpoint: false,
        pinned: false,
    };
    let found = json(&of_image(&image), "info");
    assert_eq!(found["imageSpec"]["config"]["Env"], json!(["PATH=/bin"]));
    assert_eq!(found["imageSpec"]["config"]["Volumes"], json!({ "/data": {} }));
    assert_eq!(found["imageSpec"]["config"]["ExposedPorts"], json!({ "80/tcp": {} }));
    assert_eq!(found["chainID"], json!(format!("sha256:{}", "01".repeat(32))));
}
