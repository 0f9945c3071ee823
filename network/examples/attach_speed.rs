//! Prints how long a pod's network takes: namespace, attach, detach (`detach_soon`: the interfaces go in groups, and the rate
//! counts until the last is gone), one after the other and from sixteen threads.
//! Runs as root; everything happens in a network namespace made for it, which plays the host. Leaves nothing.
//! `cargo run --release -p keelson-network --example attach_speed [pods]`.
#![allow(clippy::print_stdout, clippy::expect_used, reason = "a tool for a person at a terminal")]

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

use keelson_api::SandboxId;
use keelson_network::{AttachRequest, Config, Netns, Network, PortMapping, Protocol};
use keelson_sys::namespace::{NamespaceKinds, in_new};

struct Sample {
    netns: Duration,
    attach: Duration,
    detach: Duration,
}

fn main() {
    let pods = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(400);
    in_new(NamespaceKinds::NET, || host(pods)).expect("a network namespace: needs root");
}

fn host(pods: u16) {
    let dir = std::env::temp_dir().join(format!("keelson-attach-speed-{}", std::process::id()));
    let network = Network::open(Config::new(dir.clone(), "kl-speed")).expect("open the network");
    // The first attach makes bridge and table: not what is measured.
    drop(pod(&network, u16::MAX, &[]));
    for ports in [&[][..], &[PortMapping { protocol: Protocol::Tcp, host_port: 1, container_port: 80, host_ip: None }]]
    {
        let note = if ports.is_empty() { "" } else { ", one host port each" };
        let begun = Instant::now();
        let samples: Vec<Sample> = (0..pods).map(|n| pod(&network, n, ports)).collect();
        network.settle().expect("all gone");
        report(&format!("serial{note}"), &samples, begun.elapsed());
        let begun = Instant::now();
        let samples: Vec<Sample> = thread::scope(|scope| {
            let network = &network;
            let work =
                |worker: u16| move || (0..pods / 16).map(|n| pod(network, n * 16 + worker, ports)).collect::<Vec<_>>();
            let workers: Vec<_> = (0..16).map(|worker| scope.spawn(work(worker))).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("worker")).collect()
        });
        network.settle().expect("all gone");
        report(&format!("16 threads{note}"), &samples, begun.elapsed());
    }
    network.retain(&HashSet::new()).expect("detach what is left");
    network.close().expect("remove bridge and table");
    std::fs::remove_dir_all(&dir).expect("remove the records");
}

fn pod(network: &Network, n: u16, ports: &[PortMapping]) -> Sample {
    let [high, low] = n.to_be_bytes();
    let mut bytes = [0x5a; 32];
    for (to, from) in bytes.iter_mut().zip([high, low, high, low, high, low]) {
        *to = from;
    }
    let ports = ports.iter().map(|port| PortMapping { host_port: n.saturating_add(1), ..*port }).collect();
    let request = AttachRequest { sandbox: SandboxId::from_random(bytes), ports };
    let begun = Instant::now();
    let netns = in_new(NamespaceKinds::NET, Netns::current).expect("a pod's namespace").expect("its socket");
    let made = Instant::now();
    network.attach(&request, &netns).expect("attach");
    let attached = Instant::now();
    network.detach_soon(&request.sandbox).expect("detach");
    let detached = Instant::now();
    Sample { netns: made - begun, attach: attached - made, detach: detached - attached }
}

fn report(what: &str, samples: &[Sample], wall: Duration) {
    println!("{what}: {} pods, {:.0} pods/s", samples.len(), samples.len() as f64 / wall.as_secs_f64());
    type Part = fn(&Sample) -> Duration;
    let parts: [(&str, Part); 3] =
        [("netns", |sample| sample.netns), ("attach", |sample| sample.attach), ("detach", |sample| sample.detach)];
    for (name, part) in parts {
        let mut times: Vec<Duration> = samples.iter().map(part).collect();
        times.sort();
        let at =
            |percent: usize| times.get((times.len().saturating_sub(1)) * percent / 100).copied().unwrap_or_default();
        println!("  {name:<7} min {:>9.1?}  p50 {:>9.1?}  p99 {:>9.1?}", at(0), at(50), at(99));
    }
}
