//! The daemon's configuration: a small flat TOML file, checked once into types that hold only what makes sense.
//! Read on the main thread before the async runtime starts, by `keelson serve`, and by `keelson config check`.
//! Owns the defaults (the text of `deploy/config.toml`) and every message about a bad file.
//! Must never be reached back into later: the rooms get their own, narrower configuration made from this one.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

mod check;
mod locate;
mod raw;

/// The default configuration, commented: what `keelson config default` prints, and what a package installs.
pub const DEFAULT_TEXT: &str = include_str!("../../deploy/config.toml");
/// Where `keelson serve` looks when it is not told; may be absent.
pub const DEFAULT_PATH: &str = "/etc/keelson/config.toml";
/// The longest path a unix socket can be bound to, bytes (`sun_path` less its NUL).
pub const SOCKET_PATH_MAX: usize = 107;

/// What the daemon runs on. Every path is absolute and free of `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub root: PathBuf,
    pub state: PathBuf,
    pub socket: PathBuf,
    /// `None` is the one beside this program.
    pub shim: Option<PathBuf>,
    pub log: Log,
    pub metrics: Metrics,
    pub traces: Traces,
    pub images: Images,
    pub network: Network,
    pub streaming: Streaming,
    pub cgroup: CgroupDriver,
    pub containers: Containers,
    pub records: Records,
    pub stats: Stats,
    /// The CRIU program; need not be there.
    pub criu: PathBuf,
    /// Containers are restored from images that carry a checkpoint.
    pub checkpoint_images: bool,
    /// Runtime handlers beside the built-in one, by name.
    pub runtimes: BTreeMap<String, Runtime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// How often the use of writable layers is measured while somebody asks for it; at least a second.
    pub writable_layer_period: Duration,
}

/// Another OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Its program, absolute.
    pub path: PathBuf,
    /// Words before every command.
    pub options: Vec<String>,
    /// It puts a whole pod into one sandbox, which a first container holds.
    pub sandboxed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Where numbers and health are asked for over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metrics {
    /// Nowhere.
    Off,
    /// On a socket of mode 0660.
    Unix(PathBuf),
    /// On a port of a loopback address.
    Tcp(SocketAddr),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// `http://` or `https://` of an OTLP/gRPC collector, without credentials; `None`: no traces.
    pub endpoint: Option<String>,
    /// Of the traces that begin here, so many in a million.
    pub sample_per_million: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    pub hosts_dir: PathBuf,
    /// `None` is this machine's.
    pub platform: Option<Platform>,
    pub max_concurrent_downloads: usize,
    pub max_layer_bytes: u64,
    pub max_image_bytes: u64,
    pub max_layer_entries: u64,
    pub max_layer_ratio: u64,
}

/// `os/architecture[/variant]`, each word lower-case letters and digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub enabled: bool,
    /// A valid interface name, at most 15 characters; also the nftables table.
    pub bridge: String,
    pub ipv4: Subnet<Ipv4Addr>,
    pub ipv6: Subnet<Ipv6Addr>,
    /// `None` follows the interface of the default route.
    pub mtu: Option<u32>,
}

/// Where addresses of one family come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subnet<A> {
    /// The first free network of a built-in list.
    Auto,
    /// No addresses of this family.
    Off,
    /// This network; the address has no host bits.
    Fixed { address: A, prefix: u8 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streaming {
    pub address: SocketAddr,
    /// Certificate chain and key, PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    pub idle_timeout: Duration,
    pub creation_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    Auto,
    Cgroupfs,
    Systemd,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Containers {
    pub nofile: Nofile,
    /// `None` is no limit.
    pub pids_limit: Option<u64>,
    pub log_line_max: usize,
    pub seccomp: DefaultSeccomp,
    /// Where the specs of CDI devices lie; a later folder rules.
    pub cdi_dirs: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nofile {
    pub soft: u64,
    pub hard: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultSeccomp {
    RuntimeDefault,
    Unconfined,
}

/// How many records of what has ended are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Records {
    pub exited_per_container: usize,
    pub stopped_pods: usize,
    pub stopped_pods_after: Duration,
}

/// What the command line puts over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub root: Option<PathBuf>,
    pub state: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    /// In the file's word.
    pub log_level: Option<String>,
    /// In the file's word.
    pub log_format: Option<String>,
}

/// Why there is no configuration to run on.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read configuration `{path}`")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{place}: unknown key `{key}`{hint}; `keelson config default` prints every key")]
    UnknownKey { place: String, key: String, hint: String },
    #[error("{place}: {problem}")]
    Syntax { place: String, problem: String },
    #[error("{place}: `{key}` is `{value}`: {want}")]
    Value { place: String, key: &'static str, value: String, want: String },
}

impl Config {
    /// The configuration of this file, or of the default place, or of nothing when that is absent; flags go over it.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, has a key nobody knows, or a value that makes no sense.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let (path, named) = (path.unwrap_or(Path::new(DEFAULT_PATH)), path.is_some());
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => String::new(),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// The configuration of this text; `name` is what messages call it.
    ///
    /// # Errors
    /// As [`Config::load`], but for reading.
    pub fn parse(text: &str, name: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        if let Some(unknown) = locate::unknown_key(text) {
            let hint = unknown.nearest.map_or_else(String::new, |key| format!("; the nearest is `{key}`"));
            return Err(ConfigError::UnknownKey { place: format!("{name}:{}", unknown.line), key: unknown.key, hint });
        }
        let raw = toml::from_str(text).map_err(|error: toml::de::Error| ConfigError::Syntax {
            place: match error.span() {
                Some(span) => format!("{name}:{}", locate::line_at(text, span.start)),
                None => name.to_owned(),
            },
            problem: error.message().to_owned(),
        })?;
        check::check(raw, overrides).map_err(|bad| ConfigError::Value {
            place: match locate::line_of(text, bad.key) {
                Some(line) => format!("{name}:{line}"),
                None => "command line".to_owned(),
            },
            key: bad.key,
            value: bad.value,
            want: bad.want,
        })
    }
}

#[cfg(test)]
mod tests;
