//! The daemon's end of a shim's socket: requests out, replies back by number, end-of-file when the shim is gone.
//! Runs on tokio workers: any task may call, the future that `attach` returns reads and must be polled by its owner.
//! Owns the connection, never the shim: dropping a client changes nothing for the container.
//! Must never wait without a deadline, nor believe a peer that is not root.

pub(crate) mod error;
pub(crate) mod pending;
mod receive;
pub(crate) mod spawn;

use std::{
    future::Future,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use keelson_api::{
    ExitRecord,
    shim::{self, Call, Outcome, Request, frame},
};
use rustix::fs::{CWD, Mode, OFlags};
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::{oneshot, watch},
    time::timeout,
};
use tracing::Instrument as _;

pub(crate) use error::ShimError;
pub(crate) use spawn::Shims;

use self::pending::{Ended, Pending, Waiter};
use crate::{dirs::ContainerDir, observe::counters};

/// A shim that has not answered by then is not going to.
const ANSWER: Duration = Duration::from_secs(30);
/// For what only reads the shim's memory.
const QUICK: Duration = Duration::from_secs(5);
/// Between the end of a grace or exec time limit and the answer: killing a big cgroup may take a while.
const AFTER_KILL: Duration = Duration::from_secs(30);

/// A connection to one shim.
pub(crate) struct ShimClient {
    id: String,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    next: AtomicU64,
    pending: Arc<Pending>,
}

impl ShimClient {
    /// A client on a connected stream, and the future that reads replies until the shim is gone.
    pub(crate) fn attach(id: &str, stream: UnixStream) -> (Arc<Self>, impl Future<Output = ()> + Send + use<>) {
        let (reader, writer) = stream.into_split();
        let pending = Arc::new(Pending::new());
        let client = Self {
            id: id.to_owned(),
            writer: tokio::sync::Mutex::new(writer),
            next: AtomicU64::new(1),
            pending: Arc::clone(&pending),
        };
        let id = id.to_owned();
        let read = async move {
            if let Err(error) = receive::replies(reader, &pending).await {
                counters().shim_protocol.one();
                tracing::warn!(id, %error, "connection to shim dropped");
            }
            pending.close();
        };
        (Arc::new(client), read)
    }

