//! The metrics of a pod's network, one sample for each interface but loopback.
//! A table of pure functions. Owns the names. Must never have a metric for a pod on the host's network: that traffic is not its own.

use keelson_cri::v1::MetricType;

use super::{Metric, Samples};
use crate::stats::{Network, Traffic};

pub(super) fn all() -> impl Iterator<Item = &'static Metric<Network>> {
    ALL.iter()
}

const fn counter(name: &'static str, help: &'static str, read: fn(&Network, &mut Samples)) -> Metric<Network> {
    Metric::new(MetricType::Counter, name, help, read).labels(&["interface"])
}

fn each(network: &Network, samples: &mut Samples, value: fn(&Traffic) -> u64) {
    for interface in network.default.iter().chain(&network.others) {
        samples.labelled([&interface.name], value(&interface.traffic));
    }
}

static ALL: [Metric<Network>; 8] = [
    counter("container_network_receive_bytes_total", "Bytes received.", |n, s| each(n, s, |t| t.rx_bytes)),
    counter("container_network_receive_errors_total", "Errors while receiving.", |n, s| each(n, s, |t| t.rx_errors)),
    counter("container_network_receive_packets_dropped_total", "Packets dropped while receiving.", |n, s| {
        each(n, s, |t| t.rx_dropped)
    }),
    counter("container_network_receive_packets_total", "Packets received.", |n, s| each(n, s, |t| t.rx_packets)),
    counter("container_network_transmit_bytes_total", "Bytes transmitted.", |n, s| each(n, s, |t| t.tx_bytes)),
    counter("container_network_transmit_errors_total", "Errors while transmitting.", |n, s| {
        each(n, s, |t| t.tx_errors)
    }),
    counter("container_network_transmit_packets_dropped_total", "Packets dropped while transmitting.", |n, s| {
        each(n, s, |t| t.tx_dropped)
    }),
    counter("container_network_transmit_packets_total", "Packets transmitted.", |n, s| each(n, s, |t| t.tx_packets)),
];
