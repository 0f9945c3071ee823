use std::path::Path;

use keelson_api::SandboxId;

use super::*;
use crate::{
    container::{
        spec::{Access, Capabilities, Device, EnvVar, MountOption, Propagation, Security},
        view::User,
    },
    dirs::StateDir,
    resources::Resources,
    sandbox::spec::Namespaces,
};

/// What a golden file is made from.
struct Case {
    spec: ContainerSpec,
    sandbox: SandboxSpec,
    image: ImageConfig,
    volumes: Vec<Volume>,
    identity: Identity,
    host: Host,
    images: Vec<mounts::ImageLayers>,
    cdi: cdi::Edits,
    profile: Option<String>,
    labels: Option<Labels>,
}

impl Case {
    fn new() -> Self {
        Self {
            spec: ContainerSpec::default(),
            sandbox: SandboxSpec::default(),
            image: ImageConfig {
                entrypoint: vec!["/bin/web".into()],
                cmd: vec!["--serve".into()],
                ..Default::default()
            },
            volumes: Vec::new(),
            identity: Identity {
                user: User { uid: 0, gid: 0, additional_gids: vec![0, 10] },
                home: Some("/root".into()),
            },
            host: Host {
                unified: true,
                systemd: false,
                capabilities: [
                    "CHOWN",
                    "DAC_OVERRIDE",
                    "FSETID",
                    "FOWNER",
                    "MKNOD",
                    "NET_RAW",
                    "SETGID",
                    "SETUID",
                    "SETFCAP",
                    "SETPCAP",
                    "NET_BIND_SERVICE",
                    "SYS_CHROOT",
                    "KILL",
                    "AUDIT_WRITE",
                    "NET_ADMIN",
                    "SYS_ADMIN",
                ]
                .map(str::to_owned)
                .into(),
                recursive_attributes: true,
                no_writable_cgroup: None,
                no_user_namespaces: None,
                no_user_namespaces_host_network: None,
            },
            images: Vec::new(),
            cdi: cdi::Edits::default(),
            profile: None,
            labels: None,
        }
    }

    fn build(&self) -> Result<Built, ContainerError> {
        let state = StateDir::new("/run/keelson".into());
        build(&Inputs {
            spec: &self.spec,
            sandbox: &self.sandbox,
            sandbox_dir: &state.sandbox(&SandboxId::from_random([0xab; 32])),
            image: &self.image,
            identity: &self.identity,
            volumes: &self.volumes,
            cdi: &self.cdi,
            images: &self.images,
            cgroups_path: "/kubepods/pod1/c1",
            hostname: "web-0",
            target_pid: Some(4711),
            rlimits: &[Rlimit { name: "RLIMIT_NOFILE".into(), soft: 1024, hard: 524_288 }],
            pids_limit: 1000,
            profile: self.profile.clone(),
            labels: self.labels.as_ref(),
            host: &self.host,
        })
    }
}

/// The spec as JSON with every set in order.
fn ordered(mut value: serde_json::Value) -> serde_json::Value {
    if let Some(sets) = value.pointer_mut("/process/capabilities").and_then(serde_json::Value::as_object_mut) {
        for set in sets.values_mut().filter_map(serde_json::Value::as_array_mut) {
            set.sort_by_key(ToString::to_string);
        }
    }
    value
}

fn golden(file: &str, spec: &impl serde::Serialize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file);
    let text = serde_json::to_string_pretty(&ordered(serde_json::to_value(spec).unwrap())).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        crate::store::write_new(&path, text.as_bytes(), 0o644).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{file} (UPDATE_GOLDEN=1 rewrites)");
    // What the daemon writes, the launcher reads.
    let shim: keelson_shim::spec::Spec = serde_json::from_str(&text).unwrap();
    assert!(shim.process.is_some() && shim.linux.is_some());
}

#[test]
fn the_defaults_make_this_spec() {
    golden("spec-default.json", &Case::new().build().unwrap().spec);
}

