//! nf_tables over nfnetlink: transactions of tables, chains, rules, maps and their elements, and enough listing to check them.
//! Runs on the caller's thread, which blocks while the kernel commits. Owns one netlink socket.
//! Must never name a table that it was not given: everything here takes the table, nothing flushes a ruleset.

mod rule;

use rustix::net::netlink::NETFILTER;

pub(crate) use rule::interface;
pub(crate) use rule::{Address, Rule, Verdict, register};

use crate::netlink::{Attributes, Batch, Malformed, MessageWriter, NetlinkError, Socket, flags};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const GETGEN: u16 = 16;

const NFPROTO_INET: u8 = 1;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_ID: u16 = 10;
const SET_FLAG_MAP: u32 = 8;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const GENERATION_ID: u16 = 1;

/// Elements per message: what is nested in one attribute must stay below 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// Where a chain sees packets; `hook` and `priority` as the kernel numbers them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    /// 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub(crate) hook: u32,
    /// Order among chains at this hook.
    pub(crate) priority: i32,
}

/// The layout of a map: type numbers are what the `nft` tool prints it by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapLayout {
    /// Key type.
    pub(crate) key_type: u32,
    /// Key bytes.
    pub(crate) key_len: u32,
    /// Value type; 0 and length 0: a set.
    pub(crate) data_type: u32,
    /// Value bytes.
    pub(crate) data_len: u32,
}

/// A key and its value, laid out as the map says; an empty value for a set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Element {
    /// The key.
    pub(crate) key: Vec<u8>,
    /// The value.
    pub(crate) data: Vec<u8>,
}

/// Changes to one table that happen together or not at all.
#[derive(Debug)]
pub(crate) struct Transaction<'a> {
    batch: Batch,
    table: &'a str,
    sets: u32,
}

impl<'a> Transaction<'a> {
    /// An empty one on this `inet` table.
    #[must_use]
    pub(crate) fn on(table: &'a str) -> Self {
        let mut batch = Batch::new();
        batch.push(("begin firewall transaction", table.to_owned()), (BATCH_BEGIN, 0), &envelope(), |_| {});
        Self { batch, table, sets: 0 }
    }

    /// Makes the table, or leaves it when it is there.
    pub(crate) fn add_table(&mut self) {
        let table = self.table;
        self.push("create firewall table", table, NEWTABLE, flags::CREATE, |message| message.text(TABLE_NAME, table));
    }

    /// Deletes the table, which must be there, and all that is in it.
    pub(crate) fn delete_table(&mut self) {
        let table = self.table;
        self.push("delete firewall table", table, DELTABLE, 0, |message| message.text(TABLE_NAME, table));
    }

    /// Makes a chain at a hook, accepting what its rules say nothing about.
    pub(crate) fn add_chain(&mut self, name: &str, at: Hook) {
        let table = self.table;
        self.push("create firewall chain", name, NEWCHAIN, flags::CREATE, |message| {
            message.text(CHAIN_TABLE, table);
            message.text(CHAIN_NAME, name);
            message.nest(CHAIN_HOOK, |message| {
                message.be32(HOOK_NUMBER, at.hook);
                message.be32(HOOK_PRIORITY, at.priority.cast_unsigned());
            });
            message.be32(CHAIN_POLICY, 1);
            message.text(CHAIN_TYPE, at.kind);
        });
    }

    /// Appends a rule; `comment` is what the `nft` tool shows beside it.
    pub(crate) fn add_rule(&mut self, chain: &str, comment: &str, fill: impl FnOnce(&mut Rule<'_, '_>)) {
        let table = self.table;
        self.push("create firewall rule", chain, NEWRULE, flags::CREATE | flags::APPEND, |message| {
            message.text(RULE_TABLE, table);
            message.text(RULE_CHAIN, chain);
            message.nest(RULE_EXPRESSIONS, |message| fill(&mut Rule::writing(message)));
            if let Ok(length) = u8::try_from(comment.len() + 1) {
                let userdata: Vec<u8> = [0, length].into_iter().chain(comment.bytes()).chain([0]).collect();
                message.bytes(RULE_USERDATA, &userdata);
            }
        });
    }

