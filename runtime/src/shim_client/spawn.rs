//! Starting shims: one sealed copy of the program in memory per daemon, run by descriptor, talking over a socket pair from birth.
//! `spawn` blocks for a vfork (some 200 us): on the blocking pool. `reap` runs on tokio.
//! Owns the sealed copy. Must never let a container reach the program's file (CVE-2019-5736), nor leave a zombie.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{fs::OpenOptionsExt as _, net::UnixStream},
    },
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::fs::{CWD, Mode, OFlags};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
};

use crate::dirs::ContainerDir;

/// A shim closes its socket as its last act but exiting.
const LAST_ACT: Duration = Duration::from_secs(10);

/// What shims are started from.
pub(crate) struct Shims {
    program: OwnedFd,
    null: File,
    /// Held while a copy for others is made.
    copying: Mutex<()>,
}

/// A started shim.
pub(crate) struct Spawned {
    /// Our end of its first connection.
    pub(crate) stream: UnixStream,
    /// Its process id.
    pub(crate) pid: i32,
    /// To reap it by.
    pub(crate) pidfd: OwnedFd,
}

impl Shims {
    /// Copies the program.
    pub(crate) fn new(program: &Path) -> io::Result<Self> {
        let program = keelson_sys::memfd::sealed_copy(&File::open(program)?)?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        Ok(Self { program, null, copying: Mutex::new(()) })
    }

    /// Writes the program to a file, unless it is there: one that no shim is started from. Blocks.
    pub(crate) fn copy_to(&self, path: &Path) -> io::Result<()> {
        let _turn = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        let program = File::from(self.program.try_clone()?);
        let size = program.metadata()?.len();
        if std::fs::metadata(path).is_ok_and(|there| there.len() == size) {
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        std::os::unix::fs::FileExt::read_exact_at(&program, &mut bytes, 0)?;
        // Beside it first: pauses may run from the one of an earlier version.
        let new = path.with_extension("new");
        crate::store::write_new(&new, &bytes, 0o755)?;
        std::fs::rename(new, path)
    }

    /// Starts the shim of `id` in its run directory. Blocks.
    pub(crate) fn spawn(&self, id: &str, dir: &ContainerDir) -> io::Result<Spawned> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let cwd =
            rustix::fs::openat(CWD, dir.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.shim_log())?;
        let argv = [c"keelson-shim".to_owned(), c"serve".to_owned(), c"--id".to_owned(), CString::new(id)?];
        let spawned = keelson_sys::spawn::spawn(&keelson_sys::spawn::Program {
            file: self.program.as_fd(),
            argv: &argv,
            env: &[],
            cwd: cwd.as_fd(),
            stdio: [theirs.as_fd(), self.null.as_fd(), log.as_fd()],
        })?;
        Ok(Spawned { stream: ours, pid: spawned.pid, pidfd: spawned.pidfd })
    }
}

/// Waits for a shim's end and takes its status, so that it does not stay a zombie. `closed` tells that it has closed its socket:
/// then it has to end soon. When nobody listens to it any more (`closed` is dropped), it may take as long as its container does.
pub(crate) async fn reap(id: String, pidfd: OwnedFd, closed: oneshot::Receiver<()>) {
    #[expect(
        deprecated,
        reason = "sound for an OwnedFd, which the AsyncFd owns; the successor is unsafe, and unsafe code lives in sys"
    )]
    let Ok(pidfd) = AsyncFd::with_interest(pidfd, Interest::READABLE) else { return };
    let overdue = async {
        match closed.await {
            Ok(()) => tokio::time::sleep(LAST_ACT).await,
            Err(_) => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = pidfd.readable() => ended.is_ok(),
        () = overdue => false,
    };
    if !ended {
        tracing::warn!(id, "shim has closed its socket and does not end: killing it");
        // It may have ended just now.
        let _ = keelson_sys::pidfd::send_signal(pidfd.get_ref(), 9);
        if tokio::time::timeout(LAST_ACT, pidfd.readable()).await.is_err() {
            return;
        }
    }
    match keelson_sys::pidfd::try_wait(pidfd.get_ref()) {
        Ok(Some(exit)) if exit.code() != 0 => {
            tracing::warn!(id, code = exit.code(), "shim ended with an error: see shim.log")
        }
        Ok(_) => {}
        Err(errno) => tracing::warn!(id, %errno, "reap shim"),
    }
}
