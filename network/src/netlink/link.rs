//! Network interfaces by rtnetlink: bridges, veth pairs, what an interface is set to, listings.
//! Runs on the caller's thread and blocks while the kernel holds its network lock. Owns nothing: an interface belongs to who
//! asked for it.
//! Must never create over an existing interface: creation is exclusive, so a made name is the maker's.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Attributes, Batch, Malformed, Message, MessageWriter, NetlinkError, Socket, family, flags};
use crate::address::Mac;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

const IFF_UP: u32 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;

const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_BRPORT_MODE: u16 = 4;

const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_NONE: u8 = 1;

const RTEXT_FILTER_SKIP_STATS: u32 = 8;

/// An interface as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `bridge`, `veth`, ...; none for hardware and loopback.
    pub kind: Option<String>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Its hardware address, when it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// The interface it is a port of.
    pub master: Option<u32>,
    /// A text somebody left on it.
    pub alias: Option<String>,
    /// Traffic, when asked for.
    pub traffic: Option<Traffic>,
}

/// Counters of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Packets dropped on receive.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets dropped on send.
    pub tx_dropped: u64,
}

/// A veth pair: one end here as a port of a bridge, the other in a pod.
#[derive(Debug)]
pub struct Veth<'a> {
    /// Name of the end that stays here.
    pub name: &'a str,
    /// The bridge.
    pub master: u32,
    /// Name of the end in the pod.
    pub peer: &'a str,
    /// Hardware address of the end in the pod.
    pub peer_mac: Mac,
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// Largest packet.
    pub mtu: u32,
}

