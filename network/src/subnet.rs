//! Which networks the pods live in: chosen once so that they overlap nothing of this host, then kept in `subnet.json`.
//! `choose` is pure; the caller brings what the host uses. Any thread. Owns nothing.
//! Must never move a network under pods that are attached.

use std::{fs, io, io::Read as _, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    address::{IpNet, Ipv4Net, Ipv6Net},
    config::{Config, Subnet},
};

/// Where automatic IPv4 networks are looked for, in this order.
const CANDIDATES: [(&str, &str); 4] = [
    ("10.88.0.0/16", "10.88.0.0/13"),
    ("172.24.0.0/16", "172.24.0.0/13"),
    ("10.96.0.0/16", "10.0.0.0/8"),
    ("192.168.0.0/24", "192.168.0.0/16"),
];

/// A route shorter than this stands for "everything" (VPNs split the default route in two), not for a network to avoid.
const SHORTEST_FOREIGN: u8 = 8;

/// The networks of the pods, as recorded. Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subnets {
    pub(crate) version: u32,
    /// As configured when they were chosen; with another configuration they are chosen again.
    pub(crate) configured: String,
    pub(crate) ipv4: Option<Ipv4Net>,
    pub(crate) ipv6: Option<Ipv6Net>,
}

impl Subnets {
    pub(crate) const VERSION: u32 = 1;

    pub(crate) fn nets(&self) -> Vec<IpNet> {
        self.ipv4.map(IpNet::V4).into_iter().chain(self.ipv6.map(IpNet::V6)).collect()
    }

    /// What is used by somebody else and overlaps.
    pub(crate) fn conflict<'a>(&self, foreign: &'a [Foreign]) -> Option<(IpNet, &'a Foreign)> {
        self.nets().into_iter().find_map(|net| foreign.iter().find(|other| other.meets(&net)).map(|other| (net, other)))
    }
}

/// A network that somebody else on this host uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) net: IpNet,
    /// `address of eth0`, `route`, ...
    pub(crate) what: String,
}

impl Foreign {
    fn meets(&self, net: &IpNet) -> bool {
        self.net.prefix() >= SHORTEST_FOREIGN && self.net.overlaps(net)
    }
}

