//! Many at once: nothing is mixed up and nothing is left. No time is asserted; `examples/attach_speed.rs` prints it.

use std::{collections::HashSet, net::IpAddr, thread};

use super::lab::{Lab, Pod};

#[test]
fn privileged_many_threads_attach_and_detach_at_once() {
    let lab = Lab::new();
    let network = lab.open();
    let addresses: Vec<IpAddr> = thread::scope(|scope| {
        let workers: Vec<_> = (0..16u8)
            .map(|worker| {
                let network = &network;
                scope.spawn(move || {
                    (0..4u8)
                        .flat_map(|round| {
                            let pod = Pod::bare(worker * 4 + round);
                            let attached = pod.attach(network, &[]).unwrap();
                            // The last round stays.
                            if round != 3 {
                                network.detach(&pod.id).unwrap();
                            }
                            attached.addresses
                        })
                        .collect::<Vec<IpAddr>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(addresses.len(), 16 * 4 * 2);
    let live = network.attachments();
    assert_eq!(live.len(), 16);
    let distinct: HashSet<IpAddr> = live.iter().flat_map(|attachment| attachment.addresses.clone()).collect();
    assert_eq!(distinct.len(), 32);
    assert_eq!(network.retain(&HashSet::new()).unwrap().len(), 16);
    network.close().unwrap();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}
