//! Which namespaces a container gets: new ones, joined ones, the host's.
//! In the shim, before the clone.
//! Owns the descriptors of those that are joined.
//! Must never take a namespace of another kind than the spec names.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use keelson_sys::child::Shared;
use keelson_sys::namespace::{self, NamespaceKinds};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::LaunchError;
use crate::spec::{Linux, NamespaceKind, TimeOffset};

/// Kinds in the order in which a child joins them; user first, because it decides over the others, mount last, because
/// it changes what paths mean.
const ORDER: [NamespaceKind; 8] = [
    NamespaceKind::User,
    NamespaceKind::Cgroup,
    NamespaceKind::Ipc,
    NamespaceKind::Uts,
    NamespaceKind::Network,
    NamespaceKind::Pid,
    NamespaceKind::Time,
    NamespaceKind::Mount,
];

pub(super) struct Namespaces {
    pub(super) new: NamespaceKinds,
    pub(super) joined: Vec<(NamespaceKind, Shared)>,
}

impl Namespaces {
    pub(super) fn open(linux: &Linux) -> Result<Namespaces, LaunchError> {
        let mut found = Namespaces { new: NamespaceKinds::EMPTY, joined: Vec::new() };
        for kind in ORDER {
            let mut given = linux.namespaces.iter().filter(|namespace| namespace.kind == kind);
            let Some(namespace) = given.next() else {
                continue;
            };
            if given.next().is_some() {
                return Err(LaunchError::invalid("read namespaces", name(kind), "named twice"));
            }
            if namespace.path.is_empty() {
                found.new = found.new | kinds(kind);
            } else {
                found.joined.push((kind, Rc::new(open(kind, &namespace.path)?)));
            }
        }
        Ok(found)
    }

    pub(super) fn joins(&self, kind: NamespaceKind) -> Option<&Shared> {
        self.joined.iter().find(|(joined, _)| *joined == kind).map(|(_, fd)| fd)
    }

    pub(super) fn makes(&self, kind: NamespaceKind) -> bool {
        self.new.contains(kinds(kind))
    }

    /// Whether the container has one of this kind that is not this process's own.
    pub(super) fn separates(&self, kind: NamespaceKind) -> bool {
        self.makes(kind) || self.joins(kind).is_some_and(|fd| !is_own(kind, fd))
    }
}

pub(super) fn kinds(kind: NamespaceKind) -> NamespaceKinds {
    match kind {
        NamespaceKind::Pid => NamespaceKinds::PID,
        NamespaceKind::Network => NamespaceKinds::NET,
        NamespaceKind::Mount => NamespaceKinds::MOUNT,
        NamespaceKind::Ipc => NamespaceKinds::IPC,
        NamespaceKind::Uts => NamespaceKinds::UTS,
        NamespaceKind::User => NamespaceKinds::USER,
        NamespaceKind::Cgroup => NamespaceKinds::CGROUP,
        NamespaceKind::Time => NamespaceKinds::TIME,
    }
}

pub(super) fn name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Pid => "pid",
        NamespaceKind::Network => "network",
        NamespaceKind::Mount => "mount",
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::Uts => "uts",
        NamespaceKind::User => "user",
        NamespaceKind::Cgroup => "cgroup",
        NamespaceKind::Time => "time",
    }
}

/// The file of `/proc/<pid>/ns`.
fn file(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Network => "net",
        NamespaceKind::Mount => "mnt",
        NamespaceKind::Pid | NamespaceKind::Ipc | NamespaceKind::Uts | NamespaceKind::User => name(kind),
        NamespaceKind::Cgroup | NamespaceKind::Time => name(kind),
    }
}

fn open(kind: NamespaceKind, path: &str) -> Result<OwnedFd, LaunchError> {
    let failed = |errno| LaunchError::system("open namespace", path, errno);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    let found = rustix::fs::fstatfs(&fd).map_err(failed)?;
    if u64::try_from(found.f_type).ok() != Some(NSFS_MAGIC) {
        return Err(LaunchError::invalid("open namespace", path, format!("not a {} namespace", name(kind))));
    }
    Ok(fd)
}

/// Whether the namespace behind `fd` is this process's own.
fn is_own(kind: NamespaceKind, fd: &OwnedFd) -> bool {
    let own = rustix::fs::stat(format!("/proc/self/ns/{}", file(kind)));
    match (own, rustix::fs::fstat(fd)) {
        (Ok(own), Ok(other)) => own.st_ino == other.st_ino && own.st_dev == other.st_dev,
        _ => false,
    }
}

/// Whether a process's namespace of one kind is another than this process's.
pub(super) fn differs(pid: i32, kind: NamespaceKind) -> Result<bool, LaunchError> {
    let read = |of: &str| {
        let path = format!("/proc/{of}/ns/{}", file(kind));
        rustix::fs::stat(&path).map_err(|errno| LaunchError::system("read namespace", path, errno))
    };
    let (own, other) = (read("self")?, read(&pid.to_string())?);
    Ok(own.st_ino != other.st_ino)
}

/// Runs `f` with this process's children born in its own pid namespace, whatever they are born in otherwise.
pub fn in_own_pid_namespace<T>(f: impl FnOnce() -> T) -> Result<T, LaunchError> {
    let own = open(NamespaceKind::Pid, "/proc/self/ns/pid")?;
    let _own = ForChildren::pid(&own)?;
    Ok(f())
}

/// Gives this process's children another pid or time namespace for as long as this lives.
pub(super) struct ForChildren {
    original: OwnedFd,
    kind: NamespaceKind,
}

impl ForChildren {
    pub(super) fn pid(target: &OwnedFd) -> Result<ForChildren, LaunchError> {
        let original = open(NamespaceKind::Pid, "/proc/self/ns/pid_for_children")?;
        move_into_link_name_space(target.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .map_err(|errno| LaunchError::system("join namespace", "pid", errno))?;
        Ok(ForChildren { original, kind: NamespaceKind::Pid })
    }

    /// A new time namespace: its clocks can be set only until the first process is in it.
    pub(super) fn new_time(offsets: &[(String, TimeOffset)]) -> Result<ForChildren, LaunchError> {
        let failed = |errno| LaunchError::system("create namespace", "time", errno);
        let original = open(NamespaceKind::Time, "/proc/self/ns/time")?;
        namespace::unshare(NamespaceKinds::TIME)
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let restore = ForChildren { original, kind: NamespaceKind::Time };
        let mut text = String::new();
        for (clock, offset) in offsets {
            if !matches!(clock.as_str(), "monotonic" | "boottime") {
                return Err(LaunchError::invalid("set time offset", clock, "not monotonic or boottime"));
            }
            text.push_str(&format!("{clock} {} {}\n", offset.secs, offset.nanosecs));
        }
        if !text.is_empty() {
            super::write_file("/proc/self/timens_offsets", text.as_bytes())
                .map_err(|errno| LaunchError::system("set time offset", "", errno))?;
        }
        Ok(restore)
    }
}

impl Drop for ForChildren {
    fn drop(&mut self) {
        // Nothing to do about a failure: the next launch of this process says so itself.
        let _ = namespace::set(self.original.as_fd(), kinds(self.kind));
    }
}