/// Why there is no network for the pods.
#[derive(Debug, thiserror::Error)]
pub enum SubnetError {
    /// The configured network is somebody else's.
    #[error("use pod network {net}: {what} ({other}) overlaps it; configure another network, or `auto`")]
    Overlap {
        /// As configured.
        net: String,
        /// Who has it.
        what: String,
        /// What they have.
        other: String,
    },
    /// All private networks are in use.
    #[error(
        "choose pod network: every candidate below 10/8, 172.24/13 and 192.168/16 overlaps a route or address of this host; configure one"
    )]
    NoneFree,
    /// No randomness for an IPv6 network.
    #[error("choose IPv6 pod network")]
    Random {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How the configuration is remembered beside what was chosen by it.
pub(crate) fn configured(config: &Config) -> String {
    format!("{} {}", word(&config.ipv4), word(&config.ipv6))
}

fn word<N: ToString>(subnet: &Subnet<N>) -> String {
    match subnet {
        Subnet::Auto => "auto".into(),
        Subnet::Off => "off".into(),
        Subnet::Fixed(net) => net.to_string(),
    }
}

/// Chooses for this configuration, avoiding what others use. `ula` is 56 random bits for an IPv6 network.
pub(crate) fn choose(config: &Config, foreign: &[Foreign], ula: [u8; 7]) -> Result<Subnets, SubnetError> {
    let free = |net: IpNet| !foreign.iter().any(|other| other.meets(&net));
    let ipv4 = match config.ipv4 {
        Subnet::Off => None,
        Subnet::Fixed(net) => Some(net),
        Subnet::Auto => Some(candidates().find(|net| free(IpNet::V4(*net))).ok_or(SubnetError::NoneFree)?),
    };
    let ipv6 = match config.ipv6 {
        Subnet::Off => None,
        Subnet::Fixed(net) => Some(net),
        Subnet::Auto => {
            let [a, b, c, d, e, f, g] = ula;
            Ipv6Net::new([0xfd, a, b, c, d, e, f, g, 0, 0, 0, 0, 0, 0, 0, 0].into(), 64)
        }
    };
    let chosen = Subnets { version: Subnets::VERSION, configured: configured(config), ipv4, ipv6 };
    match chosen.conflict(foreign) {
        Some((net, other)) => {
            Err(SubnetError::Overlap { net: net.to_string(), what: other.what.clone(), other: other.net.to_string() })
        }
        None => Ok(chosen),
    }
}

fn candidates() -> impl Iterator<Item = Ipv4Net> {
    CANDIDATES
        .iter()
        .filter_map(|(first, within)| Some((first.parse().ok()?, within.parse::<Ipv4Net>().ok()?)))
        .flat_map(|(first, within): (Ipv4Net, Ipv4Net)| {
            std::iter::successors(Some(first), Ipv4Net::next).take_while(move |net| net.overlaps(&within))
        })
}

/// 56 bits for a unique local IPv6 network.
pub(crate) fn random_ula() -> Result<[u8; 7], SubnetError> {
    let mut bytes = [0u8; 7];
    let read = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map(|()| bytes).map_err(|source| SubnetError::Random { source })
}

/// The resolvers that the host asks: a pod network over one of them would cut the host off from names.
pub(crate) fn resolvers() -> Vec<Foreign> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let addresses =
        text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
    addresses
        .filter_map(|address| {
            let net = IpNet::containing(address, if address.is_ipv4() { 32 } else { 128 })?;
            Some(Foreign { net, what: "nameserver of /etc/resolv.conf".into() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(nets: &[&str]) -> Vec<Foreign> {
        let net = |text: &str| {
            let (address, prefix) = text.split_once('/').unwrap();
            IpNet::containing(address.parse().unwrap(), prefix.parse().unwrap()).unwrap()
        };
        nets.iter().map(|text| Foreign { net: net(text), what: format!("route {text}") }).collect()
    }

    fn chosen(nets: &[&str]) -> Result<String, SubnetError> {
        let config = Config::new("/x".into(), "b");
        choose(&config, &foreign(nets), [1; 7]).map(|subnets| subnets.ipv4.unwrap().to_string())
    }

    #[test]
    fn the_default_is_taken_when_free_and_stepped_over_when_not() {
        assert_eq!(chosen(&[]).unwrap(), "10.88.0.0/16");
        assert_eq!(chosen(&["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"]).unwrap(), "10.88.0.0/16");
        assert_eq!(chosen(&["10.88.3.0/24", "10.89.0.1/32"]).unwrap(), "10.90.0.0/16");
        assert_eq!(chosen(&["10.0.0.0/8"]).unwrap(), "172.24.0.0/16");
        assert_eq!(chosen(&["10.0.0.0/8", "172.16.0.0/12"]).unwrap(), "192.168.0.0/24");
        let all = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
        assert!(matches!(chosen(&all), Err(SubnetError::NoneFree)));
    }

    #[test]
    fn a_fixed_network_is_never_moved() {
        let config = Config { ipv4: Subnet::Fixed("10.88.0.0/16".parse().unwrap()), ..Config::new("/x".into(), "b") };
        let refused = choose(&config, &foreign(&["10.88.9.0/24"]), [1; 7]).unwrap_err().to_string();
        assert!(refused.contains("10.88.0.0/16") && refused.contains("route 10.88.9.0/24"), "{refused}");
        assert!(choose(&config, &foreign(&["10.89.9.0/24"]), [1; 7]).is_ok());
    }

    #[test]
    fn an_automatic_ipv6_network_is_unique_local() {
        let config = Config::new("/x".into(), "b");
        let subnets = choose(&config, &[], [0xab; 7]).unwrap();
        assert_eq!(subnets.ipv6.unwrap().to_string(), "fdab:abab:abab:abab::/64");
        assert_eq!(choose(&Config { ipv6: Subnet::Off, ..config }, &[], [0; 7]).unwrap().ipv6, None);
    }
}
