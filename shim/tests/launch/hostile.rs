//! Root filesystems that want something made outside (T2), or something hidden seen and something written elsewhere (T3).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::harness::{Bundle, filesystem};

/// Everything below a folder: path, inode, mode, size.
fn picture(folder: &Path) -> BTreeMap<String, (u64, u32, u64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let metadata = entry.path().symlink_metadata().unwrap();
            found.insert(entry.path().display().to_string(), (metadata.ino(), metadata.mode(), metadata.len()));
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn privileged_nothing_is_made_outside_through_links_of_the_image() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("dir")).unwrap();
    fs::write(outside.path().join("file"), "host").unwrap();
    let before = picture(outside.path());
    let up = "../".repeat(30);
    for name in ["etc", "dev", "proc", "sys", "run", "tmp", "volume"] {
        for target in [
            outside.path().display().to_string(),
            format!("{up}{}", outside.path().display()),
            "..".into(),
            "/".into(),
            "/proc/self/root".into(),
        ] {
            let mut bundle = Bundle::new("true");
            let path = bundle.rootfs().join(name);
            let _ = fs::remove_dir_all(&path);
            symlink(&target, &path).unwrap();
            bundle.mount(&outside.path().join("file"), "/etc/hosts", &["ro"]);
            bundle.mount(&outside.path().join("dir"), "/volume/sub/dir", &[]);
            bundle.spec.mounts.push(filesystem("tmpfs", "/run/keep", ""));
            bundle.volumes = vec!["/volume/image".into(), "/tmp/image".into()];
            bundle.process().cwd = "/run/work/dir".into();
            // Some of these containers start, some are refused: none may touch what is outside.
            let result = bundle.try_run();
            assert_eq!(picture(outside.path()), before, "{name} -> {target}");
            if matches!(name, "proc" | "sys") {
                assert!(result.is_err(), "{name} -> {target}");
            }
            bundle.assert_nothing_left();
        }
    }
}

#[test]
fn privileged_a_swapped_mount_target_never_leads_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("target")).unwrap();
    let before = picture(outside.path());
    let shared = tempfile::tempdir().unwrap();
    let inner = tempfile::tempdir().unwrap();
    fs::write(inner.path().join("mark"), "inner").unwrap();
    fs::create_dir_all(shared.path().join("a/target")).unwrap();
    symlink(outside.path(), shared.path().join("b")).unwrap();
    let stop = AtomicBool::new(false);
    /// Also when an assertion fails: the scope waits for the thread.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            let (a, b) = (shared.path().join("a"), shared.path().join("b"));
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let (mut mounted, mut refused) = (0, 0);
        for _ in 0..60 {
            let mut bundle = Bundle::new("cat /shared/a/target/mark /shared/b/target/mark 2>/dev/null; true");
            bundle.mount(shared.path(), "/shared", &[]);
            bundle.mount(inner.path(), "/shared/a/target", &[]);
            match bundle.try_run() {
                Ok(_) => mounted += 1,
                Err(error) => {
                    assert!(error.step.contains("mount"), "{error}");
                    refused += 1;
                }
            }
            bundle.assert_nothing_left();
            assert_eq!(picture(outside.path()), before);
        }
        assert!(mounted > 0, "{mounted} mounted, {refused} refused");
    });
}

#[test]
fn privileged_t3_a_bind_over_proc_is_refused() {
    let fake = tempfile::tempdir().unwrap();
    fs::create_dir_all(fake.path().join("self/attr")).unwrap();
    for destination in ["/proc/self", "/proc/sys/kernel", "/proc/1/attr", "/link/sys"] {
        let mut bundle = Bundle::new("true");
        symlink("/proc", bundle.rootfs().join("link")).unwrap();
        bundle.mount(fake.path(), destination, &[]);
        let error = bundle.try_run().expect_err(destination);
        assert_eq!(error.step, "mount onto procfs at", "{error}");
    }
    let mut bundle = Bundle::new("cat /proc/uptime");
    fs::write(fake.path().join("uptime"), "1.00 1.00\n").unwrap();
    bundle.mount(&fake.path().join("uptime"), "/proc/uptime", &[]);
    assert_eq!(bundle.output(), "1.00 1.00\n");
}

