//! One keelson daemon on scratch folders, and clients for it: the k8s-cri crate over the socket, and the stock crictl.
//! Runs in a test process as root. Owns the daemon process, its scratch folders and a loopback registry.
//! Must end only the daemon it started, and leave nothing when dropped.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_cri::v1::{
    self as cri, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::{images::Store, registry::Registry};

/// How long a daemon may take to serve, and anything else that is awaited.
pub static DEADLINE: LazyLock<Duration> = LazyLock::new(|| patience(Duration::from_secs(30)));

/// So much time on a machine of its own; more in an emulated guest (`KEELSON_TEST_GUEST`), where everything takes about five
/// times as long.
pub fn patience(own: Duration) -> Duration {
    if std::env::var_os("KEELSON_TEST_GUEST").is_some() { own * 6 } else { own }
}

/// A daemon under test.
pub struct Node {
    daemon: Option<Child>,
    registry: Registry,
    root: TempDir,
    state: TempDir,
    /// Kubelet's part: pod log folders.
    logs: TempDir,
    config_extra: String,
}

/// Both CRI clients.
#[derive(Clone)]
pub struct Cri {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

/// A built binary of this workspace: in `$KEELSON_BIN_DIR`, else where `make dev` puts them.
pub fn binary(name: &str) -> PathBuf {
    let dir = std::env::var_os("KEELSON_BIN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/node"), PathBuf::from);
    dir.join(name)
}

impl Node {
    /// Builds the images that are missing, serves them on loopback, starts a daemon that is led there for every registry the
    /// images are named after.
    pub fn start() -> Result<Node> {
        Self::start_with("")
    }

