//! The durable rows: one redb file, written behind by one thread of its own, many changes in one commit.
//! Callers put into a map and go on; the map holds at most the newest value of each row, so it is bounded by what exists.
//! Owns `<root>/state.redb`. Must never hold its lock over I/O, and never let a damaged file keep the daemon from starting.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use redb::{
    DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition, TableError,
    backends::FileBackend,
};
use serde::de::DeserializeOwned;

use super::record::{DecodeError, Record, decode};
use crate::engine::OpenError;

/// How long changes are gathered before they are committed together.
pub(crate) const WINDOW: Duration = Duration::from_millis(50);
/// Between two tries when the disk refuses.
const RETRY: Duration = Duration::from_secs(2);
/// redb's own default is a gigabyte.
const CACHE: usize = 4 * 1024 * 1024;

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Sandboxes,
    Containers,
}

impl Table {
    fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        match self {
            Self::Sandboxes => TableDefinition::new("sandboxes"),
            Self::Containers => TableDefinition::new("containers"),
        }
    }
}

type Rows = BTreeMap<(Table, String), Option<Vec<u8>>>;

/// A handle on the file and its writer.
pub(crate) struct Database {
    path: PathBuf,
    file: Arc<redb::Database>,
    shared: Arc<Shared>,
    writer: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
struct Pending {
    /// Newest value of each changed row; `None`: no such row any more.
    rows: Rows,
    /// Rows are being committed right now.
    committing: bool,
    /// Somebody waits: do not gather.
    hurry: bool,
    /// No more changes will come.
    closing: bool,
    /// The last commit failed.
    failing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        // Nothing that can panic runs under this lock.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Database {
    /// Opens or makes the file and starts the writer.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |act, source| OpenError::Io { act, path: path.to_owned(), source };
        let file = match open_file(path) {
            Ok(file) => file,
            Err(error) if is_damage(&error) => {
                let aside = aside(path);
                tracing::warn!(path = %path.display(), moved_to = %aside.display(), %error,
                    "the database is damaged: begun anew from the records of the running sandboxes");
                fs::rename(path, &aside).map_err(|source| failed("move aside damaged", source))?;
                open_file(path).map_err(|error| failed("make", as_io(error)))?
            }
            Err(error) => return Err(failed("open", as_io(error))),
        };
        let file = Arc::new(file);
        let shared = Arc::new(Shared::default());
        let writer = {
            let (file, shared) = (Arc::clone(&file), Arc::clone(&shared));
            thread::Builder::new()
                .name("store-writer".into())
                .spawn(move || write_behind(&file, &shared))
                .map_err(|source| failed("start the writer of", source))?
        };
        Ok(Self { path: path.to_owned(), file, shared, writer: Some(writer) })
    }

    /// This row is so now (`None`: gone).
    pub(crate) fn put(&self, table: Table, key: &str, value: Option<Vec<u8>>) {
        self.shared.lock().rows.insert((table, key.to_owned()), value);
        self.shared.changed.notify_all();
    }

    /// Waits until nothing is pending, or the disk refuses.
    pub(crate) fn flush(&self) {
        let mut pending = self.shared.lock();
        pending.hurry = true;
        self.shared.changed.notify_all();
        while (pending.committing || !pending.rows.is_empty()) && !pending.failing {
            pending = self.shared.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        pending.hurry = false;
    }

    /// All rows of a table, committed ones only. A row that cannot be read is left out, with a warning.
    pub(crate) fn all<R: Record + DeserializeOwned>(&self, table: Table) -> Result<Vec<R>, OpenError> {
        let failed = |error: redb::Error| OpenError::Io { act: "read", path: self.path.clone(), source: as_io(error) };
        let transaction = self.file.begin_read().map_err(|error| failed(error.into()))?;
        let opened = match transaction.open_table(table.definition()) {
            Ok(opened) => opened,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error.into())),
        };
        let mut records = Vec::new();
        for row in opened.iter().map_err(|error| failed(error.into()))? {
            let (key, value) = row.map_err(|error| failed(error.into()))?;
            match decode::<R>(value.value()) {
                Ok(record) => records.push(record),
                Err(DecodeError::Newer { found }) => {
                    return Err(OpenError::Version { path: self.path.clone(), found, known: R::VERSION });
                }
                Err(DecodeError::Json(error)) => {
                    tracing::warn!(id = key.value(), %error, "row cannot be read: dropped")
                }
            }
        }
        Ok(records)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        if let Some(writer) = self.writer.take() {
            // A panic of the writer has been printed by it.
            let _ = writer.join();
        }
    }
}

