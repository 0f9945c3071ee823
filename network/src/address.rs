//! Networks and hardware addresses: `address/prefix` of both families, overlap, the n-th host of a network, MACs.
//! Plain data; any thread, never blocks. Owns nothing.
//! Must never hold a network whose address has host bits set.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Why a text is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("network `{text}`: {why}")]
pub struct InvalidNet {
    /// The text as given, cut to 80 characters.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// An IPv4 network.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Net {
    address: Ipv4Addr,
    prefix: u8,
}

/// An IPv6 network.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv6Net {
    address: Ipv6Addr,
    prefix: u8,
}

/// A network of either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpNet {
    /// IPv4.
    V4(Ipv4Net),
    /// IPv6.
    V6(Ipv6Net),
}

macro_rules! net {
    ($net:ident, $address:ident, $bits:literal) => {
        impl $net {
            /// The network of this prefix that holds `address`; `None` when the prefix is longer than the address.
            #[must_use]
            pub fn containing(address: $address, prefix: u8) -> Option<Self> {
                let mask = Self::mask(prefix)?;
                Some(Self { address: (address.to_bits() & mask).into(), prefix })
            }

            /// The network with this first address; `None` when it has host bits or the prefix is too long.
            #[must_use]
            pub fn new(address: $address, prefix: u8) -> Option<Self> {
                Self::containing(address, prefix).filter(|net| net.address == address)
            }

            /// The first address.
            #[must_use]
            pub fn address(&self) -> $address {
                self.address
            }

            /// Length of the prefix, bits.
            #[must_use]
            pub fn prefix(&self) -> u8 {
                self.prefix
            }

            /// The mask as an address.
            #[must_use]
            pub fn netmask(&self) -> $address {
                Self::mask(self.prefix).unwrap_or_default().into()
            }

            /// Whether `address` is in it.
            #[must_use]
            pub fn contains(&self, address: $address) -> bool {
                Self::containing(address, self.prefix) == Some(*self)
            }

            /// Whether the two share an address.
            #[must_use]
            pub fn overlaps(&self, other: &Self) -> bool {
                self.contains(other.address) || other.contains(self.address)
            }

            /// The next network of the same size; `None` at the end of the address space.
            #[must_use]
            pub fn next(&self) -> Option<Self> {
                let size = 1u128.checked_shl($bits - u32::from(self.prefix))?;
                let next = u128::from(self.address.to_bits()).checked_add(size)?;
                Some(Self { address: $address::from_bits(next.try_into().ok()?), prefix: self.prefix })
            }

            fn mask(prefix: u8) -> Option<<$address as Bits>::Int> {
                match u32::from(prefix) {
                    0 => Some(0),
                    $bits => Some(<$address as Bits>::Int::MAX),
                    prefix if prefix < $bits => Some(<$address as Bits>::Int::MAX << ($bits - prefix)),
                    _ => None,
                }
            }
        }

        impl FromStr for $net {
            type Err = InvalidNet;

            fn from_str(text: &str) -> Result<Self, InvalidNet> {
                let bad = |why| InvalidNet { text: text.chars().take(80).collect(), why };
                let (address, prefix) = text.split_once('/').ok_or_else(|| bad("want address/prefix"))?;
                let address: $address = address.parse().map_err(|_| bad("not an address of this family"))?;
                let plain = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
                let prefix: u8 = prefix.parse().ok().filter(|_| plain).ok_or_else(|| bad("prefix is not a number"))?;
                let net = Self::containing(address, prefix).ok_or_else(|| bad("prefix is too long"))?;
                if net.address == address { Ok(net) } else { Err(bad("has host bits set")) }
            }
        }

        impl TryFrom<String> for $net {
            type Error = InvalidNet;

            fn try_from(text: String) -> Result<Self, InvalidNet> {
                text.parse()
            }
        }

        impl From<$net> for String {
            fn from(net: $net) -> String {
                net.to_string()
            }
        }

        impl fmt::Display for $net {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.address, self.prefix)
            }
        }

        impl fmt::Debug for $net {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

trait Bits {
    type Int;
}

impl Bits for Ipv4Addr {
    type Int = u32;
}

impl Bits for Ipv6Addr {
    type Int = u128;
}

net!(Ipv4Net, Ipv4Addr, 32);
net!(Ipv6Net, Ipv6Addr, 128);

impl IpNet {
    /// The network of this prefix that holds `address`; `None` when the prefix is longer than the address.
    #[must_use]
    pub fn containing(address: IpAddr, prefix: u8) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Ipv4Net::containing(address, prefix).map(IpNet::V4),
            IpAddr::V6(address) => Ipv6Net::containing(address, prefix).map(IpNet::V6),
        }
    }

    /// Length of the prefix, bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        match self {
            IpNet::V4(net) => net.prefix,
            IpNet::V6(net) => net.prefix,
        }
    }

    /// Whether `address` is in it; never across families.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self, address) {
            (IpNet::V4(net), IpAddr::V4(address)) => net.contains(address),
            (IpNet::V6(net), IpAddr::V6(address)) => net.contains(address),
            (IpNet::V4(_), IpAddr::V6(_)) | (IpNet::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Whether the two share an address; never across families.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (IpNet::V4(net), IpNet::V4(other)) => net.overlaps(other),
            (IpNet::V6(net), IpNet::V6(other)) => net.overlaps(other),
            (IpNet::V4(_), IpNet::V6(_)) | (IpNet::V6(_), IpNet::V4(_)) => false,
        }
    }

    /// How many addresses hosts may have: all but the network's own, and IPv4's broadcast.
    #[must_use]
    pub fn hosts(&self) -> u128 {
        match self {
            IpNet::V4(net) => (1u128 << (32 - u32::from(net.prefix))).saturating_sub(2),
            IpNet::V6(net) => 1u128.checked_shl(128 - u32::from(net.prefix)).unwrap_or(0).wrapping_sub(1),
        }
    }

    /// The `n`-th host, counted from 1; `None` beyond the last.
    #[must_use]
    pub fn host(&self, n: u128) -> Option<IpAddr> {
        if n == 0 || n > self.hosts() {
            return None;
        }
        match self {
            IpNet::V4(net) => {
                let bits = u128::from(net.address.to_bits()).checked_add(n)?;
                Some(IpAddr::V4(Ipv4Addr::from_bits(bits.try_into().ok()?)))
            }
            IpNet::V6(net) => Some(IpAddr::V6(Ipv6Addr::from_bits(net.address.to_bits().checked_add(n)?))),
        }
    }

    /// Which host `address` is: the inverse of [`IpNet::host`].
    #[must_use]
    pub fn index_of(&self, address: IpAddr) -> Option<u128> {
        let n = match (self, address) {
            (IpNet::V4(net), IpAddr::V4(address)) => {
                u128::from(address.to_bits()).checked_sub(net.address.to_bits().into())
            }
            (IpNet::V6(net), IpAddr::V6(address)) => address.to_bits().checked_sub(net.address.to_bits()),
            (IpNet::V4(_), IpAddr::V6(_)) | (IpNet::V6(_), IpAddr::V4(_)) => None,
        }?;
        (n != 0 && n <= self.hosts()).then_some(n)
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IpNet::V4(net) => net.fmt(f),
            IpNet::V6(net) => net.fmt(f),
        }
    }
}

