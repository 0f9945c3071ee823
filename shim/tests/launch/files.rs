//! Root filesystems, mounts, devices, hidden and read-only paths, as the container sees them.

use std::fs;

use keelson_shim::spec::Device;

use crate::harness::{Bundle, filesystem, mount_lines};

#[test]
fn privileged_the_usual_mounts_are_there_with_their_options() {
    let bundle = Bundle::new("cat /proc/self/mountinfo");
    let text = bundle.output();
    let lines = mount_lines(&text);
    let options = |path: &str| {
        let line = lines.iter().rev().find(|line| line.0 == path);
        line.map(|line| (line.1.clone(), line.2.clone())).unwrap_or_else(|| panic!("{path} in {text}"))
    };
    for (path, kind, wanted) in [
        ("/proc", "proc", "rw,nosuid,nodev,noexec,relatime"),
        ("/dev", "tmpfs", "rw,nosuid"),
        ("/dev/pts", "devpts", "rw,nosuid,noexec,relatime"),
        ("/dev/shm", "tmpfs", "rw,nosuid,nodev,noexec,relatime"),
        ("/dev/mqueue", "mqueue", "rw,nosuid,nodev,noexec,relatime"),
        ("/sys", "sysfs", "ro,nosuid,nodev,noexec,relatime"),
    ] {
        assert_eq!(options(path), (wanted.to_owned(), kind.to_owned()));
    }
    assert!(options("/sys/fs/cgroup").0.starts_with("ro,nosuid,nodev,noexec"));
    assert!(!text.contains("shared:") && !text.contains("master:"), "{text}");
}

#[test]
fn privileged_the_cgroup_mount_shows_the_container_alone() {
    let bundle = Bundle::new(
        "if test -e /sys/fs/cgroup/cgroup.procs; then cat /sys/fs/cgroup/cgroup.procs; \
         else for d in /sys/fs/cgroup/*; do cat $d/cgroup.procs | head -1; done | sort -u; touch /sys/fs/cgroup/x 2>&1 | grep -o Read-only; fi",
    );
    let text = bundle.output();
    assert!(text.starts_with("1\n"), "{text}");
    assert!(text == "1\n" || text == "1\nRead-only\n", "{text}");
}

#[test]
fn privileged_default_devices_work_and_others_are_made() {
    let mut bundle = Bundle::new(
        "for d in null zero full random urandom tty net/tun fifo; do stat -c '%n %F %t:%T %a %u' /dev/$d; done; \
         for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; echo lost > /dev/null; head -c 3 /dev/zero | wc -c",
    );
    bundle.linux().devices = vec![
        Device {
            path: "/dev/net/tun".into(),
            kind: "c".into(),
            major: 10,
            minor: 200,
            file_mode: Some(0o640),
            uid: Some(7),
            gid: None,
        },
        Device { path: "/dev/fifo".into(), kind: "p".into(), ..Device::default() },
    ];
    let text = bundle.output();
    let expected = "/dev/null character special file 1:3 666 0\n/dev/zero character special file 1:5 666 0\n\
        /dev/full character special file 1:7 666 0\n/dev/random character special file 1:8 666 0\n\
        /dev/urandom character special file 1:9 666 0\n/dev/tty character special file 5:0 666 0\n\
        /dev/net/tun character special file a:c8 640 7\n/dev/fifo fifo 0:0 666 0\n\
        /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n3\n";
    assert_eq!(text, expected);
}

#[test]
fn privileged_a_read_only_root_is_read_only_and_its_mounts_are_not() {
    let mut bundle = Bundle::new(
        "touch /x 2>/dev/null && echo root; touch /image/y && echo volume; touch /dev/shm/z && echo shm; test -d /made && echo made",
    );
    bundle.spec.root.as_mut().unwrap().readonly = true;
    bundle.spec.mounts.push(filesystem("tmpfs", "/made", ""));
    bundle.volumes = vec!["/image".into()];
    assert_eq!(bundle.output(), "volume\nshm\nmade\n");
}

#[test]
fn privileged_an_overlay_is_the_root_and_keeps_its_layers() {
    for volatile in [false, true] {
        let mut bundle =
            Bundle::new("cat /from-below; echo new > /etc/passwd; rm /from-below; cat /proc/self/mountinfo");
        bundle.use_overlay();
        bundle.overlay.as_mut().unwrap().volatile = volatile;
        let text = bundle.output();
        assert!(text.starts_with("below"), "{text}");
        let root = text.lines().find(|line| line.contains(" - overlay ")).unwrap();
        assert!(root.contains(" / / "), "{root}");
        assert!(root.contains("metacopy=off") || !root.contains("metacopy=on"), "{root}");
        assert_eq!(root.contains("volatile"), volatile, "{root}");
        assert_ne!(bundle.run().out, "", "the same layers once more");
        assert_eq!(fs::read_to_string(bundle.rootfs().join("etc/passwd")).unwrap(), "root:x:0:0::/:/bin/sh\n");
        assert_eq!(fs::read_to_string(bundle.folder.path().join("upper/etc/passwd")).unwrap(), "new\n");
    }
}

