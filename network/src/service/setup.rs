//! Bridge, firewall and forwarding: made at the first attach, then checked for the price of one question to nf_tables, and made
//! again when somebody took something away.
//! Runs on the caller's thread; only set-up itself is serialised, and across daemons of one host by a lock on the namespace.
//! Owns `subnet.json`. Must never change the pods' networks while a pod is attached.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::io::Errno;

use super::{Network, reaper::Leaving};
use crate::{
    address::IpNet,
    bridge::{self, Bridge, BridgeError, Surroundings},
    config::Subnet,
    file::{self, FileError, Survive},
    firewall::{PortChange, Ruleset},
    forwarding::{Families, ForwardingError},
    netlink::{Batch, NetlinkError, link},
    netns::NetnsError,
    nfnetlink::{Element, Nftables},
    port,
    subnet::{self, SubnetError, Subnets},
    sysctl,
};

/// Why there is no network to attach to.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The host's interfaces, addresses or routes could not be read.
    #[error("look at the host's network")]
    Look {
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// No networks for the pods.
    #[error("choose pod networks")]
    Subnet {
        /// Why.
        #[source]
        source: SubnetError,
    },
    /// Their record.
    #[error("keep pod networks")]
    Record {
        /// Why.
        #[source]
        source: FileError,
    },
    /// The host has IPv6 switched off and nothing else is configured.
    #[error(
        "set up pod network: IPv6 is switched off on this host and IPv4 in the configuration; switch one of them on"
    )]
    NoFamily,
    /// The bridge.
    #[error("set up bridge")]
    Bridge {
        /// Why.
        #[source]
        source: BridgeError,
    },
    /// The pods' ports of the bridge.
    #[error("give pods their bridge again")]
    Ports {
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// The firewall.
    #[error("set up nftables table `{table}`{}", hint(source))]
    Firewall {
        /// The table.
        table: String,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// Forwarding.
    #[error("set up forwarding")]
    Forwarding {
        /// Why.
        #[source]
        source: ForwardingError,
    },
    /// The host's network namespace could not be entered or locked.
    #[error("enter the host's network namespace")]
    Namespace {
        /// Why.
        #[source]
        source: NetnsError,
    },
    /// Another daemon's set-up could not be waited for.
    #[error("lock the host's network namespace")]
    Lock {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A test made it fail.
    #[cfg(test)]
    #[error("fail as armed")]
    Armed,
}

fn hint(error: &NetlinkError) -> &'static str {
    match error.errno() {
        Some(Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::INVAL | Errno::NOENT) => {
            " (the kernel needs nf_tables with inet tables, nat, masq, fib and ct: CONFIG_NF_TABLES_INET and CONFIG_NFT_*)"
        }
        Some(Errno::PERM | Errno::ACCESS) => " (needs CAP_NET_ADMIN in the network namespace's user namespace)",
        Some(_) | None => "",
    }
}

/// A network that was set up.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) bridge: u32,
    pub(super) mtu: u32,
    /// The bridge's address in each network, IPv4 first.
    pub(super) gateways: Vec<(IpAddr, IpNet)>,
    pub(super) ipv6: bool,
    ruleset: Ruleset,
    /// Of nf_tables, when the table was last seen whole.
    generation: AtomicU32,
}

impl Network {
    pub(super) fn is_ready(&self) -> Option<Arc<Ready>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What attaching needs. Cheap when nothing changed: nf_tables' generation is asked for; the bridge shows itself missing
    /// when a port is made.
    #[tracing::instrument(level = "debug", skip_all)]
    pub(super) fn ready(&self) -> Result<Arc<Ready>, SetupError> {
        if let Some(ready) = self.is_ready() {
            let now = self.core.home.nftables(Nftables::generation);
            if let Ok(Some(now)) = now
                && now == ready.generation.load(Ordering::Acquire)
            {
                return Ok(ready);
            }
        }
        self.set_up()
    }

    /// Makes and mends everything.
    #[tracing::instrument(level = "debug", skip_all)]
    pub(super) fn set_up(&self) -> Result<Arc<Ready>, SetupError> {
        let _one = self.setup.lock().unwrap_or_else(PoisonError::into_inner);
        let made = self.core.home.inside(|| self.set_up_inside()).map_err(|source| SetupError::Namespace { source })?;
        let made = made.map(Arc::new);
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = made.as_ref().ok().cloned();
        made
    }

