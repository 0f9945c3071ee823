//! Turns a raw configuration into a checked one: fills in defaults, resolves `auto` words that need no look at the machine.
//! Pure, on the daemon's main thread at start and in `keelson config check`.
//! Owns the rules of each value. Must never touch the file system: a check of a file for another machine is a check.

use std::{
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use sha2::{Digest as _, Sha256};

mod runtimes;

use super::{
    CgroupDriver, Config, Containers, DefaultSeccomp, Images, Log, LogFormat, LogLevel, Metrics, Network, Nofile,
    Overrides, Platform, Records, SOCKET_PATH_MAX, Stats, Streaming, Subnet, Traces,
    raw::{AutoOr, Raw, RawContainers, RawImages, RawLog, RawNetwork, RawRecords, RawStats, RawStreaming, RawTraces},
};

const DEFAULT_ROOT: &str = "/var/lib/keelson";
const DEFAULT_STATE: &str = "/run/keelson";
const DEFAULT_HOSTS_DIR: &str = "/etc/keelson/certs.d";
const DEFAULT_STREAMING: &str = "127.0.0.1:0";
const DEFAULT_CRIU: &str = "/usr/sbin/criu";
const DEFAULT_BRIDGE: &str = "keelson0";

/// A value that makes no sense, and what would.
pub(super) struct Bad {
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) want: String,
}

fn bad(key: &'static str, value: impl Display, want: impl Display) -> Bad {
    Bad { key, value: value.to_string(), want: want.to_string() }
}

pub(super) fn check(raw: Raw, overrides: &Overrides) -> Result<Config, Bad> {
    let root = path("root", overrides.root.as_deref(), raw.root, DEFAULT_ROOT)?;
    let state = path("state", overrides.state.as_deref(), raw.state, DEFAULT_STATE)?;
    if root == state {
        return Err(bad("state", state.display(), "must be another folder than `root`"));
    }
    let socket = match raw.socket.as_deref() {
        None | Some("auto") if overrides.socket.is_none() => state.join("keelson.sock"),
        _ => path("socket", overrides.socket.as_deref(), raw.socket, "")?,
    };
    if socket.as_os_str().len() > SOCKET_PATH_MAX {
        let want =
            format!("a socket path has at most {SOCKET_PATH_MAX} bytes; choose a shorter state folder or socket");
        return Err(bad("socket", socket.display(), want));
    }
    let shim = match raw.shim {
        Some(shim) if shim != "auto" => Some(path("shim", None, Some(shim), "")?),
        _ => None,
    };
    Ok(Config {
        shim,
        log: log(&raw.log, overrides)?,
        metrics: metrics(raw.metrics.address.as_deref(), &state)?,
        traces: traces(raw.traces)?,
        images: images(raw.images)?,
        network: network(raw.network, &root)?,
        streaming: streaming(raw.streaming)?,
        cgroup: word("cgroup.driver", raw.cgroup.driver.as_deref(), CgroupDriver::Auto, &DRIVERS)?,
        containers: containers(&raw.containers)?,
        records: records(&raw.records)?,
        stats: stats(&raw.stats)?,
        checkpoint_images: raw.checkpoint.images.unwrap_or(false),
        criu: path("checkpoint.criu", None, raw.checkpoint.criu, DEFAULT_CRIU)?,
        runtimes: runtimes::check(raw.runtimes)?,
        root,
        state,
        socket,
    })
}

const DRIVERS: [(&str, CgroupDriver); 3] =
    [("auto", CgroupDriver::Auto), ("cgroupfs", CgroupDriver::Cgroupfs), ("systemd", CgroupDriver::Systemd)];
const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
const SECCOMP: [(&str, DefaultSeccomp); 2] =
    [("runtime-default", DefaultSeccomp::RuntimeDefault), ("unconfined", DefaultSeccomp::Unconfined)];

/// One of a few words.
fn word<T: Copy>(key: &'static str, value: Option<&str>, default: T, words: &[(&str, T)]) -> Result<T, Bad> {
    let Some(value) = value else { return Ok(default) };
    words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        bad(key, value, format!("want one of {}", all.join(", ")))
    })
}

