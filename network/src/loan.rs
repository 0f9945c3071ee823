//! Interfaces of the host that a pod has for as long as it lives: a network card's function, given by a device plugin.
//! Runs on the caller's thread, which is in the host's network namespace, and blocks while the kernel holds its network lock.
//! Owns nothing: who lends one keeps a [`Loan`] on record before it is lent, and gives it back before the pod's namespace goes,
//! which would destroy an interface that is not hardware.
//! Must never take an interface that is not there, nor leave one half-way.

use std::{fs::File, io, net::IpAddr, os::fd::AsFd as _};

use serde::{Deserialize, Serialize};

use crate::{
    INTERFACE,
    netlink::{
        Batch, NetlinkError, Socket,
        address::{self, Assigned},
        link,
    },
    netns::Netns,
};

/// An interface that is lent, and how it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loan {
    /// Its name on the host.
    pub host: String,
    /// Its name in the pod.
    pub pod: String,
    /// Its number in the pod, once it is there; 0 before. Who may rename interfaces in the pod cannot put another in its place by that.
    #[serde(default)]
    pub index: u32,
    /// `veth`, `vlan`, ..; none for hardware, which nobody in a pod can make.
    #[serde(default)]
    pub kind: Option<String>,
    /// It was up.
    pub up: bool,
    /// The addresses that it had (with their prefixes), but link-local ones; it has them in the pod too.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// Why an interface did not change hands.
#[derive(Debug, thiserror::Error)]
pub enum LoanError {
    /// Nothing of this name is on the host.
    #[error("lend interface `{name}`: the host has none of this name; another pod may have it")]
    Missing {
        /// The name.
        name: String,
    },
    /// The host's namespace cannot be talked to.
    #[error("lend interface `{name}`: reach the host's network")]
    Host {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("lend interface `{name}`")]
    Netlink {
        /// The interface.
        name: String,
        /// Which step, and why.
        #[source]
        source: NetlinkError,
    },
}

impl Loan {
    /// What lending it will be: reads how the interface is.
    ///
    /// # Errors
    /// It is not there.
    pub fn of(host: &str, pod: &str) -> Result<Self, LoanError> {
        let mut socket = socket(host)?;
        let failed = netlink(host);
        let found = link::get(&mut socket, host, false).map_err(&failed)?;
        let found = found.ok_or_else(|| LoanError::Missing { name: host.to_owned() })?;
        let addresses = address::list(&mut socket).map_err(&failed)?;
        let own = addresses.iter().filter(|assigned| assigned.index == found.index && !is_link_local(assigned.address));
        Ok(Self {
            host: host.to_owned(),
            pod: pod.to_owned(),
            index: 0,
            kind: found.kind,
            up: found.up,
            addresses: own.map(|assigned| (assigned.address, assigned.prefix)).collect(),
        })
    }

    /// Gives the pod the interface, up and with its addresses. One that the pod has already stays as it is. Returns its number there.
    ///
    /// # Errors
    /// Then the host has it, unless the kernel refuses that too.
    pub fn lend(&self, netns: &Netns) -> Result<u32, LoanError> {
        let failed = netlink(&self.host);
        let mut socket = socket(&self.host)?;
        let Some(found) = link::get(&mut socket, &self.host, false).map_err(&failed)? else {
            let there = self.find(netns).map_err(&failed)?;
            return there.ok_or_else(|| LoanError::Missing { name: self.host.clone() });
        };
        let mut batch = Batch::new();
        link::hand_over(&mut batch, found.index, netns.as_fd(), &self.pod);
        let moved = socket.execute(batch).and_then(|()| netns.with(|socket| self.revive(socket, &self.pod, true)));
        moved.map_err(|error| {
            // Moved, and not as wanted: under one name or the other.
            let back = self.give_back(netns);
            if let Err(error) = back {
                tracing::warn!(interface = self.host, %error, "give interface back to the host");
            }
            failed(error)
        })
    }

    /// The interface's number in the pod: by the number it had there, or by name before that was known.
    fn find(&self, netns: &Netns) -> Result<Option<u32>, NetlinkError> {
        let links = netns.with(link::list)?;
        let same = |link: &&link::Link| link.kind == self.kind && link.name != "lo";
        if self.index != 0 {
            return Ok(links.iter().filter(same).find(|link| link.index == self.index).map(|link| link.index));
        }
        // Under its old name when a move was cut short; the pod's own interface is not one that was lent.
        let named = |link: &&link::Link| link.name == self.pod || (link.name == self.host && link.name != INTERFACE);
        Ok(links.iter().filter(same).find(named).map(|link| link.index))
    }

    /// Gives the host the interface back as it was. One that the pod has not (any more) is done.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn give_back(&self, netns: &Netns) -> Result<(), LoanError> {
        let failed = netlink(&self.host);
        let host = File::open("/proc/thread-self/ns/net")
            .map_err(|source| LoanError::Host { name: self.host.clone(), source })?;
        let mut socket = socket(&self.host)?;
        let Some(index) = self.find(netns).map_err(&failed)? else { return Ok(()) };
        if link::get(&mut socket, &self.host, false).map_err(&failed)?.is_some() {
            // Hardware comes back by itself, under a name of the kernel's.
            tracing::warn!(interface = self.host, "its name on the host is taken: left to the kernel");
            return Ok(());
        }
        let mut batch = Batch::new();
        link::hand_over(&mut batch, index, host.as_fd(), &self.host);
        netns.with(|socket| socket.execute(batch)).map_err(&failed)?;
        self.revive(&mut socket, &self.host, self.up).map_err(&failed).map(drop)
    }

    /// After a move an interface is down and has no addresses.
    fn revive(&self, socket: &mut Socket, name: &str, up: bool) -> Result<u32, NetlinkError> {
        let Some(found) = link::get(socket, name, false)? else { return Ok(0) };
        let mut batch = Batch::new();
        for &(address, prefix) in &self.addresses {
            address::add(&mut batch, Assigned { index: found.index, address, prefix });
        }
        if up {
            link::set_up(&mut batch, name, found.index);
        }
        socket.execute(batch).map(|()| found.index)
    }
}

fn socket(name: &str) -> Result<Socket, LoanError> {
    Socket::open(None).map_err(|source| LoanError::Host { name: name.to_owned(), source })
}

fn netlink(name: &str) -> impl Fn(NetlinkError) -> LoanError + use<> {
    let name = name.to_owned();
    move |source| LoanError::Netlink { name: name.clone(), source }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
