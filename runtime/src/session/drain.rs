//! When the output of an exec counts as ended although somebody may still write: a background child holds the pipe.
//! Polled by whoever reads the output. Owns a timer and the news of the process's end.
//! Must never cut what the process itself wrote: that is in the pipe at its end, and reading it needs no waiting.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use crate::shim_client::pending::Ended;

/// Silence after which a pipe held by a background child is given up.
const QUIET: Duration = Duration::from_millis(100);
/// A chatty background child is given up after so much waiting for it.
const LONGEST: Duration = Duration::from_secs(1);
/// More than a pipe or terminal holds: beyond it, output was written after the process's end.
const HELD_MAX: usize = 1 << 20;

type News = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module.
pub(super) enum Drain {
    /// The process runs.
    Running(News),
    /// It has ended.
    Ended {
        /// When that was noticed.
        since: Instant,
        /// Read since then.
        bytes: usize,
        /// Waited for more since then.
        waited: Duration,
        /// Runs while nothing comes.
        wait: Option<(Instant, Pin<Box<Sleep>>)>,
    },
}

impl Drain {
    pub(super) fn new(mut ended: Ended) -> Self {
        Self::Running(Box::pin(async move {
            // An error: the shim is gone, and with it the process.
            let _ = ended.wait_for(Option::is_some).await;
        }))
    }

    /// Something has been read; true when that is enough.
    pub(super) fn heard(&mut self, count: usize) -> bool {
        let Self::Ended { since, bytes, waited, wait } = self else { return false };
        *bytes += count;
        if let Some((begun, _)) = wait.take() {
            *waited += begun.elapsed();
        }
        *waited >= LONGEST || (*bytes > HELD_MAX && since.elapsed() >= LONGEST)
    }

    /// Nothing is there to be read now; ready when nothing more is waited for.
    pub(super) fn silent(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Self::Running(news) = self {
            std::task::ready!(news.as_mut().poll(context));
            *self = Self::Ended { since: Instant::now(), bytes: 0, waited: Duration::ZERO, wait: None };
        }
        let Self::Ended { wait, .. } = self else { return Poll::Pending };
        let (_, timer) = wait.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(QUIET))));
        timer.as_mut().poll(context)
    }
}