fn write_behind(file: &redb::Database, shared: &Shared) {
    loop {
        let rows = {
            let mut pending = shared.lock();
            while pending.rows.is_empty() {
                if pending.closing {
                    return;
                }
                pending = shared.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
            }
            let gather = |pending: &mut Pending| !pending.hurry && !pending.closing;
            let wait = if pending.failing { RETRY } else { WINDOW };
            pending =
                shared.changed.wait_timeout_while(pending, wait, gather).unwrap_or_else(PoisonError::into_inner).0;
            pending.committing = true;
            std::mem::take(&mut pending.rows)
        };
        let committed = commit(file, &rows);
        let mut pending = shared.lock();
        pending.committing = false;
        match committed {
            Ok(()) => pending.failing = false,
            Err(error) => {
                if !pending.failing {
                    tracing::error!(%error, "records cannot be made durable: going on without, trying again");
                }
                pending.failing = true;
                for (key, value) in rows {
                    // What changed meanwhile is newer.
                    pending.rows.entry(key).or_insert(value);
                }
                if pending.closing {
                    shared.changed.notify_all();
                    return;
                }
                pending.hurry = false;
            }
        }
        shared.changed.notify_all();
    }
}

fn commit(file: &redb::Database, rows: &Rows) -> Result<(), redb::Error> {
    let mut transaction = file.begin_write()?;
    // Two-phase, and no long repair after a power cut.
    transaction.set_quick_repair(true);
    for table in [Table::Sandboxes, Table::Containers] {
        let mut opened = transaction.open_table(table.definition())?;
        for ((_, key), value) in rows.iter().filter(|((of, _), _)| *of == table) {
            match value {
                Some(bytes) => opened.insert(key.as_str(), bytes.as_slice())?,
                None => opened.remove(key.as_str())?,
            };
        }
    }
    Ok(transaction.commit()?)
}

fn open_file(path: &Path) -> Result<redb::Database, DatabaseError> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(StorageError::Io)?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600))
        .map_err(|errno| StorageError::Io(errno.into()))?;
    // The check reads the whole (small) file; without it a damaged page may panic later, and a panic ends the daemon.
    redb::Database::builder()
        .set_cache_size(CACHE)
        .set_check_integrity_on_open(true)
        .create_with_backend(FileBackend::new(file)?)
}

fn is_damage(error: &DatabaseError) -> bool {
    match error {
        DatabaseError::Storage(StorageError::Corrupted(_)) | DatabaseError::RepairAborted => true,
        DatabaseError::Storage(StorageError::Io(error)) => {
            matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput
            )
        }
        _ => false,
    }
}

/// A free name beside the damaged file.
fn aside(path: &Path) -> PathBuf {
    let mut number = 0u32;
    loop {
        let mut name = path.to_owned().into_os_string();
        name.push(format!(".damaged-{number}"));
        let name = PathBuf::from(name);
        if !name.exists() {
            return name;
        }
        number += 1;
    }
}

fn as_io(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::{SandboxRecord, tests::sandbox};

    fn row(byte: u8) -> Option<Vec<u8>> {
        Some(serde_json::to_vec(&sandbox(byte)).unwrap())
    }

    #[test]
    fn rows_survive_a_reopen_and_forgotten_ones_do_not() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("state.redb");
        {
            let database = Database::open(&path).unwrap();
            for byte in 0..20 {
                database.put(Table::Sandboxes, &byte.to_string(), row(byte));
            }
            database.put(Table::Sandboxes, "3", None);
            database.flush();
            assert_eq!(database.all::<SandboxRecord>(Table::Sandboxes).unwrap().len(), 19);
            database.put(Table::Sandboxes, "4", None);
            // Dropped without a flush: the writer commits what is pending first.
        }
        let database = Database::open(&path).unwrap();
        assert_eq!(database.all::<SandboxRecord>(Table::Sandboxes).unwrap().len(), 18);
    }

    #[test]
    fn a_damaged_file_is_moved_aside_and_begun_anew() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("state.redb");
        for garbage in [&b"not a database at all"[..], &[0u8; 5000]] {
            crate::store::write_new(&path, garbage, 0o600).unwrap();
            let database = Database::open(&path).unwrap();
            database.put(Table::Sandboxes, "1", row(1));
            database.flush();
            assert_eq!(database.all::<SandboxRecord>(Table::Sandboxes).unwrap().len(), 1);
        }
        assert!(scratch.path().join("state.redb.damaged-0").exists());
        assert!(scratch.path().join("state.redb.damaged-1").exists());
    }

    #[test]
    fn a_damaged_row_costs_only_itself() {
        let scratch = tempfile::tempdir().unwrap();
        let database = Database::open(&scratch.path().join("state.redb")).unwrap();
        database.put(Table::Sandboxes, "1", row(1));
        database.put(Table::Sandboxes, "2", Some(b"{".to_vec()));
        database.flush();
        assert_eq!(database.all::<SandboxRecord>(Table::Sandboxes).unwrap(), [sandbox(1)]);
        database.put(Table::Containers, "9", Some(br#"{"version":9}"#.to_vec()));
        database.flush();
        assert!(matches!(
            database.all::<crate::store::record::ContainerRecord>(Table::Containers),
            Err(OpenError::Version { found: 9, known: 1, .. })
        ));
    }
}
