//! What only a process with one thread can test: a time namespace is left again by nobody else. The shim is such a process.
//! Runs as root, without libtest, which has a thread for each test; prints what libtest would.
//! Owns one temporary folder and one cgroup and takes them away again.
//! Must never start a thread.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;

use keelson_shim::launch::{self, ChildStdio, CreateRequest, Gate};
use keelson_shim::spec::{Capabilities, Linux, Mount, Namespace, NamespaceKind, Process, Root, Spec, TimeOffset};

fn main() {
    println!("\nrunning 1 test");
    privileged_a_clock_is_set_in_a_new_time_namespace();
    println!("test privileged_a_clock_is_set_in_a_new_time_namespace ... ok");
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n");
}

fn privileged_a_clock_is_set_in_a_new_time_namespace() {
    let bundle = tempfile::tempdir().unwrap();
    fs::create_dir_all(bundle.path().join("rootfs/bin")).unwrap();
    fs::copy("/bin/busybox", bundle.path().join("rootfs/bin/busybox")).unwrap();
    let namespaces = [NamespaceKind::Pid, NamespaceKind::Mount, NamespaceKind::Time];
    let spec = Spec {
        process: Some(Process {
            args: ["/bin/busybox", "cat", "/proc/uptime"].map(str::to_owned).to_vec(),
            cwd: "/".into(),
            capabilities: Some(Capabilities::default()),
            ..Process::default()
        }),
        root: Some(Root { path: "rootfs".into(), readonly: false }),
        mounts: vec![Mount { destination: "/proc".into(), kind: "proc".into(), ..Mount::default() }],
        linux: Some(Linux {
            namespaces: namespaces.map(|kind| Namespace { kind, path: String::new() }).to_vec(),
            time_offsets: BTreeMap::from([("boottime".to_owned(), TimeOffset { secs: 1_000_000, nanosecs: 0 })]),
            cgroups_path: format!("/keelson-launch-alone-{}", std::process::id()),
            ..Linux::default()
        }),
        ..Spec::default()
    };
    let own = || fs::read_link("/proc/self/ns/time_for_children").unwrap();
    let before = own();
    let (mut output, stdout) = std::io::pipe().unwrap();
    let null = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let mut created = launch::create(CreateRequest {
        id: "alone",
        bundle: bundle.path(),
        spec: &spec,
        env: None,
        overlay: None,
        volumes: &[],
        image_volumes: &[],
        resolved_sources: &[],
        seccomp: None,
        systemd_cgroup: false,
        builtin_init: false,
        clamp_oom_score: true,
        no_pivot: false,
        stdio: ChildStdio::Fds { stdin: null(), stdout: stdout.into(), stderr: null() },
        gate: Gate::Creator,
    })
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(own(), before, "ours is as it was");
    created.start().unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    keelson_sys::pidfd::wait(&created.pidfd).unwrap();
    created.cgroup.remove().unwrap();
    let uptime: f64 = text.split(' ').next().unwrap().parse().unwrap();
    assert!(uptime > 1_000_000.0, "{text}");
}