    /// The same with more text at the end of the configuration file.
    pub fn start_with(config_extra: &str) -> Result<Node> {
        let store = Store::open()?;
        store.build("")?;
        let registry = Registry::serve(store, 0)?;
        let scratch = |name: &str, dir: &str| {
            let mut builder = tempfile::Builder::new();
            builder.prefix(name).permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711));
            builder.tempdir_in(dir).with_context(|| format!("make a scratch folder in `{dir}`"))
        };
        let mut node = Node {
            daemon: None,
            registry,
            root: scratch("keelson-root-", "/var/tmp")?,
            // Production has its state on tmpfs.
            state: scratch("keelson-state-", "/dev/shm")?,
            logs: scratch("keelson-logs-", "/var/tmp")?,
            config_extra: config_extra.to_owned(),
        };
        node.write_config()?;
        node.boot()?;
        Ok(node)
    }

    fn write_config(&self) -> Result<()> {
        let hosts = self.root.path().join("certs.d");
        for host in crate::registry::HOSTS {
            let dir = hosts.join(host);
            fs::create_dir_all(&dir)?;
            let mirror = format!(
                "server = \"http://{0}\"\n[host.\"http://{0}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
                self.registry.address()
            );
            fs::write(dir.join("hosts.toml"), mirror)?;
        }
        let config = format!("[images]\nhosts_dir = \"{}\"\n{}", hosts.display(), self.config_extra);
        fs::write(self.config_path(), config).context("write config")
    }

    /// Starts the daemon and waits until it serves.
    pub fn boot(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let before = log.metadata()?.len();
        let mut child = Command::new(binary("keelson"))
            .args(["serve", "--config"])
            .arg(self.config_path())
            .arg("--root")
            .arg(self.root_dir())
            .arg("--state")
            .arg(self.state.path())
            .arg("--socket")
            .arg(self.socket())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start `{}` (built?)", binary("keelson").display()))?;
        let begun = Instant::now();
        // Not the socket is asked: a shim that a killed daemon has just forked holds the old one until it executes.
        while !self.says_that_it_serves(before)? {
            if let Some(status) = child.try_wait()? {
                bail!("the daemon ended at start with {status}: {}", self.log_tail());
            }
            if begun.elapsed() > *DEADLINE {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the daemon does not serve after {:?}: {}", *DEADLINE, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.daemon = Some(child);
        Ok(())
    }

    /// Whether the log has the daemon's line of readiness after this many bytes.
    fn says_that_it_serves(&self, from: u64) -> Result<bool> {
        let log = fs::read(self.log_path())?;
        let new = log.get(usize::try_from(from)?..).unwrap_or_default();
        Ok(String::from_utf8_lossy(new).contains("serving CRI on unix:"))
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.daemon.take().context("no daemon runs")?;
        child.kill()?;
        let status = child.wait()?;
        ensure!(status.signal() == Some(9), "the daemon had ended before the kill with {status}: {}", self.log_tail());
        Ok(())
    }

    /// SIGTERM and wait: must end with 0 and touch no container.
    pub fn stop(&mut self) -> Result<()> {
        let child = self.daemon.as_mut().context("no daemon runs")?;
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                self.daemon = None;
                ensure!(status.success(), "the daemon ended with {status}: {}", self.log_tail());
                return Ok(());
            }
            if begun.elapsed() > *DEADLINE {
                bail!("the daemon does not stop: {}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn root_dir(&self) -> PathBuf {
        self.root.path().join("lib")
    }

    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    pub fn logs_dir(&self) -> &Path {
        self.logs.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.root.path().join("k.sock")
    }

    pub fn config_path(&self) -> PathBuf {
        self.root.path().join("config.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.root.path().join("daemon.log")
    }

    /// All that the daemon has said, over all its starts.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(self.log_path()).context("read the daemon's log")
    }

    /// A container's log below the folder of logs; empty while there is none.
    pub fn container_log(&self, path: &str) -> String {
        fs::read_to_string(self.logs_dir().join(path)).unwrap_or_default()
    }

    /// kill -9 of the shim with this run directory (of a container, or of a sandbox's holder).
    pub fn kill_shim(folder: &Path) -> Result<()> {
        let pid = fs::read_to_string(folder.join("shim.pid"))?.trim().parse()?;
        let pid = rustix::process::Pid::from_raw(pid).context("the shim's process id")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
    }

    /// The last lines that the daemon logged.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// Clients over the socket.
    pub fn cri(&self) -> Result<Cri> {
        let channel = Endpoint::from_shared(format!("unix://{}", self.socket().display()))?.connect_lazy();
        let limit = 16 * 1024 * 1024;
        Ok(Cri {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
            images: ImageServiceClient::new(channel).max_decoding_message_size(limit).max_encoding_message_size(limit),
        })
    }

    /// The stock crictl against this daemon.
    pub fn crictl(&self, arguments: &[&str]) -> Result<Output> {
        let tools = crate::cache::dir().join("cri-tools-v1.36.0/crictl");
        Command::new(&tools)
            .arg("--config")
            .arg("/dev/null")
            .arg("--runtime-endpoint")
            .arg(format!("unix://{}", self.socket().display()))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run `{}` (built by e2e/tools/build-cri-tools)", tools.display()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- daemon log ---\n{}\n---", self.log_tail());
        }
        // In peace first: a daemon that ends by itself takes its bridge with it.
        if self.daemon.is_some()
            && self.stop().is_err()
            && let Some(mut child) = self.daemon.take()
        {
            let _ = child.kill();
            let _ = child.wait();
        }
        crate::audit::sweep(self.state.path(), &self.root_dir());
    }
}

/// A pod sandbox config as kubelet would send it, logs below the node's log folder.
pub fn pod(node: &Node, name: &str) -> cri::PodSandboxConfig {
    let log_directory = node.logs_dir().join(name);
    let _ = fs::create_dir_all(&log_directory);
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: log_directory.to_string_lossy().into_owned(),
        linux: Some(cri::LinuxPodSandboxConfig::default()),
        labels: [("test".to_owned(), name.to_owned())].into(),
        ..Default::default()
    }
}

