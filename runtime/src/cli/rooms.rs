//! The daemon's configuration, handed on: to each room its own, narrower one, in its own words.
//! Runs once, on the main thread, before the engine opens. Owns nothing.
//! Must never let a room see the configuration file.

use std::path::PathBuf;

use keelson_network::{Ipv4Net, Ipv6Net};

use super::CliError;
use crate::{
    config::{self, Config, Nofile},
    engine::{CgroupDriver, EngineConfig, HandlerConfig, Rlimit},
    retire::Keep,
    streaming::StreamingConfig,
};

const SHIM: &str = "keelson-shim";

pub(super) fn engine(config: &Config) -> Result<EngineConfig, CliError> {
    let containers = &config.containers;
    Ok(EngineConfig {
        cgroup_driver: match config.cgroup {
            config::CgroupDriver::Auto => CgroupDriver::Auto,
            config::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
            config::CgroupDriver::Systemd => CgroupDriver::Systemd,
        },
        keep: Keep {
            per_container: config.records.exited_per_container,
            pods: config.records.stopped_pods,
            after: config.records.stopped_pods_after,
        },
        rlimits: vec![nofile(containers.nofile)],
        pids_limit: containers.pids_limit.map_or(0, |limit| i64::try_from(limit).unwrap_or(i64::MAX)),
        cdi_dirs: containers.cdi_dirs.clone(),
        log_line_max: u32::try_from(containers.log_line_max).unwrap_or(u32::MAX),
        writable_layer_period: config.stats.writable_layer_period,
        network: config.network.enabled.then(|| network(config)),
        criu: config.criu.clone(),
        checkpoint_images: config.checkpoint_images,
        handlers: config
            .runtimes
            .iter()
            .map(|(name, runtime)| {
                let config = HandlerConfig {
                    program: runtime.path.clone(),
                    options: runtime.options.clone(),
                    sandboxed: runtime.sandboxed,
                };
                (name.clone(), config)
            })
            .collect(),
        ..EngineConfig::new(config.root.clone(), config.state.clone(), shim(config)?, images(config))
    })
}

/// Open files: as configured, but not above what this process may hand on. Only CAP_SYS_RESOURCE raises a hard limit, and a
/// node without it should run pods all the same.
fn nofile(wanted: Nofile) -> Rlimit {
    let may_raise = rustix::thread::capabilities(None)
        .is_ok_and(|own| own.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE));
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let hard = if may_raise { wanted.hard } else { wanted.hard.min(own) };
    Rlimit { name: "RLIMIT_NOFILE".to_owned(), soft: wanted.soft.min(hard), hard }
}

/// The shim program: the configured one, or the one beside this program.
pub(super) fn shim(config: &Config) -> Result<PathBuf, CliError> {
    let path = match &config.shim {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .map_err(|source| CliError::Host { act: "find this program's own file", source })?
            .with_file_name(SHIM),
    };
    match std::fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(source) => Err(CliError::NoShim { path, source }),
    }
}

pub(super) fn images(config: &Config) -> keelson_imageservice::Config {
    let images = &config.images;
    let defaults = keelson_imageservice::Config::default();
    keelson_imageservice::Config {
        root: config.root.clone(),
        hosts_dir: images.hosts_dir.clone(),
        platform: images.platform.as_ref().map_or(defaults.platform.clone(), |platform| {
            keelson_imageservice::Platform {
                os: platform.os.clone(),
                architecture: platform.architecture.clone(),
                variant: platform.variant.clone(),
            }
        }),
        limits: keelson_imageservice::Limits {
            layer_bytes: images.max_layer_bytes,
            image_bytes: images.max_image_bytes,
            entries: images.max_layer_entries,
            ratio: images.max_layer_ratio,
            ..defaults.limits.clone()
        },
        max_concurrent_downloads: images.max_concurrent_downloads,
        ..defaults
    }
}

pub(super) fn streaming(config: &Config) -> StreamingConfig {
    let streaming = &config.streaming;
    StreamingConfig {
        address: streaming.address,
        tls: streaming.tls.clone(),
        idle_timeout: streaming.idle_timeout,
        creation_timeout: streaming.creation_timeout,
    }
}

pub(super) fn network(config: &Config) -> keelson_network::Config {
    let network = &config.network;
    keelson_network::Config {
        dir: config.root.join("network"),
        bridge: network.bridge.clone(),
        table: network.bridge.clone(),
        ipv4: subnet(network.ipv4, Ipv4Net::new),
        ipv6: subnet(network.ipv6, Ipv6Net::new),
        mtu: network.mtu,
    }
}

fn subnet<A, N>(subnet: config::Subnet<A>, make: impl Fn(A, u8) -> Option<N>) -> keelson_network::Subnet<N> {
    match subnet {
        config::Subnet::Auto => keelson_network::Subnet::Auto,
        config::Subnet::Off => keelson_network::Subnet::Off,
        // The configuration has refused what makes no network.
        config::Subnet::Fixed { address, prefix } => {
            make(address, prefix).map_or(keelson_network::Subnet::Auto, keelson_network::Subnet::Fixed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn config(text: &str) -> Config {
        Config::parse(text, "test", &Overrides::default()).unwrap()
    }

    #[test]
    fn the_defaults_of_the_configuration_are_those_of_the_rooms() {
        let (ours, theirs) = (images(&config("")), keelson_imageservice::Config::default());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        let (ours, theirs) =
            (network(&config("")), keelson_network::Config::new("/var/lib/keelson/network".into(), "keelson0"));
        assert_eq!(ours, theirs);
    }

    #[test]
    fn fixed_networks_arrive() {
        let network = network(&config("[network]\nipv4 = \"10.9.0.0/24\"\nipv6 = \"off\"\nmtu = 1400\n"));
        assert_eq!(network.ipv4, keelson_network::Subnet::Fixed("10.9.0.0/24".parse().unwrap()));
        assert_eq!((network.ipv6, network.mtu), (keelson_network::Subnet::Off, Some(1400)));
    }

    #[test]
    fn a_shim_that_is_not_there_is_named() {
        let said = shim(&config("shim = \"/nonexistent/keelson-shim\"")).unwrap_err().to_string();
        assert!(said.starts_with("find the shim `/nonexistent/keelson-shim`"), "{said}");
    }
}
