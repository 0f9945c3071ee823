//! The expressions of a rule: load something of the packet into a register, compare it, look it up, decide.
//! Pure encoding; any thread, never blocks. Owns nothing.
//! Must never be given a constant in the wrong byte order: packet fields are big-endian, meta and ct values host-endian.

use crate::{address::IpNet, netlink::MessageWriter};

const EXPRESSION: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;

const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 2;
const CT_STATUS: u32 = 2;
const CT_STATUS_DNAT: u32 = 1 << 5;
const RTN_LOCAL: u32 = 2;
const NAT_DESTINATION: u32 = 1;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Registers of 32 bits, as the kernel numbers them; a longer value takes several in a row.
pub(crate) mod register {
    /// The first of sixteen.
    pub(crate) const FIRST: u32 = 8;
}

/// What becomes of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Gone, without a word to its sender.
    Drop,
    /// No more rules of this chain.
    Accept,
}

/// Which address of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Address {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// Writes the expressions of one rule; all must hold for the last to act.
#[derive(Debug)]
pub(crate) struct Rule<'a, 'b> {
    message: &'a mut MessageWriter<'b>,
}

impl<'a, 'b> Rule<'a, 'b> {
    pub(super) fn writing(message: &'a mut MessageWriter<'b>) -> Self {
        Self { message }
    }

    /// The packet is of this family.
    pub(crate) fn family(&mut self, ipv4: bool) -> &mut Self {
        self.meta(META_NFPROTO, register::FIRST);
        self.compare(EQUAL, &[if ipv4 { 2 } else { 10 }])
    }

    /// It came in through this interface.
    pub(crate) fn in_interface(&mut self, name: &str) -> &mut Self {
        self.meta(META_IIFNAME, register::FIRST);
        self.compare(EQUAL, &interface(name))
    }

    /// It goes out through this interface.
    pub(crate) fn out_interface(&mut self, name: &str) -> &mut Self {
        self.meta(META_OIFNAME, register::FIRST);
        self.compare(EQUAL, &interface(name))
    }

    /// It goes out through any other interface.
    pub(crate) fn out_interface_not(&mut self, name: &str) -> &mut Self {
        self.meta(META_OIFNAME, register::FIRST);
        self.compare(NOT_EQUAL, &interface(name))
    }

    /// Both the interface it came in through and the one it goes out through are in this set of names.
    pub(crate) fn both_interfaces_in(&mut self, set: &str) -> &mut Self {
        self.meta(META_IIFNAME, register::FIRST);
        self.lookup(set, None);
        self.meta(META_OIFNAME, register::FIRST);
        self.lookup(set, None)
    }

    /// Its address is in the network. The family must have been compared before.
    pub(crate) fn address_in(&mut self, which: Address, net: IpNet) -> &mut Self {
        self.address_is(which, net, EQUAL)
    }

    /// Its address is not in the network. The family must have been compared before.
    pub(crate) fn address_not_in(&mut self, which: Address, net: IpNet) -> &mut Self {
        self.address_is(which, net, NOT_EQUAL)
    }

    fn address_is(&mut self, which: Address, net: IpNet, how: u32) -> &mut Self {
        let ipv4 = matches!(net, IpNet::V4(_));
        self.load_address(which, ipv4, register::FIRST);
        let (address, mask) = match net {
            IpNet::V4(net) => (net.address().octets().to_vec(), net.netmask().octets().to_vec()),
            IpNet::V6(net) => (net.address().octets().to_vec(), net.netmask().octets().to_vec()),
        };
        self.expression("bitwise", |data| {
            data.be32(1, register::FIRST);
            data.be32(2, register::FIRST);
            data.be32(3, if ipv4 { 4 } else { 16 });
            data.nest(4, |data| data.bytes(DATA_VALUE, &mask));
            data.nest(5, |data| data.bytes(DATA_VALUE, &vec![0; mask.len()]));
        });
        self.compare(how, &address)
    }

