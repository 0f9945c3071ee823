//! What goes in and out of a sandbox's task with the span it belongs to: commands with the asker's, ends of work with that of the work.
//! Part of the sandbox's task; the sending side is used by any task. Owns the set of work under way.
//! Must never keep a span longer than what it is about: a span that is held is a call that has not ended.

use std::future::Future;

use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
};
use tracing::{Instrument as _, Span};

use super::{Command, Done};
use crate::observe;

/// A command with the span that asks. Boxed: a queue has room for 32 from the start, and most are empty most of the time.
type Asked = Box<(Span, Command)>;

/// Where a sandbox's task takes commands from.
pub(crate) type Queue = mpsc::Receiver<Asked>;

/// The way to a sandbox's task.
pub(crate) struct Commands(mpsc::Sender<Asked>);

/// The task has ended, or (without waiting) has a full queue.
#[derive(Debug)]
pub(crate) struct NotTaken;

impl Commands {
    /// A queue on which so many commands may wait.
    pub(crate) fn new(length: usize) -> (Self, Queue) {
        let (sender, receiver) = mpsc::channel(length);
        (Self(sender), receiver)
    }

    /// Waits for a place.
    pub(crate) async fn send(&self, command: Command) -> Result<(), NotTaken> {
        self.0.send(Box::new((Span::current(), command))).await.map_err(|_| NotTaken)
    }

    /// Does not wait.
    pub(crate) fn try_send(&self, command: Command) -> Result<(), NotTaken> {
        self.0.try_send(Box::new((Span::current(), command))).map_err(|_| NotTaken)
    }
}

/// Work under way.
#[derive(Default)]
pub(super) struct Works(JoinSet<(Span, Done)>);

impl Works {
    /// Work that the current span's caller waits for.
    pub(super) fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.spawn_in(Span::current(), work);
    }

    /// Work that nobody waits for: it continues the trace in a span of its own, and the current one may end before it.
    pub(super) fn spawn_behind(&mut self, span: Span, work: impl Future<Output = Done> + Send + 'static) {
        observe::trace::behind(&span);
        self.spawn_in(span, work);
    }

    fn spawn_in(&mut self, span: Span, work: impl Future<Output = Done> + Send + 'static) {
        let inside = span.clone();
        self.0.spawn(async move { (span, work.await) }.instrument(inside));
    }

    /// The next end, with the span to go on in; `None`: no work is under way.
    pub(super) async fn join_next(&mut self) -> Option<(Span, Result<Done, JoinError>)> {
        Some(match self.0.join_next().await? {
            Ok((span, done)) => (span, Ok(done)),
            Err(error) => (Span::none(), Err(error)),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
