//! The stock kubelet, without an API server, on one node's socket: pods come from a folder, and it is asked over its own HTTP endpoints.
//! Runs in a test process as root. Owns the kubelet's process, its scratch folder, its cgroup root and its mount namespace.
//! Must never let the kubelet touch what is not its own: it has its own `/var/lib`, `/var/log` and kernel parameters, makes no firewall
//! chains, and its pods' cgroups are below a root that goes with it.

mod cgroups;
mod config;
pub mod door;

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::node::{Cri, DEADLINE, Node};
use door::Door;

/// What the kubelet may take for what involves its own clocks: a back-off, a probe's period, a sync.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Kernel parameters that every kubelet sets on the machine, as it wants them (k8s.io/component-helpers, node/util/sysctl). Files with
/// these values lie over the real ones in its mount namespace, so that the machine's own stay.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Its mount namespace: what is mounted in it stays in it, but for the volumes below its root folder, which the runtime must see.
const NAMESPACE: &str = r#"
root=$1; sysctl=$2; shift 2
while read -r _ _ _ _ point _; do
    [ "$point" = "$root" ] || mount --make-private "$point" 2>/dev/null || true
done < /proc/self/mountinfo
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /var/log
( cd "$sysctl"; find . -type f ) | while read -r file; do mount --bind "$sysctl/$file" "/proc/sys/$file"; done
exec "$@"
"#;

/// A kubelet under test.
pub struct Kubelet {
    process: Option<Child>,
    dir: TempDir,
    /// Its name for the node; static pods are called `<name>-<this>`.
    host: String,
    port: u16,
    endpoint: String,
    settings: Value,
    door: Door,
}

/// The kubelet's program, when `e2e/tools/build-kubelet` has built it.
pub fn binary() -> Option<PathBuf> {
    Some(crate::cache::dir().join("kubelet-v1.36.0/kubelet")).filter(|path| path.exists())
}