#[test]
fn privileged_a_bad_overlay_says_what_the_kernel_said() {
    let mut bundle = Bundle::new("true");
    bundle.use_overlay();
    let overlay = bundle.overlay.as_mut().unwrap();
    overlay.work = overlay.upper.clone();
    let error = bundle.try_run().unwrap_err();
    assert_eq!(error.step, "mount overlay root filesystem");
    assert!(error.hint.contains("dmesg"), "{error:?}");
    bundle.overlay.as_mut().unwrap().upper = "/no/such".into();
    assert_eq!(bundle.try_run().unwrap_err().step, "open layer");
    bundle.overlay.as_mut().unwrap().lower.clear();
    assert!(bundle.try_run().unwrap_err().to_string().contains("no lower directory"));
}

#[test]
fn privileged_many_layers_are_stacked() {
    let mut bundle = Bundle::new("cat /layer-0 /layer-59");
    bundle.use_overlay();
    for number in 0..60 {
        let layer = bundle.folder.path().join(format!("layer,with:odd-name-{number}"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join(format!("layer-{number}")), number.to_string()).unwrap();
        bundle.overlay.as_mut().unwrap().lower.push(layer);
    }
    assert_eq!(bundle.output(), "059");
}

#[test]
fn privileged_binds_have_their_attributes() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "content").unwrap();
    let mut bundle =
        Bundle::new("cat /new/file /etc/one; touch /new/x 2>/dev/null && echo writable; cat /proc/self/mountinfo");
    bundle.mount(volume.path(), "/new", &["ro", "nosuid", "noexec", "noatime"]);
    bundle.mount(&volume.path().join("file"), "/etc/one", &["nodev"]);
    let text = bundle.output();
    assert!(text.starts_with("contentcontent") && !text.contains("writable"), "{text}");
    let lines = mount_lines(&text);
    // A source that is itself mounted with flags keeps them beside those asked for.
    let has = |path: &str, wanted: &[&str]| {
        let options = &lines.iter().find(|line| line.0 == path).unwrap().1;
        wanted.iter().all(|flag| options.split(',').any(|option| option == *flag))
    };
    assert!(has("/new", &["ro", "nosuid", "noexec", "noatime"]), "{text}");
    assert!(has("/etc/one", &["rw", "nodev"]), "{text}");
    assert!(bundle.rootfs().join("new").is_dir() && bundle.rootfs().join("etc/one").is_file());
}

/// Runs in a mount namespace of its own: what is mounted for the test is seen by nobody else.
fn in_private_mounts(f: impl FnOnce(&std::path::Path) + Send) {
    let folder = tempfile::tempdir().unwrap();
    keelson_sys::namespace::in_new(keelson_sys::namespace::NamespaceKinds::MOUNT, || {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
        mount("tmpfs", folder.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        mount_change(folder.path(), MountPropagationFlags::SHARED).unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        mount("tmpfs", folder.path().join("sub"), "tmpfs", MountFlags::empty(), None).unwrap();
        f(folder.path());
    })
    .unwrap();
}

#[test]
fn privileged_read_only_can_be_recursive() {
    in_private_mounts(|source| {
        for (options, expected) in [(&["ro"][..], "sub\n"), (&["rro"], ""), (&[], "top\nsub\n")] {
            let mut bundle =
                Bundle::new("touch /v/x 2>/dev/null && echo top; touch /v/sub/x 2>/dev/null && echo sub; true");
            bundle.mount(source, "/v", options);
            assert_eq!(bundle.run().out, expected, "{options:?}");
        }
    });
}

#[test]
fn privileged_propagation_is_as_asked_for_and_private_without_a_word() {
    in_private_mounts(|source| {
        for (options, expected) in
            [(&[][..], ""), (&["rprivate"], ""), (&["rslave"], "master:"), (&["rshared"], "shared:")]
        {
            let mut bundle = Bundle::new("grep ' /v ' /proc/self/mountinfo");
            bundle.mount(source, "/v", options);
            let text = bundle.output();
            let has = |word| text.contains(word);
            assert_eq!(
                (has("master:"), has("shared:")),
                (expected == "master:", expected == "shared:"),
                "{options:?}: {text}"
            );
        }
    });
}

#[test]
fn privileged_masked_and_read_only_paths_are_hidden_and_fixed() {
    let mut bundle = Bundle::new(
        "cat /proc/kcore | wc -c; cat /proc/timer_list | wc -c; ls -A /proc/bus /sys/firmware /etc/secrets; touch /etc/secrets/x 2>/dev/null && echo w; \
         echo 1 2>/dev/null > /proc/sys/vm/drop_caches && echo wrote; touch /etc/fixed/x 2>/dev/null && echo w; test -e /etc/nothing || echo absent; cat /etc/file | wc -c",
    );
    let etc = bundle.rootfs().join("etc");
    for name in ["secrets", "fixed"] {
        fs::create_dir(etc.join(name)).unwrap();
    }
    fs::write(etc.join("secrets/key"), "secret").unwrap();
    fs::write(etc.join("file"), "secret").unwrap();
    let paths = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    bundle.linux().masked_paths = paths(&[
        "/proc/kcore",
        "/proc/timer_list",
        "/proc/bus",
        "/sys/firmware",
        "/etc/secrets",
        "/etc/file",
        "/etc/nothing",
        "/etc/passwd/x",
    ]);
    bundle.linux().readonly_paths = paths(&["/proc/sys", "/proc/irq", "/etc/fixed", "/etc/nothing"]);
    assert_eq!(bundle.output(), "0\n0\n/etc/secrets:\n\n/proc/bus:\n\n/sys/firmware:\nabsent\n0\n");
}
