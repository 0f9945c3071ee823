//! Host ports: what a pod may ask to have published, who has which, and what the firewall's maps hold for it.
//! Plain data and pure functions; any thread. Owns the book of who published what, rebuilt from the attachment records.
//! Must never let two pods share a port on an address of the host.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use keelson_api::SandboxId;
use serde::{Deserialize, Serialize};

use crate::{netlink::diag::Listener, nfnetlink::Element};

/// A transport with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its number in an IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// A port of the pod published on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// Port on the host; a mapping with 0 publishes nothing.
    pub host_port: u16,
    /// Port in the pod; 0 is refused.
    pub container_port: u16,
    /// On this address of the host alone. `None`: on all, of both families; an unspecified address: on all of its family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// Why ports cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Another pod has it.
    #[error("publish host port {port}: sandbox {owner} has it; choose another host port or remove that sandbox")]
    Taken {
        /// The port as asked for.
        port: Published,
        /// Who has it.
        owner: SandboxId,
    },
    /// A program of the host listens there.
    #[error(
        "publish host port {port}: a program of the host listens on {listener}; choose another host port or stop it"
    )]
    Listening {
        /// The port as asked for.
        port: Published,
        /// Where it listens.
        listener: std::net::SocketAddr,
    },
    /// The same port twice in one request.
    #[error("publish host port {port}: asked for twice by the same sandbox")]
    Twice {
        /// The port as asked for.
        port: Published,
    },
    /// The pod's side is port 0.
    #[error("publish host port {port}: the pod's port is 0; want 1 to 65535")]
    Zero {
        /// The port as asked for.
        port: Published,
    },
    /// The kernel delivers nothing to IPv6 loopback that comes from another interface.
    #[error("publish host port {port}: the kernel cannot redirect IPv6 loopback; use 127.0.0.1")]
    Loopback {
        /// The port as asked for.
        port: Published,
    },
    /// The host address is of a family the pod has no address of.
    #[error("publish host port {port}: the pod has no address of that family")]
    Family {
        /// The port as asked for.
        port: Published,
    },
}

/// A place on the host: `tcp *:80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Published {
    /// Transport.
    pub protocol: Protocol,
    /// Address, or all.
    pub address: Option<IpAddr>,
    /// Port.
    pub port: u16,
}

impl Published {
    fn of(mapping: &PortMapping) -> Self {
        Self { protocol: mapping.protocol, address: mapping.host_ip, port: mapping.host_port }
    }

    /// Whether a packet could be for both.
    fn meets(&self, other: &Self) -> bool {
        self.protocol == other.protocol && self.port == other.port && addresses_meet(self.address, other.address)
    }
}

fn addresses_meet(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    match (one, other) {
        (None, _) | (_, None) => true,
        (Some(one), Some(other)) => {
            one.is_ipv4() == other.is_ipv4() && (one == other || one.is_unspecified() || other.is_unspecified())
        }
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => write!(f, "{} *:{}", self.protocol, self.port),
            Some(IpAddr::V4(address)) => write!(f, "{} {address}:{}", self.protocol, self.port),
            Some(IpAddr::V6(address)) => write!(f, "{} [{address}]:{}", self.protocol, self.port),
        }
    }
}

/// Who has which port of the host.
#[derive(Debug, Default)]
pub(crate) struct Book {
    taken: HashMap<(Protocol, u16), Vec<(Published, SandboxId)>>,
}

impl Book {
    /// Enters all of a pod's ports, or none.
    pub(crate) fn claim(&mut self, owner: &SandboxId, ports: &[PortMapping]) -> Result<(), PortError> {
        let wanted: Vec<Published> = ports.iter().map(Published::of).collect();
        for (index, port) in wanted.iter().enumerate() {
            if wanted.iter().take(index).any(|earlier| earlier.meets(port)) {
                return Err(PortError::Twice { port: *port });
            }
            let others = self.taken.get(&(port.protocol, port.port)).map(Vec::as_slice).unwrap_or_default();
            if let Some((_, owner)) = others.iter().find(|(other, by)| by != owner && other.meets(port)) {
                return Err(PortError::Taken { port: *port, owner: owner.clone() });
            }
        }
        self.release(owner);
        for port in wanted {
            self.taken.entry((port.protocol, port.port)).or_default().push((port, owner.clone()));
        }
        Ok(())
    }

