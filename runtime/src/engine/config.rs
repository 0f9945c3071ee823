//! What the engine needs to know to open: folders, the shim, the network, defaults for containers.
//! Plain data, made by the daemon's configuration and by tests. Owns nothing.
//! Must never be read from a file here: that is the configuration's room.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::retire::Keep;

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    /// systemd where it runs as init on cgroup v2, else cgroupfs.
    #[default]
    Auto,
    /// Keelson, in cgroupfs.
    Cgroupfs,
    /// systemd, asked over D-Bus for one scope per container.
    Systemd,
}

/// A default process limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`, ..
    pub name: String,
    /// Soft.
    pub soft: u64,
    /// Hard.
    pub hard: u64,
}

/// Another OCI runtime, for sandboxes that name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerConfig {
    /// Its program, absolute.
    pub program: PathBuf,
    /// Words before every command.
    pub options: Vec<String>,
    /// It puts a whole pod into one sandbox, which a first container holds.
    pub sandboxed: bool,
}

/// See the fields.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// What survives a reboot: `/var/lib/keelson`.
    pub root: PathBuf,
    /// What does not: `/run/keelson`.
    pub state: PathBuf,
    /// The `keelson-shim` program.
    pub shim: PathBuf,
    /// Images: the service, opened on the same root.
    pub images: keelson_imageservice::Config,
    /// Built-in network; `None`: only sandboxes with the host's network can run.
    pub network: Option<keelson_network::Config>,
    /// Where the specs of CDI devices lie; a later folder rules.
    pub cdi_dirs: Vec<PathBuf>,
    /// Who makes cgroups.
    pub cgroup_driver: CgroupDriver,
    /// How many records of what has ended are kept.
    pub keep: Keep,
    /// Process limits of every container.
    pub rlimits: Vec<Rlimit>,
    /// Tasks per container when the request does not say; 0: unlimited.
    pub pids_limit: i64,
    /// Longest content of one log record, bytes.
    pub log_line_max: u32,
    /// Size of a sandbox's /dev/shm, bytes.
    pub shm_size: u64,
    /// How often the use of writable layers is measured while somebody asks for it.
    pub writable_layer_period: Duration,
    /// The CRIU program, for checkpoints; need not be there.
    pub criu: PathBuf,
    /// Restore containers from images that carry a checkpoint.
    pub checkpoint_images: bool,
    /// Let containers that are not root bind ports below 1024.
    pub unprivileged_ports: bool,
    /// Let containers that are not root send ICMP echo.
    pub unprivileged_icmp: bool,
    /// Runtime handlers beside the built-in one, by name.
    pub handlers: BTreeMap<String, HandlerConfig>,
}

impl EngineConfig {
    /// The defaults around these.
    #[must_use]
    pub fn new(root: PathBuf, state: PathBuf, shim: PathBuf, images: keelson_imageservice::Config) -> Self {
        Self {
            root,
            state,
            shim,
            images,
            network: None,
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            cgroup_driver: CgroupDriver::Auto,
            keep: Keep::default(),
            rlimits: vec![Rlimit { name: "RLIMIT_NOFILE".into(), soft: 1024, hard: 524_288 }],
            pids_limit: 0,
            log_line_max: 16 * 1024,
            shm_size: 64 * 1024 * 1024,
            writable_layer_period: Duration::from_secs(10),
            criu: PathBuf::from("/usr/sbin/criu"),
            checkpoint_images: false,
            unprivileged_ports: true,
            unprivileged_icmp: true,
            handlers: BTreeMap::new(),
        }
    }
}
