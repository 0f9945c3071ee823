//! How much writable layers hold: walked behind, a layer at a time, and only while somebody asks; askers get the last figure.
//! One tokio task of the engine, ended with it; the walk is on one thread of the blocking pool and rests four times as long as it
//! worked. Owns the rhythm; the figures are the image service's.
//! Must never walk on the way of an answer: a container may have a million files.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use keelson_imageservice::SnapshotKey;
use tokio::sync::Notify;

use crate::{
    container::ContainerState,
    engine::shared::{Shared, blocking},
};

/// Figures nobody has asked for so long are not kept new.
const IDLE: Duration = Duration::from_secs(60);
/// A walk that took longer than this is followed by a rest.
const SHORT: Duration = Duration::from_millis(5);
/// Times the walk, and the most of it.
const REST: u32 = 4;
const REST_MOST: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Layers {
    period: Duration,
    asked: Mutex<Option<Instant>>,
    wake: Notify,
}

impl Layers {
    pub(crate) fn new(period: Duration) -> Arc<Self> {
        Arc::new(Self { period, asked: Mutex::default(), wake: Notify::new() })
    }

    /// Somebody wants to know: figures are kept new for a while.
    pub(crate) fn ask(&self) {
        let before = self.asked.lock().unwrap_or_else(PoisonError::into_inner).replace(Instant::now());
        if before.is_none_or(|before| before.elapsed() > IDLE) {
            self.wake.notify_one();
        }
    }

    fn is_asked(&self) -> bool {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|asked| asked.elapsed() <= IDLE)
    }
}

/// Runs until the engine is gone.
pub(crate) async fn run(shared: Weak<Shared>, layers: Arc<Layers>) {
    loop {
        while !layers.is_asked() {
            layers.wake.notified().await;
        }
        let Some(shared) = shared.upgrade().filter(|shared| !shared.is_draining()) else { return };
        let period = layers.period;
        blocking(move || round(&shared, period)).await;
        tokio::time::sleep(period).await;
    }
}

/// Measures every layer whose figure is old, those without one first.
fn round(shared: &Shared, period: Duration) {
    let began = Instant::now();
    let now = SystemTime::now();
    let mut due: Vec<(Option<SystemTime>, SnapshotKey)> = Vec::new();
    for view in shared.table.containers() {
        let key = SnapshotKey::from(&view.id);
        let at = shared.images.snapshot_usage(&key).measured_at;
        let ended = match &view.state {
            ContainerState::Exited(exit) => u64::try_from(exit.finished_at).ok().map(Duration::from_nanos),
            ContainerState::Created | ContainerState::Running { .. } | ContainerState::Unknown => None,
        };
        let fresh = match (at, ended) {
            (None, _) => false,
            // Nothing is written any more.
            (Some(at), Some(ended)) => at > UNIX_EPOCH + ended,
            (Some(at), None) => now.duration_since(at).is_ok_and(|age| age < period / 2),
        };
        if !fresh {
            due.push((at, key));
        }
    }
    due.sort();
    for (_, key) in &due {
        if shared.is_draining() {
            return;
        }
        let walk = Instant::now();
        shared.images.measure_snapshot(key);
        let took = walk.elapsed();
        if took > SHORT {
            std::thread::sleep((took * REST).min(REST_MOST));
        }
    }
    tracing::debug!(layers = due.len(), took = ?began.elapsed(), "measured writable layers");
}
