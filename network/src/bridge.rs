//! The bridge that pods are ports of, and the host's view around it: made when the first pod comes, mended when somebody
//! deleted it or a part of it. Everything here may be repeated.
//! Runs on the caller's thread in the host's namespace (it writes sysctls). Owns the bridge, known by the mark in its alias.
//! Must never take over an interface that does not carry that mark.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use crate::{
    address::{IpNet, Mac},
    netlink::{
        Batch, NetlinkError, Socket,
        address::{self, Assigned},
        link::{self, Link},
        route,
    },
    subnet::Foreign,
    sysctl::{self, Family, SysctlError},
};

const DEFAULT_MTU: u32 = 1500;
/// Given, not generated, so that it needs no duplicate detection; pods' own come from their hardware addresses.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// IFALIASZ less its closing NUL.
const ALIAS: usize = 255;

/// Why there is no bridge.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The name is somebody else's.
    #[error(
        "use bridge `{name}`: an interface of that name is there and not of this network (its alias is `{alias}`, not `{ours}`); configure another name"
    )]
    Foreign {
        /// The name.
        name: String,
        /// What it is marked with.
        alias: String,
        /// What ours would be marked with.
        ours: String,
    },
    /// It could not be made or looked at.
    #[error("make bridge `{name}`")]
    Netlink {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// It could not be set.
    #[error("set up bridge `{name}`")]
    Sysctl {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: SysctlError,
    },
    /// Made a moment ago, and gone.
    #[error("make bridge `{name}`: it vanished while it was set up")]
    Vanished {
        /// The name.
        name: String,
    },
}

/// What the host's network looks like, without what is ours.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// The bridge, if an interface has its name.
    pub(crate) bridge: Option<Link>,
    /// Interfaces of others: neither the bridge nor its ports.
    pub(crate) links: Vec<Link>,
    /// Ports of the bridge, and interfaces that lost it.
    pub(crate) ports: Vec<Link>,
    /// Addresses on the bridge.
    pub(crate) addresses: Vec<Assigned>,
    /// Networks in use by others.
    pub(crate) foreign: Vec<Foreign>,
    /// Largest packet on the way out.
    pub(crate) mtu: u32,
}

impl Surroundings {
    /// Looks around. `is_ours` tells a pod's host end by its name.
    pub(crate) fn look(
        socket: &mut Socket,
        bridge: &str,
        is_ours: impl Fn(&str) -> bool,
    ) -> Result<Self, NetlinkError> {
        let all = link::list(socket)?;
        let index = all.iter().find(|link| link.name == bridge).map(|link| link.index);
        let mut found = Surroundings { mtu: DEFAULT_MTU, ..Self::default() };
        let name_of = |index: u32| all.iter().find(|link| link.index == index).map_or("?", |link| link.name.as_str());
        for assigned in address::list(socket)? {
            if Some(assigned.index) == index {
                found.addresses.push(assigned);
            } else if let Some(net) = IpNet::containing(assigned.address, assigned.prefix) {
                let what = format!("address {} of {}", assigned.address, name_of(assigned.index));
                found.foreign.push(Foreign { net, what });
            }
        }
        let mut best = None;
        for route in route::list(socket)? {
            if route.destination.prefix() == 0 {
                let rank = (route.priority, matches!(route.destination, IpNet::V6(_)));
                if let Some(interface) = route.interface
                    && best.is_none_or(|(other, _)| rank < other)
                {
                    best = Some((rank, interface));
                }
            } else if route.interface != index || index.is_none() {
                let what = format!("route through {}", route.interface.map_or("several interfaces", name_of));
                found.foreign.push(Foreign { net: route.destination, what });
            }
        }
        if let Some(uplink) = best.and_then(|(_, index)| all.iter().find(|link| link.index == index)) {
            found.mtu = uplink.mtu.clamp(1280, 65_535);
        }
        for link in all {
            if Some(link.index) == index {
                found.bridge = Some(link);
            } else if (index.is_some() && link.master == index) || is_ours(&link.name) {
                found.ports.push(link);
            } else {
                found.links.push(link);
            }
        }
        Ok(found)
    }
}

