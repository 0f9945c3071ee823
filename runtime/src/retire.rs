//! How many records of what has ended are kept, and which go: a node with many jobs must stay listable, and kubelet's restart
//! decisions must stay right. kubelet removes what it has no use for; this is the bound for when it does not.
//! Decided on the reconciler's task from the views alone; the removals go through the sandboxes' tasks as anybody's would, so
//! that they are told as events. Owns nothing.
//! Must never take what kubelet decides by. It asks, for each container of a pod by name, how the newest one ended, in whichever
//! of the pod's sandboxes that was; and it asks so until it has stopped all of the pod's sandboxes for good. So:
//!
//! 1. Of the ended containers with one name in one pod the newest `per_container` stay, over all of the pod's sandboxes.
//! 2. Of a pod's stopped sandboxes that a newer one of the pod has taken over from, and that hold no container, the newest
//!    `per_container` stay.
//! 3. A pod all of whose sandboxes were stopped by request is over when the last stop is `after` ago: one that is to go on gets
//!    a new sandbox at once. Of the pods that are over the `pods` stopped last stay, with all they hold.
//!
//! A sandbox that nobody has asked to stop (a reboot ended it) is never taken, nor anything that may still run.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use keelson_api::{ContainerId, SandboxId};
use tokio::sync::oneshot;

use crate::{
    container::{ContainerState, ContainerView},
    engine::shared::{Shared, now},
    observe::counters,
    sandbox::{SandboxPhase, SandboxView, spec::SandboxKey, task::Command},
};

/// Removals begun at one time: the teardown of what lives comes first.
const AT_ONCE: usize = 128;

/// How much is kept; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Ended containers of one name in one pod; at least 1. Not below kubelet's own number (`maximum-dead-containers-per-container`).
    pub per_container: usize,
    /// Pods that are over.
    pub pods: usize,
    /// From the stop of its last sandbox until a pod is over.
    pub after: Duration,
}

impl Default for Keep {
    fn default() -> Self {
        Self { per_container: 5, pods: 1000, after: Duration::from_secs(3600) }
    }
}

/// What is to go.
#[derive(Debug, Default, PartialEq, Eq)]
struct Excess {
    containers: Vec<(SandboxId, ContainerId)>,
    sandboxes: Vec<SandboxId>,
}

/// Removes what is beyond the bounds, some of it if there is much; the next time goes on.
pub(crate) fn retire(shared: &Shared) {
    let Excess { containers, sandboxes } =
        excess(&shared.config.keep, now(), &shared.table.sandboxes(), &shared.table.containers());
    if containers.is_empty() && sandboxes.is_empty() {
        return;
    }
    tracing::info!(
        containers = containers.len(),
        sandboxes = sandboxes.len(),
        "removing the oldest records of what has ended"
    );
    // Nobody waits for the answers: a failed removal is told by its task, and asked for again.
    let removals =
        containers.into_iter().map(|(sandbox, id)| (sandbox, Command::RemoveContainer(id, oneshot::channel().0)));
    let removals = removals.chain(sandboxes.into_iter().map(|id| (id, Command::Remove(oneshot::channel().0))));
    for (sandbox, command) in removals.take(AT_ONCE) {
        // A task that is gone or has a full queue is looked at again next time.
        if shared.table.sandbox(&sandbox).is_some_and(|entry| entry.commands.try_send(command).is_ok()) {
            counters().records_retired.one();
        }
    }
}

/// A pod, whichever attempt.
type Pod<'a> = (&'a str, &'a str, &'a str);

fn pod(key: &SandboxKey) -> Pod<'_> {
    (&key.namespace, &key.name, &key.uid)
}

/// Both oldest first.
fn excess(keep: &Keep, now: i64, sandboxes: &[Arc<SandboxView>], containers: &[Arc<ContainerView>]) -> Excess {
    let mut excess = Excess::default();
    let homes: HashMap<&SandboxId, &SandboxView> = sandboxes.iter().map(|view| (&view.id, &**view)).collect();

    let mut ended: HashMap<(Pod<'_>, &str), Vec<&ContainerView>> = HashMap::new();
    let mut holding: HashSet<&SandboxId> = HashSet::new();
    for view in containers {
        holding.insert(&view.sandbox);
        if matches!(view.state, ContainerState::Exited(_))
            && let Some(home) = homes.get(&view.sandbox)
        {
            ended.entry((pod(&home.spec.key), &view.spec.key.name)).or_default().push(view);
        }
    }
    for of_one_name in ended.values() {
        let beyond = of_one_name.len().saturating_sub(keep.per_container);
        excess.containers.extend(of_one_name.iter().take(beyond).map(|view| (view.sandbox.clone(), view.id.clone())));
    }

    let mut pods: BTreeMap<Pod<'_>, Vec<&SandboxView>> = BTreeMap::new();
    for view in sandboxes {
        pods.entry(pod(&view.spec.key)).or_default().push(view);
    }
    let after = i64::try_from(keep.after.as_nanos()).unwrap_or(i64::MAX);
    let mut over: Vec<(i64, Vec<&SandboxView>)> = Vec::new();
    for of_one_pod in pods.into_values() {
        if let Some(at) = stopped_at(&of_one_pod)
            && at <= now.saturating_sub(after)
        {
            over.push((at, of_one_pod));
            continue;
        }
        let (_, earlier) = of_one_pod.split_last().unwrap_or((&of_one_pod[0], &[]));
        let done: Vec<_> =
            earlier.iter().filter(|view| stopped(view).is_some() && !holding.contains(&view.id)).collect();
        let beyond = done.len().saturating_sub(keep.per_container);
        excess.sandboxes.extend(done.iter().take(beyond).map(|view| view.id.clone()));
    }
    over.sort_by_key(|(at, _)| *at);
    let beyond = over.len().saturating_sub(keep.pods);
    excess.sandboxes.extend(over.iter().take(beyond).flat_map(|(_, all)| all.iter().map(|view| view.id.clone())));
    excess
}

/// When a sandbox that does not run any more was first asked to stop.
fn stopped(view: &SandboxView) -> Option<i64> {
    view.stopped_at.filter(|_| view.phase == SandboxPhase::NotReady)
}

/// When the last of all of a pod's sandboxes was asked to stop; none while one was not.
fn stopped_at(all: &[&SandboxView]) -> Option<i64> {
    all.iter().map(|view| stopped(view)).try_fold(0, |last, at| at.map(|at: i64| at.max(last)))
}

#[cfg(test)]
mod tests;