fn header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0u8; 16];
    let fields = [index, flags, change];
    for (field, value) in bytes.chunks_exact_mut(4).skip(1).zip(fields) {
        field.copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

/// A bridge that forwards at once: no spanning tree, no delay, and no snooping (which would need a querier).
pub fn create_bridge(batch: &mut Batch, name: &str, mac: Mac, mtu: u32) {
    let what = ("create bridge", name.to_owned());
    batch.push(what, (RTM_NEWLINK, flags::CREATE | flags::EXCL), &header(0, 0, 0), |message| {
        message.text(IFLA_IFNAME, name);
        message.bytes(IFLA_ADDRESS, &mac.bytes());
        message.u32(IFLA_MTU, mtu);
        message.nest(IFLA_LINKINFO, |message| {
            message.text(IFLA_INFO_KIND, "bridge");
            message.nest(IFLA_INFO_DATA, |message| {
                message.u32(IFLA_BR_FORWARD_DELAY, 0);
                message.u32(IFLA_BR_STP_STATE, 0);
                message.u8(IFLA_BR_MCAST_SNOOPING, 0);
            });
        });
    });
}

/// The pair, with the far end made in the pod's namespace and left down: setting it up at creation fails in the kernel, and
/// undoing that waits for a grace period.
pub fn create_veth(batch: &mut Batch, veth: &Veth<'_>) {
    let what = ("create veth", veth.name.to_owned());
    batch.push(what, (RTM_NEWLINK, flags::CREATE | flags::EXCL), &header(0, 0, 0), |message| {
        message.text(IFLA_IFNAME, veth.name);
        message.u32(IFLA_MTU, veth.mtu);
        message.u32(IFLA_MASTER, veth.master);
        message.nest(IFLA_LINKINFO, |message| {
            message.text(IFLA_INFO_KIND, "veth");
            message.nest(IFLA_INFO_DATA, |message| {
                message.nest(VETH_INFO_PEER, |message| {
                    message.raw(&header(0, 0, 0));
                    message.text(IFLA_IFNAME, veth.peer);
                    message.bytes(IFLA_ADDRESS, &veth.peer_mac.bytes());
                    message.u32(IFLA_MTU, veth.mtu);
                    message.u32(IFLA_NET_NS_FD, veth.netns.as_raw_fd().cast_unsigned());
                });
            });
        });
    });
}

/// Makes the port reflect what it sends to itself (a pod reaching itself through a host port), and keeps the host from giving
/// it an address of its own. Before it is set up, or the kernel has given it one. `ipv6` is whether this host has IPv6.
pub fn ready_port(batch: &mut Batch, name: &str, ipv6: bool) {
    let what = ("set bridge port", name.to_owned());
    batch.push(what, (RTM_NEWLINK, 0), &header(0, 0, 0), |message| {
        message.text(IFLA_IFNAME, name);
        message.nest(IFLA_LINKINFO, |message| {
            message.text(IFLA_INFO_SLAVE_KIND, "bridge");
            message.nest(IFLA_INFO_SLAVE_DATA, |message| message.u8(IFLA_BRPORT_MODE, 1));
        });
        if ipv6 {
            no_link_local(message);
        }
    });
}

/// Makes an existing interface a port of `master`.
pub fn set_master(batch: &mut Batch, name: &str, master: u32) {
    batch.push(("add bridge port", name.to_owned()), (RTM_NEWLINK, 0), &header(0, 0, 0), |message| {
        message.text(IFLA_IFNAME, name);
        message.u32(IFLA_MASTER, master);
    });
}

/// Gives the bridge its owner's mark and keeps link-local addresses off it.
pub fn mark_bridge(batch: &mut Batch, name: &str, mark: &str, ipv6: bool) {
    batch.push(("mark bridge", name.to_owned()), (RTM_NEWLINK, 0), &header(0, 0, 0), |message| {
        message.text(IFLA_IFNAME, name);
        message.bytes(IFLA_IFALIAS, mark.as_bytes());
        if ipv6 {
            no_link_local(message);
        }
    });
}

fn no_link_local(message: &mut MessageWriter<'_>) {
    message.nest(IFLA_AF_SPEC, |message| {
        message.nest(family::INET6.into(), |message| message.u8(IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_NONE));
    });
}

/// Sets an interface up; found by its name when `index` is 0.
pub fn set_up(batch: &mut Batch, name: &str, index: u32) {
    let what = ("set interface up", name.to_owned());
    batch.push(what, (RTM_NEWLINK, 0), &header(index, IFF_UP, IFF_UP), |message| {
        if index == 0 {
            message.text(IFLA_IFNAME, name);
        }
    });
}

/// Moves an interface into another network namespace, where it has this name and is down. When the name is taken there, it may have
/// been moved all the same, under its old name.
pub fn hand_over(batch: &mut Batch, index: u32, netns: BorrowedFd<'_>, name: &str) {
    let what = ("move interface", format!("{index} as {name}"));
    batch.push(what, (RTM_NEWLINK, 0), &header(index, 0, 0), |message| {
        message.u32(IFLA_NET_NS_FD, netns.as_raw_fd().cast_unsigned());
        message.text(IFLA_IFNAME, name);
    });
}

/// Deletes an interface by name.
pub fn delete(batch: &mut Batch, name: &str) {
    let what = ("delete interface", name.to_owned());
    batch.push(what, (RTM_DELLINK, 0), &header(0, 0, 0), |message| message.text(IFLA_IFNAME, name));
}

/// Puts an interface into a group.
pub fn set_group(batch: &mut Batch, name: &str, group: u32) {
    batch.push(("group interface", name.to_owned()), (RTM_NEWLINK, 0), &header(0, 0, 0), |message| {
        message.text(IFLA_IFNAME, name);
        message.u32(IFLA_GROUP, group);
    });
}

/// Deletes every interface of a group. The kernel waits for all of them together, where one after the other it waits for each:
/// 0.6 ms instead of 17 for one of 64.
pub fn delete_group(batch: &mut Batch, group: u32) {
    let what = ("delete interfaces of group", format!("{group:#x}"));
    batch.push(what, (RTM_DELLINK, 0), &header(0, 0, 0), |message| message.u32(IFLA_GROUP, group));
}

/// The interface of this name, if there is one; with its counters when `traffic`.
///
/// # Errors
/// Of netlink.
pub fn get(socket: &mut Socket, name: &str, traffic: bool) -> Result<Option<Link>, NetlinkError> {
    let mut batch = Batch::new();
    batch.push(("look up interface", name.to_owned()), (RTM_GETLINK, 0), &header(0, 0, 0), |message| {
        message.text(IFLA_IFNAME, name);
        if !traffic {
            message.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        }
    });
    let mut found = None;
    let asked = socket.query(batch, |message| {
        found = Some(parse(message)?);
        Ok(())
    });
    match asked {
        Ok(()) => Ok(found),
        Err(error) if error.errno() == Some(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every interface of the namespace, without counters.
///
/// # Errors
/// Of netlink.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>, NetlinkError> {
    socket.dump(
        |batch| {
            batch.push(("list interfaces", ""), (RTM_GETLINK, flags::DUMP), &header(0, 0, 0), |message| {
                message.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
            });
        },
        |links: &mut Vec<Link>, message| {
            links.push(parse(message)?);
            Ok(())
        },
    )
}

fn parse(message: &Message<'_>) -> Result<Link, Malformed> {
    if message.kind != RTM_NEWLINK {
        return Err(Malformed { what: "not an interface", at: 4 });
    }
    let (header, attributes) = message.split::<16>()?;
    let [_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = header;
    let mut link = Link {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        up: u32::from_ne_bytes([f0, f1, f2, f3]) & IFF_UP != 0,
        ..Link::default()
    };
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_IFNAME => link.name = attribute.text().into_owned(),
            IFLA_MTU => link.mtu = attribute.u32().unwrap_or_default(),
            IFLA_ADDRESS => link.mac = attribute.payload.try_into().ok(),
            IFLA_MASTER => link.master = attribute.u32(),
            IFLA_IFALIAS => link.alias = Some(attribute.text().into_owned()),
            IFLA_LINKINFO => {
                link.kind = attribute.nested().find(IFLA_INFO_KIND)?.map(|kind| kind.text().into_owned());
            }
            IFLA_STATS64 => link.traffic = traffic(attribute.payload),
            _ => {}
        }
    }
    Ok(link)
}

fn traffic(bytes: &[u8]) -> Option<Traffic> {
    let mut numbers = bytes.chunks_exact(8).map_while(|chunk| Some(u64::from_ne_bytes(chunk.try_into().ok()?)));
    let mut next = || numbers.next();
    let (rx_packets, tx_packets, rx_bytes, tx_bytes) = (next()?, next()?, next()?, next()?);
    let (rx_errors, tx_errors, rx_dropped, tx_dropped) = (next()?, next()?, next()?, next()?);
    Some(Traffic { rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped })
}

/// Addresses of one interface that a listing's entry may belong to, shared with [`super::address`].
pub(super) fn u32_at(header: &[u8], at: usize) -> u32 {
    super::message::read_u32(header, at).unwrap_or_default()
}

/// Looks for `kind` and reads its 32-bit number.
pub(super) fn number(attributes: &Attributes<'_>, kind: u16) -> Result<Option<u32>, Malformed> {
    Ok(attributes.clone().find(kind)?.and_then(|attribute| attribute.u32()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_interface_is_read() {
        let mut batch = Batch::new();
        batch.push(("", ""), (RTM_NEWLINK, 0), &header(7, IFF_UP, 0), |message| {
            message.text(IFLA_IFNAME, "eth0");
            message.u32(IFLA_MTU, 1400);
            message.bytes(IFLA_ADDRESS, &[1, 2, 3, 4, 5, 6]);
            message.nest(IFLA_LINKINFO, |message| message.text(IFLA_INFO_KIND, "veth"));
            message.bytes(IFLA_STATS64, &[1u64, 2, 3, 4, 5, 6, 7, 8].map(u64::to_ne_bytes).concat());
        });
        let message = super::super::Messages::of(batch.bytes()).next().unwrap().unwrap();
        let link = parse(&message).unwrap();
        assert_eq!((link.index, link.name.as_str(), link.mtu, link.up), (7, "eth0", 1400, true));
        assert_eq!((link.kind.as_deref(), link.mac), (Some("veth"), Some([1, 2, 3, 4, 5, 6])));
        let traffic = link.traffic.unwrap();
        assert_eq!((traffic.rx_packets, traffic.tx_packets, traffic.rx_bytes, traffic.tx_dropped), (1, 2, 3, 8));
    }

    #[test]
    fn the_veth_request_makes_the_far_end_in_the_pod_and_leaves_it_down() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let netns = std::os::fd::AsFd::as_fd(&file);
        let peer_mac = Mac::for_address("10.88.0.2".parse().unwrap());
        let mut batch = Batch::new();
        create_veth(&mut batch, &Veth { name: "kl0", master: 3, peer: "eth0", peer_mac, netns, mtu: 1500 });
        let hex: String = batch.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let fd: String = netns.as_raw_fd().to_ne_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let want = [
            // Header, and the fixed part: nothing about this end but its attributes.
            "8800000010000106000000000000000000000000000000000000000000000000",
            "080003006b6c3000",          // name kl0
            "08000400dc050000",          // mtu 1500
            "08000a0003000000",          // port of 3
            "50001280",                  // link info
            "0900010076657468000000 00", // kind veth
            "40000280",
            "3c000180", // the peer, its flags 0: down
            "00000000000000000000000000000000",
            "09000300657468300000000 0", // name eth0
            "0a0001004a4b0a5800020000",  // its hardware address
            "08000400dc050000",
            "08001c00",
            &fd,
        ]
        .concat()
        .replace(' ', "");
        assert_eq!(hex, want);
    }
}
