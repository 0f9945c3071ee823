//! Makes the host route for its pods without making it a router for anybody else: what forwarding was off for stays cut off by
//! the firewall's guard, interfaces that learn routes from their router go on learning, and what was changed is recorded before
//! it is changed, to be put back. Runs on the caller's thread in the host's namespace (sysctls).
//! Owns `forwarding.json`. Must never turn off what it did not turn on.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    file::{self, FileError, Survive},
    netlink::link::Link,
    sysctl::{self, Family, SysctlError},
};

const IPV4_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6_FORWARD: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// What was off before, as recorded. Version 1. Of another boot or namespace it means nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    boot: String,
    namespace: u64,
    ipv4: Option<Changed>,
    ipv6: Option<Changed>,
}

/// One family's forwarding was off and was switched on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    /// The interfaces there were: between them nothing was routed.
    interfaces: Vec<String>,
    /// Those whose `accept_ra` went from 1 to 2.
    routers_heeded: Vec<String>,
}

/// Interfaces between which the firewall must go on routing nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NotRouted {
    pub(crate) ipv4: Vec<String>,
    pub(crate) ipv6: Vec<String>,
}

/// Why the host could not be made to route, or be put back.
#[derive(Debug, thiserror::Error)]
pub enum ForwardingError {
    /// A setting.
    #[error("let the host route for pods")]
    Sysctl {
        /// Which.
        #[source]
        source: SysctlError,
    },
    /// The record.
    #[error("record what forwarding was")]
    Record {
        /// Which file.
        #[source]
        source: FileError,
    },
}

impl From<SysctlError> for ForwardingError {
    fn from(source: SysctlError) -> Self {
        ForwardingError::Sysctl { source }
    }
}

impl From<FileError> for ForwardingError {
    fn from(source: FileError) -> Self {
        ForwardingError::Record { source }
    }
}

/// Which families pods have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Families {
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
}

/// Forwarding of one namespace, as one network needs it.
#[derive(Debug)]
pub(crate) struct Forwarding {
    path: PathBuf,
    namespace: u64,
}

impl Forwarding {
    pub(crate) fn new(dir: &Path, namespace: u64) -> Self {
        Self { path: dir.join("forwarding.json"), namespace }
    }

    /// Before the firewall is made: records what is going to be switched on, and says what the firewall must guard.
    /// `links` are the interfaces of others.
    pub(crate) fn plan(&self, families: Families, links: &[Link]) -> Result<NotRouted, ForwardingError> {
        let mut record = self.record()?;
        let before = record.clone();
        let names = || links.iter().filter(|link| link.name != "lo").map(|link| link.name.clone()).collect::<Vec<_>>();
        if families.ipv4 && record.ipv4.is_none() && is_off(IPV4_FORWARD)? {
            record.ipv4 = Some(Changed { interfaces: names(), routers_heeded: Vec::new() });
        }
        if families.ipv6 && record.ipv6.is_none() && is_off(IPV6_FORWARD)? {
            let mut routers_heeded = names();
            // A router ignores advertisements unless told otherwise, and the kernel drops the routes it had from them.
            routers_heeded.retain(|name| {
                let heeds = sysctl::read(&sysctl::per_interface(Family::V6, name, "accept_ra"));
                matches!(heeds, Ok(Some(value)) if value == "1")
            });
            record.ipv6 = Some(Changed { interfaces: names(), routers_heeded });
        }
        if record != before {
            file::put(&self.path, &record, Survive::PowerLoss)?;
        }
        Ok(NotRouted { ipv4: interfaces(record.ipv4), ipv6: interfaces(record.ipv6) })
    }

    /// After the firewall is made: switches on what is off.
    pub(crate) fn enable(&self, families: Families) -> Result<(), ForwardingError> {
        if families.ipv4 && is_off(IPV4_FORWARD)? {
            sysctl::write(Path::new(IPV4_FORWARD), "1")?;
            tracing::info!(
                "IPv4 forwarding was off: switched on for pods, still off between the interfaces there were"
            );
        }
        if families.ipv6 && is_off(IPV6_FORWARD)? {
            for name in self.record()?.ipv6.into_iter().flat_map(|changed| changed.routers_heeded) {
                sysctl::ensure(&sysctl::per_interface(Family::V6, &name, "accept_ra"), "2")?;
            }
            sysctl::write(Path::new(IPV6_FORWARD), "1")?;
            tracing::info!(
                "IPv6 forwarding was off: switched on for pods, still off between the interfaces there were"
            );
        }
        Ok(())
    }

    /// Puts back what was switched on, unless an interface has come since that may rely on it. `links` are the interfaces
    /// of others.
    pub(crate) fn restore(&self, links: &[Link]) -> Result<(), ForwardingError> {
        let record = self.record()?;
        for (changed, path) in [(&record.ipv4, IPV4_FORWARD), (&record.ipv6, IPV6_FORWARD)] {
            let Some(changed) = changed else { continue };
            let came = links.iter().find(|link| link.name != "lo" && !changed.interfaces.contains(&link.name));
            if let Some(link) = came {
                tracing::warn!(
                    interface = link.name,
                    setting = path,
                    "forwarding left on: an interface that came later may need it"
                );
                continue;
            }
            sysctl::ensure(Path::new(path), "0")?;
            for name in &changed.routers_heeded {
                let path = sysctl::per_interface(Family::V6, name, "accept_ra");
                if sysctl::read(&path)?.as_deref() == Some("2") {
                    sysctl::write(&path, "1")?;
                }
            }
        }
        file::remove(&self.path)?;
        Ok(())
    }

    fn record(&self) -> Result<Record, ForwardingError> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let fresh = Record { version: 1, boot, namespace: self.namespace, ipv4: None, ipv6: None };
        match file::get::<Record>(&self.path) {
            Ok(Some(found)) if (&found.boot, found.namespace) == (&fresh.boot, fresh.namespace) => Ok(found),
            Ok(_) => Ok(fresh),
            Err(error) if error.source.kind() == std::io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "forwarding record not understood, starting a new one");
                Ok(fresh)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn interfaces(changed: Option<Changed>) -> Vec<String> {
    changed.map(|changed| changed.interfaces).unwrap_or_default()
}

fn is_off(path: &str) -> Result<bool, SysctlError> {
    Ok(sysctl::read(Path::new(path))?.as_deref() == Some("0"))
}