/// The bridge as it shall be.
#[derive(Debug)]
pub(crate) struct Bridge<'a> {
    pub(crate) name: &'a str,
    pub(crate) mark: &'a str,
    pub(crate) mtu: u32,
    /// Its own addresses and their networks.
    pub(crate) gateways: &'a [(IpAddr, IpNet)],
    pub(crate) ipv6: bool,
}

/// The mark of the bridge of the network whose records are in `dir`.
pub(crate) fn mark(dir: &Path) -> String {
    let text = format!("keelson {}", dir.display());
    // The end of a path tells more than its beginning, and an alias is bytes, so cut between characters.
    let cut = text.char_indices().map(|(at, _)| at).find(|at| text.len() - at <= ALIAS).unwrap_or(0);
    text.get(cut..).unwrap_or_default().to_owned()
}

impl Bridge<'_> {
    /// Makes it, or what is missing of it; returns its number.
    pub(crate) fn ensure(&self, socket: &mut Socket, around: &Surroundings) -> Result<u32, BridgeError> {
        let name = self.name.to_owned();
        let failed = |source| BridgeError::Netlink { name: name.clone(), source };
        match &around.bridge {
            None => {
                let gateway = self.gateways.first().map_or(IpAddr::from([0; 4]), |(gateway, _)| *gateway);
                let mut batch = Batch::new();
                // Made and marked in one system call: no death of this process can come between.
                link::create_bridge(&mut batch, self.name, Mac::for_address(gateway), self.mtu);
                link::mark_bridge(&mut batch, self.name, self.mark, self.ipv6);
                socket.execute(batch).map_err(failed)?;
                tracing::info!(bridge = self.name, mtu = self.mtu, "bridge made");
            }
            Some(link) if link.alias.as_deref() != Some(self.mark) => {
                return Err(BridgeError::Foreign {
                    name,
                    alias: link.alias.clone().unwrap_or_default(),
                    ours: self.mark.to_owned(),
                });
            }
            Some(_) => {}
        }
        let Some(index) = link::get(socket, self.name, false).map_err(failed)?.map(|link| link.index) else {
            return Err(BridgeError::Vanished { name });
        };
        // Before it is up: an interface that comes up with these as they were would at once ask for routers and addresses.
        self.settings().map_err(|source| BridgeError::Sysctl { name: name.clone(), source })?;
        let mut batch = Batch::new();
        if !around.bridge.as_ref().is_some_and(|link| link.up) {
            link::set_up(&mut batch, self.name, index);
        }
        // Neighbour discovery for what is forwarded to pods asks from a link-local address.
        let link_local = self.ipv6.then_some((IpAddr::V6(LINK_LOCAL), 64));
        let gateways = self.gateways.iter().map(|(gateway, net)| (*gateway, net.prefix()));
        for (address, prefix) in gateways.chain(link_local) {
            let assigned = Assigned { index, address, prefix };
            if !around.addresses.contains(&assigned) {
                address::add(&mut batch, assigned);
            }
        }
        socket.execute(batch).map_err(failed)?;
        Ok(index)
    }

    fn settings(&self) -> Result<(), SysctlError> {
        // Answers to the host's own loopback connections come in here; the firewall's guard keeps others out.
        for (key, value) in [("route_localnet", "1"), ("forwarding", "1")] {
            sysctl::ensure(&sysctl::per_interface(Family::V4, self.name, key), value)?;
        }
        if self.ipv6 {
            // Pods are no routers of this host (CVE-2020-10749).
            for (key, value) in [("accept_ra", "0"), ("autoconf", "0"), ("forwarding", "1")] {
                sysctl::ensure(&sysctl::per_interface(Family::V6, self.name, key), value)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_the_folder_and_fits() {
        assert_eq!(mark(Path::new("/var/lib/keelson/network")), "keelson /var/lib/keelson/network");
        let long = format!("/{}/network", "x".repeat(400));
        assert!(mark(Path::new(&long)).len() == ALIAS && mark(Path::new(&long)).ends_with("x/network"));
    }
}