    /// Makes a map (or a set).
    pub(crate) fn add_map(&mut self, name: &str, layout: MapLayout) {
        let table = self.table;
        self.sets += 1;
        let id = self.sets;
        self.push("create firewall map", name, NEWSET, flags::CREATE, |message| {
            message.text(SET_TABLE, table);
            message.text(SET_NAME, name);
            message.be32(SET_FLAGS, if layout.data_len == 0 { 0 } else { SET_FLAG_MAP });
            message.be32(SET_KEY_TYPE, layout.key_type);
            message.be32(SET_KEY_LEN, layout.key_len);
            if layout.data_len != 0 {
                message.be32(SET_DATA_TYPE, layout.data_type);
                message.be32(SET_DATA_LEN, layout.data_len);
            }
            message.be32(SET_ID, id);
        });
    }

    /// Adds elements; one that is there with another value makes the transaction fail with `EEXIST`.
    pub(crate) fn add_elements(&mut self, map: &str, elements: &[Element]) {
        self.elements("add to firewall map", map, (NEWSETELEM, flags::CREATE), elements);
    }

    /// Deletes elements, which must be there.
    pub(crate) fn delete_elements(&mut self, map: &str, elements: &[Element]) {
        self.elements("delete from firewall map", map, (DELSETELEM, 0), elements);
    }

    fn elements(&mut self, act: &'static str, map: &str, (kind, flags): (u16, u16), elements: &[Element]) {
        let table = self.table;
        for elements in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.push(act, map, kind, flags, |message| {
                message.text(ELEMENTS_TABLE, table);
                message.text(ELEMENTS_SET, map);
                message.nest(ELEMENTS, |message| {
                    for element in elements {
                        message.nest(ELEMENT, |message| {
                            message.nest(ELEMENT_KEY, |message| message.bytes(DATA_VALUE, &element.key));
                            if kind == NEWSETELEM && !element.data.is_empty() {
                                message.nest(ELEMENT_DATA, |message| message.bytes(DATA_VALUE, &element.data));
                            }
                        });
                    }
                });
            });
        }
    }

    fn push(
        &mut self,
        act: &'static str,
        object: &str,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut MessageWriter<'_>),
    ) {
        let what = (act, format!("{}/{object}", self.table));
        self.batch.push(what, (SUBSYSTEM << 8 | kind, flags), &[NFPROTO_INET, 0, 0, 0], fill);
    }

    fn sealed(mut self) -> Batch {
        let what = ("commit firewall transaction", self.table.to_owned());
        self.batch.push(what, (BATCH_END, 0), &envelope(), |_| {});
        self.batch
    }

    /// The bytes the kernel gets.
    #[cfg(test)]
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.sealed().bytes().to_vec()
    }
}

fn envelope() -> [u8; 4] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}

/// nf_tables of one network namespace.
#[derive(Debug)]
pub(crate) struct Nftables {
    socket: Socket,
}

impl Nftables {
    /// Of the calling thread's network namespace.
    ///
    /// # Errors
    /// Of opening a netlink socket.
    pub(crate) fn open() -> std::io::Result<Self> {
        Ok(Self { socket: Socket::open(Some(NETFILTER))? })
    }

    /// Carries out a transaction.
    ///
    /// # Errors
    /// The kernel's first refusal; then nothing of it was done.
    pub(crate) fn commit(&mut self, transaction: Transaction<'_>) -> Result<(), NetlinkError> {
        self.socket.transaction(transaction.sealed())
    }

    /// The number that changes with every change of any table of the namespace.
    ///
    /// # Errors
    /// Of netlink; `EOPNOTSUPP` or the like when the kernel has no nf_tables.
    pub(crate) fn generation(&mut self) -> Result<Option<u32>, NetlinkError> {
        let mut batch = Batch::new();
        batch.push(("ask firewall generation", ""), (SUBSYSTEM << 8 | GETGEN, 0), &[0; 4], |_| {});
        let mut generation = None;
        self.socket.query(batch, |message| {
            let (_, attributes) = message.split::<4>()?;
            generation = attributes.find(GENERATION_ID)?.and_then(|id| id.be32());
            Ok(())
        })?;
        Ok(generation)
    }

