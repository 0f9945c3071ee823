//! Who a process is and what it may (T15), and what it must not inherit (T1).

use std::fs;
use std::os::unix::fs::symlink;

use keelson_shim::spec::{Capabilities, Rlimit, Seccomp, SeccompRule, User};
use keelson_sys::pidfd::Exit;

use crate::harness::{Bundle, process};

fn status(text: &str, key: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
    line.unwrap_or_else(|| panic!("{key} in {text}")).trim().to_owned()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn privileged_t15_groups_are_exactly_those_asked_for() {
    for (uid, gid, additional) in
        [(0, 0, vec![]), (1000, 1001, vec![]), (1000, 1001, vec![7, 5, 4_000_000_000]), (4_294_967_294, 2, vec![2])]
    {
        let mut bundle = Bundle::new("cat /proc/self/status");
        bundle.process().user = User { uid, gid, additional_gids: additional.clone(), umask: Some(0o077) };
        let text = bundle.output();
        let mut sorted = additional;
        sorted.sort_unstable();
        let groups: Vec<u32> = status(&text, "Groups").split_ascii_whitespace().map(|g| g.parse().unwrap()).collect();
        assert_eq!(groups, sorted);
        assert_eq!(status(&text, "Uid"), [(); 4].map(|()| uid.to_string()).join("\t"));
        assert_eq!(status(&text, "Gid"), [(); 4].map(|()| gid.to_string()).join("\t"));
        assert_eq!(status(&text, "Umask"), "0077");
    }
}

#[test]
fn privileged_t15_capabilities_are_exactly_those_asked_for() {
    let chown_kill = names(&["CAP_CHOWN", "CAP_KILL"]);
    let sets = Capabilities {
        bounding: names(&["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_FROM_THE_FUTURE"]),
        effective: chown_kill.clone(),
        permitted: chown_kill.clone(),
        ..Capabilities::default()
    };
    let of = |sets: Option<Capabilities>, uid| {
        let mut bundle = Bundle::new("cat /proc/self/status");
        bundle.process().capabilities = sets;
        bundle.process().user.uid = uid;
        let text = bundle.output();
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
            .map(|key| u64::from_str_radix(&status(&text, key), 16).unwrap())
    };
    // Root gets from exec what is in its bounding set, a user nothing but what is ambient: the kernel's own rules.
    assert_eq!(of(Some(sets.clone()), 0), [0, 0x2021, 0x2021, 0x2021, 0]);
    assert_eq!(of(Some(sets.clone()), 1000), [0, 0, 0, 0x2021, 0]);
    let ambient = Capabilities { inheritable: chown_kill.clone(), ambient: chown_kill, ..sets };
    assert_eq!(of(Some(ambient), 1000), [0x21, 0x21, 0x21, 0x2021, 0x21]);
    assert_eq!(of(None, 0), [0; 5]);
}

#[test]
fn privileged_only_three_descriptors_survive() {
    let leaked = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let bundle = Bundle::new("ls /proc/self/fd; readlink /proc/self/exe");
    // The fourth is the folder that `ls` itself reads.
    assert_eq!(bundle.output(), "0\n1\n2\n3\n/bin/busybox\n");
}

#[test]
fn privileged_a_working_directory_through_a_descriptor_is_refused() {
    let outside = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&outside, rustix::io::FdFlags::empty()).unwrap();
    for number in 0..40 {
        for path in [format!("/proc/self/fd/{number}"), format!("/proc/1/fd/{number}/../..")] {
            let mut bundle = Bundle::new("pwd; ls /etc");
            bundle.process().cwd = path.clone();
            let error = bundle.try_run().expect_err(&path);
            assert_eq!(error.step, "change to working directory", "{error}");
        }
    }
    let mut bundle = Bundle::new("true");
    symlink("/proc/self/fd/7", bundle.rootfs().join("link")).unwrap();
    bundle.process().cwd = "/link".into();
    assert!(bundle.try_run().is_err());
}

#[test]
fn privileged_a_missing_working_directory_is_made_inside() {
    let mut bundle = Bundle::new("pwd");
    symlink("/made/../deep", bundle.rootfs().join("link")).unwrap();
    bundle.process().cwd = "/link/er".into();
    assert_eq!(bundle.output(), "/deep/er\n");
    assert!(bundle.rootfs().join("deep/er").is_dir());
}

#[test]
fn privileged_a_user_may_stand_in_a_folder_only_it_may_enter() {
    let mut bundle = Bundle::new("pwd");
    let home = bundle.rootfs().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    bundle.process().cwd = "/home".into();
    bundle.process().user = User { uid: 1000, gid: 1000, ..User::default() };
    assert_eq!(bundle.output(), "/home\n");
}

#[test]
fn privileged_signals_limits_and_flags_are_set() {
    let mut bundle = Bundle::new(
        "cat /proc/self/status /proc/self/limits /proc/self/oom_score_adj; cut -d' ' -f6 /proc/self/stat 2>/dev/null; true",
    );
    bundle.process().no_new_privileges = true;
    bundle.process().rlimits = vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 100, hard: 200 }];
    bundle.process().oom_score_adj = Some(321);
    let text = bundle.output();
    assert_eq!(status(&text, "NoNewPrivs"), "1");
    assert_eq!(status(&text, "SigBlk"), "0000000000000000");
    assert_eq!(status(&text, "SigIgn"), "0000000000000000");
    assert!(
        text.lines()
            .any(|line| line.split_ascii_whitespace().collect::<Vec<_>>()
                == ["Max", "open", "files", "100", "200", "files"]),
        "{text}"
    );
    assert!(text.lines().any(|line| line == "321"), "{text}");
}

