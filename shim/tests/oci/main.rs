//! The OCI command line as an engine uses it: one program per verb, a bundle of a busybox root, a real cgroup.
//! Each test owns its bundle, its root folder and its cgroup name, and says at its end that nothing is left.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod bundle;

use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use bundle::{Bundle, Options, within};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use serde_json::{Value, json};

#[test]
fn privileged_create_start_state_kill_delete() {
    let bundle = Bundle::new(&Options::shell("echo running; exec sleep 1000"));
    let pid_file = bundle.path("pid");
    bundle.ok(&["create", "--bundle", &bundle.text("bundle"), "--pid-file", &bundle.text("pid"), "c"]);
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let state = bundle.state("c");
    assert_eq!((state["status"].as_str(), state["pid"].as_i64()), (Some("created"), Some(pid.into())));
    assert_eq!(state["annotations"]["org.test"], "yes");
    assert_eq!(bundle.output(), "", "nothing runs before start");
    bundle.ok(&["start", "c"]);
    assert_eq!(bundle.state("c")["status"], "running");
    assert!(within(Duration::from_secs(5), || bundle.output() == "running\n"));
    let refused = bundle.fails(&["delete", "c"]);
    assert!(refused.contains("it is running"), "{refused}");
    assert!(bundle.fails(&["start", "c"]).contains("it is running"));
    assert!(bundle.fails(&["create", "--bundle", &bundle.text("bundle"), "c"]).contains("exists already"));
    bundle.ok(&["kill", "c", "KILL"]);
    assert!(within(Duration::from_secs(5), || bundle.state("c")["status"] == "stopped"));
    assert_eq!(bundle.state("c")["pid"], 0);
    assert!(bundle.fails(&["kill", "c", "TERM"]).contains("container not running"));
    bundle.ok(&["delete", "c"]);
    for command in [&["state", "c"][..], &["kill", "c"], &["delete", "c"], &["start", "c"], &["exec", "c", "true"]] {
        assert!(bundle.fails(command).contains("does not exist"), "{command:?}");
    }
    bundle.ok(&["delete", "--force", "c"]);
    bundle.assert_gone();
}

#[test]
fn privileged_the_program_runs_from_nothing_of_the_hosts_and_sees_no_descriptor_of_ours() {
    let bundle = Bundle::new(&Options::shell("readlink /proc/1/exe; ls /proc/self/fd | tr '\\n' ' '; exec sleep 1000"));
    let own = std::fs::read(env!("CARGO_BIN_EXE_keelson-shim")).unwrap();
    bundle.create("c");
    let pid = bundle.state("c")["pid"].as_i64().unwrap();
    // What the waiting init runs from, held on to until nothing executes it any more.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let exe = rustix::fs::open(format!("/proc/{pid}/exe"), flags, Mode::empty()).unwrap();
    bundle.ok(&["start", "c"]);
    // 3 is the folder that ls itself reads.
    assert!(within(Duration::from_secs(5), || bundle.output().ends_with("0 1 2 3 ")), "{}", bundle.output());
    bundle.ok(&["delete", "-f", "c"]);
    let read_only = rustix::fs::fstatvfs(&exe).unwrap().f_flag.contains(StatVfsMountFlags::RDONLY);
    assert!(read_only || keelson_sys::memfd::is_sealed(&exe));
    // Busy: other tests run the same program now.
    let path = format!("/proc/self/fd/{}", exe.as_raw_fd());
    let refused = std::fs::File::options().write(true).open(path).unwrap_err().kind();
    let kinds = [ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied, ErrorKind::ExecutableFileBusy];
    assert!(kinds.contains(&refused), "{refused}");

    // A program that is our own file is a sealed copy of it. (It runs only where it is static; the copy is what counts.)
    let args = vec!["/proc/self/exe".into(), "--version".into()];
    let bundle = Bundle::new(&Options { args, ..Options::shell("") });
    let ran = bundle.command(&["run", "--bundle", &bundle.text("bundle"), "c"]).status().unwrap();
    assert_eq!(ran.success(), bundle.output().starts_with("keelson-shim "));
    assert!(own == std::fs::read(env!("CARGO_BIN_EXE_keelson-shim")).unwrap());
    bundle.assert_gone();
}

