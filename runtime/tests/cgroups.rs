//! The same limits given by keelson's cgroup room and by libcgroups: the kernel must hold the same afterwards.
//! Needs root and cgroup v1 controllers or v2; makes two cgroups of its own and removes them.
//! Owns those. Must never compare what decision 0005 found to differ on purpose: device rules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

use std::{collections::BTreeMap, fs, path::Path};

use keelson_shim::cgroup::{Handle, Location, Mode, detect};
use libcgroups::common::{CgroupConfig, CgroupManager as _, ControllerOpt, create_cgroup_manager};
use oci_spec::runtime::LinuxResources;

/// Files that limits end up in.
const V1: [&str; 9] = [
    "cpu/cpu.shares",
    "cpu/cpu.cfs_quota_us",
    "cpu/cpu.cfs_period_us",
    "cpuset/cpuset.cpus",
    "cpuset/cpuset.mems",
    "memory/memory.limit_in_bytes",
    "memory/memory.memsw.limit_in_bytes",
    "pids/pids.max",
    "memory/memory.soft_limit_in_bytes",
];
const V2: [&str; 7] =
    ["cpu.weight", "cpu.max", "cpuset.cpus", "cpuset.mems", "memory.max", "memory.swap.max", "pids.max"];

fn read(mode: Mode, name: &str) -> BTreeMap<&'static str, String> {
    let root = Path::new("/sys/fs/cgroup");
    let files: Vec<(&str, std::path::PathBuf)> = match mode {
        Mode::V2 => V2.iter().map(|file| (*file, root.join(name).join(file))).collect(),
        Mode::V1 | Mode::Hybrid => V1
            .iter()
            .filter_map(|file| {
                file.split_once('/').map(|(controller, leaf)| (*file, root.join(controller).join(name).join(leaf)))
            })
            .collect(),
    };
    files.into_iter().map(|(file, path)| (file, fs::read_to_string(path).unwrap_or_default())).collect()
}

#[test]
fn privileged_the_kernel_holds_the_same_limits_whoever_wrote_them() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP the_kernel_holds_the_same_limits: not root");
        return;
    }
    let mode = detect().unwrap().mode();
    let cases = [
        r#"{"cpu":{"shares":512}}"#,
        r#"{"cpu":{"quota":50000,"period":100000}}"#,
        r#"{"cpu":{"quota":-1,"period":50000,"cpus":"0","mems":"0"}}"#,
        r#"{"memory":{"limit":67108864}}"#,
        r#"{"memory":{"limit":33554432,"swap":67108864}}"#,
        r#"{"memory":{"limit":134217728,"swap":134217728}}"#,
        r#"{"pids":{"limit":50}}"#,
        r#"{"pids":{"limit":-1}}"#,
    ];
    for (number, case) in cases.into_iter().enumerate() {
        let names = ["ours", "theirs"].map(|who| format!("keelson-oracle-{}-{number}-{who}", std::process::id()));
        let make = |name: &str| {
            Handle::create(&Location::Path(&format!("/{name}")), &serde_json::from_str("{}").unwrap()).unwrap()
        };
        let handles = names.each_ref().map(|name| make(name));
        let [ours, theirs] = &handles;
        ours.update(&serde_json::from_str(case).unwrap()).unwrap();
        let config = CgroupConfig {
            cgroup_path: format!("/{}", names[1]).into(),
            systemd_cgroup: false,
            container_name: "x".into(),
        };
        let resources: LinuxResources = serde_json::from_str(case).unwrap();
        let options = ControllerOpt {
            resources: &resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        let applied = create_cgroup_manager(config).unwrap().apply(&options);
        let held = names.each_ref().map(|name| read(mode, name));
        // Taken away before anything is said.
        ours.remove().unwrap();
        theirs.remove().unwrap();
        applied.unwrap();
        assert_eq!(held[0], held[1], "{case}");
    }
}