    /// Connects to the shim that listens in this directory.
    pub(crate) async fn connect(dir: &ContainerDir) -> std::io::Result<UnixStream> {
        // The path may be longer than a socket address: the directory's descriptor is short.
        let directory =
            rustix::fs::openat(CWD, dir.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), shim::SOCKET_FILE);
        let stream = timeout(QUICK, UnixStream::connect(path)).await.map_err(|_| std::io::ErrorKind::TimedOut)??;
        if stream.peer_cred()?.uid() != 0 {
            return Err(std::io::ErrorKind::PermissionDenied.into());
        }
        Ok(stream)
    }

    /// Makes the container; its init waits.
    pub(crate) async fn launch(&self, launch: shim::Launch) -> Result<shim::State, ShimError> {
        match self.call("launch", Call::Launch(launch), Some(ANSWER * 2)).await? {
            Outcome::State(state) => Ok(state),
            other => Err(self.unexpected("launch", &other)),
        }
    }

    /// Lets the init exec. A process that has ended already when the answer is made was started all the same.
    pub(crate) async fn start(&self) -> Result<shim::State, ShimError> {
        match self.call("start", Call::Start(shim::Start {}), Some(ANSWER)).await? {
            Outcome::State(state) => Ok(state),
            Outcome::Exited(exit) => Ok(shim::State {
                phase: shim::Phase::Stopped.into(),
                started_at: exit.started_at,
                ..Default::default()
            }),
            other => Err(self.unexpected("start", &other)),
        }
    }

    /// The state, or how it ended.
    pub(crate) async fn state(&self) -> Result<Result<shim::State, shim::Exit>, ShimError> {
        match self.call("ask state", Call::State(shim::GetState {}), Some(QUICK)).await? {
            Outcome::State(state) => Ok(Ok(state)),
            Outcome::Exited(exit) => Ok(Err(exit)),
            other => Err(self.unexpected("ask state", &other)),
        }
    }

    /// Signal, grace, kill; returns when the exit record is on disk.
    pub(crate) async fn stop(&self, signal: i32, grace_ms: u64) -> Result<shim::Exit, ShimError> {
        let deadline = Duration::from_millis(grace_ms).saturating_add(AFTER_KILL);
        match self.call("stop", Call::Stop(shim::Stop { signal, grace_ms }), Some(deadline)).await? {
            Outcome::Exited(exit) => Ok(exit),
            other => Err(self.unexpected("stop", &other)),
        }
    }

    /// Runs a program in the container to its end.
    pub(crate) async fn exec(&self, exec: shim::ExecSync) -> Result<shim::ExecResult, ShimError> {
        let limit = Duration::from_millis(exec.timeout_ms);
        let deadline = (!limit.is_zero()).then(|| limit.saturating_add(AFTER_KILL));
        match self.call("exec", Call::ExecSync(exec), deadline).await? {
            Outcome::Exec(result) => Ok(result),
            other => Err(self.unexpected("exec", &other)),
        }
    }

    /// Holds every process, or lets all go on.
    pub(crate) async fn pause(&self, on: bool) -> Result<(), ShimError> {
        match self.call("pause", Call::Pause(shim::Pause { on }), Some(ANSWER)).await? {
            Outcome::Done(_) => Ok(()),
            other => Err(self.unexpected("pause", &other)),
        }
    }

    /// Writes the processes to files, within the time that the call allows.
    pub(crate) async fn checkpoint(
        &self,
        call: shim::Checkpoint,
        limit: Duration,
    ) -> Result<shim::Checkpointed, ShimError> {
        let deadline = limit.saturating_add(AFTER_KILL);
        match self.call("checkpoint", Call::Checkpoint(call), Some(deadline)).await? {
            Outcome::Checkpointed(done) => Ok(done),
            other => Err(self.unexpected("checkpoint", &other)),
        }
    }

    /// Starts from files. As [`ShimClient::start`].
    pub(crate) async fn restore(&self, call: shim::Restore) -> Result<shim::State, ShimError> {
        let deadline = Duration::from_millis(call.timeout_ms).saturating_add(AFTER_KILL);
        match self.call("restore", Call::Restore(call), Some(deadline)).await? {
            Outcome::State(state) => Ok(state),
            Outcome::Exited(exit) => Ok(shim::State {
                phase: shim::Phase::Stopped.into(),
                started_at: exit.started_at,
                ..Default::default()
            }),
            other => Err(self.unexpected("restore", &other)),
        }
    }

    /// Opens the log anew.
    pub(crate) async fn reopen_log(&self) -> Result<(), ShimError> {
        match self.call("reopen log", Call::ReopenLog(shim::ReopenLog {}), Some(ANSWER)).await? {
            Outcome::Done(_) => Ok(()),
            other => Err(self.unexpected("reopen log", &other)),
        }
    }

    /// Ends shim and container, in whatever state.
    pub(crate) async fn delete(&self) -> Result<(), ShimError> {
        match self.call("delete", Call::Delete(shim::Delete {}), Some(ANSWER)).await {
            // It has ended: that was asked for.
            Ok(_) | Err(ShimError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens a session: `call` is `OpenExec` or `Attach`. To be run on a task of its own, like every request that must be sent whole.
    pub(crate) async fn open(self: &Arc<Self>, act: &'static str, call: Call) -> Result<Session, ShimError> {
        let span = tracing::debug_span!("shim", act, container = self.id);
        let opened = self.establish(act, call).instrument(span).await;
        count(opened.as_ref().err());
        opened
    }

    async fn establish(self: &Arc<Self>, act: &'static str, call: Call) -> Result<Session, ShimError> {
        let gone = || ShimError::Gone { act, id: self.id.clone() };
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let (first, opened) = oneshot::channel();
        let (last, ended) = watch::channel(None);
        if !self.pending.insert(seq, Waiter::Opening(first, last)) {
            return Err(gone());
        }
        // From here on, whatever happens, the shim is told that nobody wants the session any more.
        let handle = SessionHandle { act, seq, client: Arc::clone(self), runtime: tokio::runtime::Handle::current() };
        let work = async {
            self.send(act, seq, call).await?;
            opened.await.map_err(|_| gone())
        };
        let (outcome, fds) = timeout(ANSWER, work)
            .await
            .unwrap_or_else(|_| Err(ShimError::Deadline { act, id: self.id.clone(), after: ANSWER }))?;
        match self.unless_refused(act, outcome)? {
            Outcome::Streams(streams) if receive::count(&streams) == fds.len() => {
                Ok(Session { streams, fds, ended, handle })
            }
            other => Err(self.unexpected(act, &other)),
        }
    }

    /// The one door to a shim: every call has its span and is counted.
    async fn call(&self, act: &'static str, call: Call, deadline: Option<Duration>) -> Result<Outcome, ShimError> {
        let span = tracing::debug_span!("shim", act, container = self.id);
        let outcome = self.exchange(act, call, deadline).instrument(span).await;
        count(outcome.as_ref().err());
        outcome
    }

    async fn exchange(&self, act: &'static str, call: Call, deadline: Option<Duration>) -> Result<Outcome, ShimError> {
        let gone = || ShimError::Gone { act, id: self.id.clone() };
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        if !self.pending.insert(seq, Waiter::Answer(sender)) {
            return Err(gone());
        }
        let work = async {
            self.send(act, seq, call).await?;
            receiver.await.map_err(|_| gone())
        };
        let outcome = match deadline {
            Some(after) => timeout(after, work)
                .await
                .unwrap_or_else(|_| Err(ShimError::Deadline { act, id: self.id.clone(), after })),
            None => work.await,
        };
        if outcome.is_err() {
            self.pending.forget(seq);
        }
        self.unless_refused(act, outcome?)
    }

    async fn send(&self, act: &'static str, seq: u64, call: Call) -> Result<(), ShimError> {
        let bytes = frame::encode(&Request { seq, call: Some(call) });
        if bytes.len() > frame::HEADER + frame::BODY_MAX {
            return Err(ShimError::TooLong { act, id: self.id.clone(), bytes: bytes.len() });
        }
        if self.writer.lock().await.write_all(&bytes).await.is_err() {
            // A reply may have come before the end; the reader tells.
            tracing::debug!(id = self.id, act, "shim closed its socket");
        }
        Ok(())
    }

    fn unless_refused(&self, act: &'static str, outcome: Outcome) -> Result<Outcome, ShimError> {
        match outcome {
            Outcome::Failed(failure) => {
                Err(ShimError::Refused { act, id: self.id.clone(), failure: Box::new(failure) })
            }
            outcome => Ok(outcome),
        }
    }

    fn unexpected(&self, act: &'static str, outcome: &Outcome) -> ShimError {
        let answer = match outcome {
            Outcome::Failed(_) => "failed",
            Outcome::Done(_) => "done",
            Outcome::State(_) => "state",
            Outcome::Exec(_) => "exec",
            Outcome::Exited(_) => "exited",
            Outcome::Checkpointed(_) => "checkpointed",
            Outcome::Streams(_) => "streams",
            Outcome::Detached(_) => "detached",
        };
        counters().shim_protocol.one();
        ShimError::Unexpected { act, id: self.id.clone(), answer }
    }
}

/// A call has been made, and may have failed.
fn count(error: Option<&ShimError>) {
    counters().shim_calls.one();
    match error {
        None => {}
        Some(ShimError::Refused { .. }) => counters().shim_refused.one(),
        Some(ShimError::Deadline { .. }) => counters().shim_deadline.one(),
        Some(ShimError::Gone { .. }) => counters().shim_gone.one(),
        Some(ShimError::TooLong { .. }) => counters().shim_protocol.one(),
        // Counted where it is found.
        Some(ShimError::Unexpected { .. }) => {}
    }
}

/// An opened session.
pub(crate) struct Session {
    /// Which streams there are.
    pub(crate) streams: shim::Streams,
    /// Theirs, in the order of the fields of `streams`.
    pub(crate) fds: Vec<OwnedFd>,
    /// Its end.
    pub(crate) ended: Ended,
    /// To end it by.
    pub(crate) handle: SessionHandle,
}

/// Ends a session when it is dropped before the session's end.
pub(crate) struct SessionHandle {
    act: &'static str,
    seq: u64,
    client: Arc<ShimClient>,
    runtime: tokio::runtime::Handle,
}

impl SessionHandle {
    /// Ends it: an exec and all it started are killed, an attach is detached. What has ended stays so.
    pub(crate) fn end(&self) {
        if !self.client.pending.waits(self.seq) {
            return;
        }
        let (client, seq) = (Arc::clone(&self.client), self.seq);
        self.runtime.spawn(async move {
            let call = Call::EndSession(shim::EndSession { session: seq });
            // A shim that is gone has ended it.
            if let Err(error) = client.call("end session", call, Some(ANSWER)).await {
                tracing::debug!(%error, "end session");
            }
        });
    }

    /// What its missing end means.
    pub(crate) fn gone(&self) -> ShimError {
        ShimError::Gone { act: self.act, id: self.client.id.clone() }
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        self.end();
    }
}

/// The exit on the wire as the record on disk.
pub(crate) fn record(exit: &shim::Exit) -> ExitRecord {
    ExitRecord {
        version: ExitRecord::VERSION,
        code: exit.code,
        signal: (exit.signal != 0).then_some(exit.signal),
        started_at: exit.started_at,
        finished_at: exit.finished_at,
        oom_killed: exit.oom_killed,
    }
}

#[cfg(test)]
pub(crate) mod tests;
