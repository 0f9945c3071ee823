//! The contenders that serve CRI: keelson, and containerd with runc and the standard CNI plugins, each on scratch folders.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use k8s_cri::v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use tempfile::TempDir;
use tonic::transport::Endpoint;

use super::figures::OURS;
use crate::{
    images::Store,
    node::{Cri, DEADLINE, Node},
    registry::Registry,
};

/// One CRI daemon that takes part.
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) cri: Cri,
    pub(super) logs: PathBuf,
    kind: Kind,
}

enum Kind {
    Keelson(Box<Node>),
    Containerd(Containerd),
}

struct Containerd {
    child: Child,
    scratch: TempDir,
    state: TempDir,
    _registry: Registry,
}

/// Starts every contender whose name contains `filter`.
pub(super) fn start_all(filter: &str) -> Result<Vec<Contender>> {
    let mut all = Vec::new();
    if OURS.contains(filter) {
        all.push(keelson().context("start keelson")?);
    }
    if CONTAINERD.contains(filter) {
        all.push(containerd().context("start containerd")?);
    }
    Ok(all)
}

const CONTAINERD: &str = "containerd+runc";
/// Every contender.
pub(super) const NAMES: [&str; 2] = [OURS, CONTAINERD];

fn keelson() -> Result<Contender> {
    keelson_with(OURS, "")
}

/// One of our own daemons, with more configuration.
pub(super) fn keelson_with(name: &'static str, config: &str) -> Result<Contender> {
    let node = Node::start_with(config)?;
    Ok(Contender { name, cri: node.cri()?, logs: node.logs_dir().to_owned(), kind: Kind::Keelson(Box::new(node)) })
}

impl Contender {
    /// State folder of one of our own.
    pub(super) fn state(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Keelson(node) => Some(node.state_dir()),
            Kind::Containerd(_) => None,
        }
    }

    /// Where it serves, as a URL.
    pub(super) fn endpoint(&self) -> String {
        let socket = match &self.kind {
            Kind::Keelson(node) => node.socket().to_owned(),
            Kind::Containerd(peer) => peer.scratch.path().join("containerd.sock"),
        };
        format!("unix://{}", socket.display())
    }

    /// Process ids of the daemon and of every per-container process of the runtime (not of the containers themselves).
    pub(super) fn processes(&self) -> (u32, Vec<u32>) {
        match &self.kind {
            Kind::Keelson(node) => {
                let mut shims = Vec::new();
                for entry in fs::read_dir(node.state_dir().join("containers")).into_iter().flatten().flatten() {
                    let pid = fs::read_to_string(entry.path().join("shim.pid")).unwrap_or_default();
                    shims.extend(pid.trim().parse::<u32>());
                }
                (node.daemon_pid().unwrap_or_default(), shims)
            }
            Kind::Containerd(peer) => {
                let socket = peer.scratch.path().join("containerd.sock");
                let mut others = Vec::new();
                for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
                    let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
                    let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let command = String::from_utf8_lossy(&command);
                    if command.contains("containerd-shim-runc-v2") && command.contains(&*socket.to_string_lossy())
                        || command.starts_with("/pause\0")
                    {
                        others.push(pid);
                    }
                }
                (peer.child.id(), others)
            }
        }
    }
}

fn peers_dir() -> Result<PathBuf> {
    let dir = crate::cache::dir();
    let found = fs::read_dir(&dir)?.filter_map(|e| e.ok().map(|e| e.path())).find(|p| {
        p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("peers-")) && p.join(".complete").exists()
    });
    found.with_context(|| format!("no peers in `{}`: run `make bench-peers`", dir.display()))
}

/// A peer's binary.
pub(super) fn peer(name: &str) -> Result<PathBuf> {
    Ok(peers_dir()?.join(name))
}

fn containerd() -> Result<Contender> {
    let peers = peers_dir()?;
    let store = Store::open()?;
    store.build("busybox")?;
    store.build("pause")?;
    let registry = Registry::serve(store, 0)?;
    let builder = |name: &str, dir: &str| tempfile::Builder::new().prefix(name).tempdir_in(dir);
    let scratch = builder("peer-containerd-", "/var/tmp")?;
    let state = builder("peer-containerd-state-", "/dev/shm")?;
    let path = scratch.path();
    for host in crate::registry::HOSTS {
        let dir = path.join("certs.d").join(host);
        fs::create_dir_all(&dir)?;
        let text = format!(
            "server = \"http://{0}\"\n[host.\"http://{0}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            registry.address()
        );
        fs::write(dir.join("hosts.toml"), text)?;
    }
    fs::create_dir_all(path.join("net.d"))?;
    fs::write(path.join("net.d/10-bench.conflist"), CNI)?;
    fs::write(path.join("config.toml"), config(path, state.path(), &peers))?;
    let log = fs::File::create(path.join("containerd.log"))?;
    let search = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(peers.join("containerd"))
        .arg("--config")
        .arg(path.join("config.toml"))
        .env("PATH", format!("{}:{search}", peers.display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start containerd")?;
    let socket = path.join("containerd.sock");
    let begun = Instant::now();
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        if let Some(status) = child.try_wait()? {
            bail!("containerd ended with {status}: {}", fs::read_to_string(path.join("containerd.log"))?);
        }
        if begun.elapsed() > *DEADLINE {
            let _ = child.kill();
            bail!("containerd does not serve: {}", fs::read_to_string(path.join("containerd.log"))?);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect_lazy();
    let cri = Cri { runtime: RuntimeServiceClient::new(channel.clone()), images: ImageServiceClient::new(channel) };
    let logs = path.join("logs");
    fs::create_dir_all(&logs)?;
    Ok(Contender {
        name: CONTAINERD,
        cri,
        logs,
        kind: Kind::Containerd(Containerd { child, scratch, state, _registry: registry }),
    })
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
        crate::audit::unmount_below(self.state.path());
        crate::audit::unmount_below(self.scratch.path());
        let _ = Command::new("ip").args(["link", "del", "cnibench0"]).status();
    }
}

const CNI: &str = r#"{
  "cniVersion": "1.1.0", "name": "bench",
  "plugins": [
    { "type": "bridge", "bridge": "cnibench0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "promiscMode": false,
      "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.199.0.0/16" }], [{ "subnet": "fd12:3456:789a::/64" }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] } },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
"#;

fn config(scratch: &Path, state: &Path, peers: &Path) -> String {
    let (scratch, state, peers) = (scratch.display(), state.display(), peers.display());
    format!(
        r#"version = 3
root = "{scratch}/root"
state = "{state}"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
address = "{scratch}/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{scratch}/certs.d"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "registry.k8s.io/pause:3.10.2"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{peers}/runc"
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{peers}/cni"]
conf_dir = "{scratch}/net.d"
"#
    )
}
