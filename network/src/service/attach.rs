//! Attach: lease addresses, record, then make (`make.rs`); undone when a step fails.
//! Runs on the caller's thread. A sandbox that is attached already keeps what it has; one whose attach was cut short by a crash
//! gets what its record says.
//! Owns nothing beyond the call. Must never make what is not recorded yet.

use std::net::IpAddr;

use keelson_api::SandboxId;

use super::{DetachError, Network, SetupError, elements, setup::Ready};
use crate::{
    address::{IpNet, Mac},
    attachment::{Attachment, INTERFACE},
    conntrack,
    file::FileError,
    ipam::{self, Exhausted},
    netlink::{NetlinkError, diag},
    netns::{Netns, NetnsError},
    port::{self, PortError, PortMapping, Protocol},
};

/// What a sandbox wants of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// Who asks.
    pub sandbox: SandboxId,
    /// What it publishes on the host.
    pub ports: Vec<PortMapping>,
}

/// Why a sandbox was not attached. Nothing is left of the attempt, or a record by which `detach` finishes the undoing.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no network to attach to.
    #[error("attach sandbox to network `{bridge}`: set it up")]
    Setup {
        /// The bridge.
        bridge: String,
        /// Why.
        #[source]
        source: Box<SetupError>,
    },
    /// What it had before is not gone yet.
    #[error("attach sandbox to network `{bridge}`: take its earlier attachment away")]
    Leaving {
        /// The bridge.
        bridge: String,
        /// Why.
        #[source]
        source: Box<DetachError>,
    },
    /// No address is left.
    #[error("attach sandbox to network `{bridge}`")]
    Exhausted {
        /// The bridge.
        bridge: String,
        /// Of which network.
        #[source]
        source: Exhausted,
    },
    /// A host port cannot be had.
    #[error("attach sandbox to network `{bridge}`")]
    Port {
        /// The bridge.
        bridge: String,
        /// Which, and why.
        #[source]
        source: PortError,
    },
    /// A lease or the record could not be written.
    #[error("attach sandbox to network `{bridge}`: record it")]
    Record {
        /// The bridge.
        bridge: String,
        /// Why.
        #[source]
        source: FileError,
    },
    /// The kernel refused a step.
    #[error("attach sandbox to network `{bridge}`")]
    Netlink {
        /// The bridge.
        bridge: String,
        /// Which step, and why.
        #[source]
        source: NetlinkError,
    },
    /// Every name the host's end could have is taken.
    #[error("attach sandbox to network `{bridge}`: every interface name made of its id is taken, the last is `{name}`")]
    Names {
        /// The bridge.
        bridge: String,
        /// The last one tried.
        name: String,
    },
    /// The pod's interface was gone right after it was made.
    #[error("attach sandbox to network `{bridge}`: its interface vanished while it was set up")]
    Vanished {
        /// The bridge.
        bridge: String,
    },
    /// The host's network namespace could not be entered.
    #[error("attach sandbox to network `{bridge}`: look who listens on the host")]
    Namespace {
        /// The bridge.
        bridge: String,
        /// Why.
        #[source]
        source: NetnsError,
    },
    /// A test made it fail.
    #[cfg(test)]
    #[error("fail as armed at {point}")]
    Armed {
        /// Where.
        point: &'static str,
    },
}

impl Network {
    /// Gives the sandbox an interface in `netns`, with addresses, routes, loopback and its host ports. Attached already: says
    /// what it has.
    ///
    /// # Errors
    /// When any step fails; what was made is undone.
    #[tracing::instrument(level = "debug", skip_all, fields(sandbox = %request.sandbox))]
    pub fn attach(&self, request: &AttachRequest, netns: &Netns) -> Result<Attachment, AttachError> {
        let sandbox = &request.sandbox;
        let _turn = self.turn(sandbox);
        let left = self.core.wait_gone(sandbox);
        left.map_err(|source| AttachError::Leaving { bridge: self.bridge_name(), source: Box::new(source) })?;
        let ready = self.ready().map_err(|source| self.setup_failed(source))?;
        let known = self.attachment(sandbox);
        if let Some(known) = &known {
            if known.ports == published(&request.ports) && self.is_intact(known, &ready, netns) {
                return Ok(known.clone());
            }
            tracing::info!(%sandbox, "attachment was begun before: made again");
            self.unmake(known);
        }
        let made = self.plan(request, &ready, known).and_then(|planned| self.make(planned, ready, netns));
        if made.is_err() {
            self.give_up(sandbox);
        }
        made
    }

