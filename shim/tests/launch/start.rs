//! Create, gate, start, and every way in which exec can fail.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use keelson_api::shim::FailureKind;
use keelson_shim::launch::{self, ChildStdio, Gate};
use keelson_shim::spec::{Hook, Hooks};
use keelson_sys::pidfd::{self, Exit};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::harness::{Bundle, pipes, process};

#[test]
fn privileged_a_program_runs_and_its_exit_is_seen() {
    let bundle = Bundle::new("echo out; echo err >&2; exit 7");
    let ended = bundle.run();
    assert_eq!((ended.out.as_str(), ended.err.as_str(), ended.exit), ("out\n", "err\n", Exit::Code(7)));
}

#[test]
fn privileged_the_program_does_not_run_before_start() {
    let bundle = Bundle::new("touch /ran");
    let (mut created, output) = bundle.create().unwrap();
    assert_eq!(pidfd::try_wait(&created.pidfd).unwrap(), None);
    assert!(!bundle.rootfs().join("ran").exists());
    created.start().unwrap();
    output.read();
    pidfd::wait(&created.pidfd).unwrap();
    assert!(bundle.rootfs().join("ran").exists());
    bundle.clean(&created);
    assert!(created.start().is_err(), "a container is started once");
}

#[test]
fn privileged_an_init_ends_with_its_creator() {
    let bundle = Bundle::new("true");
    let (created, output) = bundle.create().unwrap();
    let pidfd = rustix::io::fcntl_dupfd_cloexec(&created.pidfd, 3).unwrap();
    let cgroup = created.cgroup.clone();
    drop(created);
    assert_eq!(pidfd::wait(&pidfd).unwrap(), Exit::Code(127));
    output.read();
    cgroup.remove().unwrap();
    bundle.assert_nothing_left();
}

#[test]
fn privileged_another_process_can_start_it_through_a_socket() {
    for (program, fails) in [("/bin/true", false), ("/bin/missing", true)] {
        let mut bundle = Bundle::new("");
        bundle.spec.process = Some(process(&[program]));
        let path = bundle.folder.path().join("start.sock");
        let address = SocketAddrUnix::new(&path).unwrap();
        let socket = || {
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
        };
        let listener = socket();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let (stdio, output) = pipes();
        let mut created = bundle.create_with(stdio, Gate::Listener(listener)).unwrap();
        assert!(created.start().is_err(), "it is left to whoever connects");
        let connect = || {
            let stream = socket();
            rustix::net::connect(&stream, &address).unwrap();
            stream
        };
        drop(connect());
        let result = launch::start_through(connect());
        assert_eq!(result.is_err(), fails);
        if let Err(error) = result {
            assert_eq!((error.step, error.object.as_str(), error.errno), ("exec", "/bin/missing", libc::ENOENT));
        }
        output.read();
        pidfd::wait(&created.pidfd).unwrap();
        bundle.clean(&created);
    }
}

