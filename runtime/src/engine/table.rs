//! Who is there: every sandbox and container by id, every sandbox by its key, each with its newest view.
//! Read from any task without waiting: locks are held for map look-ups and pointer swaps alone, never over I/O or an await.
//! Owns the entries; the machines belong to the sandboxes' tasks. Must never show what is still being made.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use keelson_api::{ContainerId, SandboxId};

use crate::{
    container::ContainerView,
    sandbox::{
        SandboxView,
        spec::SandboxKey,
        task::queue::{Commands, Queue},
    },
    selinux::level,
    shim_client::ShimClient,
    stats::slot::Slot,
};

/// Requests a sandbox's task has not looked at yet; beyond, callers wait.
pub(crate) const QUEUE: usize = 64;

/// A sandbox as others reach it.
pub(crate) struct SandboxEntry {
    pub(crate) id: SandboxId,
    pub(crate) commands: Commands,
    view: RwLock<Option<Arc<SandboxView>>>,
    /// Reads the cgroup of all its containers.
    pub(crate) stats: Slot,
    /// SELinux level that is its own while it is there.
    level: OnceLock<String>,
}

/// A container as others reach it.
pub(crate) struct ContainerEntry {
    pub(crate) sandbox: Arc<SandboxEntry>,
    view: RwLock<Option<Arc<ContainerView>>>,
    shim: RwLock<Option<Arc<ShimClient>>>,
    /// Reads its cgroup.
    pub(crate) stats: Slot,
}

#[derive(Default)]
struct Maps {
    sandboxes: BTreeMap<SandboxId, Arc<SandboxEntry>>,
    containers: BTreeMap<ContainerId, Arc<ContainerEntry>>,
    keys: HashMap<SandboxKey, SandboxId>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Table(RwLock<Maps>);

/// What a key stands for.
pub(crate) enum Claim {
    /// Nothing yet: it is the caller's now.
    New(Arc<SandboxEntry>, Queue),
    /// This sandbox.
    Taken(Arc<SandboxEntry>),
}

impl SandboxEntry {
    /// What others see; none while it is being made.
    pub(crate) fn view(&self) -> Option<Arc<SandboxView>> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nobody else is given this SELinux level from now on; a second one changes nothing.
    pub(crate) fn hold_level(&self, level: &str) {
        let _ = self.level.set(level.to_owned());
    }

    /// It looks so now.
    pub(crate) fn show(&self, view: Option<Arc<SandboxView>>) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }
}

impl ContainerEntry {
    pub(crate) fn new(sandbox: Arc<SandboxEntry>) -> Arc<Self> {
        Arc::new(Self { sandbox, view: RwLock::default(), shim: RwLock::default(), stats: Slot::default() })
    }

    /// What others see; none while it is being made.
    pub(crate) fn view(&self) -> Option<Arc<ContainerView>> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It looks so now.
    pub(crate) fn show(&self, view: Option<Arc<ContainerView>>) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    /// Its shim, while there is one.
    pub(crate) fn shim(&self) -> Option<Arc<ShimClient>> {
        self.shim.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its shim is this one now.
    pub(crate) fn set_shim(&self, shim: Option<Arc<ShimClient>>) {
        *self.shim.write().unwrap_or_else(PoisonError::into_inner) = shim;
    }
}

impl Table {
    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the key for a new sandbox with this id, or finds who has it.
    pub(crate) fn claim(&self, key: &SandboxKey, id: SandboxId) -> Claim {
        let mut maps = self.write();
        if let Some(taken) = maps.keys.get(key).and_then(|id| maps.sandboxes.get(id)) {
            return Claim::Taken(Arc::clone(taken));
        }
        let (commands, receiver) = Commands::new(QUEUE);
        let entry = Arc::new(SandboxEntry {
            id: id.clone(),
            commands,
            view: RwLock::default(),
            stats: Slot::default(),
            level: OnceLock::new(),
        });
        maps.keys.insert(key.clone(), id.clone());
        maps.sandboxes.insert(id, Arc::clone(&entry));
        Claim::New(entry, receiver)
    }

    /// Gives the sandbox an SELinux level that no other has, and returns it; `None`: all are taken.
    pub(crate) fn level(&self, entry: &SandboxEntry, random: u32) -> Option<String> {
        // Two that choose at once must see each other's choice.
        let maps = self.write();
        let taken: HashSet<&str> =
            maps.sandboxes.values().filter_map(|other| other.level.get()).map(String::as_str).collect();
        let level = level::pick(random, |level| taken.contains(level))?;
        entry.hold_level(&level);
        Some(level)
    }

    /// The sandbox is no more: its key is free, its id unknown.
    pub(crate) fn forget_sandbox(&self, id: &SandboxId, key: &SandboxKey) {
        let mut maps = self.write();
        maps.sandboxes.remove(id);
        if maps.keys.get(key) == Some(id) {
            maps.keys.remove(key);
        }
    }

    pub(crate) fn add_container(&self, id: ContainerId, entry: Arc<ContainerEntry>) {
        self.write().containers.insert(id, entry);
    }