/// An absolute path without `..`: the flag's, the file's, or the default.
fn path(key: &'static str, flag: Option<&Path>, file: Option<String>, default: &str) -> Result<PathBuf, Bad> {
    let path = flag.map_or_else(|| file.map_or_else(|| PathBuf::from(default), PathBuf::from), Path::to_owned);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.parent().is_none() {
        return Err(bad(key, path.display(), "want an absolute path without `..`, other than `/`"));
    }
    Ok(path.components().collect())
}

fn log(raw: &RawLog, overrides: &Overrides) -> Result<Log, Bad> {
    let level = overrides.log_level.as_deref().or(raw.level.as_deref());
    let format = overrides.log_format.as_deref().or(raw.format.as_deref());
    Ok(Log {
        level: word("log.level", level, LogLevel::Info, &LEVELS)?,
        format: word("log.format", format, LogFormat::Text, &FORMATS)?,
    })
}

/// No address that another machine can reach: what is told there is the node's own business.
fn metrics(address: Option<&str>, state: &Path) -> Result<Metrics, Bad> {
    const KEY: &str = "metrics.address";
    const WANT: &str = "want off, auto, unix:///path, or a loopback address with a port such as 127.0.0.1:9469";
    let address = match address {
        Some("off") => return Ok(Metrics::Off),
        None | Some("auto") => Metrics::Unix(state.join("metrics.sock")),
        Some(text) => match text.strip_prefix("unix://") {
            Some(file) => Metrics::Unix(path(KEY, None, Some(file.to_owned()), "")?),
            None => match text.parse::<SocketAddr>() {
                Ok(address) if address.ip().is_loopback() && address.port() != 0 => Metrics::Tcp(address),
                Ok(_) | Err(_) => return Err(bad(KEY, text, WANT)),
            },
        },
    };
    match &address {
        Metrics::Unix(path) if path.as_os_str().len() > SOCKET_PATH_MAX => {
            Err(bad(KEY, path.display(), format!("a socket path has at most {SOCKET_PATH_MAX} bytes")))
        }
        Metrics::Unix(_) | Metrics::Tcp(_) | Metrics::Off => Ok(address),
    }
}

