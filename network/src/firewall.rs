//! The one nftables table of a pod network: masquerade, host ports, the guard of the host's loopback. Nothing in it grows with
//! the number of pods but the maps of published ports, so a pod without host ports needs no message at all.
//! Runs on the caller's thread. Owns the table whose name the configuration gives. Must never touch another table; and cannot
//! overrule one: a packet that any other table drops stays dropped, whatever is accepted here.

use std::net::Ipv6Addr;

use crate::{
    address::{IpNet, Ipv4Net, Ipv6Net},
    netlink::NetlinkError,
    nfnetlink::{self, Address, Element, Hook, MapLayout, Nftables, Rule, Transaction, Verdict, register},
    port::Map,
};

const FILTER: &str = "filter";
const NAT: &str = "nat";

/// Type numbers of the `nft` tool; those of a concatenation follow each other in groups of six bits.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_INTERFACE: u32 = 41;

const OLD_INTERFACES4: &str = "not_routed4";
const OLD_INTERFACES6: &str = "not_routed6";

impl Map {
    pub(crate) const ALL: [Map; 4] = [Map::Any4, Map::At4, Map::Any6, Map::At6];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Map::Any4 => "ports4",
            Map::At4 => "ports4_at",
            Map::Any6 => "ports6",
            Map::At6 => "ports6_at",
        }
    }

    fn ipv4(self) -> bool {
        matches!(self, Map::Any4 | Map::At4)
    }

    fn with_address(self) -> bool {
        matches!(self, Map::At4 | Map::At6)
    }

    fn layout(self) -> MapLayout {
        let (address, length) = if self.ipv4() { (TYPE_IPV4, 4) } else { (TYPE_IPV6, 16) };
        let place = TYPE_PROTOCOL << 6 | TYPE_PORT;
        let (key_type, key_len) = if self.with_address() { (address << 12 | place, length + 8) } else { (place, 8) };
        MapLayout { key_type, key_len, data_type: address << 6 | TYPE_PORT, data_len: length + 4 }
    }
}

/// What happens to elements of the maps.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PortChange<'a> {
    Add(&'a [(Map, Element)]),
    Delete(&'a [(Map, Element)]),
}

/// What the table is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ruleset {
    pub(crate) table: String,
    pub(crate) bridge: String,
    pub(crate) nets: Vec<IpNet>,
    /// Interfaces between which the host did not route IPv4 before this network made it a router: it still must not.
    pub(crate) not_routed4: Vec<String>,
    /// The same for IPv6.
    pub(crate) not_routed6: Vec<String>,
}

impl Ruleset {
    /// Makes the table anew in one transaction, with these elements in its maps.
    pub(crate) fn install(&self, nftables: &mut Nftables, elements: &[(Map, Element)]) -> Result<(), NetlinkError> {
        nftables.commit(self.transaction(elements).0)
    }

