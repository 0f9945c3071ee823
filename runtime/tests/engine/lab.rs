//! A place to run the engine in: folders, an image, a bridge of its own, and the audit at the end.
//! Test support; runs as root. Owns a temporary folder and everything whose name begins with its tag.
//! Must never look at, or clean up, anything it did not make.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use keelson_api::ContainerId;
use keelson_imageservice::{ImageConfig, ImportedImage};
use keelson_runtime::{
    container::{ContainerSpec, ContainerState, spec::ContainerKey, view::Exit},
    engine::{Engine, EngineConfig, OpenError},
    sandbox::{SandboxSpec, spec::SandboxKey},
};

const IMAGE: &str = "lab.test/busybox:1";
const DEADLINE: Duration = Duration::from_secs(20);

/// See the module.
pub(crate) struct Lab {
    folder: PathBuf,
    bridge: String,
    /// What of its names was there before, in each kind.
    before: [BTreeSet<String>; 2],
    _scratch: Option<tempfile::TempDir>,
}

/// A container that sleeps.
pub(crate) fn sleeper() -> ContainerSpec {
    let mut spec = shell("");
    spec.command = vec!["sleep".into(), "1000".into()];
    spec
}

/// A container that runs a script.
pub(crate) fn shell(script: &str) -> ContainerSpec {
    ContainerSpec {
        key: ContainerKey { name: "web".into(), attempt: 0 },
        image: IMAGE.into(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        log_path: "web/0.log".into(),
        ..Default::default()
    }
}

impl Lab {
    /// A new one, or why there can be none.
    pub(crate) async fn new(name: &str) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("not root".into());
        }
        if !Path::new("/bin/busybox").exists() {
            return Err("no /bin/busybox to make an image of".into());
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{:x}{}", std::process::id() & 0xfff_ffff, NUMBER.fetch_add(1, Ordering::Relaxed));
        let scratch = tempfile::Builder::new()
            .prefix(&format!("keelson-{name}-"))
            .tempdir()
            .map_err(|error| error.to_string())?;
        let folder = fs::canonicalize(scratch.path()).map_err(|error| error.to_string())?;
        let mut lab = Self { folder, bridge: format!("kt{tag}"), before: Default::default(), _scratch: Some(scratch) };
        lab.before = lab.census();
        fs::write(lab.folder.join("bridge"), &lab.bridge).map_err(|error| error.to_string())?;
        shim()?;
        Ok(lab)
    }

    /// What an engine on these folders is opened with.
    pub(crate) fn config(&self) -> EngineConfig {
        let root = self.folder.join("root");
        let images = keelson_imageservice::Config { root: root.clone(), ..Default::default() };
        let network = keelson_network::Config::new(root.join("network"), &self.bridge);
        let mut config = EngineConfig::new(root, self.folder.join("run"), shim().unwrap(), images);
        config.network = Some(network);
        config
    }

    /// An engine on these folders, with the image.
    pub(crate) async fn engine(&self) -> Engine {
        let engine = self.try_engine().await.unwrap();
        if engine.images().find(IMAGE).is_none() {
            let images = engine.images().clone();
            tokio::task::spawn_blocking(move || images.import(busybox()).unwrap()).await.unwrap();
        }
        engine
    }

    pub(crate) async fn try_engine(&self) -> Result<Engine, OpenError> {
        Engine::open(self.config()).await
    }

    /// A sandbox of this name.
    pub(crate) fn sandbox(&self, name: &str) -> SandboxSpec {
        SandboxSpec {
            key: SandboxKey {
                namespace: "lab".into(),
                name: name.into(),
                uid: format!("uid-{name}"),
                ..Default::default()
            },
            hostname: name.into(),
            log_directory: Some(self.folder.join("logs")),
            cgroup_parent: format!("/{}", self.bridge),
            ..Default::default()
        }
    }

    /// A folder of the test's own.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Waits until the log has a text.
    pub(crate) async fn log_has(&self, log: &str, text: &str) {
        let path = self.folder.join("logs").join(log);
        let end = Instant::now() + DEADLINE;
        loop {
            let content = fs::read_to_string(&path).unwrap_or_default();
            if content.contains(text) {
                return;
            }
            assert!(Instant::now() < end, "no `{text}` in {}: {content}", path.display());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The numbers of the lines `tick N` of a log.
    pub(crate) fn ticks(&self, log: &str) -> Vec<usize> {
        let content = fs::read_to_string(self.folder.join("logs").join(log)).unwrap();
        content.lines().filter_map(|line| line.split_once("tick ")?.1.parse().ok()).collect()
    }

    /// Waits for a container's end.
    pub(crate) async fn exit_of(&self, engine: &Engine, id: &ContainerId) -> Exit {
        let end = Instant::now() + DEADLINE;
        loop {
            if let ContainerState::Exited(exit) = &engine.find_container(id.as_str()).unwrap().state {
                return exit.clone();
            }
            assert!(Instant::now() < end, "{id} does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the engine; containers go on.
    pub(crate) async fn pause(&self, engine: Engine) {
        engine.drain().await;
        drop(engine);
    }

    /// Ends the engine and audits: nothing of ours is left.
    pub(crate) async fn end(self, engine: Engine) {
        assert!(engine.sandboxes().is_empty() && engine.containers().is_empty());
        self.pause(engine).await;
        let end = Instant::now() + DEADLINE;
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left behind: {left:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts an engine in a process of its own, waits until its containers run, and kills it.
    pub(crate) async fn kill_a_victim(&self) -> (String, String, String) {
        let mut child = self.victim();
        let told = self.folder.join("told");
        let end = Instant::now() + DEADLINE;
        while !told.exists() {
            assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "the victim does not come up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let text = fs::read_to_string(told).unwrap();
        let mut ids = text.split_whitespace().map(str::to_owned);
        (ids.next().unwrap(), ids.next().unwrap(), ids.next().unwrap())
    }

    /// The same, killed so long after its engine was opened, wherever it is then.
    pub(crate) async fn kill_a_victim_after(&self, pause: Duration) {
        let _ = fs::remove_file(self.folder.join("opened"));
        let mut child = self.victim();
        let end = Instant::now() + DEADLINE;
        while !self.folder.join("opened").exists() {
            assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "the victim does not come up");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        tokio::time::sleep(pause).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn victim(&self) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "privileged_victim", "--nocapture"])
            .env("KEELSON_VICTIM", &self.folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// What a reboot does to the state folder and to processes, as far as a test can.
    pub(crate) fn reboot(&self, pid: i32) {
        let run = self.folder.join("run");
        kill(pid);
        let end = Instant::now() + DEADLINE;
        while self.shims() != 0 {
            assert!(Instant::now() < end, "shims stay");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for point in
            mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(&run))
        {
            rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        fs::write(run.join("boot_id"), "another boot\n").unwrap();
    }

    /// Shims of this lab that still run.
    fn shims(&self) -> usize {
        self.processes().len()
    }

    fn processes(&self) -> Vec<String> {
        let ours =
            |pid: &String| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&self.folder));
        let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let me = std::process::id().to_string();
        pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && *pid != me).filter(ours).collect()
    }

    /// What is still there and names us.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = self.processes().into_iter().map(|pid| format!("process {pid}")).collect();
        left.extend(zombies().into_iter().map(|pid| format!("zombie {pid}")));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folder = self.folder.to_string_lossy().into_owned();
        left.extend(mounts.lines().filter(|line| line.contains(&folder)).map(|line| format!("mount {line}")));
        for folder in ["run/sandboxes", "run/containers", "root/snapshots"] {
            let entries = fs::read_dir(self.folder.join(folder)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("file {}", entry.path().display())));
        }
        let now = self.census();
        for (kind, (now, before)) in ["interface", "cgroup"].into_iter().zip(now.iter().zip(&self.before)) {
            // Other tests of this file run beside this one: only what is ours counts.
            left.extend(now.difference(before).map(|name| format!("{kind} {name}")));
        }
        left
    }

    /// The bridge, and the cgroup of this lab's sandboxes in every hierarchy.
    fn census(&self) -> [BTreeSet<String>; 2] {
        let names = |folder: &Path| -> BTreeSet<String> {
            fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect()
        };
        let interfaces = names(Path::new("/sys/class/net")).into_iter().filter(|name| *name == self.bridge).collect();
        let cgroups = names(Path::new("/sys/fs/cgroup"))
            .into_iter()
            .flat_map(|controller| names(&Path::new("/sys/fs/cgroup").join(controller)))
            .filter(|name| *name == self.bridge)
            .collect();
        [interfaces, cgroups]
    }
}

/// A test that failed cleans up after itself all the same.
impl Drop for Lab {
    fn drop(&mut self) {
        if self._scratch.is_none() || self.left().is_empty() {
            return;
        }
        for pid in self.processes() {
            if let Ok(pidfd) = keelson_sys::pidfd::open(pid.parse().unwrap_or(0)) {
                let _ = keelson_sys::pidfd::send_signal(&pidfd, 9);
            }
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let parent = hierarchy.path().join(&self.bridge);
            for child in fs::read_dir(&parent).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
                let _ = fs::write(child.path().join("cgroup.kill"), "1");
            }
        }
        std::thread::sleep(Duration::from_millis(300));
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let parent = hierarchy.path().join(&self.bridge);
            for child in fs::read_dir(&parent).into_iter().flatten().flatten() {
                for leaf in fs::read_dir(child.path()).into_iter().flatten().flatten() {
                    let _ = fs::remove_dir(leaf.path());
                }
                let _ = fs::remove_dir(child.path());
            }
            let _ = fs::remove_dir(parent);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| Path::new(point).starts_with(&self.folder))
        {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
        let config = keelson_network::Config::new(self.folder.join("root/network"), &self.bridge);
        if let Ok(network) = keelson_network::Network::open(config) {
            let _ = network.retain(&Default::default());
            let _ = network.close();
        }
    }
}

/// The body of the process that is killed: a sandbox, a container that goes on and one that ends by itself.
pub(crate) async fn victim(folder: &Path) {
    let bridge = fs::read_to_string(folder.join("bridge")).unwrap();
    let lab = Lab { folder: folder.to_owned(), bridge, before: Default::default(), _scratch: None };
    let engine = lab.engine().await;
    fs::write(folder.join("opened"), "").unwrap();
    let sandbox = engine.run_sandbox(lab.sandbox("victim")).await.unwrap();
    let mut ids = vec![sandbox.to_string()];
    for (name, script) in
        [("lasting", "n=0; while true; do echo tick $n; n=$((n+1)); sleep 0.1; done"), ("short", "sleep 1; exit 7")]
    {
        let mut spec = shell(script);
        spec.key.name = name.into();
        spec.log_path = Path::new(name).join("0.log");
        let container = engine.create_container(&sandbox, spec).await.unwrap();
        engine.start_container(&container).await.unwrap();
        ids.push(container.to_string());
    }
    fs::write(folder.join("told.new"), ids.join(" ")).unwrap();
    fs::rename(folder.join("told.new"), folder.join("told")).unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
}

/// Shims that ended and that this process did not reap. Those of tests beside this one go in a moment.
fn zombies() -> Vec<String> {
    let me = std::process::id().to_string();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let ours = |pid: &String| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(") ") else { return false };
        let mut fields = rest.split(' ');
        name.contains("keelson-shim") && fields.next() == Some("Z") && fields.next() == Some(&me)
    };
    pids.filter(ours).collect()
}

fn kill(pid: i32) {
    let pidfd = keelson_sys::pidfd::open(pid).unwrap();
    keelson_sys::pidfd::send_signal(&pidfd, 9).unwrap();
}

/// The shim's program, built if need be.
fn shim() -> Result<PathBuf, String> {
    static SHIM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    SHIM.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "keelson-shim", "--bin", "keelson-shim"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        match built {
            Ok(status) if status.success() => {}
            other => return Err(format!("the shim cannot be built: {other:?}")),
        }
        // target/debug/deps/engine-<hash>
        let exe = std::env::current_exe().map_err(|error| error.to_string())?;
        let path = exe.parent().and_then(Path::parent).map(|folder| folder.join("keelson-shim"));
        path.filter(|path| path.exists()).ok_or_else(|| "the shim is not where it is built".to_owned())
    })
    .clone()
}

