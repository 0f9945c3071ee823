//! The kernel's part of an attach: the veth pair, the pod's end of it, the host ports; and the check whether all of it is there.
//! Runs on the caller's thread, on a socket of the host and on the pod's own. What is made here was recorded before.
//! Owns nothing beyond the call. Must never give an interface a name that the record does not have.

use std::{net::IpAddr, os::fd::AsFd, sync::Arc};

use rustix::io::Errno;

use super::{AttachError, Network, elements, setup::Ready};
use crate::{
    address::IpNet,
    attachment::Attachment,
    firewall::PortChange,
    netlink::{
        Batch,
        address::{self, Assigned},
        link::{self, Veth},
        route,
    },
    netns::Netns,
};

impl Network {
    /// Makes what is recorded.
    pub(super) fn make(
        &self,
        planned: Attachment,
        ready: Arc<Ready>,
        netns: &Netns,
    ) -> Result<Attachment, AttachError> {
        let (attachment, ready) = self.make_veth(planned, ready, netns)?;
        self.fault("veth")?;
        self.configure(&attachment, netns)?;
        self.fault("configured")?;
        if !attachment.ports.is_empty() {
            let elements = elements(&attachment.ports, &attachment);
            let published = self.publish(&ready, PortChange::Add(&elements));
            published.map_err(|source| self.setup_failed(source))?;
            self.forget_flows(&attachment);
            self.fault("published")?;
        }
        Ok(attachment)
    }

    /// The pair; another name when the first is taken, the bridge again when it is gone.
    #[tracing::instrument(level = "debug", skip_all)]
    fn make_veth(
        &self,
        mut attachment: Attachment,
        mut ready: Arc<Ready>,
        netns: &Netns,
    ) -> Result<(Attachment, Arc<Ready>), AttachError> {
        let mut names = Attachment::host_names(&attachment.sandbox).skip(1);
        let mut mended = false;
        loop {
            let mut batch = Batch::new();
            let name = attachment.host_interface.as_str();
            let veth = Veth {
                name,
                master: ready.bridge,
                peer: &attachment.interface,
                peer_mac: attachment.mac,
                netns: netns.as_fd(),
                mtu: ready.mtu,
            };
            link::create_veth(&mut batch, &veth);
            link::ready_port(&mut batch, name, ready.ipv6);
            link::set_up(&mut batch, name, 0);
            let error = match self.core.home.with(|socket| socket.execute(batch)) {
                Ok(()) => return Ok((attachment, ready)),
                Err(error) => error,
            };
            match error.errno() {
                Some(Errno::EXIST) => match names.next() {
                    Some(name) => {
                        tracing::warn!(taken = attachment.host_interface, "interface name is taken: trying another");
                        attachment.host_interface = name;
                        self.record(&attachment)?;
                    }
                    None => {
                        let name = attachment.host_interface;
                        return Err(AttachError::Names { bridge: self.bridge_name(), name });
                    }
                },
                // The bridge may be gone: look, and try once more.
                Some(_) if !mended => {
                    mended = true;
                    self.core.unlink(&attachment).map_err(|source| self.netlink_failed(source))?;
                    ready = self.set_up().map_err(|source| self.setup_failed(source))?;
                }
                Some(_) | None => return Err(self.netlink_failed(error)),
            }
        }
    }

    /// The pod's end, through the socket that is bound to its namespace.
    #[tracing::instrument(level = "debug", skip_all)]
    fn configure(&self, attachment: &Attachment, netns: &Netns) -> Result<(), AttachError> {
        let gone = || AttachError::Vanished { bridge: self.bridge_name() };
        let configured = netns.with(|socket| {
            let Some(found) = link::get(socket, &attachment.interface, false)? else { return Ok(false) };
            let index = found.index;
            let mut batch = Batch::new();
            link::set_up(&mut batch, "lo", 0);
            link::set_up(&mut batch, &attachment.interface, index);
            for (address, prefix) in attachment.addresses.iter().zip(&attachment.prefixes) {
                address::add(&mut batch, Assigned { index, address: *address, prefix: *prefix });
            }
            for gateway in &attachment.gateways {
                route::add_default(&mut batch, index, *gateway);
            }
            socket.execute(batch).map(|()| true)
        });
        match configured {
            Ok(true) => Ok(()),
            Ok(false) => Err(gone()),
            Err(source) => Err(self.netlink_failed(source)),
        }
    }

    /// Whether all that the record says is there.
    pub(super) fn is_intact(&self, known: &Attachment, ready: &Ready, netns: &Netns) -> bool {
        let host = self.core.home.with(|socket| link::get(socket, &known.host_interface, false));
        let port = matches!(host, Ok(Some(link)) if link.master == Some(ready.bridge) && link.up);
        let addresses = || netns.with(address::list).unwrap_or_default();
        let has = |there: &[Assigned], wanted: &IpAddr| there.iter().any(|assigned| assigned.address == *wanted);
        port && self.is_leased(known, &ready.gateways) && {
            let there = addresses();
            known.addresses.iter().all(|wanted| has(&there, wanted))
        }
    }

    /// Whether it has a lease in each of these networks, and no other.
    pub(super) fn is_leased(&self, known: &Attachment, gateways: &[(IpAddr, IpNet)]) -> bool {
        let mut addresses = known.addresses.clone();
        addresses.sort();
        known.addresses.len() == gateways.len()
            && known.addresses.iter().zip(gateways).all(|(address, (_, net))| net.contains(*address))
            && self.state().ipam.of(&known.sandbox) == addresses
    }
}