    /// The chain of every rule in the table, rule by rule; empty when there is no such table.
    ///
    /// # Errors
    /// Of netlink.
    pub(crate) fn rules(&mut self, table: &str) -> Result<Vec<String>, NetlinkError> {
        let listed = self.socket.dump(
            |batch| {
                let what = ("list firewall rules", table.to_owned());
                batch.push(what, (SUBSYSTEM << 8 | GETRULE, flags::DUMP), &[NFPROTO_INET, 0, 0, 0], |message| {
                    message.text(RULE_TABLE, table);
                });
            },
            |chains: &mut Vec<String>, message| {
                let (_, attributes) = message.split::<4>()?;
                // A kernel that does not filter the listing by table lists them all.
                if attributes.clone().find(RULE_TABLE)?.is_some_and(|name| name.text() == table) {
                    let chain = attributes.find(RULE_CHAIN)?;
                    chains.push(chain.map(|chain| chain.text().into_owned()).unwrap_or_default());
                }
                Ok(())
            },
        );
        absent(listed)
    }

    /// The elements of a map; empty when there is no such map.
    ///
    /// # Errors
    /// Of netlink.
    pub(crate) fn elements(&mut self, table: &str, map: &str) -> Result<Vec<Element>, NetlinkError> {
        let listed = self.socket.dump(
            |batch| {
                let what = ("list firewall map", format!("{table}/{map}"));
                batch.push(what, (SUBSYSTEM << 8 | GETSETELEM, flags::DUMP), &[NFPROTO_INET, 0, 0, 0], |message| {
                    message.text(ELEMENTS_TABLE, table);
                    message.text(ELEMENTS_SET, map);
                });
            },
            |elements: &mut Vec<Element>, message| {
                let (_, attributes) = message.split::<4>()?;
                let Some(list) = attributes.find(ELEMENTS)? else { return Ok(()) };
                for element in list.nested() {
                    let element = element?;
                    let key = value(element.nested(), ELEMENT_KEY)?;
                    let data = value(element.nested(), ELEMENT_DATA)?;
                    elements.push(Element { key, data });
                }
                Ok(())
            },
        );
        absent(listed)
    }
}

fn value(attributes: Attributes<'_>, kind: u16) -> Result<Vec<u8>, Malformed> {
    let Some(data) = attributes.find(kind)? else { return Ok(Vec::new()) };
    Ok(data.nested().find(DATA_VALUE)?.map(|value| value.payload.to_vec()).unwrap_or_default())
}

fn absent<T>(listed: Result<Vec<T>, NetlinkError>) -> Result<Vec<T>, NetlinkError> {
    match listed {
        Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Messages;

    #[test]
    fn a_transaction_is_enveloped_and_its_golden_bytes_stand() {
        let mut transaction = Transaction::on("t");
        transaction.add_table();
        transaction.add_elements("m", &[Element { key: vec![6, 0, 0, 0], data: vec![1, 2, 3, 4] }]);
        let hex: String = transaction.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let want = concat!(
            "14000000",
            "1000",
            "0100",
            "00000000",
            "00000000",
            "0000000a",
            "1c000000",
            "000a",
            "0104",
            "00000000",
            "00000000",
            "01000000",
            "0600010074000000",
            "44000000",
            "0c0a",
            "0104",
            "00000000",
            "00000000",
            "01000000",
            "0600010074000000",
            "060002006d000000",
            "20000380",
            "1c000180",
            "0c000180",
            "0800010006000000",
            "0c000280",
            "0800010001020304",
            "14000000",
            "1100",
            "0100",
            "00000000",
            "00000000",
            "0000000a",
        );
        assert_eq!(hex, want);
    }

    #[test]
    fn many_elements_are_split_so_that_no_length_overflows() {
        let element = Element { key: vec![0; 24], data: vec![0; 20] };
        let mut transaction = Transaction::on("t");
        transaction.add_elements("m", &vec![element; 5000]);
        let batch = transaction.sealed();
        assert_eq!(batch.len(), 2 + 13);
        assert!(Messages::of(batch.bytes()).all(|message| message.is_ok()));
    }
}
