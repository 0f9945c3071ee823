//! Routes by rtnetlink: a default route through a gateway, and the listing that subnets are chosen by.
//! Runs on the caller's thread and blocks while the kernel holds its network lock. Owns nothing.
//! Must never touch a route that this crate did not add.

use std::net::IpAddr;

use super::{Batch, NetlinkError, Socket, address::ip, family, flags, link};
use crate::address::IpNet;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;

const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u32 = 255;
const PROTOCOL_BOOT: u8 = 3;
const SCOPE_UNIVERSE: u8 = 0;
const TYPE_UNICAST: u8 = 1;

/// A route as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to; prefix 0 is the default route.
    pub destination: IpNet,
    /// Through which interface, when it is just one.
    pub interface: Option<u32>,
    /// Its metric.
    pub priority: u32,
}

/// Adds the default route through `gateway`.
pub fn add_default(batch: &mut Batch, index: u32, gateway: IpAddr) {
    let family = if gateway.is_ipv4() { family::INET } else { family::INET6 };
    let header = [family, 0, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, SCOPE_UNIVERSE, TYPE_UNICAST, 0, 0, 0, 0];
    let what = ("add default route", format!("via {gateway}"));
    batch.push(what, (RTM_NEWROUTE, flags::CREATE | flags::REPLACE), &header, |message| {
        match gateway {
            IpAddr::V4(gateway) => message.bytes(RTA_GATEWAY, &gateway.octets()),
            IpAddr::V6(gateway) => message.bytes(RTA_GATEWAY, &gateway.octets()),
        }
        message.u32(RTA_OIF, index);
    });
}

/// Every unicast route of the namespace but those of the local table.
///
/// # Errors
/// Of netlink.
pub fn list(socket: &mut Socket) -> Result<Vec<Route>, NetlinkError> {
    socket.dump(
        |batch| batch.push(("list routes", ""), (RTM_GETROUTE, flags::DUMP), &[0; 12], |_| {}),
        |routes: &mut Vec<Route>, message| {
            let (header, attributes) = message.split::<12>()?;
            let [family, prefix, _, _, table, _, _, kind, ..] = header;
            let table = link::number(&attributes, RTA_TABLE)?.unwrap_or_else(|| table.into());
            let any = match family {
                family::INET => IpAddr::from([0u8; 4]),
                family::INET6 => IpAddr::from([0u8; 16]),
                _ => return Ok(()),
            };
            if kind != TYPE_UNICAST || table == TABLE_LOCAL {
                return Ok(());
            }
            let destination =
                attributes.clone().find(RTA_DST)?.and_then(|attribute| ip(attribute.payload)).unwrap_or(any);
            if let Some(destination) = IpNet::containing(destination, prefix) {
                routes.push(Route {
                    destination,
                    interface: link::number(&attributes, RTA_OIF)?,
                    priority: link::number(&attributes, RTA_PRIORITY)?.unwrap_or(0),
                });
            }
            Ok(())
        },
    )
}
