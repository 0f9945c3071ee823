//! Processes added to a running container.

use std::fs;
use std::os::unix::fs::symlink;

use keelson_shim::launch::{self, ChildStdio, ExecRequest, ExecTarget, start_time};
use keelson_shim::spec::{IdMapping, Namespace, NamespaceKind, User};
use keelson_sys::pidfd::{self, Exit};

use crate::harness::{Bundle, Running, process};

const SLEEP: &str = "exec sleep 1000";

#[test]
fn privileged_an_exec_is_in_every_namespace_of_the_container() {
    in_every_namespace(false);
}

#[test]
fn privileged_an_exec_beside_a_tracer_is_in_every_namespace_too() {
    in_every_namespace(true);
}

/// With CAP_SYS_PTRACE in the container the child has a copy of our memory, without it borrows it.
fn in_every_namespace(trace: bool) {
    {
        let mut bundle = Bundle::new(SLEEP);
        bundle.spec.hostname = "container".into();
        if trace {
            bundle.process().capabilities.as_mut().unwrap().bounding.push("CAP_SYS_PTRACE".into());
        }
        let running = Running::start(&bundle);
        let own = "for n in cgroup ipc mnt net pid uts user; do readlink /proc/self/ns/$n; done";
        let init = "for n in cgroup ipc mnt net pid uts user; do readlink /proc/1/ns/$n; done";
        // Reading another's namespaces takes the capabilities that it has.
        let mut shell = process(&["/bin/sh", "-c", init]);
        shell.capabilities = bundle.spec.process.as_ref().unwrap().capabilities.clone();
        assert_eq!(running.shell(own), running.exec(&shell).unwrap().out);
        assert_eq!(
            running.shell("hostname; pwd; ls /proc/self/fd; cat /proc/self/status | grep -E 'SigIgn|SigBlk'"),
            "container\n/\n0\n1\n2\n3\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
        );
        running.end();
    }
}

#[test]
fn privileged_an_exec_has_its_own_cgroup_in_the_containers() {
    let bundle = Bundle::new(SLEEP);
    let running = Running::start(&bundle);
    let text = running.shell("cat /proc/self/cgroup");
    for line in text.lines() {
        let path = line.rsplit(':').next().unwrap();
        assert!(path == "/" || path.starts_with("/exec-"), "{text}");
    }
    assert!(text.contains("/exec-"), "{text}");
    running.end();
}

#[test]
fn privileged_an_exec_has_its_own_identity() {
    let bundle = Bundle::new(SLEEP);
    let running = Running::start(&bundle);
    let mut other = process(&[
        "/bin/sh",
        "-c",
        "id; pwd; echo $A; cat /proc/self/status | grep -E 'CapEff|NoNew|Umask'; cat /proc/self/oom_score_adj",
    ]);
    other.user = User { uid: 33, gid: 44, additional_gids: vec![55], umask: Some(0o027) };
    other.cwd = "/etc".into();
    other.env.push("A=b".into());
    other.capabilities = None;
    other.no_new_privileges = true;
    other.oom_score_adj = Some(500);
    let ended = running.exec(&other).unwrap();
    assert_eq!(
        ended.out,
        "uid=33 gid=44 groups=55\n/etc\nb\nUmask:\t0027\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n500\n"
    );
    running.end();
}

#[test]
fn privileged_failures_of_an_exec_are_told_and_leave_nothing() {
    let bundle = Bundle::new(SLEEP);
    symlink("/proc/self/fd/7", bundle.rootfs().join("link")).unwrap();
    let running = Running::start(&bundle);
    assert_eq!(running.exec(&process(&["missing"])).unwrap_err().errno, libc::ENOENT);
    for cwd in ["/proc/self/fd/5", "/link", "/nowhere", "relative"] {
        let mut process = process(&["/bin/true"]);
        process.cwd = cwd.into();
        assert_eq!(running.exec(&process).expect_err(cwd).step, "change to working directory");
    }
    let mut wrong = process(&["/bin/true"]);
    wrong.user.uid = u32::MAX;
    assert_eq!(running.exec(&wrong).unwrap_err().step, "set user");
    assert_eq!(running.shell("ls /proc | grep -c '^[0-9]'"), "4\n", "init, sh, ls, grep");
    running.end();
}

#[test]
fn privileged_an_exec_enters_a_user_namespace() {
    let mut bundle = Bundle::new(SLEEP);
    let mapping = vec![IdMapping { container_id: 0, host_id: 300_000, size: 1000 }];
    let linux = bundle.linux();
    linux.namespaces.push(Namespace { kind: NamespaceKind::User, path: String::new() });
    (linux.uid_mappings, linux.gid_mappings) = (mapping.clone(), mapping);
    fs::set_permissions(bundle.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(bundle.rootfs(), Some(300_000), Some(300_000)).unwrap();
    let running = Running::start(&bundle);
    assert_eq!(running.shell("id -u; test $(readlink /proc/self/ns/user) = $(readlink /proc/1/ns/user) && echo same; cat /proc/self/uid_map | tr -s ' '"),
        "0\nsame\n 0 300000 1000\n");
    running.end();
}

#[test]
fn privileged_an_exec_can_have_a_terminal() {
    let bundle = Bundle::new(SLEEP);
    let running = Running::start(&bundle);
    let mut process = process(&["/bin/sh", "-c", "tty; stty size; ps -o comm,pid >/dev/null; echo $$ >/dev/tty"]);
    process.terminal = true;
    process.console_size = Some(keelson_shim::spec::ConsoleSize { height: 10, width: 20 });
    let request = ExecRequest {
        target: &running.target,
        process: &process,
        env: None,
        exec_id: "terminal",
        seccomp: None,
        clamp_oom_score: true,
        stdio: ChildStdio::Terminal,
    };
    let execed = launch::exec(request).unwrap();
    let master = execed.terminal.as_ref().unwrap();
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(master, &mut buffer) {
        text.extend_from_slice(&buffer[..length]);
    }
    assert_eq!(pidfd::wait(&execed.pidfd).unwrap(), Exit::Code(0));
    execed.leaf.remove().unwrap();
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    assert!(text.starts_with("/dev/pts/0\n10 20\n"), "{text}");
    running.end();
}

#[test]
fn privileged_a_later_process_opens_the_container_by_pid_and_start_time() {
    let bundle = Bundle::new(SLEEP);
    let (mut created, _output) = bundle.create().unwrap();
    created.start().unwrap();
    let (pid, started) = (created.pid, start_time(created.pid).unwrap());
    let cgroup = created.cgroup.clone();
    assert!(ExecTarget::open(pid, started + 1, &cgroup, &bundle.spec).is_err(), "another process of this pid");
    let target = ExecTarget::open(pid, started, &cgroup, &bundle.spec).unwrap();
    let running = Running { bundle: &bundle, created, target };
    assert_eq!(running.shell("hostname > /dev/null; echo $PPID"), "0\n");
    running.end();
    assert!(start_time(pid).is_err());
    assert!(ExecTarget::open(pid, started, &cgroup, &bundle.spec).is_err());
}

#[test]
fn privileged_an_exec_into_an_ended_container_is_refused() {
    let bundle = Bundle::new(SLEEP);
    let running = Running::start(&bundle);
    pidfd::send_signal(&running.created.pidfd, libc::SIGKILL).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while fs::read_to_string(format!("/proc/{}/stat", running.created.pid)).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    let error = running.exec(&process(&["/bin/true"])).unwrap_err();
    assert!(error.to_string().contains("has ended"), "{error}");
    running.end();
}