/// A container config that runs `sh -c script` (an empty script: the image's own command).
pub fn container(name: &str, image: &str, script: &str) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
        command: if script.is_empty() { vec![] } else { vec!["sh".into(), "-c".into(), script.into()] },
        log_path: format!("{name}.log"),
        linux: Some(cri::LinuxContainerConfig::default()),
        ..Default::default()
    }
}

impl Cri {
    pub async fn pull(&mut self, image: &str) -> Result<String, tonic::Status> {
        let spec = cri::ImageSpec { image: image.into(), ..Default::default() };
        let request = cri::PullImageRequest { image: Some(spec), ..Default::default() };
        Ok(self.images.pull_image(request).await?.into_inner().image_ref)
    }

    pub async fn run_pod(&mut self, config: &cri::PodSandboxConfig) -> Result<String, tonic::Status> {
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub async fn create(
        &mut self,
        pod: &str,
        config: cri::ContainerConfig,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<String, tonic::Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    pub async fn start(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.runtime.start_container(cri::StartContainerRequest { container_id: id.into() }).await.map(drop)
    }

    pub async fn stop(&mut self, id: &str, timeout: i64) -> Result<(), tonic::Status> {
        self.runtime.stop_container(cri::StopContainerRequest { container_id: id.into(), timeout }).await.map(drop)
    }

    pub async fn remove(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.runtime.remove_container(cri::RemoveContainerRequest { container_id: id.into() }).await.map(drop)
    }

    pub async fn stop_pod(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.into() }).await.map(drop)
    }

    pub async fn remove_pod(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() }).await.map(drop)
    }

    pub async fn status(&mut self, id: &str) -> Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.runtime.container_status(request).await?.into_inner().status.context("empty status")
    }

    pub async fn pod_status(&mut self, id: &str) -> Result<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        self.runtime.pod_sandbox_status(request).await?.into_inner().status.context("empty status")
    }

    /// The container's first process, as the host numbers it.
    pub async fn pid(&mut self, id: &str) -> Result<i64> {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: true };
        let info = self.runtime.container_status(request).await?.into_inner().info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
        info["pid"].as_i64().context("no pid")
    }

    pub async fn exec(
        &mut self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<cri::ExecSyncResponse, tonic::Status> {
        let cmd = command.iter().map(|c| (*c).to_owned()).collect();
        Ok(self.runtime.exec_sync(cri::ExecSyncRequest { container_id: id.into(), cmd, timeout }).await?.into_inner())
    }

    /// `sh -c script` in the container, its standard output as text; fails unless it exits with 0.
    pub async fn shell(&mut self, id: &str, script: &str) -> Result<String> {
        let seconds = patience(Duration::from_secs(20)).as_secs().cast_signed();
        let result = self.exec(id, &["sh", "-c", script], seconds).await?;
        let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
        ensure!(
            result.exit_code == 0,
            "`{script}` ended with {}: {stdout}{}",
            result.exit_code,
            String::from_utf8_lossy(&result.stderr)
        );
        Ok(stdout)
    }

    /// Creates and starts one container.
    pub async fn run(
        &mut self,
        pod: &str,
        config: cri::ContainerConfig,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<String> {
        let id = self.create(pod, config, sandbox).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// Waits until the container has ended and returns its status.
    pub async fn wait_exit(&mut self, id: &str) -> Result<cri::ContainerStatus> {
        let begun = Instant::now();
        loop {
            let status = self.status(id).await?;
            if status.state() == cri::ContainerState::ContainerExited {
                return Ok(status);
            }
            ensure!(begun.elapsed() < *DEADLINE, "container {id} does not end: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Waits until `check` gives a value: an event with a deadline, not a sleep.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = check().await {
            return Ok(value);
        }
        ensure!(begun.elapsed() < *DEADLINE, "{what}: not within {:?}", *DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
