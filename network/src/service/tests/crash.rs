//! A failure or a death between any two steps: afterwards the same sandbox attaches, detaches, and nothing is left.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::lab::{HOST4, Lab, Pod, port};
use crate::{
    PortMapping, Protocol,
    fault::{Fault, POINTS},
    nfnetlink::Nftables,
    port::Map,
};

fn ports() -> [PortMapping; 2] {
    [port(Protocol::Tcp, 8080, None), port(Protocol::Udp, 8080, None)]
}

fn elements(lab: &Lab) -> usize {
    lab.host.run(|| {
        let mut nftables = Nftables::open().unwrap();
        Map::ALL.into_iter().map(|map| nftables.elements("kl-test", map.name()).unwrap().len()).sum()
    })
}

/// The points that belong to an attach.
fn attach_points() -> impl Iterator<Item = &'static str> {
    POINTS.into_iter().filter(|point| !["unpublished", "unlinked", "released", "forgotten"].contains(point))
}

#[test]
fn privileged_a_failed_attach_leaves_nothing() {
    for point in attach_points() {
        let lab = Lab::new();
        let network = lab.open();
        let pod = Pod::bare(1);
        network.core.faults.arm(point, Fault::Fail);
        let attached = pod.attach(&network, &ports());
        assert!(attached.is_err(), "{point} did not fail");
        let mut left = lab.leftovers();
        left.retain(|name| name != "kl-test");
        assert_eq!((left, elements(&lab)), (vec![], 0), "after {point}");
        assert!(network.attachment(&pod.id).is_none());
        assert_eq!(pod.place.links().len(), 1);
        pod.attach(&network, &ports()).unwrap();
    }
}

#[test]
fn privileged_a_daemon_that_dies_anywhere_finds_its_way_back() {
    for point in POINTS {
        for detach_first in [false, true] {
            let lab = Lab::new();
            let network = lab.open();
            let pod = Pod::bare(1);
            let attach = || pod.attach(&network, &ports()).is_ok();
            let dies_in_attach = attach_points().any(|other| other == point);
            if !dies_in_attach {
                assert!(attach());
            }
            network.core.faults.arm(point, Fault::Die);
            // The reaper's death shows as an error, that of a caller's thread as a panic.
            let lived =
                catch_unwind(AssertUnwindSafe(
                    || {
                        if dies_in_attach { attach() } else { network.detach(&pod.id).is_ok() }
                    },
                ));
            assert!(!lived.unwrap_or(false), "{point} was not reached");
            drop(network);
            // A new daemon over what is left.
            let network = lab.open();
            if detach_first {
                network.detach(&pod.id).unwrap();
            } else {
                let attached = pod.attach(&network, &ports()).unwrap();
                let _server = pod.place.serve("[::]:80");
                assert!(lab.outside.tcp(format!("{HOST4}:8080")).is_ok(), "after {point}");
                let links = pod.place.links();
                assert_eq!(links.len(), 2, "after {point}: {links:?}");
                assert_eq!(elements(&lab), 4, "after {point}");
                assert_eq!(lab.leftovers().len(), 1 + 1 + 1 + attached.addresses.len(), "after {point}");
                network.detach(&pod.id).unwrap();
            }
            network.close().unwrap();
            assert_eq!(lab.leftovers(), Vec::<String>::new(), "after {point}");
            assert_eq!(lab.host.sysctl("ipv4/ip_forward"), "0", "after {point}");
        }
    }
}

#[test]
fn privileged_a_failed_detach_is_finished_by_the_next() {
    for point in ["unpublished", "unlinked", "released", "forgotten"] {
        let lab = Lab::new();
        let network = lab.open();
        let pod = lab.pod(&network, 1, &ports());
        network.core.faults.arm(point, Fault::Fail);
        let detached = network.detach(&pod.id);
        assert!(detached.is_err(), "{point}");
        network.detach(&pod.id).unwrap();
        network.close().unwrap();
        assert_eq!(lab.leftovers(), Vec::<String>::new(), "after {point}");
    }
}