#[test]
fn privileged_failures_of_exec_are_told_by_start() {
    let mut bundle = Bundle::new("");
    let rootfs = bundle.rootfs();
    fs::write(rootfs.join("plain"), "not a program").unwrap();
    fs::write(rootfs.join("garbage"), [0x7f, b'E', b'L', b'F', 9, 9, 9]).unwrap();
    fs::write(rootfs.join("script"), "#!/no/interpreter\n").unwrap();
    fs::write(rootfs.join("noshebang"), "echo hello\n").unwrap();
    for name in ["garbage", "script", "noshebang"] {
        fs::set_permissions(rootfs.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (program, errno) in [
        ("/missing", libc::ENOENT),
        ("missing", libc::ENOENT),
        ("/plain", libc::EACCES),
        ("/bin", libc::EACCES),
        ("/garbage", libc::ENOEXEC),
        ("/noshebang", libc::ENOEXEC),
        ("/script", libc::ENOENT),
        ("/plain/x", libc::ENOENT),
    ] {
        bundle.spec.process = Some(process(&[program]));
        let error = bundle.try_run().expect_err(program);
        assert_eq!((error.step, error.errno, error.kind), ("exec", errno, FailureKind::Invalid), "{program}: {error}");
        assert_eq!(error.object, program);
    }
}

#[test]
fn privileged_a_bare_name_is_found_by_path_as_a_shell_does() {
    let mut bundle = Bundle::new("");
    let rootfs = bundle.rootfs();
    fs::create_dir(rootfs.join("first")).unwrap();
    // Not executable in the first folder: the next one is tried.
    fs::write(rootfs.join("first/echo"), "").unwrap();
    let mut echo = process(&["echo", "found"]);
    echo.env = vec!["PATH=/nowhere:/first:/bin".into()];
    bundle.spec.process = Some(echo.clone());
    assert_eq!(bundle.output(), "found\n");
    echo.env = vec!["PATH=/nowhere:/first".into()];
    bundle.spec.process = Some(echo);
    assert_eq!(bundle.try_run().unwrap_err().errno, libc::EACCES);
}

#[test]
fn privileged_a_terminal_is_the_containers_own() {
    let mut bundle = Bundle::new("tty; stty size; test -c /dev/console && echo console; cat /proc/self/stat");
    bundle.process().terminal = true;
    bundle.process().console_size = Some(keelson_shim::spec::ConsoleSize { height: 33, width: 77 });
    let mut created = bundle.create_with(ChildStdio::Terminal, Gate::Creator).unwrap();
    let master = created.terminal.take().expect("a terminal");
    created.start().unwrap();
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    // Reading a master whose terminal is closed is EIO.
    while let Ok(length @ 1..) = rustix::io::read(&master, &mut buffer) {
        text.extend_from_slice(&buffer[..length]);
    }
    pidfd::wait(&created.pidfd).unwrap();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(|line| line.trim_end()).collect();
    assert_eq!(lines[..3], ["/dev/pts/0", "33 77", "console"], "{text}");
    assert!(rustix::fs::fstat(master.as_fd()).is_ok());
    bundle.clean(&created);
}

#[test]
fn privileged_the_builtin_init_holds_a_pid_namespace_and_reaps() {
    let mut bundle = Bundle::new("");
    bundle.builtin_init = true;
    let empty = bundle.folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    bundle.spec.root = Some(keelson_shim::spec::Root { path: "empty".into(), readonly: true });
    bundle.spec.process = None;
    bundle.spec.mounts.truncate(1);
    let (mut created, output) = bundle.create().unwrap();
    created.start().unwrap();
    drop(output);
    let status = || fs::read_to_string(format!("/proc/{}/status", created.pid)).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while !status().starts_with("Name:\tkeelson-init") {
        assert!(std::time::Instant::now() < deadline, "{}", status());
        std::thread::yield_now();
    }
    assert!(status().contains("CapEff:\t0000000000000000"), "{}", status());
    assert_eq!(fs::read_dir(format!("/proc/{}/fd", created.pid)).unwrap().count(), 3);
    pidfd::send_signal(&created.pidfd, libc::SIGTERM).unwrap();
    assert_eq!(pidfd::wait(&created.pidfd).unwrap(), Exit::Code(0));
    bundle.clean(&created);
}

#[test]
fn privileged_hooks_run_at_their_points() {
    let mut bundle = Bundle::new("echo main");
    let log = bundle.folder.path().join("log");
    let hook = |name: &str| Hook {
        path: "/bin/sh".into(),
        args: vec!["sh".into(), "-c".into(), format!("echo {name} $(readlink /proc/self/ns/mnt) >> {}", log.display())],
        env: vec!["PATH=/bin:/usr/bin".into()],
        timeout: Some(10),
    };
    let inside = Hook { path: "/bin/touch".into(), args: vec!["touch".into(), "/inside".into()], ..Hook::default() };
    bundle.spec.hooks = Some(Hooks {
        prestart: vec![hook("prestart")],
        create_runtime: vec![hook("createRuntime")],
        create_container: vec![hook("createContainer")],
        start_container: vec![inside],
        ..Hooks::default()
    });
    assert_eq!(bundle.output(), "main\n");
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(lines.iter().map(|line| line[0]).collect::<Vec<_>>(), ["prestart", "createRuntime", "createContainer"]);
    assert_eq!(lines[0][1], lines[1][1], "runtime hooks see the host's mounts");
    assert_ne!(lines[1][1], lines[2][1], "createContainer sees the container's");
    assert!(bundle.rootfs().join("inside").exists());
    bundle.spec.hooks =
        Some(Hooks { create_runtime: vec![Hook { path: "/bin/false".into(), ..Hook::default() }], ..Hooks::default() });
    let error = bundle.try_run().unwrap_err();
    assert_eq!(error.step, "run createRuntime hook");
    bundle.assert_nothing_left();
}

#[test]
fn privileged_a_launch_that_fails_leaves_nothing() {
    let mut cases: Vec<(&str, Bundle)> = Vec::new();
    let mut add = |step, change: &dyn Fn(&mut Bundle)| {
        let mut bundle = Bundle::new("true");
        change(&mut bundle);
        cases.push((step, bundle));
    };
    add("open mount source", &|b| b.mount("/no/such/source".as_ref(), "/x", &[]));
    add("mount", &|b| b.mount("/etc/passwd".as_ref(), "/bin", &[]));
    add("set filesystem option", &|b| b.spec.mounts.push(crate::harness::filesystem("tmpfs", "/x", "nonsense=1")));
    add("create filesystem for", &|b| b.spec.mounts.push(crate::harness::filesystem("nosuchfs", "/x", "")));
    add("set group", &|b| b.process().user.gid = u32::MAX);
    add("change to working directory", &|b| b.process().cwd = "/etc/passwd".into());
    add("read spec", &|b| b.spec.root = None);
    add("open root filesystem", &|b| b.spec.root.as_mut().unwrap().path = "/no/such".into());
    add("read namespaces", &|b| b.linux().namespaces.retain(|n| n.kind != keelson_shim::spec::NamespaceKind::Mount));
    add("open namespace", &|b| b.linux().namespaces[1].path = "/etc/passwd".into());
    add("set resource limit", &|b| {
        b.process().rlimits = vec![keelson_shim::spec::Rlimit { kind: "RLIMIT_X".into(), soft: 1, hard: 1 }];
    });
    for (step, bundle) in cases {
        let error = bundle.try_run().expect_err(step);
        assert_eq!(error.step, step, "{error}");
        bundle.assert_nothing_left();
    }
}