    /// Whether it could be set up, without doing it.
    pub(super) fn rehearse(&self) -> Result<(), SetupError> {
        self.core.home.nftables(Nftables::generation).map_err(|source| self.firewall(source))?;
        let rehearsed = self.core.home.inside(|| {
            let around = self.look()?;
            self.subnets(&around, Keep::Nothing).map(|_| ())
        });
        rehearsed.map_err(|source| SetupError::Namespace { source })?
    }

    fn set_up_inside(&self) -> Result<Ready, SetupError> {
        let _host = self.core.home.exclusive().map_err(|source| SetupError::Lock { source })?;
        let around = self.look()?;
        let subnets = self.subnets(&around, Keep::Record)?;
        let ipv6 = sysctl::ipv6_enabled();
        let gateways: Vec<(IpAddr, IpNet)> = subnets
            .nets()
            .into_iter()
            .filter(|net| ipv6 || matches!(net, IpNet::V4(_)))
            .filter_map(|net| Some((net.host(1)?, net)))
            .collect();
        if gateways.is_empty() {
            return Err(SetupError::NoFamily);
        }
        let has = |v6: bool| gateways.iter().any(|(gateway, _)| gateway.is_ipv6() == v6);
        let families = Families { ipv4: has(false), ipv6: has(true) };
        if subnets.ipv6.is_some() && !ipv6 && self.is_ready().is_none() {
            tracing::warn!("IPv6 is switched off on this host: pods get IPv4 only");
        }
        if self.core.faults.strike("setup") {
            #[cfg(test)]
            return Err(SetupError::Armed);
        }
        let mtu = self.config.mtu.unwrap_or(around.mtu);
        let mark = bridge::mark(self.dir());
        let wanted = Bridge { name: &self.config.bridge, mark: &mark, mtu, gateways: &gateways, ipv6 };
        let bridge = self
            .core
            .home
            .with(|socket| wanted.ensure(socket, &around))
            .map_err(|source| SetupError::Bridge { source })?;
        self.adopt(&around, bridge, ipv6)?;
        let forwarding = |source| SetupError::Forwarding { source };
        let not_routed = self.forwarding.plan(families, &around.links).map_err(forwarding)?;
        let ruleset = Ruleset {
            table: self.config.table.clone(),
            bridge: self.config.bridge.clone(),
            nets: gateways.iter().map(|(_, net)| *net).collect(),
            not_routed4: not_routed.ipv4,
            not_routed6: not_routed.ipv6,
        };
        let generation = self.core.home.nftables(|nftables| self.assert(nftables, &ruleset));
        let generation = generation.map_err(|source| self.firewall(source))?;
        self.forwarding.enable(families).map_err(forwarding)?;
        Ok(Ready { bridge, mtu, gateways, ipv6, ruleset, generation: AtomicU32::new(generation) })
    }

    pub(super) fn look(&self) -> Result<Surroundings, SetupError> {
        let ours: Vec<String> = {
            let state = self.state();
            let leaving = state.leaving.values().map(Leaving::attachment);
            state.attachments.values().chain(leaving).map(|known| known.host_interface.clone()).collect()
        };
        let look = |socket: &mut _| {
            Surroundings::look(socket, &self.config.bridge, |name| ours.iter().any(|other| other == name))
        };
        let mut around = self.core.home.with(look).map_err(|source| SetupError::Look { source })?;
        around.foreign.extend(subnet::resolvers());
        Ok(around)
    }