/// busybox, its applets, a passwd file, and a volume with something in it.
fn busybox() -> ImportedImage {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(u64::try_from(content.len()).unwrap());
        match link {
            Some(link) => tar.append_link(&mut header, path, link).unwrap(),
            None => tar.append_data(&mut header, path, content).unwrap(),
        }
    };
    for folder in ["bin", "etc", "tmp", "store", "lib", "lib64", "proc", "sys", "dev"] {
        add(folder, tar::EntryType::Directory, 0o755, &[], None);
    }
    add("bin/busybox", tar::EntryType::Regular, 0o755, &fs::read("/bin/busybox").unwrap(), None);
    for applet in ["sh", "sleep", "echo", "cat", "env", "false", "true", "ip", "id", "ls"] {
        add(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, &[], Some("busybox"));
    }
    for library in libraries() {
        let path = library.to_string_lossy().into_owned();
        let mut folders: Vec<&Path> = library.ancestors().skip(1).collect();
        folders.pop();
        for folder in folders.into_iter().rev() {
            add(folder.to_str().unwrap().trim_start_matches('/'), tar::EntryType::Directory, 0o755, &[], None);
        }
        add(path.trim_start_matches('/'), tar::EntryType::Regular, 0o755, &fs::read(&library).unwrap(), None);
    }
    add("etc/passwd", tar::EntryType::Regular, 0o644, b"root:x:0:0:root:/root:/bin/sh\n", None);
    add("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\n", None);
    add("store/seed", tar::EntryType::Regular, 0o644, b"seed\n", None);
    ImportedImage {
        name: IMAGE.into(),
        config: ImageConfig {
            env: vec!["PATH=/bin".into()],
            cmd: vec!["sh".into()],
            volumes: vec!["/store".into()],
            ..Default::default()
        },
        layers: vec![tar.into_inner().unwrap()],
        ..Default::default()
    }
}

/// What busybox is linked with, as the loader tells.
fn libraries() -> Vec<PathBuf> {
    let output = Command::new("ldd").arg("/bin/busybox").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .filter(|path| path.exists())
        .collect()
}
