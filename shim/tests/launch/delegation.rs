//! A container with its cgroup mounted to write to: it may divide it, and never raise its own limits. cgroup v2 only.

use std::fs;

use keelson_shim::cgroup::{Mode, detect};
use keelson_shim::spec::{Pids, Resources};

use crate::harness::{Bundle, Running};
use crate::namespaces::with_user_namespace;

fn skipped(name: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let delegates = mounts.lines().any(|line| line.contains(" - cgroup2 ") && line.contains("nsdelegate"));
    let skip = detect().unwrap().mode() != Mode::V2 || !delegates;
    if skip {
        println!("SKIP {name}: this host has no cgroup v2 mounted with nsdelegate");
    }
    skip
}

fn writable(bundle: &mut Bundle) {
    let mount = bundle.spec.mounts.iter_mut().find(|mount| mount.kind == "cgroup").unwrap();
    mount.options.retain(|option| option != "ro");
    mount.options.push("rw".into());
    let pids = Some(Pids { limit: Some(100) });
    bundle.linux().resources = Some(Resources { pids, ..Resources::default() });
}

const DIVIDE: &str = "cd /sys/fs/cgroup && mkdir a && mkdir a/b && echo $$ > a/b/cgroup.procs && cat /proc/self/cgroup; \
     echo max > pids.max && echo raised; cat pids.max; echo 100 > cgroup.max.depth && echo deeper; \
     d=a; i=0; while [ $i -lt 30 ]; do d=$d/x; mkdir $d 2>/dev/null || break; i=$((i+1)); done; echo $i";

#[test]
fn privileged_a_writable_cgroup_is_divided_and_its_limits_stay() {
    if skipped("privileged_a_writable_cgroup_is_divided_and_its_limits_stay") {
        return;
    }
    let mut bundle = Bundle::new("sleep 1000");
    writable(&mut bundle);
    let running = Running::start(&bundle);
    let text = running.shell(&format!("{{ {DIVIDE}; }} 2>/dev/null; true"));
    assert!(text.starts_with("0::/a/b\n100\n") && !text.contains("raised") && !text.contains("deeper"), "{text}");
    assert!(text.ends_with("\n11\n"), "a tree that can be removed again: {text}");
    assert!(running.shell("cat /proc/self/cgroup").starts_with("0::/e"), "execs go on, in a leaf of their own");
    running.end();
}

#[test]
fn privileged_the_root_of_a_user_namespace_owns_a_writable_cgroup_alone() {
    if skipped("privileged_the_root_of_a_user_namespace_owns_a_writable_cgroup_alone") {
        return;
    }
    for rw in [true, false] {
        let mut bundle = Bundle::new(&format!("{{ {DIVIDE}; }} 2>/dev/null; stat -c %u cgroup.procs pids.max"));
        with_user_namespace(&mut bundle);
        std::os::unix::fs::chown(bundle.rootfs(), Some(200_000), Some(200_000)).unwrap();
        if rw {
            writable(&mut bundle);
        }
        let text = bundle.run().out;
        if rw {
            assert!(text.starts_with("0::/a/b\n100\n") && !text.contains("raised"), "{text}");
            // What is not given away belongs to nobody inside.
            assert!(text.ends_with("\n0\n65534\n"), "{text}");
        } else {
            assert!(!text.contains("/a/b"), "{text}");
        }
    }
}