impl fmt::Debug for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A hardware address of Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// What every address made here begins with.
    const PREFIX: [u8; 2] = [0x4a, 0x4b];

    /// The six bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; 6] {
        self.0
    }

    /// The address that goes with an IP address on a pod network: locally administered, unicast, the same whenever the IP
    /// address is used again, so that a neighbour's stale entry is still right.
    #[must_use]
    pub fn for_address(address: IpAddr) -> Self {
        let [a, b, c, d] = match address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(address) => {
                let [.., a, b, c, d] = address.octets();
                [a, b, c, d]
            }
        };
        let [first, second] = Self::PREFIX;
        Self([first, second, a, b, c, d])
    }
}

impl FromStr for Mac {
    type Err = InvalidNet;

    fn from_str(text: &str) -> Result<Self, InvalidNet> {
        let bad = || InvalidNet { text: text.chars().take(80).collect(), why: "not six hex pairs" };
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = InvalidNet;

    fn try_from(text: String) -> Result<Self, InvalidNet> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn networks_parse_only_their_own_print() {
        for text in ["10.88.0.0/16", "0.0.0.0/0", "1.2.3.4/32"] {
            assert_eq!(v4(text).to_string(), text);
        }
        for text in ["fd00::/64", "::/0", "::1/128"] {
            assert_eq!(text.parse::<Ipv6Net>().unwrap().to_string(), text);
        }
        for text in
            ["", "10.0.0.0", "10.0.0.1/24", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "fd00::/64", "10.0.0.0/8\n"]
        {
            assert!(text.parse::<Ipv4Net>().is_err(), "{text:?}");
        }
        assert!("fd00::/129".parse::<Ipv6Net>().is_err());
    }

    #[test]
    fn overlap_is_containment_either_way() {
        assert!(v4("10.0.0.0/8").overlaps(&v4("10.88.0.0/16")));
        assert!(v4("10.88.0.0/16").overlaps(&v4("10.0.0.0/8")));
        assert!(!v4("10.88.0.0/16").overlaps(&v4("10.89.0.0/16")));
        assert!(v4("0.0.0.0/0").overlaps(&v4("10.89.0.0/16")));
    }

    #[test]
    fn next_steps_by_the_size_and_stops_at_the_end() {
        assert_eq!(v4("10.88.0.0/16").next(), Some(v4("10.89.0.0/16")));
        assert_eq!(v4("255.255.255.0/24").next(), None);
        assert_eq!(v4("0.0.0.0/0").next(), None);
        assert_eq!("::/0".parse::<Ipv6Net>().unwrap().next(), None);
    }

    #[test]
    fn hosts_leave_out_network_and_broadcast() {
        let net = IpNet::V4(v4("10.0.0.0/30"));
        assert_eq!(net.hosts(), 2);
        assert_eq!(net.host(1), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(net.host(2), Some("10.0.0.2".parse().unwrap()));
        assert_eq!((net.host(0), net.host(3)), (None, None));
        assert_eq!(IpNet::V4(v4("10.0.0.0/32")).hosts(), 0);
        assert_eq!(IpNet::V6("::/0".parse().unwrap()).hosts(), u128::MAX);
        assert_eq!(IpNet::V6("fd00::/126".parse().unwrap()).hosts(), 3);
    }

    #[test]
    fn a_mac_is_local_unicast_and_survives_its_text() {
        let mac = Mac::for_address("10.88.1.2".parse().unwrap());
        assert_eq!(mac.to_string(), "4a:4b:0a:58:01:02");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert_eq!(mac.bytes()[0] & 3, 2);
        assert!("4a:4b:0a:58:01".parse::<Mac>().is_err() && "4a:4b:0a:58:01:02:03".parse::<Mac>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn every_host_knows_its_index(address: u32, prefix in 8u8..=30, n in 1u128..300) {
            let net = IpNet::containing(IpAddr::V4(address.into()), prefix).unwrap();
            match net.host(n) {
                Some(host) => {
                    proptest::prop_assert!(net.contains(host));
                    proptest::prop_assert_eq!(net.index_of(host), Some(n));
                }
                None => proptest::prop_assert!(n > net.hosts()),
            }
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = (text.parse::<Ipv4Net>(), text.parse::<Ipv6Net>(), text.parse::<Mac>());
        }
    }
}
