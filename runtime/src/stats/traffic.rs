//! Traffic of sandboxes: as their own interfaces count it where a process is inside, else by the other end on the host.
//! Runs on the blocking pool: one file of the host for all sandboxes of a call, one of a process for each. Owns nothing.
//! Must never enter a namespace, and never wait for the kernel's network lock.

use std::collections::HashMap;

use keelson_network::counters;

use super::{Interface, Network, Traffic};
use crate::{
    engine::shared::{Shared, now},
    sandbox::SandboxView,
};

/// The host's counters, read when the first sandbox of a call needs them.
#[derive(Default)]
pub(super) struct Host(Option<HashMap<String, Traffic>>);

impl Host {
    fn of(&mut self, shared: &Shared, interface: &str) -> Option<Traffic> {
        let read = || {
            let read = shared.network.as_ref()?.host_traffic();
            read.inspect_err(|error| tracing::debug!(%error, "read the host's traffic counters")).ok()
        };
        self.0.get_or_insert_with(|| read().unwrap_or_default()).get(interface).copied()
    }
}

/// None with the host's network, whose traffic is nobody's alone. `pids` are processes of the sandbox.
pub(super) fn of(
    shared: &Shared,
    view: &SandboxView,
    mut pids: impl Iterator<Item = i32>,
    host: &mut Host,
) -> Option<Network> {
    let netns = view.netns.as_deref()?;
    let attachment = shared.network.as_ref()?.attachment(&view.id);
    let name = attachment.as_ref().map_or(keelson_network::INTERFACE, |attachment| attachment.interface.as_str());
    let timestamp = now();
    if let Some(all) = pids.find_map(|pid| counters::of_process(pid, netns).ok()) {
        let interface = |(name, traffic)| Interface { name, traffic };
        let (default, others): (Vec<_>, Vec<_>) =
            all.into_iter().map(interface).partition(|interface| interface.name == name);
        return Some(Network { timestamp, default: default.into_iter().next(), others });
    }
    let other = host.of(shared, &attachment.as_ref()?.host_interface)?;
    let default = Interface { name: name.to_owned(), traffic: counters::other_end(&other) };
    Some(Network { timestamp, default: Some(default), others: Vec::new() })
}