#[test]
fn a_request_that_says_everything_makes_this_spec() {
    let mut case = Case::new();
    case.sandbox.namespaces.pid = PidMode::Sandbox;
    case.spec = ContainerSpec {
        command: vec!["/bin/sh".into()],
        args: vec!["-c".into(), "true".into()],
        working_dir: "/srv".into(),
        env: vec![
            EnvVar { name: "A".into(), value: b"b".to_vec() },
            EnvVar { name: "HOME".into(), value: b"/x".to_vec() },
        ],
        terminal: true,
        devices: vec![Device {
            host_path: "/dev/null".into(),
            container_path: "/dev/nothing".into(),
            permissions: "r".into(),
        }],
        resources: Resources {
            cpu_shares: Some(512),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cpuset_cpus: "0-1".into(),
            memory_limit: Some(64 << 20),
            memory_swap_limit: Some(64 << 20),
            oom_score_adj: Some(500),
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        },
        security: Security {
            readonly_rootfs: true,
            no_new_privileges: true,
            capabilities: Capabilities { add: vec!["NET_ADMIN".into()], drop: vec!["ALL".into()], ambient: vec![] },
            masked_paths: Some(vec!["/proc/kcore".into()]),
            readonly_paths: Some(vec![]),
            ..Default::default()
        },
        ..Default::default()
    };
    let volume = |container: &str, host: &str, access, propagation| Volume {
        container_path: container.into(),
        host_path: host.into(),
        access,
        propagation,
        ..Default::default()
    };
    case.volumes = vec![
        volume("/data/deep", "/srv/deep", Access::ReadOnly, Propagation::Private),
        volume("/data/", "/srv/data", Access::ReadWrite, Propagation::HostToContainer),
        volume("/etc/hosts", "/var/lib/kubelet/hosts", Access::ReadWrite, Propagation::Private),
        volume("/rro", "/srv/rro", Access::RecursiveReadOnly, Propagation::Private),
    ];
    golden("spec-everything.json", &case.build().unwrap().spec);
}

#[test]
fn the_privileged_get_the_kernel_as_it_is() {
    let mut case = Case::new();
    case.spec.security.privileged = true;
    case.sandbox.namespaces = Namespaces { network: NetworkMode::Host, pid: PidMode::Host, ipc: IpcMode::Host };
    let mut spec = case.build().unwrap().spec;
    // The host's own devices differ from machine to machine.
    let mut linux = spec.linux().clone().unwrap();
    assert!(
        linux.devices().as_ref().is_some_and(|nodes| nodes.iter().any(|node| node.path() == Path::new("/dev/null")))
    );
    linux.set_devices(None);
    spec.set_linux(Some(linux));
    golden("spec-privileged.json", &spec);
}

#[test]
fn a_holder_may_do_nothing() {
    golden(
        "spec-holder.json",
        &holder::build(Path::new("/run/keelson/sandboxes/s/holder/rootfs"), "/kubepods/pod1/s", None),
    );
}

fn arguments(command: &[&str], args: &[&str]) -> Result<Vec<String>, ContainerError> {
    let mut case = Case::new();
    case.spec.command = command.iter().map(|word| (*word).to_owned()).collect();
    case.spec.args = args.iter().map(|word| (*word).to_owned()).collect();
    case.build().map(|built| built.spec.process().as_ref().unwrap().args().clone().unwrap())
}

#[test]
fn a_command_drops_the_images_command_and_arguments_replace_it() {
    assert_eq!(arguments(&[], &[]).unwrap(), ["/bin/web", "--serve"]);
    assert_eq!(arguments(&["/bin/x"], &[]).unwrap(), ["/bin/x"]);
    assert_eq!(arguments(&["/bin/x"], &["y"]).unwrap(), ["/bin/x", "y"]);
    assert_eq!(arguments(&[], &["y"]).unwrap(), ["/bin/web", "y"]);
    let mut case = Case::new();
    case.image = ImageConfig::default();
    assert!(case.build().unwrap_err().to_string().contains("neither entrypoint nor command"));
}

#[test]
fn the_environment_is_merged_and_bad_entries_of_an_image_mean_nothing() {
    let mut case = Case::new();
    case.image.env =
        ["A=image", "B=image", "A=later", "NOEQUALS", "=x", "*", "PATH=/bin", "N\0=x", ""].map(str::to_owned).into();
    case.spec.env = vec![EnvVar { name: "B".into(), value: b"request".to_vec() }];
    let built = case.build().unwrap();
    let process = built.spec.process().clone().unwrap();
    assert_eq!(
        process.env().clone().unwrap(),
        ["A=later", "B=request", "PATH=/bin", "HOSTNAME=web-0", "HOME=/root"].map(str::to_owned)
    );
    assert!(built.env.is_empty());
}

#[test]
fn bytes_that_are_not_text_travel_beside_the_spec() {
    let mut case = Case::new();
    case.spec.env = vec![EnvVar { name: "RAW".into(), value: vec![0xff, 1] }];
    let built = case.build().unwrap();
    assert!(built.env.contains(&b"RAW=\xff\x01".to_vec()));
    assert!(built.env.contains(&b"HOSTNAME=web-0".to_vec()));
}

