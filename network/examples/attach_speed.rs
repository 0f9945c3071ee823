//! Prints how long a pod's network takes: namespace and attach, one after the other and from sixteen threads, then detach.
//! Runs as root; everything happens in a network namespace made for it, which plays the host. Leaves nothing.
//! `cargo run --release -p keelson-network --example attach_speed [pods]`.
#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::cast_precision_loss,
    reason = "a tool for a person at a terminal"
)]

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

use keelson_api::SandboxId;
use keelson_network::{AttachRequest, Config, Netns, Network, PortMapping, Protocol};
use keelson_sys::namespace::{NamespaceKinds, in_new};

const THREADS: u16 = 16;

struct Sample {
    netns: Duration,
    attach: Duration,
}

fn main() {
    let pods = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(400);
    in_new(NamespaceKinds::NET, || host(pods)).expect("a network namespace: needs root");
}

fn host(pods: u16) {
    let dir = std::env::temp_dir().join(format!("keelson-attach-speed-{}", std::process::id()));
    let network = Network::open(Config::new(dir.clone(), "kl-speed")).expect("open the network");
    // The first attach makes bridge and table: not what is measured.
    let first = attach(&network, u16::MAX, false);
    network.detach(&first.1).expect("detach");
    for ports in [false, true] {
        let note = if ports { ", a host port each" } else { "" };
        round(&format!("one after the other{note}"), &network, || {
            (0..pods).map(|n| attach(&network, n, ports)).collect()
        });
        round(&format!("{THREADS} threads{note}"), &network, || {
            thread::scope(|scope| {
                let network = &network;
                let work = |worker| {
                    move || {
                        (0..pods / THREADS).map(|n| attach(network, n * THREADS + worker, ports)).collect::<Vec<_>>()
                    }
                };
                let workers: Vec<_> = (0..THREADS).map(|worker| scope.spawn(work(worker))).collect();
                workers.into_iter().flat_map(|worker| worker.join().expect("worker")).collect()
            })
        });
    }
    network.retain(&HashSet::new()).expect("detach what is left");
    network.close().expect("remove bridge and table");
    std::fs::remove_dir_all(&dir).expect("remove the records");
}

/// Attaches pods, all of which live until the last is there; then detaches them.
fn round(what: &str, network: &Network, attach_all: impl FnOnce() -> Vec<(Netns, SandboxId, Sample)>) {
    let begun = Instant::now();
    let pods = attach_all();
    let attached = begun.elapsed();
    let samples: Vec<&Sample> = pods.iter().map(|(_, _, sample)| sample).collect();
    println!("{what}: {} pods, {:.0} attached per second", pods.len(), rate(pods.len(), attached));
    report("netns", samples.iter().map(|sample| sample.netns));
    report("attach", samples.iter().map(|sample| sample.attach));
    let begun = Instant::now();
    let calls: Vec<Duration> = pods
        .iter()
        .map(|(_, sandbox, _)| {
            let begun = Instant::now();
            network.detach_soon(sandbox).expect("detach");
            begun.elapsed()
        })
        .collect();
    network.settle().expect("all gone");
    report("detach", calls.into_iter());
    println!("  {:.0} detached per second, until the last is gone", rate(pods.len(), begun.elapsed()));
    // The kernel takes the namespaces themselves away in the background: not during the next round.
    drop(pods);
    thread::sleep(Duration::from_secs(1));
}

fn attach(network: &Network, n: u16, publish: bool) -> (Netns, SandboxId, Sample) {
    let [high, low] = n.to_be_bytes();
    let mut bytes = [0x5a; 32];
    for (to, from) in bytes.iter_mut().zip([high, low, high, low, high, low]) {
        *to = from;
    }
    let port =
        PortMapping { protocol: Protocol::Tcp, host_port: n.saturating_add(1), container_port: 80, host_ip: None };
    let request =
        AttachRequest { sandbox: SandboxId::from_random(bytes), ports: if publish { vec![port] } else { Vec::new() } };
    let begun = Instant::now();
    let netns = in_new(NamespaceKinds::NET, Netns::current).expect("a pod's namespace").expect("its socket");
    let made = Instant::now();
    network.attach(&request, &netns).expect("attach");
    let sample = Sample { netns: made - begun, attach: made.elapsed() };
    (netns, request.sandbox, sample)
}

fn report(name: &str, times: impl Iterator<Item = Duration>) {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    let at = |percent: usize| times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default();
    println!("  {name:<7} min {:>9.1?}  p50 {:>9.1?}  p99 {:>9.1?}", at(0), at(50), at(99));
}

fn rate(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
