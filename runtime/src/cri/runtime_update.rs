//! UpdateRuntimeConfig: kubelet tells which addresses the cluster has given this node's pods.
//! Checked and answered in the task of the RPC; nothing of it is kept. Owns nothing.
//! Must never move a bridge that pods are on: what differs from the configuration is told to the operator, who decides.

use keelson_cri::v1;
use keelson_network::IpNet;

use super::{
    Cri,
    rpc::Call,
    status::{Failure, invalid},
};
use crate::config::{Network, Subnet};

const FIELD: &str = "runtime_config.network_config.pod_cidr";

pub(super) async fn handle(
    cri: &Cri,
    call: Call<v1::UpdateRuntimeConfigRequest>,
) -> Result<v1::UpdateRuntimeConfigResponse, Failure> {
    let config = call.message.runtime_config.unwrap_or_default();
    for net in decode(&config.network_config.unwrap_or_default().pod_cidr)? {
        let network = &cri.about.config.network;
        match differs(network, net) {
            None => tracing::debug!(%net, "kubelet told of the pods' addresses"),
            Some(key) => tracing::warn!(
                %net, bridge = network.bridge,
                "the cluster gives this node's pods other addresses than the bridge does: set {key} = \"{net}\" and start \
                 the daemon anew, unless the cluster's network does not mind"
            ),
        }
    }
    Ok(v1::UpdateRuntimeConfigResponse {})
}

/// One network, one of each family with a comma between, or nothing.
fn decode(text: &str) -> Result<Vec<IpNet>, Failure> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let nets: Vec<IpNet> = text.split(',').map_while(|word| net(word.trim())).collect();
    if nets.len() == text.split(',').count() && nets.len() <= 2 {
        Ok(nets)
    } else {
        Err(invalid(FIELD, "want a network such as 10.0.1.0/24, or one of each family with a comma between"))
    }
}

/// Also of an address inside it: clusters are not strict, and kubelet has no pods while this fails.
fn net(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    IpNet::containing(address.parse().ok()?, prefix.parse().ok()?)
}

/// The configuration's key that says otherwise.
fn differs(network: &Network, net: IpNet) -> Option<&'static str> {
    let (same, key) = match net {
        IpNet::V4(net) => {
            let fixed = Subnet::Fixed { address: net.address(), prefix: net.prefix() };
            (network.ipv4 == fixed, "network.ipv4")
        }
        IpNet::V6(net) => {
            let fixed = Subnet::Fixed { address: net.address(), prefix: net.prefix() };
            (network.ipv6 == fixed, "network.ipv6")
        }
    };
    // Without the built-in network somebody else gives addresses.
    (network.enabled && !same).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        crate::config::Config::parse(text, "test", &Default::default()).unwrap().network
    }

    #[test]
    fn a_network_of_each_family_is_taken_and_anything_else_is_refused() {
        for (text, count) in [("", 0), ("10.1.2.0/24", 1), ("10.1.2.0/24,fd00:1::/64", 2), ("fd00::/48, 10.0.0.0/8", 2)]
        {
            assert_eq!(decode(text).unwrap().len(), count, "{text}");
        }
        for text in
            ["10.1.2.0", "10.1.2.0/33", "x", ",", "10.1.2.0/24,", "10.1.2.0/24,x", "1.0.0.0/8,2.0.0.0/8,3.0.0.0/8"]
        {
            assert!(decode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_a_bridge_with_other_addresses_is_told_of() {
        let net = super::net("10.1.2.9/24").unwrap();
        assert_eq!(differs(&network("[network]\nipv4 = \"10.1.2.0/24\""), net), None);
        assert_eq!(differs(&network("[network]\nipv4 = \"10.1.3.0/24\""), net), Some("network.ipv4"));
        assert_eq!(differs(&network(""), super::net("fd00::/64").unwrap()), Some("network.ipv6"));
        assert_eq!(differs(&network("[network]\nenabled = false"), net), None);
    }
}