impl Kubelet {
    /// Starts one on the node's socket. `settings` are laid over the configuration (`KubeletConfiguration`, v1beta1).
    pub async fn start(node: &Node, settings: Value) -> Result<Kubelet> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("keelson-kubelet-").permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let dir = builder.tempdir_in("/var/tmp").context("make the kubelet's scratch folder")?;
        for folder in ["root", "pods", "logs", "plugins", "sysctl"] {
            fs::create_dir(dir.path().join(folder))?;
        }
        for (name, value) in TUNABLES {
            let path = dir.path().join("sysctl").join(name);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, format!("{value}\n"))?;
        }
        fs::write(dir.path().join("resolv.conf"), "nameserver 192.0.2.53\n")?;
        // Volumes are mounted here by the kubelet in its namespace, and seen by the runtime in the host's.
        let root = dir.path().join("root");
        rustix::mount::mount_bind(&root, &root).context("make the kubelet's root a mount")?;
        rustix::mount::mount_change(&root, rustix::mount::MountPropagationFlags::SHARED)?;
        // A port that was free a moment ago.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let door = Door::open(port).await?;
        let host = "node".to_owned();
        let endpoint = format!("unix://{}", node.socket().display());
        let mut kubelet = Kubelet { process: None, dir, host, port, endpoint, settings, door };
        for hierarchy in cgroups::hierarchies() {
            cgroups::make(&hierarchy.join(kubelet.cgroup()))?;
        }
        kubelet.boot().await?;
        Ok(kubelet)
    }

    /// Lays more settings over the configuration; they hold from the next boot.
    pub fn set(&mut self, settings: Value) {
        config::merge(&mut self.settings, settings);
    }

    /// Starts the process and waits until it answers.
    pub async fn boot(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the kubelet runs already");
        let at = |name: &str| self.dir.path().join(name);
        let config = config::configuration(self.dir.path(), &self.cgroup(), self.port, &self.endpoint, &self.settings);
        fs::write(at("config.json"), serde_json::to_vec_pretty(&config)?)?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "unchanged", "sh", "-euc", NAMESPACE, "kubelet-namespace"])
            .arg(at("root"))
            .arg(at("sysctl"))
            .arg(binary().context("no kubelet: e2e/tools/build-kubelet builds it")?)
            .arg("--config")
            .arg(at("config.json"))
            .arg("--root-dir")
            .arg(at("root"))
            .arg("--cert-dir")
            .arg(at("certificates"))
            .args(["--hostname-override", &self.host, "--node-ip", "127.0.0.1", "-v", "2"])
            .args(["--maximum-dead-containers-per-container", "1", "--minimum-container-ttl-duration", "0s"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the kubelet")?;
        self.process = Some(child);
        let begun = Instant::now();
        while !self.get("/healthz").await.is_ok_and(|(code, _)| code == 200) {
            if let Some(status) = self.process.as_mut().and_then(|p| p.try_wait().transpose()).transpose()? {
                self.process = None;
                bail!("the kubelet ended at start with {status}: {}", self.log_tail());
            }
            ensure!(
                begun.elapsed() < *DEADLINE,
                "the kubelet does not serve after {:?}: {}",
                *DEADLINE,
                self.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// SIGTERM and wait.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.process.take() else { return Ok(()) };
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)?;
        let begun = Instant::now();
        while child.try_wait()?.is_none() {
            if begun.elapsed() > *DEADLINE {
                child.kill()?;
                child.wait()?;
                bail!("the kubelet does not end at SIGTERM: {}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.process.take().context("no kubelet runs")?;
        child.kill()?;
        let status = child.wait()?;
        ensure!(status.signal() == Some(9), "the kubelet had ended before the kill with {status}");
        Ok(())
    }

    /// Stops the kubelet and removes what it cannot: its pods (as it would), its cgroups, its mounts.
    pub async fn finish(mut self, cri: &mut Cri) -> Result<()> {
        self.stop()?;
        let pods = cri.runtime.list_pod_sandbox(k8s_cri::v1::ListPodSandboxRequest::default()).await?;
        for pod in pods.into_inner().items {
            cri.stop_pod(&pod.id).await?;
            cri.remove_pod(&pod.id).await?;
        }
        let begun = Instant::now();
        while !self.remove_cgroups() {
            ensure!(begun.elapsed() < *DEADLINE, "a cgroup below `{}` stays busy", self.cgroup());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn remove_cgroups(&self) -> bool {
        cgroups::hierarchies().iter().all(|hierarchy| cgroups::remove_tree(&hierarchy.join(self.cgroup())))
    }

    /// Its cgroup root, the same in every hierarchy, without a slash before it.
    pub fn cgroup(&self) -> String {
        self.dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Its root folder (`--root-dir`).
    pub fn root_dir(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Where its pods' logs are.
    pub fn logs_dir(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// A scratch folder for host paths.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("kubelet.log")
    }

    /// All it has said, over all its starts.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(self.log_path()).context("read the kubelet's log")
    }

    fn log_tail(&self) -> String {
        let text = self.log().unwrap_or_default();
        let lines: Vec<_> = text.lines().filter(|l| !l.contains("FLAG:")).collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// A pod as a file: `spec` as in a manifest. Its full name is `<name>-<host>`.
    pub fn give(&self, name: &str, spec: &Value) -> Result<()> {
        self.give_whole(name, &json!({ "name": name, "namespace": "default" }), spec)
    }

    /// The same with the metadata.
    pub fn give_whole(&self, name: &str, metadata: &Value, spec: &Value) -> Result<()> {
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        // Whole or not at all: the kubelet skips names that begin with a dot.
        let (temporary, path) = (self.dir.path().join(".pod"), self.manifest(name));
        fs::write(&temporary, serde_json::to_vec_pretty(&pod)?)?;
        fs::rename(temporary, path).context("put the manifest into the kubelet's folder")
    }

    /// Takes the file away: the kubelet ends the pod.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifest(name)).context("take the manifest away")
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.dir.path().join("pods").join(format!("{name}.json"))
    }

    /// A pod as the kubelet sees it, with its status.
    pub async fn pod(&self, name: &str) -> Result<Option<Value>> {
        let (code, body) = self.get("/pods").await?;
        ensure!(code == 200, "/pods answered {code}: {body}");
        let list: Value = serde_json::from_str(&body).context("the list of pods")?;
        let name = format!("{name}-{}", self.host);
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items.into_iter().find(|pod| pod["metadata"]["name"] == *name))
    }

    /// Waits until the pod's status is so.
    pub async fn until(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let pod = self.pod(name).await?;
            match pod {
                Some(pod) if is(&pod) => return Ok(pod),
                _ if begun.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(50)).await,
                pod => bail!(
                    "{name}: not `{what}` within {PATIENCE:?}: {:#}\n--- kubelet ---\n{}",
                    pod.map_or(Value::Null, |p| p["status"].clone()),
                    self.log_tail()
                ),
            }
        }
    }

    /// Waits until every container of the pod is ready.
    pub async fn until_ready(&self, name: &str) -> Result<Value> {
        self.until(name, "ready", |pod| {
            pod["status"]["conditions"]
                .as_array()
                .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
        })
        .await
    }

    /// Waits until nothing of the pod runs any more.
    pub async fn until_gone(&self, name: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            // What its runtime says: the list of pods forgets one as soon as its file is away.
            let (code, running) = self.get("/runningpods/").await?;
            ensure!(code == 200, "/runningpods/ answered {code}: {running}");
            if self.pod(name).await?.is_none() && !running.contains(&format!("\"{name}-{}\"", self.host)) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{name} is not gone within {PATIENCE:?}: {}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// `http://127.0.0.1:<port>`, by which plain clients reach it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.door.port())
    }

    /// GET; status and body.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        door::request(self.door.port(), "GET", path).await
    }

    /// POST without a body.
    pub async fn post(&self, path: &str) -> Result<(u16, String)> {
        door::request(self.door.port(), "POST", path).await
    }

    /// `/run`: a program and its arguments in a container, its output. The kubelet parts them at blanks.
    pub async fn run(&self, pod: &str, container: &str, command: &str) -> Result<String> {
        let path = format!("/run/default/{pod}-{}/{container}?cmd={}", self.host, door::quoted(command));
        let (code, body) = self.post(&path).await?;
        ensure!(code == 200, "`{command}` in {pod}/{container}: {code}: {body}");
        Ok(body)
    }

    /// One of its own metrics: the sum over all its labels, 0 when it is not there.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let (code, body) = self.get("/metrics").await?;
        ensure!(code == 200, "/metrics answered {code}");
        let lines = body.lines().filter(|l| l.split(['{', ' ']).next() == Some(name));
        Ok(lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Warnings and errors of its log, each once, without their times: `file.go:line] text`.
    pub fn complaints(&self) -> Result<BTreeSet<String>> {
        let log = self.log()?;
        let mut lines = BTreeSet::new();
        for line in log.lines().filter(|l| l.starts_with('W') || l.starts_with('E')) {
            // `E0102 15:04:05.000000    1234 file.go:12] "What" err="why"`
            lines.insert(line.split_whitespace().skip(3).collect::<Vec<_>>().join(" "));
        }
        Ok(lines)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- kubelet log ---\n{}\n---", self.log_tail());
        }
        let _ = self.stop();
        crate::audit::unmount_below(&self.root_dir());
        // After a failure its containers still run: what is in a cgroup below its root is of this test.
        if !self.remove_cgroups() {
            for hierarchy in cgroups::hierarchies() {
                cgroups::kill_tree(&hierarchy.join(self.cgroup()));
            }
            let begun = Instant::now();
            while !self.remove_cgroups() && begun.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