    /// Adds or deletes elements of the maps.
    pub(crate) fn change(&self, change: PortChange<'_>) -> Transaction<'_> {
        let (PortChange::Add(elements) | PortChange::Delete(elements)) = change;
        let mut transaction = Transaction::on(&self.table);
        for map in Map::ALL {
            let of_map: Vec<Element> = elements.iter().filter(|(of, _)| *of == map).map(|(_, e)| e.clone()).collect();
            match change {
                PortChange::Add(_) => transaction.add_elements(map.name(), &of_map),
                // Added first, so that deleting what is not there is no error.
                PortChange::Delete(_) => {
                    transaction.add_elements(map.name(), &of_map);
                    transaction.delete_elements(map.name(), &of_map);
                }
            }
        }
        transaction
    }

    /// Whether the table is there with every rule and element, and nothing else in it.
    pub(crate) fn is_intact(&self, nftables: &mut Nftables, elements: &[(Map, Element)]) -> Result<bool, NetlinkError> {
        if nftables.rules(&self.table)? != self.transaction(&[]).1 {
            return Ok(false);
        }
        for map in Map::ALL {
            let mut there = nftables.elements(&self.table, map.name())?;
            let mut wanted: Vec<Element> =
                elements.iter().filter(|(of, _)| *of == map).map(|(_, e)| e.clone()).collect();
            there.sort();
            wanted.sort();
            if there != wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The transaction, and the chain of each rule in it in the order the kernel lists them.
    fn transaction(&self, elements: &[(Map, Element)]) -> (Transaction<'_>, Vec<String>) {
        let mut writer = Writer { transaction: Transaction::on(&self.table), chains: Vec::new(), bridge: &self.bridge };
        // Made, deleted and made again: replaces what is there, and is no error when nothing is.
        writer.transaction.add_table();
        writer.transaction.delete_table();
        writer.transaction.add_table();
        for map in Map::ALL {
            writer.transaction.add_map(map.name(), map.layout());
            let of_map: Vec<Element> = elements.iter().filter(|(of, _)| *of == map).map(|(_, e)| e.clone()).collect();
            writer.transaction.add_elements(map.name(), &of_map);
        }
        for (set, names) in [(OLD_INTERFACES4, &self.not_routed4), (OLD_INTERFACES6, &self.not_routed6)] {
            let layout = MapLayout { key_type: TYPE_INTERFACE, key_len: 16, data_type: 0, data_len: 0 };
            writer.transaction.add_map(set, layout);
            let names = names.iter().map(|name| Element { key: nfnetlink_interface(name), data: Vec::new() });
            writer.transaction.add_elements(set, &names.collect::<Vec<_>>());
        }
        writer.guard();
        writer.ports("prerouting", 0);
        writer.ports("output", 3);
        writer.forward();
        writer.postrouting(&self.nets);
        (writer.transaction, writer.chains)
    }
}

fn nfnetlink_interface(name: &str) -> Vec<u8> {
    nfnetlink::interface(name).to_vec()
}

struct Writer<'a> {
    transaction: Transaction<'a>,
    chains: Vec<String>,
    bridge: &'a str,
}

impl Writer<'_> {
    fn rule(&mut self, chain: &str, comment: &str, fill: impl FnOnce(&mut Rule<'_, '_>)) {
        self.chains.push(chain.to_owned());
        self.transaction.add_rule(chain, comment, fill);
    }

    /// Answers to the host's own loopback connections need `route_localnet` on the bridge; this keeps everybody else from
    /// using it to reach what listens on 127.0.0.1 (the class of CVE-2020-8558). Before connection tracking, so that answers,
    /// whose destination is still the bridge's address here, pass.
    fn guard(&mut self) {
        let bridge = self.bridge;
        self.transaction.add_chain("guard", Hook { kind: FILTER, hook: 0, priority: -300 });
        let Some(loopback) = Ipv4Net::new([127, 0, 0, 0].into(), 8).map(IpNet::V4) else { return };
        for (which, comment) in [
            (Address::Destination, "no pod reaches the host's loopback"),
            (Address::Source, "no pod speaks as the host's loopback"),
        ] {
            self.rule("guard", comment, |rule| {
                rule.family(true).in_interface(bridge).address_in(which, loopback).verdict(Verdict::Drop);
            });
        }
    }

    /// Published ports: what is sent to them from outside and from pods (prerouting) and from the host itself (output). The
    /// host's IPv6 loopback is left out: the kernel takes no answer to it from another interface, and a connection refused at
    /// once lets a client go on to 127.0.0.1, where one that hangs does not.
    fn ports(&mut self, chain: &str, hook: u32) {
        self.transaction.add_chain(chain, Hook { kind: NAT, hook, priority: -100 });
        let loopback = Ipv6Net::new(Ipv6Addr::LOCALHOST, 128).map(IpNet::V6);
        for map in [Map::At4, Map::Any4, Map::At6, Map::Any6] {
            let ipv4 = map.ipv4();
            let comment = if map.with_address() { "ports of one host address" } else { "ports of all host addresses" };
            self.rule(chain, comment, |rule| {
                rule.family(ipv4);
                if let Some(loopback) = loopback.filter(|_| !ipv4) {
                    rule.address_not_in(Address::Destination, loopback);
                }
                // Always: or a pod could take what others send through this host to an address that is not the host's.
                rule.destination_is_local();
                let mut next = register::FIRST;
                if map.with_address() {
                    rule.load_address(Address::Destination, ipv4, next);
                    next += if ipv4 { 1 } else { 4 };
                }
                rule.load_protocol(next).load_port(next + 1).lookup(map.name(), Some(register::FIRST));
                let port = register::FIRST + if ipv4 { 1 } else { 4 };
                rule.change_destination(ipv4, register::FIRST, port);
            });
        }
    }

    fn forward(&mut self) {
        let bridge = self.bridge;
        self.transaction.add_chain("forward", Hook { kind: FILTER, hook: 2, priority: 0 });
        self.rule("forward", "from pods", |rule| rule.in_interface(bridge).verdict(Verdict::Accept));
        self.rule("forward", "to pods", |rule| rule.out_interface(bridge).verdict(Verdict::Accept));
        for (ipv4, set) in [(true, OLD_INTERFACES4), (false, OLD_INTERFACES6)] {
            self.rule("forward", "the host did not route here before it had pods", |rule| {
                rule.family(ipv4).both_interfaces_in(set).verdict(Verdict::Drop);
            });
        }
    }

    fn postrouting(&mut self, nets: &[IpNet]) {
        let bridge = self.bridge;
        let chain = "postrouting";
        self.transaction.add_chain(chain, Hook { kind: NAT, hook: 4, priority: 100 });
        for &net in nets {
            let ipv4 = matches!(net, IpNet::V4(_));
            self.rule(chain, "pods leave with the host's address", |rule| {
                let rule = rule.family(ipv4).address_in(Address::Source, net).address_not_in(Address::Destination, net);
                rule.out_interface_not(bridge).masquerade();
            });
            self.rule(chain, "a pod that uses a host port gets its answer through the host", |rule| {
                let rule = rule.family(ipv4).out_interface(bridge).destination_was_changed();
                rule.address_in(Address::Source, net).masquerade();
            });
        }
        // IPv6 has no such rule: its loopback address is never accepted from a bridge, so it is left alone from the start.
        if let Some(loopback) = Ipv4Net::new([127, 0, 0, 0].into(), 8).map(IpNet::V4) {
            self.rule(chain, "the host's loopback uses a host port", |rule| {
                let rule = rule.family(true).out_interface(bridge).destination_was_changed();
                rule.address_in(Address::Source, loopback).masquerade();
            });
        }
    }
}