#[test]
fn privileged_run_returns_the_exit_code_and_cleans_up() {
    let bundle = Bundle::new(&Options::shell("echo out; exit 42"));
    let output = bundle.command(&["run", "--bundle", &bundle.text("bundle"), "c"]).status().unwrap();
    assert_eq!((output.code(), bundle.output().as_str()), (Some(42), "out\n"));
    bundle.assert_gone();
    let bundle = Bundle::new(&Options { args: vec!["/missing".into()], ..Options::shell("") });
    let error = bundle.fails(&["run", "--bundle", &bundle.text("bundle"), "c"]);
    assert!(error.contains("/missing") && error.contains("No such file or directory"), "{error}");
    bundle.assert_gone();
}

#[test]
fn privileged_run_passes_signals_on() {
    let bundle = Bundle::new(&Options::shell("trap 'exit 9' TERM; echo ready; while true; do sleep 0.02; done"));
    let mut run = bundle.command(&["run", "--bundle", &bundle.text("bundle"), "c"]).spawn().unwrap();
    assert!(within(Duration::from_secs(5), || bundle.output() == "ready\n"));
    rustix::process::kill_process(rustix::process::Pid::from_child(&run), rustix::process::Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(9));
    bundle.assert_gone();
}

#[test]
fn privileged_exec_in_the_foreground_detached_and_by_file() {
    let bundle = Bundle::new(&Options::shell("exec sleep 1000"));
    bundle.create("c");
    assert!(bundle.fails(&["exec", "c", "true"]).contains("not running"));
    bundle.ok(&["start", "c"]);
    let output = bundle.pipe(&[
        "exec",
        "-e",
        "X=y",
        "--cwd",
        "/tmp",
        "-u",
        "5:6",
        "c",
        "sh",
        "-c",
        "echo $X $(pwd) $(id -u):$(id -g); exit 3",
    ]);
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()), (Some(3), "y /tmp 5:6\n"));
    let process = json!({ "args": ["/bin/sh", "-c", "echo $$ > /tmp/pid; exec sleep 1000"], "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
    std::fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    bundle.ok(&[
        "exec",
        "--detach",
        "--process",
        &bundle.text("process.json"),
        "--pid-file",
        &bundle.text("exec-pid"),
        "c",
    ]);
    let pid: i32 = std::fs::read_to_string(bundle.path("exec-pid")).unwrap().parse().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    let pids: Value = serde_json::from_slice(&bundle.pipe(&["ps", "--format", "json", "c"]).stdout).unwrap();
    assert!(pids.as_array().unwrap().iter().any(|found| found.as_i64() == Some(pid.into())), "{pids}");
    assert!(bundle.fails(&["exec", "c", "/missing"]).contains("/missing"));
    assert!(bundle.fails(&["exec", "-u", "0x0", "c", "true"]).contains("0x0"));
    bundle.ok(&["delete", "--force", "c"]);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    bundle.assert_gone();
}

#[test]
fn privileged_a_terminal_is_handed_to_the_console_socket() {
    let bundle = Bundle::new(&Options { terminal: true, ..Options::shell("test -t 0 && echo tty; exec sleep 1000") });
    assert!(bundle.fails(&["create", "--bundle", &bundle.text("bundle"), "c"]).contains("--console-socket"));
    let listener = UnixListener::bind(bundle.path("console")).unwrap();
    bundle.ok(&["create", "--bundle", &bundle.text("bundle"), "--console-socket", &bundle.text("console"), "c"]);
    let mut master = std::fs::File::from(receive(&listener));
    bundle.ok(&["start", "c"]);
    let mut text = [0; 5];
    master.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"tty\r\n");
    bundle.ok(&["delete", "--force", "c"]);
    bundle.assert_gone();
}

#[test]
fn privileged_a_failed_create_leaves_nothing_and_logs_json() {
    let bundle = Bundle::new(&Options { extra_mount: Some("/no/such/source"), ..Options::shell("true") });
    let error = bundle.fails(&["create", "--bundle", &bundle.text("bundle"), "c"]);
    assert!(error.contains("/no/such/source"), "{error}");
    let log = std::fs::read_to_string(bundle.path("log")).unwrap();
    let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("/no/such/source"));
    assert!(bundle.fails(&["create", "--bundle", "/no/such/bundle", "c"]).contains("/no/such/bundle"));
    assert!(bundle.fails(&["create", "--bundle", &bundle.text("bundle"), "../c"]).contains("container id"));
    bundle.assert_gone();
}

