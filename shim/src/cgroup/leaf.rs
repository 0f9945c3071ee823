//! A cgroup of its own for each exec, below the container's, so that all it started can be killed and nothing else.
//! Blocking for microseconds; shim loop.
//! Owns one directory: in the unified hierarchy where there is one, otherwise in v1's freezer.
//! Must never have limits: what an exec uses is counted in the container.

use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::dir::Dir;
use super::error::CgroupError;
use super::hierarchy::Controller;
use super::kill::{self, Freezer};
use super::{Handle, JoinFds, open_directory, open_tasks};

/// An exec's cgroup.
#[derive(Debug, Clone)]
pub struct Leaf {
    container: Handle,
    /// None on a machine with v1 hierarchies but no freezer: then an exec cannot be told from its container.
    own: Option<Own>,
}

#[derive(Debug, Clone)]
enum Own {
    Unified(Dir),
    Freezer { mount: String, dir: Dir },
}

impl Leaf {
    pub(super) fn make(container: &Handle, name: &str) -> Result<Leaf, CgroupError> {
        let bad = |reason| CgroupError::BadPath { path: name.to_owned(), reason };
        if name.is_empty()
            || name.len() > 200
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            return Err(bad("it is no name for an exec"));
        }
        let own = match (container.unified_dir(), container.hierarchies.v1(Controller::Freezer)) {
            (Some(dir), _) => Some(Own::Unified(dir.child(&format!("exec-{name}")))),
            (None, Some(mount)) => {
                let dir = Dir::new(mount, &container.path).child(&format!("exec-{name}"));
                Some(Own::Freezer { mount: mount.to_owned(), dir })
            }
            (None, None) => None,
        };
        if let Some(Own::Unified(dir) | Own::Freezer { dir, .. }) = &own {
            match rustix::fs::mkdir(dir.path(), Mode::from_raw_mode(0o755)) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Err(CgroupError::Occupied { path: dir.path().to_owned() }),
                Err(source) => return Err(CgroupError::Make { path: dir.path().to_owned(), source }),
            }
        }
        Ok(Leaf { container: container.clone(), own })
    }

    /// What a process needs to be in the leaf, and in the container elsewhere.
    pub fn join_fds(&self) -> Result<JoinFds, CgroupError> {
        let mut tasks = Vec::new();
        for mount in self.container.hierarchies.v1_mounts() {
            match &self.own {
                Some(Own::Freezer { mount: freezer, dir }) if freezer == mount => tasks.push(open_tasks(dir)?),
                _ => tasks.push(open_tasks(&Dir::new(mount, &self.container.path))?),
            }
        }
        Ok(JoinFds { unified: self.unified_fd()?, tasks })
    }

    /// The leaf for CLONE_INTO_CGROUP; None where there is no unified hierarchy and [`Leaf::join_fds`] has to be used.
    pub fn unified_fd(&self) -> Result<Option<OwnedFd>, CgroupError> {
        match &self.own {
            Some(Own::Unified(dir)) => open_directory(dir).map(Some),
            Some(Own::Freezer { .. }) | None => Ok(None),
        }
    }

    /// Puts a process that runs in the container already into the leaf, with the children it has by now.
    pub fn adopt(&self, pid: i32) -> Result<(), CgroupError> {
        let (Some(Own::Unified(dir)) | Some(Own::Freezer { dir, .. })) = &self.own else { return Ok(()) };
        let mut waiting = vec![pid];
        while let Some(pid) = waiting.pop() {
            match dir.try_write("cgroup.procs", &pid.to_string()) {
                // It has ended.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(source) => return Err(dir.write_error("cgroup.procs", &pid.to_string(), source)),
            }
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            waiting.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
        Ok(())
    }

    /// Kills everything the exec started, wherever it was reparented to.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match &self.own {
            Some(Own::Unified(dir)) => match kill::kill_at_once(dir)? {
                true => self.container.thaw(),
                false => kill::kill_by_signals(dir, Some(Freezer::V2)),
            },
            Some(Own::Freezer { dir, .. }) => kill::kill_by_signals(dir, Some(Freezer::V1)),
            None => Ok(()),
        }
    }

    /// Whether nothing the exec started is left.
    pub fn is_empty(&self) -> Result<bool, CgroupError> {
        match &self.own {
            Some(Own::Unified(dir) | Own::Freezer { dir, .. }) => Ok(kill::processes(dir)?.is_empty()),
            None => Ok(true),
        }
    }

    /// Removes the directory; what still ran in it must be dead.
    pub fn remove(&self) -> Result<(), CgroupError> {
        match &self.own {
            Some(Own::Unified(dir) | Own::Freezer { dir, .. }) => kill::remove(dir),
            None => Ok(()),
        }
    }
}
