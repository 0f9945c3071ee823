//! When a session must end though neither side ends it: nothing moved for too long, or the daemon stops.
//! A clock and a flag; every copy of bytes touches it. Owns nothing.
//! Must never take signs of life (pings) for use: a forgotten terminal ends though its client is well.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// One session's.
pub(super) struct Life {
    began: Instant,
    /// Milliseconds after `began`.
    used: AtomicU64,
    idle: Duration,
    stop: watch::Receiver<bool>,
}

/// Why it must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Idle(Duration),
    Stopping,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Over::Idle(limit) => write!(f, "session ended: nothing moved for {} s", limit.as_secs()),
            Over::Stopping => {
                f.write_str("session ended: keelson is stopping; containers go on, ask again when it is back")
            }
        }
    }
}

impl Life {
    pub(super) fn new(idle: Duration, stop: watch::Receiver<bool>) -> Self {
        Self { began: Instant::now(), used: AtomicU64::new(0), idle, stop }
    }

    /// Something moved.
    pub(super) fn touch(&self) {
        self.used.store(self.elapsed(), Ordering::Relaxed);
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until it must end.
    pub(super) async fn over(&self) -> Over {
        let mut stop = self.stop.clone();
        let stopping = async {
            // A stop that can no longer be told is one.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let idle = async {
            loop {
                let quiet = Duration::from_millis(self.elapsed().saturating_sub(self.used.load(Ordering::Relaxed)));
                match self.idle.checked_sub(quiet).filter(|left| !left.is_zero()) {
                    Some(left) => tokio::time::sleep(left).await,
                    None => return,
                }
            }
        };
        tokio::select! {
            () = stopping => Over::Stopping,
            () = idle => Over::Idle(self.idle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn use_puts_the_end_off_and_a_stop_does_not_wait() {
        let (stop, stopped) = watch::channel(false);
        let life = Life::new(Duration::from_millis(300), stopped);
        let began = Instant::now();
        let using = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            life.touch();
            std::future::pending::<()>().await;
        };
        let over = tokio::select! { over = life.over() => over, () = using => unreachable!() };
        assert_eq!(over, Over::Idle(Duration::from_millis(300)));
        assert!(began.elapsed() >= Duration::from_millis(450), "{:?}", began.elapsed());
        let _ = stop.send(true);
        let life = Life::new(Duration::from_secs(3600), stop.subscribe());
        assert_eq!(life.over().await, Over::Stopping);
    }
}
