//! Forgets connections that a changed host port would otherwise keep going to where they went before: a UDP flow lives as long
//! as its sender sends, and connection tracking remembers where to.
//! Runs on the caller's thread; walks the table, so it is done for UDP ports only. Owns nothing.
//! Must never forget a flow that has nothing to do with the port.

use rustix::net::netlink::NETFILTER;

use crate::{
    netlink::{Attributes, Batch, Malformed, NetlinkError, Socket, flags},
    port::Protocol,
};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;

const TUPLE_ORIGINAL: u16 = 1;
const ZONE: u16 = 18;
const ID: u16 = 12;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;

#[derive(Debug)]
struct Flow {
    family: u8,
    original: Vec<u8>,
    id: Option<Vec<u8>>,
    zone: Option<Vec<u8>>,
}

/// Forgets every UDP flow to one of these ports of the host, in the calling thread's network namespace.
///
/// # Errors
/// Of netlink.
pub(crate) fn forget_udp(ports: &[u16]) -> Result<(), NetlinkError> {
    let lost = |source| NetlinkError::Socket { act: "list tracked connections", object: String::new(), source };
    let mut socket = Socket::open(Some(NETFILTER)).map_err(lost)?;
    let flows: Vec<Flow> = socket.dump(
        |batch| {
            let what = ("list tracked connections", "");
            batch.push(what, (SUBSYSTEM << 8 | GET, flags::DUMP), &[0; 4], |_| {});
        },
        |flows: &mut Vec<Flow>, message| {
            let (fixed, attributes) = message.split::<4>()?;
            let [family, ..] = fixed;
            let Some(original) = attributes.clone().find(TUPLE_ORIGINAL)? else { return Ok(()) };
            if udp_port(original.nested())?.is_some_and(|port| ports.contains(&port)) {
                let copy = |kind| Ok(attributes.clone().find(kind)?.map(|attribute| attribute.payload.to_vec()));
                flows.push(Flow { family, original: original.payload.to_vec(), id: copy(ID)?, zone: copy(ZONE)? });
            }
            Ok(())
        },
    )?;
    for flow in flows {
        let mut batch = Batch::new();
        let what = ("forget tracked connection", "");
        batch.push(what, (SUBSYSTEM << 8 | DELETE, 0), &[flow.family, 0, 0, 0], |message| {
            message.bytes(TUPLE_ORIGINAL | crate::netlink::NESTED, &flow.original);
            for (kind, value) in [(ID, &flow.id), (ZONE, &flow.zone)] {
                if let Some(value) = value {
                    message.bytes(kind, value);
                }
            }
        });
        match socket.execute(batch) {
            // It ended by itself meanwhile.
            Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => {}
            done => done?,
        }
    }
    Ok(())
}

fn udp_port(tuple: Attributes<'_>) -> Result<Option<u16>, Malformed> {
    let Some(protocol) = tuple.find(TUPLE_PROTOCOL)? else { return Ok(None) };
    let number = protocol.nested().find(PROTOCOL_NUMBER)?.and_then(|number| number.payload.first().copied());
    if number != Some(Protocol::Udp.number()) {
        return Ok(None);
    }
    let port = protocol.nested().find(DESTINATION_PORT)?;
    Ok(port.and_then(|port| Some(u16::from_be_bytes(port.payload.try_into().ok()?))))
}
