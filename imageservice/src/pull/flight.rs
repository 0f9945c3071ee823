//! One run of a piece of work for everybody who wants it: the first starts it as a task of its own, the others wait with it.
//! Async. Owns the tasks and what is under way; a waiter that goes away changes nothing until it was the last.
//! Must never lose a task: `close` ends and awaits them all.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet};

/// Work under way, by what it yields.
pub(super) struct Flights<K, V> {
    inner: Arc<Mutex<Inner<K, V>>>,
    /// How long work goes on for nobody.
    orphan: Duration,
}

struct Inner<K, V> {
    running: HashMap<K, watch::Sender<Option<V>>>,
    tasks: JoinSet<()>,
    closed: bool,
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(orphan: Duration) -> Self {
        let inner = Inner { running: HashMap::new(), tasks: JoinSet::new(), closed: false };
        Self { inner: Arc::new(Mutex::new(inner)), orphan }
    }

    /// Waits for the work under `key`, starting it if nobody has; `None` when it was ended from outside.
    /// The second value tells whether this call started it.
    pub(super) async fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> (Option<V>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (mut receiver, started) = {
            let mut inner = lock(&self.inner);
            if inner.closed {
                return (None, false);
            }
            match inner.running.get(&key) {
                Some(sender) => (sender.subscribe(), false),
                None => (self.start(&mut inner, key, work()), true),
            }
        };
        let result = receiver.wait_for(Option::is_some).await.ok().and_then(|value| value.clone());
        (result, started)
    }

    fn start(
        &self,
        inner: &mut Inner<K, V>,
        key: K,
        work: impl Future<Output = V> + Send + 'static,
    ) -> watch::Receiver<Option<V>> {
        // Finished tasks leave the set here, so it holds no more than what ran at once.
        while inner.tasks.try_join_next().is_some() {}
        let (sender, receiver) = watch::channel(None);
        inner.running.insert(key.clone(), sender.clone());
        // Removes the entry however the task ends, a panic included; waiters then see the channel close.
        let mut entry = Entry { inner: self.inner.clone(), key: Some(key) };
        let orphan = self.orphan;
        inner.tasks.spawn(async move {
            tokio::select! {
                value = work => {
                    // Gone from the map before anybody knows: who asks after the answer starts anew.
                    drop(entry);
                    sender.send_replace(Some(value));
                }
                () = entry.deserted(&sender, orphan) => {}
            }
        });
        receiver
    }

    /// Ends all work and waits until it has let go of everything; nothing can be started afterwards.
    pub(super) async fn close(&self) {
        let mut tasks = {
            let mut inner = lock(&self.inner);
            inner.closed = true;
            std::mem::take(&mut inner.tasks)
        };
        tasks.shutdown().await;
    }
}

/// A place in the map, given up when dropped.
struct Entry<K: Eq + Hash, V> {
    inner: Arc<Mutex<Inner<K, V>>>,
    key: Option<K>,
}

impl<K: Eq + Hash, V> Entry<K, V> {
    /// Returns when nobody has waited for `limit`, with the place given up.
    async fn deserted(&mut self, sender: &watch::Sender<Option<V>>, limit: Duration) {
        let step = (limit / 20).max(Duration::from_millis(1));
        loop {
            sender.closed().await;
            let mut alone = Duration::ZERO;
            while sender.is_closed() && alone < limit {
                tokio::time::sleep(step).await;
                alone += step;
            }
            // Under the lock nobody can join what is about to end.
            let mut inner = lock(&self.inner);
            if sender.is_closed() {
                if let Some(key) = self.key.take() {
                    inner.running.remove(&key);
                }
                return;
            }
        }
    }
}

impl<K: Eq + Hash, V> Drop for Entry<K, V> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let sender = lock(&self.inner).running.remove(&key);
            drop(sender);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V> std::fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flights")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn callers_share_one_run_and_the_next_one_starts_anew() {
        let flights = Arc::new(Flights::<&str, usize>::new(Duration::from_secs(60)));
        let runs = Arc::new(AtomicUsize::new(0));
        let work = |runs: Arc<AtomicUsize>| async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            runs.fetch_add(1, Ordering::SeqCst)
        };
        let calls = (0..20).map(|_| {
            let (flights, runs) = (flights.clone(), runs.clone());
            tokio::spawn(async move { flights.join("x", || work(runs)).await })
        });
        for call in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap().0, Some(0));
        }
        assert_eq!(flights.join("x", || work(runs.clone())).await, (Some(1), true));
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn work_outlives_its_caller_but_not_for_ever() {
        let flights = Flights::<u8, u8>::new(Duration::from_millis(200));
        let (done, seen) = tokio::sync::oneshot::channel::<()>();
        let brief = flights.join(1, || async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = done.send(());
            7
        });
        assert!(tokio::time::timeout(Duration::from_millis(10), brief).await.is_err());
        seen.await.unwrap();

        let (held, gone) = tokio::sync::oneshot::channel::<()>();
        let endless = flights.join(2, || async move {
            let _held = held;
            std::future::pending().await
        });
        assert!(tokio::time::timeout(Duration::from_millis(10), endless).await.is_err());
        assert!(tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap().is_err());
        assert!(lock(&flights.inner).running.is_empty());
    }

    #[tokio::test]
    async fn a_panic_or_a_close_releases_the_waiters() {
        let flights = Arc::new(Flights::<u8, u8>::new(Duration::from_secs(60)));
        assert_eq!(flights.join(1, || async { panic!("work") }).await.0, None);
        let waiting = tokio::spawn({
            let flights = flights.clone();
            async move { flights.join(2, std::future::pending).await.0 }
        });
        tokio::task::yield_now().await;
        while lock(&flights.inner).running.is_empty() {
            tokio::task::yield_now().await;
        }
        flights.close().await;
        assert_eq!(waiting.await.unwrap(), None);
        assert_eq!(flights.join(3, || async { 1 }).await, (None, false));
    }
}
