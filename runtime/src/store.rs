//! Records of sandboxes and containers: one JSON file each in the state folder, and a row each in the database of the root folder.
//! The file is written at once (temporary name, rename, no fsync: the state folder lives in memory); the row follows within
//! [`database::WINDOW`], many in one commit. Called from the sandboxes' tasks and the blocking pool; a file costs some 20 us.
//! Owns the record files and the database. Must never make a caller wait for a disk's flush.
//!
//! Truth: while the machine is up, the file; after a reboot, the row. A row that was lost with the last window means that a
//! sandbox asked for in that window is forgotten, or that one removed in it is seen once more, not ready, and removed again.

pub(crate) mod database;
pub(crate) mod record;

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use keelson_api::{ContainerId, SandboxId};
use serde::{Serialize, de::DeserializeOwned};

use database::{Database, Table};
use record::{ContainerRecord, Record, SandboxRecord};

use crate::{
    dirs::{RootDir, StateDir},
    engine::OpenError,
};

/// Longest record file that is read: annotations are bounded at 256 KiB, specs far below this.
const RECORD_MAX: u64 = 16 * 1024 * 1024;
const RECORD: &str = "record.json";

/// Why a record could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{act} record `{path}`")]
pub(crate) struct StoreError {
    /// `write`, `encode`.
    act: &'static str,
    /// Which.
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Both places of the records.
pub(crate) struct Store {
    state: StateDir,
    database: Database,
}

/// All records of one place.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) sandboxes: Vec<SandboxRecord>,
    pub(crate) containers: Vec<ContainerRecord>,
}

impl Store {
    /// Opens the database; a damaged one is moved aside and begun anew, with a warning.
    pub(crate) fn open(root: &RootDir, state: StateDir) -> Result<Self, OpenError> {
        Ok(Self { state, database: Database::open(&root.database())? })
    }

    /// Records the sandbox as it is now.
    pub(crate) fn put_sandbox(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        self.put(self.state.sandbox(&record.id).path(), Table::Sandboxes, record.id.as_str(), record)
    }

    /// Records the container as it is now.
    pub(crate) fn put_container(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        self.put(self.state.container(&record.id).path(), Table::Containers, record.id.as_str(), record)
    }

    /// The sandbox is gone: its row. Its folder is taken by who made it.
    pub(crate) fn forget_sandbox(&self, id: &SandboxId) {
        self.database.put(Table::Sandboxes, id.as_str(), None);
    }

    /// The container is gone: its row. Its folder is taken by who made it.
    pub(crate) fn forget_container(&self, id: &ContainerId) {
        self.database.put(Table::Containers, id.as_str(), None);
    }

    /// Waits until every row is on disk. Blocks.
    pub(crate) fn flush(&self) {
        self.database.flush();
    }

    /// What the database has. Blocks.
    pub(crate) fn durable(&self) -> Result<Records, OpenError> {
        Ok(Records {
            sandboxes: self.database.all(Table::Sandboxes)?,
            containers: self.database.all(Table::Containers)?,
        })
    }

    /// What the state folder has. A folder without a readable record is left to the sweep. Blocks.
    pub(crate) fn present(&self) -> Result<Records, OpenError> {
        Ok(Records { sandboxes: folder(&self.state.sandboxes())?, containers: folder(&self.state.containers())? })
    }

    fn put<R: Serialize>(&self, directory: &Path, table: Table, id: &str, record: &R) -> Result<(), StoreError> {
        let path = directory.join(RECORD);
        let bytes = serde_json::to_vec(record).map_err(|error| StoreError {
            act: "encode",
            path: path.clone(),
            source: error.into(),
        })?;
        replace(&path, &bytes).map_err(|source| StoreError { act: "write", path, source })?;
        self.database.put(table, id, Some(bytes));
        Ok(())
    }
}

/// The file at `path` with these bytes, or as it was: never half. Mode 0600. Not flushed to disk.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let written = write_new(&temporary, bytes, 0o600).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The error of the write is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A file with these bytes and this mode, whatever was there; no link is followed.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use io::Write as _;
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).custom_flags(nofollow).open(path)?;
    file.write_all(bytes)
}

/// The file's bytes, at most `max`.
pub(crate) fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than any of ours"));
    }
    Ok(bytes)
}

fn folder<R: Record + DeserializeOwned>(parent: &Path) -> Result<Vec<R>, OpenError> {
    let failed = |act, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { act, path, source }
    };
    let mut records = Vec::new();
    for entry in fs::read_dir(parent).map_err(failed("list", parent))? {
        let path = entry.map_err(failed("list", parent))?.path().join(RECORD);
        match read_bounded(&path, RECORD_MAX) {
            Ok(bytes) => match record::decode::<R>(&bytes) {
                Ok(record) => records.push(record),
                Err(record::DecodeError::Newer { found }) => {
                    return Err(OpenError::Version { path, found, known: R::VERSION });
                }
                Err(record::DecodeError::Json(error)) => {
                    tracing::warn!(path = %path.display(), %error, "record cannot be read: what it stood for is swept");
                }
            },
            // Made, and the power or the daemon went before its record: nothing else was made yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.kind() == io::ErrorKind::NotADirectory => {}
            Err(source) => return Err(OpenError::Io { act: "read", path, source }),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_closed_to_others() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("record.json");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap(), b"two");
        assert_eq!(read_bounded(&path, 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let canary = scratch.path().join("canary");
        fs::File::create(&canary).unwrap();
        std::os::unix::fs::symlink(&canary, scratch.path().join("hosts")).unwrap();
        assert!(write_new(&scratch.path().join("hosts"), b"x", 0o644).is_err());
        assert_eq!(fs::metadata(&canary).unwrap().len(), 0);
    }
}
