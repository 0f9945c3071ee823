//! A container for one test.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, Ordering};

use keelson_shim::launch::{
    self, ChildStdio, CreateRequest, Created, ExecRequest, ExecTarget, Gate, ImageVolume, LaunchError, OverlayRootfs,
};
use keelson_shim::spec::{Capabilities, Linux, Mount, Namespace, NamespaceKind, Process, Root, Spec, User};
use keelson_sys::pidfd::{self, Exit};

pub(crate) const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &str = "sh cat id ls echo grep hostname mount umount stat touch test sleep env head true false ps readlink tr wc \
                       mkdir mknod chroot sort pwd tty stty dd kill rm ln uname date seq printf";

/// Read while a child of this process may hold copies of its descriptors, written while a program is: or its exec is ETXTBSY.
static CLONES: RwLock<()> = RwLock::new(());

/// Folders of one container, gone with it.
pub(crate) struct Bundle {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) id: String,
    pub(crate) spec: Spec,
    pub(crate) overlay: Option<OverlayRootfs>,
    pub(crate) volumes: Vec<String>,
    pub(crate) image_volumes: Vec<ImageVolume>,
    pub(crate) resolved_sources: Vec<String>,
    pub(crate) builtin_init: bool,
    pub(crate) clamp_oom_score: bool,
}

/// A process's whole output and end.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) exit: Exit,
}

impl Bundle {
    /// A container that runs a shell script as root with the usual mounts.
    pub(crate) fn new(script: &str) -> Bundle {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::Builder::new().prefix("keelson-launch-").tempdir().expect("temporary folder");
        let id = format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let rootfs = folder.path().join("rootfs");
        make_rootfs(&rootfs);
        let spec = Spec {
            process: Some(process(&["/bin/sh", "-c", script])),
            root: Some(Root { path: "rootfs".into(), readonly: false }),
            mounts: usual_mounts(),
            linux: Some(Linux {
                namespaces: [
                    NamespaceKind::Pid,
                    NamespaceKind::Network,
                    NamespaceKind::Mount,
                    NamespaceKind::Ipc,
                    NamespaceKind::Uts,
                    NamespaceKind::Cgroup,
                ]
                .map(|kind| Namespace { kind, path: String::new() })
                .to_vec(),
                cgroups_path: format!("/keelson-launch-{id}"),
                ..Linux::default()
            }),
            ..Spec::default()
        };
        Bundle {
            folder,
            id,
            spec,
            overlay: None,
            volumes: Vec::new(),
            image_volumes: Vec::new(),
            resolved_sources: Vec::new(),
            builtin_init: false,
            clamp_oom_score: true,
        }
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.folder.path().join("rootfs")
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        self.spec.process.as_mut().expect("a process")
    }

    pub(crate) fn linux(&mut self) -> &mut Linux {
        self.spec.linux.as_mut().expect("a linux part")
    }

    pub(crate) fn mount(&mut self, source: &Path, destination: &str, options: &[&str]) {
        self.spec.mounts.push(bind(source, destination, options));
    }

    /// Gives the container an overlay over its root filesystem instead of the folder itself.
    pub(crate) fn use_overlay(&mut self) {
        let path = self.folder.path();
        for name in ["upper", "work", "lower2"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        fs::write(path.join("lower2/from-below"), "below").unwrap();
        self.overlay = Some(OverlayRootfs {
            lower: vec![path.join("rootfs"), path.join("lower2")],
            upper: path.join("upper"),
            work: path.join("work"),
            volatile: false,
            idmapped: false,
        });
    }

    pub(crate) fn create_with(&self, stdio: ChildStdio, gate: Gate) -> Result<Created, LaunchError> {
        let _shared = CLONES.read();
        launch::create(CreateRequest {
            id: &self.id,
            bundle: self.folder.path(),
            spec: &self.spec,
            env: None,
            overlay: self.overlay.as_ref(),
            volumes: &self.volumes,
            image_volumes: &self.image_volumes,
            resolved_sources: &self.resolved_sources,
            seccomp: None,
            systemd_cgroup: false,
            builtin_init: self.builtin_init,
            clamp_oom_score: self.clamp_oom_score,
            no_pivot: false,
            stdio,
            gate,
        })
    }

    pub(crate) fn create(&self) -> Result<(Created, Output), LaunchError> {
        let (stdio, output) = pipes();
        Ok((self.create_with(stdio, Gate::Creator)?, output))
    }

    /// To the end of the init.
    pub(crate) fn try_run(&self) -> Result<Ended, LaunchError> {
        let (mut created, output) = self.create()?;
        let started = created.start();
        let (out, err) = output.read();
        let exit = pidfd::wait(&created.pidfd).expect("reap");
        self.clean(&created);
        started.map(|()| Ended { out, err, exit })
    }

    pub(crate) fn run(&self) -> Ended {
        self.try_run().unwrap_or_else(|error| panic!("{error}"))
    }

    /// What the script printed; it must have succeeded.
    pub(crate) fn output(&self) -> String {
        let ended = self.run();
        assert_eq!(ended.exit, Exit::Code(0), "{ended:?}");
        ended.out
    }

    /// Takes away what is left and checks that nothing is.
    pub(crate) fn clean(&self, created: &Created) {
        created.cgroup.kill().expect("kill cgroup");
        created.cgroup.remove().expect("remove cgroup");
        self.assert_nothing_left();
    }

    pub(crate) fn assert_nothing_left(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.folder.path().to_str().unwrap()), "mounts left: {mounts}");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let path = hierarchy.path().join(format!("keelson-launch-{}", self.id));
            assert!(!path.exists(), "cgroup left: {}", path.display());
        }
        assert!(!Path::new(&format!("/sys/fs/cgroup/keelson-launch-{}", self.id)).exists());
    }
}

