//! A bundle, a runtime root, and the command line called with both.
//! The container's standard streams are a file: its lines are what a test reads.
//! Owns a temporary folder and a cgroup name.
//! Must never touch what it did not make.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Bundle {
    folder: tempfile::TempDir,
    cgroup: String,
}

pub(crate) struct Options {
    pub(crate) args: Vec<String>,
    pub(crate) terminal: bool,
    /// The source of a bind mount.
    pub(crate) extra_mount: Option<&'static str>,
    pub(crate) hooks: Value,
}

impl Options {
    pub(crate) fn shell(script: &str) -> Options {
        Options {
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            terminal: false,
            extra_mount: None,
            hooks: json!({}),
        }
    }
}

/// Whether `condition` comes true within `patience`.
pub(crate) fn within(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < patience {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    condition()
}

impl Bundle {
    pub(crate) fn new(options: &Options) -> Bundle {
        let folder = tempfile::tempdir().unwrap();
        let cgroup = format!("/keelson-oci-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let rootfs = folder.path().join("bundle/rootfs");
        for name in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
            std::fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox (package busybox-static)");
        for applet in ["sh", "sleep", "ls", "tr", "true", "id", "test", "pwd", "readlink"] {
            std::fs::hard_link(rootfs.join("bin/busybox"), rootfs.join("bin").join(applet)).unwrap();
        }
        std::fs::write(folder.path().join("bundle/config.json"), spec(options, &cgroup).to_string()).unwrap();
        std::fs::write(folder.path().join("output"), "").unwrap();
        Bundle { folder, cgroup }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A call whose standard output is the output file.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let output = std::fs::File::options().append(true).open(self.path("output")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_keelson-shim"));
        command.args(["oci", "--root", &self.text("root"), "--log", &self.text("log"), "--log-format", "json"]);
        command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(Stdio::null());
        command
    }

    pub(crate) fn ok(&self, arguments: &[&str]) {
        let status = self.command(arguments).status().unwrap();
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        assert!(status.success(), "{arguments:?}: {status}: {log}");
    }

    /// The error of a call that must fail.
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        let error = std::fs::File::create(self.path("error")).unwrap();
        let status = self.command(arguments).stderr(error).status().unwrap();
        assert_eq!(status.code(), Some(1), "{arguments:?}");
        std::fs::read_to_string(self.path("error")).unwrap()
    }

    /// A call that leaves nothing running, with its own output.
    pub(crate) fn pipe(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdout(Stdio::piped()).output().unwrap()
    }

    pub(crate) fn create(&self, id: &str) {
        self.ok(&["create", "--bundle", &self.text("bundle"), id]);
    }

    pub(crate) fn state(&self, id: &str) -> Value {
        serde_json::from_slice(&self.pipe(&["state", id]).stdout).unwrap()
    }

    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(self.path("output")).unwrap()
    }

    pub(crate) fn cgroup_file(&self, name: &str) -> Option<String> {
        self.cgroups().iter().find_map(|folder| std::fs::read_to_string(folder.join(name)).ok())
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let below = std::fs::read_dir(root).unwrap().flatten().map(|entry| entry.path());
        let all = below.chain([root.to_owned()]).map(|path| path.join(self.cgroup.trim_start_matches('/')));
        all.filter(|path| path.exists()).collect()
    }

    pub(crate) fn assert_gone(&self) {
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        let left: Vec<_> = std::fs::read_dir(self.path("root")).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.folder.path().to_str().unwrap()), "{mounts}");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // A test that failed half-way.
        for entry in std::fs::read_dir(self.path("root")).into_iter().flatten().flatten() {
            let _ = self.command(&["delete", "--force", &entry.file_name().to_string_lossy()]).status();
        }
    }
}

fn spec(options: &Options, cgroup: &str) -> Value {
    let namespaces: Vec<Value> =
        ["pid", "mount", "ipc", "uts", "network"].iter().map(|kind| json!({ "type": kind })).collect();
    let capabilities = json!(["CAP_KILL", "CAP_SETUID", "CAP_SETGID"]);
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
    ];
    mounts.extend(options.extra_mount.map(|source| mount("/mnt", "bind", source, &["bind"])));
    json!({
        "ociVersion": "1.2.0",
        "annotations": { "org.test": "yes" },
        "process": {
            "terminal": options.terminal,
            "user": { "uid": 0, "gid": 0 },
            "args": options.args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs" },
        "hostname": "test",
        "hooks": options.hooks,
        "mounts": mounts,
        "linux": { "namespaces": namespaces, "cgroupsPath": cgroup },
    })
}
