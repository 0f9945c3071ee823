//! What is remembered of a container between commands: `<root>/<id>/state.json`, `config.json`, `start.sock`.
//! Any command; each reads and writes in milliseconds and holds nothing open afterwards.
//! Owns the folder from `create` to `delete`.
//! Must never believe the record about what the kernel knows: whether the init lives is asked of the kernel each time.

use std::fmt;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use keelson_shim::cgroup;
use keelson_shim::launch::{self, ContainerState};
use keelson_shim::spec::Spec;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::error::{OciError, file, system};

const RECORD: &str = "state.json";
const SPEC: &str = "config.json";
const SOCKET: &str = "start.sock";

/// A container's folder.
pub(super) struct Folder {
    id: String,
    path: PathBuf,
}

/// What `create` wrote down. Version 1.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) pid: i32,
    /// In clock ticks after boot: with the pid it names one process.
    pub(super) start_time: u64,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    /// RFC 3339.
    pub(super) created: String,
    pub(super) cgroup: cgroup::Paths,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Created,
    Running,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Stopped => "stopped",
        })
    }
}

impl Folder {
    /// Where the container `id` is remembered; it may not exist.
    pub(super) fn of(root: &Path, id: &str) -> Result<Folder, OciError> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        let first = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if id.len() > 1024 || !first || !id.bytes().all(good) {
            return Err(OciError::Id { id: id.chars().take(80).collect() });
        }
        Ok(Folder { id: id.to_owned(), path: root.join(id) })
    }

    /// Makes the folder: from here on the id is taken.
    pub(super) fn make(&self) -> Result<(), OciError> {
        let builder = || std::fs::DirBuilder::new().mode(0o700).create(&self.path);
        let made = match builder() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let root = self.path.parent().unwrap_or(Path::new("/"));
                let root_made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
                root_made.map_err(file("create folder", root))?;
                builder()
            }
            other => other,
        };
        match made {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(OciError::Exists { id: self.id.clone() })
            }
            other => other.map_err(file("create folder", &self.path)),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Keeps the spec as it was at creation: the bundle's may change.
    pub(super) fn keep_spec(&self, text: &[u8]) -> Result<(), OciError> {
        put(&self.path.join(SPEC), text, 0o600)
    }

    pub(super) fn spec(&self) -> Result<Spec, OciError> {
        read_json(&self.path.join(SPEC), &self.id)
    }

    pub(super) fn record(&self) -> Result<Record, OciError> {
        read_json(&self.path.join(RECORD), &self.id)
    }

    pub(super) fn keep_record(&self, record: &Record) -> Result<(), OciError> {
        let text = serde_json::to_vec(record).unwrap_or_default();
        put(&self.path.join(RECORD), &text, 0o600)
    }

    /// The socket at which the init will wait.
    pub(super) fn listen(&self) -> Result<OwnedFd, OciError> {
        let socket = seqpacket()?;
        let (folder, address) = self.socket_address()?;
        rustix::net::bind(&socket, &address).map_err(system("bind start.sock"))?;
        drop(folder);
        rustix::net::listen(&socket, 1).map_err(system("listen on start.sock"))?;
        Ok(socket)
    }

    /// A connection to the init that waits.
    pub(super) fn connect(&self) -> Result<OwnedFd, OciError> {
        let socket = seqpacket()?;
        let (folder, address) = self.socket_address()?;
        rustix::net::connect(&socket, &address).map_err(system("connect to start.sock"))?;
        drop(folder);
        Ok(socket)
    }

    /// The init has been let go.
    pub(super) fn forget_socket(&self) {
        // Already gone is as good; anything else shows as a status of `created`.
        let _ = std::fs::remove_file(self.path.join(SOCKET));
    }

    /// What the kernel says.
    pub(super) fn status(&self, record: &Record) -> Status {
        if !is_alive(record) {
            Status::Stopped
        } else if self.path.join(SOCKET).exists() {
            Status::Created
        } else {
            Status::Running
        }
    }

    /// As the specification and its hooks want it told.
    pub(super) fn state(&self, record: &Record, status: Status, spec: &Spec) -> ContainerState {
        let pid = if status == Status::Stopped { 0 } else { record.pid };
        ContainerState::new(&self.id, &status.to_string(), pid, &record.bundle, &spec.annotations)
    }

    pub(super) fn remove(&self) -> Result<(), OciError> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(file("remove", &self.path)),
        }
    }

    /// Addresses of sockets are short, paths of folders may be long: it is reached through its descriptor.
    fn socket_address(&self) -> Result<(std::fs::File, SocketAddrUnix), OciError> {
        let folder = std::fs::File::open(&self.path).map_err(file("open", &self.path))?;
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()));
        Ok((folder, address.map_err(system("name start.sock"))?))
    }
}

/// All containers below `root`, by id.
pub(super) fn all(root: &Path) -> Result<Vec<Folder>, OciError> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(file("read folder", root))?,
    };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut folders: Vec<Folder> = ids.filter_map(|id| Folder::of(root, &id).ok()).collect();
    folders.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(folders)
}

/// Whether the process of the record is there and no zombie.
fn is_alive(record: &Record) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{}/stat", record.pid)).unwrap_or_default();
    let dead = state.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    !dead && launch::start_time(record.pid).is_ok_and(|time| time == record.start_time)
}

/// Writes a file whole or not at all.
pub(super) fn put(path: &Path, content: &[u8], mode: u32) -> Result<(), OciError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}"));
    let write = || {
        let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(file("write", path))
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path, id: &str) -> Result<T, OciError> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(OciError::NotFound { id: id.to_owned() });
        }
        other => other.map_err(file("read", path))?,
    };
    serde_json::from_slice(&text).map_err(|source| OciError::Json { path: path.to_owned(), source })
}

fn seqpacket() -> Result<OwnedFd, OciError> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(system("make socket"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_the_root() {
        let root = Path::new("/r");
        for id in ["", ".", "..", "a/b", "../a", "-a", ".a", "a b", "a\n", &"x".repeat(1025)] {
            assert!(Folder::of(root, id).is_err(), "{id:?}");
        }
        for id in ["a", "busybox-1", "A_b.c+d", &"x".repeat(64)] {
            assert!(Folder::of(root, id).is_ok(), "{id}");
        }
    }

    #[test]
    fn an_id_is_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::of(&root.path().join("deep/er"), "a").unwrap();
        folder.make().unwrap();
        assert!(matches!(folder.make(), Err(OciError::Exists { .. })));
        assert!(matches!(folder.record(), Err(OciError::NotFound { .. })));
        folder.remove().unwrap();
        folder.remove().unwrap();
        folder.make().unwrap();
    }

    #[test]
    fn a_reused_pid_is_not_the_container() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut record = Record {
            version: 1,
            pid: own,
            start_time: launch::start_time(own).unwrap(),
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            created: String::new(),
            cgroup: cgroup::Paths { path: "/x".into(), scope: None },
        };
        assert!(is_alive(&record));
        record.start_time += 1;
        assert!(!is_alive(&record));
    }
}