impl Drop for Bundle {
    /// After a failed test: whatever still runs is killed and its cgroup removed.
    fn drop(&mut self) {
        let paths = keelson_shim::cgroup::Paths { path: format!("/keelson-launch-{}", self.id), scope: None };
        if let Ok(handle) = keelson_shim::cgroup::Handle::open(&paths) {
            let _ = handle.kill();
            let _ = handle.remove();
        }
    }
}

/// The reading ends of a process's output.
pub(crate) struct Output {
    out: std::io::PipeReader,
    err: std::io::PipeReader,
}

impl Output {
    pub(crate) fn read(mut self) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        self.out.read_to_end(&mut out).unwrap();
        self.err.read_to_end(&mut err).unwrap();
        (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned())
    }
}

pub(crate) fn pipes() -> (ChildStdio, Output) {
    let (out, stdout) = std::io::pipe().unwrap();
    let (err, stderr) = std::io::pipe().unwrap();
    let stdin = OwnedFd::from(fs::File::open("/dev/null").unwrap());
    (ChildStdio::Fds { stdin, stdout: stdout.into(), stderr: stderr.into() }, Output { out, err })
}

/// A container that runs until it is told to end, with what is needed to execute in it.
pub(crate) struct Running<'a> {
    pub(crate) bundle: &'a Bundle,
    pub(crate) created: Created,
    pub(crate) target: ExecTarget,
}

impl<'a> Running<'a> {
    pub(crate) fn start(bundle: &'a Bundle) -> Running<'a> {
        let (mut created, _output) = bundle.create().unwrap_or_else(|error| panic!("{error}"));
        let target = created.exec_target(&bundle.spec).unwrap_or_else(|error| panic!("{error}"));
        created.start().unwrap_or_else(|error| panic!("{error}"));
        Running { bundle, created, target }
    }

    pub(crate) fn exec(&self, process: &Process) -> Result<Ended, LaunchError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (stdio, output) = pipes();
        let exec_id = format!("e{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let execed = {
            let _shared = CLONES.read();
            launch::exec(ExecRequest {
                target: &self.target,
                process,
                env: None,
                exec_id: &exec_id,
                seccomp: None,
                clamp_oom_score: true,
                stdio,
            })?
        };
        let (out, err) = output.read();
        let exit = pidfd::wait(&execed.pidfd).expect("reap");
        execed.leaf.remove().expect("remove leaf");
        Ok(Ended { out, err, exit })
    }

    pub(crate) fn shell(&self, script: &str) -> String {
        let ended = self.exec(&process(&["/bin/sh", "-c", script])).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(ended.exit, Exit::Code(0), "{ended:?}");
        ended.out
    }

    pub(crate) fn end(self) {
        self.created.cgroup.kill().expect("kill cgroup");
        pidfd::wait(&self.created.pidfd).expect("reap");
        self.bundle.clean(&self.created);
    }
}

pub(crate) fn process(args: &[&str]) -> Process {
    Process {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/bin".into(), "TERM=xterm".into()],
        cwd: "/".into(),
        user: User::default(),
        capabilities: Some(all_but_dangerous()),
        ..Process::default()
    }
}

/// What container engines give by default.
pub(crate) fn all_but_dangerous() -> Capabilities {
    let names: Vec<String> =
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL"
            .split(' ')
            .map(|name| format!("CAP_{name}"))
            .collect();
    Capabilities { bounding: names.clone(), effective: names.clone(), permitted: names, ..Capabilities::default() }
}

pub(crate) fn bind(source: &Path, destination: &str, options: &[&str]) -> Mount {
    let options = ["rbind"].iter().chain(options).map(|option| (*option).to_owned()).collect();
    Mount {
        destination: destination.into(),
        kind: "bind".into(),
        source: source.display().to_string(),
        options,
        ..Mount::default()
    }
}

pub(crate) fn filesystem(kind: &str, destination: &str, options: &str) -> Mount {
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    Mount { destination: destination.into(), kind: kind.into(), source: kind.into(), options, ..Mount::default() }
}

pub(crate) fn usual_mounts() -> Vec<Mount> {
    vec![
        filesystem("proc", "/proc", "nosuid,noexec,nodev"),
        filesystem("tmpfs", "/dev", "nosuid,strictatime,mode=755,size=65536k"),
        filesystem("devpts", "/dev/pts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        filesystem("tmpfs", "/dev/shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        filesystem("mqueue", "/dev/mqueue", "nosuid,noexec,nodev"),
        filesystem("sysfs", "/sys", "nosuid,noexec,nodev,ro"),
        filesystem("cgroup", "/sys/fs/cgroup", "nosuid,noexec,nodev,relatime,ro"),
    ]
}

pub(crate) fn make_rootfs(rootfs: &Path) {
    for name in ["bin", "etc", "tmp"] {
        fs::create_dir_all(rootfs.join(name)).unwrap();
    }
    let busybox = rootfs.join("bin/busybox");
    {
        let _no_child_holds_it_open = CLONES.write();
        fs::copy(BUSYBOX, &busybox).expect("busybox-static is installed");
    }
    for applet in APPLETS.split_ascii_whitespace() {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
}

/// The lines of `/proc/self/mountinfo` as (mount point, options, filesystem type, root).
pub(crate) fn mount_lines(text: &str) -> Vec<(String, String, String, String)> {
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let fields: Vec<&str> = left.split(' ').collect();
            let kind = right.split(' ').next()?;
            Some((fields[4].to_owned(), fields[5..].join(" "), kind.to_owned(), fields[3].to_owned()))
        })
        .collect()
}