fn traces(raw: RawTraces) -> Result<Traces, Bad> {
    const WANT: &str = "want off, or the http:// or https:// address of an OTLP/gRPC collector such as \
        http://127.0.0.1:4317, without user and path";
    let endpoint = raw.endpoint.filter(|endpoint| endpoint != "off");
    if let Some(text) = &endpoint {
        let good = text.parse::<http::Uri>().is_ok_and(|uri| {
            let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
            plain && matches!(uri.scheme_str(), Some("http" | "https")) && matches!(uri.path(), "" | "/")
        });
        if !good {
            // It may hold what somebody took for a place for a password.
            return Err(bad("traces.endpoint", "..", WANT));
        }
    }
    let ratio = raw.sample_ratio.unwrap_or(1.0);
    if !(0.0..=1.0).contains(&ratio) {
        return Err(bad("traces.sample_ratio", ratio, "want 0 to 1"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nought to a million")]
    Ok(Traces { endpoint, sample_per_million: (ratio * 1e6).round() as u32 })
}

fn stats(raw: &RawStats) -> Result<Stats, Bad> {
    const KEY: &str = "stats.writable_layer_seconds";
    match raw.writable_layer_seconds.unwrap_or(10) {
        seconds @ 1..=3600 => Ok(Stats { writable_layer_period: Duration::from_secs(seconds) }),
        seconds => Err(bad(KEY, seconds, "want 1 to 3600")),
    }
}

fn images(raw: RawImages) -> Result<Images, Bad> {
    let downloads = at_least_one("images.max_concurrent_downloads", raw.max_concurrent_downloads, 4)?;
    Ok(Images {
        hosts_dir: path("images.hosts_dir", None, raw.hosts_dir, DEFAULT_HOSTS_DIR)?,
        platform: match raw.platform.as_deref() {
            None | Some("auto") => None,
            Some(text) => Some(platform(text)?),
        },
        max_concurrent_downloads: usize::try_from(downloads)
            .ok()
            .filter(|count| *count <= 64)
            .ok_or_else(|| bad("images.max_concurrent_downloads", downloads, "want 1 to 64"))?,
        max_layer_bytes: at_least_one("images.max_layer_bytes", raw.max_layer_bytes, 128 << 30)?,
        max_image_bytes: at_least_one("images.max_image_bytes", raw.max_image_bytes, 256 << 30)?,
        max_layer_entries: at_least_one("images.max_layer_entries", raw.max_layer_entries, 2_000_000)?,
        max_layer_ratio: at_least_one("images.max_layer_ratio", raw.max_layer_ratio, 200)?,
    })
}

fn at_least_one(key: &'static str, value: Option<u64>, default: u64) -> Result<u64, Bad> {
    match value {
        Some(0) => Err(bad(key, 0, "want at least 1")),
        Some(value) => Ok(value),
        None => Ok(default),
    }
}

fn platform(text: &str) -> Result<Platform, Bad> {
    let plain =
        |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let words: Vec<&str> = text.split('/').filter(plain).collect();
    match words.as_slice() {
        [os, architecture, variant @ ..] if variant.len() <= 1 && text.split('/').count() == words.len() => {
            Ok(Platform {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: variant.first().map(|&variant| variant.to_owned()),
            })
        }
        _ => Err(bad("images.platform", text, "want auto, or os/architecture[/variant] such as linux/arm64/v8")),
    }
}

fn network(raw: RawNetwork, root: &Path) -> Result<Network, Bad> {
    let bridge = match raw.bridge {
        Some(name) if name != "auto" => interface(name)?,
        _ => default_bridge(root),
    };
    let v4_parts = |address: Ipv4Addr| (u128::from(u32::from(address)), 32);
    let v6_parts = |address: Ipv6Addr| (u128::from(address), 128);
    let ipv4 = subnet("network.ipv4", raw.ipv4.as_deref(), 8..=30, v4_parts)?;
    let ipv6 = subnet("network.ipv6", raw.ipv6.as_deref(), 16..=126, v6_parts)?;
    if ipv4 == Subnet::Off && ipv6 == Subnet::Off {
        let want = "a pod needs one family; to attach no pod at all set network.enabled = false";
        return Err(bad("network.ipv4", "off", want));
    }
    Ok(Network {
        enabled: raw.enabled.unwrap_or(true),
        bridge,
        ipv4,
        ipv6,
        mtu: match raw.mtu {
            None | Some(AutoOr::Auto) => None,
            Some(AutoOr::Number(mtu)) => match u32::try_from(mtu) {
                // 1280 is the least IPv6 works with.
                Ok(mtu) if (1280..=65535).contains(&mtu) => Some(mtu),
                _ => return Err(bad("network.mtu", mtu, "want auto, or 1280 to 65535")),
            },
        },
    })
}

fn streaming(raw: RawStreaming) -> Result<Streaming, Bad> {
    let address = raw.address.unwrap_or_else(|| DEFAULT_STREAMING.to_owned());
    let want = "want an address and a port, such as 127.0.0.1:0 (any free port) or [::1]:10010";
    let pem = |key, file: Option<String>| match file.as_deref() {
        None | Some("") => Ok(None),
        Some(_) => path(key, None, file, "").map(Some),
    };
    let tls = match (pem("streaming.tls_cert", raw.tls_cert)?, pem("streaming.tls_key", raw.tls_key)?) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => return Err(bad("streaming.tls_cert", "set", "needs streaming.tls_key too")),
        (None, Some(_)) => return Err(bad("streaming.tls_key", "set", "needs streaming.tls_cert too")),
    };
    let seconds = |key, value, default| at_least_one(key, value, default).map(Duration::from_secs);
    Ok(Streaming {
        address: address.parse().map_err(|_| bad("streaming.address", &address, want))?,
        tls,
        idle_timeout: seconds("streaming.idle_timeout", raw.idle_timeout, 4 * 60 * 60)?,
        creation_timeout: seconds("streaming.creation_timeout", raw.creation_timeout, 30)?,
    })
}

/// `keelson0` for the default root; else a name only this root has, so that daemons side by side do not meet.
fn default_bridge(root: &Path) -> String {
    if root == Path::new(DEFAULT_ROOT) {
        return DEFAULT_BRIDGE.to_owned();
    }
    let hash = Sha256::digest(root.as_os_str().as_encoded_bytes());
    let hash = hash.iter().take(4).fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
    format!("kl-{hash:08x}")
}

fn interface(name: String) -> Result<String, Bad> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    if !starts_well || name.len() > 15 || !name.bytes().all(plain) {
        return Err(bad("network.bridge", name, "want auto, or 1 to 15 of A-Z a-z 0-9 - _ beginning with a letter"));
    }
    Ok(name)
}

fn subnet<A: std::str::FromStr + Copy>(
    key: &'static str,
    value: Option<&str>,
    prefixes: std::ops::RangeInclusive<u8>,
    parts: fn(A) -> (u128, u32),
) -> Result<Subnet<A>, Bad> {
    let value = match value {
        None | Some("auto") => return Ok(Subnet::Auto),
        Some("off") => return Ok(Subnet::Off),
        Some(value) => value,
    };
    let (low, high) = (prefixes.start(), prefixes.end());
    let want = format!("want auto, or a network of this family as address/prefix, prefix {low} to {high}");
    let refuse = || bad(key, value, &want);
    let (address, prefix) = value.split_once('/').ok_or_else(refuse)?;
    let prefix = prefix.parse().ok().filter(|prefix| prefixes.contains(prefix)).ok_or_else(refuse)?;
    let address: A = address.parse().ok().ok_or_else(refuse)?;
    let (bits, width) = parts(address);
    if bits.trailing_zeros() < width - u32::from(prefix) {
        return Err(bad(key, value, "has host bits set: write the network's first address"));
    }
    Ok(Subnet::Fixed { address, prefix })
}

fn containers(raw: &RawContainers) -> Result<Containers, Bad> {
    let log_line_max = raw.log_line_max.unwrap_or(16 * 1024);
    Ok(Containers {
        nofile: raw.nofile.as_deref().map_or(Ok(Nofile { soft: 1024, hard: 524_288 }), nofile)?,
        pids_limit: raw.pids_limit.filter(|limit| *limit != 0),
        log_line_max: usize::try_from(log_line_max)
            .ok()
            .filter(|max| (256..=1 << 20).contains(max))
            .ok_or_else(|| bad("containers.log_line_max", log_line_max, "want 256 to 1048576"))?,
        cdi_dirs: cdi_dirs(raw.cdi_dirs.as_deref())?,
        seccomp: word("containers.seccomp", raw.seccomp.as_deref(), DefaultSeccomp::RuntimeDefault, &SECCOMP)?,
    })
}

fn cdi_dirs(folders: Option<&[String]>) -> Result<Vec<PathBuf>, Bad> {
    let Some(folders) = folders else { return Ok(vec!["/etc/cdi".into(), "/var/run/cdi".into()]) };
    folders.iter().map(|folder| path("containers.cdi_dirs", Some(Path::new(folder)), None, "")).collect()
}

fn records(raw: &RawRecords) -> Result<Records, Bad> {
    let count = |value| usize::try_from(value).unwrap_or(usize::MAX);
    let exited = at_least_one("records.exited_per_container", raw.exited_per_container, 5)?;
    let seconds = raw.stopped_pods_after_seconds.unwrap_or(3600);
    if seconds < 60 {
        let want = "want at least 60: kubelet must have had the time to tell the cluster how the pod ended";
        return Err(bad("records.stopped_pods_after_seconds", seconds, want));
    }
    Ok(Records {
        exited_per_container: count(exited),
        stopped_pods: count(raw.stopped_pods.unwrap_or(1000)),
        stopped_pods_after: Duration::from_secs(seconds),
    })
}

fn nofile(text: &str) -> Result<Nofile, Bad> {
    let parse = || {
        let (soft, hard) = text.split_once(':')?;
        Some(Nofile { soft: soft.parse().ok()?, hard: hard.parse().ok()? })
    };
    parse()
        .filter(|limit| limit.soft >= 64 && limit.soft <= limit.hard)
        .ok_or_else(|| bad("containers.nofile", text, "want soft:hard, two numbers, 64 <= soft <= hard"))
}
