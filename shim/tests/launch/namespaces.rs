//! New, joined and shared namespaces; sysctls by namespace (T4); user namespaces and shifted mounts.

use std::fs;
use std::os::unix::fs::MetadataExt;

use keelson_shim::spec::{IdMapping, Namespace, NamespaceKind};
use keelson_sys::namespace::{NamespaceKinds, in_new, pin, unpin};

use crate::harness::{Bundle, Running};

const KINDS: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

fn hold(holder: &Bundle) -> keelson_shim::launch::Created {
    let (mut created, _output) = holder.create().unwrap();
    created.start().unwrap();
    created
}

fn own(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

#[test]
fn privileged_every_namespace_is_new() {
    let bundle = Bundle::new(
        "for n in cgroup ipc mnt net pid uts user; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup; echo pid $$",
    );
    let text = bundle.output();
    let mut lines = text.lines();
    for kind in KINDS {
        assert_ne!(lines.next().unwrap(), own(kind));
    }
    assert_eq!(lines.next().unwrap(), own("user"));
    assert!(
        text.lines().filter(|line| line.contains(":/")).all(|line| line.ends_with(":/")),
        "the cgroup is the root: {text}"
    );
    assert!(text.ends_with("pid 1\n"));
}

#[test]
fn privileged_namespaces_are_joined_by_path() {
    let mut bundle = Bundle::new("hostname; readlink /proc/self/ns/net; readlink /proc/self/ns/ipc");
    let folder = tempfile::tempdir().unwrap();
    let kinds = NamespaceKinds::NET | NamespaceKinds::UTS | NamespaceKinds::IPC;
    let pins = [(NamespaceKinds::NET, "net"), (NamespaceKinds::UTS, "uts"), (NamespaceKinds::IPC, "ipc")];
    in_new(kinds, || {
        rustix::system::sethostname(b"shared-pod").unwrap();
        for (kind, name) in pins {
            pin(kind, &folder.path().join(name)).unwrap();
        }
    })
    .unwrap();
    for (kind, name) in [(NamespaceKind::Network, "net"), (NamespaceKind::Uts, "uts"), (NamespaceKind::Ipc, "ipc")] {
        let path = folder.path().join(name).display().to_string();
        let namespace = bundle.linux().namespaces.iter_mut().find(|namespace| namespace.kind == kind).unwrap();
        namespace.path = path;
    }
    let text = bundle.output();
    let inode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().ino();
    assert_eq!(text, format!("shared-pod\nnet:[{}]\nipc:[{}]\n", inode("net"), inode("ipc")));
    for (_, name) in pins {
        unpin(&folder.path().join(name)).unwrap();
    }
}

#[test]
fn privileged_a_pid_namespace_is_shared_with_its_holder() {
    let mut holder = Bundle::new("");
    holder.builtin_init = true;
    let held = hold(&holder);
    let mut bundle = Bundle::new("ps -o comm | sort -u | tr '\\n' ' '; echo; test $$ != 1 && echo not-first");
    let path = format!("/proc/{}/ns/pid", held.pid);
    bundle.linux().namespaces[0] = Namespace { kind: NamespaceKind::Pid, path };
    let text = bundle.output();
    assert!(text.contains("keelson-init") && text.ends_with("not-first\n"), "{text}");
    held.cgroup.kill().unwrap();
    keelson_sys::pidfd::wait(&held.pidfd).unwrap();
    holder.clean(&held);
}

#[test]
fn privileged_hostname_and_domain_name_are_the_containers() {
    let before = rustix::system::uname().nodename().to_owned();
    let mut bundle = Bundle::new("hostname; cat /proc/sys/kernel/domainname");
    bundle.spec.hostname = "inside".into();
    bundle.spec.domainname = "example.test".into();
    assert_eq!(bundle.output(), "inside\nexample.test\n");
    assert_eq!(rustix::system::uname().nodename(), before.as_c_str());
    bundle.linux().namespaces.retain(|namespace| namespace.kind != NamespaceKind::Uts);
    assert_eq!(bundle.try_run().unwrap_err().step, "set hostname");
}

#[test]
fn privileged_sysctls_reach_their_namespace_and_no_other() {
    let mut bundle =
        Bundle::new("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ping_group_range");
    for (name, value) in [("net.ipv4.ip_forward", "1"), ("kernel.shmmni", "77"), ("net/ipv4/ping_group_range", "5 6")] {
        bundle.linux().sysctl.insert(name.into(), value.into());
    }
    let shmmni = fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    assert_eq!(bundle.output(), "1\n77\n5\t6\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), shmmni);
}

#[test]
fn privileged_hostile_sysctls_are_refused() {
    let core_pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for (name, value) in [
        ("kernel.core_pattern", "|/bin/evil"),
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/bin/evil\n"),
        ("kernel.shmmni", "1\nkernel.core_pattern=x"),
        ("kernel.shmmni+kernel.core_pattern", "1"),
        ("net.ipv4.../kernel/core_pattern", "x"),
        ("net/../kernel/core_pattern", "x"),
        ("net.ipv4.conf.all.nothing_of_this_name", "1"),
        ("kernel.sysrq", "1"),
        ("vm.overcommit_memory", "1"),
    ] {
        let mut bundle = Bundle::new("true");
        bundle.linux().sysctl.insert(name.into(), value.into());
        assert_eq!(bundle.try_run().expect_err(name).step, "set sysctl", "{name}");
    }
    let mut bundle = Bundle::new("true");
    bundle.linux().namespaces.retain(|namespace| namespace.kind != NamespaceKind::Network);
    bundle.linux().sysctl.insert("net.ipv4.ip_forward".into(), "1".into());
    let error = bundle.try_run().unwrap_err();
    assert!(error.to_string().contains("shares the node's network namespace"), "{error}");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), core_pattern);
}