#[test]
fn privileged_t3_sysctls_do_not_go_through_a_proc_of_the_image() {
    // A folder over /proc, mounted before the procfs of the spec would be: writes must not land there.
    let fake = tempfile::tempdir().unwrap();
    fs::create_dir_all(fake.path().join("sys/net/ipv4")).unwrap();
    fs::write(fake.path().join("sys/net/ipv4/ip_forward"), "untouched").unwrap();
    let mut bundle = Bundle::new("true");
    bundle.spec.mounts.remove(0);
    bundle.mount(fake.path(), "/proc", &[]);
    bundle.linux().sysctl.insert("net.ipv4.ip_forward".into(), "1".into());
    bundle.run();
    assert_eq!(fs::read_to_string(fake.path().join("sys/net/ipv4/ip_forward")).unwrap(), "untouched");
}

#[test]
fn privileged_t3_a_null_device_of_the_image_masks_nothing() {
    // /dev is the image's: its null is a link to what the attacker wants bound over a masked file (CVE-2025-31133).
    let mut bundle = Bundle::new("cat /etc/masked; stat -c '%t:%T' /etc/masked; cat /etc/target");
    bundle.spec.mounts.retain(|mount| !mount.destination.starts_with("/dev"));
    let rootfs = bundle.rootfs();
    fs::create_dir(rootfs.join("dev")).unwrap();
    fs::write(rootfs.join("etc/target"), "target").unwrap();
    fs::write(rootfs.join("etc/masked"), "secret").unwrap();
    symlink("/etc/target", rootfs.join("dev/null")).unwrap();
    bundle.linux().masked_paths = vec!["/etc/masked".into()];
    let error = bundle.try_run().unwrap_err();
    assert_eq!(
        (error.step, error.object.as_str()),
        ("create device", "/dev/null"),
        "a null device that is none is refused"
    );
    fs::remove_file(rootfs.join("dev/null")).unwrap();
    assert_eq!(bundle.output(), "1:3\ntarget");
}

#[test]
fn privileged_t3_a_terminal_never_opens_a_device_of_the_image() {
    let mut bundle = Bundle::new("true");
    bundle.spec.mounts.retain(|mount| !mount.destination.starts_with("/dev"));
    let rootfs = bundle.rootfs();
    fs::create_dir_all(rootfs.join("dev/pts")).unwrap();
    fs::write(rootfs.join("dev/pts/ptmx"), "").unwrap();
    let error = bundle
        .create_with(keelson_shim::launch::ChildStdio::Terminal, keelson_shim::launch::Gate::Creator)
        .err()
        .unwrap();
    assert_eq!((error.step, error.errno), ("create terminal", libc::ENODEV));
    bundle.assert_nothing_left();
}

#[test]
fn privileged_the_program_we_run_from_cannot_be_reached() {
    // CVE-2019-5736: an entry point that is /proc/self/exe runs whatever the launcher runs from; nothing may come of it here, where
    // that is this test's own binary: it cannot be opened for writing while it runs, and is the same after.
    let exe = fs::read("/proc/self/exe").unwrap();
    let mut bundle = Bundle::new("");
    symlink("/proc/self/exe", bundle.rootfs().join("entry")).unwrap();
    bundle.spec.process = Some(crate::harness::process(&["/entry", "--list"]));
    let _ = bundle.try_run();
    bundle.spec.process = Some(crate::harness::process(&[
        "/bin/sh",
        "-c",
        "for i in $(seq 50); do echo x >> /proc/1/exe; done 2>/dev/null; true",
    ]));
    bundle.run();
    assert!(exe == fs::read("/proc/self/exe").unwrap());
}