fn options(case: &Case, target: &str) -> Vec<String> {
    let mounts = case.build().unwrap().spec.mounts().clone().unwrap();
    mounts.iter().find(|mount| mount.destination() == Path::new(target)).unwrap().options().clone().unwrap()
}

#[test]
fn the_cgroup_is_mounted_as_asked() {
    for (privileged, mode, want) in [
        (false, CgroupMount::Unspecified, "ro"),
        (true, CgroupMount::Unspecified, "rw"),
        (false, CgroupMount::ReadOnly, "ro"),
        (false, CgroupMount::Writable, "rw"),
        (true, CgroupMount::Writable, "rw"),
    ] {
        let mut case = Case::new();
        (case.spec.security.privileged, case.spec.security.cgroup) = (privileged, mode);
        assert_eq!(options(&case, "/sys/fs/cgroup").last().unwrap(), want, "{privileged} {mode:?}");
    }
}

#[test]
fn what_a_volume_is_barred_from_holds_for_all_below_it() {
    let mut case = Case::new();
    let barred = vec![MountOption::NoExec, MountOption::NoSuid];
    case.volumes = vec![Volume {
        container_path: "/data".into(),
        host_path: "/srv".into(),
        options: barred.clone(),
        ..Default::default()
    }];
    assert_eq!(options(&case, "/data"), ["rbind", "rprivate", "rw", "rnoexec", "rnosuid"]);
    let image =
        Volume { container_path: "/image/".into(), image: Some("a:1".into()), options: barred, ..Default::default() };
    case.images = vec![mounts::ImageLayers {
        destination: mounts::destination(&image),
        lower: vec!["/var/lib/k:1/top".into(), "/layer".into()],
    }];
    case.volumes = vec![image];
    let want = ["ro", "nosuid", "nodev", "noexec", "lowerdir=/var/lib/k\\:1/top:/layer"];
    assert_eq!(options(&case, "/image"), want);
}

#[test]
fn what_the_host_lacks_is_refused_by_name() {
    let field = |change: fn(&mut Case)| {
        let mut case = Case::new();
        change(&mut case);
        match case.build() {
            Err(ContainerError::Unsupported { field, .. }) => field,
            other => format!("not refused: {other:?}"),
        }
    };
    assert_eq!(
        field(|case| {
            case.host.unified = false;
            case.spec.resources.unified.insert("memory.high".into(), "1".into());
        }),
        "resources.unified"
    );
    assert_eq!(
        field(|case| {
            case.host.no_writable_cgroup = Some("no delegation".into());
            case.spec.security.cgroup = CgroupMount::Writable;
        }),
        "cgroup_mount_mode"
    );
}

#[test]
fn profile_and_labels_are_where_runtimes_look_for_them() {
    let mut case = Case::new();
    let built = case.build().unwrap().spec;
    let process = built.process().as_ref().unwrap();
    assert_eq!((process.apparmor_profile(), process.selinux_label()), (&None, &None));
    assert_eq!(built.linux().as_ref().unwrap().mount_label(), &None);
    case.profile = Some("p".into());
    case.labels = Some(Labels { process: "u:r:t:s0".into(), file: "u:o:f:s0".into() });
    let built = case.build().unwrap().spec;
    let process = built.process().as_ref().unwrap();
    assert_eq!(process.apparmor_profile().as_deref(), Some("p"));
    assert_eq!(process.selinux_label().as_deref(), Some("u:r:t:s0"));
    assert_eq!(built.linux().as_ref().unwrap().mount_label().as_deref(), Some("u:o:f:s0"));
}

#[test]
fn a_container_may_choose_its_pid_namespace() {
    let pid = |mode: ContainerPid| {
        let mut case = Case::new();
        case.spec.security.pid = mode;
        let linux = case.build().unwrap().spec.linux().clone().unwrap();
        let namespaces = linux.namespaces().clone().unwrap();
        namespaces
            .iter()
            .find(|namespace| namespace.typ() == LinuxNamespaceType::Pid)
            .map(|namespace| namespace.path().clone())
    };
    assert_eq!(pid(ContainerPid::Own), Some(None));
    assert_eq!(pid(ContainerPid::Host), None);
    let target = keelson_api::ContainerId::from_random([1; 32]);
    assert_eq!(pid(ContainerPid::Target(target)), Some(Some("/proc/4711/ns/pid".into())));
}