    /// Strikes out a pod's ports.
    pub(crate) fn release(&mut self, owner: &SandboxId) {
        self.taken.retain(|_, entries| {
            entries.retain(|(_, by)| by != owner);
            !entries.is_empty()
        });
    }
}

/// The ports that publish something, checked against what the pod has.
pub(crate) fn check(ports: &[PortMapping], addresses: &[IpAddr]) -> Result<Vec<PortMapping>, PortError> {
    let published: Vec<PortMapping> = ports.iter().filter(|port| port.host_port != 0).copied().collect();
    for mapping in &published {
        let port = Published::of(mapping);
        if mapping.container_port == 0 {
            return Err(PortError::Zero { port });
        }
        if mapping.host_ip == Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
            return Err(PortError::Loopback { port });
        }
        if elements(mapping, addresses).is_empty() {
            return Err(PortError::Family { port });
        }
    }
    Ok(published)
}

/// Refuses a port on which a program of the host listens; the firewall would take its traffic away without a word.
pub(crate) fn check_listeners(port: &PortMapping, listeners: &[Listener]) -> Result<(), PortError> {
    let wanted = Published::of(port);
    for listener in listeners.iter().filter(|listener| listener.port == wanted.port) {
        // A socket on all of IPv6 usually takes IPv4 too.
        let everything = listener.address == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        if everything || addresses_meet(wanted.address, Some(listener.address)) {
            let listener = std::net::SocketAddr::new(listener.address, listener.port);
            return Err(PortError::Listening { port: wanted, listener });
        }
    }
    Ok(())
}

/// One of the firewall's maps of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Map {
    /// IPv4, any address of the host.
    Any4,
    /// IPv4, one address of the host.
    At4,
    /// IPv6, any address of the host.
    Any6,
    /// IPv6, one address of the host.
    At6,
}