    pub(crate) fn forget_container(&self, id: &ContainerId) {
        self.write().containers.remove(id);
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> Option<Arc<SandboxEntry>> {
        self.read().sandboxes.get(id).cloned()
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Option<Arc<ContainerEntry>> {
        self.read().containers.get(id).cloned()
    }

    /// All sandboxes, by id, also those being made.
    pub(crate) fn all_sandboxes(&self) -> Vec<Arc<SandboxEntry>> {
        self.read().sandboxes.values().cloned().collect()
    }

    /// Containers that are shown, oldest first.
    pub(crate) fn container_entries(&self) -> Vec<Arc<ContainerEntry>> {
        let entries: Vec<Arc<ContainerEntry>> = self.read().containers.values().cloned().collect();
        let mut aged: Vec<_> =
            entries.into_iter().filter_map(|entry| Some((entry.view()?.created_at, entry))).collect();
        aged.sort_by_key(|(created_at, _)| *created_at);
        aged.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Views, oldest first.
    pub(crate) fn sandboxes(&self) -> Vec<Arc<SandboxView>> {
        let mut views: Vec<_> = self.read().sandboxes.values().filter_map(|entry| entry.view()).collect();
        views.sort_by_key(|view| view.created_at);
        views
    }

    /// Views, oldest first.
    pub(crate) fn containers(&self) -> Vec<Arc<ContainerView>> {
        let mut views: Vec<_> = self.read().containers.values().filter_map(|entry| entry.view()).collect();
        views.sort_by_key(|view| view.created_at);
        views
    }

    /// Views of the containers of one sandbox, oldest first.
    pub(crate) fn containers_of(&self, sandbox: &SandboxId) -> Vec<Arc<ContainerView>> {
        let maps = self.read();
        let members = maps.containers.values().filter(|entry| entry.sandbox.id == *sandbox);
        let mut views: Vec<_> = members.filter_map(|entry| entry.view()).collect();
        drop(maps);
        views.sort_by_key(|view| view.created_at);
        views
    }

    /// The one sandbox whose id begins so.
    pub(crate) fn find_sandbox(&self, prefix: &str) -> Option<Arc<SandboxView>> {
        unique(self.read().sandboxes.iter().map(|(id, entry)| (id.as_str(), entry)), prefix, |entry| entry.view())
    }

    /// The one container whose id begins so.
    pub(crate) fn find_container(&self, prefix: &str) -> Option<Arc<ContainerView>> {
        unique(self.read().containers.iter().map(|(id, entry)| (id.as_str(), entry)), prefix, |entry| entry.view())
    }
}

/// The value of the one id that begins with `prefix`; none when there are more, or it is empty.
fn unique<'a, E: 'a, V>(
    ids: impl Iterator<Item = (&'a str, &'a Arc<E>)>,
    prefix: &str,
    view: impl Fn(&E) -> Option<V>,
) -> Option<V> {
    if prefix.is_empty() {
        return None;
    }
    let mut found = ids.filter(|(id, _)| id.starts_with(prefix));
    let (_, entry) = found.next()?;
    if found.next().is_some() { None } else { view(entry) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_one_sandbox_until_it_is_forgotten() {
        let table = Table::default();
        let key = SandboxKey { name: "web".into(), ..Default::default() };
        let id = |byte| SandboxId::from_random([byte; 32]);
        let Claim::New(first, _receiver) = table.claim(&key, id(1)) else { panic!() };
        let Claim::Taken(again) = table.claim(&key, id(2)) else { panic!() };
        assert!(Arc::ptr_eq(&first, &again));
        table.forget_sandbox(&id(1), &key);
        assert!(matches!(table.claim(&key, id(3)), Claim::New(..)));
        // A late goodbye of the old one does not free the new one's key.
        table.forget_sandbox(&id(1), &key);
        assert!(matches!(table.claim(&key, id(4)), Claim::Taken(_)));
    }

    #[test]
    fn nothing_is_shown_before_it_is_made_and_prefixes_must_be_unique() {
        let table = Table::default();
        let view = |byte: u8| {
            let id = SandboxId::from_random([byte; 32]);
            let key = SandboxKey { name: byte.to_string(), ..Default::default() };
            let Claim::New(entry, _) = table.claim(&key, id.clone()) else { panic!() };
            let view = SandboxView {
                id,
                spec: Arc::default(),
                phase: crate::sandbox::SandboxPhase::Ready,
                created_at: i64::from(byte),
                stopped_at: None,
                addresses: Vec::new(),
                netns: None,
                holder_pid: None,
                run_dir: "/".into(),
            };
            (entry, Arc::new(view))
        };
        let (a, shown) = view(0xa1);
        let (b, other) = view(0xa2);
        assert!(table.find_sandbox("a1").is_none() && table.sandboxes().is_empty());
        a.show(Some(shown));
        assert!(table.find_sandbox("a1").is_some());
        b.show(Some(other));
        assert!(table.find_sandbox("a").is_none() && table.find_sandbox("").is_none());
        assert_eq!(table.sandboxes().len(), 2);
    }
}
