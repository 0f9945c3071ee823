//! What every sandbox's task works with: folders, store, images, network, shims, facts of the host, the table, two clocks' worth of ids.
//! Shared by `Arc` among the tasks and the blocking pool; everything in it is safe to use from any thread.
//! Owns the locks on the folders. Must never hold state of one sandbox: that is its task's.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::Read as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use keelson_api::{ContainerId, SandboxId};
use keelson_imageservice::ImageService;
use keelson_network::Network;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{EngineConfig, events::Events, status::Health, table::Table};
use crate::{
    apparmor::AppArmor,
    dirs::StateDir,
    observe::counters,
    oci::Host,
    seccomp::Programs,
    selinux::Selinux,
    shim_client::Shims,
    stats::{layers::Layers, slot::Budget},
    store::Store,
};

/// Teardowns that work at one time: the kernel does them under few locks anyway.
const TEARDOWNS: usize = 4;
/// Lists of statistics that are read at one time: the kernel sums a cgroup's numbers up under few locks anyway.
pub(crate) const STATS_TURNS: usize = 4;
/// Teardowns that may wait; beyond, callers wait for their own.
pub(crate) const BACKLOG: usize = 256;

/// See the module.
pub(crate) struct Shared {
    pub(crate) config: EngineConfig,
    pub(crate) state: StateDir,
    pub(crate) store: Store,
    pub(crate) images: Arc<ImageService>,
    pub(crate) network: Option<Network>,
    pub(crate) shims: Shims,
    pub(crate) host: Host,
    pub(crate) cgroup_mode: keelson_shim::cgroup::Mode,
    pub(crate) programs: Programs,
    pub(crate) apparmor: AppArmor,
    pub(crate) selinux: Selinux,
    pub(crate) table: Table,
    pub(crate) events: Arc<Events>,
    /// Containers whose checkpoint is being written.
    pub(crate) checkpoints: super::checkpoint::Claims,
    /// Limits how many teardowns work at one time.
    pub(crate) teardown: Semaphore,
    /// Teardowns begun and not done.
    pub(crate) pending: AtomicUsize,
    /// No more requests are taken.
    pub(crate) draining: AtomicBool,
    /// The sandboxes' tasks and the reconciler.
    pub(crate) tasks: Mutex<JoinSet<()>>,
    /// One for each shim that this daemon started: waits for its end, whoever has forgotten its container by then.
    pub(crate) reapers: Mutex<JoinSet<()>>,
    /// Cgroup parents that were not there before one of our sandboxes: the last of them takes it away.
    pub(crate) made_parents: Mutex<HashMap<String, HashSet<SandboxId>>>,
    pub(crate) random: File,
    pub(crate) last_created: AtomicI64,
    /// Sees to the figures of writable layers.
    pub(crate) layers: Arc<Layers>,
    /// The network as it was last found, and the right to look.
    pub(crate) health: Arc<Health>,
    /// What other runtimes say they can do.
    pub(crate) features: crate::container::foreign::features::Answers,
    /// Open files of cgroups that are read for statistics.
    pub(crate) readers: Arc<Budget>,
    /// Limits how many threads read statistics at one time.
    pub(crate) stats_turns: Arc<Semaphore>,
    /// Held for the life of the engine: root and state folder.
    pub(crate) _locks: [File; 2],
}

impl Shared {
    pub(crate) fn semaphore() -> Semaphore {
        Semaphore::new(TEARDOWNS)
    }

    /// A new id.
    pub(crate) fn sandbox_id(&self) -> std::io::Result<SandboxId> {
        self.random().map(SandboxId::from_random)
    }

    /// A new id.
    pub(crate) fn container_id(&self) -> std::io::Result<ContainerId> {
        self.random().map(ContainerId::from_random)
    }

    /// Random bytes.
    pub(crate) fn random<const N: usize>(&self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        (&self.random).read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Now, nanoseconds since the epoch, later than any other answer of this engine, whatever the wall clock does.
    pub(crate) fn created_now(&self) -> i64 {
        let now = now();
        let last = self
            .last_created
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(now.max(last.saturating_add(1))));
        now.max(last.unwrap_or(0).saturating_add(1))
    }

    /// Ids made from now on are later than this one.
    pub(crate) fn not_before(&self, created_at: i64) {
        self.last_created.fetch_max(created_at, Ordering::AcqRel);
    }

    /// Runs a sandbox's task until the engine is drained.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Take the ends of those that are done, so that the set does not grow for ever.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Runs until a shim has been reaped, or the daemon ends.
    pub(crate) fn spawn_reaper(&self, reaper: impl Future<Output = ()> + Send + 'static) {
        let mut reapers = self.reapers.lock().unwrap_or_else(PoisonError::into_inner);
        while reapers.try_join_next().is_some() {}
        reapers.spawn(reaper);
    }

    /// Lets go of the shims: they are nobody's children when the daemon has ended.
    pub(crate) fn drop_reapers(&self) {
        self.reapers.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// Folder of folders of checkpoints, below the root.
    pub(crate) const CHECKPOINTS: &'static str = "checkpoints";

    /// One of them.
    pub(crate) fn checkpoint(&self, name: &str) -> crate::checkpoint::read::Folder {
        crate::checkpoint::read::Folder::new(self.config.root.join(Self::CHECKPOINTS).join(name))
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

/// Now, nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Runs kernel work on the blocking pool, inside the caller's span. A panic there is this task's panic.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = tracing::Span::current();
    let held = counters().blocking.hold();
    let work = move || {
        // Dropped when the work is done, also when nobody awaits it any more.
        let _held = held;
        span.in_scope(work)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down: nobody waits for the value any more.
            Err(_) => std::future::pending().await,
        },
    }
}