/// What the maps must hold for this port of a pod with these addresses.
pub(crate) fn elements(mapping: &PortMapping, addresses: &[IpAddr]) -> Vec<(Map, Element)> {
    let v4 = addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(address.octets().to_vec()),
        IpAddr::V6(_) => None,
    });
    let v6 = addresses.iter().find_map(|address| match address {
        IpAddr::V6(address) => Some(address.octets().to_vec()),
        IpAddr::V4(_) => None,
    });
    let port = |port: u16| {
        let [high, low] = port.to_be_bytes();
        [high, low, 0, 0]
    };
    let [protocol, _, _, _] = u32::from(mapping.protocol.number()).to_le_bytes();
    let key = [[protocol, 0, 0, 0], port(mapping.host_port)].concat();
    let element = |at: &[u8], to: Vec<u8>| Element {
        key: [at, &key].concat(),
        data: [to, port(mapping.container_port).to_vec()].concat(),
    };
    let mut all = Vec::new();
    match mapping.host_ip {
        None => {
            all.extend(v4.map(|to| (Map::Any4, element(&[], to))));
            all.extend(v6.map(|to| (Map::Any6, element(&[], to))));
        }
        Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => all.extend(v4.map(|to| (Map::Any4, element(&[], to)))),
        Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => all.extend(v6.map(|to| (Map::Any6, element(&[], to)))),
        Some(IpAddr::V4(at)) => all.extend(v4.map(|to| (Map::At4, element(&at.octets(), to)))),
        Some(IpAddr::V6(at)) => all.extend(v6.map(|to| (Map::At6, element(&at.octets(), to)))),
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> SandboxId {
        SandboxId::from_random([n; 32])
    }

    fn tcp(host_port: u16, host_ip: Option<&str>) -> PortMapping {
        PortMapping {
            protocol: Protocol::Tcp,
            host_port,
            container_port: 80,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        }
    }

    #[test]
    fn a_conflict_names_its_owner_and_the_way_out() {
        let mut book = Book::default();
        book.claim(&id(1), &[tcp(8080, None)]).unwrap();
        let refused = book.claim(&id(2), &[tcp(8081, None), tcp(8080, Some("192.0.2.1"))]).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("tcp 192.0.2.1:8080") && text.contains(id(1).as_str()), "{text}");
        book.claim(&id(2), &[tcp(8081, None)]).unwrap();
        book.release(&id(1));
        book.claim(&id(3), &[tcp(8080, None)]).unwrap();
    }

    #[test]
    fn addresses_conflict_only_where_a_packet_could_be_for_both() {
        let cases = [
            (None, None, true),
            (None, Some("::1"), true),
            (Some("0.0.0.0"), Some("::"), false),
            (Some("0.0.0.0"), Some("127.0.0.1"), true),
            (Some("127.0.0.1"), Some("127.0.0.2"), false),
            (Some("::"), Some("::1"), true),
        ];
        for (one, other, meets) in cases {
            let mut book = Book::default();
            book.claim(&id(1), &[tcp(1, one)]).unwrap();
            assert_eq!(book.claim(&id(2), &[tcp(1, other)]).is_err(), meets, "{one:?} {other:?}");
        }
        let udp = PortMapping { protocol: Protocol::Udp, ..tcp(1, None) };
        let mut book = Book::default();
        book.claim(&id(1), &[tcp(1, None), udp]).unwrap();
        assert!(book.claim(&id(2), &[tcp(2, None), tcp(2, Some("::1"))]).is_err());
    }

    #[test]
    fn a_sandbox_may_claim_its_own_ports_again() {
        let mut book = Book::default();
        book.claim(&id(1), &[tcp(1, None)]).unwrap();
        book.claim(&id(1), &[tcp(1, None), tcp(2, None)]).unwrap();
        assert_eq!(book.taken.values().map(Vec::len).sum::<usize>(), 2);
    }

    #[test]
    fn elements_are_laid_out_as_the_rules_load_them() {
        let addresses = ["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let all = elements(&tcp(8080, None), &addresses);
        assert_eq!(
            all[0],
            (Map::Any4, Element { key: vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0], data: vec![10, 88, 0, 2, 0, 80, 0, 0] })
        );
        assert_eq!((all[1].0, all[1].1.data.len()), (Map::Any6, 20));
        let at = elements(&tcp(8080, Some("192.0.2.1")), &addresses);
        assert_eq!(at[0].1.key, [192, 0, 2, 1, 6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(elements(&tcp(80, Some("::1")), &addresses)[0].1.key.len(), 24);
        assert!(elements(&tcp(80, Some("::1")), &addresses[..1]).is_empty());
    }

    #[test]
    fn unpublished_ports_are_dropped_and_wrong_ones_refused() {
        let addresses = ["10.88.0.2".parse().unwrap()];
        assert_eq!(check(&[tcp(0, None)], &addresses), Ok(vec![]));
        let zero = PortMapping { container_port: 0, ..tcp(1, None) };
        assert!(matches!(check(&[zero], &addresses), Err(PortError::Zero { .. })));
        assert!(matches!(check(&[tcp(1, Some("::1"))], &addresses), Err(PortError::Loopback { .. })));
        assert!(matches!(check(&[tcp(1, Some("fd00::1"))], &addresses), Err(PortError::Family { .. })));
    }

    #[test]
    fn a_listening_program_is_not_robbed() {
        let listener = |address: &str| [Listener { address: address.parse().unwrap(), port: 80 }];
        assert!(check_listeners(&tcp(80, None), &listener("127.0.0.1")).is_err());
        assert!(check_listeners(&tcp(80, Some("192.0.2.1")), &listener("::")).is_err());
        assert!(check_listeners(&tcp(80, Some("192.0.2.1")), &listener("127.0.0.1")).is_ok());
        assert!(check_listeners(&tcp(81, None), &listener("::")).is_ok());
    }
}
