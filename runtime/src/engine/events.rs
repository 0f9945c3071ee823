//! What happens to sandboxes and containers, told to whoever listens: first how everything is now, then every change, in order.
//! Told from the sandboxes' tasks after the change can be seen by all; heard in any task. With nobody listening it costs one
//! atomic load.
//! Owns the listeners' queues. Must never make a sandbox's task wait: a listener whose queue is full is let go, and counted.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use keelson_api::ContainerId;
use tokio::sync::mpsc;

use super::{Engine, shared::Shared};
use crate::{
    container::ContainerState,
    observe::{Held, counters},
    sandbox::{SandboxPhase, SandboxView},
};

/// How many events a listener may be behind.
const QUEUE: usize = 1024;
/// How many may listen at one time.
const LISTENERS: usize = 64;

/// What happened. In the order of a life: nobody hears of an earlier one after a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// A container is made and can be started; a sandbox is made.
    Created,
    /// A container's program runs; a sandbox is ready.
    Started,
    /// A container has ended, or could not be started; all of a sandbox has.
    Stopped,
    /// It is no more.
    Deleted,
}

/// Something has happened to a sandbox, or to a container of it.
#[derive(Debug, Clone)]
pub struct Event {
    /// Nanoseconds since the epoch, later than all before it; the state it tells of could be seen before.
    pub at: i64,
    /// What.
    pub kind: EventKind,
    /// The sandbox as it was then.
    pub sandbox: Arc<SandboxView>,
    /// The container it happened to; `None`: the sandbox itself.
    pub container: Option<ContainerId>,
}

/// Why nobody can listen, or why no more is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventsEnd {
    /// The listener was too slow.
    #[error("let go: {QUEUE} events behind; subscribe again, which begins with how everything is by then")]
    Slow,
    /// There are too many.
    #[error("{LISTENERS} clients listen already: end one")]
    Full,
    /// The daemon ends.
    #[error("the daemon ends; subscribe again when it is back, which begins with how everything is by then")]
    Closed,
}

/// Who listens.
#[derive(Default)]
pub(crate) struct Events {
    listening: AtomicUsize,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    closed: bool,
    next: u64,
    open: Vec<(u64, mpsc::Sender<Event>)>,
}

