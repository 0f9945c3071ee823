//! The trash: what nobody needs is renamed into `trash/` at once and removed by one background thread.
//! `take` runs on any blocking thread and costs one rename; the removal runs on the thread `keelson-trash`.
//! Owns the folder `trash`; what a crash leaves in it is removed after the next start. Must never remove anything in place.

mod tree;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use rustix::{fs::Mode, io::Errno};

use crate::disk;

/// A handle that is cheap to clone; the thread ends when the last one goes.
#[derive(Debug, Clone)]
pub(crate) struct Trash(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: Arc<OwnedFd>,
    /// Taken by `drop`, which ends the thread.
    queue: Mutex<Option<Sender<String>>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Trash {
    /// Opens `trash` below `root` and queues what is in it.
    pub(crate) fn open(root: &OwnedFd) -> io::Result<Self> {
        let dir = Arc::new(disk::ensure_dir(root, "trash", Mode::RWXU)?);
        let (sender, receiver) = channel();
        for name in disk::names(&dir)? {
            // The receiver lives until the thread below ends.
            let _ = sender.send(name);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (dir, stop) = (dir.clone(), stop.clone());
            std::thread::Builder::new()
                .name("keelson-trash".into())
                .spawn(move || remove_all(&dir, &receiver, &stop))?
        };
        Ok(Self(Arc::new(Inner { dir, queue: Mutex::new(Some(sender)), stop, thread: Mutex::new(Some(thread)) })))
    }

    /// Moves `name` out of `dir`, to be removed later. A name that is not there is a success.
    pub(crate) fn take(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        let target = match disk::move_in(dir, name, &self.0.dir, name) {
            Ok(target) => target,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if let Some(queue) = &*self.0.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            // A thread that has ended leaves the rest to the next start.
            let _ = queue.send(target);
        }
        Ok(())
    }

    /// Whether everything taken so far is gone from disk.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        Ok(disk::names(&self.0.dir)?.is_empty())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic there has been reported by its own hook.
            let _ = thread.join();
        }
    }
}

fn remove_all(dir: &OwnedFd, queue: &Receiver<String>, stop: &AtomicBool) {
    for name in queue {
        match tree::remove(dir, &name, stop) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => tracing::warn!(trash = %name, %error, "stays until the next start: remove from the trash"),
        }
    }
}

#[cfg(test)]
pub(crate) fn remove_tree(dir: &OwnedFd, name: &str) -> io::Result<()> {
    tree::remove(dir, name, &AtomicBool::new(false))
}