#[test]
fn privileged_a_created_container_is_deleted_and_a_killed_create_can_be_forced_away() {
    let bundle = Bundle::new(&Options::shell("echo never"));
    bundle.create("c");
    bundle.ok(&["delete", "c"]);
    std::fs::create_dir_all(bundle.path("root/half")).unwrap();
    bundle.fails(&["delete", "half"]);
    bundle.ok(&["delete", "--force", "half"]);
    assert_eq!(bundle.output(), "");
    bundle.assert_gone();
}

#[test]
fn privileged_list_pause_resume_update() {
    let bundle = Bundle::new(&Options::shell("while true; do echo x; sleep 0.02; done"));
    bundle.create("one");
    bundle.ok(&["start", "one"]);
    let listed: Value = serde_json::from_slice(&bundle.pipe(&["list", "--format", "json"]).stdout).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), listed[0]["id"].as_str()), (1, Some("one")));
    assert_eq!(bundle.pipe(&["list", "-q"]).stdout, b"one\n");
    assert!(within(Duration::from_secs(5), || !bundle.output().is_empty()));
    bundle.ok(&["pause", "one"]);
    let paused = bundle.output().len();
    assert!(!within(Duration::from_millis(200), || bundle.output().len() > paused + 2));
    bundle.ok(&["resume", "one"]);
    assert!(within(Duration::from_secs(5), || bundle.output().len() > paused + 2));
    std::fs::write(bundle.path("resources.json"), r#"{"pids":{"limit":17}}"#).unwrap();
    bundle.ok(&["update", "--resources", &bundle.text("resources.json"), "one"]);
    assert!(bundle.cgroup_file("pids.max").is_some_and(|text| text.trim() == "17"));
    bundle.ok(&["delete", "--force", "one"]);
    bundle.assert_gone();
}

#[test]
fn privileged_hooks_run_at_their_points_and_in_their_places() {
    let witness = tempfile::tempdir().unwrap();
    let hook = |shell: &str, line: &str| json!([{ "path": shell, "args": ["sh", "-c", line] }]);
    let outside = |name: &str| hook("/bin/sh", &format!("cat > {}/{name}", witness.path().display()));
    let hooks = json!({
        "createRuntime": outside("createRuntime"),
        "startContainer": hook("/bin/sh", "echo inside > /tmp/startContainer"),
        "poststart": outside("poststart"),
        "poststop": outside("poststop"),
    });
    let bundle = Bundle::new(&Options { hooks, ..Options::shell("test -e /tmp/startContainer && exec sleep 1000") });
    let status = |name: &str| {
        let text = std::fs::read(witness.path().join(name)).unwrap_or_default();
        serde_json::from_slice::<Value>(&text).ok().map(|state| state["status"].clone())
    };
    bundle.create("c");
    assert_eq!((status("createRuntime"), status("poststart")), (Some("creating".into()), None));
    assert!(!bundle.path("bundle/rootfs/tmp/startContainer").exists());
    bundle.ok(&["start", "c"]);
    assert!(bundle.path("bundle/rootfs/tmp/startContainer").exists());
    assert_eq!((status("poststart"), status("poststop")), (Some("running".into()), None));
    assert_eq!(bundle.state("c")["status"], "running");
    bundle.ok(&["delete", "--force", "c"]);
    assert_eq!(status("poststop"), Some("stopped".into()));
    bundle.assert_gone();
}

#[test]
fn features_are_json_and_the_version_names_the_specification() {
    let bundle = Bundle::new(&Options::shell("true"));
    let features: Value = serde_json::from_slice(&bundle.pipe(&["features"]).stdout).unwrap();
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    let version = bundle.pipe(&["--version"]).stdout;
    assert!(String::from_utf8(version).unwrap().contains("\nspec: 1."));
    for command in [&["nonsense"][..], &["create", "--nonsense", "c"], &["kill"], &["start"]] {
        assert!(!bundle.fails(command).is_empty(), "{command:?}");
    }
}

fn receive(listener: &UnixListener) -> OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let (socket, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 64];
    let mut parts = [std::io::IoSliceMut::new(&mut data)];
    let got = rustix::net::recvmsg(socket.as_fd(), &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert!(got.bytes > 0);
    let received = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    received.unwrap()
}