#[test]
fn privileged_a_limit_above_the_nodes_own_says_so() {
    let mut bundle = Bundle::new("true");
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let Some(hard) = hard.filter(|_| !has_sys_resource()) else {
        println!("SKIP privileged_a_limit_above_the_nodes_own_says_so: nothing is above this process's limits");
        return;
    };
    bundle.process().rlimits = vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 1, hard: hard + 1 }];
    let error = bundle.try_run().unwrap_err();
    assert_eq!((error.step, error.errno), ("set resource limit", libc::EPERM));
    assert!(error.to_string().contains("above this node's own"), "{error}");
}

fn has_sys_resource() -> bool {
    fs::read_to_string("/proc/self/status")
        .is_ok_and(|text| u64::from_str_radix(&status(&text, "CapEff"), 16).is_ok_and(|mask| mask & 1 << 24 != 0))
}

#[test]
fn privileged_lowering_the_oom_score_is_clamped_only_when_asked() {
    if has_sys_resource() {
        println!(
            "SKIP privileged_lowering_the_oom_score_is_clamped_only_when_asked: nothing is refused to this process"
        );
        return;
    }
    let mut bundle = Bundle::new("cat /proc/self/oom_score_adj");
    bundle.process().oom_score_adj = Some(-999);
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(bundle.output(), own);
    bundle.clamp_oom_score = false;
    let error = bundle.try_run().unwrap_err();
    assert_eq!(error.step, "set oom_score_adj");
    bundle.assert_nothing_left();
}

#[test]
fn privileged_a_filter_is_loaded_with_and_without_no_new_privs() {
    for no_new_privileges in [true, false] {
        for uid in [0, 1000] {
            let mut bundle = Bundle::new("mkdir /tmp/x && echo made; uname -s; cat /proc/self/status");
            fs::set_permissions(bundle.rootfs().join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
                .unwrap();
            bundle.process().no_new_privileges = no_new_privileges;
            bundle.process().user.uid = uid;
            bundle.linux().seccomp = Some(Seccomp {
                default_action: "SCMP_ACT_ALLOW".into(),
                syscalls: vec![SeccompRule {
                    names: names(&["mkdir", "mkdirat"]),
                    action: "SCMP_ACT_ERRNO".into(),
                    errno_ret: Some(u32::try_from(libc::EXDEV).unwrap()),
                    args: Vec::new(),
                }],
                ..Seccomp::default()
            });
            let ended = bundle.run();
            assert_eq!(ended.exit, Exit::Code(0));
            assert!(ended.err.contains("Invalid cross-device link"), "{ended:?}");
            assert!(ended.out.starts_with("Linux\n") && status(&ended.out, "Seccomp") == "2", "{ended:?}");
        }
    }
}

#[test]
fn privileged_labels_are_refused_on_a_kernel_without_their_module() {
    let enabled = |path: &str| std::path::Path::new(path).exists();
    if !enabled("/sys/module/apparmor") {
        let mut bundle = Bundle::new("true");
        bundle.process().apparmor_profile = "docker-default".into();
        let error = bundle.try_run().unwrap_err();
        assert_eq!(error.step, "set AppArmor profile");
        bundle.process().apparmor_profile = "unconfined".into();
        bundle.run();
    }
    if !enabled("/sys/fs/selinux/enforce") {
        let mut bundle = Bundle::new("true");
        bundle.process().selinux_label = "system_u:system_r:container_t:s0".into();
        assert_eq!(bundle.try_run().unwrap_err().step, "set SELinux label");
    }
}

#[test]
fn privileged_environments_do_not_mix() {
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let mut bundle = Bundle::new("echo $NUMBER");
                bundle.process().env.push(format!("NUMBER={number}"));
                for _ in 0..4 {
                    assert_eq!(bundle.output(), format!("{number}\n"));
                }
            });
        }
    });
}

#[test]
fn privileged_malformed_environments_are_refused() {
    for entry in ["NAME", "=x", "", "*"] {
        let mut bundle = Bundle::new("true");
        bundle.process().env.push(entry.into());
        assert_eq!(bundle.try_run().unwrap_err().step, "set environment", "{entry:?}");
    }
    let mut bundle = Bundle::new("");
    bundle.spec.process = Some(process(&[]));
    assert_eq!(bundle.try_run().unwrap_err().step, "exec");
}

#[test]
fn privileged_pipes_of_a_user_can_be_opened_again() {
    let mut bundle = Bundle::new("echo again > /dev/stdout; echo /dev/null | cat < /dev/stdin > /dev/null");
    bundle.process().user.uid = 1000;
    let before = fs::metadata("/dev/null").unwrap();
    assert_eq!(bundle.output(), "again\n");
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&before), std::os::unix::fs::MetadataExt::uid(&after));
}
