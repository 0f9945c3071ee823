//! What a pod network is made from, and the check of it.
//! Plain data; any thread. Owns nothing.
//! Must never let a name through that an interface or a table cannot have.

use std::path::PathBuf;

use crate::address::{Ipv4Net, Ipv6Net};

/// A pod network on a bridge of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where its records live; made if absent. One network per folder at a time.
    pub dir: PathBuf,
    /// The bridge: 1 to 15 characters.
    pub bridge: String,
    /// The nftables table (family inet).
    pub table: String,
    /// Where pods' IPv4 addresses come from.
    pub ipv4: Subnet<Ipv4Net>,
    /// Where pods' IPv6 addresses come from.
    pub ipv6: Subnet<Ipv6Net>,
    /// Largest packet; `None`: as the interface of the default route has it.
    pub mtu: Option<u32>,
}

/// Where addresses of one family come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subnet<N> {
    /// A network that nothing on this host uses: chosen once, then kept.
    Auto,
    /// No addresses of this family.
    Off,
    /// This network, even when something else has it (then nothing is attached, and the error says so).
    Fixed(N),
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("network configuration: {key} `{value}`: {why}")]
pub struct InvalidConfig {
    /// Which value.
    pub key: &'static str,
    /// As given, cut to 80 characters.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Config {
    /// The defaults around these two: addresses of both families chosen by what is free, the table named as the bridge.
    #[must_use]
    pub fn new(dir: PathBuf, bridge: &str) -> Self {
        Self {
            dir,
            bridge: bridge.to_owned(),
            table: bridge.to_owned(),
            ipv4: Subnet::Auto,
            ipv6: Subnet::Auto,
            mtu: None,
        }
    }

    /// # Errors
    /// For the first value that cannot be used.
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        let bad = |key, value: &str, why| Err(InvalidConfig { key, value: value.chars().take(80).collect(), why });
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let word =
            |text: &str| text.bytes().all(plain) && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
        if !word(&self.bridge) || self.bridge.len() > 15 {
            return bad("bridge", &self.bridge, "want 1 to 15 of A-Z a-z 0-9 - _ . beginning with a letter");
        }
        if !word(&self.table) || self.table.len() > 128 {
            return bad("table", &self.table, "want 1 to 128 of A-Z a-z 0-9 - _ . beginning with a letter");
        }
        if self.ipv4 == Subnet::Off && self.ipv6 == Subnet::Off {
            return bad("ipv4, ipv6", "off, off", "a pod needs an address of at least one family");
        }
        if let Subnet::Fixed(net) = self.ipv4
            && !(8..=30).contains(&net.prefix())
        {
            return bad("ipv4", &net.to_string(), "want a prefix of 8 to 30");
        }
        if let Subnet::Fixed(net) = self.ipv6
            && !(16..=126).contains(&net.prefix())
        {
            return bad("ipv6", &net.to_string(), "want a prefix of 16 to 126");
        }
        if let Some(mtu) = self.mtu
            && !(1280..=65535).contains(&mtu)
        {
            return bad("mtu", &mtu.to_string(), "want 1280 to 65535");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ranges_are_checked() {
        let good = Config::new("/x".into(), "keelson0");
        assert_eq!(good.check(), Ok(()));
        let long = "a".repeat(16);
        for bridge in ["", "0a", "a/b", "..", "a b", "a\n", long.as_str()] {
            assert!(Config::new("/x".into(), bridge).check().is_err(), "{bridge:?}");
        }
        let fixed = |ipv4: &str| Config { ipv4: Subnet::Fixed(ipv4.parse().unwrap()), ..good.clone() };
        assert!(fixed("10.0.0.0/30").check().is_ok() && fixed("10.0.0.0/31").check().is_err());
        assert!(Config { mtu: Some(1279), ..good.clone() }.check().is_err());
        assert!(Config { ipv4: Subnet::Off, ipv6: Subnet::Off, ..good }.check().is_err());
    }
}