    fn subnets(&self, around: &Surroundings, keep: Keep) -> Result<Subnets, SetupError> {
        let path = self.dir().join("subnet.json");
        let found: Option<Subnets> = match file::get(&path) {
            Ok(found) => found,
            Err(error) if error.source.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "pod networks' record not understood, choosing again");
                None
            }
            Err(source) => return Err(SetupError::Record { source }),
        };
        let in_use = {
            let state = self.state();
            !state.attachments.is_empty() || !state.leaving.is_empty()
        };
        if let Some(found) = found {
            let same = found.configured == subnet::configured(&self.config);
            match found.conflict(&around.foreign) {
                None if same => return Ok(found),
                conflict if in_use => {
                    match conflict {
                        Some((net, other)) => tracing::warn!(
                            %net, other = other.what, "the pods' network is used by somebody else too; kept while pods are attached"
                        ),
                        None => tracing::warn!("another pod network is configured: taken when no pod is attached"),
                    }
                    return Ok(found);
                }
                None | Some(_) => {}
            }
        }
        let failed = |source| SetupError::Subnet { source };
        let random = if self.config.ipv6 == Subnet::Auto { subnet::random_ula().map_err(failed)? } else { [0; 7] };
        let chosen = subnet::choose(&self.config, &around.foreign, random).map_err(failed)?;
        if keep == Keep::Record {
            file::put(&path, &chosen, Survive::PowerLoss).map_err(|source| SetupError::Record { source })?;
            let text = chosen.nets().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            tracing::info!(networks = text, "pod networks chosen");
        }
        Ok(chosen)
    }

    /// Ports that lost their bridge when somebody deleted it.
    fn adopt(&self, around: &Surroundings, bridge: u32, ipv6: bool) -> Result<(), SetupError> {
        let mut batch = Batch::new();
        for port in around.ports.iter().filter(|port| port.master != Some(bridge)) {
            tracing::warn!(interface = port.name, "pod's interface was no port of the bridge any more: added again");
            link::set_master(&mut batch, &port.name, bridge);
            link::ready_port(&mut batch, &port.name, ipv6);
            link::set_up(&mut batch, &port.name, 0);
        }
        let refused = self.core.home.with(|socket| socket.execute_each(batch));
        // One that went away meanwhile needs no bridge.
        let missing = |error: &NetlinkError| error.errno() == Some(Errno::NODEV);
        match refused.map(|refused| refused.into_iter().map(|(_, error)| error).find(|error| !missing(error))) {
            Ok(None) => Ok(()),
            Ok(Some(source)) | Err(source) => Err(SetupError::Ports { source }),
        }
    }

    /// Makes the table unless it is there and whole; returns the generation at which it was.
    fn assert(&self, nftables: &mut Nftables, ruleset: &Ruleset) -> Result<u32, NetlinkError> {
        let published = self.published();
        let before = nftables.generation()?.unwrap_or(0);
        if ruleset.is_intact(nftables, &published)? {
            return Ok(before);
        }
        ruleset.install(nftables, &published)?;
        tracing::info!(table = ruleset.table, "nftables table made");
        Ok(nftables.generation()?.unwrap_or(0))
    }

    fn published(&self) -> Vec<(port::Map, Element)> {
        self.state().published.values().flatten().cloned().collect()
    }

    /// Changes the maps of host ports; when the table is not as it should be, all of it is made again.
    #[tracing::instrument(level = "debug", skip_all)]
    pub(super) fn publish(&self, ready: &Ready, change: PortChange<'_>) -> Result<(), SetupError> {
        self.core
            .home
            .nftables(|nftables| ready.change_ports(nftables, change, || self.published()))
            .map_err(|source| self.firewall(source))
    }

    pub(super) fn firewall(&self, source: NetlinkError) -> SetupError {
        SetupError::Firewall { table: self.config.table.clone(), source }
    }
}

/// Whether a choice is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Record,
    Nothing,
}

impl Ready {
    fn change_ports(
        &self,
        nftables: &mut Nftables,
        change: PortChange<'_>,
        all: impl Fn() -> Vec<(port::Map, Element)>,
    ) -> Result<(), NetlinkError> {
        let before = nftables.generation()?;
        match nftables.commit(self.ruleset.change(change)) {
            Ok(()) => {}
            // An element that is not as recorded, or a table that is gone: what must be there is known in full.
            Err(error) => {
                tracing::warn!(%error, table = self.ruleset.table, "nftables table was changed by somebody: made again");
                self.ruleset.install(nftables, &all())?;
            }
        }
        let after = nftables.generation()?;
        if let (Some(before), Some(after)) = (before, after)
            && before == self.generation.load(Ordering::Acquire)
            && after == before.wrapping_add(1)
        {
            self.generation.store(after, Ordering::Release);
        }
        Ok(())
    }
}
