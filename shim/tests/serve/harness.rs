//! A shim, its run directory, its container, and the questions a test asks about them.
//! The test's process plays the daemon; busybox (Debian's busybox-static) is the container's whole root filesystem.
//! Owns a temporary folder, a cgroup name and a shim process; all are gone when a test's container says so.
//! Must never touch what it did not make.

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use keelson_api::ExitRecord;
use keelson_api::shim::{self, Call, Launch, Outcome, Reply, Request, Start, State, Stop, frame};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

static NUMBER: AtomicU32 = AtomicU32::new(0);
const PATIENCE: Duration = Duration::from_secs(20);

/// A shim and the test's connection to it.
pub(crate) struct Node {
    folder: tempfile::TempDir,
    shim: Child,
    daemon: Option<UnixStream>,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    seq: u64,
}

/// A node with a launched container.
pub(crate) struct Container {
    pub(crate) node: Node,
    cgroup: String,
}

pub(crate) struct LaunchOptions {
    pub(crate) args: Vec<String>,
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) builtin_init: bool,
    pub(crate) pid_namespace: bool,
    pub(crate) user: u32,
    pub(crate) memory: Option<u64>,
    /// The program of another OCI runtime, and options for it.
    pub(crate) handler: Option<(String, Vec<String>)>,
}

impl LaunchOptions {
    pub(crate) fn shell(script: &str) -> LaunchOptions {
        LaunchOptions {
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            terminal: false,
            stdin: false,
            stdin_once: false,
            builtin_init: false,
            pid_namespace: true,
            user: 0,
            memory: None,
            handler: None,
        }
    }
}

/// Whether `condition` comes true within `patience`.
pub(crate) fn kept_within(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < patience {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    condition()
}

pub(crate) fn exec_id() -> String {
    format!("{:016x}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl Node {
    pub(crate) fn new() -> Node {
        let folder = tempfile::tempdir().unwrap();
        let (daemon, theirs) = UnixStream::pair().unwrap();
        daemon.set_read_timeout(Some(PATIENCE)).unwrap();
        let shim = Command::new(env!("CARGO_BIN_EXE_keelson-shim"))
            .args(["serve", "--id", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"])
            .current_dir(folder.path())
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("shim.log")).unwrap())
            .spawn()
            .unwrap();
        Node { folder, shim, daemon: Some(daemon), input: Vec::new(), fds: Vec::new(), seq: 0 }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn send(&mut self, call: Call) -> u64 {
        self.seq += 1;
        let request = Request { seq: self.seq, call: Some(call) };
        self.daemon.as_mut().unwrap().write_all(&frame::encode(&request)).unwrap();
        self.seq
    }

    pub(crate) fn receive(&mut self) -> (u64, Outcome) {
        loop {
            if let Some((reply, used)) = frame::decode::<Reply>(&self.input).unwrap() {
                self.input.drain(..used);
                return (reply.seq, reply.outcome.unwrap());
            }
            let mut chunk = vec![0; 1 << 20];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let socket = self.daemon.as_ref().unwrap();
            let mut parts = [std::io::IoSliceMut::new(&mut chunk)];
            let got = rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
            assert!(got.bytes > 0, "the shim hung up; its log: {}", self.file("shim.log"));
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.fds.extend(fds);
                }
            }
            self.input.extend_from_slice(&chunk[..got.bytes]);
        }
    }

    /// The reply with this number; it must be the next.
    pub(crate) fn receive_of(&mut self, seq: u64) -> Outcome {
        let (replied, outcome) = self.receive();
        assert_eq!(replied, seq, "{outcome:?}");
        outcome
    }

    /// The descriptors that have come.
    pub(crate) fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }

    pub(crate) fn call(&mut self, call: Call) -> Outcome {
        let seq = self.send(call);
        let (replied, outcome) = self.receive();
        assert_eq!(replied, seq);
        outcome
    }

    /// As if the daemon had been killed.
    pub(crate) fn hang_up(&mut self) {
        self.daemon = None;
        self.input.clear();
    }

    /// A further connection, by the socket in the run directory.
    pub(crate) fn connect(&self) -> UnixStream {
        let folder = std::fs::File::open(self.folder.path()).unwrap();
        let socket =
            UnixStream::connect(format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), shim::SOCKET_FILE)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    pub(crate) fn reconnect(&mut self) {
        self.daemon = Some(self.connect());
    }

    /// Asks the shim itself to end, as an impatient operator might. It must not.
    pub(crate) fn terminate_shim(&self) {
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP] {
            rustix::process::kill_process(self.pid(), signal).unwrap();
        }
    }

    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.shim)
    }

    pub(crate) fn resident_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.shim.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.shim.id())).unwrap().count()
    }

    /// Expects a complaint in the shim's own log, and takes it out.
    pub(crate) fn forgive(&self, complaint: &str) {
        assert!(self.file("shim.log").contains(complaint));
        std::fs::File::options().write(true).open(self.path("shim.log")).unwrap().set_len(0).unwrap();
    }

    pub(crate) fn assert_ended(&mut self) {
        let shim = &mut self.shim;
        assert!(kept_within(PATIENCE, || shim.try_wait().unwrap().is_some()), "the shim does not end");
        assert!(self.shim.wait().unwrap().success(), "{}", self.file("shim.log"));
        assert_eq!(self.file("shim.log"), "", "the shim had reason to complain");
    }
}