impl Events {
    /// Tells all who listen. `at` is asked when the event's place in the order is certain.
    pub(crate) fn tell(
        &self,
        kind: EventKind,
        container: Option<&ContainerId>,
        sandbox: impl FnOnce() -> Option<Arc<SandboxView>>,
        at: impl FnOnce() -> i64,
    ) {
        if self.listening.load(Ordering::Acquire) == 0 {
            return;
        }
        let Some(sandbox) = sandbox() else { return };
        let mut queues = self.queues();
        let event = Event { at: at(), kind, sandbox, container: container.cloned() };
        queues.open.retain(|(_, queue)| match queue.try_send(event.clone()) {
            Ok(()) => {
                counters().events_sent.one();
                true
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                counters().events_dropped.one();
                counters().event_subscribers_dropped.one();
                tracing::warn!(behind = QUEUE, "a client that listens to events is too slow: let go");
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        self.listening.store(queues.open.len(), Ordering::Release);
    }

    fn open(self: &Arc<Self>) -> Result<Listener, EventsEnd> {
        let mut queues = self.queues();
        if queues.closed {
            return Err(EventsEnd::Closed);
        }
        if queues.open.len() >= LISTENERS {
            return Err(EventsEnd::Full);
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        queues.next += 1;
        let id = queues.next;
        queues.open.push((id, sender));
        self.listening.store(queues.open.len(), Ordering::Release);
        Ok(Listener {
            events: Arc::clone(self),
            id,
            queue,
            now: VecDeque::new(),
            last: 0,
            told: HashMap::new(),
            _counted: counters().event_subscribers.hold(),
        })
    }

    fn close(&self) {
        let mut queues = self.queues();
        queues.closed = true;
        queues.open.clear();
        self.listening.store(0, Ordering::Release);
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears events until it is dropped, too slow, or the daemon ends.
pub struct Listener {
    events: Arc<Events>,
    id: u64,
    queue: mpsc::Receiver<Event>,
    /// How everything was when it began to listen; not told yet.
    now: VecDeque<Event>,
    /// When the last one that it heard was.
    last: i64,
    /// What it was told of the things that were there then, until it hears something later of them.
    told: HashMap<Box<str>, EventKind>,
    _counted: Held,
}

impl Listener {
    /// The next event.
    ///
    /// # Errors
    /// There will be no more.
    pub async fn next(&mut self) -> Result<Event, EventsEnd> {
        let mut event = self.hear().await?;
        // One that happened while the present was being looked at is told after it.
        event.at = event.at.max(self.last.saturating_add(1));
        self.last = event.at;
        Ok(event)
    }

    async fn hear(&mut self) -> Result<Event, EventsEnd> {
        if let Some(event) = self.now.pop_front() {
            return Ok(event);
        }
        loop {
            let Some(event) = self.queue.recv().await else {
                return Err(if self.events.queues().closed { EventsEnd::Closed } else { EventsEnd::Slow });
            };
            // Told while the present was being looked at: it may have been in what was seen.
            match self.told.get(subject(&event)) {
                Some(told) if *told >= event.kind => {}
                Some(_) => {
                    self.told.remove(subject(&event));
                    return Ok(event);
                }
                None => return Ok(event),
            }
        }
    }

    /// Begins with these.
    fn begin_with(&mut self, now: VecDeque<Event>) {
        self.told = now.iter().map(|event| (subject(event).into(), event.kind)).collect();
        self.now = now;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut queues = self.events.queues();
        queues.open.retain(|(id, _)| *id != self.id);
        self.events.listening.store(queues.open.len(), Ordering::Release);
    }
}

/// The id of what it happened to.
fn subject(event: &Event) -> &str {
    event.container.as_ref().map_or(event.sandbox.id.as_str(), ContainerId::as_str)
}

impl Engine {
    /// Listens: to one event for each sandbox and container that tells how it is now, and from there on to every change. What
    /// happened while nobody listened, or while the daemon was down, is so made up for.
    ///
    /// # Errors
    /// Too many listen, or the daemon ends.
    pub fn listen(&self) -> Result<Listener, EventsEnd> {
        // From here on nothing is missed; what is seen below and told as well is left out by the listener.
        let mut listener = self.shared.events.open()?;
        listener.begin_with(present(&self.shared));
        Ok(listener)
    }

    /// Ends the listening of all, for good.
    pub fn close_events(&self) {
        self.shared.events.close();
    }

    /// Now, nanoseconds since the epoch, in the order of events: what is looked at after it knows of every event before it.
    #[must_use]
    pub fn timestamp(&self) -> i64 {
        self.shared.created_now()
    }
}

/// How everything is: of each sandbox its containers oldest first, then itself.
fn present(shared: &Shared) -> VecDeque<Event> {
    let mut now = VecDeque::new();
    for sandbox in shared.table.sandboxes() {
        let mut tell = |kind, container| {
            now.push_back(Event { at: shared.created_now(), kind, sandbox: Arc::clone(&sandbox), container });
        };
        if sandbox.phase == SandboxPhase::Ready {
            tell(EventKind::Started, None);
        }
        for container in shared.table.containers_of(&sandbox.id) {
            let kind = match container.state {
                ContainerState::Created => EventKind::Created,
                ContainerState::Running { .. } | ContainerState::Unknown => EventKind::Started,
                ContainerState::Exited(_) => EventKind::Stopped,
            };
            tell(kind, Some(container.id.clone()));
        }
        if sandbox.phase == SandboxPhase::NotReady {
            tell(EventKind::Stopped, None);
        }
    }
    now
}

#[cfg(test)]
mod tests;
