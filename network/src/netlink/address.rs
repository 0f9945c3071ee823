//! Addresses on interfaces by rtnetlink.
//! Runs on the caller's thread and blocks while the kernel holds its network lock. Owns nothing.
//! Must never leave an IPv6 address waiting for duplicate detection: nobody else can have it.

use std::net::IpAddr;

use super::{Batch, NetlinkError, Socket, family, flags, link};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 2;

/// An address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assigned {
    /// The interface's number.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Its network's prefix length.
    pub prefix: u8,
}

/// Adds an address, or leaves it when it is there already.
pub fn add(batch: &mut Batch, assigned: Assigned) {
    let Assigned { index, address, prefix } = assigned;
    let [i0, i1, i2, i3] = index.to_ne_bytes();
    let family = if address.is_ipv4() { family::INET } else { family::INET6 };
    let what = ("add address", format!("{address}/{prefix}"));
    let kind = (RTM_NEWADDR, flags::CREATE | flags::REPLACE);
    batch.push(what, kind, &[family, prefix, 0, 0, i0, i1, i2, i3], |message| match address {
        IpAddr::V4(address) => {
            message.bytes(IFA_LOCAL, &address.octets());
            message.bytes(IFA_ADDRESS, &address.octets());
            if let Some(net) = crate::address::Ipv4Net::containing(address, prefix).filter(|_| prefix < 31) {
                let broadcast = net.address().to_bits() | !net.netmask().to_bits();
                message.bytes(IFA_BROADCAST, &broadcast.to_be_bytes());
            }
        }
        IpAddr::V6(address) => {
            message.bytes(IFA_LOCAL, &address.octets());
            message.bytes(IFA_ADDRESS, &address.octets());
            message.u32(IFA_FLAGS, IFA_F_NODAD);
        }
    });
}

/// Every address in the namespace.
///
/// # Errors
/// Of netlink.
pub fn list(socket: &mut Socket) -> Result<Vec<Assigned>, NetlinkError> {
    socket.dump(
        |batch| {
            batch.push(
                ("list addresses", ""),
                (RTM_GETADDR, flags::DUMP),
                &[family::UNSPEC, 0, 0, 0, 0, 0, 0, 0],
                |_| {},
            )
        },
        |list: &mut Vec<Assigned>, message| {
            let (header, attributes) = message.split::<8>()?;
            let [_, prefix, ..] = header;
            let index = link::u32_at(&header, 4);
            let local = attributes.clone().find(IFA_LOCAL)?;
            let found = match local {
                Some(local) => Some(local),
                None => attributes.find(IFA_ADDRESS)?,
            };
            if let Some(address) = found.and_then(|attribute| ip(attribute.payload)) {
                list.push(Assigned { index, address, prefix });
            }
            Ok(())
        },
    )
}

/// The address in these 4 or 16 bytes.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_skips_duplicate_detection() {
        let mut batch = Batch::new();
        add(&mut batch, Assigned { index: 2, address: "fd00::2".parse().unwrap(), prefix: 64 });
        let hex: String = batch.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let address = "fd000000000000000000000000000002";
        let want = format!(
            "480000001400010500000000000000000a4000000200000014000200{address}14000100{address}0800080002000000"
        );
        assert_eq!(hex, want);
    }
}