    /// Leases and records; touches no interface.
    #[tracing::instrument(level = "debug", skip_all)]
    fn plan(
        &self,
        request: &AttachRequest,
        ready: &Ready,
        known: Option<Attachment>,
    ) -> Result<Attachment, AttachError> {
        let sandbox = &request.sandbox;
        let addresses = match known {
            Some(known) if self.is_leased(&known, &ready.gateways) => known.addresses,
            Some(_) | None => self.lease(sandbox, &ready.gateways)?,
        };
        let port_failed = |source| AttachError::Port { bridge: self.bridge_name(), source };
        let ports = port::check(&request.ports, &addresses).map_err(port_failed)?;
        let mut claimed = self.state().book.claim(sandbox, &ports);
        // The owner may be on its way out: its ports are unpublished, its record is not gone yet.
        if matches!(claimed, Err(PortError::Taken { .. })) && self.core.wait_all_gone().is_ok() {
            claimed = self.state().book.claim(sandbox, &ports);
        }
        claimed.map_err(port_failed)?;
        self.check_listeners(&ports)?;
        let first = addresses.first().copied().unwrap_or(IpAddr::from([0; 4]));
        let attachment = Attachment {
            version: Attachment::VERSION,
            sandbox: sandbox.clone(),
            interface: INTERFACE.to_owned(),
            host_interface: Attachment::host_names(sandbox).next().unwrap_or_default(),
            mac: Mac::for_address(first),
            mtu: ready.mtu,
            addresses,
            prefixes: ready.gateways.iter().map(|(_, net)| net.prefix()).collect(),
            gateways: ready.gateways.iter().map(|(gateway, _)| *gateway).collect(),
            ports,
        };
        self.record(&attachment)?;
        self.fault("recorded")?;
        Ok(attachment)
    }

    fn lease(&self, sandbox: &SandboxId, gateways: &[(IpAddr, IpNet)]) -> Result<Vec<IpAddr>, AttachError> {
        let record_failed = |source| AttachError::Record { bridge: self.bridge_name(), source };
        let dir = self.lease_dir();
        // What an earlier attempt left: of other networks, or of one family alone.
        let left = self.state().ipam.of(sandbox);
        for address in left {
            ipam::remove(&dir, address).map_err(record_failed)?;
            self.state().ipam.release(address);
        }
        let mut addresses = Vec::with_capacity(gateways.len());
        for (gateway, net) in gateways {
            loop {
                let mut reserved = self.state().ipam.reserve(*net, *gateway, sandbox);
                if reserved.is_err() && self.core.wait_all_gone().is_ok() {
                    reserved = self.state().ipam.reserve(*net, *gateway, sandbox);
                }
                let address =
                    reserved.map_err(|source| AttachError::Exhausted { bridge: self.bridge_name(), source })?;
                self.fault("reserved")?;
                // A file that is there without being known was put there by somebody; that address stays reserved.
                if ipam::write(&dir, address, sandbox).map_err(record_failed)? {
                    addresses.push(address);
                    break;
                }
                tracing::warn!(%address, "an unknown lease file holds this address: taking another");
            }
        }
        self.fault("leased")?;
        Ok(addresses)
    }

    pub(super) fn record(&self, attachment: &Attachment) -> Result<(), AttachError> {
        let mut state = self.state();
        state.published.insert(attachment.sandbox.clone(), elements(&attachment.ports, attachment));
        state.attachments.insert(attachment.sandbox.clone(), attachment.clone());
        drop(state);
        self.core.records.put(attachment).map_err(|source| AttachError::Record { bridge: self.bridge_name(), source })
    }

    fn check_listeners(&self, ports: &[PortMapping]) -> Result<(), AttachError> {
        let mut checked: Vec<Protocol> = Vec::new();
        for mapping in ports {
            // The kernel lists no SCTP sockets this way.
            if mapping.protocol == Protocol::Sctp || checked.contains(&mapping.protocol) {
                continue;
            }
            checked.push(mapping.protocol);
            let listeners = self.core.home.inside(|| diag::listeners(mapping.protocol.number()));
            let listeners =
                listeners.map_err(|source| AttachError::Namespace { bridge: self.bridge_name(), source })?;
            let listeners = listeners.map_err(|source| self.netlink_failed(source))?;
            for port in ports.iter().filter(|port| port.protocol == mapping.protocol) {
                let refused = port::check_listeners(port, &listeners);
                refused.map_err(|source| AttachError::Port { bridge: self.bridge_name(), source })?;
            }
        }
        Ok(())
    }

    /// Lets UDP senders reach who has the port now.
    pub(super) fn forget_flows(&self, attachment: &Attachment) {
        let udp = attachment.ports.iter().filter(|port| port.protocol == Protocol::Udp).map(|port| port.host_port);
        let udp: Vec<u16> = udp.collect();
        if udp.is_empty() {
            return;
        }
        match self.core.home.inside(|| conntrack::forget_udp(&udp)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(sandbox = %attachment.sandbox, %error, "old UDP flows may go astray"),
            Err(error) => tracing::warn!(sandbox = %attachment.sandbox, %error, "old UDP flows may go astray"),
        }
    }

    #[cfg(test)]
    pub(super) fn fault(&self, point: &'static str) -> Result<(), AttachError> {
        if self.core.faults.strike(point) { Err(AttachError::Armed { point }) } else { Ok(()) }
    }

    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, reason = "the test build fails here")]
    pub(super) fn fault(&self, point: &'static str) -> Result<(), AttachError> {
        self.core.faults.strike(point);
        Ok(())
    }

    pub(super) fn bridge_name(&self) -> String {
        self.config.bridge.clone()
    }

    pub(super) fn setup_failed(&self, source: SetupError) -> AttachError {
        AttachError::Setup { bridge: self.bridge_name(), source: Box::new(source) }
    }

    pub(super) fn netlink_failed(&self, source: NetlinkError) -> AttachError {
        AttachError::Netlink { bridge: self.bridge_name(), source }
    }
}

fn published(ports: &[PortMapping]) -> Vec<PortMapping> {
    ports.iter().filter(|port| port.host_port != 0).copied().collect()
}