    /// Its destination is an address of this host.
    pub(crate) fn destination_is_local(&mut self) -> &mut Self {
        self.expression("fib", |data| {
            data.be32(1, register::FIRST);
            data.be32(2, FIB_RESULT_ADDRTYPE);
            data.be32(3, FIB_DADDR);
        });
        self.compare(EQUAL, &RTN_LOCAL.to_ne_bytes())
    }

    /// Its connection had its destination changed.
    pub(crate) fn destination_was_changed(&mut self) -> &mut Self {
        self.expression("ct", |data| {
            data.be32(1, register::FIRST);
            data.be32(2, CT_STATUS);
        });
        self.expression("bitwise", |data| {
            data.be32(1, register::FIRST);
            data.be32(2, register::FIRST);
            data.be32(3, 4);
            data.nest(4, |data| data.bytes(DATA_VALUE, &CT_STATUS_DNAT.to_ne_bytes()));
            data.nest(5, |data| data.bytes(DATA_VALUE, &[0; 4]));
        });
        self.compare(NOT_EQUAL, &[0; 4])
    }

    /// Loads its address into `register` and those after it.
    pub(crate) fn load_address(&mut self, which: Address, ipv4: bool, register: u32) -> &mut Self {
        let (offset, length) = match (which, ipv4) {
            (Address::Source, true) => (12, 4),
            (Address::Destination, true) => (16, 4),
            (Address::Source, false) => (8, 16),
            (Address::Destination, false) => (24, 16),
        };
        self.payload(BASE_NETWORK, offset, length, register)
    }

    /// Loads its protocol into `register`.
    pub(crate) fn load_protocol(&mut self, register: u32) -> &mut Self {
        self.meta(META_L4PROTO, register)
    }

    /// Loads its destination port into `register`; a packet without a transport header is not matched.
    pub(crate) fn load_port(&mut self, register: u32) -> &mut Self {
        self.payload(BASE_TRANSPORT, 2, 2, register)
    }

    /// Looks up what the first registers hold; `Some` puts the value found into that register and those after it. Not found:
    /// the rule does not match.
    pub(crate) fn lookup(&mut self, map: &str, into: Option<u32>) -> &mut Self {
        self.expression("lookup", |data| {
            data.text(1, map);
            data.be32(2, register::FIRST);
            if let Some(into) = into {
                data.be32(3, into);
            }
        })
    }

    /// Changes its destination to the address and port in these registers.
    pub(crate) fn change_destination(&mut self, ipv4: bool, address: u32, port: u32) {
        self.expression("nat", |data| {
            data.be32(1, NAT_DESTINATION);
            data.be32(2, if ipv4 { 2 } else { 10 });
            data.be32(3, address);
            data.be32(5, port);
        });
    }

    /// Changes its source to the address of the interface it leaves by.
    pub(crate) fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }

    /// Ends the chain for it.
    pub(crate) fn verdict(&mut self, verdict: Verdict) {
        let code = match verdict {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
        };
        self.expression("immediate", |data| {
            data.be32(1, 0);
            data.nest(2, |data| data.nest(DATA_VERDICT, |data| data.be32(VERDICT_CODE, code)));
        });
    }

    fn meta(&mut self, key: u32, register: u32) -> &mut Self {
        self.expression("meta", |data| {
            data.be32(1, register);
            data.be32(2, key);
        })
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) -> &mut Self {
        self.expression("payload", |data| {
            data.be32(1, register);
            data.be32(2, base);
            data.be32(3, offset);
            data.be32(4, length);
        })
    }

    fn compare(&mut self, how: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |data| {
            data.be32(1, register::FIRST);
            data.be32(2, how);
            data.nest(3, |data| data.bytes(DATA_VALUE, value));
        })
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut MessageWriter<'_>)) -> &mut Self {
        self.message.nest(EXPRESSION, |expression| {
            expression.text(NAME, name);
            expression.nest(DATA, fill);
        });
        self
    }
}

/// An interface's name as the kernel compares it: 16 bytes, filled with NUL.
pub(crate) fn interface(name: &str) -> [u8; 16] {
    let mut bytes = [0u8; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    bytes
}