impl Container {
    pub(crate) fn launch(options: &LaunchOptions) -> Container {
        let mut node = Node::new();
        let cgroup = format!("/keelson-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let rootfs = node.path("rootfs");
        busybox_root(&rootfs);
        let spec = serde_json::to_vec(&spec(options, &rootfs, &cgroup)).unwrap();
        std::fs::write(node.path(shim::SPEC_FILE), &spec).unwrap();
        let launch = Launch {
            spec,
            stdio: Some(shim::Stdio {
                log_path: node.path("logs/0.log").to_str().unwrap().to_owned(),
                stdin: options.stdin,
                stdin_once: options.stdin_once,
                terminal: options.terminal,
                ..shim::Stdio::default()
            }),
            builtin_init: options.builtin_init,
            handler: options.handler.as_ref().map(|(program, options)| shim::Handler {
                name: "other".to_owned(),
                program: program.clone(),
                options: options.clone(),
                root: node.path("runtime").to_str().unwrap().to_owned(),
                ..Default::default()
            }),
            ..Launch::default()
        };
        match node.call(Call::Launch(launch)) {
            Outcome::State(state) => assert_eq!(state.protocol, shim::PROTOCOL),
            other => panic!("{other:?}; {}", node.file("shim.log")),
        }
        Container { node, cgroup }
    }

    pub(crate) fn start(&mut self) {
        match self.call(Call::Start(Start {})) {
            Outcome::State(state) => assert!(state.phase() == shim::Phase::Running && state.started_at > 0),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn send(&mut self, call: Call) -> u64 {
        self.node.send(call)
    }

    pub(crate) fn call(&mut self, call: Call) -> Outcome {
        self.node.call(call)
    }

    pub(crate) fn collect(&mut self, count: usize) -> Vec<(u64, Outcome)> {
        (0..count).map(|_| self.node.receive()).collect()
    }

    pub(crate) fn state(&mut self) -> State {
        match self.call(Call::State(shim::GetState {})) {
            Outcome::State(state) => state,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the shim's end and returns what it wrote.
    pub(crate) fn wait(&mut self) -> ExitRecord {
        self.node.assert_ended();
        self.exit_record()
    }

    pub(crate) fn exit_record(&self) -> ExitRecord {
        serde_json::from_str(&self.node.file(ExitRecord::FILE)).unwrap()
    }

    pub(crate) fn stop_now(&mut self) {
        let outcome = self.call(Call::Stop(Stop { signal: 15, grace_ms: 0 }));
        assert!(matches!(outcome, Outcome::Exited(_)), "{outcome:?}");
        self.wait();
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.node.path("logs/0.log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap()
    }

    pub(crate) fn await_log(&self, text: &str) {
        assert!(kept_within(PATIENCE, || self.log().contains(text)), "{}", self.log());
    }

    /// Whether a process of the container runs this command line (without its spaces).
    pub(crate) fn runs(&self, command: &str) -> bool {
        let Ok(found) = std::fs::read_dir("/proc") else { return false };
        found.flatten().any(|entry| {
            let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line: Vec<u8> = line.into_iter().filter(|byte| *byte != 0).collect();
            let ours =
                cgroup.lines().any(|line| line.contains(&format!("{}/", self.cgroup)) || line.ends_with(&self.cgroup));
            ours && String::from_utf8_lossy(&line).ends_with(command)
        })
    }

    /// Cgroups of execs that are still there.
    pub(crate) fn leaves(&self) -> usize {
        let folders = self.cgroups();
        folders
            .iter()
            .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .count()
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let below = std::fs::read_dir(root).unwrap().flatten().map(|entry| entry.path());
        let all = below.chain([root.to_owned()]).map(|path| path.join(self.cgroup.trim_start_matches('/')));
        all.filter(|path| path.exists()).collect()
    }

    pub(crate) fn assert_gone(&self) {
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.node.folder.path().to_str().unwrap()), "{mounts}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A test that failed half-way: the shim's container goes with a Delete, or with the shim.
        if self.shim.try_wait().unwrap().is_none() {
            if let Ok(mut socket) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.connect())) {
                let _ =
                    socket.write_all(&frame::encode(&Request { seq: 1, call: Some(Call::Delete(shim::Delete {})) }));
            }
            if !kept_within(Duration::from_secs(3), || self.shim.try_wait().unwrap().is_some()) {
                let _ = self.shim.kill();
                let _ = self.shim.wait();
            }
        }
    }
}

/// A root filesystem of busybox alone.
pub(crate) fn busybox_root(rootfs: &Path) {
    for folder in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
        std::fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox (package busybox-static)");
    for applet in [
        "sh", "sleep", "echo", "head", "tail", "tr", "cat", "true", "setsid", "kill", "test", "id", "ls", "stty",
        "yes", "env",
    ] {
        std::fs::hard_link(rootfs.join("bin/busybox"), rootfs.join("bin").join(applet)).unwrap();
    }
}

/// A specification that such a root filesystem can run.
pub(crate) fn spec(options: &LaunchOptions, rootfs: &Path, cgroup: &str) -> Value {
    let mut namespaces = vec!["mount", "ipc", "uts", "network"];
    if options.pid_namespace {
        namespaces.push("pid");
    }
    let namespaces: Vec<Value> = namespaces.into_iter().map(|kind| json!({ "type": kind })).collect();
    let capabilities = json!(["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"]);
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let mut resources = json!({});
    if let Some(limit) = options.memory {
        resources["memory"] = json!({ "limit": limit, "swap": limit });
    }
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": options.terminal,
            "user": { "uid": options.user, "gid": options.user },
            "args": options.args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": true,
        },
        "root": { "path": rootfs },
        "hostname": "test",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        ],
        "linux": { "namespaces": namespaces, "cgroupsPath": cgroup, "resources": resources },
    })
}