pub(crate) fn with_user_namespace(bundle: &mut Bundle) {
    let mapping = vec![IdMapping { container_id: 0, host_id: 200_000, size: 65_536 }];
    let linux = bundle.linux();
    linux.namespaces.push(Namespace { kind: NamespaceKind::User, path: String::new() });
    (linux.uid_mappings, linux.gid_mappings) = (mapping.clone(), mapping);
    fs::set_permissions(bundle.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn privileged_root_of_a_user_namespace_is_nobody_outside() {
    let mut bundle = Bundle::new(
        "id -u; cat /proc/self/uid_map; echo x > /tmp/made; stat -c %u /tmp/made; stat -c '%t:%T' /dev/null; ls /proc/self/fd | wc -l",
    );
    with_user_namespace(&mut bundle);
    let open = |path: &std::path::Path, uid| std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
    open(&bundle.rootfs(), 200_000);
    open(&bundle.rootfs().join("tmp"), 200_000);
    let text = bundle.output();
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    assert_eq!(words, ["0", "0", "200000", "65536", "0", "1:3", "4"]);
    assert_eq!(fs::metadata(bundle.rootfs().join("tmp/made")).unwrap().uid(), 200_000);
}

#[test]
fn privileged_an_overlay_is_shifted_into_a_user_namespace() {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(5), Some(19)) {
        println!(
            "SKIP privileged_an_overlay_is_shifted_into_a_user_namespace: Linux {release} shifts no layers of an overlay (5.19 does)"
        );
        return;
    }
    let mut bundle = Bundle::new("stat -c %u /etc/passwd; echo x > /etc/new; stat -c %u /etc/new /; cat /from-below");
    with_user_namespace(&mut bundle);
    bundle.use_overlay();
    // As the daemon asks for it: before Linux 6.15 the first attempt fails and leaves the mark of a volatile layer.
    let overlay = bundle.overlay.as_mut().unwrap();
    (overlay.idmapped, overlay.volatile) = (true, true);
    assert_eq!(bundle.output(), "0\n0\n0\nbelow");
    let owner = |path: &str| fs::metadata(bundle.folder.path().join(path)).unwrap().uid();
    assert_eq!((owner("upper/etc/new"), owner("rootfs/etc/passwd")), (200_000, 0));
}

#[test]
fn privileged_a_mount_is_shifted_by_its_own_mapping() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "").unwrap();
    let mut bundle = Bundle::new("stat -c %u /volume/file; touch /volume/new");
    bundle.mount(volume.path(), "/volume", &[]);
    let mapping = vec![IdMapping { container_id: 0, host_id: 5000, size: 10 }];
    let mount = bundle.spec.mounts.last_mut().unwrap();
    (mount.uid_mappings, mount.gid_mappings) = (mapping.clone(), mapping);
    (bundle.process().user.uid, bundle.process().user.gid) = (5000, 5000);
    bundle.process().capabilities = None;
    std::os::unix::fs::chown(volume.path(), Some(0), Some(0)).unwrap();
    assert_eq!(bundle.output(), "5000\n");
    assert_eq!(fs::metadata(volume.path().join("new")).unwrap().uid(), 0);
}

#[test]
fn privileged_a_user_namespace_is_joined_and_owns_what_is_new() {
    let mut holder = Bundle::new("");
    holder.builtin_init = true;
    with_user_namespace(&mut holder);
    std::os::unix::fs::chown(holder.rootfs(), Some(200_000), Some(200_000)).unwrap();
    let held = hold(&holder);
    let mut bundle = Bundle::new("id -u; readlink /proc/self/ns/user; hostname renamed; hostname");
    with_user_namespace(&mut bundle);
    std::os::unix::fs::chown(bundle.rootfs(), Some(200_000), Some(200_000)).unwrap();
    let path = format!("/proc/{}/ns/user", held.pid);
    let user = fs::read_link(&path).unwrap().display().to_string();
    bundle.linux().namespaces.last_mut().unwrap().path = path;
    bundle.process().capabilities.as_mut().unwrap().bounding.push("CAP_SYS_ADMIN".into());
    let text = bundle.output();
    assert_eq!(text, format!("0\n{user}\nrenamed\n"));
    // With the holder's pid namespace too, the numbers that the kernel tells while cloning are those of that namespace.
    let pid_namespace = format!("/proc/{}/ns/pid", held.pid);
    bundle.linux().namespaces[0] = Namespace { kind: NamespaceKind::Pid, path: pid_namespace };
    bundle.process().args = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
    let running = Running::start(&bundle);
    assert_eq!(fs::read_link(format!("/proc/{}/ns/user", running.created.pid)).unwrap().display().to_string(), user);
    assert_eq!(running.shell("readlink /proc/self/ns/user"), format!("{user}\n"), "an exec is in it as well");
    running.end();
    held.cgroup.kill().unwrap();
    keelson_sys::pidfd::wait(&held.pidfd).unwrap();
    holder.clean(&held);
}
